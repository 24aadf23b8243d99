//! Handing over to another proxy: new connections pass the programs by, those that they translate are carried to their end.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kubeferry_ebpf_common::config::address_is;
use kubeferry_ebpf_common::flow::{limits, timeout};
use kubeferry_ebpf_common::plain::Plain;
use kubeferry_ebpf_common::{Address, Config, Flow, FlowKey, Frontend, FrontendKey, LAYOUT, UDP};

use super::bpf;
use super::carry::ticks;
use super::error::EbpfError;
use super::flows::{Entries, connection, is_first, is_over, is_torn};
use super::folder::list;
use super::table::Table;
use crate::conntrack;

/// How often the connections are looked at.
const AGAIN: Duration = Duration::from_millis(500);
/// For how long, and how often, the last answers over UDP are waited for before all connections are looked at.
const ANSWERS: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(10);
/// A UDP flow that was silent for so long, in the clock of flows (a second), is not waited for.
const SILENCE: u32 = 5;

/// Takes the Services out of the maps pinned in our folder of the BPF file system at `bpffs_root`, and waits until no
/// connection is translated any more, at most for `limit`. Those that are left then, for people. Connections whose sockets were translated
/// need nothing of us. No proxy may run meanwhile: it would put the Services back.
///
/// # Errors
/// A map cannot be read or written.
pub fn drain(bpffs_root: &Path, limit: Duration) -> Result<Vec<String>, EbpfError> {
    let end = Instant::now() + limit;
    let ours = format!("maps-v{LAYOUT}-");
    let is_ours = |folder: &PathBuf| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&ours));
    let folders: Vec<_> = list(&bpffs_root.join("kubeferry"))?.into_iter().filter(is_ours).collect();
    let (mut flows, mut services) = (Vec::new(), BTreeSet::new());
    for folder in &folders {
        flows.push(open::<FlowKey, Flow>(folder, "flows")?);
        services.extend(udp_services(folder)?);
    }
    forget(&services);
    // Once before, so that new connections meet nothing but what has come meanwhile. Not TCP: its last packets would be taken for new
    // connections while there are frontends. From then on the other proxy masquerades by any port, and does not hear what is answered to one
    // that has an entry here: so these go as soon as they have their answers, before anything that takes its time.
    let is_udp = |protocol| protocol == UDP;
    sweep_all(&flows, is_udp)?;
    folders.iter().try_for_each(|folder| hand_over(folder))?;
    let answers = end.min(Instant::now() + ANSWERS);
    while !sweep_all(&flows, is_udp)?.is_empty() && Instant::now() < answers {
        std::thread::sleep(SOON);
    }
    forget(&services);
    let mut open = sweep_all(&flows, |_| true)?;
    while !open.is_empty() && Instant::now() < end {
        std::thread::sleep(AGAIN.min(end.saturating_duration_since(Instant::now())));
        open = sweep_all(&flows, |_| true)?;
    }
    Ok(open)
}

/// The addresses of Services at which UDP is served.
fn udp_services(folder: &Path) -> Result<Vec<SocketAddr>, EbpfError> {
    let frontends = open::<FrontendKey, Frontend>(folder, "frontends")?.rows().map_err(EbpfError::map("frontends"))?;
    let keys = frontends.into_iter().map(|(key, _)| key);
    let of_udp = keys.filter(|key| key.protocol == UDP && key.kind == FrontendKey::ADDRESS);
    Ok(of_udp.map(|key| SocketAddr::new(key.address.into(), u16::from_be(key.port))).collect())
}

/// Has connection tracking forget the node's own datagrams to Services, which it saw before our programs translated them.
fn forget(services: &BTreeSet<SocketAddr>) {
    if let Err(error) = conntrack::forget_untranslated(|to| services.contains(&to)) {
        tracing::warn!(%error, "UDP flows of the node to Services may be without an answer until connection tracking has forgotten them");
    }
}

fn sweep_all(flows: &[Table<FlowKey, Flow>], protocols: impl Fn(u8) -> bool) -> Result<Vec<String>, EbpfError> {
    let mut open = Vec::new();
    for flows in flows {
        open.extend(sweep(flows, &protocols).map_err(EbpfError::map("flows"))?);
    }
    Ok(open)
}

fn open<K: Plain, V: Plain>(folder: &Path, map: &'static str) -> Result<Table<K, V>, EbpfError> {
    bpf::open_pin(&folder.join(map)).and_then(Table::new).map_err(EbpfError::map(map))
}

/// What is dropped or refused for want of a frontend goes first: no packet may meet that and no frontend.
fn hand_over(folder: &Path) -> Result<(), EbpfError> {
    let config = open::<u32, Config>(folder, "config")?;
    let row = config.get(&0).map_err(EbpfError::map("config"))?.unwrap_or(Config::EMPTY);
    config.put(&[(0, Config { service_cidr_count: 0, ..row })]).map_err(EbpfError::map("config"))?;
    let addresses = open::<Address, u32>(folder, "addresses")?;
    let rows = addresses.rows().map_err(EbpfError::map("addresses"))?;
    let held: Vec<_> = rows.into_iter().map(|(ip, is)| (ip, is & !address_is::CLUSTER_IP)).collect();
    addresses.put(&held).map_err(EbpfError::map("addresses"))?;
    let frontends = open::<FrontendKey, Frontend>(folder, "frontends")?;
    let keys: Vec<_> = frontends.rows().map_err(EbpfError::map("frontends"))?.into_iter().map(|(key, _)| key).collect();
    frontends.delete_many(&keys).map(drop).map_err(EbpfError::map("frontends"))
}

