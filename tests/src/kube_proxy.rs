//! A node as kube-proxy leaves it: its rules for one Service, in the shape that each of its modes gives them. They are ours,
//! made from what its README and design documents say of them.

use std::fmt::Write;
use std::net::IpAddr;

use anyhow::Result;

use crate::netns::{Netns, tool};

/// A Service in one family.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its ClusterIP, with port 80 of TCP and UDP.
    pub cluster_ip: IpAddr,
    /// The node's address, with port 30080 of both.
    pub node_ip: IpAddr,
    /// Two endpoints, with port 8080 of both.
    pub endpoints: [IpAddr; 2],
    /// The pods' range.
    pub pods: &'static str,
}

/// How kube-proxy runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// `mode: nftables`.
    Nftables,
    /// `mode: iptables`, with the iptables that writes to nf_tables.
    Iptables,
    /// `mode: iptables`, with the older one.
    IptablesLegacy,
}

impl Mode {
    /// Writes the rules, also where they are already.
    ///
    /// # Errors
    /// The mode's program is missing or refuses.
    pub fn load(self, node: &Netns, services: &[Service]) -> Result<()> {
        for service in services {
            match self {
                Self::Nftables => drop(node.nft(&["-f", "-"], &nftables(service))?),
                Self::Iptables => restore(node, service, "nft")?,
                Self::IptablesLegacy => restore(node, service, "legacy")?,
            }
        }
        Ok(())
    }

    /// What is there of its rules, as lines; empty: nothing.
    ///
    /// # Errors
    /// The mode's program is missing or refuses.
    pub fn rules(self, node: &Netns) -> Result<Vec<String>> {
        let lines = match self {
            Self::Nftables => node.nft(&["list", "tables"], "")?,
            Self::Iptables => saved(node, "nft")?,
            Self::IptablesLegacy => saved(node, "legacy")?,
        };
        // What is kubelet's is none of kube-proxy's.
        let theirs = |line: &&str| {
            line.contains("kube-proxy") || (line.contains("KUBE-") && !KUBELET.iter().any(|k| line.contains(k)))
        };
        Ok(lines.lines().filter(theirs).map(str::to_owned).collect())
    }

    /// What kubelet has beside them: lines that say the same before and after.
    ///
    /// # Errors
    /// As for [`Mode::rules`].
    pub fn kubelets(self, node: &Netns) -> Result<Vec<String>> {
        let saved = match self {
            Self::Nftables => return Ok(Vec::new()),
            Self::Iptables => saved(node, "nft")?,
            Self::IptablesLegacy => saved(node, "legacy")?,
        };
        let mut lines: Vec<_> = saved
            .lines()
            .filter(|line| KUBELET.iter().any(|chain| line.contains(chain)))
            .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
            .collect();
        lines.sort();
        Ok(lines)
    }
}

/// kubelet's chains, and another's that looks alike.
const KUBELET: [&str; 3] = ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-ROUTER-FORWARD"];

fn tables(family: &str, flavour: &str, what: &str) -> String {
    format!("{family}-{flavour}-{what}")
}

fn saved(node: &Netns, flavour: &str) -> Result<String> {
    let save = |family| node.run(|| tool(&tables(family, flavour, "save"), &[], ""))?;
    Ok(save("iptables")? + &save("ip6tables")?)
}

fn restore(node: &Netns, service: &Service, flavour: &str) -> Result<()> {
    let family = if service.cluster_ip.is_ipv4() { "iptables" } else { "ip6tables" };
    let present = node.run(|| tool(&tables(family, flavour, "save"), &[], ""))??;
    let rules = iptables(service, !present.contains("-j KUBE-SERVICES"), !present.contains("-j KUBE-FIREWALL"));
    node.run(|| tool(&tables(family, flavour, "restore"), &["--noflush"], &rules))?.map(drop)
}

