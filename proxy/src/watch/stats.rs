//! What the sources count: read by `/metrics` and `kubeferry status`.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

use jiff::Timestamp;

use crate::metrics::RestClient;
use crate::state::event::Kind;

/// Counters of every kind that is watched; shared between the watches and whoever shows them.
#[derive(Default, Debug)]
pub struct WatchStats {
    kinds: [KindStats; 5],
    requests: RestClient,
}

/// Counters of one kind.
#[derive(Default, Debug)]
pub struct KindStats {
    errors: AtomicU64,
    lists: AtomicU64,
    events: AtomicU64,
    last_event: AtomicI64,
    listed: AtomicBool,
}

impl WatchStats {
    /// The kinds, in the order of output. A folder of manifests counts its files' faults under [`Kind::Manifest`].
    pub const KINDS: [Kind; 5] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr, Kind::Manifest];

    /// Requests to the API server.
    pub fn requests(&self) -> &RestClient {
        &self.requests
    }

    /// The counters of one kind.
    pub fn of(&self, kind: Kind) -> &KindStats {
        let [service, slice, node, cidr, manifest] = &self.kinds;
        match kind {
            Kind::Service => service,
            Kind::EndpointSlice => slice,
            Kind::Node => node,
            Kind::ServiceCidr => cidr,
            Kind::Manifest => manifest,
        }
    }
}

impl KindStats {
    /// Failed lists and watches; of manifests, files that could not be read.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    /// Full lists that were completed; every one after the first is a relist.
    pub fn lists(&self) -> u64 {
        self.lists.load(Relaxed)
    }

    /// Objects that were received, listed or watched.
    pub fn events(&self) -> u64 {
        self.events.load(Relaxed)
    }

    /// When the source was last heard of: an object, a bookmark or a completed list.
    pub fn last_event(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.last_event.load(Relaxed)).ok().filter(|time| *time != Timestamp::UNIX_EPOCH)
    }

    /// Whether everything of this kind has been reported once.
    pub fn is_listed(&self) -> bool {
        self.listed.load(Relaxed)
    }

    pub(super) fn error(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    pub(super) fn event(&self) {
        self.events.fetch_add(1, Relaxed);
        self.heard();
    }

    pub(super) fn heard(&self) {
        self.last_event.store(Timestamp::now().as_millisecond(), Relaxed);
    }

    pub(super) fn list(&self) {
        self.lists.fetch_add(1, Relaxed);
        self.listed.store(true, Relaxed);
        self.heard();
    }
}
