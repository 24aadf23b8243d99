//! The life of the eBPF datapath's state: maps, programs and attachments that outlive the process.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::ops::Deref;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kubeferry_tests::binary;
use kubeferry_tests::bpf::Places;
use kubeferry_tests::client::{Connection, Running, ask_once, datagrams, until, until_for};
use kubeferry_tests::web::{MANIFESTS, Web};

mod by_packet;
mod datagrams_that_go_on;
mod kept_whole;
mod leaving;
mod limits;
mod passing_by;
mod restarting;
mod taken_ports;
mod whole_sums;

struct Cluster {
    places: Places,
    web: Web,
}

impl Deref for Cluster {
    type Target = Web;

    fn deref(&self) -> &Web {
        &self.web
    }
}

impl Cluster {
    fn build() -> Self {
        Self { places: Places::new().unwrap(), web: Web::build().unwrap() }
    }

    fn start(&self) -> Running {
        let mut command = self.source.command("run").unwrap();
        Running::start_command(self.places.apply(&mut command), &self.hosts.node).unwrap()
    }

    /// `run --once`: what it logged.
    fn once(&self, change: impl FnOnce(&mut Command)) -> Result<String, String> {
        let mut command = self.source.command("run").unwrap();
        self.places.apply(&mut command).arg("--once").stdin(Stdio::null());
        change(&mut command);
        let output = self.hosts.node.output(&mut command, "").unwrap();
        let log = String::from_utf8_lossy(&output.stderr).to_string();
        if output.status.success() { Ok(log) } else { Err(log) }
    }

    fn status(&self) -> Option<String> {
        let mut command = Command::new(binary::path().unwrap());
        let output = self.hosts.node.output(command.arg("status"), "").unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).to_string())
    }

    fn cleanup(&self) -> Output {
        let mut command = Command::new(binary::path().unwrap());
        command.arg("cleanup").arg("--bpffs-root").arg(self.places.bpffs());
        self.hosts.node.output(&mut command, "").unwrap()
    }

    /// The index of an interface of the node.
    fn index(&self, interface: &str) -> u32 {
        let mut command = Command::new("ip");
        command.args(["-o", "link", "show", "dev", interface]);
        let output = self.hosts.node.output(&mut command, "").unwrap();
        String::from_utf8_lossy(&output.stdout).split(':').next().unwrap().parse().unwrap()
    }

    /// Whether both programs are at an interface: as TCX links, or as filters of clsact before Linux 6.6.
    fn is_attached(&self, interface: &str) -> bool {
        let (pins, index) = (self.places.pins().unwrap(), self.index(interface));
        let filter = |hook: &str| {
            let mut command = Command::new("tc");
            command.args(["filter", "show", "dev", interface, hook]);
            let output = self.hosts.node.output(&mut command, "").unwrap();
            String::from_utf8_lossy(&output.stdout).contains(&format!("tc_{hook}"))
        };
        ["ingress", "egress"].iter().all(|hook| pins.contains(&format!("links/tc_{hook}-{index}")) || filter(hook))
    }
}

fn with(command: &mut Command, arguments: &[&str]) {
    command.args(arguments);
}

#[test]
fn a_device_that_comes_is_covered_and_one_that_goes_leaves_nothing() {
    let cluster = Cluster::build();
    let _running = cluster.start();
    drop(cluster.until_served().unwrap());
    cluster.hosts.node.ip(&["link add late type veth peer name later"]).unwrap();
    let index = cluster.index("late");
    until("the programs on a new device", || cluster.is_attached("late").then_some(())).unwrap();
    let status = until("the status", || cluster.status()).unwrap();
    assert!(status.contains("late") && (status.contains("TCX") || status.contains("clsact")), "{status}");
    cluster.hosts.node.ip(&["link del late"]).unwrap();
    let gone = || {
        let pins = cluster.places.pins().unwrap();
        (!pins.iter().any(|pin| pin.ends_with(&format!("-{index}")))).then_some(())
    };
    until("the pins of the device to go", gone).unwrap();
}

#[test]
fn the_plan_names_every_row_and_what_would_change() {
    let cluster = Cluster::build();
    let plan = |arguments: &[&str]| {
        let mut command = cluster.source.command("plan").unwrap();
        let output = cluster.hosts.node.output(cluster.places.apply(&mut command).args(arguments), "").unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).to_string()
    };
    let whole = plan(&[]);
    for line in [
        "config detector-ipv4 ",
        "default/web:tcp (tcp IPv4)",
        "  frontend tcp:10.96.0.10:80\n  cluster 10.244.1.1:8080 10.244.1.2:8080\n",
        "address 10.96.0.10 cluster-ip\n",
    ] {
        assert!(whole.contains(line), "{line:?} is not in:\n{whole}");
    }
    assert!(plan(&["--output", "json"]).contains("\"10.244.1.2:8080\""));
    assert!(plan(&["--diff"]).starts_with("write everything"));
    cluster.once(|_| ()).unwrap();
    assert_eq!(plan(&["--diff"]), "");
    cluster.write(&MANIFESTS.replace("10.96.0.10", "10.96.0.11")).unwrap();
    let changes = plan(&["--diff"]);
    for line in ["- frontend tcp:10.96.0.10:80\n", "+ frontend tcp:10.96.0.11:80 ", "- address 10.96.0.10\n"] {
        assert!(changes.contains(line), "{line:?} is not in:\n{changes}");
    }
}

