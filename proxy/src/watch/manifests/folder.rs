//! Which file holds which object: the content of a folder of manifests as events. Files are taken in the order of their
//! names; where two hold the same object the first has it, the other one's is a fault and takes over when the first goes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::known::Known;
use super::LARGEST;
use super::documents::{self, Content, Faults};
use crate::input::file;
use crate::state::event::{Event, Kind};
use crate::state::objects::{Ignored, ObjectName};
use crate::state::text;

type Key = (Kind, ObjectName);

/// The index of a folder. Objects themselves are not kept: a file is read again when one of its objects takes over.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    node: Arc<str>,
    files: BTreeMap<Arc<str>, File>,
    /// The file that an object is taken from.
    holders: BTreeMap<Key, Arc<str>>,
    /// The files that hold an object too, and come later.
    waiting: BTreeMap<Key, BTreeSet<Arc<str>>>,
    known: Known,
}

#[derive(Default, Debug)]
struct File {
    /// The line of each object.
    objects: BTreeMap<Key, usize>,
    faults: Faults,
    told: Vec<Ignored>,
    broken: bool,
}

/// The work that a change of some files leaves behind.
#[derive(Default)]
struct Batch {
    /// Files to read, in order; grows by those whose objects take over.
    read: BTreeSet<Arc<str>>,
    /// Objects that no file read so far holds any more.
    orphans: BTreeSet<Key>,
    /// Files whose faults may have changed.
    touched: BTreeSet<Arc<str>>,
}

impl Folder {
    pub fn new(dir: PathBuf, node: Arc<str>) -> Self {
        let (files, holders, waiting) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { dir, node, files, holders, waiting, known: Known::default() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files that the index knows.
    pub fn files(&self) -> impl Iterator<Item = Arc<str>> {
        self.files.keys().cloned()
    }

    /// How many files hold an object: 2 for more.
    pub fn holding(&self) -> usize {
        self.files.values().filter(|file| !file.objects.is_empty()).take(2).count()
    }

    /// The files that could not be read or parsed.
    pub fn broken(&self) -> impl Iterator<Item = Arc<str>> {
        self.files.iter().filter(|(_, file)| file.broken).map(|(name, _)| name.clone())
    }

    /// Whether a file was written to less than `age` ago: somebody may be at it.
    pub fn is_new(&self, file: &str, age: Duration) -> bool {
        let modified = std::fs::metadata(self.dir.join(file)).and_then(|meta| meta.modified());
        // One of the future is as old as any: the clock was set.
        modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|old| old < age))
    }

    /// Reads these files and sends what differs from before. An object that moves from one file to another is never gone in
    /// between. Returns how many of the files could not be read or parsed.
    pub fn update(&mut self, files: impl IntoIterator<Item = Arc<str>>, send: &mut dyn FnMut(Event)) -> usize {
        self.update_if(files, &mut |_| true, send).0
    }

