//! Chains of iptables as `iptables-nft` keeps them: chains of nf_tables in tables of the families ip and ip6 that are called as
//! the tables of old. Each table in one transaction, on the state that was read; rules of others are not touched.

use std::collections::BTreeMap;

use super::netlink::{
    ATTEMPTS, Answer, CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, Change, DELCHAIN, DELRULE, EXPRESSION_DATA,
    EXPRESSION_NAME, FAMILIES, GETCHAIN, GETRULE, RULE_CHAIN, RULE_EXPRESSIONS, RULE_HANDLE, TABLE, generation,
    transact,
};
use super::plan::{Jump, Plan, plan};
use super::{Outcome, names};
use crate::backend::nftables::netlink::Error;
use crate::backend::nftables::netlink::attribute::{attributes, find, text, u32_be, value};
use crate::backend::nftables::netlink::kernel::{Dump, NetfilterSocket};

/// The tables that kube-proxy writes to.
pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NF_DROP: u32 = 0;

/// A table as it was read.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Each chain, and whether it is at a hook.
    pub(super) chains: BTreeMap<String, bool>,
    pub(super) jumps: Vec<Jump<Vec<u8>>>,
    /// FORWARD drops what no rule accepts.
    closed: bool,
}

/// Removes kube-proxy's chains and what leads there.
///
/// # Errors
/// The kernel refuses, or its rules never stand still.
pub(super) fn remove() -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    let socket = NetfilterSocket::open()?;
    for (family, ip) in FAMILIES {
        for table in TABLES {
            let (plan, closed) = remove_from(&socket, family, ip, table)?;
            told(&plan, closed, &format!("table {ip} {table}"), &mut outcome);
        }
    }
    Ok(outcome)
}

/// Says what was removed from a table of iptables.
pub(super) fn told<R>(plan: &Plan<R>, closed: bool, table: &str, outcome: &mut Outcome) {
    if !plan.chains.is_empty() {
        outcome.removed.push(format!("{} chains of iptables in {table}", plan.chains.len()));
    }
    outcome.notes.extend(
        plan.kept
            .iter()
            .map(|(chain, by)| format!("chain {chain} of iptables in {table} stays: the chain {by} leads there")),
    );
    if closed && plan.chains.contains(names::FORWARD) {
        outcome.notes.push(format!(
            "the policy of the chain FORWARD in {table} is DROP, and {} let packets of Services through: rules of another \
             table cannot, so accept them there (the pods' ranges, and connections that are RELATED or ESTABLISHED)",
            names::FORWARD
        ));
    }
}

fn remove_from(socket: &NetfilterSocket, family: u8, ip: &str, table: &str) -> Result<(Plan<Vec<u8>>, bool), Error> {
    let what = || format!("kube-proxy's chains in table {ip} {table}");
    for _ in 0..ATTEMPTS {
        let generation = generation(socket)?;
        let Some(found) = read(socket, family, table, what)? else { continue };
        let plan = plan(&found.chains, &found.jumps);
        if plan.chains.is_empty() {
            return Ok((plan, found.closed));
        }
        match transact(socket, generation, &changes(&plan, family, table))? {
            Answer::Done => return Ok((plan, found.closed)),
            Answer::Overtaken => {}
            Answer::Refused(errno) => return Err(Error::Refused { action: "delete", what: what(), errno }),
        }
    }
    Err(Error::Interrupted { what: what(), attempts: ATTEMPTS })
}

/// Rules that lead into the chains, then what the chains hold, then the chains: none is referred to when it goes.
fn changes(plan: &Plan<Vec<u8>>, family: u8, table: &str) -> Vec<Change> {
    let jumps = plan.rules.iter().map(|jump| {
        Change::new(DELRULE, family, |writer| {
            writer.text(TABLE, table);
            writer.text(RULE_CHAIN, &jump.from);
            writer.value(RULE_HANDLE, &jump.rule);
        })
    });
    let chains = |kind, name| {
        plan.chains.iter().map(move |chain| {
            Change::new(kind, family, |writer| {
                writer.text(TABLE, table);
                writer.text(name, chain);
            })
        })
    };
    jumps.chain(chains(DELRULE, RULE_CHAIN)).chain(chains(DELCHAIN, CHAIN_NAME)).collect()
}

/// `None`: the rules changed while they were read.
fn read(socket: &NetfilterSocket, family: u8, table: &str, what: impl Fn() -> String) -> Result<Option<Found>, Error> {
    let mut found = Found::default();
    // The kernel lists the chains of all tables of the family.
    let chains = socket.dump(&what(), GETCHAIN, family, |_| {})?;
    found.read_chains(&chains, table)?;
    if !found.chains.keys().any(|name| names::is_chain(name)) {
        return Ok(Some(found).filter(|_| chains.complete));
    }
    let rules = socket.dump(&what(), GETRULE, family, |writer| writer.text(TABLE, table))?;
    found.read_rules(&rules, table)?;
    Ok(Some(found).filter(|_| chains.complete && rules.complete))
}

impl Found {
    /// Takes in the chains of a table.
    pub(super) fn read_chains(&mut self, chains: &Dump, table: &str) -> Result<(), Error> {
        for message in chains.messages() {
            let (_, body) = message?;
            if find(body, TABLE)?.map(text).as_deref() != Some(table) {
                continue;
            }
            let Some(name) = find(body, CHAIN_NAME)?.map(text) else { continue };
            let base = find(body, CHAIN_HOOK)?.is_some();
            let policy = find(body, CHAIN_POLICY)?.map(u32_be).transpose()?;
            self.closed |= base && name == "FORWARD" && policy == Some(NF_DROP);
            self.chains.insert(name, base);
        }
        Ok(())
    }

    /// Takes in the rules of a table that lead to other chains.
    pub(super) fn read_rules(&mut self, rules: &Dump, table: &str) -> Result<(), Error> {
        for message in rules.messages() {
            let (_, body) = message?;
            if find(body, TABLE)?.map(text).as_deref() != Some(table) {
                continue;
            }
            let (Some(from), Some(handle)) = (find(body, RULE_CHAIN)?.map(text), find(body, RULE_HANDLE)?) else {
                continue;
            };
            if let Some(to) = target(find(body, RULE_EXPRESSIONS)?.unwrap_or_default())? {
                self.jumps.push(Jump { from, to, rule: handle.to_vec() });
            }
        }
        Ok(())
    }
}

/// The chain that a rule leads to.
fn target(expressions: &[u8]) -> Result<Option<String>, Error> {
    for expression in attributes(expressions) {
        let expression = expression?;
        let expression = value(&expression);
        if find(expression, EXPRESSION_NAME)?.map(text).as_deref() != Some("immediate") {
            continue;
        }
        let mut inside = find(expression, EXPRESSION_DATA)?;
        for step in [NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN] {
            inside = inside.map(|bytes| find(bytes, step)).transpose()?.flatten();
        }
        if let Some(chain) = inside {
            return Ok(Some(text(chain)));
        }
    }
    Ok(None)
}
