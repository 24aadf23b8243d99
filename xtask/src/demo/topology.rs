//! The demo's cluster, each machine and each pod a network namespace:
//!
//! ```text
//!    client 192.0.2.9                       shell 10.244.1.100   web-1, web-3, web-5 10.244.1.x
//!        │                                      │                    │
//!      router ───────── 172.18.0.0/16 ───── node-1 172.18.0.2 (kubeferry)
//!                            └───────────── node-2 172.18.0.3 (kubeferry) ── web-2, web-4 10.244.2.x
//! ```
//!
//! Every pod has a link of its own to its node and one route, by way of 169.254.1.1, as common network plugins do it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::manifests::Endpoint;
use super::web;
use crate::datapath::{Backend, Datapath};
use crate::netns::Namespace;
use crate::process::{Process, wait_until};
use crate::step;

/// Every pod's address is in here.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// Namespaces are named `PREFIX-PID-NAME`.
pub const PREFIX: &str = "kfdemo";
/// The outside client's address, which no node knows.
pub const CLIENT: &str = "192.0.2.9";

/// A node of the demo.
#[derive(Clone, Copy, Debug)]
pub struct NodePlan {
    pub name: &'static str,
    pub address: &'static str,
    pub pods: &'static str,
}

/// Both nodes.
pub const NODES: [NodePlan; 2] = [
    NodePlan { name: "node-1", address: "172.18.0.2", pods: "10.244.1.0/24" },
    NodePlan { name: "node-2", address: "172.18.0.3", pods: "10.244.2.0/24" },
];

/// All namespaces of the demo and the programs in them. Dropping it removes them, pods first: they run in nodes' cgroups.
#[derive(Debug)]
pub struct Cluster {
    pub pods: Vec<Pod>,
    pub nodes: Vec<Node>,
    pub router: Namespace,
    pub client: Namespace,
    pub shell: Namespace,
    home: PathBuf,
}

/// A node: its namespace ends before the places that its datapath has.
#[derive(Debug)]
pub struct Node {
    pub namespace: Namespace,
    pub datapath: Datapath,
}

/// A pod with its web server.
#[derive(Debug)]
pub struct Pod {
    pub name: String,
    pub address: String,
    pub node: usize,
    namespace: Namespace,
    server: Process,
}

impl Cluster {
    /// Makes the namespaces and joins them; there are no web pods yet. Logs go to `home`.
    pub fn create(home: &Path, backend: Backend) -> anyhow::Result<Self> {
        let router = namespace("router")?;
        router.ip("link add lan type bridge\naddr add 172.18.0.1/16 dev lan\nlink set lan up")?;
        let client = namespace("client")?;
        router.ip(&format!(
            "link add client type veth peer name eth0 netns {0}\naddr add 192.0.2.1/24 dev client\nlink set client up",
            client.name()
        ))?;
        client.ip(&format!("addr add {CLIENT}/24 dev eth0\nlink set eth0 up\nroute add default via 192.0.2.1"))?;
        let mut nodes = Vec::new();
        for plan in NODES {
            let node = namespace(plan.name)?;
            router.ip(&format!(
                "link add {0} type veth peer name eth0 netns {1}\nlink set {0} master lan up",
                plan.name,
                node.name()
            ))?;
            node.ip(&format!(
                "addr add {}/16 dev eth0\nlink set eth0 up\nroute add default via 172.18.0.1",
                plan.address
            ))?;
            for other in NODES.iter().filter(|other| other.name != plan.name) {
                node.ip(&format!("route add {} via {}", other.pods, other.address))?;
            }
            nodes.push(Node { namespace: node, datapath: Datapath::create(backend, home, plan.name)? });
        }
        let shell = namespace("shell")?;
        join_pod(&nodes[0].namespace, &shell, "shell", "10.244.1.100")?;
        Ok(Self { pods: Vec::new(), nodes, router, client, shell, home: home.to_owned() })
    }

    /// Starts web pod `number`, odd ones on node-1, and waits until its server listens.
    pub fn add_pod(&mut self, number: usize) -> anyhow::Result<()> {
        let node = (number + 1) % 2;
        let name = format!("web-{number}");
        let address = format!("10.244.{}.{}", node + 1, 10 + number);
        let namespace = namespace(&name)?;
        join_pod(&self.nodes[node].namespace, &namespace, &name, &address)?;
        let own = std::env::current_exe().context("where is xtask?")?;
        let log = self.home.join(format!("{name}.log"));
        let mut command = namespace.command(own);
        command.args(["web", &name]);
        if let Some(cgroup) = self.nodes[node].datapath.cgroup() {
            command.arg("--cgroup").arg(cgroup);
        }
        let mut server = Process::start(&name, &mut command, &log)?;
        wait_until(&format!("{name} to listen"), Duration::from_secs(10), || {
            server.check()?;
            namespace.enter(|| std::net::TcpStream::connect(("127.0.0.1", web::PORT)).is_ok())
        })?;
        step::note(format!("{name} serves on {}, at {address}", NODES[node].name));
        self.pods.push(Pod { name, address, node, namespace, server });
        Ok(())
    }

    /// Ends a pod as the kubelet does: SIGTERM, then its namespace goes.
    pub fn remove_pod(&mut self, name: &str) -> anyhow::Result<()> {
        let index = self.pods.iter().position(|pod| pod.name == name).with_context(|| format!("no pod {name}"))?;
        let mut pod = self.pods.remove(index);
        pod.server.stop()?;
        drop(pod.namespace);
        Ok(())
    }

    /// The pods as the EndpointSlice lists them; `terminating` names one that is on its way out.
    pub fn endpoints(&self, terminating: Option<&str>) -> Vec<Endpoint> {
        let endpoint = |pod: &Pod| Endpoint {
            pod: pod.name.clone(),
            address: pod.address.clone(),
            node: NODES[pod.node].name,
            terminating: terminating == Some(pod.name.as_str()),
        };
        self.pods.iter().map(endpoint).collect()
    }

    /// Leaves everything up when we go.
    pub fn leave(self) {
        for node in self.nodes {
            node.namespace.leave();
            node.datapath.leave();
        }
        [self.router, self.client, self.shell].into_iter().for_each(Namespace::leave);
        for pod in self.pods {
            pod.namespace.leave();
            pod.server.leave();
        }
    }
}

fn namespace(name: &str) -> anyhow::Result<Namespace> {
    Namespace::create(format!("{PREFIX}-{}-{name}", std::process::id()))
}

/// Links a pod to its node. The node's end has a fixed hardware address that the pod knows: no proxy ARP is needed.
fn join_pod(node: &Namespace, pod: &Namespace, name: &str, address: &str) -> anyhow::Result<()> {
    const GATEWAY: &str = "ee:ee:ee:ee:ee:ee";
    node.ip(&format!(
        "link add {name} address {GATEWAY} type veth peer name eth0 netns {0}\nlink set {name} up\n\
         route add {address}/32 dev {name}",
        pod.name()
    ))?;
    pod.ip(&format!(
        "addr add {address}/32 dev eth0\nlink set eth0 up\nroute add 169.254.1.1 dev eth0 scope link\n\
         neigh add 169.254.1.1 lladdr {GATEWAY} dev eth0 nud permanent\nroute add default via 169.254.1.1"
    ))
}
