//! What a search looks through: one text for each Service, made once for a snapshot that somebody searches.

use std::fmt::Write as _;

use super::snapshot::ServiceEntry;
use crate::desired::target::Frontend;

/// A Service's text. First what may contain a word: name, type, health, port names, addresses, a line each, in small letters; then
/// after a NUL each what has to be the word: scheduler and port numbers.
#[derive(Debug)]
pub(super) struct Searched {
    text: Box<str>,
    exact: usize,
}

impl Searched {
    pub(super) fn of(service: &ServiceEntry) -> Self {
        let mut text = format!("{} {}", service.name, service.kind).to_lowercase();
        // Into a String, nothing fails to be written.
        let _ = write!(text, "\n{}", service.health.state.as_str());
        for port in &service.ports {
            let _ = write!(text, "\n{}", port.target.name.port);
        }
        let frontends = || service.ports.iter().flat_map(|port| &port.frontends);
        for frontend in frontends() {
            if let Frontend::Address { ip, .. } = frontend {
                let _ = write!(text, "\n{ip}");
            }
        }
        let exact = text.len();
        if let Some(port) = service.ports.first() {
            let _ = write!(text, "\0{}", port.target.schedule.scheduler.name());
        }
        for frontend in frontends() {
            let _ = write!(text, "\0{}", frontend.port());
        }
        text.push('\0');
        Self { text: text.into(), exact }
    }

    /// Whether all of the words are there.
    pub(super) fn has(&self, words: &[Word]) -> bool {
        let (part, whole) = self.text.split_at(self.exact);
        words.iter().all(|word| part.contains(word.part()) || whole.contains(&word.0))
    }
}

/// A word that is searched for, in small letters, with a NUL on both sides.
#[derive(Debug)]
pub(super) struct Word(String);

impl Word {
    /// All words of a search.
    pub(super) fn all(search: &str) -> Vec<Self> {
        search.split_whitespace().map(|word| Self(format!("\0{}\0", word.to_lowercase()))).collect()
    }

    fn part(&self) -> &str {
        self.0.trim_matches('\0')
    }
}
