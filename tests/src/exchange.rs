//! Many bytes to a server that sends back what it gets ([`Host::echo`](crate::hosts::Host::echo)).

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};

use crate::client::DEADLINE;
use crate::netns::Netns;

/// So many bytes that look like no others.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ bytes as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        noise.extend(next());
    }
    noise.truncate(bytes);
    noise
}

/// Sends so many bytes to a server of [`Host::echo`](crate::hosts::Host::echo) and has the same back, both ways at a time.
///
/// # Errors
/// No connection, an end in the middle, or other bytes.
pub fn exchange(from: &Netns, to: SocketAddr, bytes: usize) -> Result<()> {
    let stream =
        from.run(|| TcpStream::connect_timeout(&to, DEADLINE))?.with_context(|| format!("connecting to {to}"))?;
    exchange_over(&stream, bytes)
}

/// The same over a connection that is there.
///
/// # Errors
/// As [`exchange`].
pub fn exchange_over(stream: &TcpStream, bytes: usize) -> Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let (sent, mut got) = (noise(bytes), Vec::with_capacity(bytes));
    std::thread::scope(|scope| {
        let (mut to, bytes) = (stream, &sent);
        let writer = scope.spawn(move || to.write_all(bytes).and_then(|()| to.shutdown(Shutdown::Write)));
        let mut from = stream;
        let read = from.read_to_end(&mut got);
        writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("sending")?;
        read.context("receiving").map(drop)
    })
    .with_context(|| format!("{} of {bytes} bytes came back", got.len()))?;
    ensure!(got == sent, "{} bytes came back for {bytes}, and not the same", got.len());
    Ok(())
}

/// Sends a datagram of so many bytes to a server of [`Host::echo`](crate::hosts::Host::echo); whether the same came back in time.
///
/// # Errors
/// Something else came back.
pub fn echoes(socket: &UdpSocket, bytes: usize) -> Result<bool> {
    let (sent, mut got) = (noise(bytes), vec![0; 65_536]);
    match socket.send(&sent).and_then(|_| socket.recv(&mut got)) {
        Ok(length) => {
            ensure!(got[..length] == sent, "{length} bytes came back for {bytes}, and not the same");
            Ok(true)
        }
        Err(_) => Ok(false),
    }
}
