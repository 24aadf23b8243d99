//! What the tables of scheduler `mh` cost in rows: each frontend of a service port has its table's slots as rows of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::desired::Desired;
use crate::desired::target::Target;
use crate::scheduler::Scheduler;

use super::rows::{Key, Part, Rows};

/// The rows of one service port with `mh`, in one family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Maglev {
    /// `namespace/name:port`.
    pub service: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The size of a table.
    pub table_size: u32,
    /// At how many frontends it is reached.
    pub frontends: usize,
    /// Rows of endpoints for all of them. Where there is one endpoint no table is needed, and it is one row.
    pub rows: usize,
}

/// What each service port with `mh` costs among these rows.
pub fn maglev(desired: &Desired, rows: &Rows) -> Vec<Maglev> {
    let mut costs: BTreeMap<_, (Arc<Target>, usize, usize)> = BTreeMap::new();
    for frontend in desired.frontends() {
        let Some(target) = desired.holder(&frontend).map(|claim| claim.target) else { continue };
        if target.schedule.scheduler == Scheduler::Mh {
            let slots = [0, u32::MAX].map(|slot| Key::Of(frontend, Part::Endpoint(slot)));
            let (_, frontends, count) =
                costs.entry((&target.name, target.family)).or_insert_with(|| (target.clone(), 0, 0));
            *frontends += 1;
            *count += rows.range(slots[0]..=slots[1]).count();
        }
    }
    let cost = |(target, frontends, rows): (Arc<Target>, usize, usize)| Maglev {
        service: target.name.to_string(),
        protocol: target.name.protocol.to_string(),
        family: target.family.as_str().to_owned(),
        table_size: target.schedule.table_size,
        frontends,
        rows,
    };
    costs.into_values().map(cost).collect()
}

/// The same as comments of nft's language; empty where no service port has `mh`.
pub fn comments(costs: &[Maglev]) -> String {
    let line = |cost: &Maglev| {
        let Maglev { service, protocol, family, table_size, frontends, rows } = cost;
        format!(
            "# mh: {service} ({protocol}, {family}): a table of {table_size} slots at {frontends} frontend{}: {rows} rows\n",
            if *frontends == 1 { "" } else { "s" },
        )
    };
    costs.iter().map(line).collect()
}

/// The same in a line; `None` where no service port has `mh`.
pub fn summary(costs: &[Maglev]) -> Option<String> {
    let rows: usize = costs.iter().map(|cost| cost.rows).sum();
    let frontends: usize = costs.iter().map(|cost| cost.frontends).sum();
    (!costs.is_empty()).then(|| format!("{rows} rows for {} service ports at {frontends} frontends", costs.len()))
}
