//! What the operating system says about a process: memory, processor time; and how a tool exits.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Memory of the processes, in bytes: proportional set size, so that what they share is counted
/// once, or resident size where the kernel does not tell.
pub fn memory_bytes(pids: &[u32]) -> Result<u64> {
    pids.iter().map(|pid| memory_of(*pid)).sum()
}

fn memory_of(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    if let Some(kib) = kib_of(&rollup, "Pss:") {
        return Ok(kib * 1024);
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} cannot be read"))?;
    let kib = kib_of(&status, "VmRSS:").with_context(|| format!("process {pid} has no VmRSS"))?;
    Ok(kib * 1024)
}

fn kib_of(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Processor time the processes have used so far, user and system.
pub fn processor_time(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| processor_time_of(*pid)).sum()
}

fn processor_time_of(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} cannot be read"))?;
    let ticks = ticks_of(&stat).with_context(|| format!("process {pid} has no times"))?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(ticks * 1000 / ticks_per_second))
}

fn ticks_of(stat: &str) -> Option<u64> {
    // The second field is the command in parentheses, and may itself contain spaces and both.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Raises the limit of open files as far as it may be, and returns it.
pub fn raise_open_files_limit() -> Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("the limit of open files cannot be raised")?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// The exit code of a tool; what went wrong is one line, whatever `RUST_BACKTRACE` says.
pub fn exit(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_with_their_unit() {
        let text = "Rss:  900 kB\nPss:                1234 kB\nPss_Anon: 1 kB\n";
        assert_eq!(kib_of(text, "Pss:"), Some(1234));
        assert_eq!(kib_of(text, "VmRSS:"), None);
    }

    #[test]
    fn times_are_found_behind_any_command_name() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194560 1 0 0 0 700 50 0 0 20 0 1 0 5 1 1";
        assert_eq!(ticks_of(stat), Some(750));
    }

    #[test]
    fn this_process_has_memory_and_time() {
        let pid = std::process::id();
        assert!(memory_bytes(&[pid]).unwrap() > 100_000);
        assert!(processor_time(&[pid]).is_ok());
        assert!(memory_bytes(&[u32::MAX]).is_err());
    }
}
