//! What the end of `ansible-playbook` means.

use crate::intake::{Redactor, lines, plain};

/// The last bytes of what a run prints that are kept: many times what an error may have, so that a
/// secret which is cut in two at the beginning is never within the error.
pub(super) const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// The playbook cannot be read.
pub(super) const SYNTAX_ERROR: &str = "ANSIBLE_SYNTAX_ERROR";

/// It was ended by a signal, before its time.
pub(super) const INTERRUPTED: &str = "ANSIBLE_INTERRUPTED";

/// How `ansible-playbook` itself ends when it is interrupted.
pub(super) const INTERRUPTED_EXIT: i32 = 99;

/// It took longer than it may.
pub(super) const TIMEOUT: &str = "ANSIBLE_TIMEOUT";

/// Signals become exit codes from here on, as shells make them.
const SIGNALS: std::ops::RangeInclusive<i32> = 129..=192;

/// Why a run has failed, and whether another attempt may help. `None` for one that was well: it
/// ended with 0, and the host is in its recap. Source: ansible-core, `TaskQueueManager` and
/// `ansible.cli.CLI.cli_executor`.
pub(super) fn classify(
    exit: i32,
    recap_has_host: bool,
    timed_out: bool,
) -> Option<(&'static str, bool)> {
    if timed_out {
        return Some((TIMEOUT, true));
    }
    Some(match exit {
        0 if recap_has_host => return None,
        // A playbook that is for other hosts is for them next time too.
        0 => ("ANSIBLE_NO_HOST", false),
        1 => ("ANSIBLE_PLAY_ERROR", true),
        2 => ("ANSIBLE_HOST_FAILED", true),
        4 => ("ANSIBLE_HOST_UNREACHABLE", true),
        5 => ("ANSIBLE_OPTIONS_ERROR", false),
        // Nothing is wrong with what was interrupted: the next attempt goes on where it was.
        INTERRUPTED_EXIT => (INTERRUPTED, true),
        250 => ("ANSIBLE_UNEXPECTED_ERROR", false),
        signal if SIGNALS.contains(&signal) => (INTERRUPTED, true),
        _ => ("ANSIBLE_UNKNOWN_EXIT", false),
    })
}

/// Whether the recap at the end counts a host among those that something was done on.
pub(super) fn recap_has_host(output: &str, host: &str) -> bool {
    let recap = output.lines().skip_while(|line| !line.starts_with("PLAY RECAP")).skip(1);
    let mut counts = recap.filter_map(|line| line.split_once(" : "));
    counts.any(|(name, counts)| name.trim() == host && counts.trim_start().starts_with("ok="))
}

/// What a run printed, fit to be kept: without colours, with its secrets masked. Output that was
/// `cut` begins within a line, which goes.
pub(super) fn words(redactor: &Redactor, output: &[u8], cut: bool) -> String {
    let text = String::from_utf8_lossy(output);
    let whole = if cut { text.split_once('\n').map_or(&*text, |(_, rest)| rest) } else { &text };
    let mut printed: Vec<String> = plain(whole).lines().map(str::to_owned).collect();
    lines::mask(redactor, &mut printed);
    printed.join("\n").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECAP: &str = "PLAY RECAP *****\nweb-1   : ok=2    changed=1    unreachable=0\n";

    #[test]
    fn every_exit_has_its_code_and_says_whether_to_try_again() {
        for (exit, code, retryable) in [
            (1, "ANSIBLE_PLAY_ERROR", true),
            (2, "ANSIBLE_HOST_FAILED", true),
            (3, "ANSIBLE_UNKNOWN_EXIT", false),
            (4, "ANSIBLE_HOST_UNREACHABLE", true),
            (5, "ANSIBLE_OPTIONS_ERROR", false),
            (8, "ANSIBLE_UNKNOWN_EXIT", false),
            (99, "ANSIBLE_INTERRUPTED", true),
            (127, "ANSIBLE_UNKNOWN_EXIT", false),
            (130, "ANSIBLE_INTERRUPTED", true),
            (137, "ANSIBLE_INTERRUPTED", true),
            (143, "ANSIBLE_INTERRUPTED", true),
            (250, "ANSIBLE_UNEXPECTED_ERROR", false),
            (255, "ANSIBLE_UNKNOWN_EXIT", false),
        ] {
            for recap in [false, true] {
                assert_eq!(classify(exit, recap, false), Some((code, retryable)), "{exit}");
            }
        }
        assert_eq!(classify(0, true, false), None);
        assert_eq!(classify(0, false, false), Some(("ANSIBLE_NO_HOST", false)));
        for exit in [0, 1, 5, 143, 250] {
            assert_eq!(classify(exit, true, true), Some((TIMEOUT, true)), "{exit}");
        }
    }

    #[test]
    fn a_host_is_processed_if_the_recap_counts_it() {
        assert!(recap_has_host(RECAP, "web-1"));
        for (output, host) in [
            (RECAP, "web"),
            (RECAP, "web-10"),
            ("PLAY RECAP *****\n\n", "web-1"),
            ("web-1   : ok=2\nPLAY RECAP *****\n", "web-1"),
            ("PLAY [x]\nskipping: no hosts matched\nPLAY RECAP ****\n", "web-1"),
            ("", "web-1"),
        ] {
            assert!(!recap_has_host(output, host), "{output}");
        }
    }

    #[test]
    fn words_are_plain_and_masked() {
        let redactor = Redactor::new(["hunter2+x"]);
        let output = b"\x1b[31mfatal\x1b[0m: hun\x1b[1mter2+x\0\r\nhunter2+x \xff\n";
        assert_eq!(words(&redactor, output, false), "fatal: [redacted]\n[redacted] \u{fffd}");
        assert_eq!(words(&redactor, b"ter2+x\nlast", true), "last");
        let key = b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\n-----END OPENSSH PRIVATE KEY-----";
        assert!(!words(&redactor, key, false).contains("b3Blbn"));
    }
}
