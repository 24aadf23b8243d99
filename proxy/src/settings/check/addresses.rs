//! Addresses: where node ports answer, what the node holds, where we serve.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Check, without_blanks};
use crate::config::Problem;
use crate::settings::merge::Given;
use crate::settings::{NodePortAddresses, ProxyMode};
use crate::state::convert::sloppy::{parse_cidr, parse_ip};

const PRIMARY: &str = "primary";

/// The other words in `nodePortAddresses`, and what they stand for (Kubernetes 1.37, KEP-6032).
const KEYWORDS: [(&str, [&str; 2]); 2] = [("all", ["0.0.0.0/0", "::/0"]), ("localhost", ["127.0.0.0/8", "::1/128"])];

impl Check<'_> {
    pub(super) fn node_port_addresses(&mut self, mode: ProxyMode) -> NodePortAddresses {
        let addresses = self.selected_addresses(mode);
        self.localhost_node_ports(mode, &addresses);
        addresses
    }

    fn selected_addresses(&mut self, mode: ProxyMode) -> NodePortAddresses {
        let flag = self.given.datapath().nodeport_addresses.as_ref();
        let given = self.given.texts(flag, "--nodeport-addresses", "nodePortAddresses");
        // `--nodeport-addresses=` is a list of nothing, an empty text in the file is a text.
        let said = |text: &&String| flag.is_none() || !text.is_empty();
        let texts: Vec<&str> = given.iter().flat_map(|g| &g.value).filter(said).map(String::as_str).collect();
        if texts.is_empty() {
            if mode == ProxyMode::Nftables {
                return NodePortAddresses::Primary(Vec::new());
            }
            // kube-proxy's checkBadConfig says it, too.
            let text = "nodePortAddresses is not set: node ports answer at all addresses of the node; `primary` limits \
                        them to the Node's first address of each family";
            self.warnings.push(text.to_owned());
            return NodePortAddresses::Cidrs(Vec::new());
        }
        let mut cidrs = Vec::new();
        for text in texts.iter().filter(|text| **text != PRIMARY) {
            match KEYWORDS.iter().find(|(keyword, _)| keyword == text) {
                Some((_, nets)) => cidrs.extend(nets.iter().filter_map(|net| parse_cidr(net))),
                None => match parse_cidr(text) {
                    Some(cidr) => cidrs.push(cidr),
                    None => self.problems.push(Problem {
                        what: given.as_ref().map(|g| g.what.clone()).unwrap_or_default(),
                        value: format!("{text:?}"),
                        why: format!(
                            "must be CIDRs such as 192.168.0.0/16, `primary`, `localhost` or `all`{}",
                            without_blanks(text)
                        ),
                    }),
                },
            }
        }
        for cidr in cidrs.iter().filter(|cidr| cidr.prefix_len() > 0 && cidr.addr().is_loopback()) {
            self.warnings.push(format!("node ports never answer at loopback addresses: {cidr} adds none"));
        }
        if texts.contains(&PRIMARY) { NodePortAddresses::Primary(cidrs) } else { NodePortAddresses::Cidrs(cidrs) }
    }

    /// kube-proxy's iptables mode lets node ports answer at 127.0.0.1 unless it is told not to.
    fn localhost_node_ports(&mut self, mode: ProxyMode, addresses: &NodePortAddresses) {
        let path = "iptables.localhostNodePorts";
        let wanted = self.given.config.bool(path);
        let origin = self.given.config.origin(path);
        let all_of_v4 = |cidr: &IpNet| cidr.addr().is_ipv4() && cidr.prefix_len() == 0;
        let all_v4 = match addresses {
            NodePortAddresses::Primary(cidrs) => cidrs.iter().any(all_of_v4),
            NodePortAddresses::Cidrs(cidrs) => {
                let mut v4 = cidrs.iter().filter(|cidr| cidr.addr().is_ipv4()).peekable();
                v4.peek().is_none() || v4.any(all_of_v4)
            }
        };
        if mode == ProxyMode::Iptables && wanted != Some(false) && all_v4 {
            self.warnings.push(format!(
                "node ports do not answer at 127.0.0.1, as they do in kube-proxy's iptables mode; {path}: false ends this \
                 warning"
            ));
        } else if mode != ProxyMode::Iptables && wanted == Some(true) {
            self.warnings.push(format!("{origin} has no effect: node ports never answer at loopback addresses"));
        }
    }

    pub(super) fn node_addresses(&mut self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        let texts = self.given.datapath().node_addresses.iter().flatten();
        for text in texts.filter(|text| !text.is_empty()) {
            match parse_ip(text) {
                Some(ip) => addresses.push(ip),
                None => self.problems.push(Problem {
                    what: "--node-addresses".to_owned(),
                    value: format!("{text:?}"),
                    why: format!("must be IP addresses, with commas{}", without_blanks(text)),
                }),
            }
        }
        addresses
    }

    /// An address to serve at: IP (without brackets, `AppendPortIfNeeded`) or IP:PORT; empty is off. `port` is kube-proxy's deprecated flag, 0 being off.
    pub(super) fn serving(
        &mut self,
        given: Option<Given<String>>,
        default: SocketAddr,
        port: (&str, Option<u16>),
    ) -> Option<SocketAddr> {
        let mut without_port = default.port();
        if let (flag, Some(port)) = port {
            let instead = flag.replace("-port", "-bind-address");
            // The default address has a port already.
            let idle = if given.is_none() && port > 0 { ", without which this one has no effect" } else { "" };
            self.warnings.push(format!("{flag} is deprecated, as in kube-proxy: use {instead}{idle}"));
            if port == 0 {
                return None;
            }
            without_port = port;
        }
        let Some(given) = given else { return Some(default) };
        let text = given.value.as_str();
        if text.is_empty() {
            return None;
        }
        let address = parse_ip(text).map(|ip| SocketAddr::new(ip, without_port)).or_else(|| host_and_port(text));
        let address = address.filter(|address| address.port() > 0);
        if address.is_none() {
            let why = format!(
                "must be IP:PORT such as {default}, with a port from 1 to 65535, or an IP alone{}",
                without_blanks(text)
            );
            self.problems.push(given.problem(why));
        }
        address
    }
}

/// `IP:PORT` as Go's `SplitHostPort` and `Atoi` read it: IPv4 in brackets, too, and a port with a sign.
fn host_and_port(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None => Some(host).filter(|host| !host.contains(':'))?,
    };
    // Rust's numbers may have the sign, too.
    Some(SocketAddr::new(parse_ip(host)?, port.parse().ok()?))
}
