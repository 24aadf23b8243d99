//! The cluster of these tests, and what becomes of its sockets.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use kubeferry::backend::ebpf::bpf::open_pin;
use kubeferry::backend::ebpf::table::Table;
use kubeferry_ebpf_common::plain::Plain;
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{SocketConnection, SocketKey, SocketPeer};
use kubeferry_tests::bpf::Places;
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::bpf::sockets::{Maker, Tcp};
use kubeferry_tests::client::{Connection, DEADLINE, Running, refused, until};
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::hosts::Hosts;
use kubeferry_tests::sockets::set_option;
use rustix::net::{AddressFamily, SendFlags, SocketType};

pub const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1, '2001:db8:2::1']}
pod-cidrs: [10.244.1.0/24, 'fd00:10:244:1::/64']
cluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']
";
/// How long to wait for what does not come.
pub const SILENCE: Duration = Duration::from_secs(2);

/// By what a connection got its endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    Socket,
    Packets,
}

/// What became of a connection.
#[derive(Debug)]
pub struct Reached {
    pub server: String,
    masqueraded: bool,
    pub by: By,
}

/// A node with two web pods, a client pod that serves too, a pod elsewhere and a client outside.
pub struct Cluster {
    // In this order: what runs ends before what it runs in.
    pub running: Option<Running>,
    pub node_sockets: Maker,
    pub pod_sockets: Maker,
    pub pinned: Pinned,
    pub hosts: Hosts,
    source: Source,
    node: Node,
    /// Connections by packets, and their entries.
    at_start: (u64, usize),
    places: Places,
}

impl Cluster {
    pub fn start(node: &str, flags: &[&str]) -> Self {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let hosts = [
            ("web1", ips(&["10.244.1.1", "fd00:10:244:1::1"])),
            ("web2", ips(&["10.244.1.2", "fd00:10:244:1::2"])),
            ("client", ips(&["10.244.1.7", "fd00:10:244:1::7"])),
            ("far", ips(&["10.244.2.1", "fd00:10:244:2::1"])),
        ];
        let hosts: Vec<_> = hosts.iter().map(|(name, addresses)| (*name, addresses.as_slice())).collect();
        let hosts = Hosts::build(&ips(&["192.0.2.1", "2001:db8:2::1"]), &hosts).unwrap();
        for host in &hosts.hosts {
            host.serve(8080).unwrap();
        }
        let places = Places::new().unwrap();
        let node = Node::parse(node).unwrap();
        let case = Case { name: "sockets".into(), node: node.clone(), steps: Vec::new() };
        let source = Source::new(&case).unwrap();
        source.write(&step(&node, &["1", "2"])).unwrap();
        let mut command = source.command("run").unwrap();
        let running = Running::start_command(places.apply(&mut command).args(flags), &hosts.node).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_socket-maker"));
        let maker = |namespace| Maker::start(program, namespace, places.cgroup()).unwrap();
        let (node_sockets, pod_sockets) = (maker(&hosts.node), maker(&hosts.host("client").namespace));
        let pinned = until("the maps", || Pinned::open(places.bpffs()).ok()).unwrap();
        let mut cluster = Self {
            running: Some(running),
            node_sockets,
            pod_sockets,
            pinned,
            hosts,
            source,
            node,
            at_start: (0, 0),
            places,
        };
        cluster.until_served();
        if !flags.contains(&"off") {
            cluster.until_sockets_are_translated();
        }
        cluster.at_start = (cluster.count(Counter::Connected), cluster.pinned.flows().unwrap());
        cluster
    }

    /// Starts the proxy again.
    pub fn start_again(&mut self) {
        let mut command = self.source.command("run").unwrap();
        self.running = Some(Running::start_command(self.places.apply(&mut command), &self.hosts.node).unwrap());
    }

    /// The map of sockets that were translated when they connected.
    pub fn socket_connections(&self) -> Table<u64, SocketConnection> {
        self.table("/socket_connections")
    }

    /// The map of whom sockets that are not connected believe to hear.
    pub fn socket_services(&self) -> Table<SocketKey, SocketPeer> {
        self.table("/socket_services")
    }

    fn table<K: Plain, V: Plain>(&self, name: &str) -> Table<K, V> {
        let mut pins = self.places.pins().unwrap().into_iter();
        let pin = pins.find(|pin| pin.ends_with(name)).unwrap();
        Table::new(open_pin(&self.places.bpffs().join("kubeferry").join(pin)).unwrap()).unwrap()
    }

    /// Waits until everything is in force; by sockets that are in no cgroup of ours.
    pub fn until_served(&self) {
        for vip in ["10.96.0.10:80", "[fd00:10:96::10]:80"] {
            let far = &self.hosts.host("far").namespace;
            until("the Services to answer", || Connection::attempt(far, socket(vip))).unwrap();
        }
    }

    /// Waits until the last hook of sockets is there, which comes after those of packets. What connects and sends nothing leaves no trace.
    fn until_sockets_are_translated(&self) {
        let connects = || {
            self.node_sockets.udp(true).unwrap().connect("[fd00:10:96::10]:80").unwrap();
            (self.count(Counter::SocketConnected) > 0).then_some(())
        };
        until("sockets to be translated", connects).unwrap();
    }