#[test]
fn uplinks_are_carried_at_xdp_where_asked_for() {
    let cluster = Cluster::build();
    cluster.once(|command| with(command, &["--xdp", "native", "--xdp-devices", "client"])).unwrap();
    let pin = format!("links/xdp_uplink-{}", cluster.index("client"));
    assert!(cluster.places.pins().unwrap().contains(&pin), "a veth's driver can");
    drop(cluster.until_served().unwrap());
    cluster.once(|command| with(command, &["--xdp", "off"])).unwrap();
    assert!(!cluster.places.pins().unwrap().contains(&pin));
    cluster.once(|command| with(command, &["--xdp-devices", "lo"])).unwrap();
}

#[test]
fn what_is_detached_or_deleted_is_healed() {
    let cluster = Cluster::build();
    let _running = cluster.start();
    drop(cluster.until_served().unwrap());
    let index = cluster.index("client");
    for hook in ["ingress", "egress"] {
        let pin = cluster.places.bpffs().join(format!("kubeferry/links/tc_{hook}-{index}"));
        if pin.exists() {
            std::fs::remove_file(pin).unwrap();
        } else {
            let mut command = Command::new("tc");
            command.args(["filter", "del", "dev", "client", hook]);
            assert!(cluster.hosts.node.output(&mut command, "").unwrap().status.success());
        }
    }
    until("the programs to be attached again", || cluster.is_attached("client").then_some(())).unwrap();
    drop(cluster.until_served().unwrap());
}

/// How many entries of connections the last sweep has left.
fn flows(cluster: &Cluster) -> Option<u64> {
    let mut command = Command::new(binary::path().unwrap());
    let output = cluster.hosts.node.output(command.args(["status", "--output", "json"]), "").unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    status["rows"]["flows"].as_u64()
}

#[test]
fn connections_that_are_over_are_swept() {
    let cluster = Cluster::build();
    let _running = cluster.start();
    let mut kept = cluster.until_served().unwrap();
    for _ in 0..20 {
        Connection::open(cluster.client(), cluster.vip()).unwrap().ask().unwrap();
    }
    let flows = || flows(&cluster);
    until("a sweep that has met the connections", || flows().filter(|flows| *flows >= 40)).unwrap();
    let metrics = cluster
        .hosts
        .node
        .run(|| kubeferry::status::get("http://127.0.0.1:10249/metrics", Duration::from_secs(10)).unwrap().body);
    let metrics = metrics.unwrap();
    let connected = metrics
        .lines()
        .find_map(|line| line.strip_prefix("kubeferry_ebpf_packets_total{reason=\"connected\"} ")?.parse::<u64>().ok());
    assert!(connected.is_some_and(|connected| connected >= 21), "{metrics}");
    // What is left is the one connection that is open.
    let gone = || flows().filter(|flows| *flows == 2);
    until_for(Duration::from_secs(120), "the closed connections to be gone", gone).unwrap();
    kept.ask().unwrap();
}

#[test]
fn datagrams_leave_an_endpoint_that_is_gone() {
    let cluster = Cluster::build();
    let _running = cluster.start();
    drop(cluster.until_served().unwrap());
    let socket = datagrams(cluster.client(), cluster.vip()).unwrap();
    let (before, _) = until("a datagram's answer", || ask_once(&socket).unwrap()).unwrap();
    let gone = if before == "web1" { "10.244.1.1" } else { "10.244.1.2" };
    let gone = format!("{{addresses: [{gone}], nodeName: worker-1}}");
    cluster.write(&MANIFESTS.replace(&format!("{gone}, "), "").replace(&format!(", {gone}"), "")).unwrap();
    let other = || ask_once(&socket).unwrap().filter(|(name, _)| *name != before);
    until("another endpoint's answer", other).unwrap();
}

#[test]
fn datagrams_leave_an_address_that_the_node_has_lost() {
    let cluster = Cluster::build();
    let mut command = cluster.source.command("run").unwrap();
    cluster.places.apply(&mut command).arg("--masquerade-all");
    let _running = Running::start_command(&mut command, &cluster.hosts.node).unwrap();
    drop(cluster.until_served().unwrap());
    let socket = datagrams(cluster.client(), cluster.vip()).unwrap();
    let seen_as = |ip: [u8; 4]| {
        let ask = || ask_once(&socket).unwrap().filter(|(_, seen)| seen.ip() == std::net::IpAddr::from(ip));
        until(&format!("a datagram that comes from {ip:?}"), ask).unwrap()
    };
    let before = seen_as([192, 0, 2, 1]);
    assert_eq!(seen_as([192, 0, 2, 1]), before);
    // Who sends all the time stays with its endpoint.
    cluster.hosts.node.ip(&["addr add 192.0.2.9/32 dev eth0", "addr del 192.0.2.1/32 dev eth0"]).unwrap();
    assert_eq!(seen_as([192, 0, 2, 9]).0, before.0);
    // Another that is lost while an interface still has this one changes nothing.
    let now = seen_as([192, 0, 2, 9]);
    cluster.hosts.node.ip(&["addr add 192.0.2.1/32 dev eth0", "addr del 192.0.2.1/32 dev eth0"]).unwrap();
    assert_eq!(seen_as([192, 0, 2, 9]), now);
}
