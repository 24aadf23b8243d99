//! The steady state: only what was touched is compared, with what is remembered to be in force.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use crate::backend::nftables::chains::List;
use crate::backend::nftables::diff::{Change, diff};
use crate::backend::nftables::draw::Turn;
use crate::backend::nftables::kernel::{Kernel, KernelError};
use crate::backend::nftables::rows::{Chains, Key, Part, Value, Wanted, client_number};
use crate::desired::node_view::NodeView;
use crate::desired::target::ServicePortName;
use crate::desired::{Desired, Touched};
use crate::state::objects::{ObjectName, Protocol};

use super::steps::Committed;
use super::{Reconciler, Report};

impl<K: Kernel> Reconciler<K> {
    /// Compares and commits the rows of what was touched.
    pub(super) fn incremental(&mut self, desired: &Desired, touched: &Touched) -> Result<Report, KernelError> {
        // Chains of their own may have been written before their rows were refused.
        let was_refused = touched.frontends.iter().filter(|frontend| self.refused.remove(frontend).is_some()).count();
        self.unlinked |= was_refused > 0;
        let (wanted, changes) = self.compare(desired, touched)?;
        let mut report = Report { refused: self.refused.clone(), ..Report::default() };
        report.note(&changes);
        self.known = changes.is_empty();
        let Committed { counts, transactions } = self.commit(&changes, &wanted.chains, desired)?;
        self.known = true;
        self.counting.take(desired, &self.applied, &changes, counts);
        if desired.node().counts() {
            self.own(desired, touched.frontends.iter().copied());
        }
        self.remember(&wanted.chains, changes, transactions, desired.node());
        Ok(report)
    }

    /// What is wanted of what was touched, and the changes that it takes.
    pub(super) fn compare(
        &mut self,
        desired: &Desired,
        touched: &Touched,
    ) -> Result<(Wanted, Vec<Change>), KernelError> {
        let mut wanted = Wanted::default();
        let mut old: Vec<(Key, Value)> = Vec::new();
        for frontend in &touched.frontends {
            wanted.frontend(desired, frontend, &self.applied);
            let [first, last] = Part::ALL.map(|part| Key::Of(*frontend, part));
            old.extend(self.applied.range(first..=last).map(|(key, value)| (*key, value.clone())));
        }
        for (turn, list) in self.turns_to_compare(touched, &wanted, &old) {
            let [first, last] = turn.rows(list);
            old.extend(self.applied.range(first..=last).map(|(key, value)| (*key, value.clone())));
        }
        let mut member = |key: Key, is: bool| {
            if is {
                wanted.rows.insert(key, Value::Present);
            }
            old.extend(self.applied.get_key_value(&key).map(|(key, value)| (*key, value.clone())));
        };
        for ip in &touched.endpoint_ips {
            member(Key::Hairpin(*ip), desired.is_endpoint(*ip));
        }
        for ip in &touched.cluster_ips {
            member(Key::ClusterIp(*ip), desired.is_cluster_ip(*ip));
        }
        if touched.node {
            wanted.node(desired);
            // They are the last of all keys.
            let first = Key::ServiceCidr(IpNet::V4(Ipv4Net::default()));
            old.extend(self.applied.range(first..).map(|(key, value)| (*key, value.clone())));
        }
        let altered = self.altered_unread(&wanted.chains, desired.node())?;
        let old = old.iter().map(|(key, value)| (key, value));
        let anew = |key: &Key| self.counting.changes_hands(desired, key);
        let changes = diff(old, &wanted.rows, &wanted.chains, &self.chains, &altered, &anew);
        Ok((wanted, changes))
    }

    /// The turns of whose lists all rows are wanted, or none: those that touched frontends take, and those that they took
    /// (`old`) if no other frontend does.
    fn turns_to_compare(&self, touched: &Touched, wanted: &Wanted, old: &[(Key, Value)]) -> BTreeSet<(Turn, List)> {
        let takes = |(key, value): (&Key, &Value)| match (key, value) {
            (Key::Of(frontend, _), Value::Chain(name)) => Turn::taken(name, frontend),
            _ => BTreeSet::new(),
        };
        let now: BTreeSet<_> = wanted.rows.iter().flat_map(takes).collect();
        let mut before: BTreeSet<_> = old.iter().flat_map(|(key, value)| takes((key, value))).collect();
        before.retain(|turn| !now.contains(turn));
        if !before.is_empty() {
            // Seldom: a service port has lost a frontend, or its endpoints take no turns any more.
            let untouched =
                |(key, _): &(&Key, &Value)| !matches!(key, Key::Of(of, _) if touched.frontends.contains(of));
            for turn in self.applied.iter().filter(untouched).flat_map(takes) {
                before.remove(&turn);
            }
        }
        now.into_iter().chain(before).collect()
    }