    /// Packets went straight to the endpoint.
    pub fn no_packet_was_translated(&self) {
        assert_eq!((self.count(Counter::Connected), self.pinned.flows().unwrap()), self.at_start);
    }

    pub fn change(&self, endpoints: &[&str]) {
        self.source.write(&step(&self.node, endpoints)).unwrap();
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.pinned.counter(counter).unwrap()
    }

    /// A datagram from where a web pod serves, as its server would send it.
    pub fn answer_of(&self, server: &str, to: SocketAddr) {
        let send = || {
            let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let raw = rustix::net::socket(family, SocketType::RAW, Some(rustix::net::ipproto::UDP)).unwrap();
            // Ports and length; IPv4 needs no checksum, and the kernel computes that of IPv6.
            let mut datagram = Vec::new();
            for word in [8080, to.port(), 8 + 2, 0] {
                datagram.extend(word.to_be_bytes());
            }
            datagram.extend(b"!\n");
            if to.is_ipv6() {
                set_option(&raw, libc::IPPROTO_IPV6, libc::IPV6_CHECKSUM, &6i32.to_ne_bytes()).unwrap();
            }
            rustix::net::sendto(&raw, &datagram, SendFlags::empty(), &SocketAddr::new(to.ip(), 0)).unwrap();
        };
        self.hosts.host(server).namespace.run(send).unwrap();
    }

    /// What `work` did, and by what.
    pub fn seen<T>(&self, work: impl FnOnce() -> T) -> (T, By) {
        let both = || (self.count(Counter::SocketConnected), self.count(Counter::Connected));
        let before = both();
        let result = work();
        let after = both();
        let by = match (after.0 - before.0, after.1 - before.1) {
            (1, 0) => By::Socket,
            (0, 1) => By::Packets,
            other => panic!("{other:?} connections by sockets and by packets, instead of one"),
        };
        (result, by)
    }

    /// A TCP connection, which has to show the service's address.
    pub fn tcp(&self, socket: Tcp, to: SocketAddr) -> Reached {
        let (stream, by) = self.seen(|| socket.connect(to, DEADLINE).unwrap_or_else(|error| panic!("{to}: {error}")));
        assert_eq!(stream.peer_addr().unwrap(), to, "getpeername");
        let local = plain(stream.local_addr().unwrap());
        let (server, client) = ask(stream);
        Reached { server, masqueraded: client != local, by }
    }

    /// A connected UDP socket, which has to show the service's address and get answers from there.
    pub fn connected(&self, socket: &UdpSocket, to: SocketAddr) -> Reached {
        let work = || {
            socket.connect(to).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), to, "getpeername");
            socket.send(b"?\n").unwrap();
            let mut buffer = [0; 128];
            let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{to}: {error}"));
            assert_eq!(from, to, "recvfrom");
            answer(&buffer[..length])
        };
        let ((server, client), by) = self.seen(work);
        Reached { server, masqueraded: client != plain(socket.local_addr().unwrap()), by }
    }

    /// A datagram of a socket that is not connected: its answer has to come from the service's address.
    pub fn sent(&self, socket: &UdpSocket, to: SocketAddr) -> Reached {
        let ((server, client), by) = self.seen(|| exchange(socket, to).unwrap_or_else(|| panic!("{to}: no answer")));
        let port = socket.local_addr().unwrap().port();
        Reached { server, masqueraded: client.port() != port, by }
    }

    /// Every kind of socket to the address; all have to reach one of `servers`, `by` this.
    pub fn reaches(&self, maker: &Maker, to: &str, servers: &[&str], masqueraded: bool, by: By) {
        for (v6, to) in forms(to) {
            let tcp = self.tcp(maker.tcp(v6).unwrap(), to);
            let connected = self.connected(&maker.udp(v6).unwrap(), to);
            let sent = self.sent(&maker.udp(v6).unwrap(), to);
            for (what, reached) in [("TCP", tcp), ("UDP, connected", connected), ("UDP, sent", sent)] {
                assert!(servers.contains(&reached.server.as_str()), "{what} to {to}: {reached:?}");
                assert_eq!((reached.masqueraded, reached.by), (masqueraded, by), "{what} to {to}: {reached:?}");
            }
        }
    }

    /// Nothing comes back, and the programs say why.
    pub fn is_silent(&self, maker: &Maker, to: &str, why: Counter) {
        for (v6, to) in forms(to) {
            let before = self.count(why);
            let error = maker.tcp(v6).unwrap().connect(to, SILENCE).map(drop).unwrap_err();
            assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
            assert!(self.count(why) > before, "{to}: dropped for another reason than {why:?}");
        }
    }

    /// TCP and UDP are refused.
    pub fn is_refused(&self, maker: &Maker, to: &str) {
        for (v6, to) in forms(to) {
            let error = maker.tcp(v6).unwrap().connect(to, DEADLINE).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
            let socket = maker.udp(v6).unwrap();
            socket.connect(to).unwrap();
            refused(&socket).unwrap_or_else(|error| panic!("{to}: {error}"));
        }
    }
}

