//! What connection tracking translates when we come, and goes on to: see [`established`].

use std::io;
use std::net::SocketAddr;

use kubeferry_ebpf_common::{Flow, FlowKey, TCP};

use super::carry::ticks;
use super::kernel::Maps;
use crate::backend::nftables::netlink::Error;
use crate::conntrack::{Entry, established};
use crate::desired::Desired;
use crate::desired::target::Frontend;
use crate::state::objects::{Family, Protocol};

/// Whether there are such connections; then the kernel is made to go on translating them, and their ports are kept from others. A
/// failure costs those connections only.
pub fn begin(desired: &Desired, maps: &Maps) -> bool {
    let connections = match translated(desired, maps) {
        Ok(0) => return false,
        Ok(connections) => connections,
        Err(error) => {
            tracing::warn!(%error, "cannot see whether connection tracking translates connections to services: they may end");
            return false;
        }
    };
    match established::hold() {
        Ok(()) => {
            tracing::info!(connections, "TCP connections to services stay with connection tracking until they end")
        }
        Err(error) => {
            tracing::warn!(%error, connections, "connection tracking may cease to translate: connections may end")
        }
    }
    true
}

/// Makes sure that the kernel goes on, whatever somebody has flushed; whether it would not have.
pub fn keep() -> bool {
    match established::is_held() {
        Ok(true) => return false,
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(%error, "cannot see whether connection tracking is kept going");
            return false;
        }
    }
    established::hold()
        .inspect_err(|error| tracing::warn!(%error, "connection tracking may cease to translate: connections may end"))
        .is_ok()
}

/// Whether they all have ended; then the kernel is let go. The ports of those that have not go on being theirs.
pub fn has_ended(desired: &Desired, maps: &Maps) -> bool {
    match translated(desired, maps) {
        Ok(0) => {}
        Ok(_) => return false,
        Err(error) => {
            tracing::warn!(%error, "cannot see whether TCP connections stay with connection tracking");
            return false;
        }
    }
    if let Err(error) = established::release() {
        tracing::warn!(%error, table = established::TABLE, "cannot delete the table that kept connection tracking going");
        return false;
    }
    tracing::info!("no TCP connection to a service is connection tracking's any more");
    true
}

/// How many they are. Each that is masqueraded keeps its port.
fn translated(desired: &Desired, maps: &Maps) -> Result<usize, Error> {
    let mut failed = None;
    let count = established::translated(
        |to| is_service(desired, to),
        |entry| failed = reserve(maps, entry).err().or(failed.take()),
    )?;
    if let Some(error) = failed {
        tracing::warn!(%error, "the ports of connections that stay with connection tracking may be given to others, which ends them");
    }
    Ok(count)
}

/// Takes the place in `flows` of a connection of ours with the same port to the same endpoint, whose answers would be taken for each
/// other's. The entry leaves packets as they are, and is kept for as long as there are any (see `sweep.rs`).
fn reserve(maps: &Maps, entry: &Entry) -> io::Result<()> {
    let (endpoint, masquerade) = (entry.reply.source, entry.reply.destination);
    if masquerade == entry.original.source {
        return Ok(());
    }
    let key = FlowKey {
        source: endpoint.ip().into(),
        destination: masquerade.ip().into(),
        source_port: endpoint.port().to_be(),
        destination_port: masquerade.port().to_be(),
        protocol: TCP,
        hook: FlowKey::IN,
        reserved: 0,
    };
    let flow = Flow {
        address: key.destination,
        port: key.destination_port,
        flags: Flow::SEEN,
        seen: ticks(),
        device: 0,
        backend: 0,
        sender: 0,
        reserved: 0,
    };
    maps.flows.put_new(&key, &flow).map(drop)
}

/// Whether this is the address of a service port, or a node port at any address of the node.
fn is_service(desired: &Desired, to: SocketAddr) -> bool {
    let (ip, port, protocol) = (to.ip(), to.port(), Protocol::Tcp);
    let node_port = Frontend::NodePort { family: Family::of(ip), protocol, port };
    desired.holder(&Frontend::Address { ip, protocol, port }).is_some()
        || (desired.node().holds(ip) && desired.holder(&node_port).is_some())
}
