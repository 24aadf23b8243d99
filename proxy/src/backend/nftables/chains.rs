//! The chains that rows go to: one for each policy, list and number of slots in use, written once and never changed. A
//! chain's name tells its content, so that reading names back is enough to know what the kernel has.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::digest;
use crate::desired::node_view::{Detector, NodeView};
use crate::state::objects::{Family, Protocol};

use super::draw::Draw;
use super::rule::{Field, Rule};

/// The first slot of the Local list in a frontend's endpoint rows; the Cluster list starts at 0.
pub const LOCAL_OFFSET: u32 = 1 << 24;

/// The first slot of the rows by which known clients of a service port with ClientIP affinity are counted, in the order of the
/// endpoints; for the Local list behind [`LOCAL_OFFSET`], as all of its slots are.
pub const KNOWN_OFFSET: u32 = 1 << 23;

/// Which of a frontend's two lists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum List {
    /// Traffic policy Cluster.
    Cluster,
    /// Traffic policy Local.
    Local,
}

/// What a chain's packets are looked up by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Keyed {
    /// The family.
    pub family: Family,
    /// By protocol and port alone (node ports), not by address too.
    pub node_port: bool,
}

/// One list of a frontend, ready to be chosen from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Choice {
    /// Which list.
    pub list: List,
    /// How many slots it has, at least 1.
    pub slots: u32,
    /// How one of them is drawn.
    pub draw: Draw,
    /// ClientIP affinity, looked at first.
    pub sticky: Option<Arc<Sticky>>,
}

/// The known clients of a list's endpoints.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Sticky {
    /// The protocol of the service port.
    pub protocol: Protocol,
    /// Each endpoint and its number in `affinity4` and `affinity6`.
    pub endpoints: Vec<(SocketAddr, u32)>,
    /// Of both, for names of chains: those are written often, and the endpoints may be many.
    digest: u128,
}

/// A chain that rows go to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Chain {
    /// TCP reset or ICMP port unreachable. In the skeleton.
    Refuse,
    /// Silence. In the skeleton.
    Discard,
    /// Source ranges first. In the skeleton.
    Ranged(Family),
    /// Choose an endpoint and rewrite the destination: made by [`Chain::pick`].
    Pick(Keyed, Choice),
    /// ClusterIP: decide on masquerading, then pick.
    Internal(Keyed, Choice),
    /// External address or node port, policy Cluster: masquerade, then pick.
    External(Keyed, Choice),
    /// External address or node port, policy Local: pods and the node use the first choice, others the second. At least
    /// one is there: weights may leave nothing to choose from in either list.
    ExternalLocal(Keyed, Option<Choice>, Option<Choice>),
    /// After the choice: remember the client of each of these endpoints for so long.
    Remember(Family, Arc<Sticky>, Duration),
}

impl Sticky {
    /// The known clients of these endpoints.
    pub fn new(protocol: Protocol, endpoints: Vec<(SocketAddr, u32)>) -> Self {
        let mut text = protocol.to_string();
        for (endpoint, number) in &endpoints {
            text += &format!(" {endpoint}={number}");
        }
        Self { protocol, endpoints, digest: digest::wide(&text) }
    }
}

