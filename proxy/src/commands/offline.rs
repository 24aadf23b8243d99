//! The wanted state without a kernel: from the same sources and settings as `run`, for `plan` and `trace`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::commands::output;
use crate::desired::Desired;
use crate::desired::node_view::NodeView;
use crate::settings::Settings;
use crate::state::State;
use crate::state::event::Event;
use crate::watch;

/// Reads the source once. The node's addresses come from its Node object and `--node-addresses`. What is left out of the
/// objects is said on standard error.
///
/// # Errors
/// The source cannot be read.
pub async fn desired(settings: &Settings) -> anyhow::Result<Desired> {
    on_node(settings, None).await
}

/// As [`desired`], for the node whose interfaces hold `addresses`, as `run` sees it.
///
/// # Errors
/// The source cannot be read.
pub async fn on_node(settings: &Settings, addresses: Option<Vec<IpAddr>>) -> anyhow::Result<Desired> {
    let events = watch::load_once(settings).await?;
    let state = state_of(events);
    let mut held: BTreeSet<_> = settings.node_addresses.iter().copied().collect();
    match addresses {
        Some(addresses) => held.extend(addresses),
        None => held.extend(state.node().into_iter().flat_map(|node| &node.addresses)),
    }
    let view = NodeView::new(settings.node_name.clone(), &settings.datapath, state.node(), &held);
    let desired = Desired::of(&state, view);
    let unscheduled = desired.unscheduled().cloned();
    for ignored in state.faults().cloned().chain(desired.conflicts()).chain(unscheduled) {
        output::complain(&format!("ignored: {ignored}"));
    }
    Ok(desired)
}

fn state_of(events: Vec<Event>) -> State {
    let mut state = State::default();
    for event in events {
        state.apply(event);
    }
    state
}