    /// Those of `chains` that nobody has looked at yet and that say something else than we would write: the next row
    /// that goes to them must not find what somebody put there before we came.
    fn altered_unread(&mut self, chains: &Chains, node: &NodeView) -> Result<BTreeSet<Arc<str>>, KernelError> {
        let unread = chains.iter().filter(|(name, _)| self.unread.contains(*name));
        let unread: Chains = unread.map(|(name, chain)| (name.clone(), chain.clone())).collect();
        if unread.is_empty() { Ok(BTreeSet::new()) } else { self.kernel.altered(&unread, node) }
    }

    /// Takes committed changes, and the chains that their rows go to, into what is known to be in force.
    pub(super) fn remember(&mut self, chains: &Chains, changes: Vec<Change>, transactions: u32, node: &NodeView) {
        self.unread.retain(|name| !chains.contains_key(name));
        if changes.is_empty() {
            return;
        }
        let new_chains: Vec<_> = changes.iter().filter_map(|change| self.took(change)).collect();
        if let Err(error) = self.read_back(&new_chains, chains, transactions, node) {
            tracing::debug!(%error, "new chains cannot be read; reading everything at the next look");
            self.known = false;
        }
    }

    /// Reads chains that were just written, to know them again. Only these: with many chains of single services, reading all of
    /// them would cost more than the change.
    fn read_back(
        &mut self,
        new: &[Arc<str>],
        chains: &Chains,
        transactions: u32,
        node: &NodeView,
    ) -> Result<(), KernelError> {
        let digests = if new.is_empty() { Vec::new() } else { self.kernel.digests(new)? };
        self.digests.extend(digests);
        self.follow_generation(self.generation, transactions);
        if new.is_empty() || self.generation.is_some() {
            return Ok(());
        }
        let new = new.iter().filter_map(|name| chains.get_key_value(name));
        self.doubt_chains(&new.map(|(name, chain)| (name.clone(), chain.clone())).collect(), node)
    }

    /// Forgets the clients of endpoints that left, so that one that comes back does not take them from where they are
    /// now. If it fails, the kernel forgets them by their timeout.
    pub(super) fn forget_clients(&mut self, desired: &Desired) {
        let numbers = forgotten(&std::mem::take(&mut self.left), |service| desired.remembered(service));
        if numbers.is_empty() {
            return;
        }
        match self.kernel.forget_clients(&numbers) {
            Ok(transactions) => self.follow_generation(self.generation, transactions),
            Err(error) => tracing::debug!(%error, "clients of endpoints that left are remembered until their timeout"),
        }
    }
}

/// The numbers of those that left and are not back. What is remembered of a Service is asked for once, however many of its ports'
/// endpoints left: there may be tens of thousands of both.
fn forgotten<'a>(
    left: &BTreeSet<(ServicePortName, SocketAddr)>,
    remembered: impl Fn(&ObjectName) -> HashSet<(&'a str, Protocol, SocketAddr)>,
) -> BTreeSet<u32> {
    let mut of: Option<(&ObjectName, HashSet<_>)> = None;
    let mut numbers = BTreeSet::new();
    // In order: those of one Service come one after the other.
    for (name, endpoint) in left {
        let known = match of.take() {
            Some((service, known)) if *service == name.service => known,
            _ => remembered(&name.service),
        };
        if !known.contains(&(&*name.port, name.protocol, *endpoint)) {
            numbers.insert(client_number(name, *endpoint));
        }
        of = Some((&name.service, known));
    }
    numbers
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_a_service_remembers_is_asked_for_once() {
        let endpoint = |number: u16| SocketAddr::from(([10, 244, 0, 1], number));
        let name = |service: usize, port: usize| ServicePortName {
            service: ObjectName::new("default", ["a", "b"][service]),
            port: ["p", "q"][port].into(),
            protocol: Protocol::Tcp,
        };
        let places = (0..2).flat_map(|service| (0..2).map(move |port| (service, port)));
        let left: BTreeSet<_> =
            places.flat_map(|(service, port)| (0..1000).map(move |n| (name(service, port), endpoint(n)))).collect();
        let asked = Cell::new(0);
        let numbers = forgotten(&left, |service| {
            asked.set(asked.get() + 1);
            // One that is back at one port of one Service.
            if &*service.name == "a" { [("q", Protocol::Tcp, endpoint(7))].into() } else { HashSet::new() }
        });
        assert_eq!(asked.get(), 2, "once for each Service");
        let back = client_number(&name(0, 1), endpoint(7));
        let all: BTreeSet<_> = left.iter().map(|(name, endpoint)| client_number(name, *endpoint)).collect();
        assert_eq!(numbers, all.into_iter().filter(|number| *number != back).collect());
    }
}
