//! Wanted rows as nft's JSON: element commands that `nft -j -f` takes, for `kubeferry plan --output json`.

use std::borrow::Cow;

use nftables::batch::Batch;
use nftables::expr::{Expression, NamedExpression, Prefix};
use nftables::schema::{Element, NfListObject, Nftables};
use nftables::stmt::JumpTarget;
use nftables::types::NfFamily;

use crate::desired::target::Frontend;

use super::maps::map_of;
use super::rows::{Key, Part, Rows, Value};
use super::skeleton::TABLE;

/// One `add element` command for each row.
pub fn rows(rows: &Rows) -> Nftables<'static> {
    let mut batch = Batch::new();
    for (key, value) in rows {
        let element = match value {
            Value::Present => key_of(key),
            _ => Expression::List(vec![key_of(key), data_of(key, value)]),
        };
        batch.add(NfListObject::Element(Element {
            family: NfFamily::INet,
            table: Cow::Borrowed(TABLE),
            name: Cow::Borrowed(map_of(key)),
            elem: Cow::Owned(vec![element]),
        }));
    }
    batch.to_nftables()
}

fn text(text: impl ToString) -> Expression<'static> {
    Expression::String(Cow::Owned(text.to_string()))
}

fn concat(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts))
}

fn prefix(net: &ipnet::IpNet) -> Expression<'static> {
    let len = u32::from(net.prefix_len());
    Expression::Named(NamedExpression::Prefix(Prefix { addr: Box::new(text(net.network())), len }))
}

fn key_of(key: &Key) -> Expression<'static> {
    match key {
        Key::Of(frontend, part) => {
            let port = Expression::Number(u32::from(frontend.port()));
            let mut parts = vec![text(frontend.protocol()), port];
            if let Frontend::Address { ip, .. } = frontend {
                parts.insert(0, text(ip));
            }
            match part {
                Part::SourceRange(range) => parts.push(prefix(range)),
                Part::Endpoint(slot) => parts.push(Expression::Number(*slot)),
                Part::Verdict | Part::Ranged | Part::Remember => {}
            }
            concat(parts)
        }
        Key::Hairpin(ip) => concat(vec![text(ip), text(ip)]),
        Key::ClusterIp(ip) | Key::NodePortAddress(ip) => text(ip),
        Key::ServiceCidr(net) => prefix(net),
        Key::Turn(turn, slot) => {
            let [high, low] = turn.numbers();
            let numbers = [high, low, *slot].map(Expression::Number);
            concat(std::iter::once(text(turn.protocol)).chain(numbers).collect())
        }
    }
}

fn data_of(key: &Key, value: &Value) -> Expression<'static> {
    match value {
        Value::Present => Expression::List(Vec::new()),
        Value::Endpoint(endpoint) => concat(vec![text(endpoint.ip()), Expression::Number(u32::from(endpoint.port()))]),
        Value::Chain(chain) => {
            let target = JumpTarget { target: Cow::Owned(chain.to_string()) };
            Expression::Verdict(match key {
                Key::Of(_, Part::Remember) => nftables::expr::Verdict::Jump(target),
                _ => nftables::expr::Verdict::Goto(target),
            })
        }
    }
}
