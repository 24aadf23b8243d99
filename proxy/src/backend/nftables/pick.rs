//! The rule that draws a slot and rewrites the destination to its endpoint.

use crate::scheduler::HASH_SEED;
use crate::state::objects::Family;

use super::chains::{Choice, Keyed, LOCAL_OFFSET, List};
use super::draw::{Draw, Hashed};
use super::expression::{Expression, Register};
use super::rule::{Field, Rule, family_is};

impl Rule {
    /// Draws a slot of a list and rewrites the destination to its endpoint.
    pub fn pick(self, keyed: Keyed, choice: &Choice) -> Self {
        // Looked at before the first field of the IP header.
        let looks_at_family = !keyed.node_port || choice.draw != Draw::Random;
        let (map, key, expressions, at) = key_but_slot(keyed, choice.draw, looks_at_family);
        let slot = slot(keyed.family, choice, at);
        self.dnat_by_map(keyed.family, map, key, expressions, slot)
    }

    /// Rewrites the destination to the endpoint of one slot, in a rule that has looked at the IP header already.
    pub fn pick_slot(self, keyed: Keyed, draw: Draw, slot: u32) -> Self {
        let (map, key, expressions, at) = key_but_slot(keyed, draw, false);
        let constant = Expression::Constant { value: slot, to: at };
        self.dnat_by_map(
            keyed.family,
            map,
            key,
            expressions,
            (format!("numgen inc mod 1 offset {slot}"), vec![constant]),
        )
    }

    fn dnat_by_map(
        self,
        family: Family,
        map: &str,
        key: String,
        mut expressions: Vec<Expression>,
        slot: (String, Vec<Expression>),
    ) -> Self {
        let (ip, digit) = if family == Family::V4 { ("ip", 4) } else { ("ip6", 6) };
        let map = format!("{map}{digit}");
        let text = format!("dnat {ip} to {key}{} map @{map}", slot.0);
        expressions.extend(slot.1);
        expressions.push(Expression::Lookup { set: map, from: Register::FIRST, to: Some(Register::FIRST) });
        expressions.push(Expression::nat_from_map(family));
        self.add(text, expressions)
    }
}

/// The map of the endpoints, its key but for the slot in nft's words and as expressions, and where the slot goes.
fn key_but_slot(keyed: Keyed, draw: Draw, looks_at_family: bool) -> (&'static str, String, Vec<Expression>, Register) {
    let mut at = Register::FIRST;
    if let Draw::Turn(turn) = draw {
        let [high, low] = turn.numbers();
        at = at.next();
        let expressions = vec![
            Expression::L4Proto(Register::FIRST),
            Expression::Constant { value: high, to: at },
            Expression::Constant { value: low, to: at.next() },
        ];
        let constants = format!("numgen inc mod 1 offset {high} . numgen inc mod 1 offset {low}");
        return ("turns", format!("meta l4proto . {constants} . "), expressions, at.next().next());
    }
    let mut expressions = Vec::new();
    let mut key = String::new();
    if looks_at_family {
        expressions.extend(family_is(keyed.family));
    }
    if !keyed.node_port {
        key = format!("{} daddr . ", if keyed.family == Family::V4 { "ip" } else { "ip6" });
        expressions.push(Expression::address(Field::Destination, keyed.family, at));
        at = at.after_address(keyed.family);
    }
    expressions.push(Expression::L4Proto(at));
    expressions.push(Expression::DestinationPort(at.next()));
    let map = if keyed.node_port { "nodeport_endpoints" } else { "endpoints" };
    (map, key + "meta l4proto . th dport . ", expressions, at.next().next())
}

/// Draws a slot into a register, in nft's words and as expressions.
fn slot(family: Family, choice: &Choice, to: Register) -> (String, Vec<Expression>) {
    let (offset, offset_text) = match choice.list {
        List::Cluster => (0, String::new()),
        List::Local => (LOCAL_OFFSET, format!(" offset {LOCAL_OFFSET}")),
    };
    let modulus = choice.slots;
    let hashed = match choice.draw {
        Draw::Random => {
            let text = format!("numgen random mod {modulus}{offset_text}");
            return (text, vec![Expression::Random { modulus, offset, to }]);
        }
        Draw::Turn(_) => {
            let text = format!("numgen inc mod {modulus}{offset_text}");
            return (text, vec![Expression::Next { modulus, offset, to }]);
        }
        Draw::Hash(hashed) => hashed,
    };
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    // Where nft puts them: four registers behind the key.
    let from = to.next().after_four();
    let port = from.after_address(family);
    let address = |field| Expression::address(field, family, from);
    let length = if family == Family::V4 { 4 } else { 16 };
    let (what, mut expressions, length) = match hashed {
        Hashed::Source => ("saddr", vec![address(Field::Source)], length),
        // The port fills the first two bytes of its register; the kernel sets the others to 0.
        Hashed::SourceAndPort => {
            ("saddr . th sport", vec![address(Field::Source), Expression::SourcePort(port)], length + 4)
        }
        Hashed::Destination => ("daddr", vec![address(Field::Destination)], length),
    };
    expressions.push(Expression::Hash { from, length, seed: HASH_SEED, modulus, offset, to });
    (format!("jhash {ip} {what} mod {modulus} seed {HASH_SEED:#x}{offset_text}"), expressions)
}
