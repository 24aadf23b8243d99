//! What is seen of a folder, event by event: nothing is gone in between, and nothing is missed.

use super::*;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::time::Instant;

const SLOW: Duration = Duration::from_secs(3600);

struct Run {
    _watching: Watching,
    rx: mpsc::Receiver<Event>,
}

fn start(dir: &Path, rescan: Duration) -> Run {
    let (tx, rx) = mpsc::channel(100);
    let stats = Arc::new(WatchStats::default());
    let mut run = Run { _watching: start_with(dir.into(), "n1".into(), tx, stats.clone(), rescan).unwrap(), rx };
    run.until("Listed(EndpointSlice)");
    assert!(WatchStats::KINDS[..4].iter().all(|kind| stats.of(*kind).is_listed()));
    run
}

fn short(event: &Event) -> String {
    match event {
        Event::Service(service) => format!("+{} {}", service.name.name, service.cluster_ips[0]),
        Event::ServiceGone(name) => format!("-{}", name.name),
        Event::Ignored { name, faults, .. } => format!("!{name} {}", faults.len()),
        other => format!("{other:?}"),
    }
}

impl Run {
    /// Every event until the one that is waited for.
    fn until(&mut self, wanted: &str) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut seen = Vec::new();
        while Instant::now() < deadline {
            match self.rx.try_recv() {
                Ok(event) => {
                    seen.push(short(&event));
                    if seen.last().is_some_and(|last| last == wanted) {
                        return seen;
                    }
                }
                Err(mpsc::error::TryRecvError::Empty) => std::thread::sleep(Duration::from_millis(2)),
                Err(error) => panic!("{error} before {wanted:?}; seen {seen:?}"),
            }
        }
        panic!("no {wanted:?} in time; seen {seen:?}");
    }
}

fn service(ip: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n")
}

#[test]
fn edits_renames_and_removals_are_seen_by_notice_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    let mut run = start(dir.path(), SLOW);
    std::fs::write(&file, service("10.0.0.1")).unwrap();
    run.until("+a 10.0.0.1");
    std::fs::write(&file, service("10.0.0.2")).unwrap();
    assert_eq!(run.until("+a 10.0.0.2"), ["+a 10.0.0.2"], "the moment in which the file was empty is not seen");
    let new = dir.path().join(".new");
    std::fs::write(&new, service("10.0.0.3")).unwrap();
    std::fs::rename(&new, &file).unwrap();
    assert_eq!(run.until("+a 10.0.0.3"), ["+a 10.0.0.3"]);
    // As vim saves: the old file is moved away, a new one is written under its name.
    std::fs::rename(&file, dir.path().join("a.yaml~")).unwrap();
    std::fs::write(&file, service("10.0.0.4")).unwrap();
    assert_eq!(run.until("+a 10.0.0.4"), ["+a 10.0.0.4"]);
    std::fs::write(&file, "kind: [\n").unwrap();
    assert_eq!(run.until("!a.yaml 1"), ["!a.yaml 1"]);
    std::fs::remove_file(&file).unwrap();
    run.until("-a");
}

#[test]
fn what_no_notice_tells_of_is_found_by_looking() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = elsewhere.path().join("target");
    std::fs::write(&target, service("10.0.0.1")).unwrap();
    symlink(&target, dir.path().join("a.yaml")).unwrap();
    let mut run = start(dir.path(), Duration::from_millis(50));
    std::fs::write(&target, service("10.0.0.2")).unwrap();
    run.until("+a 10.0.0.2");
}

#[test]
fn a_folder_that_goes_and_comes_back_loses_nothing_meanwhile() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, away) = (parent.path().join("dir"), parent.path().join("away"));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("a.yaml"), service("10.0.0.1")).unwrap();
    let mut run = start(&dir, Duration::from_millis(50));
    std::fs::rename(&dir, &away).unwrap();
    let name = dir.display();
    assert_eq!(run.until(&format!("!{name} 1")), [format!("!{name} 1")]);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("b.yaml"), service("10.0.0.2")).unwrap();
    let seen = run.until("+a 10.0.0.2");
    assert!(seen.contains(&format!("!{name} 0")), "{seen:?}");
    std::fs::write(dir.join("b.yaml"), service("10.0.0.3")).unwrap();
    run.until("+a 10.0.0.3");
}

