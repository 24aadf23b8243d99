//! Text that somebody else wrote, made fit to be shown: in a log line, an Event, a table on a terminal. Objects come from
//! tenants, and a name may hold what moves a cursor, ends a line or turns the reading direction round.

use std::fmt;

/// The longest name of an object or a namespace (DNS subdomain, RFC 1123).
const LONGEST_NAME: usize = 253;
/// The longest name of a port, and of a label's value.
const LONGEST_LABEL: usize = 63;
/// How many characters of somebody's text a message quotes.
const QUOTED: usize = 80;

/// Whether Kubernetes could have an object or a namespace of this name. Capitals and `_`, which it refuses as well, do no
/// harm here.
pub fn is_name(text: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len()) && is_plain(text)
}

/// Whether Kubernetes could have a port of this name, or a label of this value; also the empty one.
pub fn is_label(text: &str) -> bool {
    text.len() <= LONGEST_LABEL && is_plain(text)
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// A name as it is kept: nothing in it can be taken for anything but text, and it is no longer than a name may be. Nothing
/// becomes a proper name that was none.
pub fn name(text: &str) -> String {
    tame(text, LONGEST_NAME)
}

/// The text in one line, what cannot be seen or directs how the rest is seen escaped as Rust does, and no more than `most`
/// characters of it, with `…` where it goes on.
pub fn tame(text: &str, most: usize) -> String {
    let mut tamed = String::with_capacity(text.len().min(most));
    let mut room = most;
    for character in text.chars() {
        if room == 0 {
            tamed.push('…');
            break;
        }
        room -= 1;
        match character {
            '"' | '\'' | '\\' => tamed.push(character),
            other => tamed.extend(other.escape_debug()),
        }
    }
    tamed
}

/// Shows the beginning of a text in quotation marks, escaped.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(QUOTED) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plain_text_is_escaped_and_cut() {
        assert_eq!(tame("web-1 is \"fine\" \\ später", 80), "web-1 is \"fine\" \\ später");
        assert_eq!(tame("a\nb\r\0\x1b[31m\u{9b}", 80), "a\\nb\\r\\0\\u{1b}[31m\\u{9b}");
        assert_eq!(
            tame("\u{202e}live\u{2066}\u{feff}\u{200b}\u{2028}", 80),
            "\\u{202e}live\\u{2066}\\u{feff}\\u{200b}\\u{2028}"
        );
        assert_eq!(tame("e\u{301}\u{301}", 80), "e\\u{301}\\u{301}", "no piles of marks");
        assert_eq!(tame("ééé", 2), "éé…");
        assert_eq!(tame(&"x".repeat(1 << 20), 10), "xxxxxxxxxx…");
        assert_eq!(Quoted("a\"\n").to_string(), "\"a\\\"\\n\"");
        assert_eq!(Quoted(&"y".repeat(1 << 20)).to_string(), format!("\"{}\"…", "y".repeat(80)));
    }

    #[test]
    fn only_plain_names_are_names() {
        for fine in ["web", "web-1.example.org", "A_b", &"x".repeat(253)] {
            assert!(is_name(fine) && name(fine) == fine, "{fine}");
        }
        let long = "x".repeat(254);
        for bad in ["", "a/b", "a b", "a\n", "a:b", "ä", "\u{202e}", "a\"", "{a}", "a;b", "\0", &long] {
            assert!(!is_name(bad) && !is_name(&name(bad)), "{bad:?}");
        }
        assert!(is_label("") && is_label("http-2") && !is_label(&"x".repeat(64)) && !is_label("a b"));
    }
}
