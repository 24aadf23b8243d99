//! A node with Services, a host with all their endpoints, and a host of clients with as many addresses as a test likes.
//! Connections are UDP: a new source port is a new connection, and an endpoint answers with its own address.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use kubeferry_tests::client::{DEADLINE, Running, until};
use kubeferry_tests::cpus;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::hosts::Hosts;

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1, '2001:db8:2::1']}
cluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']
";
/// Clients have every address that begins so.
const CLIENTS: [&str; 2] = ["10.244.2.0/24", "fd00:10:244:2::/64"];
/// The port that connections are opened from to see whether a Service answers; tests begin behind these.
const FIRST_PORT: u16 = 20_000;
/// How long an answer may take before the datagram is sent once more.
const PATIENCE: Duration = Duration::from_millis(500);

/// A Service for a test.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// `kubeferry.dev/scheduler`.
    pub scheduler: &'static str,
    /// Other annotations, as lines of YAML.
    pub annotations: String,
    /// Its ClusterIPs.
    pub ips: [&'static str; 2],
    /// Lines of its `spec`.
    pub spec: String,
    /// How many endpoints it has in each family: 10.244.1.1, 10.244.1.2 … and fd00:10:244:1::1 …, at port 8080.
    pub endpoints: u8,
}

impl Service {
    /// A Service with the ClusterIPs of this number.
    pub fn new(name: &'static str, scheduler: &'static str, endpoints: u8) -> Self {
        let ips = match name {
            "other" => ["10.96.0.20", "fd00:10:96::20"],
            _ => ["10.96.0.10", "fd00:10:96::10"],
        };
        Self { name, scheduler, annotations: String::new(), ips, spec: String::new(), endpoints }
    }

    /// With weights by the endpoints' numbers, from 1.
    pub fn weighted(mut self, weights: &[u16]) -> Self {
        let mut text = Vec::new();
        for (number, weight) in (1..).zip(weights) {
            text.extend([false, true].map(|v6| format!("{}={weight}", endpoint(number, v6).ip())));
        }
        self.annotations = format!("kubeferry.dev/weights: '{}'", text.join(","));
        self
    }

    /// Where it is reached.
    pub fn vip(&self, v6: bool) -> SocketAddr {
        SocketAddr::new(self.ips[usize::from(v6)].parse().unwrap(), 80)
    }

    fn manifests(&self) -> String {
        let Self { name, scheduler, annotations, ips: [v4, v6], spec, endpoints } = self;
        let mut text = format!(
            "---
apiVersion: v1
kind: Service
metadata:
  name: {name}
  annotations:
    kubeferry.dev/scheduler: {scheduler}
    {annotations}
spec:
  clusterIPs: [{v4}, '{v6}']
  ipFamilies: [IPv4, IPv6]
  ports: [{{port: 80, protocol: UDP, nodePort: {}}}]
  {spec}
",
            if spec.contains("NodePort") { 30_080 } else { 0 },
        );
        for (family, v6) in [("IPv4", false), ("IPv6", true)] {
            let ends = (1..=*endpoints).map(|number| format!("{{addresses: ['{}']}}", endpoint(number, v6).ip()));
            let ends = ends.collect::<Vec<_>>().join(", ");
            let _ = write!(
                text,
                "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{family}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: {family}
ports: [{{port: 8080, protocol: UDP}}]
endpoints: [{ends}]
"
            );
        }
        text
    }
}

/// An endpoint by its number, from 1.
pub fn endpoint(number: u8, v6: bool) -> SocketAddr {
    let text = if v6 { format!("[fd00:10:244:1::{number:x}]:8080") } else { format!("10.244.1.{number}:8080") };
    text.parse().unwrap()
}

/// A client by its number: an address that begins as [`CLIENTS`] do.
pub fn client(number: u8, v6: bool) -> IpAddr {
    let text = if v6 { format!("fd00:10:244:2::{number:x}") } else { format!("10.244.2.{number}") };
    text.parse().unwrap()
}

/// A connection to open: from where and to where.
pub type Flow = (SocketAddr, SocketAddr);

/// Flows from one client to one Service, by as many ports from `first` on.
pub fn flows(first: u16, count: u16, from: IpAddr, to: SocketAddr) -> Vec<Flow> {
    (FIRST_PORT + first..FIRST_PORT + first + count).map(|port| (SocketAddr::new(from, port), to)).collect()
}

/// The running world.
#[derive(Debug)]
pub struct World {
    hosts: Hosts,
    source: Source,
    node: Node,
    _running: Running,
}

