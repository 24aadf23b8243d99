//! The small cluster of many tests: a node with two web pods, a pod that asks, and a client outside; and `kubeferry run` on it, which
//! follows a folder of manifests.

use std::net::{AddrParseError, IpAddr};

use anyhow::{Result, ensure};

use crate::bpf::pinned::Pinned;
use crate::client::Running;
use crate::datapath::Datapath;
use crate::executors::Source;
use crate::flows::{Case, Node, Step, with_node};
use crate::hosts::Hosts;
use crate::netns::Netns;

/// The node's settings.
pub const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1, '2001:db8:2::1']}
cluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']
";

/// One endpoint of the Service `web` in each family, the pod `web1`.
pub const ENDPOINT: &str = "
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: ['fd00:10:244:1::1'], nodeName: worker-1}]
";

/// The namespaces: the node with the pods `web1` and `web2`, which serve at 8080, the pod `client`, and `outside`.
///
/// # Errors
/// They cannot be made.
pub fn hosts() -> Result<Hosts> {
    let pair = |v4: &str, v6: &str| Ok::<[IpAddr; 2], AddrParseError>([v4.parse()?, v6.parse()?]);
    let hosts = [
        ("web1", pair("10.244.1.1", "fd00:10:244:1::1")?),
        ("web2", pair("10.244.1.2", "fd00:10:244:1::2")?),
        ("client", pair("10.244.1.7", "fd00:10:244:1::7")?),
        ("outside", pair("203.0.113.9", "2001:db8:113::9")?),
    ];
    let hosts: Vec<_> = hosts.iter().map(|(name, addresses)| (*name, addresses.as_slice())).collect();
    let hosts = Hosts::build(&pair("192.0.2.1", "2001:db8:2::1")?, &hosts)?;
    // For connections of the node to its own node ports over eBPF without the socket hook.
    hosts.node.sysctl("net/ipv4/conf/lo/accept_local", "1")?;
    for name in ["web1", "web2"] {
        hosts.host(name).serve(8080)?;
    }
    Ok(hosts)
}

/// The whole; see the module.
#[derive(Debug)]
pub struct Small {
    // Ends before the namespaces do.
    _running: Running,
    /// The namespaces.
    pub hosts: Hosts,
    source: Source,
    node: Node,
    /// What carries the packets.
    pub datapath: Datapath,
}

impl Small {
    /// Starts it with these objects, documents of YAML. They may not be in force yet.
    ///
    /// # Errors
    /// The namespaces cannot be made, or the binary is not there.
    pub fn start(datapath: Datapath, objects: &str) -> Result<Self> {
        let (hosts, node) = (hosts()?, Node::parse(NODE)?);
        let source = Source::new(&Case { name: "small".into(), node: node.clone(), steps: Vec::new() })?;
        source.write(&step(&node, objects)?)?;
        let running = datapath.run(&source, &hosts.node)?;
        Ok(Self { _running: running, hosts, source, node, datapath })
    }

    /// Replaces the objects.
    ///
    /// # Errors
    /// They are no YAML.
    pub fn change(&self, objects: &str) -> Result<()> {
        self.source.write(&step(&self.node, objects)?)
    }

    /// Has another program delete every frontend; the proxy puts them back at its next look.
    ///
    /// # Errors
    /// There are none, or the kernel refuses.
    pub fn lose_frontends(&self) -> Result<()> {
        match &self.datapath {
            Datapath::Nftables => {
                let script = "flush map inet kubeferry frontends4; flush map inet kubeferry frontends6";
                self.hosts.node.nft(&["-f", "-"], script).map(drop)
            }
            Datapath::Ebpf(places) => {
                ensure!(Pinned::open(places.bpffs())?.delete_frontends()? > 0, "there were no frontends");
                Ok(())
            }
        }
    }

    /// The pod that asks.
    pub fn client(&self) -> &Netns {
        &self.hosts.host("client").namespace
    }

    /// The client outside.
    pub fn outside(&self) -> &Netns {
        &self.hosts.host("outside").namespace
    }
}

fn step(node: &Node, objects: &str) -> Result<Step> {
    Ok(Step { manifests: with_node(node, objects)?, rows: Vec::new() })
}
