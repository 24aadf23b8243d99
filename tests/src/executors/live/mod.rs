//! Proxies that go on from step to step, one for each datapath: what a change comes to, and not only what a start comes to.
//! After each step, what they have written has to be what a fresh start would write, and packets, programs and sockets have to
//! go where the rows say.

mod maps;
mod proxy;
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use kubeferry::backend::ebpf::reconciler::Ebpf;
use kubeferry::backend::nftables::netfilter::Netfilter;
use kubeferry::backend::nftables::reconciler::Reconciler;

use super::{Disagreement, Findings, Last, Source, auto, ebpf, model, packets, test_run};
use crate::bpf::pinned::Pinned;
use crate::flows::{Case, Row, Step};
use crate::world::World;
use proxy::Driver;
pub(super) use proxy::{flow, fresh, settings};

/// The worlds: each a node with a proxy.
pub const WORLDS: [&str; 4] = ["nftables", "tc", "xdp", "all hooks"];

/// How much of a step is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// Packets and sockets are sent for this one of so many rows; 0: none are.
    pub packets: usize,
    /// The proxies look for drift, and the hook of sockets is looked at by itself.
    pub closely: bool,
}

impl Look {
    /// At everything.
    pub const ALL: Self = Self { packets: 1, closely: true };
}

/// What came of a step.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Everything that disagrees with the rows, or with a fresh start.
    pub disagreements: Vec<Disagreement>,
    /// How many rows each executor was asked about.
    pub asked: BTreeMap<&'static str, usize>,
}

