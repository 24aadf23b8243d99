//! Addresses: where node ports answer, what the node holds, where we serve.

use std::net::{IpAddr, SocketAddr};

use super::Check;
use crate::config::Problem;
use crate::settings::merge::Given;
use crate::settings::{NodePortAddresses, ProxyMode};
use crate::state::convert::sloppy::{parse_cidr, parse_ip};

impl Check<'_> {
    pub(super) fn node_port_addresses(&mut self, mode: ProxyMode) -> NodePortAddresses {
        let addresses = self.selected_addresses(mode);
        self.localhost_node_ports(mode, &addresses);
        addresses
    }

    fn selected_addresses(&mut self, mode: ProxyMode) -> NodePortAddresses {
        let flag = self.given.datapath().nodeport_addresses.as_ref();
        let given = self.given.texts(flag, "--nodeport-addresses", "nodePortAddresses");
        let texts: Vec<&str> =
            given.iter().flat_map(|g| &g.value).map(|t| t.trim()).filter(|text| !text.is_empty()).collect();
        match texts[..] {
            [] if mode == ProxyMode::Nftables => return NodePortAddresses::Primary,
            [] => {
                // kube-proxy's checkBadConfig says it, too.
                let text = "nodePortAddresses is not set: node ports answer at all addresses of the node; `primary` limits \
                            them to the Node's first address of each family";
                self.warnings.push(text.to_owned());
                return NodePortAddresses::Cidrs(Vec::new());
            }
            ["primary"] => return NodePortAddresses::Primary,
            _ => {}
        }
        let mut cidrs = Vec::new();
        for text in texts {
            match parse_cidr(text) {
                Some(cidr) => {
                    let loopback = cidr.prefix_len() > 0 && cidr.addr().is_loopback();
                    if loopback {
                        self.warnings
                            .push(format!("node ports never answer at loopback addresses: {cidr} has no effect"));
                    }
                    cidrs.push(cidr);
                }
                None => self.problems.push(Problem {
                    what: given.as_ref().map(|g| g.what.clone()).unwrap_or_default(),
                    value: format!("{text:?}"),
                    why: "must be CIDRs such as 192.168.0.0/16, or `primary` alone".to_owned(),
                }),
            }
        }
        NodePortAddresses::Cidrs(cidrs)
    }

    /// kube-proxy's iptables mode lets node ports answer at 127.0.0.1 unless it is told not to.
    fn localhost_node_ports(&mut self, mode: ProxyMode, addresses: &NodePortAddresses) {
        let path = "iptables.localhostNodePorts";
        let wanted = self.given.config.bool(path);
        let origin = self.given.config.origin(path);
        let all_v4 = match addresses {
            NodePortAddresses::Primary => false,
            NodePortAddresses::Cidrs(cidrs) => {
                let mut v4 = cidrs.iter().filter(|cidr| cidr.addr().is_ipv4()).peekable();
                v4.peek().is_none() || v4.any(|cidr| cidr.prefix_len() == 0)
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
        for text in self.given.datapath().node_addresses.iter().flatten().filter(|text| !text.trim().is_empty()) {
            match parse_ip(text) {
                Some(ip) => addresses.push(ip),
                None => self.problems.push(Problem {
                    what: "--node-addresses".to_owned(),
                    value: format!("{text:?}"),
                    why: "must be IP addresses, with commas".to_owned(),
                }),
            }
        }
        addresses
    }

    /// An address to serve at: IP or IP:PORT; empty is off. `port` is kube-proxy's deprecated flag, 0 being off.
    pub(super) fn serving(
        &mut self,
        given: Option<Given<String>>,
        mut default: SocketAddr,
        port: (&str, Option<u16>),
    ) -> Option<SocketAddr> {
        if let (flag, Some(port)) = port {
            let instead = flag.replace("-port", "-bind-address");
            self.warnings.push(format!("{flag} is deprecated, as in kube-proxy: use {instead}"));
            if port == 0 {
                return None;
            }
            default.set_port(port);
        }
        let Some(given) = given else { return Some(default) };
        let text = given.value.trim();
        if text.is_empty() {
            return None;
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let address = parse_ip(bare).map(|ip| SocketAddr::new(ip, default.port())).or_else(|| text.parse().ok());
        let address = address.filter(|address| address.port() > 0);
        if address.is_none() {
            let why = format!("must be IP:PORT such as {default}, with a port from 1 to 65535, or an IP alone");
            self.problems.push(given.problem(why));
        }
        address
    }
}
