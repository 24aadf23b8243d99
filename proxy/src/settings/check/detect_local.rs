//! How a pod's traffic is told from other traffic.

use ipnet::IpNet;

use super::{Check, without_blanks};
use crate::settings::DetectLocal;
use crate::settings::merge::Given;
use crate::state::convert::sloppy::parse_cidr;
use crate::state::objects::Family;

/// The mode where none is set.
const CLUSTER_CIDR: &str = "ClusterCIDR";

impl Check<'_> {
    pub(super) fn detect_local(&mut self) -> DetectLocal {
        let (given, flags) = (self.given, self.given.datapath());
        let mode = given.text(flags.detect_local_mode.as_ref(), "--detect-local-mode", "detectLocalMode");
        self.unread_arguments(mode.as_ref().map(|g| g.value.as_str()).filter(|mode| !mode.is_empty()));
        match mode.as_ref().map_or("", |g| g.value.as_str()) {
            "" | CLUSTER_CIDR => {
                let cluster_cidr = self.cluster_cidr();
                if cluster_cidr.is_empty() {
                    let text = "no cluster CIDR is set: traffic to ClusterIPs from outside the cluster is not masqueraded \
                                (--cluster-cidr, or another --detect-local-mode)";
                    self.warnings.push(text.to_owned());
                }
                DetectLocal::ClusterCidr(cluster_cidr)
            }
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => {
                let (flag, path) = ("--pod-bridge-interface", "detectLocal.bridgeInterface");
                let name = given.text(flags.pod_bridge_interface.as_ref(), flag, path);
                DetectLocal::BridgeInterface(self.interface(name, flag, path))
            }
            "InterfaceNamePrefix" => {
                let (flag, path) = ("--pod-interface-name-prefix", "detectLocal.interfaceNamePrefix");
                let name = given.text(flags.pod_interface_name_prefix.as_ref(), flag, path);
                DetectLocal::InterfaceNamePrefix(self.interface(name, flag, path))
            }
            _ => {
                let why = "must be ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix";
                self.problems.extend(mode.map(|g| g.problem(why)));
                DetectLocal::ClusterCidr(Vec::new())
            }
        }
    }

    /// A warning for each argument that is another mode's.
    fn unread_arguments(&mut self, mode: Option<&str>) {
        let (given, flags) = (self.given, self.given.datapath());
        let mode = mode.unwrap_or(CLUSTER_CIDR);
        for (of, flag, name, path) in [
            (CLUSTER_CIDR, &flags.cluster_cidr, "--cluster-cidr", "clusterCIDR"),
            ("BridgeInterface", &flags.pod_bridge_interface, "--pod-bridge-interface", "detectLocal.bridgeInterface"),
            (
                "InterfaceNamePrefix",
                &flags.pod_interface_name_prefix,
                "--pod-interface-name-prefix",
                "detectLocal.interfaceNamePrefix",
            ),
        ] {
            let unread = given.text(flag.as_ref(), name, path).filter(|g| of != mode && !g.value.is_empty());
            let said = unread
                .map(|Given { what, value }| format!("{what} = {value:?} is not read: detectLocalMode is {mode}"));
            self.warnings.extend(said);
        }
    }

    fn cluster_cidr(&mut self) -> Vec<IpNet> {
        let flag = self.given.datapath().cluster_cidr.as_ref();
        // An empty flag is a list of one empty range, as in `processV1Alpha1Flags`; an empty field is none.
        let given = self.given.text(flag, "--cluster-cidr", "clusterCIDR");
        let Some(given) = given.filter(|g| flag.is_some() || !g.value.is_empty()) else { return Vec::new() };
        let cidrs: Vec<Option<IpNet>> = given.value.split(',').map(parse_cidr).collect();
        match cidrs[..] {
            [Some(one)] => vec![one],
            [Some(one), Some(two)] if Family::of(one.addr()) != Family::of(two.addr()) => vec![one, two],
            _ => {
                let why = "must be a CIDR, or one of each family such as 10.244.0.0/16,fd00:10:244::/56";
                self.problems.push(given.problem(format!("{why}{}", without_blanks(&given.value))));
                Vec::new()
            }
        }
    }

    /// An interface's name, or the beginning of one. The kernel's names have up to 15 bytes; quotes and stars mean something
    /// to nft.
    fn interface(&mut self, given: Option<Given<String>>, flag: &str, path: &str) -> String {
        let what = if self.given.has_file { path } else { flag };
        let given = given.unwrap_or_else(|| Given { what: what.to_owned(), value: String::new() });
        let bad = |c: char| c.is_whitespace() || c.is_control() || "/:\"*\\".contains(c);
        if given.value.is_empty() {
            self.problems.push(given.problem("must not be empty with this detectLocalMode"));
        } else if given.value.len() > 15 || given.value.contains(bad) {
            let why = "is no interface's name: up to 15 bytes without space, `/`, `:`, `\"`, `*` and `\\`";
            self.problems.push(given.problem(why));
        }
        given.value
    }
}
