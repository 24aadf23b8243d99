//! The programs come to their places. Where those of an earlier run have maps of another shape, the connections come along:
//! some programs use the old maps then, and some ours.

use std::path::PathBuf;

use tokio::sync::watch;

use super::carry::{Way, carry_packets, carry_sockets, delete_closed, ticks};
use super::error::EbpfError;
use super::kernel::Maps;
use super::reconciler::Ebpf;
use crate::node::Interface;

/// How far connections have come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moving {
    /// Our maps are as they were made: no program that uses them was ever attached.
    unused: bool,
    /// What was used before, in the clock of flows, has been carried over by an attempt that failed later.
    since: u32,
}

impl Moving {
    /// Nothing was carried over.
    pub(super) fn new(unused: bool) -> Self {
        Self { unused, since: 0 }
    }
}

impl Ebpf {
    /// Attaches the programs, and carries over what those before knew.
    pub(super) fn take_places(&mut self, interfaces: &mut watch::Receiver<Vec<Interface>>) -> Result<(), EbpfError> {
        let earlier = self.folder.other_maps()?;
        if earlier.is_empty() {
            let now = interfaces.borrow_and_update().clone();
            self.cover(&now)?;
            return self.sockets.attach();
        }
        // What is in none of several cannot be told by one of them.
        let way = if self.moving.unused && earlier.len() == 1 { Way::Mirror } else { Way::Merge };
        // The second time for what came, changed and went while the first went on, which may be long.
        for _ in 0..2 {
            let began = ticks();
            for folder in &earlier {
                let rows = carry_packets(folder, &self.maps, self.moving.since, way)?
                    + carry_sockets(folder, &self.maps, self.moving.since, way)?;
                tracing::debug!(rows, "connections carried over from maps of other sizes");
            }
            self.moving.since = began.saturating_sub(1);
        }
        let now = interfaces.borrow_and_update().clone();
        self.moving.unused = false;
        // While some programs use the old maps and some the new, nothing new begins; what is lost is sent again.
        self.maps.set_moving(true)?;
        let moved = self.change_over(&earlier, &now, way);
        // After a failure, too: it may last, and programs that are in their places know what to do with new connections.
        let ended = self.maps.end_move();
        moved.and(ended)
    }

    /// Puts the programs into the places of an earlier run's.
    fn change_over(&mut self, earlier: &[PathBuf], now: &[Interface], way: Way) -> Result<(), EbpfError> {
        let since = self.moving.since;
        self.devices().replace_ingress(now)?;
        // From here on the old maps get no new connections but the node's own.
        self.wait()?;
        for folder in earlier {
            carry_packets(folder, &self.maps, since, Way::Merge)?;
        }
        self.cover(now)?;
        // No program of ours has looked at sockets yet.
        for folder in earlier {
            carry_sockets(folder, &self.maps, since, way)?;
        }
        let copied = match way {
            Way::Mirror => self.maps.socket_connections.rows().map_err(EbpfError::map("socket_connections"))?,
            Way::Merge => Vec::new(),
        };
        self.sockets.attach()?;
        self.wait()?;
        for folder in earlier {
            carry_sockets(folder, &self.maps, since, Way::Merge)?;
            delete_closed(folder, &self.maps, &copied)?;
            carry_packets(folder, &self.maps, since, Way::Merge)?;
        }
        Ok(())
    }

    /// Attaches the programs to devices.
    fn cover(&mut self, now: &[Interface]) -> Result<(), EbpfError> {
        let mut devices = self.devices();
        devices.follow(now)?;
        devices.tidy()
    }
}

impl Maps {
    /// All that there was has come, or it will not come now: connections begin again.
    fn end_move(&self) -> Result<(), EbpfError> {
        self.set_moving(false)?;
        // Programs that began before may still note a socket that is closed.
        self.fence.wait().map_err(EbpfError::map("fence"))?;
        let sockets = &self.socket_connections;
        let rows = sockets.rows().map_err(EbpfError::map("socket_connections"))?;
        let closed: Vec<u64> = rows.iter().filter(|(_, one)| one.is_closed()).map(|(cookie, _)| *cookie).collect();
        sockets.delete(&closed).map(drop).map_err(EbpfError::map("socket_connections"))
    }

    /// Has connections begin again where an earlier run was killed while it moved some here.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub(super) fn end_broken_move(&self) -> Result<(), EbpfError> {
        if !self.is_moving()? {
            return Ok(());
        }
        tracing::warn!(
            "an earlier run has ended while it moved connections to these maps: new ones were dropped since"
        );
        self.end_move()
    }
}
