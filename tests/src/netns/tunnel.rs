//! A cable between two namespaces whose packets have no Ethernet header, as those of tunnels: a TUN device at each end, and a
//! thread that carries packets.
//!
//! Why `unsafe`: TUNSETIFF has no wrapper. The request is on the caller's stack.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Netns;

/// How soon the thread sees that it is to end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// More than any packet has.
const PACKET: usize = 65_536;

/// The cable; its ends go with it.
#[derive(Debug)]
pub struct Tunnel {
    ended: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes a device of this name in each of the namespaces, which is up and has no address.
    ///
    /// # Errors
    /// There is no `/dev/net/tun`, or no right.
    pub fn between(namespaces: [&Netns; 2], device: &str) -> Result<Self> {
        let end = |namespace: &Netns| -> Result<File> {
            let opened =
                namespace.run(|| open(device))?.with_context(|| format!("cannot make the TUN device {device}"))?;
            namespace.ip(&[format!("link set {device} addrgenmode none"), format!("link set {device} up")])?;
            Ok(opened)
        };
        let ends = [end(namespaces[0])?, end(namespaces[1])?];
        let ended = Arc::new(AtomicBool::new(false));
        let told = ended.clone();
        let carrier = std::thread::spawn(move || carry(&ends, &told));
        Ok(Self { ended, carrier: Some(carrier) })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            drop(carrier.join());
        }
    }
}

fn open(device: &str) -> io::Result<File> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    /// IFF_TUN and IFF_NO_PI: packets, and nothing before them.
    const FLAGS: i16 = 0x1001;
    /// struct ifreq.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    request.name.iter_mut().zip(device.bytes().take(15)).for_each(|(to, from)| *to = from);
    // SAFETY: the kernel reads and writes the request, which is alive during the call.
    match unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) } {
        0 => Ok(tun),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Carries packets until told to end. What an end does not take is lost, as on a cable.
fn carry(ends: &[File; 2], ended: &AtomicBool) {
    let mut packet = vec![0; PACKET];
    while !ended.load(Ordering::Relaxed) {
        let mut waiting = [PollFd::new(&ends[0], PollFlags::IN), PollFd::new(&ends[1], PollFlags::IN)];
        if poll(&mut waiting, Some(&LOOK)).is_err() {
            continue;
        }
        let ready = [0, 1].map(|at| waiting[at].revents().contains(PollFlags::IN));
        for at in [0, 1].into_iter().filter(|at| ready[*at]) {
            if let Ok(length) = (&ends[at]).read(&mut packet) {
                drop((&ends[1 - at]).write(&packet[..length]));
            }
        }
    }
}
