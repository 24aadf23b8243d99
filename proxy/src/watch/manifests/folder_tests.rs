use super::*;

/// A folder on disk, its index, and the events in short.
struct Bench {
    dir: tempfile::TempDir,
    folder: Folder,
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n---\n"
    )
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().into(), "n1".into());
        Self { dir, folder }
    }

    fn write(&mut self, file: &str, text: &str) -> Vec<String> {
        std::fs::write(self.dir.path().join(file), text).unwrap();
        self.update(&[file])
    }

    fn remove(&mut self, file: &str) -> Vec<String> {
        std::fs::remove_file(self.dir.path().join(file)).unwrap();
        self.update(&[file])
    }

    fn update(&mut self, files: &[&str]) -> Vec<String> {
        let mut seen = Vec::new();
        let root = format!("{}/", self.dir.path().display());
        self.folder.update(files.iter().map(|file| Arc::from(*file)), &mut |event| {
            seen.push(match event {
                Event::Service(service) => format!("+{} {}", service.name, service.cluster_ips[0]),
                Event::ServiceGone(name) => format!("-{name}"),
                Event::Ignored { name, faults, .. } => {
                    let faults: Vec<_> = faults.iter().map(|fault| fault.to_string().replace(&root, "")).collect();
                    format!("!{name} [{}]", faults.join("; "))
                }
                other => format!("{other:?}"),
            });
        });
        seen
    }
}

#[test]
fn files_come_change_and_go() {
    let mut bench = Bench::new();
    let two = service("a", "10.0.0.1") + &service("b", "10.0.0.2");
    assert_eq!(bench.write("1.yaml", &two), ["+default/a 10.0.0.1", "+default/b 10.0.0.2"]);
    assert_eq!(bench.write("1.yaml", &two), Vec::<String>::new());
    let changed = service("b", "10.0.0.3") + &service("c", "10.0.0.4");
    assert_eq!(bench.write("1.yaml", &changed), ["+default/b 10.0.0.3", "+default/c 10.0.0.4", "-default/a"]);
    assert_eq!(bench.remove("1.yaml"), ["-default/b", "-default/c"]);
    assert!(bench.folder.files.is_empty());
}

#[test]
fn a_file_that_does_not_parse_keeps_its_last_good_content() {
    let mut bench = Bench::new();
    bench.write("1.yaml", &service("a", "10.0.0.1"));
    let broken = bench.write("1.yaml", "kind: Service\n  bad: [\n");
    assert_eq!(broken.len(), 1);
    assert!(broken[0].starts_with("!1.yaml [1.yaml:2: does not parse: "), "{broken:?}");
    assert!(broken[0].contains("last good content"), "{broken:?}");
    assert_eq!(bench.write("1.yaml", &service("a", "10.0.0.1")), ["!1.yaml []"], "what was in force is not sent again");
    let not_text = {
        std::fs::write(bench.dir.path().join("1.yaml"), b"a: 1\nb: \xff\n").unwrap();
        bench.update(&["1.yaml"])
    };
    assert!(not_text[0].starts_with("!1.yaml [1.yaml:2: does not parse: it is not UTF-8 text"), "{not_text:?}");
    assert_eq!(bench.remove("1.yaml"), ["-default/a", "!1.yaml []"]);
}

#[test]
fn a_file_that_a_full_disk_emptied_keeps_its_last_good_content() {
    let mut bench = Bench::new();
    bench.write("1.yaml", &service("a", "10.0.0.1"));
    assert_eq!(bench.write("1.yaml", ""), ["!1.yaml [1.yaml: is empty; its last good content stays in force]"]);
    assert_eq!(bench.write("1.yaml", &service("a", "10.0.0.1")), ["!1.yaml []"]);
    bench.write("1.yaml", "");
    assert_eq!(bench.write("1.yaml", "# nothing, and on purpose\n"), ["-default/a", "!1.yaml []"]);
    bench.write("1.yaml", &service("a", "10.0.0.1"));
    assert_eq!(bench.remove("1.yaml"), ["-default/a"]);
}

