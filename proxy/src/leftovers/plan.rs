//! What has to go of a table of iptables, whichever way the kernel keeps it.

use std::collections::{BTreeMap, BTreeSet};

use super::names;

/// A rule that goes on in another chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Jump<R> {
    /// The chain that it is in.
    pub from: String,
    /// Where it leads.
    pub to: String,
    /// What names it to the kernel.
    pub rule: R,
}

/// What has to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan<R> {
    /// Rules of chains that stay.
    pub rules: Vec<Jump<R>>,
    /// Chains, with all of their rules.
    pub chains: BTreeSet<String>,
    /// Chains that are kube-proxy's and stay, and whose chain leads there.
    pub kept: BTreeMap<String, String>,
}

/// kube-proxy's chains, and the jumps of base chains to them; of each of `chains`: whether it is at a hook. A chain that
/// somebody else's rule leads to stays, with what it leads to itself.
pub fn plan<R: Clone>(chains: &BTreeMap<String, bool>, jumps: &[Jump<R>]) -> Plan<R> {
    let mut going: BTreeSet<String> = chains.keys().filter(|name| names::is_chain(name)).cloned().collect();
    let mut kept = BTreeMap::new();
    let is_base = |name: &str| chains.get(name).is_some_and(|base| *base);
    let is_kube_proxys = |jump: &Jump<R>| is_base(&jump.from) && names::is_entrance(&jump.to);
    loop {
        let mut stays: Vec<(String, String)> = jumps
            .iter()
            .filter(|jump| going.contains(&jump.to) && !going.contains(&jump.from) && !is_kube_proxys(jump))
            .map(|jump| (jump.to.clone(), jump.from.clone()))
            .collect();
        // What is marked must be masqueraded.
        if let Some(from) = kept.get(names::MARK).filter(|_| going.contains(names::MASQUERADE)) {
            stays.push((names::MASQUERADE.to_owned(), String::clone(from)));
        }
        if stays.is_empty() {
            break;
        }
        for (chain, from) in stays {
            going.remove(&chain);
            kept.entry(chain).or_insert(from);
        }
    }
    let rules = jumps.iter().filter(|jump| going.contains(&jump.to) && !going.contains(&jump.from)).cloned().collect();
    Plan { rules, chains: going, kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(jumps: &[(&str, &str)], alone: &[&str]) -> Plan<usize> {
        let names = jumps.iter().flat_map(|(from, to)| [*from, *to]).chain(alone.iter().copied());
        let base = |name: &str| ["PREROUTING", "POSTROUTING", "FORWARD", "OUTPUT", "INPUT"].contains(&name);
        let chains = names.map(|name| (name.to_owned(), base(name))).collect();
        let jump = |(rule, (from, to)): (usize, &(&str, &str))| Jump { from: (*from).into(), to: (*to).into(), rule };
        let jumps: Vec<_> = jumps.iter().enumerate().map(jump).collect();
        plan(&chains, &jumps)
    }

    #[test]
    fn kube_proxys_chains_go_with_what_leads_there_from_base_chains() {
        let plan = table(
            &[
                ("PREROUTING", "KUBE-SERVICES"),
                ("OUTPUT", "KUBE-SERVICES"),
                ("KUBE-SERVICES", "KUBE-SVC-A"),
                ("KUBE-SVC-A", "KUBE-SEP-B"),
                ("KUBE-SEP-B", "KUBE-MARK-MASQ"),
                ("POSTROUTING", "KUBE-POSTROUTING"),
                ("PREROUTING", "DOCKER"),
                ("INPUT", "KUBE-FIREWALL"),
            ],
            &["KUBE-KUBELET-CANARY", "KUBE-PROXY-CANARY"],
        );
        let rules: Vec<usize> = plan.rules.iter().map(|jump| jump.rule).collect();
        assert_eq!(rules, [0, 1, 5]);
        let chains: Vec<_> = plan.chains.iter().map(String::as_str).collect();
        let gone =
            ["KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-PROXY-CANARY", "KUBE-SEP-B", "KUBE-SERVICES", "KUBE-SVC-A"];
        assert_eq!(chains, gone);
        assert!(plan.kept.is_empty());
    }

    #[test]
    fn what_others_lead_to_stays_and_goes_on_working() {
        let plan = table(
            &[
                ("PREROUTING", "KUBE-SERVICES"),
                ("KUBE-SERVICES", "KUBE-MARK-MASQ"),
                ("POSTROUTING", "KUBE-POSTROUTING"),
                ("CNI-HOSTPORT-SETMARK", "KUBE-MARK-MASQ"),
            ],
            &[],
        );
        assert_eq!(plan.rules.iter().map(|jump| jump.rule).collect::<Vec<_>>(), [0]);
        assert_eq!(plan.chains, BTreeSet::from(["KUBE-SERVICES".to_owned()]));
        let kept: Vec<_> = plan.kept.iter().map(|(chain, by)| (chain.as_str(), by.as_str())).collect();
        let by = "CNI-HOSTPORT-SETMARK";
        assert_eq!(kept, [("KUBE-MARK-MASQ", by), ("KUBE-POSTROUTING", by)]);
    }

    #[test]
    fn a_rule_of_a_base_chain_that_kube_proxy_does_not_write_is_somebody_elses() {
        let plan = table(
            &[
                ("PREROUTING", "KUBE-SERVICES"),
                ("PREROUTING", "KUBE-MARK-MASQ"),
                ("KUBE-SERVICES", "KUBE-MARK-MASQ"),
                ("POSTROUTING", "KUBE-POSTROUTING"),
            ],
            &[],
        );
        assert_eq!(plan.rules.iter().map(|jump| jump.rule).collect::<Vec<_>>(), [0]);
        assert_eq!(plan.chains, BTreeSet::from(["KUBE-SERVICES".to_owned()]));
        let kept: Vec<_> = plan.kept.iter().map(|(chain, by)| (chain.as_str(), by.as_str())).collect();
        assert_eq!(kept, [("KUBE-MARK-MASQ", "PREROUTING"), ("KUBE-POSTROUTING", "PREROUTING")]);
    }

    #[test]
    fn a_chain_that_stays_keeps_those_that_it_leads_to() {
        let plan = table(&[("MINE", "KUBE-SVC-A"), ("KUBE-SVC-A", "KUBE-SEP-B"), ("KUBE-SVC-C", "KUBE-SEP-D")], &[]);
        assert_eq!(plan.chains.iter().collect::<Vec<_>>(), ["KUBE-SEP-D", "KUBE-SVC-C"]);
        assert_eq!(plan.kept.keys().collect::<Vec<_>>(), ["KUBE-SEP-B", "KUBE-SVC-A"]);
    }

    #[test]
    fn a_table_without_them_is_left_alone() {
        let plan = table(&[("PREROUTING", "DOCKER"), ("INPUT", "KUBE-FIREWALL")], &[]);
        assert!(plan.rules.is_empty() && plan.chains.is_empty() && plan.kept.is_empty());
    }
}
