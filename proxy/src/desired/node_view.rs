//! What the datapath has to know of this node: a pure function of the settings, the Node object and the addresses that
//! the interfaces hold.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::scheduler::Schedule;
use crate::settings::{DatapathSettings, DetectLocal, NodePortAddresses, ServiceMetrics};
use crate::state::objects::{Family, Node};

/// This node, resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeView {
    /// Our Node's name: endpoints with this `nodeName` are local.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Every address that the node holds; loopback addresses are always held and need not be listed.
    pub addresses: BTreeSet<IpAddr>,
    /// The primary address of each family.
    pub primary: Vec<IpAddr>,
    /// How pods are recognised, for IPv4 and for IPv6.
    pub detectors: [Detector; 2],
    /// The detectors surely recognise every pod of this node, by its address: the Node's pod ranges lie inside; or there is
    /// no detector.
    pub all_pods_detected: bool,
    /// Where node ports answer, for IPv4 and for IPv6.
    pub node_ports: [NodePorts; 2],
    /// All traffic to ClusterIPs is masqueraded.
    pub masquerade_all: bool,
    /// The mark that asks for masquerading: `1 << masqueradeBit`.
    pub masquerade_mark: u32,
    /// How services choose that say nothing themselves.
    pub schedule: Schedule,
    /// Whether the datapath counts the connections of endpoints.
    pub counts_connections: bool,
    /// TCP ports of the node that this process itself serves: no node port takes them.
    pub own_ports: BTreeSet<u16>,
    /// What is counted of each service port.
    pub service_metrics: ServiceMetrics,
}

/// How a packet of a pod of this node is recognised (kube-proxy's local-traffic detector).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Detector {
    /// No detector for this family: no source counts as a pod.
    None,
    /// By source address.
    Cidr(IpNet),
    /// By the interface that the packet came in by.
    Interface(String),
    /// By the first letters of the interface that the packet came in by.
    InterfacePrefix(String),
}

impl Detector {
    /// Whether there is a detector at all.
    pub fn is_some(&self) -> bool {
        *self != Self::None
    }

    /// Whether a packet from `source`, come in by `iif` (`None` for the node's own), is a pod's.
    pub fn is_pod(&self, source: IpAddr, iif: Option<&str>) -> bool {
        match self {
            Self::None => false,
            Self::Cidr(net) => net.contains(&source),
            Self::Interface(name) => iif == Some(name),
            Self::InterfacePrefix(prefix) => iif.is_some_and(|iif| iif.starts_with(prefix.as_str())),
        }
    }
}

/// The addresses at which node ports of one family answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePorts {
    /// Every address of the node but loopback.
    All,
    /// Only these.
    Only(BTreeSet<IpAddr>),
}

impl NodeView {
    /// Resolves the settings for this node. `held` are the addresses of the interfaces.
    pub fn new(name: Arc<str>, settings: &DatapathSettings, node: Option<&Node>, held: &BTreeSet<IpAddr>) -> Self {
        let mut addresses = held.clone();
        addresses.retain(|ip| !ip.is_loopback());
        let primary = primary_ips(settings, node);
        let detectors = Family::BOTH.map(|family| detector(&settings.detect_local, node, family));
        let node_ports =
            Family::BOTH.map(|family| node_ports(&settings.node_port_addresses, &primary, &addresses, family));
        let pod_ranges = node.map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
        let all_pods_detected =
            Family::BOTH.iter().zip(&detectors).all(|(family, detector)| detects_all(detector, pod_ranges, *family));
        Self {
            name,
            zone: node.and_then(|node| node.zone.clone()),
            addresses,
            primary,
            detectors,
            all_pods_detected,
            node_ports,
            masquerade_all: settings.masquerade_all,
            masquerade_mark: 1 << settings.masquerade_bit,
            schedule: settings.schedule,
            counts_connections: settings.counts_connections,
            own_ports: settings.own_ports.clone(),
            service_metrics: settings.service_metrics,
        }
    }

