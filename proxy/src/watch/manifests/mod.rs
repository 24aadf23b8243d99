//! A folder of YAML or JSON manifests as a source: for trying, for testing, and for nodes without a control plane.
//!
//! Files directly in the folder whose names end in `.yaml`, `.yml` or `.json` and do not begin with a dot are read, each
//! with as many documents as it likes. A file that does not parse keeps its last good content.

mod changes;
mod defaults;
mod documents;
mod doubt;
mod folder;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc;

use super::stats::WatchStats;
use crate::state::event::{Event, Kind};
use crate::state::objects::{Ignored, ObjectName};
use changes::{Changes, Notice, Woken};
use doubt::Doubts;
use folder::Folder;

/// The largest file that is read, in bytes: some 100,000 Services.
const LARGEST: u64 = 64 << 20;
/// The most values that a document with aliases may come to.
const MOST_VALUES: usize = 1_000_000;

/// How often the whole folder is looked at for what no notice told of.
const RESCAN: Duration = Duration::from_secs(10);

/// How long a start waits for a file that is empty or does not parse, and was written to less than this ago; and how often it
/// looks.
const UNFINISHED: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);

/// The kinds that a folder lists, in the order in which they are declared complete.
const KINDS: [Kind; 4] = [Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice];

/// Ends the thread that watches the folder when it is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    stop: std::sync::mpsc::Sender<Notice>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        // The thread may have ended already.
        self.stop.send(Notice::Stop).ok();
    }
}

/// The folder's present content, each kind declared listed.
pub(super) fn load_once(dir: &Path, node: &Arc<str>) -> anyhow::Result<Vec<Event>> {
    let mut changes = Changes::new(dir, RESCAN).with_context(|| unreadable(dir))?;
    let mut folder = Folder::new(dir.into(), node.clone());
    let files = changes.all().with_context(|| unreadable(dir))?;
    let mut events = Vec::new();
    folder.update(files, &mut |event| events.push(event));
    events.extend(KINDS.map(Event::Listed));
    Ok(events)
}

/// Sends the folder's content and then its changes to `tx`, from a thread of its own.
pub(super) fn start(
    dir: PathBuf,
    node: Arc<str>,
    tx: mpsc::Sender<Event>,
    stats: Arc<WatchStats>,
) -> anyhow::Result<Watching> {
    start_with(dir, node, tx, stats, RESCAN)
}

fn start_with(
    dir: PathBuf,
    node: Arc<str>,
    tx: mpsc::Sender<Event>,
    stats: Arc<WatchStats>,
    rescan: Duration,
) -> anyhow::Result<Watching> {
    // Watched before it is listed: nothing falls in between.
    let changes = Changes::new(&dir, rescan).with_context(|| unreadable(&dir))?;
    let stop = changes.stopper();
    let folder = Folder::new(dir, node);
    let thread = std::thread::Builder::new().name("manifests".into());
    thread
        .spawn(move || follow(folder, changes, &tx, &stats))
        .context("cannot start the thread that watches manifests")?;
    Ok(Watching { stop })
}

fn unreadable(dir: &Path) -> String {
    format!("cannot read the folder of manifests {}: does it exist, and may this user read it?", dir.display())
}

