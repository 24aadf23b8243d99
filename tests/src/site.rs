//! A node with pods; beyond a router, a pod of another node and a client of the world. `kubeferry run` serves there: on eBPF, if
//! not told otherwise, and without the socket hook, so that every packet is translated on the way. The strict check of the
//! reverse path is on, and with eBPF the kernel's connection tracking has to stay off.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::binary;
use crate::bpf::Places;
use crate::client::{Connection, Running, until};
use crate::datapath::Datapath;
use crate::executors::Source;
use crate::faults::until_exact;
use crate::flows::{Case, Node, Step, with_node};
use crate::hosts::{Host, Hosts};
use crate::netns::Netns;
pub use crate::network::NODE_IPS;
use crate::network::Network;

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1, '2001:db8:2::1']}
cluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']
";
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  clusterIP: 10.96.0.10
  ipFamilies: [IPv4, IPv6]
  externalIPs: [198.51.100.7, '2001:db8:7::7']
  ports: &ports
    - {name: tcp, port: 80, nodePort: 30080}
    - {name: udp, protocol: UDP, port: 80, nodePort: 30080}
    - {name: bulk, port: 81, nodePort: 30081}
    - {name: bulk-udp, protocol: UDP, port: 81, nodePort: 30081}
    - {name: own, port: 82, nodePort: 30084}
status: {loadBalancer: {ingress: [{ip: 198.51.100.8}, {ip: '2001:db8:7::8'}]}}
---
apiVersion: v1
kind: Service
metadata: {name: twin, namespace: default}
spec:
  clusterIPs: [10.96.0.12, 'fd00:10:96::12']
  clusterIP: 10.96.0.12
  ipFamilies: [IPv4, IPv6]
  ports:
    - {name: tcp, port: 80}
    - {name: udp, protocol: UDP, port: 80}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: default}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  clusterIPs: [10.96.0.13, 'fd00:10:96::13']
  clusterIP: 10.96.0.13
  ipFamilies: [IPv4, IPv6]
  ports:
    - {name: tcp, port: 80, nodePort: 30082}
    - {name: udp, protocol: UDP, port: 80, nodePort: 30082}
    - {name: bulk, port: 81, nodePort: 30083}
    - {name: bulk-udp, protocol: UDP, port: 81, nodePort: 30083}
";
/// The ClusterIPs.
pub const VIPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
/// The ClusterIPs of another Service with the same endpoints.
pub const TWINS: [&str; 2] = ["10.96.0.12", "fd00:10:96::12"];
/// The ClusterIPs of the Service whose external traffic policy is Local.
pub const LOCAL_VIPS: [&str; 2] = ["10.96.0.13", "fd00:10:96::13"];
/// The external addresses.
pub const EXTERNAL_IPS: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];
/// The load balancer's addresses.
pub const LOAD_BALANCER_IPS: [&str; 2] = ["198.51.100.8", "2001:db8:7::8"];

/// The whole; see the module.
#[derive(Debug)]
pub struct Site {
    // Ends before the namespaces do.
    running: Mutex<Option<Running>>,
    datapath: Datapath,
    source: Source,
    node: Node,
    /// The node, the pods `web1`, `web2` and `client`, and `router`.
    pub hosts: Hosts,
    /// A pod of another node, beyond the router.
    pub remote: Host,
    /// A client, beyond the router.
    pub outside: Host,
    flags: Vec<String>,
    /// Where programs are looked for before anywhere else.
    tools: Option<PathBuf>,
}

impl Site {
    /// Builds it and serves. Endpoints are `1`, `2` (on the node) and `remote`: each answers with its name at port 80 of the
    /// Services, and sends back what it gets at port 81. At port 82 of `web` (8082) nobody listens but who does so itself.
    ///
    /// # Errors
    /// A right, a tool or the binary is missing.
    pub fn start(endpoints: &[&str]) -> Result<Self> {
        Self::start_with(endpoints, &[])
    }