    /// The same, but a file that is not there is gone only if `is_believed` says so then, told how many files hold an object. Also
    /// returns those that are not believed to be.
    pub fn update_if(
        &mut self,
        files: impl IntoIterator<Item = Arc<str>>,
        is_believed: &mut dyn FnMut(usize) -> bool,
        send: &mut dyn FnMut(Event),
    ) -> (usize, Vec<Arc<str>>) {
        let mut batch = Batch { read: files.into_iter().collect(), ..Batch::default() };
        let (mut broken, mut doubted) = (0, Vec::new());
        while let Some(file) = batch.read.pop_first() {
            batch.touched.insert(file.clone());
            let path = self.dir.join(&*file);
            match file::read(&path, LARGEST) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => match self.in_its_place(&file) {
                    Some(why) => self.keep(&file, path.display().to_string(), why.to_owned()),
                    None if self.holds(&file) && !is_believed(self.holding()) => doubted.push(file.clone()),
                    None => self.forget(&file, &mut batch),
                },
                Err(error) => self.keep(&file, path.display().to_string(), format!("cannot be read: {error}")),
                // What a full disk leaves, or who has only begun to write. Whoever means it deletes the file.
                Ok(bytes) if bytes.is_empty() => self.keep(&file, path.display().to_string(), "is empty".into()),
                Ok(bytes) => match parse(&path, bytes, &self.node) {
                    Ok(content) => self.replace(&file, content, &mut batch, send),
                    Err(fault) => self.keep(&file, fault.what, fault.why),
                },
            }
            broken += usize::from(self.files.get(&file).is_some_and(|file| file.broken));
        }
        for (kind, name) in std::mem::take(&mut batch.orphans) {
            if !self.holders.contains_key(&(kind, name.clone())) {
                self.known.remove(kind, &name, send);
            }
        }
        for file in batch.touched {
            self.tell(&file, send);
        }
        (broken, doubted)
    }

    fn holds(&self, file: &str) -> bool {
        self.files.get(file).is_some_and(|file| !file.objects.is_empty())
    }

    /// What there is where a file is not found; whoever means it to be gone removes that, too.
    fn in_its_place(&self, file: &str) -> Option<&'static str> {
        if self.dir.join(file).is_symlink() {
            return Some("is a link to nothing");
        }
        let another = || {
            let names = std::fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
            names.into_iter().any(|name| name.to_string_lossy() == file)
        };
        (file.contains(char::REPLACEMENT_CHARACTER) && another()).then_some("has a name that is not UTF-8")
    }

    /// A file that cannot be read keeps its last good content.
    fn keep(&mut self, file: &Arc<str>, what: String, why: String) {
        let entry = self.files.entry(file.clone()).or_default();
        let stays = if entry.objects.is_empty() { "" } else { "; its last good content stays in force" };
        entry.faults = Faults::of(Ignored { what, why: format!("{why}{stays}") });
        entry.broken = true;
    }

    fn replace(&mut self, file: &Arc<str>, content: Content, batch: &mut Batch, send: &mut dyn FnMut(Event)) {
        let mut entry = self.files.remove(file).unwrap_or_default();
        let before = std::mem::take(&mut entry.objects);
        entry.faults = content.faults;
        entry.broken = false;
        for found in content.entries {
            let key = (found.object.kind, found.object.name.clone());
            if let Some(line) = entry.objects.get(&key) {
                let (line, what) = (*line, || format!("{}:{}", self.dir.join(&**file).display(), found.line));
                entry.faults.add(|| Ignored {
                    what: what(),
                    why: format!(
                        "{} {} ignored: it is in this file twice, first in line {line}",
                        key.0.as_str(),
                        key.1
                    ),
                });
                continue;
            }
            entry.objects.insert(key.clone(), found.line);
            match self.holders.get(&key) {
                Some(holder) if holder < file => {
                    self.waiting.entry(key).or_default().insert(file.clone());
                    continue;
                }
                Some(holder) if holder > file => {
                    let waiting = self.waiting.entry(key.clone()).or_default();
                    waiting.insert(holder.clone());
                    // All of them name the holder in their faults.
                    batch.touched.extend(waiting.iter().cloned());
                }
                _ => {}
            }
            self.stop_waiting(&key, file);
            self.holders.insert(key, file.clone());
            self.known.put(found.version, found.object, send);
        }
        for key in before.into_keys().filter(|key| !entry.objects.contains_key(key)) {
            self.release(key, file, batch);
        }
        self.files.insert(file.clone(), entry);
    }

    fn forget(&mut self, file: &Arc<str>, batch: &mut Batch) {
        let Some(entry) = self.files.get_mut(file) else { return };
        entry.faults = Faults::default();
        entry.broken = false;
        for key in std::mem::take(&mut entry.objects).into_keys() {
            self.release(key, file, batch);
        }
    }

    /// `file` no longer has this object: the next file that has it is read again.
    fn release(&mut self, key: Key, file: &Arc<str>, batch: &mut Batch) {
        if self.holders.get(&key) != Some(file) {
            return self.stop_waiting(&key, file);
        }
        self.holders.remove(&key);
        if let Some(next) = self.waiting.get(&key).and_then(BTreeSet::first) {
            batch.read.insert(next.clone());
            // Those behind it name the holder in their faults.
            batch.touched.extend(self.waiting.get(&key).into_iter().flatten().cloned());
        }
        batch.orphans.insert(key);
    }

    fn stop_waiting(&mut self, key: &Key, file: &Arc<str>) {
        if let Some(files) = self.waiting.get_mut(key) {
            files.remove(file);
            if files.is_empty() {
                self.waiting.remove(key);
            }
        }
    }

    /// Sends a file's faults where they differ from the last ones.
    fn tell(&mut self, file: &Arc<str>, send: &mut dyn FnMut(Event)) {
        let Some(entry) = self.files.get_mut(file) else { return };
        let mut faults = entry.faults.clone();
        for (key, line) in &entry.objects {
            if let Some(holder) = self.holders.get(key).filter(|holder| *holder != file) {
                faults.add(|| Ignored {
                    what: format!("{}:{line}", self.dir.join(&**file).display()),
                    why: format!("{} {} ignored: {holder} has it too and comes first", key.0.as_str(), key.1),
                });
            }
        }
        let faults = faults.all(&self.dir.join(&**file).display().to_string());
        if faults != entry.told {
            entry.told.clone_from(&faults);
            let name = ObjectName::new("", &text::name(file));
            send(Event::Ignored { kind: Kind::Manifest, name, faults });
        }
        if entry.objects.is_empty() && entry.told.is_empty() && !self.dir.join(&**file).exists() {
            self.files.remove(file);
        }
    }
}

fn parse(path: &Path, bytes: Vec<u8>, node: &str) -> Result<Content, Ignored> {
    let file = path.display().to_string();
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        Ignored { what: format!("{file}:{line}"), why: "does not parse: it is not UTF-8 text".into() }
    })?;
    documents::read(&file, &text, node).map_err(|error| Ignored {
        what: format!("{file}:{}", error.line),
        why: format!("does not parse: {}", error.why),
    })
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