impl World {
    /// Starts everything and waits until each Service answers.
    pub fn start(datapath: &Datapath, services: &[Service]) -> Self {
        let most = services.iter().map(|service| service.endpoints).max().unwrap();
        let ends: Vec<_> = (1..=most).flat_map(|number| [false, true].map(|v6| endpoint(number, v6).ip())).collect();
        // Far from the clients' addresses in use, so that each has a route for its answers.
        let clients: Vec<IpAddr> = [client(255, false), client(255, true)].to_vec();
        let node_ips: Vec<IpAddr> = ["192.0.2.1", "2001:db8:2::1"].map(|ip| ip.parse().unwrap()).to_vec();
        let hosts = Hosts::build(&node_ips, &[("pods", &ends), ("clients", &clients)]).unwrap();
        let near = &hosts.host("clients").namespace;
        near.sysctl("net/ipv6/ip_nonlocal_bind", "1").unwrap();
        near.ip(&CLIENTS.map(|range| format!("route add local {range} dev lo"))).unwrap();
        let via = ["169.254.1.1", "fe80::1"];
        let routes =
            CLIENTS.iter().zip(via).map(|(range, via)| format!("route add {range} via {via} dev clients onlink"));
        hosts.node.ip(&routes.collect::<Vec<_>>()).unwrap();
        ends.iter().for_each(|ip| serve(&hosts, SocketAddr::new(*ip, 8080)));

        let node = Node::parse(NODE).unwrap();
        let source = Source::new(&Case { name: "schedulers".into(), node: node.clone(), steps: Vec::new() }).unwrap();
        write(&source, &node, services);
        let running = datapath.run(&source, &hosts.node).unwrap();
        let world = Self { hosts, source, node, _running: running };
        let mut port = FIRST_PORT;
        for service in services {
            for v6 in [false, true] {
                let answers = || {
                    // Another connection each time: one that went astray once does so until it is forgotten.
                    port -= 1;
                    let flow = (SocketAddr::new(client(254, v6), port), service.vip(v6));
                    world.hosts.host("clients").namespace.run(|| ask(flow, PATIENCE)).unwrap()
                };
                until(&format!("Service {} to answer", service.name), answers).unwrap();
            }
        }
        world
    }

    /// Puts other Services in the place of those before. When that is in force is for the caller to see.
    pub fn change(&self, services: &[Service]) {
        write(&self.source, &self.node, services);
    }

    /// `kubeferry trace` and so on, with the world's flags.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Opens connections, one after the other; the endpoint of each.
    pub fn connect(&self, flows: &[Flow]) -> Vec<SocketAddr> {
        let all = || flows.iter().map(|flow| answered(*flow)).collect();
        self.hosts.host("clients").namespace.run(all).unwrap()
    }

    /// Opens connections from every CPU at once: those of `flows(cpu)` on each, one after the other.
    pub fn connect_on_each_cpu(&self, flows: impl Fn(u16) -> Vec<Flow> + Sync) -> Vec<Vec<SocketAddr>> {
        let all = cpus::allowed().unwrap();
        let start = std::sync::Barrier::new(all.len());
        thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(&all)
                .map(|(number, cpu)| {
                    let (flows, start) = (flows(number), &start);
                    scope.spawn(move || {
                        let work = || {
                            cpus::stay_on(&[*cpu]).unwrap();
                            start.wait();
                            flows.iter().map(|flow| answered(*flow)).collect()
                        };
                        self.hosts.host("clients").namespace.run(work).unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

fn write(source: &Source, node: &Node, services: &[Service]) {
    let manifests: String = services.iter().map(Service::manifests).collect();
    source.write(&Step { manifests: with_node(node, &manifests).unwrap(), rows: Vec::new() }).unwrap();
}

/// An endpoint: whatever comes is answered with its address.
fn serve(hosts: &Hosts, at: SocketAddr) {
    let socket = hosts.host("pods").namespace.run(|| UdpSocket::bind(at)).unwrap().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            // A client that is gone is its own affair.
            drop(socket.send_to(at.to_string().as_bytes(), client));
        }
    });
}

/// Opens a connection and gives the endpoint that it has.
fn answered(flow: Flow) -> SocketAddr {
    until(&format!("an answer to {} for {}", flow.1, flow.0), || ask(flow, DEADLINE)).unwrap()
}

fn ask((from, to): Flow, patience: Duration) -> Option<SocketAddr> {
    let socket = UdpSocket::bind(from).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 64];
    let end = std::time::Instant::now() + patience;
    loop {
        // A refusal is no answer either.
        if let Ok(length) = socket.send(b"?").and_then(|_| socket.recv(&mut buffer)) {
            return Some(String::from_utf8_lossy(&buffer[..length]).parse().unwrap());
        }
        if std::time::Instant::now() >= end {
            return None;
        }
    }
}
