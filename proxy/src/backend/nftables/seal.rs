//! The seal: a chain without rules whose name holds a digest of everything in the table that is neither a row nor a
//! dynamic chain. It is added once the table is loaded, so that the next process sees whether somebody changed the table
//! meanwhile, however the kernel and this version of `nft` choose to say the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::chains::{Chain, fnv1a};
use super::kernel::ChainDigest;

const PREFIX: &str = "sealed-";

/// What of our table is not rows, as the kernel reports it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Structure {
    /// The chains by name.
    pub chains: BTreeMap<Arc<str>, ChainDigest>,
    /// A digest of the declaration of each set and map, by name; of those within a rule also of the elements.
    pub sets: BTreeMap<Arc<str>, u64>,
    /// Flowtables and named objects: we have none.
    pub others: BTreeSet<String>,
}

impl Structure {
    /// The name of the chain that seals this structure. Dynamic chains are compared with what we would write instead;
    /// one that hangs on a hook is none of ours.
    pub fn seal(&self) -> Arc<str> {
        let mut text = String::new();
        for (name, chain) in &self.chains {
            let passes = name.starts_with(PREFIX) || Chain::is_dynamic(name);
            if chain.base || !passes {
                text += &format!("chain {name} {:016x}\n", chain.digest);
            }
        }
        for (name, digest) in &self.sets {
            text += &format!("set {name} {digest:016x}\n");
        }
        for other in &self.others {
            text += &format!("{other}\n");
        }
        format!("{PREFIX}{:016x}", fnv1a(text.as_bytes())).into()
    }

    /// Whether the table is as it was when it was sealed.
    pub fn is_sealed(&self) -> bool {
        self.chains.contains_key(&self.seal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_breaks_by_any_change_but_of_dynamic_chains() {
        let chain = |base, digest| ChainDigest { rules: 1, base, digest };
        let mut structure = Structure::default();
        structure.chains.insert("output".into(), chain(true, 1));
        structure.chains.insert("refuse".into(), chain(false, 2));
        structure.sets.insert("frontends4".into(), 3);
        assert!(!structure.is_sealed());
        structure.chains.insert(structure.seal(), chain(false, 0));
        assert!(structure.is_sealed());
        structure.chains.insert("v4-cluster-random-2".into(), chain(false, 4));
        assert!(structure.is_sealed());
        let broken = |change: &dyn Fn(&mut Structure)| {
            let mut other = structure.clone();
            change(&mut other);
            !other.is_sealed()
        };
        let with = |name: &str, base| broken(&|other| other.chains.extend([(name.into(), chain(base, 5))]));
        assert!(with("output", true) && with("refuse", false) && with("other", false) && with("v4-other", true));
        assert!(!with("v4-other", false), "no row goes there");
        assert!(broken(&|other| other.chains.retain(|name, _| &**name != "refuse")));
        assert!(broken(&|other| other.chains.retain(|name, _| !name.starts_with(PREFIX))));
        assert!(broken(&|other| other.sets.extend([("frontends4".into(), 5)])));
        assert!(broken(&|other| other.sets.clear()));
        assert!(broken(&|other| other.others.extend(["flowtable f".to_owned()])));
    }
}
