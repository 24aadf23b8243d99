//! What translated connections carried, by connection tracking's own accounting (`net.netfilter.nf_conntrack_acct`): of those
//! that have ended by the kernel's events, of the others by a list.
//!
//! An event that finds no room in the socket's buffer is lost. Then what a connection had carried at the last list is what is
//! counted of it: the difference between two lists tells which have ended.
//!
//! Only what goes to frontends of ours is kept, whoever else translates: others decide how many ways there are. Of ours what has ended
//! is to be fetched every few seconds, also while nobody asks: [`Accounting::ended`].

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
use crate::desired::target::Frontend;
use crate::state::objects::Protocol;

// enum nfnetlink_groups, enum cntl_msg_types
const NFNLGRP_CONNTRACK_DESTROY: u32 = 3;
const IPCTNL_MSG_CT_DELETE: u16 = 1 << 8 | 2;
/// Room for events, in bytes: some 10,000 connections that end between two looks.
const BUFFER: usize = 8 << 20;
/// Ways of connections that have ended, until they are fetched. The end of one on another way is not counted, but for its number.
const MOST_WAYS: usize = 1 << 16;
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
    /// Whose connections are followed.
    ours: HashSet<Frontend>,
    ended: HashMap<Way, (u64, u64)>,
    /// Connections of ours that are nobody's any more: where they go to has another owner.
    disowned: HashMap<u32, Way>,
    /// Connections that ended beyond [`MOST_WAYS`].
    uncounted: u64,
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

    /// Connections to these frontends are followed, or no more. Those that are known stay so until they end.
    pub fn follow(&self, frontends: impl Iterator<Item = (Frontend, bool)>) {
        let ours = &mut lock(&self.shared).followed.ours;
        for (frontend, follows) in frontends {
            if follows {
                ours.insert(frontend)
            } else {
                ours.remove(&frontend)
            };
        }
    }

    /// What those carried that have ended since this was last told: packets and bytes, by way.
    ///
    /// # Errors
    /// The socket fails.
    pub fn ended(&self) -> Result<HashMap<Way, (u64, u64)>, Error> {
        let mut shared = lock(&self.shared);
        let Shared { events, followed } = &mut *shared;
        drain(events, followed, &mut |_| {})?;
        Ok(std::mem::take(&mut followed.ended))
    }

    /// How many connections ended without being counted, for there were too many ways.
    pub fn uncounted(&self) -> u64 {
        lock(&self.shared).followed.uncounted
    }

    /// What was carried, by way. Blocks for as long as the kernel lists its connections.
    ///
    /// # Errors
    /// The kernel refuses, or the socket fails.
    pub fn carried(&self) -> Result<HashMap<Way, Carried>, Error> {
        let mut shared = lock(&self.shared);
        Self::list(&mut shared)?;
        Ok(shared.followed.take())
    }

    /// What was carried on these ways until now. The connections that are there are not told of any more.
    ///
    /// # Errors
    /// As [`Accounting::carried`].
    pub fn disown(&self, ways: &dyn Fn(&Way) -> bool) -> Result<HashMap<Way, Carried>, Error> {
        let mut shared = lock(&self.shared);
        Self::list(&mut shared)?;
        Ok(shared.followed.disown(ways))
    }

    fn list(shared: &mut Shared) -> Result<(), Error> {
        let Shared { events, followed } = shared;
        // Events that come while the list is made wait in the socket: who is in it and ends meanwhile is told by them.
        let (listed, complete) = Conntrack::open()?.tracked()?;
        let mut ended = HashSet::new();
        drain(events, followed, &mut |tracked| {
            ended.insert((tracked.id, tracked.way));
        })?;
        followed.listed(listed.into_iter().filter(|tracked| !ended.contains(&(tracked.id, tracked.way))), complete);
        Ok(())
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    fn end(&mut self, tracked: Tracked) {
        let Tracked { id, way, .. } = tracked;
        let before = self.live.remove(&id).filter(|before| before.way == way);
        if self.disowned.get(&id) == Some(&way) {
            self.disowned.remove(&id);
        } else if before.is_some() || self.is_ours(&way) {
            self.add(way, (tracked.packets, tracked.bytes));
            self.restarted(before, &tracked);
        }
    }

    /// By its number alone, whatever address a node port was reached at.
    fn is_ours(&self, Way { protocol, to, .. }: &Way) -> bool {
        let address = Frontend::Address { ip: to.ip(), protocol: *protocol, port: to.port() };
        let node_port = Frontend::NodePort { family: address.family(), protocol: *protocol, port: to.port() };
        self.ours.contains(&address) || self.ours.contains(&node_port)
    }

    fn add(&mut self, way: Way, (packets, bytes): (u64, u64)) {
        if self.ended.len() >= MOST_WAYS && !self.ended.contains_key(&way) {
            self.uncounted += 1;
            return;
        }
        let sum = self.ended.entry(way).or_default();
        *sum = (sum.0.saturating_add(packets), sum.1.saturating_add(bytes));
    }

    /// Somebody had the kernel begin its count anew (`conntrack -L -z`): what it had counted before is told of as ended.
    fn restarted(&mut self, before: Option<Tracked>, now: &Tracked) {
        if let Some(before) = before.filter(|before| before.packets > now.packets) {
            self.add(before.way, (before.packets, before.bytes));
        }
    }

    /// These are there now. Who was and is not, and whose end nobody told, has ended with what it had then.
    fn listed(&mut self, now: impl Iterator<Item = Tracked>, complete: bool) {
        let mut known = std::mem::take(&mut self.live);
        let mut disowned = std::mem::take(&mut self.disowned);
        for tracked in now {
            let before = known.remove(&tracked.id);
            if disowned.get(&tracked.id) == Some(&tracked.way) {
                disowned.remove(&tracked.id);
                self.disowned.insert(tracked.id, tracked.way);
                continue;
            }
            match before.filter(|before| before.way == tracked.way) {
                Some(before) => self.restarted(Some(before), &tracked),
                None => {
                    before.into_iter().for_each(|before| self.add(before.way, (before.packets, before.bytes)));
                    if !self.is_ours(&tracked.way) {
                        continue;
                    }
                }
            }
            self.live.insert(tracked.id, tracked);
        }
        // What an incomplete list lacks may be there.
        if complete {
            known.into_values().for_each(|before| self.add(before.way, (before.packets, before.bytes)));
        } else {
            self.live.extend(known);
            self.disowned.extend(disowned);
        }
    }

    fn take(&mut self) -> HashMap<Way, Carried> {
        let mut all: HashMap<Way, Carried> = HashMap::new();
        for (way, (packets, bytes)) in std::mem::take(&mut self.ended) {
            let carried = all.entry(way).or_default();
            (carried.ended_packets, carried.ended_bytes) = (packets, bytes);
        }
        self.live.values().for_each(|tracked| all.entry(tracked.way).or_default().add(tracked));
        all
    }

    fn disown(&mut self, ways: &dyn Fn(&Way) -> bool) -> HashMap<Way, Carried> {
        let mut all: HashMap<Way, Carried> = HashMap::new();
        for (way, (packets, bytes)) in self.ended.extract_if(|way, _| ways(way)) {
            let carried = all.entry(way).or_default();
            (carried.ended_packets, carried.ended_bytes) = (packets, bytes);
        }
        for (id, tracked) in self.live.extract_if(|_, tracked| ways(&tracked.way)) {
            all.entry(tracked.way).or_default().add(&tracked);
            self.disowned.insert(id, tracked.way);
        }
        all
    }
}

impl Carried {
    /// One more that the kernel has an entry of.
    fn add(&mut self, tracked: &Tracked) {
        self.entries += 1;
        self.active += u64::from(!tracked.over);
        self.packets = self.packets.saturating_add(tracked.packets);
        self.bytes = self.bytes.saturating_add(tracked.bytes);
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

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
#[cfg(test)]
mod tests;
