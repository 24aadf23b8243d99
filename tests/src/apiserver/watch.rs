//! Watches.

use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::answer::{Kept, refuse, status};
use super::fault::Wrong;
use super::http::{Asked, Connection};
use super::resource::Target;
use super::select::Selector;
use super::state::Shared;
use super::store::{Event, Gone, Store, bookmark};

/// How often a quiet watch gets a bookmark. An API server takes a minute; it also tells us of clients that have gone.
const BOOKMARK: Duration = Duration::from_secs(1);
/// How long a watch goes on that asks for no time.
const LONG: Duration = Duration::from_secs(3600);
const TOO_OLD: &str = "The resourceVersion for the provided watch is too old.";

/// Carries a watch to its end. `cuts` is as it was when the connection began; `wrong`: it breaks off in its first event, or goes
/// on after half of it.
pub(super) fn watch(
    shared: &Shared,
    connection: &mut Connection,
    asked: &Asked,
    (target, selector): (&Target, &Selector),
    (cuts, mut wrong): (u64, Option<Wrong>),
) -> Kept {
    let initial = asked.parameter("sendInitialEvents");
    let from = asked.parameter("resourceVersion").parse().ok().filter(|revision: &u64| *revision > 0);
    // One after the other: both in one statement would hold the lock twice.
    let streaming = shared.lock().streaming_lists;
    let gone_inside = shared.lock().gone_inside;
    if !initial.is_empty() && !streaming {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature \
                       gate is enabled";
        return refuse(connection, 422, message);
    }
    if initial == "true" && asked.parameter("resourceVersionMatch") != "NotOlderThan" {
        return refuse(
            connection,
            422,
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting NotOlderThan",
        );
    }
    // As of a list: the objects that are there come first, unless the watch goes on from a version.
    let mut begin = if initial == "true" || from.is_none() {
        let state = shared.lock();
        let revision = state.store.revision();
        added(&state.store, target, selector, revision).map(|events| (events, revision))
    } else {
        let from = from.unwrap_or_default();
        shared.lock().store.events(target, selector, from).map(|events| (events, from))
    };
    if begin.is_err() && !gone_inside {
        return refuse(connection, 410, TOO_OLD);
    }
    let mut seconds = asked.parameter("timeoutSeconds").parse().map_or(LONG, Duration::from_secs);
    if seconds.is_zero() {
        seconds = LONG;
    }
    let end = Instant::now() + seconds;
    let bookmarks = asked.is_true("allowWatchBookmarks");
    connection.begin()?;
    let mut first = true;
    loop {
        let Ok((events, revision)) = begin else {
            line(connection, "ERROR", &status(410, TOO_OLD))?;
            connection.end()?;
            return Ok(true);
        };
        let mut cursor = revision;
        let is_quiet = events.is_empty();
        for event in events {
            cursor = cursor.max(event.revision);
            if let Some(wrong @ (Wrong::HalfJson | Wrong::HalfLine)) = wrong.take() {
                let text = text(event.kind, &event.object);
                connection.part(&text.as_bytes()[..text.len() / 2])?;
                if wrong == Wrong::HalfJson {
                    return Ok(false);
                }
                connection.part(b"\n")?;
                continue;
            }
            line(connection, event.kind, &event.object)?;
        }
        if first && initial == "true" {
            line(connection, "BOOKMARK", &bookmark(target.resource, cursor, true))?;
        } else if is_quiet && !first && bookmarks {
            line(connection, "BOOKMARK", &bookmark(target.resource, cursor, false))?;
        }
        first = false;
        let quiet_until = end.min(Instant::now() + BOOKMARK);
        let mut state = shared.lock();
        begin = loop {
            if state.has_ended || state.cuts != cuts {
                return Ok(false);
            }
            let left = quiet_until.saturating_duration_since(Instant::now());
            match state.store.events(target, selector, cursor) {
                Ok(events) if events.is_empty() && !left.is_zero() => state = shared.wait(state, left),
                // Nothing of ours has happened up to here; what happens before it is told comes after it.
                Ok(events) if events.is_empty() => break Ok((events, state.store.revision().max(cursor))),
                found => break found.map(|events| (events, cursor)),
            }
        };
        connection.delay = state.delay;
        drop(state);
        if Instant::now() >= end {
            connection.end()?;
            return Ok(true);
        }
    }
}

fn added(store: &Store, target: &Target, selector: &Selector, revision: u64) -> Result<Vec<Event>, Gone> {
    let objects = store.list(target, selector, revision)?;
    let event = |object: &Value| Event { revision, kind: "ADDED", object: object.clone() };
    Ok(objects.iter().map(|(_, object)| event(object)).collect())
}

fn text(kind: &str, object: &Value) -> String {
    json!({"type": kind, "object": object}).to_string() + "\n"
}

fn line(connection: &mut Connection, kind: &str, object: &Value) -> io::Result<()> {
    connection.part(text(kind, object).as_bytes())
}
