//! `milepost supervise`: runs a program, and ends it with all that it has started when told to.
//!
//! A worker runs its tools under this. What tells it is the end of its standard input: the worker
//! holds the other end of that pipe, and the kernel closes it when the worker is gone, however
//! that came about. A worker that stands still closes nothing: on that pipe it says from time to time
//! for how long the program may go on, and when that is over it is ended too. Orphans come back to
//! this process (it is their subreaper), so that those are found too which have left the process
//! group and the session, as Ansible's own workers do.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::work::processes::descendants;

/// How long killed processes may take to be gone before they are looked for again: one may have
/// started another in the meantime.
const KILL_PAUSE: Duration = Duration::from_millis(100);

/// How often they are: a process that the kernel cannot end is left to it after ten seconds.
const KILLS_MAX: u32 = 100;

/// What is added to a signal's number to make an exit code of it, as shells do.
const SIGNAL_BASE: i32 = 128;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds between asking processes to end and killing them
    #[arg(long, default_value_t = 0.0)]
    grace: f64,
    /// A directory that goes when the program is ended before its time
    #[arg(long)]
    remove: Option<PathBuf>,
    /// Become the program, as the child of this supervisor, and end when it does
    #[arg(long, hide = true)]
    under: Option<i32>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the program; its exit code, or that of the signal that ended it.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(supervisor) = args.under {
        return become_program(Pid::from_raw(supervisor), &args.command);
    }
    prctl::set_child_subreaper(true)?;
    let grace = Duration::try_from_secs_f64(args.grace)?;
    let mut told = Told::listen()?;
    let mut family = Family::start(&args.command)?;
    let code = tokio::select! {
        code = family.program_ended() => Some(code),
        () = told.heard() => None,
    };
    family.end(grace).await;
    if code.is_none()
        && let Some(directory) = args.remove
    {
        drop(std::fs::remove_dir_all(directory));
    }
    let code = code.unwrap_or(SIGNAL_BASE + Signal::SIGTERM as i32);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Becomes the program, which the kernel then kills when the supervisor is gone: not even a killed
/// one leaves it running. What it has started itself is for the worker to find
/// (`work::dispatch::end_strays`).
fn become_program(supervisor: Pid, command: &[OsString]) -> anyhow::Result<ExitCode> {
    let (program, arguments) = command.split_first().context("there is no program")?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have gone before that was said.
    anyhow::ensure!(Pid::parent() == supervisor, "the supervisor is gone");
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("{} cannot be started", program.display()))
}

/// What says that the program is to end.
struct Told {
    worker: pipe::Receiver,
    signals: [tokio::signal::unix::Signal; 3],
}

impl Told {
    fn listen() -> anyhow::Result<Self> {
        let worker = std::io::stdin().as_fd().try_clone_to_owned()?;
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
        let [terminate, interrupt, hangup] = kinds.map(signal);
        Ok(Self {
            worker: pipe::Receiver::from_owned_fd(worker)
                .context("standard input is no pipe: there is nobody to supervise for")?,
            signals: [terminate?, interrupt?, hangup?],
        })
    }

    async fn heard(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.signals;
        tokio::select! {
            () = let_go(&mut self.worker) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Returns when the worker is gone, or when the milliseconds are over that it said last. One that
/// never says any leaves the program its time.
async fn let_go(worker: &mut pipe::Receiver) {
    let mut left = None;
    loop {
        let word = worker.read_u32();
        let word = match left {
            Some(left) => timeout(left, word).await,
            None => Ok(word.await),
        };
        let Ok(Ok(left_ms)) = word else { return };
        left = Some(Duration::from_millis(left_ms.into()));
    }
}

/// The program and all that it has started.
struct Family {
    program: Pid,
    code: Option<i32>,
    none_left: bool,
    child_ended: tokio::signal::unix::Signal,
}

impl Family {
    fn start(command: &[OsString]) -> anyhow::Result<Self> {
        let child_ended = signal(SignalKind::child())?;
        // On this process's first thread, which lasts as long as the process: the kernel looks at
        // the thread.
        let child = Command::new("/proc/self/exe")
            .args(["supervise", "--under", &Pid::this().to_string(), "--"])
            .args(command)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .context("this program cannot be started again")?;
        let program = Pid::from_raw(child.id().cast_signed());
        Ok(Self { program, code: None, none_left: false, child_ended })
    }

    async fn program_ended(&mut self) -> i32 {
        loop {
            self.reap();
            if let Some(code) = self.code {
                return code;
            }
            self.child_ended.recv().await;
        }
    }

    /// Asks them all to end, and kills those that do not.
    async fn end(&mut self, grace: Duration) {
        if self.reap() {
            return;
        }
        signal_all(Signal::SIGTERM);
        if timeout(grace, self.all_ended()).await.is_ok() {
            return;
        }
        for _ in 0..KILLS_MAX {
            signal_all(Signal::SIGKILL);
            if timeout(KILL_PAUSE, self.all_ended()).await.is_ok() {
                return;
            }
        }
    }

    async fn all_ended(&mut self) {
        while !self.reap() {
            self.child_ended.recv().await;
        }
    }

    /// Takes note of who has ended; whether nobody is left.
    fn reap(&mut self) -> bool {
        while !self.none_left {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.program => self.code = Some(code),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.program => {
                    self.code = Some(SIGNAL_BASE + signal as i32);
                }
                Ok(WaitStatus::StillAlive) => return false,
                Err(Errno::ECHILD) => self.none_left = true,
                Ok(_) | Err(_) => {}
            }
        }
        true
    }
}

fn signal_all(signal: Signal) {
    for pid in descendants(Pid::this()) {
        // Gone already, it needs none.
        let _ = nix::sys::signal::kill(pid, signal);
    }
}
