//! What kube-proxy may have left, for the fuzzer.

use super::{ipsets, ipvs, legacy, names, plan, xtables};
use crate::backend::nftables::netlink::Error;
use crate::backend::nftables::netlink::kernel::Dump;

/// Reads a dump (its messages are numbered 1) as the chains and rules of iptables' tables, as sets and as virtual servers.
///
/// # Errors
/// What the first reader that refuses says.
pub(crate) fn answers(bytes: &[u8]) -> Result<(), Error> {
    let mut listed = Vec::new();
    // A refusal is no fault.
    let _ = ipvs::answers(bytes, "list", &mut listed);
    for body in &listed {
        ipvs::server(body)?;
    }
    let dump = Dump::read_before(bytes.to_vec(), 1);
    let mut found = xtables::Found::default();
    found.read_chains(&dump, "nat")?;
    found.read_rules(&dump, "nat")?;
    check(&plan::plan(&found.chains, &found.jumps));
    ipsets::names(&dump).map(drop)
}

/// Reads what `iptables-legacy-save` says. What `iptables-legacy-restore` is told to delete was there.
pub(crate) fn saved(text: &str) {
    let (chains, jumps, _) = legacy::read(text);
    let plan = plan::plan(&chains, &jumps);
    check(&plan);
    let there: std::collections::BTreeSet<&str> = text.lines().collect();
    for line in legacy::script(&plan, "nat").lines() {
        if let Some(rule) = line.strip_prefix("-D ") {
            assert!(there.contains(format!("-A {rule}").as_str()), "{line}");
        }
    }
}

/// Only what is kube-proxy's goes, and no rule is left that leads there.
fn check<R>(plan: &plan::Plan<R>) {
    assert!(plan.chains.iter().all(|chain| names::is_chain(chain)));
    assert!(plan.rules.iter().all(|jump| plan.chains.contains(&jump.to) && !plan.chains.contains(&jump.from)));
    assert!(plan.kept.keys().all(|chain| !plan.chains.contains(chain)));
}
