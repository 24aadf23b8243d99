//! A node whose datapath counts connections: Services over TCP and UDP whose endpoints do with a connection what its client
//! asks for, clients beside the node, and sockets of a pod of the node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use kubeferry::status::{EndpointStatus, Status};
use kubeferry_ebpf_common::Backend;
use kubeferry_tests::binary;
use kubeferry_tests::bpf::Places;
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::bpf::sockets::Maker;
use kubeferry_tests::client::{DEADLINE, Running, until};
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::hosts::Hosts;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::sockets::{connect_from, without_offloads};
use kubeferry_tests::xdp::PassAll;

use super::cluster::endpoint;
use super::web::{Connection, ENDPOINTS, Web, serve, vip};

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1, '2001:db8:2::1']}
pod-cidrs: [10.244.1.0/24, 'fd00:10:244:1::/64']
cluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']
";
/// A pod of another node, and a client outside: both are the host `clients`.
const CLIENTS: [[&str; 2]; 2] = [["10.244.2.9", "fd00:10:244:2::9"], ["203.0.113.9", "2001:db8:113::9"]];

/// The way of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// From a pod of another node to the ClusterIP: each packet is translated at TC.
    Packets,
    /// From a socket of a pod of the node to the ClusterIP: translated when it connects.
    Socket,
    /// From outside to the node port and out again, at XDP. With [`World::start_with_xdp`].
    Xdp,
}

/// The running world.
#[derive(Debug)]
pub struct World {
    // In this order: what runs ends before what it runs in.
    running: Option<Running>,
    /// Makes sockets of a pod of the node.
    pub pod: Maker,
    /// The node, and the hosts `pods` (all endpoints), `pod` and `clients`.
    pub hosts: Hosts,
    source: Source,
    node: Node,
    places: Places,
    flags: Vec<&'static str>,
    /// What lets the hosts take frames from XDP.
    far: Vec<PassAll>,
}

