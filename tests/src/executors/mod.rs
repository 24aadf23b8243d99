//! The flow table's executors. Each answers the same rows by its own means: the model (`kubeferry trace`), the rules as the
//! kernel holds them (`kubeferry plan` and `kubeferry run --once`, read back by `nft`), packets through a node with these rules, and packets
//! through a node with the eBPF programs, without XDP and with it, sockets of the node and of its pods with all of these
//! programs and with those of sockets alone, and each program of packets run by itself, without XDP and behind it.

mod auto;
mod ebpf;
mod followed;
mod follower;
pub mod live;
mod manifests;
mod model;
mod nft;
mod packets;
mod socket;
mod test_run;
mod told;
mod uplink;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

pub use followed::{Followed, ServedBy, follow_rows};
pub use follower::Follower;
use live::{Live, Look};
pub use manifests::Source;
pub use model::{Answer, answers};

use crate::flows::{Case, Row};
use crate::world::World;

/// A row, or a whole state, that an executor sees otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disagreement {
    /// The case and its step, counted from 1.
    pub step: String,
    /// `model`, `nft`, `packets`, `ebpf`, `xdp`, `auto`, `socket`, `test-run` or `test-run-xdp`; of a proxy that goes on from step
    /// to step `nft-rows`, `tc-rows`, `xdp-rows` or `all-rows`; or `trace --live`.
    pub executor: &'static str,
    /// The row, with its place, or what else was looked at.
    pub what: String,
    /// What the executor says.
    pub says: String,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, executor, what, says } = self;
        write!(f, "[{executor}] {step} {what}\n          but: {}", says.replace('\n', "\n               "))
    }
}

/// What the last row of each source reached or might have reached: rows `→ same` speak of it.
type Last = HashMap<IpAddr, Vec<SocketAddr>>;

/// What an executor finds wrong: what was looked at, and what it says.
type Findings = Vec<(String, String)>;

/// Runs every step of a case through all executors, and returns everything that disagrees with the rows.
///
/// # Errors
/// The harness itself fails: no binary, no rights, a broken world.
pub fn run(case: &Case) -> Result<Vec<Disagreement>> {
    let world = World::build(case)?;
    let mut prober = packets::Sender::new(world.prober()?);
    let source = Source::new(case)?;
    let mut tc = ebpf::Programs::new(case, ebpf::Hooks::Tc)?;
    let mut xdp = ebpf::Programs::new(case, ebpf::Hooks::TcAndXdp)?;
    let mut auto = auto::Programs::new(case)?;
    let mut alone = test_run::Programs::new(test_run::Hook::Tc);
    let mut uplink = test_run::Programs::new(test_run::Hook::Xdp);
    let (mut model_last, mut packets_last) = (Last::new(), Last::new());
    let mut all = Vec::new();
    for (number, step) in case.steps.iter().enumerate() {
        source.write(step)?;
        let first = number == 0;
        let label = format!("{} step {}", case.name, number + 1);
        let mut add = |executor, findings: Findings| {
            let disagreement = |(what, says)| Disagreement { step: label.clone(), executor, what, says };
            all.extend(findings.into_iter().map(disagreement));
        };
        add("model", model::run(&source, step, &mut model_last)?);
        add("nft", nft::run(&source, &world, first)?);
        add("packets", prober.run(case, step, &mut packets_last));
        add("ebpf", tc.run(case, &source, step)?);
        add("xdp", xdp.run(case, &source, step)?);
        let (all_hooks, sockets_alone) = auto.run(number)?;
        add("auto", all_hooks);
        add("socket", sockets_alone);
        add("test-run", alone.run(case, &tc.world, tc.pins.path(), step)?.0);
        add("test-run-xdp", uplink.run(case, &xdp.world, xdp.pins.path(), step)?.0);
    }
    drop((tc, xdp, auto));
    if case.steps.len() > 1 {
        all.extend(follow(case)?);
    }
    Ok(all)
}

/// Runs every step by proxies that go on from one to the next, until something disagrees.
fn follow(case: &Case) -> Result<Vec<Disagreement>> {
    let mut live = Live::new(case, &live::WORLDS)?;
    for step in &case.steps {
        let disagreements = live.step(step, Look::ALL)?.disagreements;
        if !disagreements.is_empty() {
            return Ok(disagreements);
        }
    }
    Ok(Vec::new())
}

/// Runs a case and panics with every disagreement, row by row.
///
/// # Panics
/// An executor disagrees with a row, or the harness itself fails.
pub fn assert_agreement(case: &Case) {
    let disagreements = run(case).unwrap_or_else(|error| panic!("case {}: {error:#}", case.name));
    let lines: Vec<_> = disagreements.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "case {}: {} disagreements\n{}", case.name, lines.len(), lines.join("\n"));
}

fn named(row: &Row) -> String {
    format!("{}: {row}", row.place)
}