/// What an executor found, and how many rows it was asked about.
type Found = Vec<(&'static str, Findings, usize)>;

/// The proxies of a case, and what they serve.
#[derive(Debug)]
pub struct Live {
    nft: Option<Nftables>,
    tc: Option<Programs>,
    xdp: Option<Programs>,
    auto: Option<All>,
    source: Source,
    case: Case,
    step: usize,
}

// In each of these the proxy ends before what it serves.

#[derive(Debug)]
struct Nftables {
    driver: Driver,
    sender: packets::Sender,
    last: Last,
    world: World,
}

#[derive(Debug)]
struct Programs {
    driver: Driver,
    alone: test_run::Programs,
    programs: ebpf::Programs,
    names: [&'static str; 3],
}

#[derive(Debug)]
struct All {
    driver: Driver,
    programs: auto::Programs,
}

impl Live {
    /// Builds the worlds of a case that are named, each with a proxy that has seen nothing yet.
    ///
    /// # Errors
    /// A right or a tool is missing.
    pub fn new(case: &Case, worlds: &[&str]) -> Result<Self> {
        let source = Source::new(case)?;
        let has = |world: &str| worlds.contains(&world);
        let nft = || -> Result<_> {
            let world = World::build(case)?;
            let driver = Driver::start::<Reconciler<Netfilter>>(&world.node, settings(&source.command("run")?)?)?;
            Ok(Nftables { driver, sender: packets::Sender::new(world.prober()?), last: Last::new(), world })
        };
        let programs = |hooks, hook, names| -> Result<_> {
            let programs = ebpf::Programs::new(case, hooks)?;
            let driver = Driver::start::<Ebpf>(&programs.world.node, settings(&programs.command(&source)?)?)?;
            Ok(Programs { driver, alone: test_run::Programs::new(hook), programs, names })
        };
        let tc = || programs(ebpf::Hooks::Tc, test_run::Hook::Tc, ["tc-rows", "test-run", "ebpf"]);
        let xdp = || programs(ebpf::Hooks::TcAndXdp, test_run::Hook::Xdp, ["xdp-rows", "test-run-xdp", "xdp"]);
        let auto = || -> Result<_> {
            let programs = auto::Programs::new(case)?;
            let driver = Driver::start::<Ebpf>(programs.node(), settings(&programs.command()?)?)?;
            Ok(All { driver, programs })
        };
        Ok(Self {
            nft: has(WORLDS[0]).then(nft).transpose()?,
            tc: has(WORLDS[1]).then(tc).transpose()?,
            xdp: has(WORLDS[2]).then(xdp).transpose()?,
            auto: has(WORLDS[3]).then(auto).transpose()?,
            source,
            case: case.clone(),
            step: 0,
        })
    }

    /// Asks the model what becomes of the rows of a step, and has them expect it.
    ///
    /// # Errors
    /// The objects cannot be read.
    pub fn expect(&self, step: &mut Step) -> Result<()> {
        self.source.write(step)?;
        model::expect(&self.source, step)
    }

    /// Takes every frontend out of the kernel behind the proxies' backs: for tests of what is noticed.
    ///
    /// # Errors
    /// There is none.
    pub fn tamper(&self) -> Result<()> {
        if let Some(nft) = &self.nft {
            for map in ["frontends4", "frontends6", "nodeports4", "nodeports6"] {
                nft.world.node.nft(&["flush", "map", "inet", "kubeferry", map], "")?;
            }
        }
        let pins = [&self.tc, &self.xdp].into_iter().flatten().map(|programs| programs.programs.pins.path());
        for pins in pins.chain(self.auto.iter().map(|auto| auto.programs.pins())) {
            Pinned::open(pins)?.delete_frontends()?;
        }
        Ok(())
    }

    /// Brings the next step of the case into force, with these rows, and looks at what comes of it.
    ///
    /// # Errors
    /// The harness itself fails, or a proxy cannot be opened.
    pub fn step(&mut self, step: &Step, look: Look) -> Result<Outcome> {
        self.source.write(step)?;
        let (number, case) = (self.step, &self.case);
        self.step += 1;
        let sent = Step { rows: look.sample(number, &step.rows), ..step.clone() };
        let (nft, tc, xdp, auto) = (&mut self.nft, &mut self.tc, &mut self.xdp, &mut self.auto);
        let found = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            if let Some(nft) = nft {
                threads.push(scope.spawn(|| nft.step(case, step, &sent, look).context("in the world of nftables")));
            }
            for programs in [tc, xdp].into_iter().flatten() {
                let (step, sent) = (step, &sent);
                threads.push(scope.spawn(move || programs.step(case, step, sent, look).context(programs.names[2])));
            }
            if let Some(auto) = auto {
                threads.push(scope.spawn(|| auto.step(number, step, &sent, look).context("in the world of all hooks")));
            }
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Found>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let mut outcome = Outcome::default();
        let label = format!("{} step {}", case.name, number + 1);
        for (executor, findings, rows) in found.into_iter().flatten() {
            *outcome.asked.entry(executor).or_default() += rows;
            let disagreement = |(what, says)| Disagreement { step: label.clone(), executor, what, says };
            outcome.disagreements.extend(findings.into_iter().map(disagreement));
        }
        Ok(outcome)
    }
}

impl Look {
    /// The rows that packets are sent for: another part of them in each step.
    fn sample(self, number: usize, rows: &[Row]) -> Vec<Row> {
        let chosen = |at: usize| self.packets > 0 && (at + number).is_multiple_of(self.packets);
        rows.iter().enumerate().filter(|(at, _)| chosen(*at)).map(|(_, row)| row.clone()).collect()
    }
}

impl Nftables {
    fn step(&mut self, case: &Case, step: &Step, sent: &Step, look: Look) -> Result<Found> {
        let rows = self.driver.step(&step.rows, step.restarts(), look.closely)?;
        let packets = self.sender.run(case, sent, &mut self.last);
        Ok(vec![("nft-rows", rows, step.rows.len()), ("packets", packets, sent.rows.len())])
    }
}

impl Programs {
    fn step(&mut self, case: &Case, step: &Step, sent: &Step, look: Look) -> Result<Found> {
        let rows = self.driver.step(&step.rows, step.restarts(), look.closely)?;
        let packets = self.programs.send(case, sent)?;
        let pins = self.programs.pins.path().to_owned();
        let (alone, ran) = self.alone.run(case, &self.programs.world, &pins, step)?;
        let [of_rows, of_runs, of_packets] = self.names;
        Ok(vec![(of_rows, rows, step.rows.len()), (of_packets, packets, sent.rows.len()), (of_runs, alone, ran)])
    }
}

impl All {
    fn step(&mut self, number: usize, step: &Step, sent: &Step, look: Look) -> Result<Found> {
        self.programs.write(number)?;
        let rows = self.driver.step(&step.rows, step.restarts(), look.closely)?;
        let packets = self.programs.send(number, sent)?;
        let mut found = vec![("all-rows", rows, step.rows.len()), ("auto", packets, sent.rows.len())];
        if look.closely && !sent.rows.is_empty() {
            found.push(("socket", self.programs.send_alone(number, sent)?, sent.rows.len()));
            // Which left the hook of sockets alone.
            self.driver.mend()?;
        }
        Ok(found)
    }
}

/// Where lines differ.
fn difference(wanted: &BTreeSet<String>, found: &BTreeSet<String>) -> Vec<String> {
    let missing = wanted.difference(found).map(|line| format!("- {line}"));
    missing.chain(found.difference(wanted).map(|line| format!("+ {line}"))).collect()
}