#[test]
fn what_changes_while_the_folder_is_away_is_looked_at_when_it_is_back() {
    let parent = tempfile::tempdir().unwrap();
    let (above, away) = (parent.path().join("above"), parent.path().join("away"));
    let dir = above.join("dir");
    std::fs::create_dir_all(&dir).unwrap();
    let other = service("10.0.0.2").replace("name: a", "name: b");
    std::fs::write(dir.join("a.yaml"), service("10.0.0.1")).unwrap();
    std::fs::write(dir.join("b.yaml"), other).unwrap();
    let mut run = start(&dir, SLOW);
    // Nothing tells that the folder itself has gone, and that it is back: it is what is above it that moves.
    std::fs::rename(&above, &away).unwrap();
    std::fs::remove_file(away.join("dir/b.yaml")).unwrap();
    std::fs::write(away.join("dir/a.yaml"), service("10.0.0.3")).unwrap();
    // Both fall due meanwhile.
    std::thread::sleep(Duration::from_millis(500));
    std::fs::rename(&away, &above).unwrap();
    let mut seen = run.until("-b");
    if !seen.contains(&"+a 10.0.0.3".to_owned()) {
        seen.extend(run.until("+a 10.0.0.3"));
    }
    seen.sort();
    assert_eq!(seen, ["+a 10.0.0.3", "-b"]);
}

#[test]
fn what_is_no_file_is_told_at_the_start_too() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    rustix::fs::mknodat(rustix::fs::CWD, at("a.yaml"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    symlink("b.yaml", at("b.yaml")).unwrap();
    symlink("nothing", at("c.yaml")).unwrap();
    symlink("/dev/zero", at("d.yaml")).unwrap();
    std::fs::create_dir(at("e.yaml")).unwrap();
    let not_utf_8 = std::ffi::OsStr::from_bytes(b"f\xff.yaml");
    std::fs::write(dir.path().join(not_utf_8), service("10.0.0.1")).unwrap();
    std::fs::write(at("g.yaml"), service("10.0.0.2")).unwrap();
    let events = load_once(dir.path(), &"n1".into()).unwrap();
    let told: Vec<_> = events.iter().map(short).filter(|event| event.starts_with(['!', '+'])).collect();
    let names = ["+a 10.0.0.2", "!a.yaml 1", "!b.yaml 1", "!c.yaml 1", "!d.yaml 1", "!e.yaml 1", "!f\u{fffd}.yaml 1"];
    assert_eq!(told, names);
    // One that goes is told no more.
    let mut run = start(dir.path(), SLOW);
    for (name, told) in [(std::ffi::OsStr::new("c.yaml"), "!c.yaml 0"), (not_utf_8, "!f\u{fffd}.yaml 0")] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
        run.until(told);
    }
}

#[test]
fn a_folder_that_is_suddenly_empty_is_believed_when_it_stays_so() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, away) = (parent.path().join("dir"), parent.path().join("away"));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("a.yaml"), service("10.0.0.1")).unwrap();
    let mut run = start(&dir, Duration::from_millis(50));
    // As when a file system is mounted no more: under the name there is another folder.
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    let swap = || rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &away, exchange).unwrap();
    std::fs::create_dir(&away).unwrap();
    swap();
    let name = dir.display();
    assert_eq!(run.until(&format!("!{name} 1")), [format!("!{name} 1")]);
    swap();
    assert_eq!(run.until(&format!("!{name} 0")), [format!("!{name} 0")]);
    let gone = Instant::now();
    swap();
    run.until("-a");
    assert!(gone.elapsed() >= Duration::from_secs(8), "{:?}", gone.elapsed());
}

#[test]
fn a_folder_whose_files_are_all_deleted_is_believed_when_it_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c", "d"];
    let path = |name: &str| dir.path().join(format!("{name}.yaml"));
    for name in names {
        std::fs::write(path(name), service("10.0.0.1").replace("name: a", &format!("name: {name}"))).unwrap();
    }
    let mut run = start(dir.path(), SLOW);
    for name in names {
        std::fs::remove_file(path(name)).unwrap();
        // Each is noticed by itself.
        std::thread::sleep(Duration::from_millis(20));
    }
    let seen = run.until("-d");
    assert!(["-a", "-b", "-c"].iter().all(|gone| seen.iter().any(|one| one == gone)), "{seen:?}");
}

#[test]
fn it_ends_when_nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let run = start(dir.path(), SLOW);
    let Run { _watching: watching, rx } = run;
    drop(watching);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !rx.is_closed() && Instant::now() < deadline && rx.sender_strong_count() > 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(rx.sender_strong_count(), 0, "the thread has not let go of its channel");
}
