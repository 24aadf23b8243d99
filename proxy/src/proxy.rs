//! One node's proxy: events in, rows out. Owns every stage between the source of objects and the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::backend::{Backend, Counts, Report};
use crate::conntrack::{Cleaned, UdpService};
use crate::desired::limits;
use crate::desired::node_view::NodeView;
use crate::desired::target::Frontend;
use crate::desired::trace::{Flow, Trace};
use crate::desired::{Desired, Touched};
use crate::portions::Portions;
use crate::settings::{DetectLocal, Settings, Source};
use crate::state::event::{Event, Kind};
use crate::state::objects::{Ignored, ObjectName, Service};
use crate::state::{Changes, State};
use crate::traffic::Counting;
use crate::udp;
use crate::written::Written;

/// How long the first sync waits for our Node (its addresses and zone) after Services and EndpointSlices are there.
pub const NODE_WAIT: Duration = Duration::from_secs(30);

/// A proxy over some backend.
#[derive(Debug)]
pub struct Proxy<B> {
    settings: Settings,
    state: State,
    desired: Desired,
    backend: B,
    held: BTreeSet<IpAddr>,
    /// Changes that are not in force yet: kept over failed syncs.
    pending: Changes,
    /// Changes that later syncs take.
    portions: Portions,
    touched: Touched,
    /// Whose UDP flows these changes may make stale.
    stale: BTreeSet<ObjectName>,
    written: Written,
    synced: bool,
    failed: bool,
    /// What the clock of slow starts counts from.
    started: Instant,
    limits: BTreeMap<String, String>,
    /// How often what is ignored may have changed, but for the faults of objects.
    ignored_changes: u64,
}

/// What one sync did.
#[derive(Debug)]
pub struct Synced {
    /// What the backend did.
    pub report: Report,
    /// The changes that are now in force.
    pub changes: Changes,
    /// The Services whose UDP flows the changes may have made stale.
    pub stale: BTreeSet<ObjectName>,
    /// How long it took.
    pub took: Duration,
}

impl<B: Backend> Proxy<B> {
    /// A proxy that knows nothing yet. `held` are the addresses of the node's interfaces.
    pub fn new(settings: Settings, backend: B, held: BTreeSet<IpAddr>) -> Self {
        let desired = Desired::new(NodeView::new(settings.node_name.clone(), &settings.datapath, None, &held));
        Self {
            settings,
            state: State::default(),
            desired,
            backend,
            held,
            pending: Changes::default(),
            portions: Portions::default(),
            touched: Touched::default(),
            stale: BTreeSet::new(),
            written: Written::default(),
            synced: false,
            failed: false,
            started: Instant::now(),
            limits: BTreeMap::new(),
            ignored_changes: 0,
        }
    }

    /// Takes an event in.
    pub fn apply(&mut self, event: Event) {
        self.state.apply(event);
    }

    /// The interfaces hold other addresses now.
    pub fn addresses(&mut self, held: BTreeSet<IpAddr>) {
        self.held = held;
    }

    /// Other settings are to be in force: the next sync brings what they change.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Whether the first sync may be made: Services and EndpointSlices are complete, and the Node (whose addresses and
    /// pod ranges decide rules) and the ServiceCIDRs are known, or `waited` was long enough.
    pub fn is_ready(&self, waited: Duration) -> bool {
        // A folder may be without one. Without its addresses, node ports would answer at all that the machine has.
        let lacks_node = matches!(self.settings.source, Source::Api { .. }) && self.state.node().is_none();
        let settled = self.state.is_listed(Kind::Node) && !lacks_node && self.state.is_listed(Kind::ServiceCidr);
        self.state.is_complete() && (settled || waited >= NODE_WAIT) && !self.lacks_ranges()
    }

    /// Whether pods cannot be told apart, because the Node has none of the pod ranges that `NodeCIDR` takes, or is unknown.
    pub fn lacks_ranges(&self) -> bool {
        self.settings.datapath.detect_local == DetectLocal::NodeCidr
            && self.state.node().is_none_or(|node| node.pod_cidrs.is_empty())
    }

    /// Whether something waits to be brought into force.
    pub fn is_dirty(&self) -> bool {
        !self.synced
            || self.failed
            || !self.pending.is_empty()
            || !self.portions.later().is_empty()
            || !self.state.changes().is_empty()
            || self.view() != *self.desired.node()
            || self.next_tick().is_some_and(|left| left.is_zero())
    }

