//! A program under `milepost supervise`: it ends, with all that it has started, when it is told to
//! and when this process is gone.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::time::timeout;

use super::outcome::OUTPUT_BYTES_MAX;

/// How long the supervisor itself may take, beyond the grace, to kill what is left.
const KILL_TIMEOUT: Duration = Duration::from_secs(15);

/// How long output is waited for once the program has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Read from the pipe at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// How a program ended.
pub(super) enum End<S> {
    /// By itself, or by somebody's signal: 128 and the signal's number then.
    Exited(i32),
    /// Because it was stopped.
    Stopped(S),
}

/// The last of what a program printed on both its outputs, in their order.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// At most [`OUTPUT_BYTES_MAX`].
    pub(super) bytes: VecDeque<u8>,
    /// Whether there was more before it.
    pub(super) cut: bool,
}

/// Runs a supervisor to its end, or until `stop` says why not.
///
/// # Errors
/// When it cannot be started or waited for.
pub(super) async fn run<S>(
    mut supervisor: Command,
    grace: Duration,
    stop: &mut (impl Future<Output = S> + Unpin),
) -> std::io::Result<(End<S>, Output)> {
    let (reader, writer) = std::io::pipe()?;
    let reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
    supervisor.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = supervisor.spawn()?;
    // It has this process's copies of the writing end.
    drop(supervisor);
    // Whoever drops this, by whatever way, tells the supervisor to end.
    let held = child.stdin.take();
    let output = tokio::spawn(read(reader));
    let end = tokio::select! {
        status = child.wait() => End::Exited(code(status?)),
        why = stop => {
            drop(held);
            if timeout(grace + KILL_TIMEOUT, child.wait()).await.is_err() {
                child.kill().await?;
            }
            End::Stopped(why)
        }
    };
    let output = timeout(DRAIN_TIMEOUT, output).await;
    Ok((end, output.ok().and_then(Result::ok).unwrap_or_default()))
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(i32::MAX)
}

/// Reads to the end, and keeps the last of it.
async fn read(mut reader: pipe::Receiver) -> Output {
    let mut output = Output::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(length @ 1..) = reader.read(&mut chunk).await {
        output.bytes.extend(&chunk[..length]);
        let surplus = output.bytes.len().saturating_sub(OUTPUT_BYTES_MAX);
        output.cut |= surplus > 0;
        drop(output.bytes.drain(..surplus));
    }
    output
}
