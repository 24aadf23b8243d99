//! The eBPF programs: `kubeferry run --backend ebpf --once` in a world of its own, where no rule of nftables is and the
//! kernel's connection tracking stays off; then packets through the node.

use std::process::Command;

use anyhow::{Result, ensure};

use super::packets::Sender;
use super::{Findings, Last, Source};
use crate::bpf::SMALL_MAPS;
use crate::bpffs::Bpffs;
use crate::flows::{Case, Step, UPLINK};
use crate::world::World;
use crate::xdp::PassAll;

/// Which programs run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hooks {
    /// Those of TC.
    Tc,
    /// Those of TC and that of XDP at the uplink.
    TcAndXdp,
}

/// The world of a case, with programs at its devices.
#[derive(Debug)]
pub(super) struct Programs {
    // In this order: what holds the programs goes before what they are attached to.
    pub(super) pins: Bpffs,
    hooks: Hooks,
    _far: Option<PassAll>,
    sender: Sender,
    pub(super) world: World,
    last: Last,
}

impl Programs {
    /// Builds the world, without programs.
    pub(super) fn new(case: &Case, hooks: Hooks) -> Result<Self> {
        let world = World::build(case)?;
        let far = match hooks {
            Hooks::Tc => None,
            Hooks::TcAndXdp => Some(world.far.run(|| PassAll::attach(UPLINK))??),
        };
        let sender = Sender::where_the_node_loops(world.prober()?);
        Ok(Self { pins: Bpffs::mount()?, hooks, _far: far, sender, world, last: Last::new() })
    }

    /// `kubeferry run` with these programs.
    pub(super) fn command(&self, source: &Source) -> Result<Command> {
        let mut command = source.command("run")?;
        command.args(["--backend", "ebpf", "--socket-lb", "off", "--bpffs-root"]).arg(self.pins.path());
        command.args(SMALL_MAPS);
        match self.hooks {
            Hooks::Tc => command.args(["--xdp", "off"]),
            Hooks::TcAndXdp => command.args(["--xdp", "native", "--xdp-devices", UPLINK]),
        };
        Ok(command)
    }

    /// Sends rows.
    pub(super) fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// Brings a step into force and sends its rows.
    pub(super) fn run(&mut self, case: &Case, source: &Source, step: &Step) -> Result<Findings> {
        let output = self.world.node.output(self.command(source)?.arg("--once"), "")?;
        let says = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        if !output.status.success() {
            return Ok(vec![("kubeferry run --once --backend ebpf".into(), format!("{}:\n{says}", output.status))]);
        }
        self.send(case, step)
    }

    /// Sends the rows of a step that is in force.
    pub(super) fn send(&mut self, case: &Case, step: &Step) -> Result<Findings> {
        let findings = self.sender.run(case, step, &mut self.last);
        let tracked = self.world.node.read_sysctl("net/netfilter/nf_conntrack_count")?;
        ensure!(tracked == "0", "{tracked} connections are tracked by the kernel");
        Ok(findings)
    }
}
