//! A program under `milepost supervise`: it ends, with all that it has started, when it is told to,
//! when this process is gone, and when it says for too long no more that the program may go on.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::{ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

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

/// How long a program that is stopped may take to be gone.
pub(super) fn end_max(grace: Duration) -> Duration {
    grace + KILL_TIMEOUT
}

/// Runs a supervisor to its end, or until `stop` says why not. Should this process stand still, the
/// supervisor ends by itself when the last `until` that it was told has come.
///
/// # Errors
/// When it cannot be started or waited for.
pub(super) async fn run<S>(
    mut supervisor: Command,
    grace: Duration,
    mut until: watch::Receiver<Instant>,
    stop: &mut (impl Future<Output = S> + Unpin),
) -> std::io::Result<(End<S>, Output)> {
    let (reader, writer) = std::io::pipe()?;
    let reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
    supervisor.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = supervisor.spawn()?;
    // It has this process's copies of the writing end.
    drop(supervisor);
    // Whoever drops this, by whatever way, tells the supervisor to end.
    let mut held = child.stdin.take().expect("its standard input is a pipe");
    let output = Arc::default();
    let reading = tokio::spawn(read(reader, Arc::clone(&output)));
    until.mark_changed();
    let end = loop {
        tokio::select! {
            status = child.wait() => break End::Exited(code(status?)),
            why = &mut *stop => {
                drop(held);
                if timeout(end_max(grace), child.wait()).await.is_err() {
                    child.kill().await?;
                }
                break End::Stopped(why);
            }
            Ok(()) = until.changed() => {
                let until = *until.borrow_and_update();
                tell(&mut held, until).await;
            }
        }
    };
    let reader = reading.abort_handle();
    if timeout(DRAIN_TIMEOUT, reading).await.is_err() {
        // Somebody has the writing end still: what was printed so far is what there is.
        reader.abort();
    }
    let output = std::mem::take(&mut *output.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((end, output))
}

/// Tells the supervisor for how many milliseconds from now on the program may run. That it is gone
/// is heard elsewhere.
async fn tell(supervisor: &mut ChildStdin, until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    let left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    drop(supervisor.write_u32(left_ms).await);
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(i32::MAX)
}

/// Reads to the end, and keeps the last of it.
async fn read(mut reader: pipe::Receiver, output: Arc<Mutex<Output>>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(length @ 1..) = reader.read(&mut chunk).await {
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        output.bytes.extend(&chunk[..length]);
        let surplus = output.bytes.len().saturating_sub(OUTPUT_BYTES_MAX);
        output.cut |= surplus > 0;
        drop(output.bytes.drain(..surplus));
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[tokio::test]
    async fn what_was_printed_is_kept_though_somebody_holds_the_output_open() {
        let mut supervisor = Command::new("sh");
        supervisor.args(["-c", "echo the recap; sleep 600 & echo $!"]);
        let until = watch::Sender::new(Instant::now());
        let mut stop = std::future::pending::<()>();
        let run = run(supervisor, Duration::ZERO, until.subscribe(), &mut stop);
        let (end, output) = run.await.unwrap();
        let printed = String::from_utf8(output.bytes.into()).unwrap();
        let (recap, left) = printed.trim_end().split_once('\n').unwrap();
        kill(Pid::from_raw(left.parse().unwrap()), Signal::SIGKILL).unwrap();
        assert_eq!((recap, output.cut), ("the recap", false));
        assert!(matches!(end, End::Exited(0)));
    }
}
