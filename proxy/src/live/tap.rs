//! Following packets on the datapath that runs here.

use std::path::Path;
use std::time::{Duration, Instant};

use super::filter::Filter;
use super::journey::Journey;
use super::nftables;

/// Between two looks at packets of which nothing is heard any more.
const PAUSE: Duration = Duration::from_millis(200);

/// Why packets cannot be followed.
#[derive(thiserror::Error, Debug)]
pub enum TapError {
    /// On nftables.
    #[error(transparent)]
    Nftables(#[from] nftables::kernel::TapError),
    /// On eBPF.
    #[cfg(feature = "ebpf")]
    #[error(transparent)]
    Ebpf(#[from] super::ebpf::tap::TapError),
    /// The running proxy has a datapath that this binary has not.
    #[error("the running proxy uses the datapath {0:?}, which this binary cannot follow packets on")]
    Backend(String),
}

/// Packets being followed.
#[derive(Debug)]
pub struct Tap {
    source: Source,
    /// How often events were lost, because more came than were read.
    pub lost: u64,
}

#[derive(Debug)]
enum Source {
    Nftables(nftables::kernel::Tap, nftables::assemble::Assembler),
    #[cfg(feature = "ebpf")]
    Ebpf(Box<super::ebpf::tap::Tap>, super::ebpf::assemble::Assembler),
}

impl Tap {
    /// Begins to follow the first packets of connections that `filter` takes, on the datapath of this name, whose programs, where it
    /// has such, are pinned below this root. Needs a runtime.
    ///
    /// # Errors
    /// A right is missing, or the datapath is not there.
    pub fn open(
        backend: &str,
        #[cfg_attr(not(feature = "ebpf"), expect(unused_variables))] bpffs_root: &Path,
        filter: &Filter,
        per_second: u32,
    ) -> Result<Self, TapError> {
        let source = match backend {
            "nftables" => {
                let tap = nftables::kernel::Tap::open(filter, per_second)?;
                let assembler = nftables::assemble::Assembler::new(tap.table.clone());
                Source::Nftables(tap, assembler)
            }
            #[cfg(feature = "ebpf")]
            "ebpf" => {
                let tap = super::ebpf::tap::Tap::open(bpffs_root, filter, per_second)?;
                Source::Ebpf(Box::new(tap), Default::default())
            }
            other => return Err(TapError::Backend(other.to_owned())),
        };
        Ok(Self { source, lost: 0 })
    }

    /// Waits for what comes next, a fraction of a second at most. `name` gives an interface's name.
    ///
    /// # Errors
    /// The kernel tells no more.
    pub async fn next(&mut self, name: impl Fn(u32) -> String) -> Result<Vec<Journey>, TapError> {
        let now = Instant::now;
        match &mut self.source {
            Source::Nftables(tap, assembler) => {
                let Ok(heard) = tokio::time::timeout(PAUSE, tap.hear()).await else {
                    return Ok(assembler.expire(now(), name));
                };
                let events = match heard? {
                    nftables::kernel::Heard::Events(events) => events,
                    nftables::kernel::Heard::Lost => {
                        self.lost += 1;
                        Vec::new()
                    }
                };
                let taken = events.into_iter().filter_map(|event| assembler.take(event, now(), &name));
                let mut journeys: Vec<_> = taken.collect();
                journeys.extend(assembler.expire(now(), name));
                Ok(journeys)
            }
            #[cfg(feature = "ebpf")]
            Source::Ebpf(tap, assembler) => {
                if let Some(lost) = tap.renew_in_time()? {
                    self.lost = lost;
                }
                let mut journeys = Vec::new();
                if let Ok(events) = tokio::time::timeout(PAUSE, tap.hear()).await {
                    journeys.extend(events?.iter().filter_map(|event| assembler.take(event, now(), &name)));
                }
                journeys.extend(assembler.expire(now()));
                Ok(journeys)
            }
        }
    }
}
