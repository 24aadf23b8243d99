//! The live trace: `kubeferry trace --live` follows the packet of each row through a node that is served, and has to tell of it
//! what the row says, and that the model says so too.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::packets::Sender;
use super::{Disagreement, Source, named};
use crate::binary;
use crate::client::{Running, synced, until};
use crate::datapath::Datapath;
use crate::flows::{Case, Expect, Row, UPLINK};
use crate::netns::Netns;
use crate::packets::Protocol;
use crate::world::World;
use crate::xdp::PassAll;

/// A trace that runs, and what it has said so far. It is killed when dropped, if it has not ended.
#[derive(Debug)]
pub struct Follower {
    child: Child,
    folder: tempfile::TempDir,
}

impl Follower {
    /// Starts `kubeferry trace --live` in a node's namespace, and waits until it follows.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(flags: &[&str], node: &Netns) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = |name| File::create(folder.path().join(name)).context("cannot write what the trace says");
        let mut command = Command::new(binary::path()?);
        command.args(["trace", "--live", "--output", "json", "--rate", "1000"]).args(flags);
        command.stdin(Stdio::null()).stdout(file("out")?).stderr(file("err")?);
        let follower = Self { child: node.spawn(&mut command)?, folder };
        let started = until("the trace to begin", || follower.complaints().contains("following").then_some(()));
        started.with_context(|| follower.complaints())?;
        Ok(follower)
    }

    /// The connection from and to these, as the trace tells of it.
    ///
    /// # Errors
    /// It does not within some seconds.
    pub fn line(&self, from: Option<SocketAddr>, to: SocketAddr) -> Result<Value> {
        let is_it =
            |line: &Value| line["to"] == to.to_string() && from.is_none_or(|from| line["from"] == from.to_string());
        until("the trace to tell of the connection", || self.lines().into_iter().find(is_it))
            .with_context(|| format!("{} lines; {}", self.lines().len(), self.complaints()))
    }

    /// All connections so far.
    pub fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("out")).unwrap_or_default();
        // The last line may not be whole yet.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Its standard error.
    pub fn complaints(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("err")).unwrap_or_default()
    }

    /// Its process.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Follows one packet of each row of the first step of a case through a datapath; `at_xdp`: through the program of XDP at the uplink
/// as well.
///
/// # Errors
/// The harness itself fails.
pub fn run_live(case: &Case, datapath: &Datapath, at_xdp: bool) -> Result<Vec<Disagreement>> {
    let world = World::build(case)?;
    let source = Source::new(case)?;
    let step = case.steps.first().context("a case without steps")?;
    source.write(step)?;
    let mut command = datapath.command(&source)?;
    let _far = match at_xdp {
        true => Some(world.far.run(|| PassAll::attach(UPLINK))??),
        false => None,
    };
    if at_xdp {
        command.args(["--xdp", "native", "--xdp-devices", UPLINK]);
    }
    let _running = Running::start_command(&mut command, &world.node)?;
    until("the first sync", || synced(&world.node))?;
    let follower = Follower::start(&[], &world.node)?;
    let mut sender = Sender::where_the_node_loops(world.prober()?);
    let mut disagreements = Vec::new();
    for row in &step.rows {
        let told = sender.send(case, row).and_then(|(from, _)| follower.line(Some(from), row.to));
        if let Err(error) = told.and_then(|line| judge(row, &line, at_xdp)) {
            let (step, what, says) = (case.name.clone(), named(row), format!("{error:#}"));
            disagreements.push(Disagreement { step, executor: "trace --live", what, says });
        }
    }
    Ok(disagreements)
}

/// Compares what is told with what the row says.
fn judge(row: &Row, line: &Value, at_xdp: bool) -> Result<()> {
    ensure!(line["agrees"] == true, "the trace does not find it as the model says: {line:#}");
    let end = line["end"].as_str().unwrap_or_default();
    let right = match &row.expect {
        Expect::Reject => end == "refused",
        Expect::Drop => end == "dropped",
        Expect::None => end == "went" && line["wentTo"] == line["to"],
        Expect::Same { .. } => end == "went",
        Expect::Endpoints { endpoints, .. } => {
            let to = line["wentTo"].as_str().unwrap_or_default();
            end == "went" && endpoints.iter().any(|endpoint| endpoint.to_string() == to)
        }
    };
    ensure!(right, "the trace tells {line:#}");
    ensure!(!line["steps"].as_array().is_none_or(Vec::is_empty), "no steps: {line:#}");
    // What has no endpoint there, and SCTP, is left to TC.
    let decides = matches!(row.expect, Expect::Endpoints { .. } | Expect::Drop) && row.protocol != Protocol::Sctp;
    if at_xdp && decides && line["iif"] == UPLINK {
        ensure!(line["steps"][0]["place"] == format!("XDP {UPLINK}"), "not told of at XDP: {line:#}");
    }
    Ok(())
}