/// The address for each family of sockets that can have it.
pub fn forms(to: &str) -> Vec<(bool, SocketAddr)> {
    match socket(to) {
        SocketAddr::V4(v4) => {
            let mapped = SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port());
            vec![(false, v4.into()), (true, mapped)]
        }
        v6 => vec![(true, v6)],
    }
}

pub fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// An IPv4-mapped address as IPv4.
pub fn plain(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

pub fn ask(stream: TcpStream) -> (String, SocketAddr) {
    (&stream).write_all(b"?\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    answer(line.as_bytes())
}

pub fn answer(line: &[u8]) -> (String, SocketAddr) {
    let text = String::from_utf8_lossy(line);
    let (server, client) = text.trim_end().split_once(' ').unwrap();
    (server.into(), client.parse().unwrap())
}

/// A datagram and its answer, which has to come from where the datagram went.
pub fn exchange(socket: &UdpSocket, to: SocketAddr) -> Option<(String, SocketAddr)> {
    let mut buffer = [0; 128];
    socket.send_to(b"?\n", to).ok()?;
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, to, "recvfrom");
    Some(answer(&buffer[..length]))
}

/// The Services. `web` has these endpoints, `1` and `2` for `web1` and `web2`.
pub fn step(node: &Node, endpoints: &[&str]) -> Step {
    let mut text = String::new();
    let web: Vec<_> = endpoints.iter().map(|number| (format!("1.{number}"), "worker-1")).collect();
    let local = [("1.1".to_owned(), "worker-1"), ("2.1".to_owned(), "worker-2")];
    let far = [("2.1".to_owned(), "worker-2")];
    let itself = [("1.7".to_owned(), "worker-1")];
    let outside = "externalIPs: [198.51.100.";
    service(&mut text, "web", 10, &format!("type: NodePort\n  {outside}10, '2001:db8:100::10']"), 30080, &web);
    let policy = "externalTrafficPolicy: Local";
    service(
        &mut text,
        "local",
        11,
        &format!("type: NodePort\n  {policy}\n  {outside}11, '2001:db8:100::11']"),
        30081,
        &far,
    );
    service(&mut text, "inner", 12, "internalTrafficPolicy: Local", 0, &local);
    service(&mut text, "elsewhere", 13, "internalTrafficPolicy: Local", 0, &far);
    service(&mut text, "sticky", 14, "sessionAffinity: ClientIP", 0, &web);
    service(&mut text, "empty", 15, "type: ClusterIP", 0, &[]);
    service(&mut text, "itself", 16, "type: ClusterIP", 0, &itself);
    let ranged = "type: LoadBalancer\n  loadBalancerSourceRanges: [10.244.1.7/32, 'fd00:10:244:1::7/128']";
    service(&mut text, "ranged", 17, ranged, 0, &web);
    text += "status: {loadBalancer: {ingress: [{ip: 198.51.100.17}, {ip: '2001:db8:100::17'}]}}\n";
    service(&mut text, "twin", 19, "type: ClusterIP", 0, &web);
    service(&mut text, "inside", 18, "sessionAffinity: ClientIP", 0, &[("node".to_owned(), "worker-1")]);
    Step { manifests: with_node(node, &text).unwrap(), rows: Vec::new() }
}

/// A Service of both families; its slices stand before it. Endpoints are those of the pod ranges, without the prefix, or
/// `node`, with their node's name.
pub fn service(text: &mut String, name: &str, number: u8, spec: &str, node_port: u16, endpoints: &[(String, &str)]) {
    for (family, prefix, separator) in [("IPv4", "10.244.", "."), ("IPv6", "fd00:10:244:", "::")] {
        let address = |short: &str| match (short, family) {
            ("node", "IPv4") => "192.0.2.1".to_owned(),
            ("node", _) => "2001:db8:2::1".to_owned(),
            _ => format!("{prefix}{}", short.replace('.', separator)),
        };
        let endpoint =
            |(short, node): &(String, &str)| format!("{{addresses: ['{}'], nodeName: {node}}}", address(short));
        let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
        writeln!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-{}, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: {family}\nports: [{{name: tcp, port: 8080}}, {{name: udp, protocol: UDP, port: 8080}}]\n\
             endpoints: [{}]",
            family.to_lowercase(),
            endpoints.join(", "),
        )
        .unwrap();
    }
    let port = |name: &str, protocol: &str| match node_port {
        0 => format!("{{name: {name}, protocol: {protocol}, port: 80}}"),
        port => format!("{{name: {name}, protocol: {protocol}, port: 80, nodePort: {port}}}"),
    };
    writeln!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  {spec}\n  \
         clusterIP: 10.96.0.{number}\n  clusterIPs: [10.96.0.{number}, 'fd00:10:96::{number}']\n  \
         ipFamilies: [IPv4, IPv6]\n  ports: [{}, {}]",
        port("tcp", "TCP"),
        port("udp", "UDP"),
    )
    .unwrap();
}