    /// The same with more flags.
    ///
    /// # Errors
    /// As [`Site::start`].
    pub fn start_with(endpoints: &[&str], flags: &[&str]) -> Result<Self> {
        let site = Self::build(Datapath::ebpf()?, endpoints, flags, None)?;
        site.run()?;
        Ok(site)
    }

    /// Builds it for a datapath; nobody serves yet. `tools` is a folder with programs in the place of the system's.
    ///
    /// # Errors
    /// A right or a tool is missing.
    pub fn build(datapath: Datapath, endpoints: &[&str], flags: &[&str], tools: Option<PathBuf>) -> Result<Self> {
        let Network { hosts, remote, outside } = Network::build()?;
        for server in [hosts.host("web1"), hosts.host("web2"), &remote] {
            server.serve(8080)?;
            server.echo(8081)?;
        }
        let node = Node::parse(NODE)?;
        let case = Case { name: "site".into(), node: node.clone(), steps: Vec::new() };
        let source = Source::new(&case)?;
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let running = Mutex::new(None);
        let site = Self { running, datapath, source, node, hosts, remote, outside, flags, tools };
        site.change(endpoints)?;
        Ok(site)
    }

    /// Starts the proxy, in the place of one that is killed, and waits until it serves.
    ///
    /// # Errors
    /// It does not.
    pub fn run(&self) -> Result<()> {
        self.run_as(binary::path()?)
    }

    /// The same with another binary.
    ///
    /// # Errors
    /// As [`Site::run`].
    pub fn run_as(&self, program: &Path) -> Result<()> {
        self.run_command(&mut self.command(program)?)
    }

    /// The same by a command that ends in that of [`Site::command`].
    ///
    /// # Errors
    /// As [`Site::run`].
    pub fn run_command(&self, command: &mut Command) -> Result<()> {
        self.kill();
        *self.running() = Some(Running::start_command(command, &self.hosts.node)?);
        until("the proxy to say that it serves", || self.status().ok()).map(drop)
    }

