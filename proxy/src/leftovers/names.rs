//! Which names are kube-proxy's (pkg/proxy/{iptables,ipvs,nftables}), today's and those of versions that an update may come
//! from.

/// kube-proxy's table of both families in its nftables mode.
pub const TABLE: &str = "kube-proxy";
/// Refuses, behind the translation, what goes to a ClusterIP still, at a port that is no Service's.
pub const CLUSTER_IPS_CHECK: &str = "cluster-ips-check";
/// The device that holds the addresses of IPVS's virtual servers.
pub const DEVICE: &str = "kube-ipvs0";
/// Marks packets for masquerading. Others (CNI's portmap) are told to use it, too.
pub const MARK: &str = "KUBE-MARK-MASQ";
/// Masquerades what is marked.
pub const MASQUERADE: &str = "KUBE-POSTROUTING";
/// Lets through what is marked where the policy of FORWARD is DROP.
pub const FORWARD: &str = "KUBE-FORWARD";

/// Chains of iptables and ipvs mode. kubelet's are not among them: KUBE-FIREWALL, KUBE-MARK-DROP, KUBE-IPTABLES-HINT,
/// KUBE-KUBELET-CANARY.
const CHAINS: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    MASQUERADE,
    MARK,
    FORWARD,
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// Chains of single services and endpoints, which end in a hash.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-XLB-", "KUBE-FW-", "KUBE-SEP-"];
/// Sets of ipvs mode, for IPv4.
const SETS: [&str; 17] = [
    "KUBE-LOOP-BACK",
    "KUBE-CLUSTER-IP",
    "KUBE-EXTERNAL-IP",
    "KUBE-EXTERNAL-IP-LOCAL",
    "KUBE-LOAD-BALANCER",
    "KUBE-LOAD-BALANCER-LOCAL",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
    "KUBE-NODE-PORT-TCP",
    "KUBE-NODE-PORT-LOCAL-TCP",
    "KUBE-NODE-PORT-UDP",
    "KUBE-NODE-PORT-LOCAL-UDP",
    "KUBE-NODE-PORT-SCTP-HASH",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
    "KUBE-HEALTH-CHECK-NODE-PORT",
    "KUBE-IPVS-IPS",
];
/// Chains that base chains lead to; to all others only kube-proxy's own chains do.
const ENTRANCES: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    MASQUERADE,
    FORWARD,
    "KUBE-PROXY-FIREWALL",
    "KUBE-NODE-PORT",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// How long the kernel lets the name of a set be (IPSET_MAXNAMELEN without the end).
const SET_NAME: usize = 31;

/// Whether a chain of iptables is kube-proxy's.
pub fn is_chain(name: &str) -> bool {
    CHAINS.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether kube-proxy has base chains lead to this chain of its own. A rule there that leads to another one, as
/// `-A PREROUTING -s 172.31.0.0/16 -j KUBE-MARK-MASQ`, is somebody else's.
pub fn is_entrance(name: &str) -> bool {
    ENTRANCES.contains(&name)
}

/// Whether a set is kube-proxy's; those for IPv6 are called `KUBE-6-…`, cut to what the kernel takes.
pub fn is_set(name: &str) -> bool {
    let v6 = |set: &str| {
        let mut name = set.replacen("KUBE-", "KUBE-6-", 1);
        name.truncate(SET_NAME);
        name
    };
    SETS.iter().any(|set| *set == name || v6(set) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_and_others_chains_are_not_kube_proxys() {
        for name in
            ["KUBE-SERVICES", "KUBE-SVC-ERIFXISQEP7F7OF4", "KUBE-SEP-X", "KUBE-POSTROUTING", "KUBE-PROXY-CANARY"]
        {
            assert!(is_chain(name), "{name}");
        }
        let others = [
            "KUBE-FIREWALL",
            "KUBE-MARK-DROP",
            "KUBE-KUBELET-CANARY",
            "KUBE-IPTABLES-HINT",
            "KUBE-ROUTER-SERVICES",
            "KUBE-NWPLCY-DEFAULT",
            "KUBE-POD-FW-X",
            "PREROUTING",
            "DOCKER",
            "CNI-HOSTPORT-DNAT",
            "cali-PREROUTING",
            "kube-services",
        ];
        for name in others {
            assert!(!is_chain(name), "{name}");
        }
    }

    #[test]
    fn sets_of_both_families() {
        for name in ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-IPVS-IPS"] {
            assert!(is_set(name), "{name}");
        }
        for name in ["KUBE-SRC-ABC", "KUBE-DST-ABC", "KUBE-6-", "cali40all-ipam-pools", "mine"] {
            assert!(!is_set(name), "{name}");
        }
    }
}