/// A chain for each Service and endpoint, maps that lead there, and the hooks around them.
fn nftables(service: &Service) -> String {
    let Service { cluster_ip, node_ip, endpoints, pods } = service;
    let (ip, of, kind) = match cluster_ip {
        IpAddr::V4(_) => ("ip", "ip", "ipv4_addr"),
        IpAddr::V6(_) => ("ip6", "ip6", "ipv6_addr"),
    };
    let mut endpoint_chains = String::new();
    for (number, endpoint) in endpoints.iter().enumerate() {
        let to = std::net::SocketAddr::new(*endpoint, 8080);
        // Writing to a String does not fail.
        let _ = writeln!(
            endpoint_chains,
            "chain endpoint-{number} {{ {of} saddr {endpoint} jump mark-for-masquerade; \
             meta l4proto {{ tcp, udp }} dnat to {to}; }}"
        );
    }
    format!(
        "add table {ip} kube-proxy
delete table {ip} kube-proxy
table {ip} kube-proxy {{
  set cluster-ips {{ type {kind}; elements = {{ {cluster_ip} }}; }}
  set nodeport-ips {{ type {kind}; elements = {{ {node_ip} }}; }}
  map service-ips {{ type {kind} . inet_proto . inet_service : verdict; }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; }}
  map no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; }}
  map firewall-ips {{ type {kind} . inet_proto . inet_service : verdict; }}
  chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}
  chain masquerading {{
    meta mark & 0x4000 == 0 return
    meta mark set meta mark ^ 0x4000
    masquerade fully-random
  }}
  {endpoint_chains}
  chain service-web {{
    {of} daddr {cluster_ip} {of} saddr != {pods} jump mark-for-masquerade
    numgen random mod 2 vmap {{ 0 : goto endpoint-0, 1 : goto endpoint-1 }}
  }}
  chain external-web {{ jump mark-for-masquerade; goto service-web; }}
  chain services {{
    {of} daddr . meta l4proto . th dport vmap @service-ips
    {of} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }}
  chain reject-chain {{ reject; }}
  chain cluster-ips-check {{ {of} daddr @cluster-ips reject; }}
  chain service-endpoints-check {{ {of} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
  chain firewall-check {{ {of} daddr . meta l4proto . th dport vmap @firewall-ips; }}
  chain filter-prerouting-pre-dnat {{ type filter hook prerouting priority dstnat - 10; ct state new jump firewall-check; }}
  chain filter-output-pre-dnat {{ type filter hook output priority -110; ct state new jump firewall-check; }}
  chain filter-input {{ type filter hook input priority filter; ct state new jump service-endpoints-check; }}
  chain filter-forward {{
    type filter hook forward priority filter
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain filter-output {{
    type filter hook output priority filter
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
add element {ip} kube-proxy service-ips {{ {cluster_ip} . tcp . 80 : goto service-web, {cluster_ip} . udp . 80 : goto service-web }}
add element {ip} kube-proxy service-nodeports {{ tcp . 30080 : goto external-web, udp . 30080 : goto external-web }}
"
    )
}

/// Chains that jump from one to the next, in three tables; kubelet's, and a network plugin's, stand beside them.
fn iptables(service: &Service, hooks: bool, kubelet: bool) -> String {
    let Service { cluster_ip, node_ip: _, endpoints, pods } = service;
    let (loopback, host) = if cluster_ip.is_ipv4() { ("127.0.0.0/8", 32) } else { ("::1/128", 128) };
    let mut nat = String::from(
        "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SVC-WEBTCPWEBTCPWEBT - [0:0]
:KUBE-EXT-WEBTCPWEBTCPWEBT - [0:0]
:KUBE-SEP-ONEONEONEONEONEO - [0:0]
:KUBE-SEP-TWOTWOTWOTWOTWOT - [0:0]
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
",
    );
    let mut add = |line: String| nat += &(line + "\n");
    if hooks {
        add("-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES".to_owned());
        add("-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES".to_owned());
        add("-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING".to_owned());
    }
    for protocol in ["tcp", "udp"] {
        add(format!(
            "-A KUBE-SERVICES -d {cluster_ip}/{host} -p {protocol} -m {protocol} --dport 80 -j KUBE-SVC-WEBTCPWEBTCPWEBT"
        ));
        add(format!("-A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport 30080 -j KUBE-EXT-WEBTCPWEBTCPWEBT"));
    }
    add("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS".to_owned());
    add("-A KUBE-EXT-WEBTCPWEBTCPWEBT -j KUBE-MARK-MASQ".to_owned());
    add("-A KUBE-EXT-WEBTCPWEBTCPWEBT -j KUBE-SVC-WEBTCPWEBTCPWEBT".to_owned());
    add(format!("-A KUBE-SVC-WEBTCPWEBTCPWEBT ! -s {pods} -d {cluster_ip}/{host} -j KUBE-MARK-MASQ"));
    add("-A KUBE-SVC-WEBTCPWEBTCPWEBT -m statistic --mode random --probability 0.5 -j KUBE-SEP-ONEONEONEONEONEO"
        .to_owned());
    add("-A KUBE-SVC-WEBTCPWEBTCPWEBT -j KUBE-SEP-TWOTWOTWOTWOTWOT".to_owned());
    for (chain, endpoint) in ["KUBE-SEP-ONEONEONEONEONEO", "KUBE-SEP-TWOTWOTWOTWOTWOT"].into_iter().zip(endpoints) {
        add(format!("-A {chain} -s {endpoint}/{host} -j KUBE-MARK-MASQ"));
        let to = std::net::SocketAddr::new(*endpoint, 8080);
        for protocol in ["tcp", "udp"] {
            add(format!("-A {chain} -p {protocol} -m {protocol} -j DNAT --to-destination {to}"));
        }
    }
    let mut filter = String::from(
        "*filter
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
",
    );
    if hooks {
        for (base, chain) in [
            ("INPUT", "KUBE-PROXY-FIREWALL"),
            ("INPUT", "KUBE-NODEPORTS"),
            ("INPUT", "KUBE-EXTERNAL-SERVICES"),
            ("FORWARD", "KUBE-PROXY-FIREWALL"),
            ("FORWARD", "KUBE-FORWARD"),
            ("FORWARD", "KUBE-SERVICES"),
            ("OUTPUT", "KUBE-PROXY-FIREWALL"),
            ("OUTPUT", "KUBE-SERVICES"),
        ] {
            filter += &format!("-A {base} -m conntrack --ctstate NEW -j {chain}\n");
        }
        filter += "-A FORWARD -j KUBE-FORWARD\n";
    }
    if kubelet {
        filter += &format!(
            ":KUBE-FIREWALL - [0:0]\n:KUBE-ROUTER-FORWARD - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A FORWARD -j KUBE-ROUTER-FORWARD\n\
             -A KUBE-FIREWALL ! -s {loopback} -d {loopback} -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n\
             -A KUBE-ROUTER-FORWARD -m comment --comment \"somebody else's\" -j RETURN\n"
        );
    }
    let canaries = if kubelet { ":KUBE-KUBELET-CANARY - [0:0]\n" } else { "" };
    format!("*mangle\n:KUBE-PROXY-CANARY - [0:0]\n{canaries}COMMIT\n{nat}COMMIT\n{filter}COMMIT\n")
}
