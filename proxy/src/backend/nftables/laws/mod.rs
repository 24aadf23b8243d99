//! Laws of the way from events to rows, tried with generated histories over a kernel in memory.

pub(crate) mod cluster;
mod faults;
mod following;
mod proxy;
mod rows;
mod slow_starts;
mod stale;
mod tampering;

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::desired::node_view::NodeView;
use crate::desired::target::Frontend;
use crate::desired::{Desired, Touched};
use crate::scheduler::Scheduler;
use crate::scheduler::slots::slots;
use crate::settings::DatapathSettings;
use crate::state::State;
use crate::state::event::Event;

use super::chains::LOCAL_OFFSET;
use super::draw::Turn;
use super::fake::{Fake, chain_rules};
use super::kernel::KernelError;
use super::reconciler::{Reconciler, Report};
use super::rows::{Key, Part, Rows, Value, Wanted};

/// The stages from events to rows.
struct World {
    settings: DatapathSettings,
    held: BTreeSet<IpAddr>,
    state: State,
    desired: Desired,
    reconciler: Reconciler<Fake>,
}

impl World {
    fn new(settings: DatapathSettings) -> Self {
        let held = ["192.168.0.2", "192.168.0.3", "fd00:1::2"].map(|ip| ip.parse().unwrap()).into();
        let desired = Desired::new(NodeView::new("here".into(), &settings, None, &held));
        let reconciler = Reconciler::new(Fake::default());
        Self { settings, held, state: State::default(), desired, reconciler }
    }

    fn view(&self) -> NodeView {
        NodeView::new("here".into(), &self.settings, self.state.node(), &self.held)
    }

    /// Takes an event in and follows it as far as `desired`.
    fn follow(&mut self, event: Event) -> Touched {
        self.state.apply(event);
        let changes = self.state.take_changes();
        self.desired.update(&self.state, &changes, self.view())
    }

    fn step(&mut self, event: Event) -> Result<Report, KernelError> {
        let touched = self.follow(event);
        self.reconciler.sync(&self.desired, touched)
    }

    /// The rows of this cluster, computed anew; endpoints keep the slots that they have.
    fn anew(&self, applied: &Rows) -> Wanted {
        Wanted::all(&Desired::of(&self.state, self.view()), applied)
    }

    fn fake(&mut self) -> &mut Fake {
        self.reconciler.kernel()
    }

    /// A frontend's lists stand in slots without a gap, as the scheduler lays them out; those of a turn once for the
    /// service port, others for the frontend itself.
    fn assert_slots(&self, rows: &Rows, frontend: Frontend) {
        let target = self.desired.holder(&frontend).unwrap().target;
        let lists = &target.endpoints;
        let turn = Turn::of(&target.name, target.family);
        for (offset, list, weights) in
            [(0, &lists.cluster, &lists.cluster_weights), (LOCAL_OFFSET, &lists.local, &lists.local_weights)]
        {
            let slots = slots(&target.schedule, list, weights);
            let mut wanted: Vec<_> = slots.iter().map(|index| Value::Endpoint(list[*index as usize])).collect();
            if wanted.iter().all(|endpoint| *endpoint == wanted[0]) {
                wanted.truncate(1);
            }
            let in_turn = matches!(target.schedule.scheduler, Scheduler::Rr | Scheduler::Wrr) && wanted.len() > 1;
            let at_frontend = |slot| Key::Of(frontend, Part::Endpoint(slot));
            let at_turn = |slot| Key::Turn(turn, slot);
            let all = |key: &dyn Fn(u32) -> Key| {
                let mut found = Vec::new();
                for (slot, (found_key, value)) in (offset..).zip(rows.range(key(offset)..key(offset + LOCAL_OFFSET))) {
                    assert_eq!(*found_key, key(slot));
                    found.push(value.clone());
                }
                found
            };
            let (mut found, others) =
                if in_turn { (all(&at_turn), all(&at_frontend)) } else { (all(&at_frontend), all(&at_turn)) };
            assert_eq!(others, vec![], "{frontend}");
            if matches!(target.schedule.scheduler, Scheduler::Random | Scheduler::Rr) {
                found.sort();
                wanted.sort();
            }
            assert!(found.is_empty() || found == wanted, "{frontend}: {found:?}, not {wanted:?}");
        }
    }

    /// The kernel holds what is wanted, by the fewest words: slots aside, everything is compared.
    fn assert_in_force(&mut self) {
        let rows = self.fake().rows();
        let wanted = self.anew(&rows);
        assert_eq!(rows, wanted.rows);
        for (name, chain) in &wanted.chains {
            let rules = chain_rules(chain, self.desired.node());
            assert_eq!(self.fake().rules(name), rules.as_ref(), "{name}");
        }
        assert_eq!(self.fake().complaints, Vec::<String>::new());
        for frontend in self.desired.frontends() {
            self.assert_slots(&rows, frontend);
        }
        let mut counted = std::collections::BTreeMap::new();
        for key in rows.keys() {
            *counted.entry(super::maps::map_of(key)).or_default() += 1;
        }
        let counts = self.reconciler.rows().iter().filter(|(_, count)| **count > 0);
        assert_eq!(
            counts.map(|(map, count)| (*map, *count)).collect::<std::collections::BTreeMap<_, usize>>(),
            counted
        );
    }
}