#[test]
fn the_first_file_by_name_has_the_object_and_the_next_takes_over() {
    let mut bench = Bench::new();
    assert_eq!(bench.write("2.yaml", &service("a", "10.0.0.2")), ["+default/a 10.0.0.2"]);
    assert_eq!(
        bench.write("3.yaml", &service("a", "10.0.0.3")),
        ["!3.yaml [3.yaml:1: Service default/a ignored: 2.yaml has it too and comes first]"]
    );
    assert_eq!(
        bench.write("1.yaml", &service("a", "10.0.0.1")),
        [
            "+default/a 10.0.0.1",
            "!2.yaml [2.yaml:1: Service default/a ignored: 1.yaml has it too and comes first]",
            "!3.yaml [3.yaml:1: Service default/a ignored: 1.yaml has it too and comes first]"
        ]
    );
    assert_eq!(
        bench.remove("1.yaml"),
        [
            "+default/a 10.0.0.2",
            "!2.yaml []",
            "!3.yaml [3.yaml:1: Service default/a ignored: 2.yaml has it too and comes first]"
        ]
    );
    assert_eq!(bench.remove("2.yaml"), ["+default/a 10.0.0.3", "!3.yaml []"]);
    assert_eq!(bench.remove("3.yaml"), ["-default/a"]);
    assert!(bench.folder.waiting.is_empty() && bench.folder.holders.is_empty());
}

#[test]
fn an_object_that_moves_between_files_is_never_gone() {
    let mut bench = Bench::new();
    bench.write("1.yaml", &service("a", "10.0.0.1"));
    std::fs::rename(bench.dir.path().join("1.yaml"), bench.dir.path().join("2.yaml")).unwrap();
    assert_eq!(bench.update(&["1.yaml", "2.yaml"]), Vec::<String>::new());
}

#[test]
fn twice_in_one_file_is_a_fault() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.write("1.yaml", &(service("a", "10.0.0.1") + &service("a", "10.0.0.2"))),
        [
            "+default/a 10.0.0.1",
            "!1.yaml [1.yaml:6: Service default/a ignored: it is in this file twice, first in line 1]"
        ]
    );
}

#[test]
fn the_faults_of_an_object_are_its_own() {
    let mut bench = Bench::new();
    let text = service("a", "10.0.0.1").replace("port: 80", "port: 0");
    assert_eq!(
        bench.write("1.yaml", &text),
        [
            "+default/a 10.0.0.1",
            "!default/a [Service default/a (1.yaml:1): port \"\" ignored: 0 is not a port number (1 to 65535)]"
        ]
    );
    assert_eq!(bench.write("1.yaml", &service("a", "10.0.0.1")), ["+default/a 10.0.0.1", "!default/a []"]);
}

#[test]
fn a_link_whose_target_goes_keeps_its_last_good_content_until_it_goes_too() {
    let mut bench = Bench::new();
    let link = bench.dir.path().join("1.yaml");
    std::fs::write(bench.dir.path().join(".target"), service("a", "10.0.0.1")).unwrap();
    std::os::unix::fs::symlink(".target", &link).unwrap();
    assert_eq!(bench.update(&["1.yaml"]), ["+default/a 10.0.0.1"]);
    std::fs::remove_file(bench.dir.path().join(".target")).unwrap();
    let told = "!1.yaml [1.yaml: is a link to nothing; its last good content stays in force]";
    assert_eq!(bench.update(&["1.yaml"]), [told]);
    std::fs::remove_file(&link).unwrap();
    assert_eq!(bench.update(&["1.yaml"]), ["-default/a", "!1.yaml []"]);
}

/// A folder that is emptied between a look at the whole of it and the reading of its files.
#[test]
fn a_file_that_is_missed_but_not_believed_to_be_gone_stays() {
    let mut bench = Bench::new();
    assert_eq!(bench.write("a.yaml", &service("web", "10.0.0.1")), ["+default/web 10.0.0.1"]);
    std::fs::remove_file(bench.dir.path().join("a.yaml")).unwrap();
    let file: Arc<str> = "a.yaml".into();
    let mut asked = Vec::new();
    let mut not_yet = |held| {
        asked.push(held);
        false
    };
    let (_, doubted) = bench.folder.update_if([file.clone()], &mut not_yet, &mut |event| {
        assert!(!matches!(event, Event::ServiceGone(_)), "{event:?}");
    });
    assert_eq!((doubted, asked), (vec![file], vec![1]));
    assert_eq!(bench.update(&["a.yaml"]), ["-default/web"]);
}
