//! Lines that a tool printed for a terminal, made fit to be kept and shown: their colours stay,
//! whatever else moves a terminal goes.

use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::Chars;

use super::redact::{MASK, Redactor, is_control, skip_escape};

/// The bytes of a line that are kept; what is longer is a file, not a line.
pub const LINE_BYTES_MAX: usize = 4_096;

/// The bytes of the name of a task or a play that are kept.
pub const NAME_BYTES_MAX: usize = 1_000;

/// What stands around a private key's lines.
const KEY_BEGINS: &str = "-----BEGIN ";
const KEY_ENDS: &str = "-----END ";

/// Masks each secret in some lines; of a private key every line.
pub fn mask(redactor: &Redactor, lines: &mut [String]) {
    let mut within_key = false;
    for line in lines {
        let begins = line.contains(KEY_BEGINS) && line.contains("PRIVATE KEY-----");
        let ends = line.contains(KEY_ENDS);
        within_key |= begins && !ends;
        if within_key || begins || is_of_a_key(line) {
            MASK.clone_into(line);
        } else {
            redactor.mask_text(line);
        }
        within_key &= !ends;
    }
}

/// Characters of a full line in a private key: as OpenSSL and as OpenSSH write them.
const KEY_LINE_CHARS: [usize; 2] = [64, 70];

/// Whether a line may be out of the middle of a private key whose beginning is not in sight. A hash
/// in hexadecimal digits, which is as long, is none.
fn is_of_a_key(line: &str) -> bool {
    let base64 = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'+' | b'/' | b'=');
    KEY_LINE_CHARS.contains(&line.len())
        && line.bytes().all(base64)
        && !line.bytes().all(|it| it.is_ascii_hexdigit())
}

/// A line with its colours, without other escapes and control characters, and not too long.
pub fn clean(line: &str) -> String {
    let line = line.trim_end_matches(['\r', '\n']);
    let mut kept = String::with_capacity(line.len());
    let mut rest = line.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '\u{1b}' => keep_colour(&mut rest, &mut kept),
            // Drawn over by what follows, in a terminal; here it stands beside it.
            '\n' | '\r' => kept.push(' '),
            letter if is_control(letter) => {}
            letter => kept.push(letter),
        }
    }
    cut(kept)
}

/// The first bytes of a name.
pub fn short(name: &mut String) {
    name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
}

/// `ESC [ … m` with nothing but numbers sets colours (ECMA-48, SGR).
fn keep_colour(rest: &mut Peekable<Chars<'_>>, kept: &mut String) {
    let mut ahead = rest.clone();
    if ahead.next() == Some('[') {
        let numbers: String = std::iter::from_fn(|| {
            ahead.next_if(|it| it.is_ascii_digit() || matches!(it, ';' | ':'))
        })
        .collect();
        if ahead.next() == Some('m') {
            kept.push_str("\u{1b}[");
            kept.push_str(&numbers);
            kept.push('m');
            *rest = ahead;
            return;
        }
    }
    skip_escape(rest);
}

fn cut(mut line: String) -> String {
    if line.len() <= LINE_BYTES_MAX {
        return line;
    }
    let mut end = line.floor_char_boundary(LINE_BYTES_MAX);
    // Half an escape would be shown as what it is not.
    if let Some(escape) = line[..end].rfind('\u{1b}')
        && !line[escape..end].contains('m')
    {
        end = escape;
    }
    let more = line.len() - end;
    line.truncate(end);
    write!(line, "\u{1b}[0m … {more} bytes were cut off").expect("a string takes every write");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_stay_and_everything_else_that_moves_a_terminal_goes() {
        for (line, kept) in [
            ("plain\ttext", "plain\ttext"),
            ("\u{1b}[0;33mchanged\u{1b}[0m", "\u{1b}[0;33mchanged\u{1b}[0m"),
            (
                "\u{1b}[38;2;1;2;3mx\u{1b}[38:5:9my\u{1b}[m",
                "\u{1b}[38;2;1;2;3mx\u{1b}[38:5:9my\u{1b}[m",
            ),
            ("a\u{1b}[2Kb\u{1b}[1;1Hc\u{1b}[?25ld", "abcd"),
            ("a\u{1b}]0;title\u{7}b\u{1b}]8;;http://x\u{1b}\\c", "abc"),
            ("a\0b\u{7}c\u{8}d\u{9b}31me\u{7f}", "abcd31me"),
            ("50%\r100%\r\n", "50% 100%"),
            ("cut \u{1b}[3", "cut "),
            ("\u{1b}", ""),
        ] {
            assert_eq!(clean(line), kept, "{line:?}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_says_so() {
        let fits = "x".repeat(LINE_BYTES_MAX);
        assert_eq!(clean(&fits), fits);
        let long = clean(&format!("{fits}yz"));
        assert_eq!(long, format!("{fits}\u{1b}[0m … 2 bytes were cut off"));
        // Neither within a letter nor within an escape.
        let letter = clean(&format!("{}ü", "x".repeat(LINE_BYTES_MAX - 1)));
        assert!(letter.ends_with("x\u{1b}[0m … 2 bytes were cut off"), "{letter}");
        let escape = clean(&format!("{}\u{1b}[31mred", "x".repeat(LINE_BYTES_MAX - 3)));
        assert!(escape.ends_with("x\u{1b}[0m … 8 bytes were cut off"), "{escape}");
    }

    #[test]
    fn a_name_is_cut_where_a_letter_begins() {
        let mut name = format!("{}üü", "x".repeat(NAME_BYTES_MAX - 1));
        short(&mut name);
        assert_eq!(name, "x".repeat(NAME_BYTES_MAX - 1));
    }

    #[test]
    fn a_secret_is_masked_also_behind_colours_and_a_key_in_all_its_lines() {
        let redactor = Redactor::new(["hunter2+x"]);
        let mut lines: Vec<String> = [
            "key=hunter2+x;",
            "\u{1b}[31mhun\u{1b}[1mter2+x\u{1b}[0m",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "b3BlbnNzaC1rZXktdjEAAAAA",
            "-----END OPENSSH PRIVATE KEY-----",
            "\u{1b}[32mok\u{1b}[0m",
        ]
        .map(str::to_owned)
        .to_vec();
        mask(&redactor, &mut lines);
        let masked = ["key=[redacted];", MASK, MASK, MASK, MASK, "\u{1b}[32mok\u{1b}[0m"];
        assert_eq!(lines, masked);
    }

    #[test]
    fn a_private_key_is_masked_on_one_line_and_where_its_beginning_is_not_in_sight() {
        let redactor = Redactor::new([]);
        let middle = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAABlwAAAAdzc2gtcn";
        let (pem, hash) = ("MIIEpAIBAAKCAQEA".repeat(4), "0123456789abcdef".repeat(4));
        let key = "OPENSSH PRIVATE KEY-----";
        let one_line = format!(r"-----BEGIN {key}\n{middle}\n-----END {key}");
        let mut lines = vec![one_line, middle.to_owned(), pem, hash.clone(), "ok".to_owned()];
        mask(&redactor, &mut lines);
        assert_eq!(lines, [MASK, MASK, MASK, &hash, "ok"]);
    }
}
