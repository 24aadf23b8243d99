//! The folder as a source: real files, real notices.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{Watching, load_once, start_with};
use crate::state::State;
use crate::state::event::{Event, Kind};
use crate::watch::WatchStats;

/// Longer than any test: what is seen is seen by notices, not by the rescan.
const NEVER: Duration = Duration::from_secs(3600);

fn service(name: &str, last: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.{last}, ports: [{{port: 80}}]}}\n"
    )
}

struct Watched {
    dir: TempDir,
    state: State,
    events: mpsc::Receiver<Event>,
    stats: Arc<WatchStats>,
    _watching: Watching,
}

impl Watched {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let (tx, events) = mpsc::channel(1024);
        let stats = Arc::new(WatchStats::default());
        let watching = start_with(dir.path().into(), "n1".into(), tx, stats.clone(), NEVER).unwrap();
        let mut watched = Self { dir, state: State::default(), events, stats, _watching: watching };
        watched.until("all listed", |state| state.is_complete() && state.is_listed(Kind::Node));
        watched
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes events in until the state is as wanted; after 20 s without, says what was waited for.
    fn until(&mut self, what: &str, wanted: impl Fn(&State) -> bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        while !wanted(&self.state) {
            let next =
                runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await });
            let event = next.unwrap_or_else(|_| panic!("waited for {what}; there is {:?}", self.state));
            self.state.apply(event.unwrap());
        }
    }

    fn until_services(&mut self, what: &str, names: &[&str]) {
        self.until(what, |state| state.services().keys().map(|name| name.name.to_string()).eq(names.iter().copied()));
    }
}

#[test]
fn new_edited_renamed_and_removed_files_take_effect() {
    let mut watched = Watched::new(&[("a.yaml", &service("a", 1))]);
    watched.until_services("the first file", &["a"]);
    fs::write(watched.path().join("b.yaml"), service("b", 2)).unwrap();
    watched.until_services("a new file", &["a", "b"]);
    fs::write(watched.path().join(".b.tmp"), service("c", 3)).unwrap();
    fs::rename(watched.path().join(".b.tmp"), watched.path().join("b.yaml")).unwrap();
    watched.until_services("a file renamed over another", &["a", "c"]);
    fs::remove_file(watched.path().join("a.yaml")).unwrap();
    watched.until_services("a file removed", &["c"]);
    fs::write(watched.path().join("b.yaml"), format!("{}---\n{}", service("c", 4), service("d", 5))).unwrap();
    watched.until_services("two documents", &["c", "d"]);
    fs::write(watched.path().join("note.txt"), service("no", 9)).unwrap();
    fs::write(watched.path().join("e.json"), r#"{"apiVersion":"v1","kind":"List","items":[]}"#).unwrap();
    watched.until_services("an empty list", &["c", "d"]);
}

#[test]
fn a_broken_file_keeps_its_last_good_content_and_is_reported_with_its_line() {
    let mut watched = Watched::new(&[("a.yaml", &service("a", 1)), ("b.yaml", &service("b", 2))]);
    watched.until_services("both", &["a", "b"]);
    fs::write(watched.path().join("a.yaml"), "apiVersion: v1\nkind: [\n").unwrap();
    watched.until("the fault", |state| state.faults().any(|fault| fault.what.contains("a.yaml:2")));
    assert_eq!(watched.state.services().len(), 2);
    // Counted a moment after it is said.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while watched.stats.of(Kind::Manifest).errors() != 1 {
        assert!(std::time::Instant::now() < deadline, "waited for the error to be counted");
        std::thread::yield_now();
    }
    fs::write(watched.path().join("a.yaml"), service("z", 3)).unwrap();
    watched.until_services("the mended file", &["b", "z"]);
    watched.until("no fault", |state| state.faults().next().is_none());
}

#[test]
fn of_an_object_in_two_files_the_first_counts_until_it_goes() {
    let mut watched = Watched::new(&[("1.yaml", &service("a", 1)), ("2.yaml", &service("a", 2))]);
    let ip = |state: &State| state.services().values().next().map(|service| service.cluster_ips[0].to_string());
    watched.until("the fault", |state| state.faults().next().is_some());
    assert_eq!(ip(&watched.state).as_deref(), Some("10.96.0.1"));
    fs::remove_file(watched.path().join("1.yaml")).unwrap();
    watched.until("the second file's", |state| ip(state).as_deref() == Some("10.96.0.2"));
    watched.until("no fault", |state| state.faults().next().is_none());
}

#[test]
fn a_folder_switched_by_a_symlink_as_configmaps_are() {
    let dir = TempDir::new().unwrap();
    for (version, name) in [("..v1", "a"), ("..v2", "b")] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("web.yaml"), service(name, 1)).unwrap();
    }
    std::os::unix::fs::symlink("..v1", dir.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/web.yaml", dir.path().join("web.yaml")).unwrap();
    let (tx, events) = mpsc::channel(1024);
    let stats = Arc::new(WatchStats::default());
    let watching = start_with(dir.path().into(), "n1".into(), tx, stats.clone(), NEVER).unwrap();
    let mut watched = Watched { dir, state: State::default(), events, stats, _watching: watching };
    watched.until_services("version 1", &["a"]);
    std::os::unix::fs::symlink("..v2", watched.path().join("..data_tmp")).unwrap();
    fs::rename(watched.path().join("..data_tmp"), watched.path().join("..data")).unwrap();
    watched.until_services("version 2", &["b"]);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = load_once(Path::new("/no/such/folder"), &"n1".into()).unwrap_err();
    assert!(format!("{error:#}").contains("/no/such/folder"), "{error:#}");
}

#[test]
fn a_start_waits_for_who_is_still_writing() {
    for begun in ["", "apiVersion: v1\nkind: Service\nmetadata: {name: a"] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, begun).unwrap();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            fs::write(path, service("a", 1)).unwrap();
        });
        let (tx, events) = mpsc::channel(1024);
        let stats = Arc::new(WatchStats::default());
        let watching = start_with(dir.path().into(), "n1".into(), tx, stats.clone(), NEVER).unwrap();
        let mut watched = Watched { dir, state: State::default(), events, stats, _watching: watching };
        watched.until("all listed", State::is_complete);
        assert_eq!(watched.state.services().len(), 1, "{begun:?} was taken for the whole");
        writer.join().unwrap();
    }
}
