//! The look every few seconds at what others may have changed: what carries packets, and rows.

use std::time::{Duration, Instant};

use super::error::EbpfError;
use super::following::Following;
use super::reconciler::Ebpf;
use super::{takeover, watched};
use crate::backend::Report;
use crate::desired::Desired;
use crate::pacing::cpu_time;

/// How many checks pass between two looks at what connection tracking still has: with one every two seconds, half a minute.
const LOOK: u32 = 15;
/// Every row is looked at with each check, if that takes no more than one part in so many of a CPU's time, …
const SHARE: u32 = 100;
/// … and once in this time if it takes more.
const SELDOM: Duration = Duration::from_secs(30);

/// How much was repaired of one kind.
type Look = Result<usize, EbpfError>;

impl Ebpf {
    /// Looks at everything and repairs it. Nothing is looked at before the programs are attached.
    pub(super) fn check_all(&mut self, desired: &Desired) -> Result<Option<Report>, EbpfError> {
        if self.interfaces.is_none() {
            return Ok(None);
        }
        // First: without programs no row is of any use.
        let hooks = self.look_at_hooks();
        if let Some(sweeper) = &self.sweeper {
            self.counts.insert("flows", sweeper.entries());
        }
        self.checks += 1;
        let mut report = Report::default();
        let rows = match self.admit() {
            Admit::All => self.full(desired),
            Admit::Some => self.readmit(desired),
            Admit::Nobody => Ok(Report::default()),
        };
        let rows = rows.and_then(|admitted| {
            report = admitted;
            self.check_rows(desired, &mut report)
        });
        let established = self.check_established(desired);
        self.sum(report, hooks.into_iter().chain([rows, established]))
    }

    /// Looks at what does not depend on what is wanted, and repairs it.
    pub(super) fn look_at_hooks(&mut self) -> Vec<Look> {
        let Some(interfaces) = &self.interfaces else { return Vec::new() };
        let devices = watched::check(&self.devices, interfaces);
        if let Err(error) = self.parting.end(&self.maps, Instant::now()) {
            tracing::warn!(%error, "sockets whose endpoint has gone may go on showing its service");
        }
        let pins = [self.pins.keep(), self.devices().keep_pins(), self.sockets.keep_pins()];
        [devices, self.sockets.check()].into_iter().chain(pins).collect()
    }

    /// What came of it all. What cannot be repaired keeps nothing else from being so.
    pub(super) fn sum(
        &self,
        mut report: Report,
        looks: impl IntoIterator<Item = Look>,
    ) -> Result<Option<Report>, EbpfError> {
        let mut failed = None;
        for look in looks {
            match look {
                Ok(repaired) => report.repaired += repaired,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        report.refused = self.following.as_ref().map(Following::refused).unwrap_or_default();
        match failed {
            Some(error) if report.repaired == 0 => return Err(error),
            // The next look tells of it, if it is still so.
            Some(error) => tracing::error!(%error, "not all that was changed is repaired"),
            None => {}
        }
        Ok((report.repaired > 0 || report.changes > 0).then_some(report))
    }

    /// For those without a place there may be one now, though nothing changes: who is to be looked at again.
    fn admit(&mut self) -> Admit {
        let mut freed = false;
        if let Some(following) = &mut self.following
            && following.release(self.maps.fence.ended(), |row| self.maps.backends.is_idle(row), &mut |owner, row| {
                self.retired.add(owner, &self.maps.backends.get(row))
            })
        {
            freed = !following.refused.is_empty();
            self.counts.extend(following.counts());
        }
        match (self.again, freed) {
            (true, _) => Admit::All,
            (false, true) => Admit::Some,
            (false, false) => Admit::Nobody,
        }
    }

    /// Compares every row with what is in the maps, and repairs what differs; how many rows did.
    fn check_rows(&mut self, desired: &Desired, report: &mut Report) -> Look {
        if self.following.is_some() && Instant::now() < self.next_look {
            return Ok(0);
        }
        let start = cpu_time();
        let found = self.maps.read()?;
        let rows = self.following.as_ref().map_or(0, |ours| ours.in_force.differences(&found));
        self.next_look = Instant::now() + ((cpu_time() - start) * SHARE).min(SELDOM);
        if rows > 0 || self.following.is_none() {
            *report = self.full(desired)?;
        }
        Ok(rows)
    }

    /// Lets connection tracking go when the last of its connections has ended; until then sees that it is kept going.
    fn check_established(&mut self, desired: &Desired) -> Look {
        if !self.fixed.established_elsewhere {
            return Ok(0);
        }
        if self.checks.is_multiple_of(LOOK) && takeover::has_ended(desired, &self.maps) {
            self.fixed.established_elsewhere = false;
            self.full(desired)?;
            return Ok(0);
        }
        Ok(usize::from(takeover::keep()))
    }
}

/// Who is looked at again.
enum Admit {
    /// Every service port.
    All,
    /// Those who have no place.
    Some,
    /// Nobody.
    Nobody,
}
