//! Which files of a folder have changed: the kernel's notices, with the patience that editors need, and a slow look at the
//! whole folder for what no notice tells of (the target of a symlink, a lost notice, a folder put in the place of ours).

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// How long a file that is being written may stay open without a further write before it is read anyway.
const WRITING: Duration = Duration::from_millis(200);
/// How long a file may be missing before it counts as removed: some editors rename it away and write a new one.
const MISSING: Duration = Duration::from_millis(100);

/// Watches one folder.
#[derive(Debug)]
pub(super) struct Changes {
    dir: PathBuf,
    rescan: Duration,
    next_rescan: Instant,
    notices: Receiver<Notice>,
    sender: Sender<Notice>,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the folder that `watcher` looks at.
    watched: Option<(u64, u64)>,
    seen: BTreeMap<Arc<str>, Stamp>,
    /// When each changed file is to be read.
    due: BTreeMap<Arc<str>, Instant>,
    unreadable: bool,
}

/// What the thread that waits here is woken by.
#[derive(Debug)]
pub(super) enum Notice {
    Files(notify::Result<notify::Event>),
    Stop,
}

/// What tells two states of a file apart without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What [`Changes::wait`] ended with.
#[derive(Debug)]
pub(super) enum Woken {
    /// These files are to be read.
    Changed(Vec<Arc<str>>),
    /// The folder cannot be read at present; said once.
    Unreadable(io::Error),
    /// It can be read again.
    Readable,
    Stopped,
}

impl Changes {
    /// Watches `dir`, and looks at all of it every `rescan`.
    ///
    /// # Errors
    /// The folder does not exist, is no folder, or cannot be read. That the kernel gives no notices is not an error: the
    /// slow look remains.
    pub fn new(dir: &Path, rescan: Duration) -> io::Result<Self> {
        std::fs::read_dir(dir)?;
        let (sender, notices) = channel();
        let (watcher, watched, unreadable) = (None, None, false);
        let (seen, due) = (BTreeMap::new(), BTreeMap::new());
        let next_rescan = Instant::now() + rescan;
        let mut changes =
            Self { dir: dir.into(), rescan, next_rescan, notices, sender, watcher, watched, seen, due, unreadable };
        changes.watch_again();
        Ok(changes)
    }

    /// Wakes and ends the thread that waits.
    pub fn stopper(&self) -> Sender<Notice> {
        self.sender.clone()
    }

    /// The manifest files that are there now, in order.
    pub fn all(&mut self) -> io::Result<Vec<Arc<str>>> {
        self.seen = list(&self.dir)?;
        Ok(self.seen.keys().cloned().collect())
    }

    /// Has these files read again, too, after a while.
    pub fn again(&mut self, files: impl IntoIterator<Item = Arc<str>>, after: Duration) {
        let due = Instant::now() + after;
        self.due.extend(files.into_iter().map(|file| (file, due)));
    }

    /// Whether no manifest can be seen now.
    pub fn is_empty(&self) -> bool {
        let Ok(mut entries) = std::fs::read_dir(&self.dir) else { return true };
        let is_manifest = |path: &Path| {
            path.file_name().is_some_and(|name| manifest_name(Path::new(name)).is_some()) && stamp(path).is_ok()
        };
        !entries.any(|entry| entry.is_ok_and(|entry| is_manifest(&entry.path())))
    }