/// Runs until it is stopped or nobody listens.
fn follow(mut folder: Folder, mut changes: Changes, tx: &mpsc::Sender<Event>, stats: &WatchStats) {
    let mut outbox = Outbox { tx, stats, open: true };
    match changes.all() {
        Ok(files) => first(&mut folder, files, &mut outbox),
        Err(error) => outbox.unreadable(&folder, &error),
    }
    let mut doubts = Doubts::default();
    doubts.about(folder.dir(), folder.holding(), changes.is_empty(), Instant::now());
    let mut doubted = false;
    for kind in KINDS {
        stats.of(kind).list();
        outbox.send(Event::Listed(kind));
    }
    while outbox.open {
        match changes.wait() {
            Woken::Stopped => return,
            Woken::Unreadable(error) => outbox.unreadable(&folder, &error),
            Woken::Readable => {
                outbox.folder(&folder, None);
                let mut files: Vec<_> = folder.files().collect();
                files.extend(changes.all().unwrap_or_default());
                changes.again(files, Duration::ZERO);
            }
            // With the folder gone its files are "removed"; that is a mishap and not a wish. When it is back, they are looked at.
            Woken::Changed(files) if !folder.dir().is_dir() => changes.again(files, doubt::AGAIN),
            Woken::Changed(files) => {
                let was_doubted = doubted;
                let was_empty = changes.is_empty();
                doubted = doubts.about(folder.dir(), folder.holding(), was_empty, Instant::now());
                match (was_doubted, doubted) {
                    (false, true) => outbox.folder(&folder, Some("suddenly has no files: not believed yet".to_owned())),
                    (true, false) => outbox.folder(&folder, None),
                    _ => {}
                }
                if doubted {
                    changes.again(files, doubt::AGAIN);
                    continue;
                }
                // What is believed of one file is of all, whenever they were noticed.
                let files = if was_doubted && was_empty { folder.files().chain(files).collect() } else { files };
                // The folder may go, or become empty, in this very moment.
                let dir = folder.dir().to_owned();
                let is_believed = &mut |held| {
                    let is_as_before = was_empty || !doubts.about(&dir, held, changes.is_empty(), Instant::now());
                    dir.is_dir() && is_as_before
                };
                let (broken, doubted) = folder.update_if(files, is_believed, &mut |event| outbox.send(event));
                outbox.broken(broken);
                changes.again(doubted, Duration::ZERO);
            }
        }
    }
}

/// Reads the folder for the first time. What half a file says would take the rest of the Services out of force, so a file that
/// somebody seems to be writing is waited for.
fn first(folder: &mut Folder, files: Vec<Arc<str>>, outbox: &mut Outbox<'_>) {
    let end = Instant::now() + UNFINISHED;
    folder.update(files, &mut |event| outbox.send(event));
    while Instant::now() < end && folder.broken().any(|file| folder.is_new(&file, UNFINISHED)) {
        std::thread::sleep(AGAIN);
        let broken: Vec<_> = folder.broken().collect();
        folder.update(broken, &mut |event| outbox.send(event));
    }
    let broken: Vec<_> = folder.broken().collect();
    let broken = folder.update(broken, &mut |event| outbox.send(event));
    outbox.broken(broken);
}

struct Outbox<'a> {
    tx: &'a mpsc::Sender<Event>,
    stats: &'a WatchStats,
    open: bool,
}

impl Outbox<'_> {
    fn send(&mut self, event: Event) {
        let kind = match &event {
            Event::Service(_) | Event::ServiceGone(_) => Some(Kind::Service),
            Event::Slice(_) | Event::SliceGone(_) => Some(Kind::EndpointSlice),
            Event::Node(_) | Event::NodeGone => Some(Kind::Node),
            Event::ServiceCidr(_) | Event::ServiceCidrGone(_) => Some(Kind::ServiceCidr),
            Event::ApiServer(_) | Event::Listed(_) | Event::Ignored { .. } => None,
        };
        if let Some(kind) = kind {
            self.stats.of(kind).event();
        }
        self.open = self.open && self.tx.blocking_send(event).is_ok();
    }

    /// So many files could not be read or parsed.
    fn broken(&self, files: usize) {
        for _ in 0..files {
            self.stats.of(Kind::Manifest).error();
        }
    }

    fn unreadable(&mut self, folder: &Folder, error: &std::io::Error) {
        self.stats.of(Kind::Manifest).error();
        self.folder(folder, Some(format!("cannot be read: {error}")));
    }

    /// Says what is wrong with the folder itself, or takes it back.
    fn folder(&mut self, folder: &Folder, why: Option<String>) {
        let what = folder.dir().display().to_string();
        let why = why.map(|why| format!("the folder of manifests {why}; what was read of it stays in force"));
        let faults = why.into_iter().map(|why| Ignored { what: what.clone(), why }).collect();
        self.send(Event::Ignored { kind: Kind::Manifest, name: ObjectName::new("", &what), faults });
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
#[path = "notice_tests.rs"]
mod notice_tests;