    /// How the proxy is started.
    ///
    /// # Errors
    /// There is no binary.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let mut command = self.subcommand(program, "run")?;
        if let Some(tools) = &self.tools {
            command.env("PATH", format!("{}:{}", tools.display(), std::env::var("PATH")?));
        }
        Ok(command)
    }

    /// `kubeferry SUBCOMMAND` with all settings, and the system's programs.
    fn subcommand(&self, program: &Path, name: &str) -> Result<Command> {
        let mut command = Command::new(program);
        command.args(self.source.command(name)?.get_args());
        if let Datapath::Ebpf(places) = &self.datapath {
            places.apply(&mut command);
            if !self.flags.iter().any(|flag| flag == "--socket-lb") {
                command.args(["--socket-lb", "off"]);
            }
        }
        command.args(&self.flags);
        Ok(command)
    }

    /// Waits until the kernel has every row that is wanted and no other (`kubeferry plan --diff`); how long that took.
    ///
    /// # Errors
    /// It has not within this time: what differs is part of the message.
    pub fn until_exact_within(&self, within: Duration) -> Result<Duration> {
        until_exact(within, || {
            let mut plan = self.subcommand(binary::path()?, "plan")?;
            self.node().output(plan.arg("--diff"), "")
        })
    }

    /// The process id of the proxy.
    ///
    /// # Errors
    /// None runs.
    pub fn pid(&self) -> Result<u32> {
        self.running().as_ref().map(Running::id).context("no proxy runs")
    }

    /// Ends the proxy by SIGKILL.
    pub fn kill(&self) {
        *self.running() = None;
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the proxy as a node does.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&self) -> Result<()> {
        let running = self.running().take();
        running.map_or(Ok(()), |running| running.stop().map(drop))
    }

    /// Puts other endpoints into the cluster's objects.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn change(&self, endpoints: &[&str]) -> Result<()> {
        self.change_as(endpoints, &|manifests| manifests)
    }

    /// The same, with the text of all objects, that of the Node too, changed before it is written.
    ///
    /// # Errors
    /// As [`Site::change`].
    pub fn change_as(&self, endpoints: &[&str], edit: &dyn Fn(String) -> String) -> Result<()> {
        let mut manifests = SERVICES.replace("&ports", "");
        for service in ["web", "twin", "local"] {
            for family in ["IPv4", "IPv6"] {
                let endpoint = |name: &&str| {
                    let (v4, v6, node) = match *name {
                        "remote" => ("10.244.2.1".to_owned(), "fd00:10:244:2::1".to_owned(), "worker-2"),
                        number => (format!("10.244.1.{number}"), format!("fd00:10:244:1::{number}"), "worker-1"),
                    };
                    format!("{{addresses: ['{}'], nodeName: {node}}}", if family == "IPv4" { v4 } else { v6 })
                };
                let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
                manifests += &format!(
                    "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: {{name: {service}-{}, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}\n\
                     addressType: {family}\nports: [{{name: tcp, port: 8080}}, {{name: udp, protocol: UDP, port: 8080}}, \
                     {{name: bulk, port: 8081}}, {{name: bulk-udp, protocol: UDP, port: 8081}}, \
                     {{name: own, port: 8082}}]\nendpoints: [{}]\n",
                    family.to_lowercase(),
                    endpoints.join(", "),
                );
            }
        }
        self.source.write(&Step { manifests: edit(with_node(&self.node, &manifests)?), rows: Vec::new() })
    }

    /// The client pod.
    pub fn client(&self) -> &Netns {
        &self.hosts.host("client").namespace
    }

    /// The client of the world.
    pub fn outside(&self) -> &Netns {
        &self.outside.namespace
    }

    /// The node.
    pub fn node(&self) -> &Netns {
        &self.hosts.node
    }

    /// Where the datapath is pinned.
    ///
    /// # Panics
    /// It is nftables, which is pinned nowhere.
    pub fn places(&self) -> &Places {
        match &self.datapath {
            Datapath::Ebpf(places) => places,
            Datapath::Nftables => panic!("nftables is pinned nowhere"),
        }
    }

    /// The datapath under test.
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// What `kubeferry status` says.
    ///
    /// # Errors
    /// No proxy serves.
    pub fn status(&self) -> Result<serde_json::Value> {
        let mut command = Command::new(binary::path()?);
        let output = self.hosts.node.output(command.args(["status", "--output", "json"]), "")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let is_there = |map: &str| !status["rows"][map].is_null();
        ensure!(is_there("frontends") || is_there("frontends4"), "not synced yet: {status}");
        Ok(status)
    }

    /// Has the router take packets of no more than `mtu` bytes to a host beyond it.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn narrow(&self, to: &Host, mtu: u32) -> Result<()> {
        let change = |ip: &IpAddr| format!("{} mtu {mtu}", to.route_to(*ip).replace("route add", "route change"));
        self.hosts.host("router").namespace.ip(&to.addresses.iter().map(change).collect::<Vec<_>>())
    }

    /// Fails if the kernel tracks any connection of the node.
    ///
    /// # Errors
    /// It does.
    pub fn untracked(&self) -> Result<()> {
        let tracked = self.node().read_sysctl("net/netfilter/nf_conntrack_count")?;
        ensure!(tracked == "0", "{tracked} connections are tracked by the kernel");
        Ok(())
    }

    /// Waits until the Service answers a client pod in both families.
    ///
    /// # Errors
    /// It does not.
    pub fn until_served(&self) -> Result<()> {
        for vip in VIPS {
            let to = at(vip, 80);
            until("the first answer through the Service", || Connection::attempt(self.client(), to)?.ask().ok())?;
        }
        Ok(())
    }
}

/// An address and a port.
///
/// # Panics
/// The text is no address.
pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap_or_else(|error| panic!("{ip}: {error}")), port)
}