/// Deletes connections that have ended: the kernel's own translation may give their ports to others. Those that may still
/// have packets to translate.
fn sweep(flows: &Table<FlowKey, Flow>, protocols: impl Fn(u8) -> bool) -> io::Result<Vec<String>> {
    let mut first = Vec::new();
    // What others translate is neither ours to end nor to wait for.
    let asked = |(key, flow): &(FlowKey, Flow)| protocols(key.protocol) && is_first(key, flow) && !flow.passes(key);
    flows.each_batch(|rows| first.extend(rows.iter().copied().filter(asked)))?;
    let now = ticks();
    let mut get = |key: &FlowKey| flows.get(key).ok().flatten();
    let mut open = Vec::new();
    for (key, _) in &first {
        // In a large table it was read some time ago.
        let Some(flow) = get(key) else { continue };
        let flow = &flow;
        let entries = connection(key, flow, &mut get);
        if has_ended(&entries, now) {
            flows.delete(&entries.iter().map(|(key, _)| *key).collect::<Vec<_>>())?;
        } else {
            let end = |ip: Address, port: u16| SocketAddr::new(ip.into(), u16::from_be(port));
            let (from, to) = (end(key.source, key.source_port), end(key.destination, key.destination_port));
            open.push(format!("{from} to {to} at {}", end(flow.address, flow.port)));
        }
    }
    Ok(open)
}

/// Closed by both sides, reset, or silent for longer than its state allows. Nobody tells of the end of a UDP flow: a question that has
/// its answer is over, as the other proxy may masquerade by its port what is answered by the same endpoint, and would hear nothing. So
/// is a connection that has lost an entry: the other proxy has used the port of one that was closing.
fn has_ended(entries: &Entries, now: u32) -> bool {
    let (mut forward, mut backward) = (0, 0);
    for (_, flow) in entries {
        let side = if flow.flags & Flow::FORWARD != 0 { &mut forward } else { &mut backward };
        *side |= flow.flags;
    }
    let closed = entries.first().is_some_and(|(key, _)| timeout(key.protocol, forward, backward) == limits::CLOSED);
    let answered = entries.first().is_some_and(|(key, _)| key.protocol == UDP)
        && backward & Flow::SEEN != 0
        && timeout(UDP, forward, backward) == limits::ONE_WAY;
    let silent = entries.iter().all(|(key, flow)| key.protocol == UDP && now.saturating_sub(flow.seen) > SILENCE);
    closed || answered || silent || is_torn(entries) || is_over(entries, now, limits::HALF_CLOSED)
}

#[cfg(test)]
mod tests {
    use kubeferry_ebpf_common::TCP;

    use super::*;

    fn entries(protocol: u8, forward: u16, backward: u16, seen: u32) -> Entries {
        let any: Address = "10.0.0.1".parse::<std::net::IpAddr>().unwrap().into();
        let key = FlowKey {
            source: any,
            destination: any,
            source_port: 1,
            destination_port: 2,
            protocol,
            hook: FlowKey::IN,
            reserved: 0,
        };
        let flow = |flags| Flow { address: any, port: 3, flags, seen, device: 0, backend: 0, sender: 0, reserved: 0 };
        let back = FlowKey { hook: FlowKey::OUT, ..key };
        vec![(key, flow(forward | Flow::FORWARD | Flow::SEEN)), (back, flow(backward | Flow::SEEN))]
    }

    #[test]
    fn what_is_closed_is_not_waited_for() {
        assert!(!has_ended(&entries(TCP, 0, 0, 100), 101));
        assert!(!has_ended(&entries(TCP, Flow::FIN, 0, 100), 101), "the other side may go on for long");
        assert!(has_ended(&entries(TCP, Flow::FIN, Flow::FIN, 100), 101));
        assert!(has_ended(&entries(TCP, 0, Flow::RST, 100), 101));
        let torn = entries(TCP, Flow::FIN, 0, 100)[..1].to_vec();
        assert!(has_ended(&torn, 100), "it carries nothing any more");
        assert!(has_ended(&entries(UDP, 0, 0, 100), 100), "it has its answer");
        assert!(!has_ended(&entries(UDP, 0, Flow::LASTS, 100), 101));
        assert!(has_ended(&entries(UDP, 0, Flow::LASTS, 100), 101 + SILENCE));
        let mut unanswered = entries(UDP, 0, 0, 100);
        unanswered[1].1.flags = 0;
        assert!(!has_ended(&unanswered, 101));
        assert!(has_ended(&unanswered, 101 + SILENCE));
        assert!(!has_ended(&entries(TCP, 0, 0, 100), 101 + limits::STREAM));
    }
}
