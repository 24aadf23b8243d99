//! Follows the configuration file while `run` serves.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::{ConfigFile, LARGEST_FILE, Loaded, Settings, SettingsError, host_name};
use crate::args::RunArgs;
use crate::input::file;

/// How often the file is read anyway: what its name points to may lie in a folder that gives no notice.
const LOOK: Duration = Duration::from_secs(10);
/// How long a file that is being written may rest before it is read.
const WRITING: Duration = Duration::from_millis(300);
/// How long a finished file waits for what else is going on in its folder.
const WRITTEN: Duration = Duration::from_millis(20);
/// How long a file may be missing before that is said.
const MISSING: Duration = Duration::from_secs(1);

/// What a changed file comes to.
type Changed = Result<Loaded, SettingsError>;

/// The configuration file of a running proxy. The watch ends when this is dropped.
#[derive(Debug)]
pub struct Reload {
    path: PathBuf,
    changes: mpsc::Receiver<Changed>,
    stop: Sender<Notice>,
}

#[derive(Debug)]
enum Notice {
    Event(notify::Result<notify::Event>),
    Stop,
}

impl Reload {
    /// Follows the file that the settings were made from; `args` are the flags beside it, `said` the warnings that have been
    /// said. It is read and made settings of by a thread of its own, so that nothing in it holds up who waits for it.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(args: RunArgs, file: ConfigFile, said: Vec<String>) -> io::Result<Self> {
        let (stop, notices) = channel();
        let (changes_in, changes) = mpsc::channel(1);
        let (path, sender) = (file.path.clone(), stop.clone());
        std::thread::Builder::new().name("config".to_owned()).spawn(move || {
            let _watcher = watcher(&file.path, sender);
            let mut said = BTreeSet::from_iter(said);
            follow(&file.path, file.text, &notices, |text| {
                let changed = text
                    .map_err(|source| SettingsError::File { path: file.path.clone(), source })
                    .and_then(|text| resolve(&args, &file.path, text, &mut said));
                // Nobody waits when the proxy ends.
                changes_in.blocking_send(changed).is_ok()
            });
        })?;
        Ok(Self { path, changes, stop })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the file says something else: the settings that it makes, and of the warnings those that are new. May be
    /// dropped while it waits.
    ///
    /// # Errors
    /// The file cannot be read any more (said once), or is wrong.
    pub async fn next(&mut self) -> Changed {
        match self.changes.recv().await {
            None => std::future::pending().await,
            Some(changed) => changed,
        }
    }
}

fn resolve(args: &RunArgs, path: &Path, text: String, said: &mut BTreeSet<String>) -> Changed {
    let file = ConfigFile { path: path.to_owned(), text };
    let mut loaded = Settings::resolve(&args.common, &args.serve, Some(file), &host_name())?;
    let said = std::mem::replace(said, loaded.warnings.iter().cloned().collect());
    loaded.warnings.retain(|warning| !said.contains(warning));
    Ok(loaded)
}

impl Drop for Reload {
    fn drop(&mut self) {
        // The thread may have ended.
        let _ = self.stop.send(Notice::Stop);
    }
}

/// Watches the file's folder: a ConfigMap is changed by another target of the link `..data` in it, an editor may put another
/// file in the place of ours.
fn watcher(path: &Path, sender: Sender<Notice>) -> Option<RecommendedWatcher> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let watcher = notify::recommended_watcher(move |event| {
        // The receiver is gone only when the watch has ended.
        sender.send(Notice::Event(event)).ok();
    });
    let watched = watcher.and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watched
        .inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, every = ?LOOK, "no notices of a changed configuration file (fs.inotify limits?): looking at intervals");
        })
        .ok()
}

/// Tells every text that differs from the one before or comes after an error, and every error that does, until that is false.
fn follow(path: &Path, mut last: String, notices: &Receiver<Notice>, mut tell: impl FnMut(io::Result<String>) -> bool) {
    let mut unreadable = None;
    // What changed between the start and the watch is found at once.
    let mut look = Instant::now();
    let mut missing = None;
    loop {
        match notices.recv_timeout(look.saturating_duration_since(Instant::now())) {
            Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Notice::Event(event)) => {
                if let Some(patience) = patience(&event) {
                    look = Instant::now() + patience;
                }
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        look = Instant::now() + LOOK;
        let goes_on = match file::read(path, LARGEST_FILE).and_then(file::text) {
            Ok(text) => {
                missing = None;
                if unreadable.take().is_some() {
                    tracing::info!(path = %path.display(), "the configuration file can be read again");
                } else if text == last {
                    continue;
                }
                last.clone_from(&text);
                tell(Ok(text))
            }
            Err(error) => {
                let since = *missing.get_or_insert_with(Instant::now);
                if since.elapsed() < MISSING {
                    look = since + MISSING;
                    continue;
                }
                let why = error.to_string();
                if unreadable.replace(why.clone()) == Some(why) {
                    continue;
                }
                tell(Err(error))
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// How long to wait for more after this; `None`: it changes nothing.
fn patience(event: &notify::Result<notify::Event>) -> Option<Duration> {
    match event.as_ref().map(|event| event.kind) {
        Ok(EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Name(_))) => {
            Some(WRITTEN)
        }
        Ok(EventKind::Access(_)) => None,
        _ => Some(WRITING),
    }
}

#[cfg(test)]
mod tests;
