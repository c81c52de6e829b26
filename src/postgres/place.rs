//! Where the cluster lives, and who runs it.

use std::env;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink,
};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::unistd::{Uid, User, geteuid};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use super::{EmbeddedError, settings};

/// Where the cluster goes when the user that runs it cannot reach the data directory.
const ELSEWHERE: &str = "/var/lib/milepost";

/// The mode of directories that root keeps and the owner enters.
const OPEN: u32 = 0o755;

/// A socket's path holds 107 bytes on Linux, 103 on macOS and the BSDs.
const SOCKET_PATH_BYTES_MAX: usize = 103;

/// The user that runs Postgres for a Milepost that runs as root.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) name: String,
}

/// Says what was being done when the system refused.
pub(super) trait Doing<T> {
    fn doing(self, verb: &str, path: &Path) -> Result<T, EmbeddedError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, verb: &str, path: &Path) -> Result<T, EmbeddedError> {
        self.map_err(|source| EmbeddedError::Io {
            doing: format!("{verb} {}", path.display()),
            source,
        })
    }
}

/// Makes the data directory if need be, and gives its one true path.
pub(super) fn make_data_dir(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    fs::create_dir_all(data_dir).doing("making", data_dir)?;
    fs::canonicalize(data_dir).doing("finding", data_dir)
}

/// Claims the data directory for as long as the file `name` in it is open.
///
/// # Errors
/// [`EmbeddedError::InUse`] when another process has, [`EmbeddedError::Io`] for all else.
pub fn lock(data_dir: &Path, name: &str) -> Result<File, EmbeddedError> {
    let path = data_dir.join(name);
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .doing("opening", &path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The pid is only for the message.
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() };
            return Err(EmbeddedError::InUse { data_dir: data_dir.into(), pid: pid.into() });
        }
        Err(TryLockError::Error(source)) => return Err(source).doing("locking", &path),
    }
    file.set_len(0).doing("emptying", &path)?;
    writeln!(file, "{}", std::process::id()).doing("writing", &path)?;
    Ok(file)
}

/// Who is to run Postgres: nobody else, unless this is root.
pub(super) fn owner(data_dir: &Path) -> Result<Option<Owner>, EmbeddedError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let cluster = data_dir.join("postgres/cluster");
    if let Some(metadata) = fs::metadata(&cluster).ok().filter(|metadata| metadata.uid() != 0) {
        let user = User::from_uid(Uid::from_raw(metadata.uid())).ok().flatten();
        let name = user.map_or_else(|| metadata.uid().to_string(), |user| user.name);
        return Ok(Some(Owner { uid: metadata.uid(), gid: metadata.gid(), name }));
    }
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .map(|user| Owner { uid: user.uid.as_raw(), gid: user.gid.as_raw(), name: user.name })
        .map_or(Err(EmbeddedError::NoUser), |owner| Ok(Some(owner)))
}

/// The directory of the cluster, its settings and its logs, made if need be, with no link in its
/// path, and within reach of its owner.
pub(super) async fn home(data_dir: &Path, owner: Option<&Owner>) -> Result<PathBuf, EmbeddedError> {
    let home = data_dir.join("postgres");
    if fs::symlink_metadata(&home).is_err() {
        match owner {
            // Entered by its owner only.
            None => make_dir(&home, 0o700, None)?,
            // Root keeps the directory that it writes to: only what is inside is the owner's.
            Some(owner) if can_enter(owner, data_dir).await => make_dir(&home, OPEN, None)?,
            Some(owner) => settle_elsewhere(&home, owner)?,
        }
    }
    let home = fs::canonicalize(&home).doing("finding", &home)?;
    match owner {
        Some(owner) if !can_enter(owner, &home).await => {
            Err(EmbeddedError::Unreachable { home, user: owner.name.clone() })
        }
        _ => Ok(home),
    }
}

/// The major that made the cluster; `None` when there is none yet.
pub(super) fn cluster_major(home: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = home.join("cluster/PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(error) => Err(io::Error::other(error)).doing("reading", &path),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing("reading", &path),
    }
}

