//! Deletes connections that are over, on a thread of its own, and UDP flows whose endpoint has gone.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use kubeferry_ebpf_common::flow::limits;
use kubeferry_ebpf_common::{Address, Flow, FlowKey, SocketConnection, SocketKey, SocketPeer, UDP};

use super::carry::ticks;
use super::error::EbpfError;
use super::flows::{connection, is_first, is_orphan, is_over, may_be_over};
use super::kernel::Maps;
use super::recount::{Recount, Suspects};
use super::sock_diag;
use super::table::Table;
use crate::conntrack::{self, Cleaned, Entry, Tuple, UdpService, stale};

/// The least time between two sweeps.
const PAUSE: Duration = Duration::from_secs(5);
/// A sweep takes at most one part in so many of a CPU's time.
const SHARE: u32 = 20;

/// The thread; it ends with this.
#[derive(Debug)]
pub struct Sweeper {
    entries: Arc<AtomicUsize>,
    repaired: Arc<AtomicU64>,
    _end: Sender<()>,
}

impl Sweeper {
    /// Starts sweeping.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(maps: Arc<Maps>) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let (entries, repaired) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let (left, repairs) = (entries.clone(), repaired.clone());
        std::thread::Builder::new().name("sweep".to_owned()).spawn(move || run(&maps, &receiver, &left, &repairs))?;
        Ok(Self { entries, repaired, _end: sender })
    }

    /// By how many connections the counts of active ones were wrong, all in all.
    pub fn repaired(&self) -> u64 {
        self.repaired.load(Ordering::Relaxed)
    }

    /// How many entries the last sweep has left.
    pub fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }
}

fn run(maps: &Maps, end: &Receiver<()>, left: &AtomicUsize, repairs: &AtomicU64) {
    // What an earlier run has left is put right without a word.
    if let Err(error) = sweep(maps, ticks(), None, limits::HALF_CLOSED) {
        tracing::error!(%error, "connections cannot be counted");
    }
    let mut suspects = Suspects::new();
    let mut pause = PAUSE;
    while end.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let start = Instant::now();
        // A wrong count tells of connections that were thrown out of a full table, and what is left of those holds ports to
        // masquerade with. Otherwise nearly nothing is an orphan, and to look at all that is idle costs time.
        let orphans = if repairs.load(Ordering::Relaxed) > 0 { limits::OPENING } else { limits::HALF_CLOSED };
        match sweep(maps, ticks(), Some(&mut suspects), orphans) {
            Ok(swept) => {
                left.store(swept.entries.saturating_sub(swept.deleted), Ordering::Relaxed);
                if swept.repaired > 0 {
                    repairs.fetch_add(swept.repaired, Ordering::Relaxed);
                    // A full map of this kind throws rows out some before the last place is taken.
                    let full = swept.sockets >= maps.sockets_room() / 10 * 9;
                    let why = if full { ": more sockets are open than --map-sizes sockets=N has room for" } else { "" };
                    tracing::warn!(connections = swept.repaired, "counts of active connections were wrong{why}");
                }
                tracing::debug!(?swept, took = ?start.elapsed(), "swept the connections");
            }
            Err(error) => tracing::error!(%error, "connections that are over cannot be deleted"),
        }
        // So that changes find free what was given back since the last time.
        if let Err(error) = maps.fence.wait() {
            tracing::error!(%error, "programs that run cannot be waited for");
        }
        pause = PAUSE.max(start.elapsed() * SHARE);
    }
}

/// What a sweep found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Entries there were.
    pub entries: usize,
    /// Entries deleted.
    pub deleted: usize,
    /// Sockets that were translated and are open.
    pub sockets: usize,
    /// Connections by which the counts of active ones were wrong.
    pub repaired: u64,
}

/// Looks at every entry; `now` in the clock of flows. Counts that are wrong are put right if they were so the last time,
/// which `suspects` knows; without it at once. Entries whose connection has lost its first one are deleted when they were not
/// used for `orphans` ticks.
///
/// # Errors
/// The map cannot be read or written.
pub fn sweep(maps: &Maps, now: u32, suspects: Option<&mut Suspects>, orphans: u32) -> Result<Swept, EbpfError> {
    let mut swept = Swept::default();
    let mut recount = Recount::new(&maps.backends);
    let each = maps.flows.each_batch(|rows: &[(FlowKey, Flow)]| {
        swept.entries += rows.len();
        rows.iter().filter(|(key, flow)| is_first(key, flow)).for_each(|(_, flow)| recount.flow(flow));
    });
    each.map_err(EbpfError::map("flows"))?;
    let sockets = maps.socket_connections.each_batch(|rows| {
        swept.sockets += rows.len();
        rows.iter().for_each(|(_, one)| recount.socket(one));
    });
    sockets.map_err(EbpfError::map("socket_connections"))?;
    swept.repaired = match suspects {
        Some(known) => recount.repair(&maps.backends, known),
        None => recount.repair_at_once(&maps.backends),
    };
    swept.deleted = delete_idle(maps, now, orphans)?;
    Ok(swept)
}

