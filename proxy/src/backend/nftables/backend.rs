//! The reconciler as a [`Backend`].

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use super::costs;
use super::kernel::{Kernel, KernelError};
use super::reconciler::{Reconciler, Report};
use crate::backend::{Backend, Counts};
use crate::conntrack::{self, Cleaned, UdpService};
use crate::desired::limits;
use crate::desired::target::Frontend;
use crate::desired::{Desired, Touched};
use crate::settings::ServiceMetrics;
use crate::state::objects::{Ignored, Protocol, Service};
use crate::traffic::Counting;

/// So many endpoints at as many ports and addresses are as much to look at as one port with chains of its own is to write.
const WORK_LIKE_A_PORT: usize = 256;

impl<K: Kernel> Backend for Reconciler<K> {
    type Error = KernelError;

    fn name(&self) -> &'static str {
        "nftables"
    }

    fn sync(&mut self, desired: &Desired, touched: Touched) -> Result<Report, KernelError> {
        Self::sync(self, desired, touched)
    }

    /// Ports that need chains of their own (those with ClientIP affinity or a turn), and what is as much work.
    fn cost(&self, desired: &Desired, service: &Service, work: usize) -> usize {
        desired.chains(service, work) + limits::noticed(work) / WORK_LIKE_A_PORT
    }

    fn at_once(&self) -> usize {
        self.chains_at_once
    }

    fn check(&mut self, desired: &Desired) -> Result<Option<Report>, KernelError> {
        if desired.node().counts() {
            self.settle(desired);
        }
        Self::check(self, desired)
    }

    fn rows(&self) -> &BTreeMap<&'static str, usize> {
        Self::rows(self)
    }

    fn costs(&self, desired: &Desired) -> Vec<(String, String)> {
        costs::summary(&costs::maglev(desired, self.applied()))
            .map(|text| ("mh".to_owned(), text))
            .into_iter()
            .collect()
    }

    fn counting(&self, desired: &Desired) -> Counting {
        let level = desired.node().service_metrics;
        let full = level == ServiceMetrics::Full;
        Counting { connections: level != ServiceMetrics::Off, active: full, packets: full, forgets: false }
    }

    fn look(&mut self, desired: &Desired) -> Result<Vec<Counts>, KernelError> {
        if desired.node().counts() { Self::look(self, desired) } else { Ok(Vec::new()) }
    }

    fn uncounted(&self) -> u64 {
        Self::uncounted(self)
    }

    fn refused(&self) -> Vec<Ignored> {
        let ignored =
            |(frontend, why): (&_, &String)| Ignored { what: format!("frontend {frontend}"), why: why.clone() };
        Self::refused(self).iter().map(ignored).collect()
    }

    fn left_out(&self) -> BTreeMap<Frontend, String> {
        Self::refused(self).clone()
    }

    fn forget_unanswered(&mut self, services: &HashSet<(Protocol, SocketAddr)>) -> Result<usize, KernelError> {
        Ok(conntrack::forget_unanswered(|protocol, to| services.contains(&(protocol, to)))?)
    }

    fn clean_udp(&mut self, services: &[UdpService]) -> Result<Cleaned, KernelError> {
        if services.is_empty() { Ok(Cleaned::default()) } else { Ok(conntrack::clean(services)?) }
    }
}
