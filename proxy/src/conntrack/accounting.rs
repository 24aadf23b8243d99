//! What translated connections carried, by connection tracking's own accounting (`net.netfilter.nf_conntrack_acct`): of those
//! that have ended by the kernel's events, of the others by a list.
//!
//! An event that finds no room in the socket's buffer is lost. Then what a connection had carried at the last list is what is
//! counted of it: the difference between two lists tells which have ended.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::entry::read_tracked;
use super::kernel::Conntrack;
use crate::backend::nftables::netlink::{Error, kernel::NetfilterSocket};
use crate::state::objects::Protocol;

// enum nfnetlink_groups, enum cntl_msg_types
const NFNLGRP_CONNTRACK_DESTROY: u32 = 3;
const IPCTNL_MSG_CT_DELETE: u16 = 1 << 8 | 2;
/// Room for events, in bytes: some 10,000 connections that end between two looks.
const BUFFER: usize = 8 << 20;
/// How often events are taken in.
const EVERY: Duration = Duration::from_millis(50);

/// Where connections went.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Way {
    /// The protocol.
    pub protocol: Protocol,
    /// Where the client sent them.
    pub to: SocketAddr,
    /// Who answers.
    pub endpoint: SocketAddr,
}

/// What the connections of a way carried, both directions, bytes from the IP header on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Carried {
    /// Packets of those that have ended since this was last told.
    pub ended_packets: u64,
    /// Bytes of these.
    pub ended_bytes: u64,
    /// How many the kernel has entries of.
    pub entries: u64,
    /// How many of these have not ended: of TCP, both sides have not closed.
    pub active: u64,
    /// What those with entries have carried until now.
    pub packets: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// A translated connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tracked {
    /// The kernel's number of it.
    pub id: u32,
    /// Where it went.
    pub way: Way,
    /// It has ended, and its entry waits for late packets.
    pub over: bool,
    /// Packets, both directions.
    pub packets: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// Follows the connections of the network namespace that it was started in.
#[derive(Debug)]
pub struct Accounting {
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    events: NetfilterSocket,
    followed: Followed,
}

/// What is known without the socket.
#[derive(Debug, Default)]
struct Followed {
    ended: HashMap<Way, (u64, u64)>,
    /// As they were at the last list, without those that have ended since.
    live: HashMap<u32, Tracked>,
}

impl Accounting {
    /// Begins to listen; the runtime takes events in, 20 times a second.
    ///
    /// # Errors
    /// No socket, or CAP_NET_ADMIN is missing.
    pub fn start(runtime: &Handle) -> Result<Self, Error> {
        let events = NetfilterSocket::open()?;
        events.listen(NFNLGRP_CONNTRACK_DESTROY, BUFFER)?;
        let shared = Arc::new(Mutex::new(Shared { events, followed: Followed::default() }));
        let task = runtime.spawn(follow(shared.clone()));
        Ok(Self { shared, task })
    }

    /// What was carried, by way. Blocks for as long as the kernel lists its connections.
    ///
    /// # Errors
    /// The kernel refuses, or the socket fails.
    pub fn carried(&self) -> Result<HashMap<Way, Carried>, Error> {
        let mut shared = lock(&self.shared);
        let Shared { events, followed } = &mut *shared;
        // Events that come while the list is made wait in the socket: who is in it and ends meanwhile is told by them.
        let (listed, complete) = Conntrack::open()?.tracked()?;
        let mut ended = HashSet::new();
        drain(events, followed, &mut |tracked| {
            ended.insert((tracked.id, tracked.way));
        })?;
        followed.listed(listed.into_iter().filter(|tracked| !ended.contains(&(tracked.id, tracked.way))), complete);
        Ok(followed.take())
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    fn end(&mut self, tracked: Tracked) {
        let sum = self.ended.entry(tracked.way).or_default();
        *sum = (sum.0 + tracked.packets, sum.1 + tracked.bytes);
        self.live.remove(&tracked.id);
    }

    /// These are there now. Who was and is not, and whose end nobody told, has ended with what it had then.
    fn listed(&mut self, now: impl Iterator<Item = Tracked>, complete: bool) {
        let mut live: HashMap<u32, Tracked> = now.map(|tracked| (tracked.id, tracked)).collect();
        for (id, before) in std::mem::take(&mut self.live) {
            if live.get(&id).is_some_and(|now| now.way == before.way) {
                continue;
            }
            // What an incomplete list lacks may be there.
            if !complete && !live.contains_key(&id) {
                live.insert(id, before);
            } else {
                self.end(before);
            }
        }
        self.live = live;
    }

    fn take(&mut self) -> HashMap<Way, Carried> {
        let mut all: HashMap<Way, Carried> = HashMap::new();
        for (way, (packets, bytes)) in self.ended.drain() {
            let carried = all.entry(way).or_default();
            (carried.ended_packets, carried.ended_bytes) = (packets, bytes);
        }
        for tracked in self.live.values() {
            let carried = all.entry(tracked.way).or_default();
            carried.entries += 1;
            carried.active += u64::from(!tracked.over);
            carried.packets += tracked.packets;
            carried.bytes += tracked.bytes;
        }
        all
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes in the events that wait.
fn drain(events: &NetfilterSocket, followed: &mut Followed, each: &mut dyn FnMut(&Tracked)) -> Result<(), Error> {
    events.answers_and(&mut |kind, body| {
        if kind == IPCTNL_MSG_CT_DELETE
            && let Some(tracked) = read_tracked(body)?
        {
            each(&tracked);
            followed.end(tracked);
        }
        Ok(())
    })?;
    Ok(())
}

async fn follow(shared: Arc<Mutex<Shared>>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let result = tokio::task::block_in_place(|| {
            let mut shared = lock(&shared);
            let Shared { events, followed } = &mut *shared;
            drain(events, followed, &mut |_| {})
        });
        if let Err(error) = result {
            tracing::debug!(%error, "events of connection tracking");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracked(id: u32, packets: u64) -> Tracked {
        let (to, endpoint) = ("10.96.0.10:80".parse().unwrap(), "10.244.1.1:8080".parse().unwrap());
        Tracked { id, way: Way { protocol: Protocol::Tcp, to, endpoint }, over: id == 3, packets, bytes: packets * 100 }
    }

    fn take(followed: &mut Followed) -> (u64, u64, u64) {
        let all = followed.take();
        let carried = all.values().next().copied().unwrap_or_default();
        assert_eq!((carried.ended_bytes, carried.bytes), (carried.ended_packets * 100, carried.packets * 100));
        (carried.ended_packets, carried.active, carried.packets)
    }

    #[test]
    fn an_end_that_nobody_told_is_seen_in_the_next_list() {
        let mut followed = Followed::default();
        followed.listed([tracked(1, 5), tracked(2, 7)].into_iter(), true);
        assert_eq!(take(&mut followed), (0, 2, 12));
        followed.end(tracked(1, 9));
        followed.listed([tracked(3, 1)].into_iter(), true);
        assert_eq!(take(&mut followed), (16, 0, 1), "9 as told, and 7 as they were");
        followed.listed(std::iter::empty(), false);
        assert_eq!(take(&mut followed), (0, 0, 1), "the list may lack it");
        followed.end(tracked(3, 4));
        assert_eq!(take(&mut followed), (4, 0, 0));
    }
}