/// Deletes the connections that are over, and what is left of some that have lost their first entry. How many entries that were.
/// Some thousands are looked at at a time, however many there are.
fn delete_idle(maps: &Maps, now: u32, orphans: u32) -> Result<usize, EbpfError> {
    let mut get = |key: &FlowKey| maps.flows.get(key).ok().flatten();
    let mut deleted = Ok(0);
    let each = maps.flows.each_batch(|rows: &[(FlowKey, Flow)]| {
        for (key, flow) in rows.iter().filter(|(key, flow)| may_be_over(key, flow, now, orphans)) {
            let (entries, over) = match is_first(key, flow) {
                true => {
                    let entries = connection(key, flow, &mut get);
                    let over = is_over(&entries, now, orphans);
                    (entries, over)
                }
                false => (vec![(*key, *flow)], is_orphan(key, flow, &mut get)),
            };
            if let (true, Ok(before)) = (over, &deleted) {
                deleted = delete(maps, &entries, |now, found| now.seen == found.seen).map(|more| before + more);
            }
        }
    });
    each.map_err(EbpfError::map("flows"))?;
    deleted
}

/// Deletes the entries of a connection, as far as they still lead where they led and `goes` says so of what is there now and what was
/// found: its first one before the others, so that the next packet opens a new connection.
fn delete(
    maps: &Maps,
    entries: &[(FlowKey, Flow)],
    goes: fn(now: &Flow, found: &Flow) -> bool,
) -> Result<usize, EbpfError> {
    let mut deleted = 0;
    for (key, flow) in entries {
        let Some(now) = maps.flows.get(key).map_err(EbpfError::map("flows"))? else { continue };
        if (now.address, now.port) == (flow.address, flow.port) && goes(&now, flow) {
            let Some(gone) = maps.flows.take(key).map_err(EbpfError::map("flows"))? else { continue };
            // By what was deleted: a program may have counted the end since it was looked at.
            if is_first(key, &gone) && gone.backend & Flow::COUNTED != 0 {
                maps.backends.add_active(gone.backend_row(), -1);
            }
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// Deletes the UDP flows of these services to endpoints that do not serve any more; sockets of `pods`, too, or only the node's
/// own. Also gives the keys of `socket_services` that are to go when the last answers must have come.
///
/// # Errors
/// A map cannot be read or written.
pub fn clean_udp(maps: &Maps, services: &[UdpService], pods: bool) -> Result<(Cleaned, Vec<SocketKey>), EbpfError> {
    let mut cleaned = Cleaned::default();
    if services.is_empty() {
        return Ok((cleaned, Vec::new()));
    }
    // A program that has read an endpoint before it went may still be about to write it down.
    maps.fence.wait().map_err(EbpfError::map("fence"))?;
    // By what is stale alone: somebody may have flooded the table.
    let (mut found, mut passing) = (Vec::new(), BTreeMap::new());
    let each = maps.flows.each_batch(|rows| {
        let flows = udp_flows(rows);
        let entries: Vec<Entry> = flows.iter().map(|(ends, (_, flow))| translated(ends, flow)).collect();
        cleaned.listed += entries.len();
        for (ends, (key, flow)) in stale(services, &entries).filter_map(|entry| flows.get_key_value(&entry.original)) {
            match flow.passes(key) {
                true => drop(passing.insert(*ends, (*key, *flow))),
                false => found.push((*key, *flow)),
            }
        }
    });
    each.map_err(EbpfError::map("flows"))?;
    if !passing.is_empty() {
        found.extend(clients_of_nobody(passing));
    }
    let mut get = |key: &FlowKey| maps.flows.get(key).ok().flatten();
    for (key, flow) in found {
        // One that datagrams go by right now as well: it leads nowhere for as long as they do.
        cleaned.deleted += usize::from(delete(maps, &connection(&key, &flow, &mut get), |_, _| true)? > 0);
    }
    // Datagrams of sockets that are not connected.
    let sockets = &maps.socket_endpoints;
    let keys = stale_sockets(sockets, services, &mut cleaned, |key, peer| {
        (end(key.address, key.port), end(peer.address, peer.port))
    });
    cleaned.deleted += keys.and_then(|keys| sockets.delete(&keys)).map_err(EbpfError::map("socket_endpoints"))?;
    // And what they show for their peer.
    let shown = stale_sockets(&maps.socket_services, services, &mut cleaned, |key, peer| {
        (end(peer.address, peer.port), end(key.address, key.port))
    });
    let shown = shown.map_err(EbpfError::map("socket_services"))?;
    // Sockets that are. Their rows go when they are closed, or connect anew.
    let keys = stale_connections(&maps.socket_connections, services, &mut cleaned);
    let keys = keys.map_err(EbpfError::map("socket_connections"))?;
    if !keys.is_empty() {
        let outcome = sock_diag::destroy(&keys, pods);
        cleaned.partial |= outcome.is_partial();
        tracing::debug!(ended = outcome.ended, "UDP sockets whose endpoint has gone");
        if let Some(error) = outcome.left {
            tracing::warn!(%error, again = cleaned.partial, "UDP sockets whose endpoint has gone cannot be ended");
        }
    }
    Ok((cleaned, shown))
}

/// Which of the flows that go by as they are (`others.rs` of the programs) are of clients of the Service: all but those whose packets
/// connection tracking knows as answers. What it knows as questions it is made to forget.
fn clients_of_nobody(mut passing: BTreeMap<Tuple, (FlowKey, Flow)>) -> impl Iterator<Item = (FlowKey, Flow)> {
    if let Err(error) = conntrack::keep_answers(&mut passing) {
        // They go on as they are for as long as they send; the next change looks again.
        tracing::warn!(%error, flows = passing.len(), "cannot see which UDP flows past Services are answers: all are taken for such");
        passing.clear();
    }
    passing.into_values()
}

/// The UDP flows among these rows, by their ends.
fn udp_flows(rows: &[(FlowKey, Flow)]) -> BTreeMap<Tuple, (FlowKey, Flow)> {
    let udp = rows.iter().filter(|(key, flow)| key.protocol == UDP && is_first(key, flow));
    let ends = |key: &FlowKey| Tuple {
        source: end(key.source, key.source_port),
        destination: end(key.destination, key.destination_port),
    };
    udp.map(|(key, flow)| (ends(key), (*key, *flow))).collect()
}

/// A flow as connection tracking has one.
fn translated(ends: &Tuple, flow: &Flow) -> Entry {
    Entry::new(*ends, Tuple { source: end(flow.address, flow.port), destination: ends.source })
}

/// The connected UDP sockets whose service and endpoint do not belong together any more, with the endpoint.
fn stale_connections(
    sockets: &Table<u64, SocketConnection>,
    services: &[UdpService],
    cleaned: &mut Cleaned,
) -> io::Result<Vec<SocketKey>> {
    let mut found: BTreeMap<Ends, Vec<SocketKey>> = BTreeMap::new();
    sockets.each_batch(|rows| {
        for (cookie, one) in rows.iter().filter(|(_, one)| one.protocol == u32::from(UDP)) {
            let (address, port, protocol) = (one.endpoint, one.endpoint_port, u16::from(UDP));
            let key = SocketKey { cookie: *cookie, address, port, protocol, reserved: 0 };
            found.entry((end(one.service, one.service_port), end(address, port))).or_default().push(key);
        }
    })?;
    Ok(stale_ends(found, services, cleaned))
}

/// The rows of UDP sockets whose `ends`, a service's address and an endpoint, do not belong together any more.
fn stale_sockets(
    sockets: &Table<SocketKey, SocketPeer>,
    services: &[UdpService],
    cleaned: &mut Cleaned,
    ends: fn(&SocketKey, &SocketPeer) -> Ends,
) -> io::Result<Vec<SocketKey>> {
    let mut found: BTreeMap<Ends, Vec<SocketKey>> = BTreeMap::new();
    sockets.each_batch(|rows| {
        for (key, peer) in rows.iter().filter(|(key, _)| key.protocol == u16::from(UDP)) {
            found.entry(ends(key, peer)).or_default().push(*key);
        }
    })?;
    Ok(stale_ends(found, services, cleaned))
}

/// A service's address and an endpoint.
type Ends = (SocketAddr, SocketAddr);

/// Those of sockets, by their ends, whose ends do not belong together.
fn stale_ends(found: BTreeMap<Ends, Vec<SocketKey>>, services: &[UdpService], cleaned: &mut Cleaned) -> Vec<SocketKey> {
    let entry = |(service, endpoint): &Ends| {
        let ends = |source| Tuple { source, destination: *service };
        Entry::new(ends(*service), ends(*endpoint))
    };
    let entries: Vec<Entry> = found.keys().map(entry).collect();
    cleaned.listed += entries.len();
    let keys = |entry: &Entry| found.get(&(entry.original.destination, entry.reply.source)).cloned();
    stale(services, &entries).filter_map(keys).flatten().collect()
}

fn end(address: Address, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), u16::from_be(port))
}
