//! Somebody who sends packets under the addresses and ports of another's connection, to end it.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::client::Connection;
use crate::netns::Netns;
use crate::packets::{FrameSocket, tcp_packet};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What each of the two sides may be made to say: bits of a TCP header.
const ENDS: [u8; 3] = [FIN | ACK, RST, RST | ACK];
/// A connection that counts as closed is forgotten after this time: 10 s of silence, and a look every 5 s.
const FORGOTTEN: Duration = Duration::from_secs(20);

/// A connection by way of a Service, as somebody knows it who has watched it.
#[derive(Debug)]
pub struct Victim {
    connection: Connection,
    server: String,
    client: SocketAddr,
    seen: SocketAddr,
    service: SocketAddr,
    endpoint: SocketAddr,
}

impl Victim {
    /// Opens one to a Service with this one endpoint.
    ///
    /// # Errors
    /// It does not answer.
    pub fn open(from: &Netns, service: SocketAddr, endpoint: SocketAddr) -> Result<Self> {
        let mut connection = Connection::open(from, service)?;
        let (server, seen) = connection.ask()?;
        Ok(Self { client: connection.local()?, connection, server, seen, service, endpoint })
    }

    /// Whether the endpoint sees another client than there is.
    pub fn is_masqueraded(&self) -> bool {
        self.seen != self.client
    }

    fn goes_on(&mut self) -> Result<()> {
        let (server, seen) =
            self.connection.ask().with_context(|| format!("from {} to {}", self.client, self.service))?;
        ensure!((&server, seen) == (&self.server, self.seen), "{server} answers, to {seen}");
        Ok(())
    }

    /// Sends its end with these bits, and then as if it began anew: each of its four ways through a node.
    fn attack(&self, wire: &FrameSocket, [to, from]: [[u8; 6]; 2], end: u8) -> Result<()> {
        let Self { client, seen, service, endpoint, .. } = *self;
        for (question, answer) in [(end, end), (SYN, SYN | ACK)] {
            for (source, destination, bits) in [
                (client, service, question),
                (client, endpoint, question),
                (endpoint, seen, answer),
                (endpoint, client, answer),
            ] {
                let packet = tcp_packet(source, destination, bits, 1);
                wire.send(&[&to[..], &from, &[8, 0], &packet].concat())?;
            }
        }
        Ok(())
    }
}

/// Sends forged ends of two connections for each way to end one, which `open` opens, and sees that all go on. The Ethernet addresses are
/// the node's and the sender's own.
///
/// # Errors
/// One does not.
pub fn outlived(
    wire: &FrameSocket,
    macs: [[u8; 6]; 2],
    mut open: impl FnMut(usize) -> Result<Victim>,
) -> Result<Vec<Victim>> {
    let mut victims = (0..2 * ENDS.len()).map(&mut open).collect::<Result<Vec<_>>>()?;
    let ends = || ENDS.into_iter().flat_map(|end| [end; 2]);
    victims.iter().zip(ends()).try_for_each(|(victim, end)| victim.attack(wire, macs, end))?;
    for when in ["at once", "when it would have been forgotten"] {
        for (victim, end) in victims.iter_mut().zip(ends()) {
            victim.goes_on().with_context(|| format!("after bits {end:#x}, {when}"))?;
        }
        if when == "at once" {
            thread::sleep(FORGOTTEN);
        }
    }
    Ok(victims)
}
