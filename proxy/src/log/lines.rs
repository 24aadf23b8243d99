//! The last step before standard error: what an event holds cannot end its line or direct how the line is seen. What comes
//! from objects has been tamed before; this holds for what libraries say, too, with a server's own words in it.

use std::borrow::Cow;
use std::io::{self, Write};

/// More bytes than this of one line are cut.
const LONGEST: usize = 16 << 10;

/// A writer that is given one event at a time.
#[derive(Debug)]
pub(super) struct Lines<W> {
    to: W,
    json: bool,
}

impl<W> Lines<W> {
    /// In front of `to`; `json`: events are JSON objects, and stay such.
    pub fn new(to: W, json: bool) -> Self {
        Self { to, json }
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.to.write_all(line(&String::from_utf8_lossy(event), self.json).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn line(event: &str, json: bool) -> Cow<'_, str> {
    let (text, end) = event.strip_suffix('\n').map_or((event, ""), |text| (text, "\n"));
    let harmless = |c: char| c == '\t' || matches!(c, ' '..='~') || (!json && c == '…');
    let cut = !json && text.len() > LONGEST;
    if !cut && text.chars().all(harmless) {
        return Cow::Borrowed(event);
    }
    let mut line = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        if cut && line.len() >= LONGEST {
            line.push('…');
            break;
        }
        if harmless(character) || character.escape_debug().len() == 1 || is_colour(&text[at..]) {
            line.push(character);
        } else if json {
            // Within a string, where nothing else than ASCII can be.
            let mut units = [0; 2];
            line.extend(character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            line.extend(character.escape_debug());
        }
    }
    line.push_str(end);
    Cow::Owned(line)
}

/// Whether the text begins with a sequence that sets a colour, as the formatter writes them; no other does so little.
fn is_colour(text: &str) -> bool {
    text.strip_prefix("\x1b[")
        .is_some_and(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(event: &str, json: bool) -> String {
        let mut out = Vec::new();
        Lines::new(&mut out, json).write_all(event.as_bytes()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_event_is_one_line() {
        assert_eq!(written("plain \x1b[32mINFO\x1b[0m grün\n", false), "plain \x1b[32mINFO\x1b[0m grün\n");
        assert_eq!(written("a\n2026 ERROR b\r\u{202e}\0\n", false), "a\\n2026 ERROR b\\r\\u{202e}\\0\n");
        assert_eq!(written("\x1b[2J\x1b]0;x\x07\n", false), "\\u{1b}[2J\\u{1b}]0;x\\u{7}\n");
        assert!(written(&format!("{}\n", "x".repeat(1 << 20)), false).len() < LONGEST + 10);
    }

    #[test]
    fn json_stays_json() {
        let event =
            format!("{}\n", serde_json::json!({"what": "a\n\u{202e}b\u{e0001}\"", "long": "x".repeat(1 << 16)}));
        let line = written(&event, true);
        assert!(line.trim_end().chars().all(|c| matches!(c, ' '..='~')), "{line:.200}");
        let (before, after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(&event).unwrap(), serde_json::from_str(&line).unwrap());
        assert_eq!(before, after);
    }
}
