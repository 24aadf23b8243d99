//! The program at XDP of uplinks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use aya::programs::Xdp;

use super::attach::is_there;
use super::devices::is_uplink;
use super::error::EbpfError;
use super::links::{Links, Place};
use super::load::XDP;
use crate::node::Interface;
use crate::settings::XdpMode;

// include/uapi/linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// How long until a device is tried again whose driver can, but was kept from it: another program was there.
const AGAIN: Duration = Duration::from_secs(30);

/// The uplinks with their program.
#[derive(Debug, Default)]
pub struct Uplinks {
    program: Option<Xdp>,
    mode: XdpMode,
    patterns: Vec<String>,
    links: Option<Links>,
    /// By index, the names.
    pub(super) attached: BTreeMap<u32, String>,
    /// Where it is not, by index.
    unable: BTreeMap<u32, Unable>,
}

/// A device without the program.
#[derive(Debug)]
struct Unable {
    device: String,
    why: String,
    /// `None`: its driver cannot.
    again: Option<Instant>,
}

impl Uplinks {
    /// None yet.
    pub(super) fn new(program: Option<Xdp>, mode: XdpMode, patterns: Vec<String>, links: Links) -> Self {
        Self { program, mode, patterns, links: Some(links), ..Self::default() }
    }

    /// Covers the uplinks among these interfaces, and leaves those that are gone. What could not be covered and was asked
    /// for by name, and why.
    pub(super) fn follow(&mut self, interfaces: &[Interface]) -> BTreeMap<String, String> {
        let mut faults = BTreeMap::new();
        let patterns = self.patterns.clone();
        let is_wanted = |interface: &&Interface| self.mode != XdpMode::Off && is_uplink(interface, &patterns);
        let wanted: BTreeMap<u32, &Interface> =
            interfaces.iter().filter(is_wanted).map(|interface| (interface.index, interface)).collect();
        self.unable.retain(|index, _| wanted.contains_key(index));
        let gone: Vec<_> = self.attached.keys().copied().filter(|index| !wanted.contains_key(index)).collect();
        for index in gone {
            let name = self.attached.remove(&index).unwrap_or_default();
            if let Some(Err(error)) = self.links.as_mut().map(|links| links.detach(&name_of(index))) {
                faults.insert(name, error.to_string());
            }
        }
        for (index, interface) in wanted {
            if self.attached.contains_key(&index) {
                continue;
            }
            let is_put_off = |unable: &Unable| unable.again.is_none_or(|again| again > Instant::now());
            if self.unable.get(&index).is_some_and(is_put_off) {
                continue;
            }
            match self.attach(interface) {
                Ok(true) => {
                    tracing::info!(device = interface.name, mode = self.mode.as_str(), "frames are carried at XDP");
                    self.unable.remove(&index);
                    self.attached.insert(index, interface.name.clone());
                }
                Ok(false) => {}
                // It went while we were at it: the kernel's notice of that comes next.
                Err(_) if !is_there(index) => {}
                Err(error) => {
                    let (device, why) = (interface.name.clone(), error.to_string());
                    if self.unable.get(&index).is_none_or(|unable| unable.why != why) {
                        tracing::info!(device, %error, "no XDP on this device: TC carries its packets");
                    }
                    let passes = [libc::EBUSY, libc::EEXIST, libc::ENOMEM, libc::ENOSPC, libc::EAGAIN, libc::ENETDOWN];
                    let again = error.raw_os_error().filter(|errno| passes.contains(errno));
                    let again = again.map(|_| Instant::now() + AGAIN);
                    self.unable.insert(index, Unable { device, why, again });
                }
            }
        }
        if self.mode != XdpMode::Auto {
            let why = |unable: &Unable| format!("cannot attach {XDP} to {}: {}", unable.device, unable.why);
            faults.extend(self.unable.values().map(|unable| (unable.device.clone(), why(unable))));
        }
        faults
    }

    fn attach(&mut self, interface: &Interface) -> io::Result<bool> {
        let (Some(program), Some(links)) = (&self.program, &mut self.links) else { return Ok(false) };
        let mode = if self.mode == XdpMode::Generic { XDP_FLAGS_SKB_MODE } else { XDP_FLAGS_DRV_MODE };
        let program = program.fd().map_err(io::Error::other)?.as_fd();
        links.attach(&name_of(interface.index), program, Place::xdp(interface.index, mode)).map(|()| true)
    }

    /// Forgets those of the interfaces `there` whose program somebody has detached or replaced, so that they are attached
    /// again; how many.
    pub(super) fn check(&mut self, there: &BTreeSet<u32>) -> usize {
        let ours = self.program.as_ref().and_then(|program| Some(program.info().ok()?.id()));
        let before = self.attached.len();
        self.attached.retain(|index, _| {
            let link = self.links.as_ref().and_then(|links| links.get(&name_of(*index)));
            !there.contains(index)
                || link.is_some_and(|link| link.target == u64::from(*index) && Some(link.program) == ours)
        });
        before - self.attached.len()
    }

    /// Puts nothing off any more.
    #[cfg(test)]
    pub(super) fn try_again(&mut self) {
        self.unable.values_mut().for_each(|unable| unable.again = unable.again.map(|_| Instant::now()));
    }

    /// As of [`Links::keep`].
    pub(super) fn keep_pins(&self) -> Result<usize, EbpfError> {
        self.links.as_ref().map_or(Ok(0), Links::keep)
    }

    /// Patterns of `--xdp-devices`; none where nothing is carried at XDP.
    pub(super) fn patterns(&self) -> &[String] {
        if self.mode == XdpMode::Off { &[] } else { &self.patterns }
    }

    /// The interfaces that were found, those too whose driver cannot.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.attached.values().chain(self.unable.values().map(|unable| &unable.device)).map(String::as_str)
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        if self.mode == XdpMode::Off || self.program.is_none() {
            return "off".to_owned();
        }
        let names: Vec<&str> = self.attached.values().map(String::as_str).collect();
        let unable: Vec<&str> = self.unable.values().map(|unable| unable.device.as_str()).collect();
        let mut text = match names.is_empty() {
            true => "no device".to_owned(),
            false => names.join(" "),
        };
        if !unable.is_empty() {
            text += &format!("; not at {}", unable.join(" "));
        }
        text
    }
}

/// The name of a link's pin.
fn name_of(index: u32) -> String {
    format!("{XDP}-{index}")
}
