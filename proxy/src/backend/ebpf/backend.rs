//! What the rest of the program sees of the eBPF datapath.

use std::collections::BTreeMap;
use std::time::Instant;

use super::error::EbpfError;
use super::following::Following;
use super::reconciler::Ebpf;
use super::retired::Told;
use super::rows::service_number;
use super::sweep::{self, Sweeper};
use super::{ports, sock_diag, text};
use crate::backend::{Backend, Counts, Left, Report};
use crate::conntrack::{Cleaned, UdpService};
use crate::desired::limits;
use crate::desired::target::{Frontend, Target};
use crate::desired::{Desired, Touched};
use crate::state::objects::{Ignored, Service};
use crate::traffic::Counting;

/// So many frontends of one namespace are brought at once, …
const FEW: usize = 100;
/// … and of namespaces that wait with more so many in one sync: in an unoptimized build a second's work, in which nobody else's
/// changes come into force.
const FRONTENDS_AT_ONCE: usize = 4000;
/// So many endpoints at as many ports and addresses are as much to look at as one frontend is to write.
const WORK_LIKE_A_FRONTEND: usize = 128;

impl Backend for Ebpf {
    type Error = EbpfError;

    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn sync(&mut self, desired: &Desired, touched: Touched) -> Result<Report, EbpfError> {
        self.pending.merge(touched);
        let touched = std::mem::take(&mut self.pending);
        let result = match self.following {
            Some(_) => self.incremental(desired, &touched),
            None => self.full(desired),
        };
        let mut report = match result {
            Ok(report) => report,
            Err(error) if self.interfaces.is_none() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a write failed; comparing every row with the maps");
                self.full(desired)?
            }
        };
        self.attach()?;
        report.refused = self.following.as_ref().map(Following::refused).unwrap_or_default();
        Ok(report)
    }

    /// Frontends, and what is as much work.
    fn cost(&self, desired: &Desired, service: &Service, work: usize) -> usize {
        desired.frontends_of(service) + limits::noticed(work) / WORK_LIKE_A_FRONTEND
    }

    fn unnoticed(&self) -> usize {
        FEW
    }

    fn at_once(&self) -> usize {
        FRONTENDS_AT_ONCE
    }

    fn check(&mut self, desired: &Desired) -> Result<Option<Report>, EbpfError> {
        self.check_all(desired)
    }

    fn check_hooks(&mut self) -> Result<Option<Report>, EbpfError> {
        let looks = self.look_at_hooks();
        self.sum(Report::default(), looks)
    }

    fn rows(&self) -> &BTreeMap<&'static str, usize> {
        &self.counts
    }

    fn refused(&self) -> Vec<Ignored> {
        let mut ignored = self.following.as_ref().map(Following::ignored).unwrap_or_default();
        let (first, last) = self.fixed.masquerade_ports;
        if let Some((from, to)) = self.overlap {
            ignored.push(Ignored {
                what: format!("--masquerade-ports {first}-{last}"),
                why: format!(
                    "the node's own sockets take ports {from} to {to} (net.ipv4.ip_local_port_range): a masqueraded \
                     connection may meet one; choose another range, or reserve it in net.ipv4.ip_local_reserved_ports"
                ),
            });
        }
        if let Some(inside) = ports::node_ports((first, last), &self.node_ports) {
            ignored.push(Ignored {
                what: format!("--masquerade-ports {first}-{last}"),
                why: format!(
                    "node ports lie inside ({inside}): a masqueraded connection may take one; choose another range"
                ),
            });
        }
        let devices = self.devices();
        ignored.extend(devices.idle_patterns().map(|(flag, pattern)| Ignored {
            what: format!("{flag} {pattern}"),
            why: "no interface is called so now: one that comes will be covered".to_owned(),
        }));
        ignored.extend(devices.faults().iter().map(|(device, why)| Ignored {
            what: format!("device {device}"),
            why: format!("{why}: services are not served to what comes in by it"),
        }));
        ignored
    }

    fn left_out(&self) -> BTreeMap<Frontend, String> {
        self.following.as_ref().map(Following::refused).unwrap_or_default()
    }

    fn clean_udp(&mut self, services: &[UdpService]) -> Result<Cleaned, EbpfError> {
        let (cleaned, shown) = sweep::clean_udp(&self.maps, services, self.ends_pods)?;
        self.parting.add(shown, Instant::now());
        Ok(cleaned)
    }

    fn facts(&self) -> Vec<(String, String)> {
        let devices = self.devices();
        let covered: Vec<&str> = devices.covered().into_iter().collect();
        let mut facts = vec![
            ("programs".to_owned(), if self.adopted { "adopted from an earlier run" } else { "loaded" }.to_owned()),
            ("devices".to_owned(), format!("{} by {}: {}", covered.len(), devices.how(), covered.join(" "))),
        ];
        facts.push(("xdp".to_owned(), devices.uplinks()));
        let sockets = match self.sockets.cgroup() {
            Some(cgroup) => format!("{} programs at {}", self.sockets.attached(), cgroup.display()),
            None => "off".to_owned(),
        };
        facts.push(("sockets".to_owned(), sockets));
        let stale = match (self.sockets.cgroup(), sock_diag::limit()) {
            (None, _) => "none are translated".to_owned(),
            (Some(_), _) if !self.ends_pods => {
                "the node's are ended, those of pods are not (--end-pod-sockets)".to_owned()
            }
            (Some(_), None) => "ended, those of pods too".to_owned(),
            (Some(_), Some(why)) => format!("those of pods are not ended: {why}"),
        };
        facts.push(("stale UDP".to_owned(), stale));
        if let Ok(memory) = self.maps.memory() {
            let each: Vec<String> = memory.iter().map(|(map, bytes)| format!("{map} {} KiB", bytes >> 10)).collect();
            facts.push(("memory".to_owned(), each.join(", ")));
        }
        facts.push(("pins".to_owned(), self.folder.root().display().to_string()));
        facts
    }

    fn look(&mut self, desired: &Desired) -> Result<Vec<Counts>, EbpfError> {
        let targets = || desired.targets().map(|(_, target, _)| &**target);
        let Some(following) = &self.following else {
            // Who has which row is not known until the next sync.
            return if targets().next().is_none() { Ok(Vec::new()) } else { Err(EbpfError::Unread) };
        };
        let services = targets().map(|target| {
            let number = service_number(&target.name, target.family);
            let service = following.in_force.services.get(&number);
            let slots = service.into_iter().flat_map(|service| &service.lists).flat_map(|(_, list)| list);
            (number, slots.map(|slot| ((number, slot.address, slot.port), slot.backend)).collect())
        });
        let told = self.retired.look(services, &following.in_force.numbers, |row| self.maps.backends.get(row));
        let counts = |(target, Told { here, left }): (&Target, Told)| Counts {
            port: (target.name.clone(), target.family),
            here,
            left: Left::Since(left),
        };
        Ok(targets().zip(told).map(counts).collect())
    }

    fn counting(&self, _: &Desired) -> Counting {
        Counting { connections: true, active: true, packets: self.maps.counts_packets(), forgets: true }
    }

    fn costs(&self, desired: &Desired) -> Vec<(String, String)> {
        let (ports, rows) = text::maglev(desired).fold((0, 0), |(ports, all), (_, rows)| (ports + 1, all + rows));
        let room = self.maps.room().slots;
        let text = format!("{ports} service ports with mh take {rows} of {room} rows of slots");
        if ports == 0 { Vec::new() } else { vec![("mh".to_owned(), text)] }
    }

    fn recounted(&self) -> u64 {
        self.sweeper.as_ref().map_or(0, Sweeper::repaired)
    }

    fn packets(&self) -> Vec<(&'static str, u64)> {
        self.maps.counters().unwrap_or_default()
    }
}
