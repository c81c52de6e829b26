//! One cluster and its postmaster: make, start, find, end.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::binaries::Binaries;
use super::place::{self, Doing as _, Owner};
use super::{EmbeddedError, NAME, settings};

/// A fast shutdown ends with a checkpoint, which a slow disk may take long over.
const FAST_SHUTDOWN_TIMEOUT: Duration = Duration::from_mins(1);
/// An immediate one does not, and after five seconds kills what has not ended.
const IMMEDIATE_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);
/// A postmaster that is not our child tells nobody when it ends.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// With `log_rotation_size` this bounds the logs to 64 MB.
const LOG_FILES_MAX: usize = 4;
const LOG_INTERVAL: Duration = Duration::from_mins(1);
/// What of a log goes into an error.
const LAST_WORDS_BYTES_MAX: u64 = 2048;

/// A cluster in the making, followed by the id of the process that makes it.
const PARTIAL_PREFIX: &str = "cluster.partial-";

/// No process has this id: Linux ends at 2^22, others earlier.
const NOBODY_PID: i32 = i32::MAX;

/// Where a cluster is and how it is run.
#[derive(Debug)]
pub(super) struct Cluster {
    home: PathBuf,
    data: PathBuf,
    socket_dir: PathBuf,
    owner: Option<Owner>,
    binaries: Binaries,
}

/// The running server: started by this process, or by another.
#[derive(Debug)]
pub(super) enum Postmaster {
    Child(Child),
    Stranger(Pid),
}

/// What a postmaster writes into `postmaster.pid`.
#[derive(Debug, PartialEq)]
struct PidFile {
    pid: Pid,
    socket_dir: Option<PathBuf>,
}

impl Cluster {
    /// The cluster in `home`, whether there is one yet or not. A running postmaster keeps its socket
    /// where it is.
    pub(super) fn open(home: PathBuf, owner: Option<Owner>, binaries: Binaries) -> Self {
        // Somebody may have moved it to another disk and left a link.
        let data = home.join("cluster");
        let data = fs::canonicalize(&data).unwrap_or(data);
        let socket_dir = place::socket_dir(&home);
        let mut cluster = Self { home, data, socket_dir, owner, binaries };
        if cluster.running().is_some() {
            let pid_file = PidFile::read(&cluster.data);
            if let Some(socket_dir) = pid_file.and_then(|pid_file| pid_file.socket_dir) {
                cluster.socket_dir = socket_dir;
            }
        }
        cluster
    }

    pub(super) fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    pub(super) fn url(&self) -> String {
        let host = percent_encoded(self.socket_dir.as_os_str().as_bytes());
        format!("postgresql://{NAME}@{host}:{}/{NAME}", settings::PORT)
    }

