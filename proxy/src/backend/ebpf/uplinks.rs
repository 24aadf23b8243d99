//! The program at XDP of uplinks.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{Xdp, xdp::XdpMode as Mode};

use super::attach::adopt;
use super::devices::is_uplink;
use super::error::EbpfError;
use super::load::{XDP, chain, remove};
use crate::node::Interface;
use crate::settings::XdpMode;

/// The uplinks with their program.
#[derive(Debug, Default)]
pub struct Uplinks {
    program: Option<Xdp>,
    mode: XdpMode,
    patterns: Vec<String>,
    /// By index, the names.
    pub(super) attached: BTreeMap<u32, String>,
    /// Drivers that cannot, by index: not tried again.
    unable: BTreeMap<u32, (String, String)>,
}

impl Uplinks {
    /// None yet.
    pub(super) fn new(program: Option<Xdp>, mode: XdpMode, patterns: Vec<String>) -> Self {
        Self { program, mode, patterns, ..Self::default() }
    }

    /// Covers the uplinks among these interfaces, and leaves those that are gone. What could not be covered and was asked
    /// for by name, and why.
    pub(super) fn follow(&mut self, interfaces: &[Interface], links: &Path) -> BTreeMap<String, String> {
        let mut faults = BTreeMap::new();
        let patterns = self.patterns.clone();
        let is_wanted = |interface: &&Interface| self.mode != XdpMode::Off && is_uplink(interface, &patterns);
        let wanted: BTreeMap<u32, &Interface> =
            interfaces.iter().filter(is_wanted).map(|interface| (interface.index, interface)).collect();
        self.unable.retain(|index, _| wanted.contains_key(index));
        let gone: Vec<_> = self.attached.keys().copied().filter(|index| !wanted.contains_key(index)).collect();
        for index in gone {
            let name = self.attached.remove(&index).unwrap_or_default();
            if let Err(error) = remove(&links.join(format!("{XDP}-{index}"))) {
                faults.insert(name, error.to_string());
            }
        }
        for (index, interface) in wanted {
            if self.attached.contains_key(&index) {
                continue;
            }
            let known = self.unable.contains_key(&index);
            match if known { Ok(false) } else { self.attach(interface, links) } {
                Ok(true) => {
                    tracing::info!(device = interface.name, mode = self.mode.as_str(), "frames are carried at XDP");
                    self.attached.insert(index, interface.name.clone());
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::info!(device = interface.name, %error, "no XDP on this device: TC carries its packets");
                    self.unable.insert(index, (interface.name.clone(), error.to_string()));
                }
            }
        }
        if self.mode != XdpMode::Auto {
            faults.extend(self.unable.values().cloned());
        }
        faults
    }

    fn attach(&mut self, interface: &Interface, links: &Path) -> Result<bool, EbpfError> {
        let Some(program) = &mut self.program else { return Ok(false) };
        let failed = |error: &(dyn std::error::Error + 'static)| EbpfError::Attach {
            program: XDP,
            target: interface.name.clone(),
            why: chain(error),
        };
        let pin = links.join(format!("{XDP}-{}", interface.index));
        let fd = program.fd().map_err(|error| failed(&error))?.as_fd();
        if adopt(&pin, fd, u64::from(interface.index))? {
            return Ok(true);
        }
        let mode = if self.mode == XdpMode::Generic { Mode::Skb } else { Mode::Driver };
        let link = program.attach(&interface.name, mode).map_err(|error| failed(&error))?;
        let link = program.take_link(link).map_err(|error| failed(&error))?;
        let link: FdLink = link.try_into().map_err(|error| failed(&error))?;
        link.pin(&pin).map_err(|error| failed(&error))?;
        Ok(true)
    }

    /// Patterns of `--xdp-devices`; none where nothing is carried at XDP.
    pub(super) fn patterns(&self) -> &[String] {
        if self.mode == XdpMode::Off { &[] } else { &self.patterns }
    }

    /// The interfaces that were found, those too whose driver cannot.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.attached.values().chain(self.unable.values().map(|(name, _)| name)).map(String::as_str)
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        if self.mode == XdpMode::Off || self.program.is_none() {
            return "off".to_owned();
        }
        let names: Vec<&str> = self.attached.values().map(String::as_str).collect();
        let unable: Vec<&str> = self.unable.values().map(|(name, _)| name.as_str()).collect();
        let mut text = match names.is_empty() {
            true => "no device".to_owned(),
            false => names.join(" "),
        };
        if !unable.is_empty() {
            text += &format!("; not by the drivers of {}", unable.join(" "));
        }
        text
    }
}
