//! Who has which frontend. Several service ports may claim one; the least [`Rank`] holds it, the others wait.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use crate::state::objects::{Family, Ignored, ObjectName, Protocol};

use super::lost::Lost;
use super::target::{Claiming, Frontend, Rank, Role, Target};
use super::{Claimed, Touched};

/// How many of the frontends that a Service has lost are named; of more, one line says how many.
pub const CONFLICTS_NAMED: usize = 10;

/// The claims on every frontend.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    /// Sorted by rank. Nearly all have one claim: a map in a map would cost a node for each.
    claims: BTreeMap<Frontend, Vec<(Rank, Arc<Target>)>>,
    cluster_ips: BTreeMap<IpAddr, u32>,
    /// Who has lost which claims, as of the last [`Frontends::recount`].
    lost: Lost,
    /// What somebody claims and nobody holds, as of then.
    unheld: BTreeSet<Frontend>,
    /// Where the API server itself answers.
    reserved: BTreeSet<Frontend>,
}

/// A held frontend: by which role, and whose.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// By which field of the Service.
    pub role: Role,
    /// The service port.
    pub target: &'a Arc<Target>,
}

/// The least range that has both.
pub(super) fn wider(one: (u16, u16), other: (u16, u16)) -> (u16, u16) {
    (one.0.min(other.0), one.1.max(other.1))
}

impl Frontends {
    pub(super) fn claim(&mut self, frontend: Frontend, rank: Rank, target: Arc<Target>, touched: &mut Touched) {
        if let (true, Frontend::Address { ip, .. }) = (rank.is_cluster_ip(), frontend) {
            let count = self.cluster_ips.entry(ip).or_default();
            *count += 1;
            if *count == 1 {
                self.touch_address(ip, touched);
            }
        }
        touched.frontends.insert(frontend);
        let before = self.counted_holder(&frontend);
        let claims = self.claims.entry(frontend).or_default();
        let at = claims.partition_point(|(other, _)| *other < rank);
        claims.reserve_exact(1);
        claims.insert(at, (rank, target));
        self.recount(&frontend, before, Some(at));
    }

    pub(super) fn release(&mut self, service: &ObjectName, claimed: &[Frontend], touched: &mut Touched) {
        for frontend in claimed {
            touched.frontends.insert(*frontend);
            let before = self.counted_holder(frontend);
            let Some(claims) = self.claims.get_mut(frontend) else { continue };
            let mut freed = 0;
            claims.retain(|(rank, target)| {
                let ours = rank.service() == service;
                freed += u32::from(ours && rank.is_cluster_ip());
                if ours && loses(target, before.as_ref()) {
                    self.lost.remove(service, frontend);
                }
                !ours
            });
            if claims.is_empty() {
                self.claims.remove(frontend);
            }
            self.recount(frontend, before, None);
            if let (true, Frontend::Address { ip, .. }) = (freed > 0, frontend) {
                let count = self.cluster_ips.entry(*ip).or_default();
                *count -= freed;
                if *count == 0 {
                    self.cluster_ips.remove(ip);
                    self.touch_address(*ip, touched);
                }
            }
        }
    }

    /// Whether a Service that has claimed these frontends claims the very same now. Two equal claims on one are nothing that could be told.
    pub(super) fn has_same(&self, had: &[Claimed], wanted: &[Claiming]) -> bool {
        let is_there = |(frontend, rank): &(Frontend, Rank), was: &Target, now: &Target| {
            let Some(claims) = self.claims.get(frontend) else { return false };
            let at = claims.partition_point(|(other, _)| other < rank);
            let equal = claims[at..].iter().take_while(|(other, _)| other == rank).collect::<Vec<_>>();
            // What its losses are counted by is the name.
            matches!(equal[..], [(_, target)] if target.name == was.name) && was.name == now.name
        };
        had.len() == wanted.len()
            && had.iter().zip(wanted).all(|((was, claimed), (now, claims))| {
                claimed.len() == claims.len()
                    && claimed.iter().zip(claims).all(|(had, claim)| *had == claim.0 && is_there(claim, was, now))
            })
    }

    /// The claim of this rank is now for this target, of the same name.
    pub(super) fn renew(&mut self, frontend: Frontend, rank: &Rank, target: &Arc<Target>, touched: &mut Touched) {
        touched.frontends.insert(frontend);
        let Some(claims) = self.claims.get_mut(&frontend) else { return };
        let at = claims.partition_point(|(other, _)| other < rank);
        if let Some((_, renewed)) = claims.get_mut(at).filter(|(other, _)| other == rank) {
            *renewed = target.clone();
        }
    }

    /// Nobody but a ClusterIP may hold these from now on.
    pub(super) fn reserve(&mut self, reserved: BTreeSet<Frontend>, touched: &mut Touched) {
        let before = std::mem::replace(&mut self.reserved, reserved);
        for frontend in before.symmetric_difference(&self.reserved).copied().collect::<Vec<_>>() {
            self.recount(&frontend, self.counted_holder(&frontend), None);
            touched.frontends.insert(frontend);
        }
    }

    /// Whether an address is a ClusterIP decides who may hold any of its ports.
    fn touch_address(&mut self, ip: IpAddr, touched: &mut Touched) {
        touched.cluster_ips.insert(ip);
        let frontends: Vec<_> = self.claimed_at(ip).collect();
        for frontend in frontends {
            self.recount(&frontend, self.counted_holder(&frontend), None);
            touched.frontends.insert(frontend);
        }
    }

    /// The ports of an address that somebody claims.
    pub(super) fn claimed_at(&self, ip: IpAddr) -> impl Iterator<Item = Frontend> {
        let first = Frontend::Address { ip, protocol: Protocol::Tcp, port: 0 };
        let last = Frontend::Address { ip, protocol: Protocol::Sctp, port: u16::MAX };
        self.claims.range((Bound::Included(first), Bound::Included(last))).map(|(frontend, _)| *frontend)
    }

