//! Who has which frontend. Several service ports may claim one; the least [`Rank`] holds it, the others wait.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use crate::state::objects::{Family, Ignored, ObjectName, Protocol};

use super::Touched;
use super::target::{Frontend, Rank, Role, Target};

/// How many of the frontends that a Service has lost are named; of more, one line says how many.
pub const CONFLICTS_NAMED: usize = 10;

/// The claims on every frontend.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    /// Sorted by rank. Nearly all have one claim: a map in a map would cost a node for each.
    claims: BTreeMap<Frontend, Vec<(Rank, Arc<Target>)>>,
    cluster_ips: BTreeMap<IpAddr, u32>,
    contested: BTreeSet<Frontend>,
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
        let claims = self.claims.entry(frontend).or_default();
        let at = claims.partition_point(|(other, _)| *other < rank);
        claims.reserve_exact(1);
        claims.insert(at, (rank, target));
        self.note_contest(&frontend);
    }

    pub(super) fn release(&mut self, service: &ObjectName, claimed: &[Frontend], touched: &mut Touched) {
        for frontend in claimed {
            touched.frontends.insert(*frontend);
            let Some(claims) = self.claims.get_mut(frontend) else { continue };
            let mut freed = 0;
            claims.retain(|(rank, _)| {
                let ours = rank.service() == service;
                freed += u32::from(ours && rank.is_cluster_ip());
                !ours
            });
            if claims.is_empty() {
                self.claims.remove(frontend);
            }
            self.note_contest(frontend);
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

    /// Nobody but a ClusterIP may hold these from now on.
    pub(super) fn reserve(&mut self, reserved: BTreeSet<Frontend>, touched: &mut Touched) {
        let before = std::mem::replace(&mut self.reserved, reserved);
        for frontend in before.symmetric_difference(&self.reserved).copied().collect::<Vec<_>>() {
            self.note_contest(&frontend);
            touched.frontends.insert(frontend);
        }
    }

    /// Whether an address is a ClusterIP decides who may hold any of its ports.
    fn touch_address(&mut self, ip: IpAddr, touched: &mut Touched) {
        touched.cluster_ips.insert(ip);
        let frontends: Vec<_> = self.claimed_at(ip).collect();
        for frontend in frontends {
            self.note_contest(&frontend);
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

    fn note_contest(&mut self, frontend: &Frontend) {
        let holder = self.holder(frontend).map(|holder| &holder.target.name);
        let loses = |(_, target): &(Rank, Arc<Target>)| holder != Some(&target.name);
        let waiting = self.claims.get(frontend).is_some_and(|claims| claims.iter().any(loses));
        if waiting {
            self.contested.insert(*frontend);
        } else {
            self.contested.remove(frontend);
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

    /// What every loser is told, of its first frontends one by one. Two roles of one service port on one frontend are no conflict.
    pub(super) fn conflicts(&self) -> Vec<(ObjectName, Ignored)> {
        let (mut out, mut lost) = (Vec::new(), BTreeMap::<&ObjectName, usize>::new());
        for frontend in &self.contested {
            let Some(claims) = self.claims.get(frontend) else { continue };
            let holder = self.holder(frontend);
            for (rank, target) in claims {
                if holder.is_some_and(|holder| holder.target.name == target.name) {
                    continue;
                }
                let lost = lost.entry(rank.service()).or_default();
                *lost += 1;
                if *lost > CONFLICTS_NAMED {
                    continue;
                }
                let why = match holder {
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
                let what = format!("Service {} port {:?}", rank.service(), &*target.name.port);
                out.push((rank.service().clone(), Ignored { what, why }));
            }
        }
        out.extend(lost.into_iter().filter(|(_, lost)| *lost > CONFLICTS_NAMED).map(|(service, lost)| {
            let (what, more) = (format!("Service {service}"), lost - CONFLICTS_NAMED);
            (service.clone(), Ignored { what, why: format!("and {more} more frontends that others serve") })
        }));
        out
    }
}
