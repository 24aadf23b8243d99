//! Entries of connections.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, bail};
use kubeferry_ebpf_common::flow::TICK;
use kubeferry_ebpf_common::{Address, Flow, FlowKey};
use rustix::time::{ClockId, clock_gettime};
use zerocopy::{FromBytes, IntoBytes};

use super::Pinned;
use crate::bpf::kernel;

/// An entry of `flows`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The new address and port.
    pub end: SocketAddr,
    /// Bits of [`kubeferry_ebpf_common::Flow`].
    pub flags: u16,
    /// The client's other port, if it has one.
    pub alias: Option<u16>,
}

impl Pinned {
    /// How many entries of connections there are.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flows(&self) -> Result<usize> {
        Ok(kernel::keys(self.flows.as_fd(), size_of::<FlowKey>())?.len())
    }

    /// All entries of connections, as people read them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flows_as_text(&self) -> Result<Vec<String>> {
        let now = clock_gettime(ClockId::Monotonic);
        let now = ((now.tv_sec * 1_000_000_000 + now.tv_nsec) >> TICK) as u32;
        let mut entries = Vec::new();
        for key in self.flow_keys()? {
            let Some(flow) = self.raw_flow(&key)? else { continue };
            entries.push(format!(
                "{} to {}, protocol {}, hook {}: {}, flags {:#x}, endpoint {:#x}, sender {:#x}, {} ticks ago",
                end(key.source, key.source_port),
                end(key.destination, key.destination_port),
                key.protocol,
                key.hook,
                end(flow.address, flow.port),
                flow.flags,
                flow.backend,
                flow.sender,
                now.wrapping_sub(flow.seen),
            ));
        }
        Ok(entries)
    }

    /// An entry of a connection.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<Entry>> {
        let Some(flow) = self.raw_flow(key)? else { return Ok(None) };
        let alias = (flow.flags & Flow::ALIAS != 0).then_some(u16::from_be(flow.device as u16));
        Ok(Some(Entry { end: end(flow.address, flow.port), flags: flow.flags, alias }))
    }

    /// An entry of a connection, whole.
    ///
    /// # Errors
    /// The kernel's.
    pub fn raw_flow(&self, key: &FlowKey) -> Result<Option<Flow>> {
        let Some(bytes) = kernel::get(self.flows.as_fd(), key.as_bytes(), size_of::<Flow>())? else { return Ok(None) };
        let Ok(flow) = Flow::read_from_bytes(&bytes) else { bail!("an entry of {} bytes", bytes.len()) };
        Ok(Some(flow))
    }

    /// Has the last packet of every connection, both ways, be so many ticks longer ago.
    ///
    /// # Errors
    /// The kernel's.
    pub fn age_flows(&self, ticks: u32) -> Result<()> {
        for key in self.flow_keys()? {
            let Some(flow) = self.raw_flow(&key)? else { continue };
            let older = Flow { seen: flow.seen.wrapping_sub(ticks), ..flow };
            kernel::put(self.flows.as_fd(), key.as_bytes(), older.as_bytes())?;
        }
        Ok(())
    }

    /// The keys of all entries of connections.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flow_keys(&self) -> Result<Vec<FlowKey>> {
        let keys = kernel::keys(self.flows.as_fd(), size_of::<FlowKey>())?;
        keys.iter()
            .map(|bytes| FlowKey::read_from_bytes(bytes).map_err(|_| anyhow!("a key of {} bytes", bytes.len())))
            .collect()
    }

    /// Writes an entry of a connection as it would be at another time, or after something else.
    ///
    /// # Errors
    /// There is none, or the kernel's.
    pub fn change_flow(&self, key: &FlowKey, change: impl FnOnce(&mut Flow)) -> Result<()> {
        let mut flow = self.raw_flow(key)?.with_context(|| format!("no entry {key:?}"))?;
        change(&mut flow);
        Ok(kernel::put(self.flows.as_fd(), key.as_bytes(), flow.as_bytes())?)
    }

    /// Writes an entry of a connection, unless there is one with this key.
    ///
    /// # Errors
    /// The kernel's.
    pub fn put_new_flow(&self, key: &FlowKey, flow: &Flow) -> Result<()> {
        match self.raw_flow(key)? {
            Some(_) => Ok(()),
            None => Ok(kernel::put(self.flows.as_fd(), key.as_bytes(), flow.as_bytes())?),
        }
    }

    /// Forgets one entry of a connection, as when the table is full.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget_flow(&self, key: &FlowKey) -> Result<()> {
        Ok(kernel::delete(self.flows.as_fd(), key.as_bytes())?)
    }
}

/// The key of an entry of `flows`: a packet of this protocol number, from here to there, at this hook.
pub fn flow_key(protocol: u8, from: SocketAddr, to: SocketAddr, hook: u8) -> FlowKey {
    FlowKey {
        source: from.ip().into(),
        destination: to.ip().into(),
        source_port: from.port().to_be(),
        destination_port: to.port().to_be(),
        protocol,
        hook,
        reserved: 0,
    }
}

/// An address and a port as maps have them.
fn end(address: Address, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), u16::from_be(port))
}
