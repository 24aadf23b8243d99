//! The hook of sockets alone: what a socket's first packet is, before any other hook sees it. Either the socket is translated
//! as the row says, or it is left untouched, for packets to be translated; and it is translated where nothing is against it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, bail, ensure};
use ipnet::IpNet;

use super::packets::{Sender, TRIES, has_socket};
use super::{Findings, named};
use crate::flows::{Case, Expect, Row, Step};
use crate::packets::{Origin, Protocol};

/// Asks about every row of a step that is a socket's and says which came out otherwise.
pub(super) fn run(sender: &mut Sender, case: &Case, step: &Step) -> Findings {
    let rows = step.rows.iter().filter(|row| has_socket(case, row));
    let wrong = |row: &Row| ask(sender, case, step, row).err().map(|error| (named(row), format!("{error:#}")));
    rows.filter_map(wrong).collect()
}

fn ask(sender: &mut Sender, case: &Case, step: &Step, row: &Row) -> Result<()> {
    let (allowed, masquerade) = match &row.expect {
        Expect::Endpoints { endpoints, masquerade, affinity: false } => (endpoints.as_slice(), *masquerade),
        // Neither affinity nor a verdict is the socket's to know.
        _ => (&[][..], false),
    };
    let must = must_translate(case, step, row);
    let mut reached = BTreeSet::new();
    // Two calls of UDP, to connect and to send.
    let (calls, tries) = if row.protocol == Protocol::Udp { (2, 2) } else { (1, 1) };
    let tries = if must { TRIES * allowed.len() } else { tries };
    for number in 0..tries {
        let (sent, from, to) = sender.ask(case, row)?;
        ensure!(from == sent, "a socket bound to {sent} sends from {from}");
        if to == row.to {
            ensure!(!must, "it is left untouched");
            continue;
        }
        ensure!(allowed.contains(&to), "it is translated to {to}");
        if case.origin(row) != Origin::Node {
            let masqueraded = Expect::masquerades(masquerade, row.from, to);
            ensure!(!masqueraded, "it is translated to {to}, which then sees the sender's own address");
        } else if from.ip().is_loopback() && !case.node.holds(to.ip()) {
            bail!("it is translated to {to}, with a source that cannot leave the node");
        }
        reached.insert(to);
        if reached.len() == allowed.len() && number + 1 >= calls {
            break;
        }
    }
    ensure!(!must || reached.len() == allowed.len(), "{tries} sockets are translated only to {reached:?}");
    Ok(())
}

/// Whether the whole answer is known when a socket connects.
fn must_translate(case: &Case, step: &Step, row: &Row) -> bool {
    let Expect::Endpoints { endpoints, masquerade, affinity: false } = &row.expect else { return false };
    // What makes an answer depend on more than a socket knows. Which Services of a step have it does not matter here.
    let more = ["loadBalancerSourceRanges", "ClientIP", "scheduler"];
    if case.node.scheduler.is_some() || more.iter().any(|field| step.manifests.contains(field)) {
        return false;
    }
    match case.origin(row) {
        Origin::Node => true,
        Origin::Cable(_) => {
            let itself = endpoints.iter().any(|endpoint| endpoint.ip() == row.from);
            !masquerade && !itself && pods_are_known(case, step)
        }
    }
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