    /// Whether services come to the same here as on `other`: addresses may differ, which come and go with every pod
    /// (a link-local one for each new interface) and only decide where node ports answer.
    pub fn gives_same_targets(&self, other: &Self) -> bool {
        let Self { name, zone, addresses: _, primary, detectors, all_pods_detected: _, node_ports: _, .. } = self;
        let Self { masquerade_all, masquerade_mark, schedule, counts_connections, own_ports, .. } = self;
        (name, zone, primary, detectors) == (&other.name, &other.zone, &other.primary, &other.detectors)
            && (masquerade_all, masquerade_mark) == (&other.masquerade_all, &other.masquerade_mark)
            && (schedule, counts_connections) == (&other.schedule, &other.counts_connections)
            && *own_ports == other.own_ports
    }

    /// Whether something is counted of service ports.
    pub fn counts(&self) -> bool {
        self.service_metrics != ServiceMetrics::Off
    }

    /// Whether the node holds this address (`fib daddr type local`).
    pub fn holds(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.contains(&ip)
    }

    /// The detector of a family.
    pub fn detector(&self, family: Family) -> &Detector {
        &self.detectors[family as usize]
    }

    /// Where node ports of a family answer.
    pub fn node_ports(&self, family: Family) -> &NodePorts {
        &self.node_ports[family as usize]
    }

    /// Whether node ports answer at this address. Loopback never does (kube-proxy's nftables mode).
    pub fn answers_node_ports(&self, ip: IpAddr) -> bool {
        !ip.is_loopback()
            && match self.node_ports(Family::of(ip)) {
                NodePorts::All => self.holds(ip),
                NodePorts::Only(addresses) => addresses.contains(&ip),
            }
    }
}

fn primary_ips(settings: &DatapathSettings, node: Option<&Node>) -> Vec<IpAddr> {
    let from_node = node.map(|node| node.primary_ips.as_slice()).unwrap_or_default();
    let Some(bind) = settings.own_address() else {
        return from_node.to_vec();
    };
    let other = from_node.iter().filter(|ip| ip.is_ipv4() != bind.is_ipv4());
    std::iter::once(bind).chain(other.copied()).collect()
}

fn detector(mode: &DetectLocal, node: Option<&Node>, family: Family) -> Detector {
    let first = |nets: &[IpNet]| {
        nets.iter()
            .find(|net| Family::of(net.addr()) == family)
            .map_or(Detector::None, |net| Detector::Cidr(net.trunc()))
    };
    match mode {
        DetectLocal::ClusterCidr(nets) => first(nets),
        DetectLocal::NodeCidr => first(node.map(|node| node.pod_cidrs.as_slice()).unwrap_or_default()),
        DetectLocal::BridgeInterface(name) => Detector::Interface(name.clone()),
        DetectLocal::InterfaceNamePrefix(prefix) => Detector::InterfacePrefix(prefix.clone()),
    }
}

/// Whether every pod of a node with these ranges is told by a detector, or there is none.
fn detects_all(detector: &Detector, pod_ranges: &[IpNet], family: Family) -> bool {
    let mut ranges = pod_ranges.iter().filter(|net| Family::of(net.addr()) == family).peekable();
    match detector {
        Detector::None => true,
        Detector::Cidr(pods) => ranges.peek().is_some() && ranges.all(|net| pods.contains(net)),
        Detector::Interface(_) | Detector::InterfacePrefix(_) => false,
    }
}

