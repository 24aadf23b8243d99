//! Several pods on one bridge of the node, as with the CNI plugin `bridge`. What goes from one to another does not pass the
//! node's IP layer.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::client::{Connection, Running, until};
use crate::datapath::Datapath;
use crate::executors::Source;
use crate::flows::{Case, Node, Step, with_node};
use crate::hosts::Host;
use crate::netns::{End, Netns, link, mac_text};
use crate::small;

/// The node's addresses on the bridge: the pods' gateways.
pub const GATEWAYS: [&str; 2] = ["10.244.1.254", "fd00:10:244:1::fe"];
/// The bridge's MAC address.
pub const BRIDGE: [u8; 6] = [2, 0, 0, 0, 9, 9];
/// The pods, and their addresses.
pub const PODS: [(&str, [&str; 2]); 2] =
    [("web", ["10.244.1.1", "fd00:10:244:1::1"]), ("client", ["10.244.1.7", "fd00:10:244:1::7"])];
/// The Service in each family.
pub const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];
const NODE: &str = "
name: worker-1
addresses: {eth0: [10.244.1.254, 'fd00:10:244:1::fe']}
detect-local-mode: BridgeInterface
pod-bridge-interface: cni0
";
const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  ipFamilies: [IPv4, IPv6]
  ports: [{name: tcp, port: 80}, {name: udp, protocol: UDP, port: 80}]
";

/// A node with the bridge `cni0`, the pods `web` and `client` on it, and `kubeferry run`.
#[derive(Debug)]
pub struct Bridged {
    // Ends before the namespaces do.
    _running: Running,
    /// The node.
    pub node: Netns,
    pods: Vec<Host>,
    _source: Source,
    datapath: Datapath,
}

impl Bridged {
    /// Builds it and serves. `call`: what `net.bridge.bridge-nf-call-iptables` and `-ip6tables` are in the node's namespace.
    ///
    /// # Errors
    /// The kernel has no br_netfilter; a right, a tool or the binary is missing.
    pub fn start(datapath: Datapath, call: bool, masquerade_all: bool) -> Result<Self> {
        let node = Netns::new("node")?;
        let keys = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
        let known = node.run(|| Path::new("/proc/sys").join(keys[0]).exists())?;
        ensure!(known, "this kernel has no br_netfilter for the tests: modprobe br_netfilter");
        for key in keys {
            node.sysctl(key, if call { "1" } else { "0" })?;
        }
        node.sysctl("net/ipv4/ip_forward", "1")?;
        node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        // Pods must not learn that they could talk to each other directly instead.
        node.sysctl("net/ipv4/conf/all/send_redirects", "0")?;
        node.sysctl("net/ipv4/conf/default/send_redirects", "0")?;
        let add = format!("link add cni0 address {} type bridge", mac_text(BRIDGE));
        node.ip(&[add.as_str(), "link set cni0 addrgenmode none", "link set cni0 up"])?;
        node.ip(&[
            format!("addr add {}/24 dev cni0", GATEWAYS[0]),
            format!("addr add {}/64 dev cni0 nodad", GATEWAYS[1]),
            // The node asks from here who has a pod's address.
            "addr add fe80::fe/64 dev cni0 nodad".into(),
            // Some route to the Service, for the node's own packets; they never take it.
            "route add default dev cni0".into(),
            "route add ::/0 dev cni0".into(),
        ])?;
        let pods = PODS.iter().enumerate().map(|(number, (name, addresses))| plug(&node, number, name, addresses));
        let pods = pods.collect::<Result<_>>()?;
        let mut parsed = Node::parse(NODE)?;
        parsed.masquerade_all = masquerade_all;
        let case = Case { name: "bridge".into(), node: parsed.clone(), steps: Vec::new() };
        let source = Source::new(&case)?;
        source.write(&Step {
            manifests: with_node(&parsed, &(MANIFESTS.to_owned() + small::ENDPOINT))?,
            rows: Vec::new(),
        })?;
        let running = datapath.run(&source, &node)?;
        let bridged = Self { _running: running, node, pods, _source: source, datapath };
        let from = match bridged.datapath {
            // The node is not behind its bridge.
            Datapath::Nftables => &bridged.node,
            // The node's own packets would need a next hop that answers.
            Datapath::Ebpf(_) => bridged.pod("client"),
        };
        for vip in VIPS {
            let to = vip.parse()?;
            until("the Service to answer", || Connection::attempt(from, to))?;
        }
        Ok(bridged)
    }

    /// A pod's namespace.
    ///
    /// # Panics
    /// There is none of this name.
    pub fn pod(&self, name: &str) -> &Netns {
        let pod = self.pods.iter().find(|pod| pod.name == name);
        &pod.unwrap_or_else(|| panic!("no pod {name}")).namespace
    }
}

/// A pod on the bridge, which serves.
fn plug(node: &Netns, number: usize, name: &str, addresses: &[&str]) -> Result<Host> {
    let (namespace, number) = (Netns::new(name)?, u8::try_from(number)?);
    let mac = |end| [2, 0, 0, 0, end, number];
    let near = End { namespace: node, interface: name, mac: mac(1) };
    link(near, End { namespace: &namespace, interface: "eth0", mac: mac(2) })?;
    node.ip(&[format!("link set {name} master cni0")])?;
    namespace.ip(&[
        format!("addr add {}/24 dev eth0", addresses[0]),
        format!("addr add {}/64 dev eth0 nodad", addresses[1]),
        format!("route add default via {}", GATEWAYS[0]),
        format!("route add ::/0 via {}", GATEWAYS[1]),
    ])?;
    let addresses = addresses.iter().map(|ip| ip.parse().with_context(|| (*ip).to_owned())).collect::<Result<_>>()?;
    let host = Host { name: name.into(), addresses, namespace };
    host.serve(8080)?;
    Ok(host)
}
