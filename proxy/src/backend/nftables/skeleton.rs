//! The fixed program as text, filled in for this node, and the digest that tells one version from another.

use crate::desired::node_view::{NodePorts, NodeView};
use crate::state::objects::Family;

use super::chains::{Chain, Choice, Keyed, LOCAL_OFFSET, List, Sticky, fnv1a};
use super::draw::{Draw, Hashed, Turn};

/// The table's name, in family `inet`.
pub const TABLE: &str = "kubeferry";

const TEMPLATE: &str = include_str!("skeleton.nft");

/// The text of the table, without rows and without the chains that rows need.
pub fn text(node: &NodeView) -> String {
    fill(node, &comment(node))
}

/// The table's comment: another one means that the program in the kernel is not this one and has to be replaced.
pub fn comment(node: &NodeView) -> String {
    let mut program = fill(node, "");
    for chain in specimens(node) {
        for rule in chain.rules(node).unwrap_or_default() {
            program += &rule.text();
        }
    }
    format!("kubeferry {} program {:016x}", env!("CARGO_PKG_VERSION"), fnv1a(program.as_bytes()))
}

fn fill(node: &NodeView, comment: &str) -> String {
    let node_ports = |family, listed: &str, all: &str| match node.node_ports(family) {
        NodePorts::Only(_) => listed.to_owned(),
        NodePorts::All => all.to_owned(),
    };
    let mark = format!("{:#010x}", node.masquerade_mark);
    TEMPLATE
        .replace("kubeferry ${digest}", comment)
        .replace("${local_offset}", &LOCAL_OFFSET.to_string())
        .replace("${counter}", if node.counts() { " counter;" } else { "" })
        .replace("${mark}", &mark)
        .replace(
            "${node_ports4}",
            &node_ports(Family::V4, "ip daddr @nodeport_addresses4", "ip daddr != 127.0.0.0/8 fib daddr type local"),
        )
        .replace(
            "${node_ports6}",
            &node_ports(Family::V6, "ip6 daddr @nodeport_addresses6", "ip6 daddr != ::1 fib daddr type local"),
        )
}

/// One chain of every kind: their rules are part of the program too.
fn specimens(node: &NodeView) -> Vec<Chain> {
    let mut chains = Vec::new();
    for family in Family::BOTH {
        let endpoint = if family == Family::V4 { "192.0.2.1:80" } else { "[2001:db8::1]:80" };
        let endpoints = endpoint.parse().map(|endpoint| vec![(endpoint, 1)]).unwrap_or_default();
        let protocol = crate::state::objects::Protocol::Tcp;
        let sticky = std::sync::Arc::new(Sticky::new(protocol, endpoints));
        let draws = [Hashed::Source, Hashed::SourceAndPort, Hashed::Destination].map(Draw::Hash);
        let draws = draws.into_iter().chain([Draw::Turn(Turn { family, protocol, identity: 0 })]);
        for node_port in [false, true] {
            let keyed = Keyed { family, node_port };
            let choice = |list, sticky| Choice { list, slots: 2, draw: Draw::Random, sticky };
            let (plain, local) = (choice(List::Cluster, None), choice(List::Local, Some(sticky.clone())));
            chains.extend([
                Chain::Pick(keyed, plain.clone()),
                Chain::Pick(keyed, local.clone()),
                Chain::External(keyed, plain.clone()),
                Chain::ExternalLocal(keyed, Some(plain.clone()), Some(local.clone())),
                Chain::ExternalLocal(keyed, None, Some(local)),
                Chain::Internal(keyed, plain),
            ]);
            for list in [List::Cluster, List::Local] {
                let choices = draws.clone().map(|draw| Choice { list, slots: 2, draw, sticky: None });
                chains.extend(choices.map(|choice| Chain::pick(keyed, choice)));
            }
        }
        chains.push(Chain::Remember(family, sticky, std::time::Duration::from_secs(60)));
    }
    let masquerades = |family| node.masquerade_all || node.detector(family).is_some();
    chains.retain(|chain| !matches!(chain, Chain::Internal(keyed, _) if !masquerades(keyed.family)));
    chains
}
