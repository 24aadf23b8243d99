//! Two proxies in one network namespace, as a rolling update with surge starts them: the second waits for the first's end.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kubeferry_tests::apiserver::{ApiServer, Fault};
use kubeferry_tests::binary;
use kubeferry_tests::bpf::Places;
use kubeferry_tests::client::{Running, until};
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::netns::Netns;
use rustix::thread::{Uid, set_thread_res_uid};
use tempfile::TempDir;

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1]}
cluster-cidr: [10.244.0.0/16]
";
/// The bits that the masquerade mark has by default, and with `--iptables-masquerade-bit 5`.
const MARKS: [&str; 2] = ["0x00004000", "0x00000020"];

const ESTABLISHED: &str = "net/netfilter/nf_conntrack_tcp_timeout_established";

struct World {
    node: Netns,
    source: Source,
    logs: TempDir,
}

impl World {
    fn new() -> Self {
        let node = Node::parse(NODE).unwrap();
        let case = Case { name: "two proxies".into(), node, steps: Vec::new() };
        let source = Source::new(&case).unwrap();
        let world = Self { node: Netns::new("node").unwrap(), source, logs: tempfile::tempdir().unwrap() };
        world.services(1);
        world
    }

    /// Writes this many Services, at 10.96.0.1 and up.
    fn services(&self, count: u8) {
        let service = |number: u8| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: web-{number}}}\n\
                 spec: {{clusterIP: 10.96.0.{number}, ports: [{{port: 80}}]}}\n---\n\
                 apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: web-{number}, labels: {{kubernetes.io/service-name: web-{number}}}}}\n\
                 addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{{addresses: [10.244.1.1]}}]\n"
            )
        };
        let manifests: Vec<_> = (1..=count).map(service).collect();
        let manifests = with_node(&Node::parse(NODE).unwrap(), &manifests.join("---\n")).unwrap();
        self.source.write(&Step { manifests, rows: Vec::new() }).unwrap();
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.path().join(name)
    }

    /// Starts a proxy that logs to a file of this name.
    fn start(&self, name: &str, flags: &[&str]) -> Running {
        let mut command = self.source.command("run").unwrap();
        command.args(flags).env("NO_COLOR", "1").stderr(File::create(self.log(name)).unwrap());
        Running::start_command(&mut command, &self.node).unwrap()
    }

    fn says(&self, name: &str, what: &str) {
        let said = || std::fs::read_to_string(self.log(name)).unwrap().contains(what).then_some(());
        until(&format!("{name} to log {what:?}"), said).unwrap();
    }

    /// Waits until the table has the Service of this number.
    fn has(&self, number: u8) {
        let key = format!("{{ 10.96.0.{number} . tcp . 80 }}");
        let row = || self.node.nft(&["get", "element", "inet", "kubeferry", "frontends4", &key], "").ok();
        until(&format!("the row of Service web-{number}"), row).unwrap();
    }

    /// Which marks the table has.
    fn marks(&self) -> [bool; 2] {
        let table = self.node.nft(&["list", "table", "inet", "kubeferry"], "").unwrap();
        MARKS.map(|mark| table.contains(mark))
    }
}

#[test]
fn cleanup_refuses_beside_a_proxy() {
    let world = World::new();
    let first = world.start("first", &[]);
    world.has(1);
    let cleanup = || {
        let mut command = Command::new(binary::path().unwrap());
        world.node.output(command.arg("cleanup").stdin(Stdio::null()), "").unwrap()
    };
    let output = cleanup();
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let why = format!("nothing was removed: another kubeferry run (process {})", first.id());
    assert!(said.contains(&why) && output.stdout.is_empty(), "{output:?}");
    world.has(1);
    assert!(first.stop().unwrap().success());
    let output = cleanup();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("removed table inet kubeferry\n"), "{output:?}");
}

#[test]
fn a_second_proxy_waits_for_the_first_to_end_however_it_does() {
    for killed in [false, true] {
        let world = World::new();
        let first = world.start("first", &[]);
        world.has(1);
        assert_eq!(world.marks(), [true, false]);

        let others = ["--iptables-masquerade-bit", "5", "--conntrack-tcp-timeout-established", "1h"];
        let second = world.start("second", &others);
        world.says("second", &format!("process {}", first.id()));
        let mut once = world.source.command("run").unwrap();
        let once = world.node.output(once.arg("--once").args(others), "").unwrap();
        let complaint = String::from_utf8_lossy(&once.stderr);
        assert_eq!(once.status.code(), Some(1), "{complaint}");
        let last = complaint.lines().last().unwrap();
        assert!(last.starts_with("kubeferry: ") && last.contains(&format!("process {}", first.id())), "{complaint}");
        // A change is for the first alone.
        world.services(2);
        world.has(2);
        assert_eq!(world.marks(), [true, false], "the first serves");
        assert_eq!(world.node.read_sysctl(ESTABLISHED).unwrap(), "86400", "the node is set up as the first wants it");

        let third = world.start("third", &[]);
        world.says("third", &format!("process {}", first.id()));
        assert!(third.stop().unwrap().success(), "whoever waits ends by SIGTERM");
        if killed {
            drop(first);
        } else {
            assert!(first.stop().unwrap().success());
        }
        world.says("second", "taking over");
        until("the second's table", || (world.marks() == [false, true]).then_some(())).unwrap();
        assert_eq!(world.node.read_sysctl(ESTABLISHED).unwrap(), "3600");
        world.services(3);
        world.has(3);
        drop(second);
    }
}

