//! What the threads of a server share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::fault::Faults;
use super::resource::Resource;
use super::store::Store;

/// What a request wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// A list, or a page of one.
    List,
    /// A watch.
    Watch,
    /// One object.
    Get,
    /// A change.
    Write,
}

/// A request that was received, whatever became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// What it wants.
    pub verb: Verb,
    /// Of which kind.
    pub resource: Resource,
    /// The path without the query.
    pub path: String,
    /// The query's parameters, decoded.
    pub query: BTreeMap<String, String>,
}

#[derive(Debug)]
pub(super) struct State {
    pub store: Store,
    pub faults: Faults,
    pub requests: Vec<Request>,
    /// Every request, whatever it is about: its method, its path, and whether it is a watch.
    pub received: BTreeSet<(String, String, bool)>,
    /// Lists of these wait.
    pub held: BTreeSet<Resource>,
    /// Kinds that are not served at all.
    pub absent: BTreeSet<Resource>,
    pub streaming_lists: bool,
    /// A version that is gone is told inside a watch, not by the code of the answer.
    pub gone_inside: bool,
    pub token: Option<String>,
    pub delay: Duration,
    /// Connections are accepted.
    pub is_up: bool,
    /// The socket while it listens; `is_up` tells what is wanted.
    pub listener: Option<Arc<TcpListener>>,
    pub has_ended: bool,
    /// Grows whenever all connections are closed.
    pub cuts: u64,
    pub connections: BTreeMap<u64, TcpStream>,
    pub last_connection: u64,
}

/// The state and the news of its changes.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    pub fn new(token: Option<String>, listener: Arc<TcpListener>) -> Self {
        let state = State {
            store: Store::new(),
            faults: Faults::default(),
            requests: Vec::new(),
            received: BTreeSet::new(),
            held: BTreeSet::new(),
            absent: BTreeSet::new(),
            streaming_lists: true,
            gone_inside: false,
            token,
            delay: Duration::ZERO,
            is_up: true,
            listener: Some(listener),
            has_ended: false,
            cuts: 0,
            connections: BTreeMap::new(),
            last_connection: 0,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The state, for reading.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state; who waits is told.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Tells who waits of a change that was made under [`Shared::lock`].
    pub fn tell(&self) {
        self.changed.notify_all();
    }

    /// Waits for a change, `longest` at most.
    pub fn wait<'a>(&self, state: MutexGuard<'a, State>, longest: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, longest).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    /// Closes every connection.
    pub fn cut(&mut self) {
        self.cuts += 1;
        for stream in self.connections.values() {
            // One that has ended by itself is as good.
            drop(stream.shutdown(Shutdown::Both));
        }
        self.connections.clear();
    }

    /// Closes every connection and has the socket closed that accepts them.
    pub fn go_down(&mut self) {
        self.is_up = false;
        self.cut();
        if let Some(listener) = &self.listener {
            // Linux wakes the thread in accept(2). A socket that is closed already is as good.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
    }
}
