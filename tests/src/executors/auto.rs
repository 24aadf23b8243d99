//! All hooks of the eBPF datapath together, as a node has them by default, and that of sockets alone: `kubeferry run --backend
//! ebpf --once` in a world of its own. Connections of the node and of its pods are those of real sockets, in a cgroup of the
//! test; what comes from elsewhere are packets.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::packets::Sender;
use super::{Findings, Last, Source, socket};
use crate::bpf::Places;
use crate::bpf::pinned::detach;
use crate::flows::{Case, Step, UPLINK};
use crate::netns::Netns;
use crate::packets::Sockets;
use crate::world::World;
use crate::xdp::PassAll;

/// The pods' ranges of a Node whose case has none: with them it is certain who counts as a pod, and pods' sockets are
/// translated.
const POD_RANGES: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// The world of a case, with programs at its devices and its cgroup.
#[derive(Debug)]
pub(super) struct Programs {
    // In this order: what holds the programs goes before what they are attached to, and processes before their cgroup.
    sender: Sender,
    places: Places,
    _far: PassAll,
    world: World,
    source: Source,
    case: Case,
    last: Last,
}

impl Programs {
    /// Builds the world, without programs.
    pub(super) fn new(case: &Case) -> Result<Self> {
        let case = with_pod_ranges(case)?;
        let world = World::build(&case)?;
        let places = Places::new()?;
        let far = world.far.run(|| PassAll::attach(UPLINK))??;
        let sockets = Sockets::new(&world.node, &world.far, places.cgroup())?;
        let sender = Sender::with_sockets(world.prober()?, sockets);
        let source = Source::new(&case)?;
        Ok(Self { sender, places, _far: far, world, source, case, last: Last::new() })
    }

    /// The node.
    pub(super) fn node(&self) -> &Netns {
        &self.world.node
    }

    /// The case as it is here.
    pub(super) fn case(&self) -> &Case {
        &self.case
    }

    /// Where its objects go.
    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Sends rows.
    pub(super) fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// Where the programs are pinned.
    pub(super) fn pins(&self) -> &Path {
        self.places.bpffs()
    }

    /// `kubeferry run` with all hooks.
    pub(super) fn command(&self) -> Result<Command> {
        let mut command = self.source.command("run")?;
        self.places.apply(&mut command).args(["--xdp", "native", "--xdp-devices", UPLINK]);
        Ok(command)
    }

    /// Puts the objects of a step into the folder of manifests.
    pub(super) fn write(&self, number: usize) -> Result<()> {
        self.source.write(&self.case.steps[number])
    }

    /// Brings a step into force and sends its rows, first with all hooks, then with that of sockets alone.
    pub(super) fn run(&mut self, number: usize) -> Result<(Findings, Findings)> {
        self.write(number)?;
        if let Some(fault) = self.once()? {
            return Ok((vec![fault], Findings::new()));
        }
        let step = self.case.steps[number].clone();
        let findings = self.send(number, &step)?;
        Ok((findings, self.send_alone(number, &step)?))
    }

    /// Sends rows in a step that is in force.
    pub(super) fn send(&mut self, number: usize, rows: &Step) -> Result<Findings> {
        let step = self.own(number, rows);
        let findings = self.sender.run(&self.case, &step, &mut self.last);
        self.untracked()?;
        Ok(findings)
    }

    /// The same with the hook of sockets alone: the others are detached.
    pub(super) fn send_alone(&mut self, number: usize, rows: &Step) -> Result<Findings> {
        self.detach_devices()?;
        let step = self.own(number, rows);
        let findings = socket::run(&mut self.sender, &self.case, &self.source, &step)?;
        self.untracked()?;
        Ok(findings)
    }

    /// The step of this number as it is here, with other rows.
    fn own(&self, number: usize, rows: &Step) -> Step {
        Step { rows: rows.rows.clone(), ..self.case.steps[number].clone() }
    }

    fn untracked(&self) -> Result<()> {
        let tracked = self.world.node.read_sysctl("net/netfilter/nf_conntrack_count")?;
        ensure!(tracked == "0", "{tracked} connections are tracked by the kernel");
        Ok(())
    }

    /// Leaves only what is attached to the cgroup. The next step attaches the others again.
    fn detach_devices(&self) -> Result<()> {
        for pin in std::fs::read_dir(self.places.bpffs().join("kubeferry/links"))? {
            let pin = pin?.path();
            let name = pin.file_name().unwrap_or_default().to_string_lossy();
            if ["tc_", "xdp_"].iter().any(|hook| name.starts_with(hook)) {
                // Its removal alone would take effect some time later.
                detach(&pin).with_context(|| pin.display().to_string())?;
            }
        }
        // Before Linux 6.6, programs are filters of a qdisc: `qdisc clsact ffff: dev eth0 parent ffff:fff1`.
        let tc = |arguments: &[&str]| self.world.node.output(Command::new("tc").args(arguments), "");
        let listed = tc(&["qdisc", "show"])?;
        ensure!(listed.status.success(), "tc qdisc show: {listed:?}");
        for line in String::from_utf8_lossy(&listed.stdout).lines().filter(|line| line.starts_with("qdisc clsact ")) {
            let device = line.split_whitespace().skip_while(|word| *word != "dev").nth(1).context("no device")?;
            let deleted = tc(&["qdisc", "del", "dev", device, "clsact"])?;
            ensure!(deleted.status.success(), "tc qdisc del dev {device} clsact: {deleted:?}");
        }
        Ok(())
    }

    fn once(&self) -> Result<Option<(String, String)>> {
        let output = self.world.node.output(self.command()?.arg("--once"), "")?;
        let says = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        let what = "kubeferry run --once --backend ebpf --xdp native".to_owned();
        Ok((!output.status.success()).then(|| (what, format!("{}:\n{says}", output.status))))
    }
}

/// The case on a Node that has ranges of pods, if that changes nothing else.
fn with_pod_ranges(case: &Case) -> Result<Case> {
    let mut case = case.clone();
    let by_cluster = case.node.detect_local_mode.as_deref().is_none_or(|mode| mode == "ClusterCIDR");
    if by_cluster && case.node.pod_cidrs.is_empty() {
        let before = case.node.object().to_string();
        for range in POD_RANGES {
            case.node.pod_cidrs.push(range.parse()?);
        }
        let after = case.node.object().to_string();
        // A step that brings a Node of its own keeps it.
        case.steps.iter_mut().for_each(|step| step.manifests = step.manifests.replace(&before, &after));
    }
    Ok(case)
}