#[test]
fn a_second_proxy_that_could_not_serve_ends_and_the_first_goes_on() {
    let world = World::new();
    let first = world.start("first", &[]);
    world.has(1);
    let complains = |command: &mut Command, what: &str| {
        let output = world.node.output(command.env("NO_COLOR", "1").stdin(Stdio::null()), "").unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("could not serve") && log.contains(what), "{what} in {log}");
    };
    // What answers with its version, and takes nothing.
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("nft");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'nftables v1.0.6 (Lester Gooch #5)'; exit 0; }\necho broken >&2; exit 1\n";
    fs::write(&broken, script).unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    complains(world.source.command("run").unwrap().env("PATH", path), "nft refused: broken");
    // Programs that it has no right to load.
    let places = Places::new().unwrap();
    let mut ebpf = world.source.command("run").unwrap();
    places.apply(&mut ebpf);
    let mut powerless = Command::new("setpriv");
    powerless.args(["--bounding-set", "-bpf,-perfmon,-sys_admin", "--inh-caps", "-bpf,-perfmon,-sys_admin"]);
    complains(powerless.arg("--").arg(ebpf.get_program()).args(ebpf.get_args()), "CAP_BPF");
    // An API server that refuses it.
    let server = world.node.run(ApiServer::start).unwrap().unwrap();
    server.fault(Fault::Status(403, usize::MAX));
    let mut refused = Command::new(binary::path().unwrap());
    refused.arg("run").args(Node::parse(NODE).unwrap().flags()).args(["--server", &server.url()]);
    complains(&mut refused, "the API server refuses services (403)");
    // With all that it needs, each datapath waits, having left nothing behind.
    ebpf.env("NO_COLOR", "1").stderr(File::create(world.log("ebpf")).unwrap());
    let waiting = [Running::start_command(&mut ebpf, &world.node).unwrap(), world.start("nftables", &[])];
    for name in ["ebpf", "nftables"] {
        world.says(name, "waiting until it ends");
    }
    assert_eq!(world.node.nft(&["list", "tables"], "").unwrap().trim(), "table inet kubeferry");
    assert!(places.pins().unwrap().is_empty());
    world.services(2);
    world.has(2);
    for one in waiting {
        assert!(one.stop().unwrap().success());
    }
    assert!(first.stop().unwrap().success());
}

#[test]
fn the_datapaths_take_one_lock() {
    let world = World::new();
    let places = [Places::new().unwrap(), Places::new().unwrap()];
    let ebpf = |name: &str, places: &Places| {
        let mut command = world.source.command("run").unwrap();
        places.apply(&mut command);
        command.env("NO_COLOR", "1").stderr(File::create(world.log(name)).unwrap());
        Running::start_command(&mut command, &world.node).unwrap()
    };
    let tables = || world.node.nft(&["list", "tables"], "").unwrap();
    let has_programs = |places: &Places| (!places.pins().unwrap().is_empty()).then_some(());
    let first = ebpf("first", &places[0]);
    until("the first's programs", || has_programs(&places[0])).unwrap();
    let second = world.start("second", &["--bpffs-root", places[0].bpffs().to_str().unwrap()]);
    world.says("second", &format!("process {}", first.id()));
    assert!(!tables().contains("table inet kubeferry\n"), "the second writes nothing: {}", tables());
    assert!(first.stop().unwrap().success());
    world.says("second", "taking over");
    world.has(1);
    // And the other way round.
    let third = ebpf("third", &places[1]);
    world.says("third", &format!("process {}", second.id()));
    world.services(2);
    world.has(2);
    assert!(places[1].pins().unwrap().is_empty(), "the third loads nothing");
    drop(second);
    world.says("third", "taking over");
    until("the third's programs", || has_programs(&places[1])).unwrap();
    drop(third);
}

#[test]
fn a_name_that_another_user_took_does_not_hold_a_proxy_up() {
    let world = World::new();
    let bind = || {
        let nobody = Uid::from_raw(65534);
        // Of this thread alone, which ends here.
        set_thread_res_uid(None, nobody, None).unwrap();
        UnixListener::bind_addr(&SocketAddr::from_abstract_name("kubeferry/nftables").unwrap()).unwrap()
    };
    let _taken = world.node.run(bind).unwrap();
    let mut once = world.source.command("run").unwrap();
    let output = world.node.output(once.arg("--once").stdin(Stdio::null()), "").unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("of user 65534") && log.contains(&format!("process {}", std::process::id())), "{log}");
    world.has(1);
}