    /// The least and the greatest port that somebody claims at an address.
    pub(super) fn ports_at(&self, ip: IpAddr) -> Option<(u16, u16)> {
        self.span(Protocol::ALL.map(|protocol| [0, u16::MAX].map(|port| Frontend::Address { ip, protocol, port })))
    }

    /// The least and the greatest node port that somebody claims.
    pub(super) fn node_ports(&self) -> Option<(u16, u16)> {
        let family = |family| {
            let ends = |protocol| [0, u16::MAX].map(|port| Frontend::NodePort { family, protocol, port });
            self.span(Protocol::ALL.map(ends))
        };
        Family::BOTH.into_iter().filter_map(family).reduce(wider)
    }

    /// The least and the greatest port of the claimed frontends from the first to the second of each pair.
    fn span(&self, ends: [[Frontend; 2]; 3]) -> Option<(u16, u16)> {
        let of = |[first, last]: [Frontend; 2]| {
            let mut claimed = self.claims.range(first..=last).map(|(frontend, _)| frontend.port());
            let least = claimed.next()?;
            Some((least, claimed.next_back().unwrap_or(least)))
        };
        ends.into_iter().filter_map(of).reduce(wider)
    }

    /// Who held a frontend when lost claims were last counted there.
    fn counted_holder(&self, frontend: &Frontend) -> Option<Arc<Target>> {
        let (_, target) = self.claims.get(frontend)?.first()?;
        (!self.unheld.contains(frontend)).then(|| target.clone())
    }

    /// Counts the lost claims on a frontend that was held by `before` so far. `new`: the place of a claim that has come since. Goes
    /// through all claims only where it is another's now.
    fn recount(&mut self, frontend: &Frontend, before: Option<Arc<Target>>, new: Option<usize>) {
        let now = self.holder(frontend).map(|holder| holder.target.clone());
        let Some(claims) = self.claims.get(frontend) else {
            self.unheld.remove(frontend);
            return;
        };
        match now {
            Some(_) => self.unheld.remove(frontend),
            None => self.unheld.insert(*frontend),
        };
        let same = before.as_ref().map(|target| &target.name) == now.as_ref().map(|target| &target.name);
        let changed = if same { new.map_or(0..0, |at| at..at + 1) } else { 0..claims.len() };
        for (at, (rank, target)) in claims.iter().enumerate().take(changed.end).skip(changed.start) {
            let lost = Some(at) != new && loses(target, before.as_ref());
            match (lost, loses(target, now.as_ref())) {
                (false, true) => self.lost.add(rank.service(), frontend),
                (true, false) => self.lost.remove(rank.service(), frontend),
                _ => {}
            }
        }
    }

    /// The claim that holds a frontend. An address that is a ClusterIP serves no other role, on any port; nor does one at which
    /// the API server answers, on that port.
    pub(super) fn holder(&self, frontend: &Frontend) -> Option<Claim<'_>> {
        let (rank, target) = self.claims.get(frontend)?.first()?;
        let is_a_cluster_ip = || matches!(frontend, Frontend::Address { ip, .. } if self.is_cluster_ip(*ip));
        let shadowed = !rank.is_cluster_ip() && (self.reserved.contains(frontend) || is_a_cluster_ip());
        (!shadowed).then(|| Claim { role: rank.role(), target })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Frontend> {
        self.claims.keys().copied()
    }

    pub(super) fn is_cluster_ip(&self, ip: IpAddr) -> bool {
        self.cluster_ips.contains_key(&ip)
    }

    pub(super) fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.cluster_ips.keys().copied()
    }

    /// What every loser is told, of its first frontends one by one. The cost depends on how much that is.
    pub(super) fn conflicts(&self) -> Vec<(ObjectName, Ignored)> {
        let (mut out, mut named) = (Vec::new(), BTreeMap::<&ObjectName, usize>::new());
        for frontend in self.lost.first(CONFLICTS_NAMED) {
            let Some(claims) = self.claims.get(&frontend) else { continue };
            let holder = self.holder(&frontend);
            for (rank, target) in claims.iter().filter(|(_, target)| loses(target, holder.map(|holder| holder.target)))
            {
                let named = named.entry(rank.service()).or_default();
                *named += 1;
                if *named <= CONFLICTS_NAMED {
                    out.push((rank.service().clone(), self.told(&frontend, target)));
                }
            }
        }
        out.extend(self.lost.beyond(CONFLICTS_NAMED).map(|(service, more)| {
            let what = format!("Service {service}");
            (service.clone(), Ignored { what, why: format!("and {more} more frontends that others serve") })
        }));
        out
    }

    /// What is said of a target that has lost a frontend.
    fn told(&self, frontend: &Frontend, loser: &Target) -> Ignored {
        let why = match self.holder(frontend) {
            Some(holder) => format!(
                "{frontend} is already served for {} (an older Service wins, a ClusterIP before other addresses); \
                 give one of the two another address or port",
                holder.target.name
            ),
            None if self.reserved.contains(frontend) => {
                format!("{frontend} is where the API server answers; choose another address or port")
            }
            None => format!("{frontend} is the ClusterIP of another Service; choose another address"),
        };
        Ignored { what: format!("Service {} port {:?}", loser.name.service, &*loser.name.port), why }
    }
}

/// Whether a claim of this target loses to the holder's. Two roles of one service port on one frontend are no conflict.
fn loses(target: &Target, holder: Option<&Arc<Target>>) -> bool {
    holder.is_none_or(|holder| holder.name != target.name)
}

#[cfg(test)]
#[path = "lost_tests.rs"]
mod tests;