impl World {
    /// Starts everything with these flags and waits until the Service answers and nothing is counted as active.
    pub fn start(web: &Web, flags: &[&'static str]) -> Self {
        let mut world = Self::build(flags);
        world.change(web);
        world.run();
        world.until_served(By::Packets);
        // What status tells may be a second old: the next has to know of these connections.
        std::thread::sleep(Duration::from_millis(1_100));
        world
    }

    /// The same with programs at XDP; what they leave to the stack is not forwarded.
    pub fn start_with_xdp(web: &Web) -> Self {
        let mut world = Self::build(&["--socket-lb", "off", "--xdp", "native", "--xdp-devices", "pods,clients"]);
        for name in ["pods", "clients"] {
            let namespace = &world.hosts.host(name).namespace;
            // A frame that XDP sends on is taken as it is, checksum and all.
            without_offloads(namespace, "eth0").unwrap();
            world.far.push(namespace.run(|| PassAll::attach("eth0")).unwrap().unwrap());
        }
        let rules = "table inet test { chain forward { type filter hook forward priority 0; policy drop; }; }";
        world.hosts.node.nft(&["-f", "-"], rules).unwrap();
        world.change(web);
        world.run();
        world.until_served(By::Xdp);
        world
    }

    fn build(flags: &[&'static str]) -> Self {
        let ips = |texts: [&str; 2]| texts.map(|text| text.parse::<IpAddr>().unwrap());
        let ends: Vec<_> =
            (1..=ENDPOINTS).flat_map(|number| [false, true].map(|v6| endpoint(number, v6).ip())).collect();
        let (pod, clients) = (ips(["10.244.1.200", "fd00:10:244:1::200"]), CLIENTS.map(ips).concat());
        let node_ips = ips(["192.0.2.1", "2001:db8:2::1"]);
        let hosts = Hosts::build(&node_ips, &[("pods", &ends), ("pod", &pod), ("clients", &clients)]).unwrap();
        ends.iter().for_each(|ip| serve(&hosts.host("pods").namespace, SocketAddr::new(*ip, 8080)));
        let places = Places::new().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_socket-maker"));
        let pod = Maker::start(program, &hosts.host("pod").namespace, places.cgroup()).unwrap();
        let node = Node::parse(NODE).unwrap();
        let source = Source::new(&Case { name: "counted".into(), node: node.clone(), steps: Vec::new() }).unwrap();
        Self { running: None, pod, hosts, source, node, places, flags: flags.to_vec(), far: Vec::new() }
    }

    /// Starts the proxy, in the place of one that is killed, and waits until it serves.
    pub fn run(&mut self) {
        self.kill();
        let mut command = self.source.command("run").unwrap();
        self.places.apply(&mut command).args(&self.flags);
        self.running = Some(Running::start_command(&mut command, &self.hosts.node).unwrap());
        until("the proxy to have synced", || self.try_status().filter(|status| status.syncs > 0)).unwrap();
    }

    /// The same with other flags.
    pub fn run_with(&mut self, flags: &[&'static str]) {
        self.flags = flags.to_vec();
        self.run();
    }

    /// Ends the proxy by SIGKILL.
    pub fn kill(&mut self) {
        self.running = None;
    }

    fn until_served(&self, by: By) {
        for v6 in [false, true] {
            until("the Service to answer", || self.open_at(by, v6, 80).ok()).unwrap();
            self.until_active(v6, &[0; ENDPOINTS as usize]);
        }
    }

    /// Puts another Service in the place of the one before. When that is in force is for the caller to see.
    pub fn change(&self, web: &Web) {
        let manifests = with_node(&self.node, &web.manifests()).unwrap();
        self.source.write(&Step { manifests, rows: Vec::new() }).unwrap();
    }

    /// The same, and waits until it is in force.
    pub fn change_now(&self, web: &Web) {
        let before = self.status().syncs;
        self.change(web);
        until("the change to be in force", || (self.status().syncs > before).then_some(())).unwrap();
    }

    /// Opens a connection.
    pub fn open(&self, by: By, v6: bool) -> Connection {
        self.open_at(by, v6, 80).unwrap_or_else(|error| panic!("by {by:?}: {error}"))
    }

    /// The same to a port; from 80 on.
    pub fn open_at(&self, by: By, v6: bool, port: u16) -> std::io::Result<Connection> {
        self.connect(by, v6, port).and_then(Connection::new)
    }

    fn connect(&self, by: By, v6: bool, port: u16) -> std::io::Result<TcpStream> {
        match by {
            By::Packets => self.open_from_clients(CLIENTS[0], v6, vip(v6, port)),
            By::Xdp => {
                let ip: IpAddr = if v6 { "2001:db8:2::1" } else { "192.0.2.1" }.parse().unwrap();
                self.open_from_clients(CLIENTS[1], v6, SocketAddr::new(ip, 30_000 + port))
            }
            By::Socket => self.pod.tcp(v6).unwrap().connect(vip(v6, port), DEADLINE),
        }
    }

    fn open_from_clients(&self, ips: [&str; 2], v6: bool, to: SocketAddr) -> std::io::Result<TcpStream> {
        let from = SocketAddr::new(ips[usize::from(v6)].parse().unwrap(), 0);
        connect_from(&self.hosts.host("clients").namespace, from, to, |_| Ok(()))
    }

    /// A pod of another node.
    pub fn clients(&self) -> &Netns {
        &self.hosts.host("clients").namespace
    }

    /// What `kubeferry status` says.
    pub fn status(&self) -> Status {
        self.try_status().expect("no status")
    }

    fn try_status(&self) -> Option<Status> {
        let mut command = Command::new(binary::path().unwrap());
        let output = self.hosts.node.output(command.args(["status", "--output", "json"]), "").unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// What is counted of the endpoints of a port: `tcp`, `closed` or `udp`. None, where they never got anything.
    pub fn endpoints(&self, port: &str, v6: bool) -> Vec<EndpointStatus> {
        let status = self.status();
        let service = status.services.iter().find(|service| service.name.ends_with("web")).unwrap();
        let is_ours = |frontend: &String| frontend.contains(&vip(v6, 0).ip().to_string());
        let ours = service.ports.iter().find(|one| one.name == port && one.frontends.iter().any(is_ours));
        ours.map(|port| port.endpoints.clone()).unwrap_or_default()
    }

    /// The active connections of each endpoint of port `tcp`, by its number.
    pub fn active(&self, v6: bool) -> BTreeMap<u8, u64> {
        let number =
            |address: &str| (1..=ENDPOINTS).find(|number| endpoint(*number, v6).to_string() == address).unwrap();
        self.endpoints("tcp", v6).iter().map(|one| (number(&one.address), one.active)).collect()
    }

    /// Waits until endpoints 1, 2 … of port `tcp`, as far as there are such, have these active connections.
    pub fn until_active(&self, v6: bool, expected: &[u64]) {
        let mut last = BTreeMap::new();
        let as_expected = || {
            last = self.active(v6);
            let right = |(number, expected)| last.get(&number).is_none_or(|active| active == expected);
            (1..).zip(expected).all(right).then_some(())
        };
        if let Err(error) = until(&format!("{expected:?} active connections"), as_expected) {
            panic!("{error}: there are {last:?}");
        }
    }

    /// Sums over the endpoints of a port: opened and active connections.
    pub fn sums(&self, port: &str, v6: bool) -> (u64, u64) {
        let endpoints = self.endpoints(port, v6);
        (endpoints.iter().map(|one| one.connections).sum(), endpoints.iter().map(|one| one.active).sum())
    }

    /// Waits until the endpoints of a port have these sums.
    pub fn until_sums(&self, port: &str, v6: bool, opened: u64, active: u64) {
        self.until_sums_for(DEADLINE, port, v6, opened, active);
    }

    /// The same with other patience.
    pub fn until_sums_for(&self, patience: Duration, port: &str, v6: bool, opened: u64, active: u64) {
        until_for(patience, || match self.sums(port, v6) {
            sums if sums == (opened, active) => Ok(()),
            sums => Err(format!("{opened} opened and {active} active: {sums:?}")),
        });
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        let get = || kubeferry::status::get("http://127.0.0.1:10249/metrics", DEADLINE).unwrap().body;
        self.hosts.node.run(get).unwrap()
    }

    /// The values of a metric by its labels' text.
    pub fn metric(&self, name: &str) -> BTreeMap<String, u64> {
        let text = self.metrics();
        let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
        lines.filter_map(|(labels, value)| Some((labels.to_owned(), value.parse().ok()?))).collect()
    }

    /// By how many connections the periodic check has put counts right.
    pub fn recounted(&self) -> u64 {
        self.metric("kubeferry_ebpf_recounted_connections_total")[""]
    }

    /// The maps.
    pub fn pinned(&self) -> Pinned {
        Pinned::open(self.places.bpffs()).unwrap()
    }

    /// The rows of `backends` that anything is active in.
    pub fn active_rows(&self) -> BTreeMap<u32, Backend> {
        let rows = self.pinned().backends().unwrap();
        (0..).zip(rows).filter(|(_, row)| row.active != 0).collect()
    }

    /// Waits until the maps have this many active connections of all Services: no status is to be made for that. Rows are given
    /// out from the first, and these few Services need few.
    pub fn until_open(&self, expected: u64) {
        let pinned = self.pinned();
        let open = || pinned.first_backends(4096).unwrap().iter().map(|row| row.active).sum::<u64>();
        until_for(DEADLINE, || match open() {
            active if active == expected => Ok(()),
            active => Err(format!("{expected} active connections: {active}")),
        });
    }

    /// The cgroup whose sockets are translated.
    pub fn cgroup(&self) -> &Path {
        self.places.cgroup()
    }
}

/// So many numbers that look like chance and are always the same.
pub fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ seed;
    move |sides| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % sides
    }
}

/// Waits for something that takes its time; until then `attempt` says what for.
pub fn until_for(patience: Duration, mut attempt: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + patience;
    while let Err(what) = attempt() {
        assert!(Instant::now() < end, "waited {patience:?} for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
