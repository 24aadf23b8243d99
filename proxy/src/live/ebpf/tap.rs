//! What the programs are asked for, and what they tell.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use kubeferry_ebpf_common::live::{LiveEvent, LiveFilter, live_destination};
use kubeferry_ebpf_common::{Address, FrontendKey};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes;

use crate::backend::ebpf::bpf;
use crate::backend::ebpf::error::EbpfError;
use crate::backend::ebpf::live::{LiveMaps, Opened};
use crate::live::filter::{Destination, Filter};
use crate::state::objects::Protocol;

/// How long the programs go on without being asked again.
const TERM: Duration = Duration::from_secs(3);
/// How often they are asked again.
const RENEW: Duration = Duration::from_secs(1);
/// Events that are taken in at a time: the model is asked about each before the programs are asked to go on.
const MOST: usize = 32;

/// Why packets cannot be followed.
#[derive(thiserror::Error, Debug)]
pub enum TapError {
    /// No programs of ours, or of a version that does not tell.
    #[error(
        "no programs of Kubeferry that tell of packets are pinned below {0}: the proxy that runs is of an older version, or its BPF file \
         system is not mounted there for this process"
    )]
    NotThere(String),
    /// Somebody follows packets already.
    #[error("another `kubeferry trace --live` follows packets on this node: end it first")]
    Taken,
    /// An upgrade, or a start with other settings.
    #[error("the programs were replaced meanwhile: begin again")]
    Replaced,
    /// The maps.
    #[error(transparent)]
    Maps(#[from] EbpfError),
    /// The ring buffer.
    #[error("cannot hear what the programs tell of packets: {0}")]
    Hear(#[from] io::Error),
}

/// Packets are told of as long as this lives, and for 3 seconds more where it is killed.
pub struct Tap {
    maps: LiveMaps,
    events: AsyncFd<RingBuf<MapData>>,
    wanted: LiveFilter,
    renewed: Instant,
    lost_before: u64,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("maps", &self.maps).field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

impl Tap {
    /// Begins to follow packets that `filter` takes, `per_second` connections at most. Needs a runtime.
    ///
    /// # Errors
    /// Nothing is there to tell, or a right (CAP_BPF) is missing.
    pub fn open(bpffs_root: &Path, filter: &Filter, per_second: u32) -> Result<Self, TapError> {
        let maps = match LiveMaps::open(bpffs_root)? {
            Opened::Maps(maps) => maps,
            Opened::None => return Err(TapError::NotThere(bpffs_root.display().to_string())),
            Opened::Taken => return Err(TapError::Taken),
        };
        // SAFETY: the ring buffer owns its descriptor, which is closed with it and not before.
        #[allow(unsafe_code)]
        let events = unsafe { AsyncFd::register_with_interest(maps.events()?, Interest::READABLE) };
        let mut events = events.map_err(io::Error::from)?;
        maps.begin(&destinations(filter))?;
        // What nobody has read of the one before is old.
        while events.get_mut().next().is_some() {}
        let lost_before = maps.lost()?;
        let mut tap = Self { maps, events, wanted: wanted(filter, per_second), renewed: Instant::now(), lost_before };
        tap.renew()?;
        Ok(tap)
    }

    /// Has the programs go on, if it is time to; to be called more often than once in a second. How many events were lost so far,
    /// if that was looked at.
    ///
    /// # Errors
    /// The maps cannot be read or written, or the programs have others.
    pub fn renew_in_time(&mut self) -> Result<Option<u64>, TapError> {
        if self.renewed.elapsed() < RENEW {
            return Ok(None);
        }
        if !self.maps.are_in_force() {
            return Err(TapError::Replaced);
        }
        self.renew()?;
        Ok(Some(self.maps.lost()?.saturating_sub(self.lost_before)))
    }

    fn renew(&mut self) -> Result<(), TapError> {
        self.renewed = Instant::now();
        self.wanted.until = bpf::now() + TERM.as_nanos() as u64;
        Ok(self.maps.renew(&self.wanted)?)
    }

    /// Waits for events.
    ///
    /// # Errors
    /// The ring buffer fails.
    pub async fn hear(&mut self) -> Result<Vec<LiveEvent>, TapError> {
        let mut ready = self.events.readable_mut().await?;
        let mut events = Vec::new();
        while events.len() < MOST {
            let Some(item) = ready.get_inner_mut().next() else {
                ready.clear_ready();
                break;
            };
            events.extend(LiveEvent::read_from_bytes(&item));
        }
        Ok(events)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // If it cannot be written, it passes by itself.
        let _ = self.maps.renew(&LiveFilter::OFF);
    }
}

/// The filter's one row, without the time.
fn wanted(filter: &Filter, per_second: u32) -> LiveFilter {
    LiveFilter {
        until: 0,
        most: per_second,
        flags: if filter.to.is_empty() { LiveFilter::ANYWHERE } else { 0 },
        from: filter.from.map_or(Address::ZERO, Address::from),
        from_port: filter.from_port.unwrap_or_default().to_be(),
        reserved: [0; 3],
    }
}

/// The rows of places; where one is both, it is passed.
fn destinations(filter: &Filter) -> Vec<(FrontendKey, u32)> {
    let key = |protocol: u8, ip: Option<IpAddr>, port: u16| FrontendKey {
        address: ip.map_or(Address::ZERO, Address::from),
        port: port.to_be(),
        protocol,
        kind: FrontendKey::ADDRESS,
    };
    let keys = |to: &Destination| match to.port {
        Some(port) => to.protocols().iter().map(|protocol| key(protocol.number(), to.ip, port)).collect(),
        None => vec![key(live_destination::ANY_PROTOCOL, to.ip, live_destination::ANY_PORT)],
    };
    let followed = filter.to.iter().flat_map(keys).map(|key| (key, live_destination::FOLLOWED));
    let tcp = Protocol::Tcp.number();
    let passed = filter.except.iter().map(|at| (key(tcp, Some(at.ip()), at.port()), live_destination::PASSED));
    followed.chain(passed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_becomes_rows() {
        let web =
            Destination { protocol: Some(Protocol::Tcp), ip: Some("10.96.0.10".parse().unwrap()), port: Some(80) };
        let node_port = Destination { protocol: Some(Protocol::Udp), ip: None, port: Some(30080) };
        let filter = Filter {
            from: Some("fd00::1".parse().unwrap()),
            from_port: Some(7),
            to: vec![web, node_port, Destination::address("10.96.0.10".parse().unwrap())],
            except: vec!["127.0.0.1:10249".parse().unwrap()],
        };
        let row = wanted(&filter, 20);
        assert_eq!((row.until, row.most, row.flags, row.from_port), (0, 20, 0, 7u16.to_be()));
        assert_eq!(IpAddr::from(row.from), filter.from.unwrap());
        let rows = destinations(&filter);
        let values: Vec<u32> = rows.iter().map(|(_, value)| *value).collect();
        let (followed, passed) = (live_destination::FOLLOWED, live_destination::PASSED);
        assert_eq!(values, [followed, followed, followed, passed]);
        assert_eq!((rows[2].0.address, rows[2].0.port, rows[2].0.protocol), (rows[0].0.address, 0, 0));
        assert!(rows[1].0.address.is_zero() && rows[1].0.port == 30080u16.to_be() && rows[1].0.protocol == 17);
        assert_eq!(wanted(&Filter::default(), 1).flags, LiveFilter::ANYWHERE);
    }
}
