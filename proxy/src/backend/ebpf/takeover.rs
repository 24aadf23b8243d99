//! What connection tracking translates when we come, and goes on to: see [`established`].

use std::net::SocketAddr;

use crate::conntrack::established;
use crate::desired::Desired;
use crate::desired::target::Frontend;
use crate::state::objects::{Family, Protocol};

/// Whether there are such connections; then the kernel is made to go on translating them. A failure costs those
/// connections only.
pub fn begin(desired: &Desired) -> bool {
    let connections = match established::translated(|to| is_service(desired, to)) {
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

/// Whether they all have ended; then the kernel is let go.
pub fn has_ended(desired: &Desired) -> bool {
    match established::translated(|to| is_service(desired, to)) {
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

/// Whether this is the address of a service port, or a node port at any address of the node.
fn is_service(desired: &Desired, to: SocketAddr) -> bool {
    let (ip, port, protocol) = (to.ip(), to.port(), Protocol::Tcp);
    let node_port = Frontend::NodePort { family: Family::of(ip), protocol, port };
    desired.holder(&Frontend::Address { ip, protocol, port }).is_some()
        || (desired.node().holds(ip) && desired.holder(&node_port).is_some())
}
