//! The rows of nftables, as they are in the kernel, beside those that a fresh start would write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use kubeferry::backend::nftables::chains::{LOCAL_OFFSET, List};
use kubeferry::backend::nftables::draw::Turn;
use kubeferry::backend::nftables::kernel::Kernel;
use kubeferry::backend::nftables::netfilter::Netfilter;
use kubeferry::backend::nftables::nft::{Nft, TIMEOUT};
use kubeferry::backend::nftables::reconciler::Reconciler;
use kubeferry::backend::nftables::rows::{Key, Part, Rows, Value, Wanted};
use kubeferry::desired::Desired;
use kubeferry::scheduler::Scheduler;
use kubeferry::settings::Settings;
use tokio::runtime::Handle;

use super::difference;
use super::proxy::Driven;

impl Driven for Reconciler<Netfilter> {
    fn open(_: &Settings, handle: &Handle) -> Result<Self> {
        let mut kernel = kernel(handle);
        kernel.read().context("cannot read the kernel's tables")?;
        Ok(Self::new(kernel))
    }

    fn strange(_: &Settings, handle: &Handle, fresh: &Desired) -> Result<Vec<String>> {
        let mut kernel = kernel(handle);
        let Some(found) = kernel.read()? else { return Ok(vec!["there is no table".to_owned()]) };
        let wanted = Wanted::all(fresh, &Rows::new());
        let mut strange = difference(&lines(&wanted.rows, fresh), &lines(&found.rows, fresh));
        if found.strange > 0 {
            strange.push(format!("+ {} rows that nobody would write", found.strange));
        }
        let altered = kernel.altered(&wanted.chains, fresh.node())?;
        strange.extend(altered.into_iter().map(|chain| format!("- chain {chain}")));
        Ok(strange)
    }
}

fn kernel(handle: &Handle) -> Netfilter {
    Netfilter::new(Nft::new("nft", TIMEOUT), handle.clone())
}

/// Rows as text. Lists of endpoints are one line each, in the order of their slots where that has a meaning.
fn lines(rows: &Rows, fresh: &Desired) -> BTreeSet<String> {
    let schedulers: BTreeMap<Turn, Scheduler> = fresh
        .targets()
        .map(|(_, target, _)| (Turn::of(&target.name, target.family), target.schedule.scheduler))
        .collect();
    let mut lists: BTreeMap<(String, bool), Vec<(u32, SocketAddr)>> = BTreeMap::new();
    let mut lines = BTreeSet::new();
    for (key, value) in rows {
        let (of, slot, scheduler) = match key {
            Key::Of(frontend, Part::Endpoint(slot)) => {
                let scheduler = fresh.holder(frontend).map(|claim| claim.target.schedule.scheduler);
                (format!("endpoints of {frontend}"), *slot, scheduler)
            }
            Key::Turn(turn, slot) => (format!("{turn:?}"), *slot, schedulers.get(turn).copied()),
            _ => {
                lines.insert(format!("{key:?}: {value:?}"));
                continue;
            }
        };
        let Value::Endpoint(endpoint) = value else {
            lines.insert(format!("{key:?}: {value:?}"));
            continue;
        };
        let (list, first) = match Turn::list(slot) {
            List::Cluster => ("Cluster", 0),
            List::Local => ("Local", LOCAL_OFFSET),
        };
        let in_order = !matches!(scheduler, Some(Scheduler::Random | Scheduler::Rr));
        lists.entry((format!("{list} {of}"), in_order)).or_default().push((slot - first, *endpoint));
    }
    for ((name, in_order), slots) in lists {
        let without_gap = slots.iter().map(|(slot, _)| *slot).eq(0..u32::try_from(slots.len()).unwrap_or(u32::MAX));
        let mut endpoints: Vec<_> = slots.iter().map(|(_, endpoint)| endpoint.to_string()).collect();
        if !in_order {
            endpoints.sort();
        }
        match without_gap {
            true => lines.insert(format!("{name}: {}", endpoints.join(" "))),
            false => lines.insert(format!("{name}, with gaps: {slots:?}")),
        };
    }
    lines
}