/// FNV-1a, 64 bits: short, and the same on every machine and release. For what tenants write there is
/// [`digest`](mod@crate::backend::digest).
pub(in crate::backend) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl fmt::Display for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.family == Family::V4 { "v4" } else { "v6" })?;
        f.write_str(if self.node_port { "-nodeport" } else { "" })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.list == List::Cluster { "cluster" } else { "local" })?;
        if let Some(sticky) = &self.sticky {
            write!(f, "-sticky-{:032x}", sticky.digest)?;
        }
        write!(f, "-{}-{}", self.draw, self.slots)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse => f.write_str("refuse"),
            Self::Discard => f.write_str("discard"),
            Self::Ranged(Family::V4) => f.write_str("ranged4"),
            Self::Ranged(Family::V6) => f.write_str("ranged6"),
            Self::Pick(keyed, choice) => write!(f, "{keyed}-{choice}"),
            Self::Internal(keyed, choice) => write!(f, "{keyed}-internal-{choice}"),
            Self::External(keyed, choice) => write!(f, "{keyed}-external-{choice}"),
            Self::ExternalLocal(keyed, cluster, local) => {
                let text = |choice: &Option<Choice>| {
                    choice.as_ref().map_or_else(|| Self::Discard.to_string(), ToString::to_string)
                };
                write!(f, "{keyed}-external-local-{}-or-{}", text(cluster), text(local))
            }
            Self::Remember(family, sticky, timeout) => {
                let keyed = Keyed { family: *family, node_port: false };
                write!(f, "{keyed}-remember-{:032x}-{}", sticky.digest, timeout.as_secs())
            }
        }
    }
}

impl Chain {
    /// Whether this is the name of a chain that rows need, not of one of the skeleton's.
    pub fn is_dynamic(name: &str) -> bool {
        name.starts_with("v4-") || name.starts_with("v6-")
    }

    /// Whether a chain of this name belongs to one service's endpoints and goes when no row needs it; the others are
    /// shared by every service and stay.
    pub fn is_transient(name: &str) -> bool {
        ["-sticky-", "-remember-", "-turn-"].iter().any(|word| name.contains(word))
    }

    /// The names of the chains that a dynamic chain of this name goes to: `v4-internal-X` goes to `v4-X`, and
    /// `v4-cluster-sticky-DIGEST-X` to `v4-cluster-X`.
    pub fn goes_to(name: &str) -> Vec<String> {
        let keyed = if name.get(2..).is_some_and(|rest| rest.starts_with("-nodeport-")) { 11 } else { 2 };
        let Some((keyed, rest)) = name.split_at_checked(keyed) else { return Vec::new() };
        if let Some((list, sticky)) = rest.split_once("-sticky-")
            && (list == "-cluster" || list == "-local")
        {
            return sticky.split_once('-').map(|(_, draw)| format!("{keyed}{list}-{draw}")).into_iter().collect();
        }
        let choices: Vec<&str> = if let Some(choices) = rest.strip_prefix("-external-local-") {
            choices.split("-or-").collect()
        } else {
            rest.strip_prefix("-internal-").or_else(|| rest.strip_prefix("-external-")).into_iter().collect()
        };
        let picked = |choice: &str| {
            // A turn is the same for all frontends of a service port.
            let keyed = if choice.contains("turn-") { &keyed[..2] } else { keyed };
            if choice == "discard" { choice.to_owned() } else { format!("{keyed}-{choice}") }
        };
        choices.into_iter().map(picked).collect()
    }

    /// How many chains follow one after the other from a chain of this name.
    pub fn height(name: &str) -> usize {
        Self::goes_to(name).iter().map(|next| Self::height(next) + 1).max().unwrap_or_default()
    }

    /// The chain that picks from a list. A turn is shared by all frontends of a service port, however they are looked up.
    pub fn pick(keyed: Keyed, choice: Choice) -> Self {
        let node_port = keyed.node_port && !matches!(choice.draw, Draw::Turn(_));
        Self::Pick(Keyed { node_port, ..keyed }, choice)
    }

    /// The chains that this one goes to.
    pub fn needs(&self) -> Vec<Self> {
        match self {
            Self::Refuse | Self::Discard | Self::Ranged(_) | Self::Remember(..) => Vec::new(),
            Self::Pick(keyed, choice) => match &choice.sticky {
                None => Vec::new(),
                Some(_) => vec![Self::pick(*keyed, Choice { sticky: None, ..choice.clone() })],
            },
            Self::Internal(keyed, choice) | Self::External(keyed, choice) => vec![Self::pick(*keyed, choice.clone())],
            Self::ExternalLocal(keyed, cluster, local) => {
                let choices = cluster.iter().chain(local);
                choices.map(|choice| Self::pick(*keyed, choice.clone())).chain([Self::Discard]).collect()
            }
        }
    }

