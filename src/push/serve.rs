//! Connections: hyper parses requests and writes answers; once it has sent the head of a stream,
//! the socket is taken from it and written to directly.
//!
//! hyper keeps about 19 KB a connection; a taken one costs its task and its cursor. And all
//! messages that a subscriber is behind go out in one `writev`, without being copied.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Extensions, HeaderValue, Request, Response, Version, header};
use bytes::Bytes;
use http_body::Frame;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::Subscription;
use super::encode;
use crate::accounts::InForce;
use crate::app::App;

/// Connections a process holds at the most; further ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 18_000;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests under way may take once the process is told to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A reader that takes nothing for this long is let go; it may resume where it stopped.
const STALL_TIMEOUT: Duration = Duration::from_mins(5);

/// A stream is ended after this, give or take a half, so that connections spread over nodes anew.
const AGE_MAX: Duration = Duration::from_mins(45);

/// Bytes the kernel keeps that it could not send yet. It would take megabytes of a slow reader's
/// messages by itself, all of them old by the time they are read.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 64 << 10;

/// Messages in one `writev`.
const SLICES_MAX: usize = 64;

/// Where a handler leaves the stream it wants served.
#[derive(Clone, Default)]
struct Slot(Arc<SlotInner>);

#[derive(Default)]
struct SlotInner {
    /// The other end of the socket.
    peer: Option<IpAddr>,
    stream: Mutex<Option<Stream>>,
    /// hyper has written the head and asked for the body.
    body_asked: AtomicBool,
    /// And everything before it is in the kernel.
    flushed: AtomicBool,
}

struct Stream {
    subscription: Subscription,
    chunked: bool,
    right: InForce,
    /// A message has gone out in part: nothing but its rest may follow.
    within_message: bool,
}

/// The other end of the socket that a request came by.
pub fn peer(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<Slot>()?.0.peer
}

/// Answers a request with a stream, which ends with the right behind it.
pub fn respond(
    request: &Request<Body>,
    subscription: Subscription,
    right: InForce,
) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    // The connection ends with the stream: nobody is to send another request over it.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let slot = request.extensions().get::<Slot>().cloned().unwrap_or_default();
    let chunked = request.version() == Version::HTTP_11;
    let stream = Stream { subscription, chunked, right, within_message: false };
    *slot.0.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    *response.body_mut() = Body::new(TakenBody(slot));
    response
}

/// A body that never comes: it marks the moment at which the socket can be taken.
struct TakenBody(Slot);

impl http_body::Body for TakenBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.0.body_asked.store(true, Ordering::Release);
        Poll::Pending
    }
}

/// Serves until the process is told to end, then drains.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(app: Arc<App>, listener: TcpListener, router: Router) -> io::Result<()> {
    let connections = tokio_util::task::TaskTracker::new();
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to come back.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = app.shutdown.cancelled() => break,
        };
        let (app, router) = (Arc::clone(&app), router.clone());
        connections.spawn(async move {
            let taken = serve_requests(&app, socket, router).await;
            if let Some((socket, stream)) = taken {
                let subscribers = app.metrics.subscribers.clone();
                subscribers.inc();
                if let Err(error) = serve_stream(&app, socket, stream).await {
                    tracing::debug!(%error, "a stream ended");
                }
                subscribers.dec();
            }
            drop(place);
        });
    }
    connections.close();
    drop(tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await);
    Ok(())
}

