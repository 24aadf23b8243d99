//! Packets from outside to a node port whose endpoints are on other nodes, as many as will go: in by one uplink and out by
//! the other. Sender and receiver are the same on every way and take their part of the CPU, so that a ratio understates.
//!
//! ```text
//! outside 198.51.100.2 ── out · node-1 172.18.0.2:30080 ── server 172.18.0.3, every address of 10.128.0.0/10
//! ```

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde::Serialize;

use super::super::generate::{NODE_PORT, TARGET_PORT};
use super::super::namespace;
use crate::netns::Namespace;
use crate::{interrupt, step};

/// The node.
const NODE: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// An endpoint, for packets that are only routed.
const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
/// Connections, and the first one's port.
const SOCKETS: u16 = 32;
const FIRST_PORT: u16 = 40_000;
/// Packets that the namespace has taken for itself.
const DELIVERED: &str = "InDelivers";

/// What carries the packets.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// They are sent to an endpoint's own address, and routed.
    Routed,
    /// The same, with the program of XDP at the uplinks, which passes them up: what a veth pays for having one. It copies
    /// every socket buffer to make a frame of it, which drivers of hardware have no need to.
    Passed,
    Nftables,
    Tc,
    Xdp,
}

impl Hook {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 5] = [Self::Routed, Self::Passed, Self::Nftables, Self::Tc, Self::Xdp];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed only",
            Self::Passed => "routed only, past XDP",
            Self::Nftables => "nftables",
            Self::Tc => "eBPF, TC",
            Self::Xdp => "eBPF, XDP",
        }
    }
}

/// Packets per second that arrived, one entry a round.
#[derive(Clone, Serialize, Debug)]
pub struct Rate {
    pub hook: Hook,
    pub rounds: Vec<f64>,
}

/// Makes the sender's namespace and links it to the node.
pub fn join(node: &Namespace) -> anyhow::Result<Namespace> {
    let outside = namespace("outside")?;
    node.ip(&format!(
        "link add out type veth peer name eth0 netns {}\naddr add 198.51.100.1/24 dev out\nlink set out up",
        outside.name()
    ))?;
    outside.ip("addr add 198.51.100.2/24 dev eth0\nlink set eth0 up\nroute add default via 198.51.100.1")?;
    // At XDP nobody completes a sum that is left to the hardware.
    step::output(outside.command("ethtool").args(["-K", "eth0", "tx", "off"]))?;
    Ok(outside)
}

/// Has the server take frames from XDP: a veth does only where its receiving side has NAPI, which GRO switches on.
pub fn take_frames(server: &Namespace) -> anyhow::Result<()> {
    step::output(server.command("ethtool").args(["-K", "eth0", "gro", "on"])).map(drop)
}

/// Sends for so long and gives the packets per second that arrived.
///
/// # Errors
/// Fewer than nine of ten arrived: something else than the node's speed was measured.
pub fn packets_per_second(
    (outside, node, server): (&Namespace, &Namespace, &Namespace),
    hook: Hook,
    time: Duration,
) -> anyhow::Result<f64> {
    interrupt::check()?;
    let receiver = server.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, TARGET_PORT)))??;
    // Nobody reads it.
    set_socket_recv_buffer_size(&receiver, 4096)?;
    // Connections are known then, and the way to the endpoint is.
    outside.enter(|| flood(hook, time / 10))??;
    let (before, began) = (server.enter(|| of_ip(DELIVERED))??, Instant::now());
    let sent = outside.enter(|| flood(hook, time))??;
    let (arrived, seconds) = (server.enter(|| of_ip(DELIVERED))?? - before, began.elapsed().as_secs_f64());
    if arrived * 10 < sent * 9 {
        bail!("{arrived} of {sent} packets arrived ({})", hook.name());
    }
    if hook == Hook::Xdp && redirected(node)? < sent {
        bail!("packets were not carried at XDP");
    }
    Ok(arrived as f64 / seconds)
}

/// How many packets were sent.
fn flood(hook: Hook, time: Duration) -> anyhow::Result<u64> {
    let target = match hook {
        Hook::Routed | Hook::Passed => (ENDPOINT, TARGET_PORT),
        Hook::Nftables | Hook::Tc | Hook::Xdp => (NODE, NODE_PORT),
    };
    let mut senders = Vec::new();
    for number in 0..SOCKETS {
        let sender = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, FIRST_PORT + number))?;
        sender.connect(target)?;
        senders.push(sender);
    }
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < time {
        for sender in &senders {
            sender.send(&[0; 18]).with_context(|| format!("sending to {target:?}"))?;
        }
        sent += senders.len() as u64;
    }
    Ok(sent)
}

/// How many frames XDP has sent on, of those that the sender's device brought.
fn redirected(node: &Namespace) -> anyhow::Result<u64> {
    let text = step::output(node.command("ethtool").args(["-S", "out"]))?;
    let counters = text.lines().filter_map(|line| line.trim().split_once(": "));
    let redirected = counters.filter(|(name, _)| name.ends_with("_xdp_redirect"));
    Ok(redirected.filter_map(|(_, count)| count.parse::<u64>().ok()).sum())
}

/// A counter of this thread's namespace for IPv4, by its name in `/proc/net/snmp`.
pub(super) fn of_ip(counter: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == counter);
    found.and_then(|(_, value)| value.parse().ok()).with_context(|| format!("no {counter} in /proc/net/snmp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_are_counted() {
        of_ip(DELIVERED).unwrap();
    }
}