    /// Makes the cluster: in a directory beside it, so that a kill leaves none or a whole one.
    pub(super) async fn initialise(&self) -> Result<(), EmbeddedError> {
        self.remove_partial_clusters();
        let partial = self.home.join(format!("{PARTIAL_PREFIX}{}", std::process::id()));
        place::make_dir(&partial, 0o700, self.owner.as_ref())?;
        let output = self
            .command("initdb")
            .arg("--pgdata")
            .arg(&partial)
            .args(["--username", NAME, "--encoding", "UTF8", "--locale", "C", "--data-checksums"])
            .args(["--auth-local", "trust", "--auth-host", "reject", "--no-instructions"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .doing("running", &self.binaries.dir.join("initdb"))?;
        if !output.status.success() {
            let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(EmbeddedError::Initialise { output });
        }
        append(&partial.join("postgresql.conf"), settings::INCLUDE)?;
        fs::rename(&partial, &self.data).doing("renaming", &partial)?;
        File::open(&self.home).and_then(|dir| dir.sync_all()).doing("syncing", &self.home)
    }

    /// Writes the settings; a postmaster that runs already takes up what it can of them.
    pub(super) fn configure(&self) -> Result<(), EmbeddedError> {
        let path = self.home.join(settings::FILE);
        let partial = self.home.join("milepost.conf.partial");
        fs::write(&partial, settings::text(&self.socket_dir)).doing("writing", &partial)?;
        // Root writes it, and its owner reads it.
        place::set_mode(&partial, 0o644)?;
        fs::rename(&partial, &path).doing("renaming", &partial)?;
        if let Some(pid) = self.running() {
            signal(pid, Signal::SIGHUP);
        }
        Ok(())
    }

    /// The postmaster that has the cluster, or a new one.
    pub(super) fn take_over_or_spawn(&self) -> Result<Postmaster, EmbeddedError> {
        if let Some(pid) = self.running() {
            tracing::info!(pid = pid.as_raw(), "a running Postgres is taken over");
            return Ok(Postmaster::Stranger(pid));
        }
        self.disown_stale_pid()?;
        self.spawn().map(Postmaster::Child)
    }

    /// The living postmaster of this cluster, whoever started it.
    pub(super) fn running(&self) -> Option<Pid> {
        let pid = PidFile::read(&self.data)?.pid;
        is_postmaster(pid, &self.data).then_some(pid)
    }

    pub(super) fn has_pid_file(&self) -> bool {
        self.data.join("postmaster.pid").exists()
    }

    /// Ends `postmaster`, and any other that has taken the cluster meanwhile.
    pub(super) async fn shut_down(
        &self,
        postmaster: Option<Postmaster>,
    ) -> Result<(), EmbeddedError> {
        if let Some(postmaster) = postmaster {
            self.end(postmaster).await?;
        }
        if let Some(pid) = self.running() {
            self.end(Postmaster::Stranger(pid)).await?;
        }
        self.remove_socket();
        Ok(())
    }

    /// Removes what a killed postmaster leaves of its socket, and the directory if it is a spare one.
    /// Nothing depends on it: the next start would use them again.
    fn remove_socket(&self) {
        let file = format!(".s.PGSQL.{}", settings::PORT);
        let _ = fs::remove_file(self.socket_dir.join(format!("{file}.lock")));
        let _ = fs::remove_file(self.socket_dir.join(file));
        if !self.socket_dir.starts_with(&self.home) {
            let _ = fs::remove_dir(&self.socket_dir);
        }
    }

    async fn end(&self, mut postmaster: Postmaster) -> Result<(), EmbeddedError> {
        let Some(pid) = postmaster.pid() else { return Ok(()) };
        for (shutdown, limit) in
            [(Signal::SIGINT, FAST_SHUTDOWN_TIMEOUT), (Signal::SIGQUIT, IMMEDIATE_SHUTDOWN_TIMEOUT)]
        {
            signal(pid, shutdown);
            if timeout(limit, postmaster.exited(self)).await.is_ok() {
                return Ok(());
            }
            tracing::warn!(pid = pid.as_raw(), %shutdown, "Postgres does not end");
        }
        Err(EmbeddedError::StillRunning { pid: pid.as_raw() })
    }

    /// Whether the latest start failed because a killed postmaster's backends had not gone yet, or
    /// because another postmaster was quicker. Both pass.
    pub(super) fn was_busy(&self) -> bool {
        let words = self.last_words();
        words.contains("is still in use") || words.contains("already exists")
    }

    /// The end of what the latest postmaster wrote.
    pub(super) fn last_words(&self) -> String {
        let before_log = tail(&self.home.join("start.log"));
        if !before_log.contains("redirecting log output") {
            return before_log;
        }
        self.log_files().last().map(|path| tail(path)).unwrap_or_default()
    }

    /// Removes the oldest logs, now and again.
    pub(super) async fn bound_logs(&self) -> Infallible {
        loop {
            let files = self.log_files();
            for path in files.iter().rev().skip(LOG_FILES_MAX) {
                if let Err(error) = fs::remove_file(path) {
                    tracing::warn!(path = %path.display(), %error, "an old log cannot be removed");
                }
            }
            sleep(LOG_INTERVAL).await;
        }
    }

    /// The logs, oldest first: their names are times.
    fn log_files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.home.join(settings::LOG_DIR)) else {
            return Vec::new();
        };
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .map(|entry| entry.path())
            .collect();
        files.sort_unstable();
        files
    }

