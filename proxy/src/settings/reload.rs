//! Follows the configuration file while `run` serves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::{ConfigFile, Loaded, Settings, SettingsError, host_name};
use crate::args::RunArgs;

/// How often the file is read anyway: what its name points to may lie in a folder that gives no notice.
const LOOK: Duration = Duration::from_secs(10);
/// How long a file that is being written may rest before it is read.
const WRITING: Duration = Duration::from_millis(300);
/// How long a finished file waits for what else is going on in its folder.
const WRITTEN: Duration = Duration::from_millis(20);
/// How long a file may be missing before that is said.
const MISSING: Duration = Duration::from_secs(1);

/// The configuration file of a running proxy. The watch ends when this is dropped.
#[derive(Debug)]
pub struct Reload {
    args: RunArgs,
    path: PathBuf,
    /// Warnings that were said of the file as it was.
    said: Vec<String>,
    texts: mpsc::Receiver<io::Result<String>>,
    stop: Sender<Notice>,
}

#[derive(Debug)]
enum Notice {
    Event(notify::Result<notify::Event>),
    Stop,
}

impl Reload {
    /// Follows the file that the settings were made from; `args` are the flags beside it, `said` the warnings that have been
    /// said.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(args: RunArgs, file: ConfigFile, said: Vec<String>) -> io::Result<Self> {
        let (stop, notices) = channel();
        let (texts_in, texts) = mpsc::channel(1);
        let (path, sender) = (file.path.clone(), stop.clone());
        std::thread::Builder::new().name("config".to_owned()).spawn(move || {
            let _watcher = watcher(&file.path, sender);
            follow(&file.path, file.text, &notices, &texts_in);
        })?;
        Ok(Self { args, path, said, texts, stop })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the file says something else, and makes settings of it; of the warnings, those that are new. May be dropped
    /// while it waits.
    ///
    /// # Errors
    /// The file cannot be read any more (said once), or is wrong.
    pub async fn next(&mut self) -> Result<Loaded, SettingsError> {
        match self.texts.recv().await {
            None => std::future::pending().await,
            Some(Err(source)) => Err(SettingsError::File { path: self.path.clone(), source }),
            Some(Ok(text)) => {
                let file = ConfigFile { path: self.path.clone(), text };
                let mut loaded = Settings::resolve(&self.args.common, &self.args.serve, Some(file), &host_name())?;
                let said = std::mem::replace(&mut self.said, loaded.warnings.clone());
                loaded.warnings.retain(|warning| !said.contains(warning));
                Ok(loaded)
            }
        }
    }
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

/// Sends every text that differs from the one before, and the first error of a series.
fn follow(path: &Path, mut last: String, notices: &Receiver<Notice>, texts: &mpsc::Sender<io::Result<String>>) {
    let mut unreadable = false;
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
        let sent = match std::fs::read_to_string(path) {
            Ok(text) => {
                missing = None;
                if std::mem::replace(&mut unreadable, false) {
                    tracing::info!(path = %path.display(), "the configuration file can be read again");
                }
                if text == last {
                    continue;
                }
                last.clone_from(&text);
                texts.blocking_send(Ok(text))
            }
            Err(_) if unreadable => continue,
            Err(error) => {
                let since = *missing.get_or_insert_with(Instant::now);
                if since.elapsed() < MISSING {
                    look = since + MISSING;
                    continue;
                }
                unreadable = true;
                texts.blocking_send(Err(error))
            }
        };
        if sent.is_err() {
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
