//! The API server's answers, for the fuzzer.

use kube::core::{ObjectList, WatchEvent};

use super::Known;
use super::lenient::Lenient;
use super::lines;
use super::taken::{Taken, name_of};
use crate::state::event::{Event, Kind};

/// The events of a list; `None`: it is none.
pub(crate) fn list(kind: Kind, json: &[u8]) -> Option<Vec<Event>> {
    let page: ObjectList<Lenient> = serde_json::from_slice(json).ok()?;
    let (mut known, mut events) = (Known::default(), Vec::new());
    known.begin_list();
    for object in page.items {
        Taken::new(kind, object).put(&mut known, &mut |event| events.push(event));
    }
    known.listed(kind, &mut |event| events.push(event));
    Some(events)
}

/// The events of a watch's lines; those that are none are passed over.
pub(crate) fn lines(kind: Kind, lines: &[u8]) -> Vec<Event> {
    let (mut known, mut events) = (Known::default(), Vec::new());
    for line in lines.split(|byte| *byte == b'\n') {
        let mut send = |event| events.push(event);
        match lines::read(line) {
            Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                Taken::new(kind, object).put(&mut known, &mut send);
            }
            Some(Ok(WatchEvent::Deleted(object))) => known.remove(kind, &name_of(kind, &object), &mut send),
            Some(Ok(WatchEvent::Bookmark(_) | WatchEvent::Error(_)) | Err(_)) | None => {}
        }
    }
    events
}