/// Lets hyper serve a connection; returns the socket when a handler answered with a stream.
async fn serve_requests(
    app: &App,
    socket: TcpStream,
    router: Router,
) -> Option<(TcpStream, Stream)> {
    drop(socket.set_nodelay(true));
    let peer = socket.peer_addr().ok().map(|peer| peer.ip());
    let slot = Slot(Arc::new(SlotInner { peer, ..SlotInner::default() }));
    let io = Watched { io: TokioIo::new(socket), slot: slot.clone() };
    let for_requests = slot.clone();
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(for_requests.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(io, service);
    let mut shutdown = std::pin::pin!(app.shutdown.cancelled());
    let mut draining = false;
    let taken = std::future::poll_fn(|context| {
        if !draining && shutdown.as_mut().poll(context).is_ready() {
            draining = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        if connection.poll_without_shutdown(context).is_ready() {
            return Poll::Ready(false);
        }
        if slot.0.flushed.load(Ordering::Acquire) { Poll::Ready(true) } else { Poll::Pending }
    })
    .await;
    let socket = connection.into_parts().io.io.into_inner();
    let stream = slot.0.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
    stream.filter(|_| taken).map(|stream| (socket, stream))
}

/// Writes a subscriber's messages until either side ends.
async fn serve_stream(app: &App, socket: TcpStream, mut stream: Stream) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    let random = app.clock.id().as_u128() as u64;
    let age = AGE_MAX.mul_f64(0.5 + (random % 1_000) as f64 / 1_000.0);
    let left = stream.right.expires_at.map_or(age, |at| {
        Duration::try_from(at.duration_since(app.clock.now())).unwrap_or_default().min(age)
    });
    let end = Instant::now() + left;
    let right = stream.right.clone();
    let ended = async {
        tokio::select! {
            () = app.shutdown.cancelled() => {}
            () = right.revoked() => {}
            () = tokio::time::sleep_until(end) => {}
        }
    };
    tokio::select! {
        written = write_messages(app, &socket, &mut stream) => return written,
        () = peer_closed(&socket) => return Ok(()),
        () = ended => {}
    }
    if stream.chunked && !stream.within_message {
        // A peer that is behind gets no clean end; its browser resumes all the same.
        drop(socket.try_write(encode::LAST_CHUNK));
    }
    Ok(())
}

async fn write_messages(app: &App, socket: &TcpStream, stream: &mut Stream) -> io::Result<()> {
    let tick = stream.subscription.tick_after();
    loop {
        let messages = if stream.subscription.is_greeted() {
            match tokio::time::timeout(tick, stream.subscription.next()).await {
                Ok(messages) => messages,
                Err(_) => stream.subscription.tick().await,
            }
        } else {
            stream.subscription.next().await
        };
        let mut frames = messages.map_err(io::Error::other)?;
        if !stream.chunked {
            for frame in &mut frames {
                *frame = encode::unchunked(frame);
            }
        }
        let writing = write_all(socket, &frames, &mut stream.within_message);
        let written = tokio::time::timeout(STALL_TIMEOUT, writing).await;
        written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        app.metrics.deliveries.inc_by(frames.len() as u64);
        stream.subscription.written();
    }
}

/// Writes all frames, as many in one call as fit. Says in between whether one is out in part.
async fn write_all(
    socket: &TcpStream,
    frames: &[Bytes],
    within_message: &mut bool,
) -> io::Result<()> {
    let (mut first, mut offset) = (0, 0);
    while first < frames.len() {
        match try_write(socket, &frames[first..], offset) {
            Ok(mut written) => {
                written += offset;
                while first < frames.len() && written >= frames[first].len() {
                    written -= frames[first].len();
                    first += 1;
                }
                offset = written;
                *within_message = offset > 0;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn try_write(socket: &TcpStream, frames: &[Bytes], offset: usize) -> io::Result<usize> {
    if let [only] = frames {
        return socket.try_write(&only[offset..]);
    }
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let mut count = 0;
    for (slice, frame) in slices.iter_mut().zip(frames) {
        *slice = IoSlice::new(frame);
        count += 1;
    }
    slices[0] = IoSlice::new(&frames[0][offset..]);
    socket.try_write_vectored(&slices[..count])
}

/// Returns when the peer has gone. What it sends after its request is of no interest.
async fn peer_closed(socket: &TcpStream) {
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        match socket.try_read(&mut [0; 64]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// hyper's side of the socket; notes when the head of a stream has been flushed.
struct Watched {
    io: TokioIo<TcpStream>,
    slot: Slot,
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes the socket only after its own buffer has gone into it.
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        if flushed.is_ready() && self.slot.0.body_asked.load(Ordering::Acquire) {
            self.slot.0.flushed.store(true, Ordering::Release);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }
}
