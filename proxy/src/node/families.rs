//! The IP families of this host, and settings of a family that does not fit, as kube-proxy looks for them at its start
//! (cmd/kube-proxy/app/server.go, `checkBadIPConfig`).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use crate::settings::{DetectLocal, NodePortAddresses, Settings};
use crate::state::objects::{Family, Node};

/// The families that this thread's network namespace has: IPv6 unless the kernel is without it, or it is turned off.
pub fn of_this_host() -> Vec<Family> {
    let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|text| text.trim() == "1");
    let has_ipv6 = Path::new("/proc/thread-self/net/if_inet6").exists() && !disabled;
    if has_ipv6 { Family::BOTH.to_vec() } else { vec![Family::V4] }
}

/// The Node's first family: that of `bindAddress` where one is set, else of its first address; IPv4 where nothing is known.
pub fn primary(settings: &Settings, node: Option<&Node>) -> Family {
    let of_node = || node.and_then(|node| node.primary_ips.first().copied());
    settings.datapath.own_address().or_else(of_node).map_or(Family::V4, Family::of)
}

/// What does not fit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mismatches {
    /// With this no Service would work: the proxy does not start.
    pub fatal: Vec<String>,
    /// With this something does not do what it was set for.
    pub other: Vec<String>,
}

/// Settings that are only of the family which is not the Node's first one, on a host with these families.
pub fn mismatches(settings: &Settings, node: Option<&Node>, host: &[Family]) -> Mismatches {
    let primary = primary(settings, node);
    let mut found = Mismatches::default();
    if !host.contains(&primary) {
        found.fatal.push(format!(
            "the Node's first address is {}, and this host has none of that family: turn it on (net.ipv6.conf.all.disable_ipv6), \
             or give the address of another family with --bind-address",
            name(primary)
        ));
        return found;
    }
    let single = host.len() < 2;
    let cluster = format!("the Node is {}{}", name(primary), if single { " alone" } else { " first" });
    let wrong = |ip: &IpAddr| Family::of(*ip) != primary;
    let all_wrong = |nets: &[IpNet]| !nets.is_empty() && nets.iter().all(|net| wrong(&net.addr()));
    let say = |what: &str| format!("{cluster}, but {what} of the other family only");
    match &settings.datapath.detect_local {
        DetectLocal::ClusterCidr(nets) if all_wrong(nets) => {
            let list = if single { &mut found.fatal } else { &mut found.other };
            list.push(say("clusterCIDR is"));
        }
        DetectLocal::NodeCidr if node.is_some_and(|node| all_wrong(&node.pod_cidrs)) => {
            found.fatal.push(say("the Node's spec.podCIDRs are"));
        }
        _ => {}
    }
    if let NodePortAddresses::Cidrs(nets) = &settings.datapath.node_port_addresses
        && all_wrong(nets)
    {
        found.other.push(say("nodePortAddresses are"));
    }
    if single {
        if all_wrong(&settings.node.ipvs_excluded) {
            found.other.push(say("ipvs.excludeCIDRs are"));
        }
        for (field, address) in [("healthzBindAddress", settings.healthz), ("metricsBindAddress", settings.metrics)] {
            if let Some(address) = address.filter(|address| wrong(&address.ip()) && !address.ip().is_unspecified()) {
                found.other.push(format!("{cluster}, but {field}, {address}, is of the other family"));
            }
        }
    }
    found
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    const SINGLE: &[Family] = &[Family::V4];

    /// What is found with these flags, on a Node with these addresses and pod ranges.
    fn found(flags: &[&str], addresses: &[&str], pod_cidrs: &[&str], host: &[Family]) -> (Vec<String>, Vec<String>) {
        let Command::Run(args) = parse(["kubeferry", "run"].iter().chain(flags)).unwrap().command else { panic!() };
        let settings = Settings::resolve(&args.common, &args.serve, None, "n1").unwrap().settings;
        let node = Node {
            name: "n1".into(),
            zone: None,
            primary_ips: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            addresses: vec![],
            pod_cidrs: pod_cidrs.iter().map(|net| net.parse().unwrap()).collect(),
            deleting: false,
            to_be_deleted: false,
        };
        let Mismatches { fatal, other } = mismatches(&settings, Some(&node), host);
        (fatal, other)
    }

    fn one(text: &str) -> Vec<String> {
        vec![text.to_owned()]
    }

    #[test]
    fn a_cluster_cidr_of_the_other_family_is_fatal_on_a_host_of_one() {
        let v6 = &["--cluster-cidr=fd00::/56"];
        let said = |alone: &str| one(&format!("the Node is IPv4 {alone}, but clusterCIDR is of the other family only"));
        assert_eq!(found(v6, &["192.0.2.1"], &[], SINGLE), (said("alone"), vec![]));
        assert_eq!(found(v6, &["192.0.2.1"], &[], &Family::BOTH), (vec![], said("first")));
        assert_eq!(found(v6, &["2001:db8::1"], &[], &Family::BOTH), (vec![], vec![]));
        assert_eq!(found(&["--cluster-cidr=fd00::/56,10.0.0.0/8"], &["192.0.2.1"], &[], SINGLE), (vec![], vec![]));
        assert_eq!(found(&[], &["192.0.2.1"], &[], SINGLE), (vec![], vec![]), "none is no mismatch");
    }

    #[test]
    fn pod_ranges_of_the_other_family_are_fatal_where_they_tell_pods() {
        let mode = &["--detect-local-mode=NodeCIDR"];
        let (fatal, other) = found(mode, &["192.0.2.1"], &["fd00::/64"], &Family::BOTH);
        assert_eq!(fatal, one("the Node is IPv4 first, but the Node's spec.podCIDRs are of the other family only"));
        assert!(other.is_empty());
        assert_eq!(found(mode, &["192.0.2.1"], &["fd00::/64", "10.0.0.0/24"], SINGLE), (vec![], vec![]));
        assert_eq!(found(&[], &["192.0.2.1"], &["fd00::/64"], SINGLE), (vec![], vec![]));
    }

    #[test]
    fn the_first_family_is_the_hosts_or_nothing_works() {
        let (fatal, _) = found(&[], &["2001:db8::1", "192.0.2.1"], &[], SINGLE);
        assert!(fatal.len() == 1 && fatal[0].starts_with("the Node's first address is IPv6"), "{fatal:?}");
        assert_eq!(found(&["--bind-address=192.0.2.1"], &["2001:db8::1"], &[], SINGLE), (vec![], vec![]));
        assert_eq!(found(&["--bind-address=0.0.0.0"], &[], &[], SINGLE), (vec![], vec![]));
        let (fatal, _) = found(&["--bind-address=2001:db8::1"], &["192.0.2.1"], &[], SINGLE);
        assert_eq!(fatal.len(), 1, "bindAddress wins");
    }

    #[test]
    fn what_else_is_of_the_other_family_is_told() {
        let flags = [
            "--nodeport-addresses=2001:db8::/64",
            "--ipvs-exclude-cidrs=2001:db8::/64",
            "--healthz-bind-address=[2001:db8::1]:10256",
            "--metrics-bind-address=[::]:10249",
        ];
        let (fatal, other) = found(&flags, &["192.0.2.1"], &[], SINGLE);
        assert!(fatal.is_empty());
        let named = ["nodePortAddresses are", "ipvs.excludeCIDRs are", "healthzBindAddress, [2001:db8::1]:10256, is"];
        assert!(other.len() == 3 && other.iter().zip(named).all(|(line, field)| line.contains(field)), "{other:?}");
        let (_, other) = found(&flags, &["192.0.2.1"], &[], &Family::BOTH);
        assert_eq!(other, one("the Node is IPv4 first, but nodePortAddresses are of the other family only"));
    }
}
