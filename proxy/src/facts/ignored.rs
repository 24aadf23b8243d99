//! What is left out, why, and what to do about it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::events::{self, Fault, Reason, Regarding};
use crate::proxy::Proxy;
use crate::state::event::Kind;
use crate::state::objects::ObjectName;

/// How many faults are told at most.
const MOST: usize = 1_000;

/// Something that is not served as it is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IgnoredFacts {
    /// The kind of the object: `Service`, `EndpointSlice`, `Node`, `ServiceCIDR`, or `Manifest` for a file.
    pub kind: String,
    /// Its namespace; empty where it has none.
    pub namespace: String,
    /// Its name; for `Manifest` the file.
    pub name: String,
    /// In one word, that of the Event: `Ignored`, `SchedulerFallback`, `FrontendContested`, `FrontendLeftOut` or
    /// `DatapathLimited`.
    pub reason: String,
    /// What part of it, as the log says it.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// What to do about it.
    pub fix: String,
}

/// The answer of `/api/v1/ignored`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IgnoredPage {
    /// How many faults there are.
    pub total: usize,
    /// The first 1,000 of them.
    pub items: Vec<IgnoredFacts>,
}

fn fix(reason: Reason) -> &'static str {
    match reason {
        Reason::SchedulerFallback => {
            "Choose a scheduler that this datapath has in the annotation kubeferry.dev/scheduler, or take the annotation away. \
             Until then the Service has the node's scheduler."
        }
        Reason::FrontendContested => {
            "Give one of the two Services another address or port. Until then the older Service has it, and a ClusterIP goes before \
             other addresses."
        }
        Reason::FrontendLeftOut => {
            "The kernel has no room for it or refuses it: see the reason, and --map-sizes of the eBPF datapath. It is tried again by \
             itself."
        }
        Reason::DatapathLimited => "Change the node or the settings as the reason says; what is not named is served.",
        _ => {
            "Correct the object as the reason says. What is not named of it is served, and the correction takes effect at once."
        }
    }
}

/// What is left out of one Service, 1,000 faults at most, and the first of them that it is worse for.
pub(super) fn of_service<B: Backend>(proxy: &Proxy<B>, name: &ObjectName) -> (Vec<IgnoredFacts>, Option<String>) {
    let (mut items, mut first) = (Vec::new(), None);
    events::each_fault(proxy, &mut |fault| {
        let is_own = matches!(&fault.regarding, Regarding::Object(Kind::Service, of) if of == name);
        if is_own && items.len() < MOST {
            if fault.reason != Reason::SchedulerFallback {
                first.get_or_insert_with(|| fault.why.clone());
            }
            items.push(IgnoredFacts::of(fault, proxy.desired().node().name.as_ref()));
        }
    });
    (items, first)
}

impl IgnoredPage {
    /// What a proxy leaves out now; and the first fault of each Service that has one.
    pub(super) fn take<B: Backend>(proxy: &Proxy<B>) -> (Self, BTreeMap<ObjectName, String>) {
        let (mut page, mut by_service) = (Self::default(), BTreeMap::new());
        events::each_fault(proxy, &mut |fault| {
            page.total += 1;
            if let Regarding::Object(Kind::Service, name) = &fault.regarding
                && fault.reason != Reason::SchedulerFallback
                && !by_service.contains_key(name)
            {
                by_service.insert(name.clone(), fault.why.clone());
            }
            if page.items.len() < MOST {
                page.items.push(IgnoredFacts::of(fault, proxy.desired().node().name.as_ref()));
            }
        });
        (page, by_service)
    }
}

impl IgnoredFacts {
    fn of(fault: Fault, node: &str) -> Self {
        let (kind, namespace, name) = match &fault.regarding {
            Regarding::Node => (Kind::Node, "", node),
            Regarding::Object(kind, name) => (*kind, &*name.namespace, &*name.name),
        };
        Self {
            kind: kind.as_str().to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            reason: fault.reason.as_str().to_owned(),
            what: fault.what,
            why: fault.why,
            fix: fix(fault.reason).to_owned(),
        }
    }
}
