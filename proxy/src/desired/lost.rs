//! Claims that lost their frontend, counted by Service as they come and go. A tenant may have hundreds of thousands, of which few are told:
//! what is told is to cost no more than that.

use std::collections::{BTreeMap, BTreeSet};

use crate::state::objects::ObjectName;

use super::target::Frontend;

/// Who has lost claims, and where.
#[derive(Debug, Default)]
pub(super) struct Lost(BTreeMap<ObjectName, OfService>);

#[derive(Debug, Default)]
struct OfService {
    claims: usize,
    /// How many of them are at each frontend: two ports of a Service may ask for one.
    at: BTreeMap<Frontend, u32>,
}

impl Lost {
    /// A claim of this Service has lost.
    pub fn add(&mut self, service: &ObjectName, frontend: &Frontend) {
        if !self.0.contains_key(service) {
            self.0.insert(service.clone(), OfService::default());
        }
        if let Some(lost) = self.0.get_mut(service) {
            lost.claims += 1;
            *lost.at.entry(*frontend).or_default() += 1;
        }
    }

    /// One that had lost has gone, or has won.
    pub fn remove(&mut self, service: &ObjectName, frontend: &Frontend) {
        let Some(lost) = self.0.get_mut(service) else { return };
        let Some(here) = lost.at.get_mut(frontend) else { return };
        lost.claims -= 1;
        *here -= 1;
        if *here == 0 {
            lost.at.remove(frontend);
        }
        if lost.claims == 0 {
            self.0.remove(service);
        }
    }

    /// The first frontends of every Service that has lost some, so many of each: the first so many claims are there.
    pub fn first(&self, count: usize) -> BTreeSet<Frontend> {
        self.0.values().flat_map(|lost| lost.at.keys().take(count)).copied().collect()
    }

    /// Who has lost more than so many claims, and how many more.
    pub fn beyond(&self, count: usize) -> impl Iterator<Item = (&ObjectName, usize)> {
        let more = self.0.iter().map(move |(service, lost)| (service, lost.claims.saturating_sub(count)));
        more.filter(|(_, more)| *more > 0)
    }
}
