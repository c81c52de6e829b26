//! Where Postgres's programs are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::EmbeddedError;

/// The oldest major that is supported.
pub(super) const MAJOR_MIN: u32 = 15;

/// The environment variable that names the directory of Postgres's programs (`postgres`, `initdb`).
/// When it is set, no other place is looked at.
pub const BIN_VARIABLE: &str = "MILEPOST_POSTGRES_BIN";

/// One installed Postgres.
#[derive(Debug)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
}

/// Finds the programs of major `wanted`, or for a new cluster the first that are new enough.
///
/// Looks at `PATH`, then at the places of Debian, Red Hat, Homebrew and the source build, newest
/// first, then where `pg_config` points.
pub(super) async fn find(wanted: Option<u32>, home: &Path) -> Result<Binaries, EmbeddedError> {
    let mut found = Vec::new();
    for dir in candidates().await {
        let Some(major) = major_of(&dir).await else { continue };
        if wanted.map_or(major >= MAJOR_MIN, |wanted| major == wanted) {
            return Ok(Binaries { dir });
        }
        found.push(major);
    }
    found.sort_unstable();
    found.dedup();
    match wanted {
        Some(major) if !found.is_empty() => {
            Err(EmbeddedError::WrongMajor { cluster: home.join("cluster"), major, found })
        }
        _ => Err(EmbeddedError::NoBinaries { found }),
    }
}

/// Majors for a message: `, only 13 and 14`, or nothing.
pub(super) fn list(majors: &[u32], lead: &str) -> String {
    let majors: Vec<String> = majors.iter().map(u32::to_string).collect();
    if majors.is_empty() { String::new() } else { format!("{lead}{}", majors.join(" and ")) }
}

async fn candidates() -> Vec<PathBuf> {
    if let Some(dir) = env::var_os(BIN_VARIABLE) {
        return vec![dir.into()];
    }
    let mut dirs: Vec<PathBuf> =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    dirs.extend(newest_first("/usr/lib/postgresql", "", "bin"));
    dirs.extend(newest_first("/usr", "pgsql-", "bin"));
    dirs.extend(newest_first("/opt/homebrew/opt", "postgresql@", "bin"));
    dirs.extend(newest_first("/usr/local/opt", "postgresql@", "bin"));
    dirs.extend(["/opt/homebrew/bin", "/usr/local/pgsql/bin", "/usr/local/bin"].map(PathBuf::from));
    dirs.extend(pg_config_bindir().await);
    dirs
}

/// `parent/<prefix><major>/<leaf>` for every major there is, newest first.
fn newest_first(parent: &str, prefix: &str, leaf: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let mut majors: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let major = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((major, entry.path().join(leaf)))
        })
        .collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    majors.into_iter().map(|(_, dir)| dir).collect()
}

async fn pg_config_bindir() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().await.ok()?;
    let dir = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| dir.trim_end().into())
}

/// The major of the server in `dir`; `None` when there is none, or no `initdb` beside it.
async fn major_of(dir: &Path) -> Option<u32> {
    if !dir.is_absolute() || !dir.join("initdb").is_file() || !dir.join("postgres").is_file() {
        return None;
    }
    let output = Command::new(dir.join("postgres")).arg("--version").output().await.ok()?;
    parse_major(&String::from_utf8_lossy(&output.stdout))
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, `… 18beta2`, `… 19devel`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split_whitespace().nth(2)?;
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_read_from_releases_and_previews() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta2\n"), Some(18));
        assert_eq!(parse_major("postgres (PostgreSQL) 19devel\n"), Some(19));
        assert_eq!(parse_major("no such thing"), None);
    }

    #[test]
    fn majors_are_tried_newest_first() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["9.6", "15", "9", "17", "other"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        let dirs = newest_first(parent.path().to_str().unwrap(), "", "bin");
        let expected: Vec<PathBuf> =
            ["17", "15", "9"].iter().map(|major| parent.path().join(major).join("bin")).collect();
        assert_eq!(dirs, expected);
    }
}
