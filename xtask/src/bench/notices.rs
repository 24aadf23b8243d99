//! When changes are in the kernel: by its notices of nftables, or by looking into the maps of eBPF, which tell nobody.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::generate::PORT;
use super::monitor::{Monitor, Seen};
use crate::datapath::Datapath;
use crate::interrupt;
use crate::netns::Namespace;
use crate::pins::Pins;

/// Between two looks into a map: shorter than a change takes, long enough to leave the proxy its CPU.
const BETWEEN_LOOKS: Duration = Duration::from_micros(20);

/// An endpoint that a service is to have.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub service: Ipv4Addr,
    pub endpoint: Ipv4Addr,
}

/// How one node's kernel is watched.
pub enum Notices {
    Nftables(Monitor),
    Ebpf(Box<Pins>),
}

impl Notices {
    /// Begins to watch. With eBPF, the proxy has made its maps before.
    pub fn open(node: &Namespace, datapath: &Datapath) -> anyhow::Result<Self> {
        Ok(match datapath {
            Datapath::Nftables => Self::Nftables(Monitor::open(node)?),
            Datapath::Ebpf(places) => Self::Ebpf(Box::new(Pins::find(places.bpffs())?.context("no maps are pinned")?)),
        })
    }

    /// Waits until all of these changes are there. What was written for them, where the kernel tells that.
    ///
    /// # Errors
    /// Not within `patience`.
    pub fn wait_for(&self, changes: &[Change], patience: Duration) -> anyhow::Result<Option<Seen>> {
        let pins = match self {
            Self::Nftables(monitor) => {
                let endpoints: Vec<_> = changes.iter().map(|change| change.endpoint).collect();
                return monitor.wait_for(&endpoints, patience).map(Some);
            }
            Self::Ebpf(pins) => pins,
        };
        let deadline = Instant::now() + patience;
        // Once the first is there, the second is looked for: after the last, all are.
        for (index, change) in changes.iter().enumerate() {
            let service = SocketAddr::from((change.service, PORT));
            while !pins.endpoints_of(service)?.is_some_and(|endpoints| endpoints.contains(&change.endpoint.into())) {
                interrupt::check()?;
                if Instant::now() > deadline {
                    bail!(
                        "waited {patience:?}, and {} of {} changes were not in the kernel",
                        changes.len() - index,
                        changes.len()
                    );
                }
                std::thread::sleep(BETWEEN_LOOKS);
            }
        }
        Ok(None)
    }
}