    /// Waits until files have changed.
    pub fn wait(&mut self) -> Woken {
        loop {
            let now = Instant::now();
            if now >= self.next_rescan {
                let result = self.rescan();
                match (result, std::mem::replace(&mut self.unreadable, false)) {
                    (Err(error), before) => {
                        self.unreadable = true;
                        if !before {
                            return Woken::Unreadable(error);
                        }
                    }
                    (Ok(()), true) => return Woken::Readable,
                    (Ok(()), false) => {}
                }
            }
            let changed: Vec<Arc<str>> =
                self.due.iter().filter(|(_, due)| **due <= now).map(|(f, _)| f.clone()).collect();
            if !changed.is_empty() {
                for file in &changed {
                    self.due.remove(file);
                    match stamp(&self.dir.join(&**file)) {
                        Ok(stamp) => drop(self.seen.insert(file.clone(), stamp)),
                        // Of another name; the next look at the folder tells whether it is there.
                        Err(_) if file.contains(char::REPLACEMENT_CHARACTER) => {}
                        Err(_) => drop(self.seen.remove(file)),
                    }
                }
                return Woken::Changed(changed);
            }
            let until = self.due.values().min().copied().unwrap_or(self.next_rescan).min(self.next_rescan);
            match self.notices.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return Woken::Stopped,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Notice::Files(notice)) => self.notice(notice),
            }
            while let Ok(notice) = self.notices.try_recv() {
                match notice {
                    Notice::Stop => return Woken::Stopped,
                    Notice::Files(notice) => self.notice(notice),
                }
            }
        }
    }

    fn notice(&mut self, notice: notify::Result<notify::Event>) {
        let now = Instant::now();
        let Ok(event) = notice else {
            self.next_rescan = now;
            return;
        };
        if event.need_rescan() {
            self.next_rescan = now;
        }
        let after = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => Duration::ZERO,
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Duration::ZERO,
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => MISSING,
            EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) => WRITING,
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => return,
            _ => WRITING,
        };
        for path in &event.paths {
            match path.strip_prefix(&self.dir).ok().and_then(manifest_name) {
                Some(file) => {
                    // A link is complete when it appears; nobody will close it.
                    let link = matches!(event.kind, EventKind::Create(_)) && path.is_symlink();
                    self.due.insert(file, if link { now } else { now + after });
                }
                // Something else of the folder, such as the `..data` that a ConfigMap's files point through, or itself.
                None => self.next_rescan = self.next_rescan.min(now + after),
            }
        }
    }

    fn rescan(&mut self) -> io::Result<()> {
        self.next_rescan = Instant::now() + self.rescan;
        self.watch_again();
        let present = list(&self.dir)?;
        let now = Instant::now();
        for (file, stamp) in &present {
            if self.seen.get(file) != Some(stamp) {
                // It may be in the middle of being written; the notice of that may still be on its way.
                self.due.entry(file.clone()).or_insert(now + WRITING);
            }
        }
        for file in self.seen.keys().filter(|file| !present.contains_key(*file)) {
            self.due.entry(file.clone()).or_insert(now);
        }
        self.seen = present;
        Ok(())
    }

    /// Watches the folder that now bears the name, unless it is the one that is watched already.
    fn watch_again(&mut self) {
        let identity = std::fs::metadata(&self.dir).ok().map(|meta| (meta.dev(), meta.ino()));
        if identity.is_none() || (identity == self.watched && self.watcher.is_some()) {
            return;
        }
        let sender = self.sender.clone();
        let watcher = notify::recommended_watcher(move |notice| {
            // The receiver is gone only when the watch has ended.
            sender.send(Notice::Files(notice)).ok();
        });
        let watched = watcher.and_then(|mut watcher| {
            watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watched {
            Ok(watcher) => (self.watcher, self.watched) = (Some(watcher), identity),
            Err(error) => {
                (self.watcher, self.watched) = (None, None);
                let (dir, every) = (self.dir.display(), self.rescan);
                tracing::warn!(%dir, %error, ?every, "no notices of changed manifests (fs.inotify limits?): looking at intervals");
            }
        }
    }
}

/// The manifests in `dir` with their stamps, and what is no file but has a manifest's name: that is told when it is read. A file
/// that goes while it is looked at is left out.
fn list(dir: &Path) -> io::Result<BTreeMap<Arc<str>, Stamp>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(file) = manifest_name(Path::new(&entry.file_name()))
            && let Ok(stamp) = stamp(&entry.path())
        {
            files.insert(file, stamp);
        }
    }
    Ok(files)
}

/// The name of a manifest directly in the folder: `.yaml`, `.yml` or `.json`, not hidden. In the place of what is not UTF-8 it has
/// U+FFFD: no file of that name can be read.
fn manifest_name(path: &Path) -> Option<Arc<str>> {
    let name = path.to_string_lossy();
    let manifest = matches!(path.extension()?.to_str()?, "yaml" | "yml" | "json");
    (manifest && !name.starts_with('.') && !name.contains('/')).then(|| name.into())
}

/// Of a link that leads nowhere, its own.
fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = std::fs::metadata(path).or_else(|_| std::fs::symlink_metadata(path))?;
    Ok(Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}