    /// The rules of the chain; `None` for a chain of the skeleton.
    pub fn rules(&self, node: &NodeView) -> Option<Vec<Rule>> {
        let pick = |keyed: &Keyed, choice: &Choice| Self::pick(*keyed, choice.clone()).to_string();
        Some(match self {
            Self::Refuse | Self::Discard | Self::Ranged(_) => return None,
            Self::Pick(keyed, choice) => match &choice.sticky {
                None => vec![Rule::new().pick(*keyed, choice)],
                Some(sticky) => sticky_rules(*keyed, choice, sticky, node.counts()),
            },
            Self::Internal(keyed, choice) => {
                let mark = internal_mark(keyed.family, node);
                mark.into_iter().chain([Rule::new().goto(&pick(keyed, choice))]).collect()
            }
            Self::External(keyed, choice) => {
                vec![Rule::new().set_mark(node.masquerade_mark), Rule::new().goto(&pick(keyed, choice))]
            }
            Self::ExternalLocal(keyed, cluster, local) => {
                let to = |choice: &Option<Choice>| {
                    choice.as_ref().map_or(Self::Discard.to_string(), |choice| pick(keyed, choice))
                };
                let mut rules = Vec::new();
                if let Some(rule) = from_pod(Rule::new(), keyed.family, node, true) {
                    rules.push(rule.goto(&to(cluster)));
                }
                if cluster.is_some() {
                    rules.push(Rule::new().source_is_local(keyed.family).set_mark(node.masquerade_mark));
                }
                rules.push(Rule::new().source_is_local(keyed.family).goto(&to(cluster)));
                rules.push(Rule::new().goto(&to(local)));
                rules
            }
            Self::Remember(family, sticky, timeout) => sticky
                .endpoints
                .iter()
                .map(|(endpoint, number)| Rule::new().remember(*family, *endpoint, *number, *timeout))
                .collect(),
        })
    }
}

fn sticky_rules(keyed: Keyed, choice: &Choice, sticky: &Sticky, counts: bool) -> Vec<Rule> {
    let known = |((endpoint, number), slot): (&(SocketAddr, u32), u32)| {
        let rule = Rule::new().known_client(keyed.family, sticky.protocol, *number);
        // A row is a counter; without one, the address stands in the rule.
        if counts { rule.pick_slot(keyed, choice.draw, known_slot(choice.list, slot)) } else { rule.dnat(*endpoint) }
    };
    let rest = Choice { sticky: None, ..choice.clone() };
    let rest = Rule::new().goto(&Chain::pick(keyed, rest).to_string());
    sticky.endpoints.iter().zip(0..).map(known).chain([rest]).collect()
}

/// The slot of the row that counts the known clients of a list's endpoint, by its place in the list.
fn known_slot(list: List, place: u32) -> u32 {
    KNOWN_OFFSET + place + if list == List::Cluster { 0 } else { LOCAL_OFFSET }
}

/// The rule that marks ClusterIP traffic for masquerading, if any is to be.
fn internal_mark(family: Family, node: &NodeView) -> Option<Rule> {
    if node.masquerade_all {
        return Some(Rule::new().set_mark(node.masquerade_mark));
    }
    Some(from_pod(Rule::new(), family, node, false)?.set_mark(node.masquerade_mark))
}

/// Narrows a rule to packets of pods (`is`), or of anything else; `None` without a detector.
fn from_pod(rule: Rule, family: Family, node: &NodeView, is: bool) -> Option<Rule> {
    match node.detector(family) {
        Detector::None => None,
        Detector::Cidr(net) => Some(rule.address_in(Field::Source, *net, is)),
        Detector::Interface(name) => Some(rule.interface(name, false, is)),
        Detector::InterfacePrefix(prefix) => Some(rule.interface(prefix, true, is)),
    }
}