fn node_ports(setting: &NodePortAddresses, primary: &[IpAddr], held: &BTreeSet<IpAddr>, family: Family) -> NodePorts {
    let (primary, nets) = match setting {
        NodePortAddresses::Primary(nets) => (primary, nets),
        NodePortAddresses::Cidrs(nets) => (&[][..], nets),
    };
    let primary = primary.iter().filter(|ip| !ip.is_loopback()).map(|ip| IpNet::from(*ip));
    let nets: Vec<IpNet> = primary.chain(nets.iter().copied()).filter(|net| Family::of(net.addr()) == family).collect();
    if nets.is_empty() || nets.iter().any(|net| net.prefix_len() == 0) {
        return NodePorts::All;
    }
    NodePorts::Only(held.iter().filter(|ip| nets.iter().any(|net| net.contains(*ip))).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> BTreeSet<IpAddr> {
        ["192.168.0.2", "192.168.1.2", "2001:db8::1"].iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn node(pod_ranges: &[&str]) -> Node {
        Node {
            name: "n".into(),
            zone: None,
            primary_ips: vec!["192.168.0.2".parse().unwrap()],
            addresses: vec![],
            pod_cidrs: nets(pod_ranges),
            deleting: false,
            to_be_deleted: false,
        }
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn view(addresses: NodePortAddresses) -> NodeView {
        let settings = DatapathSettings { node_port_addresses: addresses, ..Default::default() };
        NodeView::new("n".into(), &settings, Some(&node(&[])), &held())
    }

    #[test]
    fn pods_are_surely_detected_where_the_nodes_ranges_lie_inside() {
        let all = |detect_local: DetectLocal, ranges: &[&str]| {
            let settings = DatapathSettings { detect_local, ..Default::default() };
            NodeView::new("n".into(), &settings, Some(&node(ranges)), &held()).all_pods_detected
        };
        let cluster = |texts: &[&str]| DetectLocal::ClusterCidr(nets(texts));
        assert!(all(cluster(&[]), &[]) && all(cluster(&[]), &["10.244.1.0/24"]), "no detector");
        assert!(all(cluster(&["10.244.0.0/16"]), &["10.244.1.0/24"]));
        assert!(all(cluster(&["10.244.0.0/16"]), &["10.244.1.0/24", "fd00:1::/64"]), "none for IPv6");
        assert!(all(cluster(&["10.244.0.0/16", "fd00::/16"]), &["10.244.1.0/24", "fd00:1::/64"]));
        assert!(!all(cluster(&["10.244.0.0/16"]), &[]), "the ranges are not known");
        assert!(!all(cluster(&["10.244.0.0/16"]), &["10.245.1.0/24"]), "another range");
        assert!(!all(cluster(&["10.244.0.0/16"]), &["10.0.0.0/8"]), "a wider range");
        assert!(!all(cluster(&["10.244.0.0/16", "fd00::/16"]), &["10.244.1.0/24"]), "one family is not known");
        assert!(all(DetectLocal::NodeCidr, &["10.244.1.0/24"]));
        assert!(!all(DetectLocal::NodeCidr, &["10.244.1.0/24", "10.244.9.0/24"]), "the detector has the first alone");
        assert!(!all(DetectLocal::BridgeInterface("cni0".into()), &["10.244.1.0/24"]));
    }

    #[test]
    fn primary_limits_its_own_family_and_leaves_the_other_open() {
        let view = view(NodePortAddresses::Primary(Vec::new()));
        assert!(view.answers_node_ports("192.168.0.2".parse().unwrap()));
        assert!(!view.answers_node_ports("192.168.1.2".parse().unwrap()));
        assert!(view.answers_node_ports("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn cidrs_beside_primary_add_to_it() {
        let view = view(NodePortAddresses::Primary(nets(&["192.168.1.0/24", "127.0.0.0/8", "::1/128"])));
        assert!(view.answers_node_ports("192.168.0.2".parse().unwrap()));
        assert!(view.answers_node_ports("192.168.1.2".parse().unwrap()));
        assert!(!view.answers_node_ports("2001:db8::1".parse().unwrap()), "loopback alone leaves nothing of IPv6");
        assert!(!view.answers_node_ports("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn cidrs_pick_held_addresses_and_never_loopback() {
        let view = view(NodePortAddresses::Cidrs(vec!["192.168.1.0/24".parse().unwrap(), "::/0".parse().unwrap()]));
        assert!(!view.answers_node_ports("192.168.0.2".parse().unwrap()));
        assert!(view.answers_node_ports("192.168.1.2".parse().unwrap()));
        assert!(!view.answers_node_ports("192.168.1.3".parse().unwrap()));
        assert!(!view.answers_node_ports("::1".parse().unwrap()));
    }
}
