//! Ends what a supervisor leaves behind that was killed itself.
//!
//! Everything that is run under one has a mark in its environment. What has the mark and no living
//! supervisor above it is nobody's: whoever finds it may end it, whichever worker it was of.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::files;
use crate::work::processes::parents;

/// The mark; its value says nothing.
pub(super) const MARK: (&str, &str) = ("MILEPOST_SUPERVISED", "1");

/// How long killed processes may take to be gone before they are looked for again: one may have
/// started another in the meantime.
const KILL_PAUSE: Duration = Duration::from_millis(50);

/// How often they are: a process that the kernel cannot end is left to it after five seconds.
const KILLS_MAX: u32 = 100;

/// Ends them all, and removes what they read; how many there were.
pub async fn end_strays() -> usize {
    let mut ended = 0;
    for _ in 0..KILLS_MAX {
        let strays = strays();
        if strays.is_empty() {
            break;
        }
        ended += strays.len();
        for pid in strays {
            // Gone already, it needs none.
            let _ = kill(pid, Signal::SIGKILL);
        }
        tokio::time::sleep(KILL_PAUSE).await;
    }
    if ended > 0 {
        tracing::warn!(ended, "processes were left behind by a supervisor that was killed");
    }
    let removed = files::remove_left_behind(is_supervised);
    if removed > 0 {
        tracing::warn!(removed, "directories were left behind by workers that were killed");
    }
    ended
}

/// Whether a supervisor is there that removes a directory at its end.
fn is_supervised(directory: &Path) -> bool {
    let directory = directory.as_os_str().as_bytes();
    let named = |pid: Pid| {
        words(pid, "cmdline").is_some_and(|words| words.iter().any(|word| word == directory))
    };
    parents().into_keys().any(|pid| is_supervisor(pid) && named(pid))
}

fn strays() -> Vec<Pid> {
    let parents = parents();
    let marked = parents.keys().copied().filter(|pid| is_marked(*pid));
    marked.filter(|pid| is_orphan(*pid, &parents, is_supervisor)).collect()
}

/// Whether there is no supervisor from a process up to the first of all. Where a process above it
/// has gone while the table was read, that cannot be said: it is looked at again.
fn is_orphan(pid: Pid, parents: &HashMap<Pid, Pid>, is_supervisor: impl Fn(Pid) -> bool) -> bool {
    const FIRST: Pid = Pid::from_raw(0);
    let (mut at, mut left) = (pid, parents.len());
    while at != FIRST {
        // The table was not read at once: it could lead in a circle.
        if is_supervisor(at) || left == 0 {
            return false;
        }
        left -= 1;
        let Some(parent) = parents.get(&at) else { return false };
        at = *parent;
    }
    true
}

fn is_marked(pid: Pid) -> bool {
    let mark = format!("{}={}", MARK.0, MARK.1);
    words(pid, "environ").is_some_and(|words| words.contains(&mark.into_bytes()))
}

fn is_supervisor(pid: Pid) -> bool {
    words(pid, "cmdline").is_some_and(|words| words.get(1).is_some_and(|it| it == b"supervise"))
}

/// The words of a file of a process, each ended by a NUL; `None` where it may not be read.
fn words(pid: Pid, file: &str) -> Option<Vec<Vec<u8>>> {
    let text = std::fs::read(format!("/proc/{pid}/{file}")).ok()?;
    Some(text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number)
    }

    #[test]
    fn an_orphan_has_no_supervisor_above_it_up_to_the_first_process() {
        let parents: HashMap<_, _> =
            [(1, 0), (2, 1), (3, 2), (4, 1), (5, 4), (6, 99), (7, 8), (8, 7)]
                .map(|(child, parent)| (pid(child), pid(parent)))
                .into();
        let orphan = |number| is_orphan(pid(number), &parents, |it| it == pid(4));
        assert!(orphan(3) && orphan(2));
        assert!(!orphan(4) && !orphan(5), "it is supervised");
        assert!(!orphan(6), "its parent went while the table was read");
        assert!(!orphan(7), "the table leads in a circle");
    }
}
