//! The hook of sockets alone: what a socket's first packet is, before any other hook sees it. The socket is translated as the
//! row says exactly where its whole answer is known when it connects; everything else is left untouched, for packets to be
//! translated.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use kubeferry::scheduler::Scheduler;
use serde_json::Value;

use super::model::nested;
use super::packets::{Sender, TRIES, has_socket};
use super::{Findings, Source, answers, named};
use crate::flows::{Case, Expect, Row, Step, documents};
use crate::packets::{Origin, Protocol};

/// Asks about every row of a step that is a socket's and says which came out otherwise. The step is in force, and in `source`.
pub(super) fn run(sender: &mut Sender, case: &Case, source: &Source, step: &Step) -> Result<Findings> {
    let objects = documents(&step.manifests)?;
    let mut findings = Findings::new();
    let nested = nested(source, step)?;
    for ((row, answer), nested) in step.rows.iter().zip(answers(source, step)?).zip(nested) {
        if has_socket(case, row) {
            let asked = match nested {
                true => ask(sender, case, row, &[], false),
                false => known(case, step, row, &objects, &answer.service)
                    .and_then(|(known, stays)| ask(sender, case, row, &known, stays)),
            };
            findings.extend(asked.err().map(|error| (named(row), format!("{error:#}"))));
        }
    }
    Ok(findings)
}

/// `known`: the endpoints of the row that the hook has to choose. Where there are others, it leaves those to packets; `stays`:
/// and then chooses them again and again, until a packet takes its turn, which none does here.
fn ask(sender: &mut Sender, case: &Case, row: &Row, known: &[SocketAddr], stays: bool) -> Result<()> {
    let others = match &row.expect {
        Expect::Endpoints { endpoints, .. } => endpoints.len() > known.len(),
        _ => true,
    };
    let mut reached = BTreeSet::new();
    // Two calls of UDP, to connect and to send.
    let calls = if row.protocol == Protocol::Udp { 2 } else { 1 };
    let tries = if known.is_empty() { calls } else { TRIES * (known.len() + usize::from(others)) };
    for number in 0..tries {
        let (sent, from, to) = sender.ask(case, row)?;
        ensure!(from == sent, "a socket bound to {sent} sends from {from}");
        if to == row.to {
            ensure!(others, "it is left untouched");
            if stays {
                return Ok(());
            }
            continue;
        }
        ensure!(known.contains(&to), "it is translated to {to}, which is not for sockets to choose");
        if case.origin(row) == Origin::Node && from.ip().is_loopback() && !case.node.holds(to.ip()) {
            bail!("it is translated to {to}, with a source that cannot leave the node");
        }
        reached.insert(to);
        if reached.len() == known.len() && number + 1 >= calls {
            break;
        }
    }
    ensure!(reached.len() == known.len(), "{tries} sockets are translated only to {reached:?}");
    Ok(())
}

/// The endpoints of a row whose whole answer is known when a socket connects: nothing is rewritten but the destination (a
/// socket of the node has one of its addresses either way), no source is looked at, and none is remembered. `service` is
/// that of the row, `NAMESPACE/NAME`, and `:PORT` where that has a name. And whether a choice stays until it is taken.
fn known(case: &Case, step: &Step, row: &Row, objects: &[Value], service: &str) -> Result<(Vec<SocketAddr>, bool)> {
    let Expect::Endpoints { endpoints, masquerade, affinity: false } = &row.expect else {
        return Ok((Vec::new(), false));
    };
    let named = service.split_once('/');
    let (namespace, name) = named.with_context(|| format!("the model names no service but {service:?}"))?;
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    let is_it = |object: &&Value| {
        let at = &object["metadata"];
        object["kind"] == "Service" && at["name"] == name && at["namespace"].as_str().unwrap_or("default") == namespace
    };
    let service = objects.iter().find(is_it).with_context(|| format!("no Service {namespace}/{name}"))?;
    let scheduler = scheduler(case, service);
    let hashes_source = matches!(scheduler, Scheduler::Sh | Scheduler::Mh);
    if service["spec"]["sessionAffinity"] == "ClientIP" || hashes_source || is_ranged(service, row) {
        return Ok((Vec::new(), false));
    }
    let stays = scheduler != Scheduler::Random;
    if case.origin(row) == Origin::Node {
        return Ok((endpoints.clone(), stays));
    }
    if *masquerade || !pods_are_known(case, step) {
        return Ok((Vec::new(), stays));
    }
    // A pod that is its own endpoint sees another source than its own.
    Ok((endpoints.iter().copied().filter(|endpoint| endpoint.ip() != row.from).collect(), stays))
}

/// The scheduler of a Service: its own, or the node's.
fn scheduler(case: &Case, service: &Value) -> Scheduler {
    let find = |name: &str| Scheduler::ALL.into_iter().find(|scheduler| scheduler.name() == name.trim());
    let asked = service["metadata"]["annotations"]["kubeferry.dev/scheduler"].as_str().and_then(find);
    let of_node = || case.node.scheduler.as_deref().and_then(find);
    asked.or_else(of_node).unwrap_or(Scheduler::Random)
}

/// Whether the row's destination is a load balancer's that is not open to everybody.
fn is_ranged(service: &Value, row: &Row) -> bool {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    // Others are none of ours.
    let is_vip = |one: &&Value| one["ipMode"] != "Proxy";
    let mut addresses = ingress.filter(is_vip).filter_map(|one| one["ip"].as_str()?.parse::<IpAddr>().ok());
    let ranges = service["spec"]["loadBalancerSourceRanges"].as_array().into_iter().flatten();
    let of_family = ranges
        .filter_map(|range| range.as_str()?.trim().parse::<IpNet>().ok())
        .filter(|range| range.addr().is_ipv4() == row.to.is_ipv4())
        .collect::<Vec<_>>();
    let open = of_family.is_empty() || of_family.iter().any(|range| range.prefix_len() == 0);
    // A ClusterIP is one before all else.
    let cluster_ips =
        service["spec"]["clusterIPs"].as_array().into_iter().flatten().chain([&service["spec"]["clusterIP"]]);
    let is_cluster_ip = cluster_ips.filter_map(|ip| ip.as_str()?.parse::<IpAddr>().ok()).any(|ip| ip == row.to.ip());
    // The same address may be one of the node's, with node ports, which no range closes.
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let is_of_service = ports.any(|port| port["port"] == row.to.port());
    !open && !is_cluster_ip && is_of_service && addresses.any(|ip| ip == row.to.ip())
}

/// Whether every pod of the node counts as one, or none can.
fn pods_are_known(case: &Case, step: &Step) -> bool {
    let node = &case.node;
    let of = |ranges: &[IpNet], v4: bool| -> Vec<IpNet> {
        ranges.iter().copied().filter(|range| matches!(range.addr(), IpAddr::V4(_)) == v4).collect()
    };
    let known = |v4: bool| {
        let mut pods = of(&node.pod_cidrs, v4);
        // The step's Node may be another.
        pods.retain(|range| step.manifests.contains(&range.to_string()));
        match node.detect_local_mode.as_deref() {
            None | Some("ClusterCIDR") => {
                let cluster = of(&node.cluster_cidr, v4);
                let covered = |pod: &IpNet| cluster.iter().any(|range| range.contains(pod));
                cluster.is_empty() || (!pods.is_empty() && pods.iter().all(covered))
            }
            Some("NodeCIDR") => true,
            _ => false,
        }
    };
    !node.masquerade_all && known(true) && known(false)
}