/// Makes a directory and gives it to `owner`; one that is there already stays as it is.
pub(super) fn make_dir(path: &Path, mode: u32, owner: Option<&Owner>) -> Result<(), EmbeddedError> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            set_mode(path, mode)?;
            give(path, owner)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).doing("making", path),
    }
}

/// Gives `path` its mode, whatever this process's umask took of it.
pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), EmbeddedError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).doing("opening up", path)
}

/// Makes `path` the owner's.
pub(super) fn give(path: &Path, owner: Option<&Owner>) -> Result<(), EmbeddedError> {
    match owner {
        Some(owner) => chown(path, Some(owner.uid), Some(owner.gid)).doing("giving away", path),
        None => Ok(()),
    }
}

/// The directory of the socket: in `home`, or where paths are short, under a name that `home` gives.
pub(super) fn socket_dir(home: &Path) -> PathBuf {
    let beside = home.join("socket");
    if fits(&beside) {
        return beside;
    }
    let digest = hex::encode(&Sha256::digest(home.as_os_str().as_bytes())[..8]);
    let name = format!("milepost-{digest}");
    let runtime =
        if geteuid().is_root() { Some("/run".into()) } else { env::var_os("XDG_RUNTIME_DIR") };
    [runtime.map(PathBuf::from), Some(env::temp_dir())]
        .into_iter()
        .flatten()
        .filter(|parent| parent.is_absolute() && parent.is_dir())
        .map(|parent| parent.join(&name))
        .find(|dir| fits(dir))
        .unwrap_or_else(|| Path::new("/tmp").join(&name))
}

/// Makes the socket's directory; one that is there already must be private to the owner.
pub(super) fn make_socket_dir(path: &Path, owner: Option<&Owner>) -> Result<(), EmbeddedError> {
    make_dir(path, 0o700, owner)?;
    let metadata = fs::symlink_metadata(path).doing("inspecting", path)?;
    let uid = owner.map_or_else(|| geteuid().as_raw(), |owner| owner.uid);
    if metadata.is_dir() && metadata.uid() == uid && metadata.mode() & 0o777 == 0o700 {
        Ok(())
    } else {
        Err(EmbeddedError::SocketDirectory { path: path.into() })
    }
}

fn fits(socket_dir: &Path) -> bool {
    let file = socket_dir.join(format!(".s.PGSQL.{}", settings::PORT));
    file.as_os_str().len() <= SOCKET_PATH_BYTES_MAX
}

/// Whether the owner can enter the directory; asked of the kernel, which knows of ACLs and mounts.
async fn can_enter(owner: &Owner, dir: &Path) -> bool {
    Command::new("/bin/sh")
        .args(["-c", "cd -- \"$1\"", "sh"])
        .arg(dir)
        .current_dir("/")
        .uid(owner.uid)
        .gid(owner.gid)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .is_ok_and(|status| status.success())
}

/// Makes a home where its owner can reach it, and `home` a link to it. Each is new: a data directory
/// that was deleted does not come back with its old events.
fn settle_elsewhere(home: &Path, owner: &Owner) -> Result<(), EmbeddedError> {
    let parent = Path::new(ELSEWHERE);
    // Not every system has /var/lib.
    for dir in [Path::new("/var/lib"), parent] {
        make_dir(dir, OPEN, None)?;
    }
    let settled =
        (1..).map(|n| parent.join(format!("postgres-{n}"))).find_map(
            |settled| match fs::create_dir(&settled) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                result => Some(result.map(|()| settled)),
            },
        );
    let settled =
        settled.expect("the integers do not end").doing("making a directory in", parent)?;
    set_mode(&settled, OPEN)?;
    symlink(&settled, home).doing("linking", home)?;
    tracing::info!(
        cluster = %settled.display(), link = %home.display(), user = owner.name,
        "the user that runs Postgres cannot enter the data directory, so the cluster is kept elsewhere"
    );
    Ok(())
}
