//! Files of manifests, for the fuzzer.

use super::documents::read;
use crate::state::event::Event;

/// The events of a file's text; `None`: it does not parse.
pub(crate) fn documents(file: &str, text: &str, node: &str) -> Option<Vec<Event>> {
    let lines = text.lines().count().max(1);
    match read(file, text, node) {
        Ok(content) => {
            content.entries.iter().for_each(|entry| assert!((1..=lines).contains(&entry.line), "{}", entry.line));
            Some(content.entries.into_iter().filter_map(|entry| entry.object.event).collect())
        }
        Err(unparsable) => {
            assert!((1..=lines).contains(&unparsable.line), "{} of {lines}: {}", unparsable.line, unparsable.why);
            None
        }
    }
}
