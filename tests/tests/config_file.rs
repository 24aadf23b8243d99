//! kube-proxy's configuration file on the binary: checked, written, read by every command, and followed while it changes.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kubeferry_tests::binary;
use kubeferry_tests::client::{DEADLINE, Running, until};
use kubeferry_tests::netns::Netns;
use tempfile::TempDir;

const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
const KUBEADM: &str = include_str!("../../proxy/tests-data/config/good/kubeadm.yaml");
const MANIFESTS: &str = "
apiVersion: v1
kind: Node
metadata: {name: worker-1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
";

/// A folder with objects, and one that a ConfigMap is mounted at, with links as the kubelet makes them.
struct World {
    folder: TempDir,
    versions: u32,
}

impl World {
    fn new(fields: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        fs::write(folder.path().join("manifests/cluster.yaml"), MANIFESTS).unwrap();
        fs::create_dir(folder.path().join("volume")).unwrap();
        let mut world = Self { folder, versions: 0 };
        world.mount(&format!("{HEADER}{fields}"));
        symlink("..data/config.conf", world.config()).unwrap();
        world
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("volume/config.conf")
    }

    /// Puts another version into the volume, as the kubelet does: a new folder, and a link that is renamed to `..data`.
    fn mount(&mut self, text: &str) {
        self.versions += 1;
        let volume = self.folder.path().join("volume");
        let version = format!("..2026_{}", self.versions);
        fs::create_dir(volume.join(&version)).unwrap();
        fs::write(volume.join(&version).join("config.conf"), text).unwrap();
        symlink(&version, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        if self.versions > 1 {
            fs::remove_dir_all(volume.join(format!("..2026_{}", self.versions - 1))).unwrap();
        }
    }

    fn change(&mut self, fields: &str) {
        self.mount(&format!("{HEADER}{fields}"));
    }

    /// `kubeferry COMMAND` with the objects and the configuration.
    fn command(&self, command: &str) -> Command {
        let mut line = Command::new(binary::path().unwrap());
        line.args([command, "--node-name", "worker-1", "--manifests"]).arg(self.folder.path().join("manifests"));
        line.arg("--config").arg(self.config()).env("NO_COLOR", "1").stdin(Stdio::null());
        line
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn start(&self, node: &Netns) -> Running {
        let mut run = self.command("run");
        run.stderr(File::create(self.log()).unwrap());
        Running::start_command(&mut run, node).unwrap()
    }

    /// Waits until the log says this, and returns the line.
    fn says(&self, what: &str) -> String {
        let line =
            || fs::read_to_string(self.log()).unwrap().lines().find(|line| line.contains(what)).map(str::to_owned);
        until(&format!("the log to say {what:?}"), line).unwrap_or_else(|error| {
            panic!("{error}\n{}", fs::read_to_string(self.log()).unwrap());
        })
    }

    fn count(&self, what: &str) -> usize {
        fs::read_to_string(self.log()).unwrap().matches(what).count()
    }
}

/// What the proxy answers at its metrics address.
fn get(node: &Netns, path: &str) -> String {
    let mut stream = node.run(|| TcpStream::connect("127.0.0.1:10249")).unwrap().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Waits until the table of the node says this.
fn table_has(node: &Netns, what: &str) {
    let table = || node.nft(&["list", "table", "inet", "kubeferry"], "").ok()?.contains(what).then_some(());
    until(&format!("the table to have {what:?}"), table).unwrap();
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn check(file: &Path, flags: &[&str]) -> (Option<i32>, String, String) {
    output(Command::new(binary::path().unwrap()).args(["config", "check"]).arg(file).args(flags))
}

const BIT_5: &str = "mode: nftables\nclusterCIDR: 10.244.0.0/16\nnftables: {masqueradeBit: 5}\n";

#[test]
fn a_changed_configmap_is_taken_over_and_a_bad_one_is_not() {
    let mut world = World::new("mode: nftables\nclusterCIDR: 10.244.0.0/16\n");
    let node = Netns::new("config").unwrap();
    let running = world.start(&node);
    table_has(&node, "0x00004000");

    world.change(BIT_5);
    let line = world.says("the configuration file changed: taken over");
    assert!(line.contains("masqueradeBit"), "{line}");
    table_has(&node, "0x00000020");
    let configz = get(&node, "/configz");
    assert!(configz.contains("\"MasqueradeBit\":5"), "{configz}");

    world.change("mode: nftables\nclusterCIDR: 10.244.0.0/16\nfeatureGates: {AllowServiceExternalIPs: false}\n");
    world.says("featureGates.AllowServiceExternalIPs = false: cannot be turned off");
    assert_eq!(world.count("is not taken over"), 1);
    world.change("mode: nftables\nclusterCIDR: wrong\nnftables: {masqueradeBit: 7, syncPeriod: 1}\n");
    let line = world.says("2 settings are wrong");
    assert!(line.contains("is not taken over") && line.contains("the settings in force stay"), "{line}");
    let ignored = || get(&node, "/api/v1/ignored");
    let told = || Some(ignored()).filter(|told| told.contains("the configuration file"));
    let told = until("what is refused to be told", told).unwrap();
    assert!(told.contains("2 settings are wrong") && told.contains("the next start will fail"), "{told}");
    fs::remove_file(world.config()).unwrap();
    world.says("No such file");
    symlink("..data/config.conf", world.config()).unwrap();
    world.says("can be read again");
    table_has(&node, "0x00000020");
    let log = fs::read_to_string(world.log()).unwrap();
    let said = log.lines().filter(|line| line.contains("is not taken over") && line.contains("settings are wrong"));
    assert_eq!(said.count(), 2, "the same text is said again only since it was away");
    let told =
        until("what is wrong again to be told", || Some(ignored()).filter(|told| told.contains("settings are wrong")));
    assert!(!told.unwrap().contains("No such file"));

    let plain = format!(
        "{HEADER}mode: iptables\nclusterCIDR: 10.245.0.0/16\niptables: {{masqueradeBit: 6, minSyncPeriod: 1ms}}\n"
    );
    world.mount(&format!("{plain}logging: {{verbosity: 6}}\n"));
    let line = world.says("minSyncPeriod");
    for name in ["mode", "clusterCIDR", "masqueradeBit", "nodePortAddresses", "logging.verbosity"] {
        assert!(line.contains(name), "{name} in {line}");
    }
    table_has(&node, "10.245.0.0/16");
    until("nothing to be refused", || (!ignored().contains("the configuration file")).then_some(())).unwrap();
    table_has(&node, "0x00000040");
    world.says("what is logged filter=info,kubeferry=trace");
    world.mount(&plain);
    let quiet = || (world.count("the configuration file changed: taken over") == 3).then_some(());
    until("the third change to be taken over", quiet).unwrap();
    assert!(running.stop().unwrap().success());
    assert_eq!(world.count("what is logged"), 1, "info again");
    assert_eq!(world.count("mode iptables: the datapath is nftables"), 1, "a warning is said once");
}

#[test]
fn whatever_needs_no_start_is_taken_over_by_the_process_that_runs() {
    let base = "mode: ipvs\nclusterCIDR: 10.244.0.0/16\n";
    let mut world = World::new(base);
    let node = Netns::new("config").unwrap();
    let running = world.start(&node);
    table_has(&node, "10.244.0.0/16");
    let pid = running.id();
    let changes = [
        ("mode: ipvs\ndetectLocalMode: NodeCIDR\n", "10.244.1.0/24"),
        ("mode: ipvs\ndetectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: br7}\n", "\"br7\""),
        ("mode: ipvs\nclusterCIDR: 10.245.0.0/16\nipvs: {scheduler: sh}\n", "10.245.0.0/16"),
    ];
    for (number, (fields, row)) in changes.into_iter().enumerate() {
        world.change(fields);
        let taken = || (world.count("the configuration file changed: taken over") > number).then_some(());
        until("the change to be taken over", taken).unwrap();
        let log = fs::read_to_string(world.log()).unwrap();
        let line = log.lines().rfind(|line| line.contains("the configuration file changed: taken over")).unwrap();
        assert!(line.contains("detectLocalMode"), "{line}");
        assert_eq!(line.contains("scheduler"), fields.contains("scheduler"), "{line}");
        table_has(&node, row);
    }
    // No row tells of these.
    world.change(&format!("{base}bindAddress: 192.0.2.1\nipvs: {{excludeCIDRs: [192.0.2.0/24], syncPeriod: 7s}}\n"));
    let line = world.says("ipvs.excludeCIDRs");
    assert!(["taken over", "bindAddress", "syncPeriod"].iter().all(|name| line.contains(name)), "{line}");
    let configz = get(&node, "/configz");
    assert!(configz.contains("\"BindAddress\":\"192.0.2.1\"") && configz.contains("\"7s\""), "{configz}");
    assert_eq!(running.id(), pid);
    assert!(running.stop().unwrap().success());
}

#[test]
fn a_file_that_would_take_for_ever_to_read_or_is_none_holds_nothing_up() {
    let mut world = World::new("mode: nftables\nclusterCIDR: 10.244.0.0/16\n");
    let node = Netns::new("bomb").unwrap();
    let running = world.start(&node);
    table_has(&node, "0x00004000");
    world.change(&format!("x: {}", "[".repeat(200_000)));
    let told = || get(&node, "/api/v1/ignored").contains("brackets open").then_some(());
    until("the file to be refused", told).unwrap();
    // Services are followed all the same.
    let more = MANIFESTS.replace("nodePort: 30080", "nodePort: 30081");
    fs::write(world.folder.path().join("manifests/cluster.yaml"), more).unwrap();
    table_has(&node, "30081");
    // A pipe that nobody writes to.
    fs::remove_file(world.config()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, world.config(), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    world.says("it is no regular file");
    fs::remove_file(world.config()).unwrap();
    world.change(BIT_5);
    symlink("..data/config.conf", world.config()).unwrap();
    table_has(&node, "0x00000020");
    assert!(running.stop().unwrap().success(), "and it ends when it is told to");
}

#[test]
fn an_edited_file_is_noticed_however_it_is_written() {
    let world = World::new("");
    let path = world.folder.path().join("plain.conf");
    let text =
        |bit: u32| format!("{HEADER}mode: nftables\nclusterCIDR: 10.244.0.0/16\nnftables: {{masqueradeBit: {bit}}}\n");
    fs::write(&path, text(5)).unwrap();
    let node = Netns::new("edited").unwrap();
    let mut run = world.command("run");
    run.arg("--config").arg(&path).stderr(File::create(world.log()).unwrap());
    let running = Running::start_command(&mut run, &node).unwrap();
    table_has(&node, "0x00000020");
    fs::write(&path, text(6)).unwrap();
    table_has(&node, "0x00000040");
    let new = world.folder.path().join("plain.new");
    fs::write(&new, text(7)).unwrap();
    fs::rename(&new, &path).unwrap();
    table_has(&node, "0x00000080");
    assert_eq!(world.count("taken over"), 2);
    assert!(running.stop().unwrap().success());
}

#[test]
fn what_only_a_start_takes_ends_the_process_with_code_3_and_leaves_the_rules() {
    let mut world = World::new(BIT_5);
    let node = Netns::new("restart").unwrap();
    let mut running = world.start(&node);
    table_has(&node, "0x00000020");
    world.change(
        "mode: nftables\nclusterCIDR: 10.244.0.0/16\nnftables: {masqueradeBit: 6}\nmetricsBindAddress: 127.0.0.1:9999\n\
         oomScoreAdj: -998\n",
    );
    assert_eq!(running.ended().unwrap().code(), Some(3));
    let line = world.says("settings that only a start takes");
    assert!(line.contains("metricsBindAddress, oomScoreAdj"), "{line}");
    table_has(&node, "0x00000020");
    let _running = world.start(&node);
    table_has(&node, "0x00000040");
}

#[test]
fn a_file_is_checked_by_a_command_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.conf");
    fs::write(&path, KUBEADM).unwrap();
    let (code, said, warnings) = check(&path, &["--hostname-override=worker-1"]);
    assert_eq!(code, Some(0), "{warnings}");
    assert_eq!(warnings.lines().count(), 3, "{warnings}");
    assert!(warnings.lines().all(|line| line.starts_with("warning: ")), "{warnings}");
    assert!(said.starts_with("# beside the file: node=worker-1 backend=nftables scheduler=random"), "{said}");
    for line in ["mode: iptables", "clusterCIDR: 10.244.0.0/16", "nodePortAddresses: null", "  maxPerCore: 32768"] {
        assert!(said.contains(&format!("\n{line}\n")), "{line} in {said}");
    }
    // A flag that the file has a field for is ignored here as it is by `run`.
    let (code, _, warnings) = check(&path, &["--cluster-cidr=10.0.0.0/8"]);
    assert!(code == Some(0) && warnings.contains("--cluster-cidr is ignored beside --config"), "{warnings}");

    fs::write(&path, format!("{HEADER}mode: magic\noomScoreAdj: 5000\nclusterCIDR: 10.0.0.0/40\nnoSuch: 1\n")).unwrap();
    let (code, said, errors) = check(&path, &[]);
    assert_eq!((code, said.as_str()), (Some(1), ""));
    for part in ["3 settings are wrong", "mode = \"magic\": must be", "oomScoreAdj = 5000: must be", "clusterCIDR = "] {
        assert!(errors.contains(part), "{part} in {errors}");
    }
    assert!(errors.lines().any(|line| line.starts_with("warning: ") && line.contains("noSuch")), "{errors}");
    let (code, _, errors) = check(&folder.path().join("none"), &[]);
    assert!(code == Some(2) && errors.contains("No such file"), "{errors}");
    let wide = format!("{HEADER}x: &a [{}]\ny: [{}]\n", "1,".repeat(3000), "*a,".repeat(3000));
    fs::write(&path, wide).unwrap();
    let (code, _, errors) = check(&path, &[]);
    assert!(code == Some(1) && errors.contains("aliases come to more than"), "{errors}");
    let (code, _, errors) = check(Path::new("/dev/zero"), &[]);
    assert!(code == Some(2) && errors.contains("larger than 1 MiB"), "{errors}");
    // What another program writes is taken, too.
    let piped = format!("printf '{}' | \"$0\" config check /dev/stdin", HEADER.replace('\n', "\\n"));
    let (code, said, errors) = output(Command::new("sh").args(["-c", &piped]).arg(binary::path().unwrap()));
    assert!(code == Some(0) && said.contains("kind: KubeProxyConfiguration"), "{errors}");
}

#[test]
fn the_configuration_in_force_is_written_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("written.yaml");
    let flags = ["--proxy-mode=ipvs", "--cluster-cidr=10.244.0.0/16", "--ipvs-scheduler=wrr", "--ipvs-strict-arp"];
    let mut run = Command::new(binary::path().unwrap());
    run.args(["run", "--write-config-to"]).arg(&path).args(flags).args(["--conntrack-min=5", "--masquerade-all"]);
    let (code, _, log) = output(&mut run);
    assert_eq!(code, Some(0), "{log}");
    let written = fs::read_to_string(&path).unwrap();
    for line in ["mode: ipvs", "  scheduler: wrr", "  strictARP: true", "  min: 5", "  masqueradeAll: true"] {
        assert!(written.contains(&format!("\n{line}\n")), "{line} in {written}");
    }
    let (code, said, _) = check(&path, &[]);
    assert_eq!((code, said.split_once('\n').unwrap().1), (Some(0), written.as_str()));
    let (code, _, log) = output(Command::new(binary::path().unwrap()).args(["run", "--write-config-to", "/nowhere/x"]));
    assert!(code == Some(1) && log.contains("--write-config-to /nowhere/x"), "{log}");
}

#[test]
fn run_plan_and_trace_read_the_mode_alike() {
    for (fields, second, mark) in [
        ("clusterCIDR: 10.244.0.0/16\niptables: {masqueradeBit: 5}\n", true, "0x00000020"),
        ("mode: iptables\nclusterCIDR: 10.244.0.0/16\niptables: {masqueradeBit: 6}\n", true, "0x00000040"),
        ("mode: ipvs\nclusterCIDR: 10.244.0.0/16\niptables: {masqueradeBit: 7}\n", true, "0x00000080"),
        ("mode: nftables\nclusterCIDR: 10.244.0.0/16\nnftables: {masqueradeBit: 8}\n", false, "0x00000100"),
    ] {
        let world = World::new(fields);
        // An address that is not the primary one.
        let mut trace = world.command("trace");
        trace.args([
            "--node-addresses",
            "192.0.2.1,192.0.2.2",
            "--from",
            "198.51.100.7",
            "--to",
            "tcp:192.0.2.2:30080",
        ]);
        let (code, said, log) = output(trace.args(["--output", "json"]));
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(said.contains("10.244.1.1:8080"), second, "{fields}: {said}");
        let (code, said, log) = output(&mut world.command("plan"));
        assert!(code == Some(0) && said.contains(mark), "{fields}: {log}");
        assert_eq!(log.contains("warning: mode"), second, "{log}");
        let node = Netns::new("modes").unwrap();
        let once = node.output(world.command("run").arg("--once"), "").unwrap();
        let log = String::from_utf8_lossy(&once.stderr);
        assert!(once.status.success() && log.contains("the datapath is nftables") == second, "{log}");
        table_has(&node, mark);
    }
}