    /// Lets time pass for endpoints that start slowly.
    #[cfg(test)]
    pub fn pass(&mut self, time: Duration) {
        self.started -= time;
    }

    /// How long until weights of endpoints that start slowly change; `None`: there are none.
    pub fn next_tick(&self) -> Option<Duration> {
        self.desired.next_tick().map(|next| next.saturating_sub(self.started.elapsed()))
    }

    fn view(&self) -> NodeView {
        let mut held = self.held.clone();
        held.extend(&self.settings.node_addresses);
        NodeView::new(self.settings.node_name.clone(), &self.settings.datapath, self.state.node(), &held)
    }

    /// Brings what changed into force: everything, but of Services that are costly a portion. What fails is tried whole at the next
    /// call, and meanwhile no more of those are taken.
    ///
    /// # Errors
    /// The kernel failed.
    pub fn sync(&mut self) -> Result<Synced, B::Error> {
        self.ignored_changes += 1;
        let start = Instant::now();
        let mut changes = self.state.take_changes();
        // Weights that move on are one more change of their Service, which waits for its turn like others.
        let mut steps = self.desired.tick(start - self.started);
        steps.retain(|name| !changes.services.contains(name) && !self.portions.later().services.contains(name));
        changes.services.extend(steps.iter().cloned());
        // What is in force when we come may have rows of all.
        let view = self.view();
        let at_once = self.backend.at_once();
        // Where another view has everything looked at anew, nothing is put off.
        let is_whole = !self.synced || at_once == usize::MAX || !view.gives_same_targets(self.desired.node());
        let room = if self.failed { 0 } else { at_once };
        let unnoticed = self.backend.unnoticed();
        let work = |service: &Service| limits::work(service, self.state.slices_of(&service.name));
        let cost = |name: &ObjectName| match self.state.services().get(name) {
            Some(service) if !is_whole => match self.backend.cost(&self.desired, service, work(service)) {
                0 => 0,
                // What it gives up is for others now. And what the sync that failed was to bring may have failed for what it was then.
                _ if self.pending.services.contains(name) || self.desired.gives_up(service) => 0,
                cost => cost,
            },
            _ => 0,
        };
        let mut changes = self.portions.next(changes, (unnoticed, room), cost);
        steps.retain(|name| changes.services.remove(name));
        let updated = self.desired.update(&self.state, &changes, view);
        self.stale.extend(udp::holders(&self.desired, &updated));
        self.touched.merge(updated);
        // Endpoints that start slowly serve as before: a step makes no flow stale.
        self.touched.merge(self.desired.step(&self.state, &steps));
        self.pending.merge(changes);
        self.failed = true;
        let report = self.backend.sync(&self.desired, self.touched.clone())?;
        self.failed = false;
        let touched = std::mem::take(&mut self.touched);
        if report.changes > 0 {
            self.written.note(touched, report.full, Timestamp::now());
        }
        self.synced = true;
        let (changes, stale) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.stale));
        Ok(Synced { report, changes, stale, took: start.elapsed() })
    }

    /// Says where a new connection goes, and whether rows for it were written a moment ago, or are being written.
    pub fn trace(&self, flow: &Flow) -> Trace {
        let now = Timestamp::now();
        // Before the first sync, what is in force is an earlier process'.
        let waits = !self.synced || self.failed && Written::concerns(&self.touched, flow);
        let changed = if waits { Some(now) } else { self.written.when(flow, now) };
        Trace { changed, ..self.desired.trace(flow) }
    }

    /// Looks for drift and repairs it: while syncs fail, of what carries packets alone. Does nothing before the first sync.
    ///
    /// # Errors
    /// The kernel failed.
    pub fn check(&mut self) -> Result<Option<Report>, B::Error> {
        self.ignored_changes += 1;
        match (self.synced, self.failed) {
            (false, _) => Ok(None),
            // What is wanted and not in force would be taken for drift.
            (true, true) => self.backend.check_hooks(),
            (true, false) => self.backend.check(&self.desired),
        }
    }

    /// Reads the counters of every service port's endpoints. Blocks.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn look(&mut self) -> Result<Vec<Counts>, B::Error> {
        self.ignored_changes += 1;
        self.backend.look(&self.desired)
    }

    /// Which of these numbers are counted.
    pub fn counting(&self) -> Counting {
        self.backend.counting(&self.desired)
    }

    /// Whether the last sync failed: what it should have done waits for the next.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// How many Services have changes that are not in force yet, and how many of them changes of their slices.
    pub fn waiting(&self) -> (usize, usize) {
        let (kept, later, new) = (&self.pending, self.portions.later(), self.state.changes());
        let count = |of: fn(&Changes) -> &BTreeSet<ObjectName>| match of(kept).is_empty() && of(later).is_empty() {
            true => of(new).len(),
            false => of(kept).iter().chain(of(later)).chain(of(new)).collect::<BTreeSet<_>>().len(),
        };
        (count(|changes| &changes.services), count(|changes| &changes.endpoints_of))
    }

    /// Whether changes that concern this Service's UDP flows wait for a sync after one that failed: that one tells of them
    /// ([`Synced::stale`]).
    pub fn waits(&self, name: &ObjectName) -> bool {
        let is_late = self.portions.later().services.contains(name);
        self.failed && (self.stale.contains(name) || self.pending.services.contains(name) || is_late)
    }

    /// Whether a sync has succeeded.
    pub fn has_synced(&self) -> bool {
        self.synced
    }

    /// The Services whose UDP flows a repair may have left behind: clients sent while rows were missing.
    pub fn after_repair(&self) -> BTreeSet<ObjectName> {
        udp::all(&self.desired)
    }

    /// The UDP ports of these Services, for finding stale entries of connection tracking.
    pub fn udp_services(&self, names: &BTreeSet<ObjectName>) -> Vec<UdpService> {
        udp::services(&self.desired, names)
    }

    /// Deletes the stale UDP flows of these Services. Blocks.
    ///
    /// # Errors
    /// As [`Backend::clean_udp`].
    pub fn clean_udp(&mut self, names: &BTreeSet<ObjectName>) -> Result<Cleaned, B::Error> {
        self.ignored_changes += 1;
        let services = self.udp_services(names);
        self.backend.clean_udp(&services)
    }

    /// Has connections to Services begin anew whose first packet went by while rows were missing. How many. Blocks.
    ///
    /// # Errors
    /// As [`Backend::forget_unanswered`].
    pub fn forget_unanswered(&mut self) -> Result<usize, B::Error> {
        let address = |frontend| match frontend {
            Frontend::Address { ip, protocol, port } => Some((protocol, SocketAddr::new(ip, port))),
            // Whoever asks the node itself is refused.
            Frontend::NodePort { .. } => None,
        };
        self.backend.forget_unanswered(&self.desired.frontends().filter_map(address).collect())
    }

    /// What of the objects is not served at the moment, and why.
    pub fn ignored(&self) -> Vec<Ignored> {
        let mut ignored: Vec<Ignored> = self.state.faults().cloned().collect();
        ignored.extend(self.desired.conflicts());
        ignored.extend(self.desired.unscheduled().cloned());
        ignored.extend(self.backend.refused());
        ignored.extend(self.limits());
        ignored.sort();
        ignored
    }

    /// A number that is another one whenever [`Proxy::ignored`] may be: wherever the datapath or what is wanted has been at work.
    pub fn ignored_changes(&self) -> u64 {
        self.ignored_changes + self.state.fault_changes()
    }

    /// Something of the node or of the settings is not as it was asked for, and why; `None`: it is again.
    pub fn limit(&mut self, what: &str, why: Option<String>) {
        self.ignored_changes += 1;
        match why {
            Some(why) => drop(self.limits.insert(what.to_owned(), why)),
            None => drop(self.limits.remove(what)),
        }
    }

    /// What [`Proxy::limit`] was told.
    pub fn limits(&self) -> impl Iterator<Item = Ignored> {
        self.limits.iter().map(|(what, why)| Ignored { what: what.clone(), why: why.clone() })
    }

    /// The cluster as the events tell it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What is wanted.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The backend, which the proxy alone gives rows to.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The same, for tests to make it fail.
    #[cfg(test)]
    pub(crate) fn backend_mut(&mut self) -> &mut B {
        self.ignored_changes += 1;
        &mut self.backend
    }

    /// Rows in force, by map.
    pub fn rows(&self) -> &BTreeMap<&'static str, usize> {
        self.backend.rows()
    }
}
