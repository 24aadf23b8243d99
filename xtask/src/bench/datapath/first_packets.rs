//! What the first packet of a connection costs on its way through the node: one after another on one CPU, with nobody to wait for
//! and nobody who answers, so that a difference shows that is lost in what whole connections cost.

use std::net::SocketAddrV4;
use std::time::Instant;

use anyhow::ensure;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

use super::programs::packet;
use super::uplink::of_ip;
use crate::bench::load::{Half, stay_on};
use crate::netns::Namespace;
use crate::step;

/// Ports that no other client here has: each is a connection to each target.
const PORTS: std::ops::RangeInclusive<u16> = 1..=1_000;
/// They are sent in so many parts.
const PARTS: usize = 10;
/// Drops what comes from them, before anybody answers.
const DROP: &str = "table ip first {\n  chain first {\n    type filter hook prerouting priority raw\n    \
                    tcp sport 1-1000 drop\n  }\n}\n";
/// TCP's flag.
const SYN: u8 = 2;

/// Has the server never answer such packets.
pub fn silence(server: &Namespace) -> anyhow::Result<()> {
    step::feed(server.command("nft").args(["-f", "-"]), DROP)
}

/// The seconds that one takes: of ten times so many, from other ports each, the least average, which is what nothing else had a part
/// in. None of these connections may be known.
///
/// # Errors
/// Fewer than nine of ten arrived.
pub fn seconds_each(client: &Namespace, server: &Namespace, targets: &[SocketAddrV4]) -> anyhow::Result<f64> {
    let received = || server.enter(|| of_ip("InReceives"))?;
    let before = received()?;
    let (sent, seconds) = client.enter(|| send(targets))??;
    let arrived = received()? - before;
    ensure!(arrived * 10 >= sent * 9, "{arrived} of {sent} first packets arrived");
    Ok(seconds)
}

/// How many, and the seconds for one.
fn send(targets: &[SocketAddrV4]) -> anyhow::Result<(u64, f64)> {
    // Each frame without its Ethernet header.
    let packets: Vec<(SocketAddrV4, Vec<u8>)> = PORTS
        .flat_map(|port| targets.iter().map(move |to| (*to, packet(port, *to.ip(), to.port(), SYN).split_off(14))))
        .collect();
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
    stay_on(Half::First);
    let mut least = f64::INFINITY;
    for part in packets.chunks(packets.len() / PARTS) {
        let began = Instant::now();
        for (to, packet) in part {
            // A raw socket's address has no port.
            sendto(&socket, packet, SendFlags::empty(), &SocketAddrV4::new(*to.ip(), 0))?;
        }
        least = least.min(began.elapsed().as_secs_f64() / part.len() as f64);
    }
    Ok((packets.len() as u64, least))
}
