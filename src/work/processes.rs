//! The processes of this machine and who has started whom, as the kernel tells it.

use std::collections::HashMap;

use nix::unistd::Pid;

/// Every process and its parent.
pub fn parents() -> HashMap<Pid, Pid> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((Pid::from_raw(pid), parent(&stat)?))
        })
        .collect()
}

/// The processes below one, whatever their group or session.
pub fn descendants(root: Pid) -> Vec<Pid> {
    let processes = parents();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = processes.iter().filter(|it| *it.1 == parent).map(|it| *it.0);
        // An id that was given away while we read must not lead us in a circle.
        let children: Vec<Pid> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(children);
        next += 1;
    }
    found.split_off(1)
}

/// The parent in `/proc/<pid>/stat`: the second field after the program's name, which stands in
/// parentheses and may hold any character. Source: `proc_pid_stat(5)`.
fn parent(stat: &str) -> Option<Pid> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok().map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_parent_is_read_whatever_its_child_is_called() {
        assert_eq!(parent("7 (sh) S 3 7 7 0"), Some(Pid::from_raw(3)));
        assert_eq!(parent("7 (a) S 1 (b) R 4 7"), Some(Pid::from_raw(4)));
        assert_eq!(parent(""), None);
    }

    #[test]
    fn descendants_are_those_below_and_not_oneself() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let found = descendants(Pid::this());
        assert!(found.contains(&Pid::from_raw(child.id().cast_signed())));
        assert!(!found.contains(&Pid::this()));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
