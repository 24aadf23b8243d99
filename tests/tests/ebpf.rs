//! The life of the eBPF datapath's state: maps, programs and attachments that outlive the process.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::ops::Deref;
use std::process::{Command, Output, Stdio};

use kubeferry_tests::apiserver::{ApiServer, Resource};
use kubeferry_tests::binary;
use kubeferry_tests::bpf::Places;
use kubeferry_tests::client::{Connection, Running, ask_once, datagrams, until};
use kubeferry_tests::web::{MANIFESTS, Web};

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
fn a_second_sync_adopts_everything_and_writes_nothing() {
    let cluster = Cluster::build();
    let log = cluster.once(|_| ()).unwrap();
    assert!(!log.contains(" ops=0 "), "{log}");
    let before = cluster.places.pins().unwrap();
    let mut connection = cluster.until_served().unwrap();
    let log = cluster.once(|_| ()).unwrap();
    assert!(log.contains(" ops=0 "), "{log}");
    assert_eq!(cluster.places.pins().unwrap(), before);
    connection.ask().unwrap();
}

#[test]
fn kill_and_restart_under_load_cost_no_connection() {
    let cluster = Cluster::build();
    let running = cluster.start();
    let mut connection = cluster.until_served().unwrap();
    let (before, _) = connection.ask().unwrap();
    cluster
        .under_load(|| {
            // SIGKILL.
            drop(running);
            let again = cluster.start();
            until("the second run to be in force", || cluster.status()).unwrap();
            drop(again);
        })
        .unwrap();
    assert_eq!(connection.ask().unwrap().0, before, "the connection goes on");
}

impl Cluster {
    fn status(&self) -> Option<String> {
        let mut command = Command::new(binary::path().unwrap());
        let output = self.hosts.node.output(command.arg("status"), "").unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).to_string())
    }
}

#[test]
fn other_sizes_of_maps_move_everything_under_load() {
    let cluster = Cluster::build();
    cluster.once(|_| ()).unwrap();
    drop(cluster.until_served().unwrap());
    let before = cluster.places.pins().unwrap();
    cluster
        .under_load(|| {
            cluster.once(|command| with(command, &["--map-sizes", "frontends=1000"])).unwrap();
        })
        .unwrap();
    let after = cluster.places.pins().unwrap();
    assert_eq!(after.len(), before.len(), "the old maps and programs are gone");
    assert_ne!(after, before);
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

#[test]
fn cleanup_leaves_nothing_and_the_other_backend_takes_over() {
    let cluster = Cluster::build();
    cluster.once(|_| ()).unwrap();
    drop(cluster.until_served().unwrap());
    let mut nftables = cluster.source.command("run").unwrap();
    nftables.args(["--once", "--backend", "nftables", "--bpffs-root"]).arg(cluster.places.bpffs());
    assert!(cluster.hosts.node.output(&mut nftables, "").unwrap().status.success());
    assert_eq!(cluster.places.pins().unwrap(), Vec::<String>::new(), "nftables has taken over");
    drop(cluster.until_served().unwrap());
    cluster.once(|_| ()).unwrap();
    let tables = cluster.hosts.node.nft(&["list", "tables"], "").unwrap();
    assert!(!tables.contains("table inet kubeferry\n"), "eBPF has taken over: {tables}");
    drop(cluster.until_served().unwrap());
    for expected in ["attached programs", "nothing to remove"] {
        let output = cluster.cleanup();
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).to_string();
        assert!(text.contains(expected), "{text}");
    }
    assert!(!cluster.places.bpffs().join("kubeferry").exists());
}

#[test]
fn connections_of_the_other_backend_go_on() {
    let cluster = Cluster::build();
    for state in ["time_wait", "fin_wait", "last_ack", "close_wait", "close"] {
        let key = format!("net/netfilter/nf_conntrack_tcp_timeout_{state}");
        cluster.hosts.node.sysctl(&key, "1").unwrap();
    }
    let mut nftables = cluster.source.command("run").unwrap();
    nftables.args(["--once", "--backend", "nftables", "--bpffs-root"]).arg(cluster.places.bpffs());
    assert!(cluster.hosts.node.output(&mut nftables, "").unwrap().status.success());
    let mut before: Vec<_> = (0..8).map(|_| cluster.until_served().unwrap()).collect();
    let endpoints: Vec<_> = before.iter_mut().map(|connection| connection.ask().unwrap().0).collect();
    assert!(endpoints.iter().any(|one| *one != endpoints[0]), "{endpoints:?}");
    let tables = || cluster.hosts.node.nft(&["list", "tables"], "").unwrap();
    cluster
        .under_load(|| {
            let running = cluster.start();
            until("eBPF to be in force", || cluster.status()).unwrap();
            until("the rules to go", || (!tables().contains("table inet kubeferry\n")).then_some(())).unwrap();
            let mut new = cluster.until_served().unwrap();
            for _ in 0..20 {
                for (connection, endpoint) in before.iter_mut().zip(&endpoints) {
                    assert_eq!(connection.ask().unwrap().0, *endpoint, "it goes on");
                }
                new.ask().unwrap();
            }
            assert!(tables().contains("table inet kubeferry-established"), "{}", tables());
            before.clear();
            // It is looked at twice in a minute.
            let gone = || tables().is_empty().then_some(());
            (0..3)
                .find_map(|_| until("connection tracking to be left", gone).ok())
                .unwrap_or_else(|| panic!("{}", tables()));
            for _ in 0..20 {
                new.ask().unwrap();
            }
            drop(running);
        })
        .unwrap();
}

