//! A stream read from a socket of the test's own: its buffer, its pace, its last bytes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::Client;

/// An open stream, as bytes.
pub struct RawStream {
    socket: TcpStream,
    /// What has been read, without the head.
    pub bytes: Vec<u8>,
}

impl RawStream {
    /// Opens a stream on a socket that takes in so many bytes at once, if that is said.
    pub async fn open(
        client: &Client,
        path: &str,
        last_event_id: Option<&str>,
        receive_bytes: Option<u32>,
    ) -> Self {
        let address: SocketAddr = client.url.strip_prefix("http://").unwrap().parse().unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = receive_bytes {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        let mut socket = socket.connect(address).await.unwrap();
        let resume = last_event_id.map_or(String::new(), |id| format!("last-event-id: {id}\r\n"));
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n{resume}\r\n",
            client.token
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
        Self { socket, bytes: Vec::new() }
    }

    /// Reads a few bytes, if there are any yet.
    pub fn sip(&mut self, count: usize) {
        let mut few = vec![0; count];
        if let Ok(count) = self.socket.try_read(&mut few) {
            self.bytes.extend_from_slice(&few[..count]);
        }
    }

    /// Reads some more; false at the end.
    pub async fn more(&mut self) -> bool {
        self.socket.read_buf(&mut self.bytes).await.is_ok_and(|count| count > 0)
    }

    /// Reads to the end: the messages as text, and whether the last chunk came. A chunk that is
    /// not whole counts for nothing.
    pub async fn finish(mut self) -> (String, bool) {
        while self.more().await {}
        let mut text = Vec::new();
        let mut rest = &self.bytes[..];
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
            let size = std::str::from_utf8(&rest[..end]).unwrap();
            let size = usize::from_str_radix(size, 16).expect("a chunk begins with its size");
            let Some(chunk) = rest.get(end + 2..end + 4 + size) else { break };
            assert!(chunk.ends_with(b"\r\n"), "a chunk has the size it says");
            text.extend_from_slice(&chunk[..size]);
            rest = &rest[end + 4 + size..];
            if size == 0 {
                assert!(rest.is_empty(), "nothing follows the last chunk");
                return (String::from_utf8(text).unwrap(), true);
            }
        }
        assert!(!rest.ends_with(b"0\r\n\r\n"), "no last chunk stands within another");
        (String::from_utf8(text).unwrap(), false)
    }
}