    /// Removes what kills of earlier starts left. One of their `initdb`s may still be writing, which
    /// is why each has a directory of its own, and why it may stay until the next time.
    fn remove_partial_clusters(&self) {
        let Ok(entries) = fs::read_dir(&self.home) else { return };
        for entry in entries.flatten() {
            if entry.file_name().as_bytes().starts_with(PARTIAL_PREFIX.as_bytes()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    fn spawn(&self) -> Result<Child, EmbeddedError> {
        place::make_socket_dir(&self.socket_dir, self.owner.as_ref())?;
        place::make_dir(&self.home.join(settings::LOG_DIR), 0o700, self.owner.as_ref())?;
        let path = self.home.join("start.log");
        let log = File::create(&path).doing("making", &path)?;
        let log_too = log.try_clone().doing("sharing", &path)?;
        self.command("postgres")
            .arg("-D")
            .arg(&self.data)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            // The terminal's Ctrl-C is for Milepost, which drains before it ends Postgres.
            .process_group(0)
            .spawn()
            .doing("running", &self.binaries.dir.join("postgres"))
    }

    /// A program of Postgres, as its owner, in a directory the owner can be in.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.dir.join(program));
        command.current_dir("/").env("LC_ALL", "C");
        if let Some(owner) = &self.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        command
    }

    /// Frees a pid file whose process id now belongs to something else: Postgres would take that for
    /// a postmaster. The file itself must stay, it names the shared memory that a killed
    /// postmaster's backends may still be using.
    fn disown_stale_pid(&self) -> Result<(), EmbeddedError> {
        let path = self.data.join("postmaster.pid");
        let Some(pid) = PidFile::read(&self.data).map(|pid_file| pid_file.pid) else {
            return Ok(());
        };
        if kill(pid, None) == Err(nix::Error::ESRCH) {
            return Ok(());
        }
        let text = fs::read_to_string(&path).doing("reading", &path)?;
        let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
        let partial = self.data.join("postmaster.pid.partial");
        if partial.exists() {
            fs::remove_file(&partial).doing("removing", &partial)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .doing("making", &partial)?;
        write!(file, "{NOBODY_PID}\n{rest}").doing("writing", &partial)?;
        place::give(&partial, self.owner.as_ref())?;
        fs::rename(&partial, &path).doing("renaming", &partial)
    }
}

impl Postmaster {
    pub(super) fn is_child(&self) -> bool {
        matches!(self, Self::Child(_))
    }

    /// Returns when it has ended.
    pub(super) async fn exited(&mut self, cluster: &Cluster) {
        match self {
            // Waiting fails only for a child that is none, so it has gone.
            Self::Child(child) => drop(child.wait().await),
            Self::Stranger(pid) => {
                while is_postmaster(*pid, &cluster.data) {
                    sleep(LOOK_INTERVAL).await;
                }
            }
        }
    }

    pub(super) fn has_exited(&mut self, cluster: &Cluster) -> Result<bool, EmbeddedError> {
        match self {
            Self::Child(child) => match child.try_wait() {
                Ok(status) => Ok(status.is_some()),
                Err(error) => Err(error).doing("waiting for", &cluster.data),
            },
            Self::Stranger(pid) => Ok(!is_postmaster(*pid, &cluster.data)),
        }
    }

    fn pid(&self) -> Option<Pid> {
        match self {
            Self::Child(child) => child.id().map(|pid| Pid::from_raw(pid as i32)),
            Self::Stranger(pid) => Some(*pid),
        }
    }
}

impl PidFile {
    fn read(data: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(data.join("postmaster.pid")).ok()?)
    }

    /// Lines: process id, data directory, start time, port, socket directory, … The postmaster adds
    /// them as it goes.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok().filter(|pid| *pid > 0)?;
        let socket_dir = lines.nth(3).filter(|line| !line.is_empty()).map(PathBuf::from);
        Some(Self { pid: Pid::from_raw(pid), socket_dir })
    }
}

/// Whether `pid` is a living postmaster of the cluster in `data`, not a zombie, and not somebody
/// else to whom the number has passed.
fn is_postmaster(pid: Pid, data: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    if !Path::new("/proc/self").exists() {
        return kill(pid, None) != Err(nix::Error::ESRCH);
    }
    match fs::read_link(process.join("cwd")) {
        Ok(directory) => directory == data,
        // Root in a container may not look (CAP_SYS_PTRACE), so what everybody may see must do.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let owned = fs::metadata(&process)
                .and_then(|process| Ok(process.uid() == fs::metadata(data)?.uid()));
            let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
            owned.unwrap_or(false) && stat.contains("(postgres)") && !stat.contains(") Z ")
        }
        Err(_) => false,
    }
}

/// A process that has gone already needs no signal.
fn signal(pid: Pid, signal: Signal) {
    if let Err(error) = kill(pid, signal) {
        tracing::debug!(pid = pid.as_raw(), %signal, %error, "Postgres was not signalled");
    }
}

/// Appends to a file of the owner's, and not to where the owner may have made it point.
fn append(path: &Path, text: &str) -> Result<(), EmbeddedError> {
    let mut options = OpenOptions::new();
    let mut file = options
        .append(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .doing("opening", path)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).doing("writing", path)
}

fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
}

/// Everything but the characters that no URL gives a meaning.
fn percent_encoded(bytes: &[u8]) -> String {
    let mut encoded = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes everything");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_read_at_every_stage_of_a_start() {
        let whole = "42\n/data/cluster\n1700000000\n5432\n/data/socket\n\n  1 2\nready   \n";
        assert_eq!(
            PidFile::parse(whole),
            Some(PidFile { pid: Pid::from_raw(42), socket_dir: Some("/data/socket".into()) })
        );
        assert_eq!(
            PidFile::parse("42\n/data/cluster\n1700000000\n5432\n"),
            Some(PidFile { pid: Pid::from_raw(42), socket_dir: None })
        );
        assert_eq!(PidFile::parse(""), None);
    }

    #[test]
    fn another_process_is_no_postmaster() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_postmaster(Pid::this(), dir.path()));
        assert!(!is_postmaster(Pid::from_raw(NOBODY_PID), dir.path()));
    }

    #[test]
    fn every_path_fits_into_a_url() {
        assert_eq!(percent_encoded("/a b:c@d%é".as_bytes()), "%2Fa%20b%3Ac%40d%25%C3%A9");
    }
}