#[test]
fn connections_that_are_over_are_swept() {
    let cluster = Cluster::build();
    let _running = cluster.start();
    let mut kept = cluster.until_served().unwrap();
    for _ in 0..20 {
        Connection::open(cluster.client(), cluster.vip()).unwrap().ask().unwrap();
    }
    let flows = || {
        let mut command = Command::new(binary::path().unwrap());
        let output = cluster.hosts.node.output(command.args(["status", "--output", "json"]), "").unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        status["rows"]["flows"].as_u64()
    };
    until("a sweep that has met the connections", || flows().filter(|flows| *flows >= 40)).unwrap();
    let metrics = cluster.hosts.node.run(|| {
        kubeferry::status::get("http://127.0.0.1:10249/metrics", std::time::Duration::from_secs(10)).unwrap().body
    });
    let metrics = metrics.unwrap();
    let connected = metrics
        .lines()
        .find_map(|line| line.strip_prefix("kubeferry_ebpf_packets_total{reason=\"connected\"} ")?.parse::<u64>().ok());
    assert!(connected.is_some_and(|connected| connected >= 21), "{metrics}");
    // What is left is the one connection that is open.
    until("the closed connections to be gone", || flows().filter(|flows| *flows == 2)).unwrap();
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

/// Which of the Service's two ports finds room is nobody's business; the other one is left out whole.
fn until_one_port_is_served(cluster: &Cluster) {
    let served = || {
        let tcp = Connection::attempt(cluster.client(), cluster.vip()).and_then(|mut tcp| tcp.ask().ok());
        tcp.or_else(|| ask_once(&datagrams(cluster.client(), cluster.vip()).ok()?).ok().flatten())
    };
    until("one of both ports to answer", served).unwrap();
}

#[test]
fn what_does_not_fit_is_left_out_whole_and_named() {
    let cluster = Cluster::build();
    let log = cluster.once(|command| with(command, &["--map-sizes", "slots=3"])).unwrap_err();
    assert!(log.contains("the map slots is full") && log.contains("default/web"), "{log}");
    until_one_port_is_served(&cluster);
}

#[test]
fn the_service_of_what_does_not_fit_is_told_by_an_event() {
    let cluster = Cluster::build();
    let server = cluster.hosts.node.run(ApiServer::start).unwrap().unwrap();
    let node = "{apiVersion: v1, kind: Node, metadata: {name: worker-1}, \
                status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}";
    server.apply(&format!("{node}\n---\n{MANIFESTS}")).unwrap();
    let mut command = Command::new(binary::path().unwrap());
    command.args(["run", "--backend", "ebpf", "--node-name", "worker-1", "--server", &server.url()]);
    with(cluster.places.apply(&mut command), &["--map-sizes", "slots=3"]);
    let _running = Running::start_command(&mut command, &cluster.hosts.node).unwrap();
    let left_out = || {
        let events = server.objects(Resource::Event);
        events.into_iter().find(|event| event["reason"] == "FrontendLeftOut")
    };
    let event = until("an Event about what does not fit", left_out).unwrap();
    assert_eq!((&event["regarding"]["name"], &event["type"]), (&"web".into(), &"Warning".into()));
    assert!(
        event["note"].as_str().unwrap().contains("is not served: ") && event.to_string().contains("slots"),
        "{event}"
    );
    until_one_port_is_served(&cluster);
}

#[test]
fn a_missing_file_system_or_cgroup_is_named() {
    let cluster = Cluster::build();
    let log = cluster.once(|command| with(command, &["--bpffs-root", "/tmp"])).unwrap_err();
    assert!(log.contains("mount -t bpf bpf /tmp"), "{log}");
    let log = cluster.once(|command| with(command, &["--cgroup-root", "/tmp"])).unwrap_err();
    assert!(log.contains("/tmp") && log.contains("cgroup"), "{log}");
}

#[test]
fn a_configuration_file_sets_it_and_a_changed_one_is_taken_over() {
    let cluster = Cluster::build();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.conf");
    let write = |fields: &str| {
        let (bpffs, cgroup) = (cluster.places.bpffs().display(), cluster.places.cgroup().display());
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ebpf\n\
             clusterCIDR: 10.244.0.0/16\nebpf:\n  bpffsRoot: {bpffs}\n  cgroupRoot: {cgroup}\n  \
             mapSizes: {{flows: 20000, affinity: 1000, sockets: 1000, slots: 16384}}\n{fields}"
        );
        // In one piece, as an editor that saves does.
        std::fs::write(folder.path().join("new"), text).unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
    };
    write("");
    let mut command = cluster.source.command("run").unwrap();
    let mut running = Running::start_command(command.arg("--config").arg(&path), &cluster.hosts.node).unwrap();
    drop(cluster.until_served().unwrap());
    let pins = cluster.places.pins().unwrap();
    assert!(!pins.is_empty(), "the file's places are used");

    let differs = || {
        let mut command = cluster.source.command("plan").unwrap();
        let output = cluster.hosts.node.output(command.arg("--diff").arg("--config").arg(&path), "").unwrap();
        assert!(output.status.success(), "{output:?}");
        !output.stdout.is_empty()
    };
    until("the kernel to have what the file asks for", || (!differs()).then_some(())).unwrap();
    write("nftables: {masqueradeAll: true}\nnodePortAddresses: [192.0.2.0/24]\n");
    until("the kernel to follow the changed file", || (!differs()).then_some(())).unwrap();
    write("clusterCIDR: 10.245.0.0/16\n");
    assert_eq!(running.ended().unwrap().code(), Some(3), "its programs know pods by what they were told at the start");
    drop(cluster.until_served().unwrap());
    assert!(cluster.cleanup().status.success());
}
