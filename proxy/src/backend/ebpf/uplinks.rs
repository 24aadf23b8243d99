//! The program of XDP on uplinks: attached as links that are pinned and outlive us, in the mode that was asked for and no
//! other. A device that takes none goes without: its packets are translated at TC.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::xdp::{Xdp, XdpMode};

use super::attach::adopt;
use super::bpf::{link_info, open_pin};
use super::devices::is_uplink;
use super::error::EbpfError;
use super::load::{chain, list, remove};
use crate::node::Interface;
use crate::settings::XdpSetting;

/// The program's name in the object.
pub const PROGRAM: &str = "xdp_uplink";

/// XDP on the uplinks.
#[derive(Debug)]
pub struct Uplinks {
    program: Xdp,
    mode: XdpSetting,
    patterns: Vec<String>,
    links: PathBuf,
    attached: BTreeSet<u32>,
    /// Devices that the kernel refused, and why: not tried again until they come anew.
    refused: BTreeMap<u32, String>,
}

impl Uplinks {
    /// Attaches nothing yet.
    pub fn new(program: Xdp, mode: XdpSetting, patterns: Vec<String>, links: PathBuf) -> Self {
        Self { program, mode, patterns, links, attached: BTreeSet::new(), refused: BTreeMap::new() }
    }

    /// Covers the uplinks among these interfaces and leaves the others. Those where frames may be sent are the result.
    ///
    /// # Errors
    /// A pin of a device that is gone cannot be removed.
    pub fn follow(&mut self, interfaces: &[Interface]) -> Result<&BTreeSet<u32>, EbpfError> {
        let wanted: BTreeMap<u32, &Interface> = interfaces
            .iter()
            .filter(|interface| self.mode != XdpSetting::Off && is_uplink(interface, &self.patterns))
            .map(|interface| (interface.index, interface))
            .collect();
        for (index, pin) in pins(&self.links)? {
            if !wanted.contains_key(&index) {
                remove(&pin)?;
            }
        }
        self.attached.retain(|index| wanted.contains_key(index));
        self.refused.retain(|index, _| wanted.contains_key(index));
        for (index, interface) in wanted {
            if self.attached.contains(&index) || self.refused.contains_key(&index) {
                continue;
            }
            match self.attach(interface) {
                Ok(()) => {
                    tracing::info!(device = interface.name, mode = self.mode.as_str(), "XDP attached");
                    self.attached.insert(index);
                }
                Err(error) => {
                    let why = error.to_string();
                    // Without being asked for, it is no fault: not every driver has it.
                    match self.mode {
                        XdpSetting::Auto => {
                            tracing::info!(device = interface.name, %why, "no XDP here: TC carries all")
                        }
                        _ => tracing::error!(device = interface.name, %why, "no XDP here: TC carries all"),
                    }
                    self.refused.insert(index, why);
                }
            }
        }
        Ok(&self.attached)
    }

    fn attach(&mut self, interface: &Interface) -> Result<(), EbpfError> {
        let failed = |error: &(dyn std::error::Error + 'static)| EbpfError::Attach {
            program: PROGRAM,
            target: interface.name.clone(),
            why: chain(error),
        };
        let pin = self.links.join(format!("{PROGRAM}-{}", interface.index));
        let fd = self.program.fd().map_err(|error| failed(&error))?.as_fd();
        if adopt(&pin, fd, u64::from(interface.index))? {
            return Ok(());
        }
        let mode = if self.mode == XdpSetting::Generic { XdpMode::Skb } else { XdpMode::Driver };
        let id = self.program.attach_to_if_index(interface.index, mode).map_err(|error| failed(&error))?;
        let link = self.program.take_link(id).map_err(|error| failed(&error))?;
        let link: FdLink = link.try_into().map_err(|error| failed(&error))?;
        link.pin(&pin).map_err(|error| failed(&error))?;
        Ok(())
    }

    /// Forgets those that somebody has detached, so that [`Uplinks::follow`] attaches them again; how many.
    pub fn look(&mut self) -> usize {
        let is_there = |index: &u32| {
            let link = open_pin(&self.links.join(format!("{PROGRAM}-{index}")));
            link.and_then(|link| link_info(link.as_fd())).is_ok_and(|link| link.target == u64::from(*index))
        };
        let before = self.attached.len();
        self.attached.retain(is_there);
        before - self.attached.len()
    }

    /// Where it is attached, and in which mode, for people.
    pub fn describe(&self, interfaces: &[Interface]) -> String {
        let name = |index: &u32| interfaces.iter().find(|i| i.index == *index).map_or("?", |i| i.name.as_str());
        let attached: Vec<&str> = self.attached.iter().map(name).collect();
        let refused = self.refused.iter().map(|(index, why)| format!("; not at {}: {why}", name(index)));
        format!("{}: {}{}", self.mode.as_str(), attached.join(" "), refused.collect::<String>())
    }
}

/// The pinned attachments, by interface.
fn pins(links: &Path) -> Result<Vec<(u32, PathBuf)>, EbpfError> {
    let parse = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        Some((name.strip_prefix(PROGRAM)?.strip_prefix('-')?.parse().ok()?, path))
    };
    Ok(list(links)?.into_iter().filter_map(parse).collect())
}
