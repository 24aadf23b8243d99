//! `kubeferry trace --live` as a process that runs beside a test.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::binary;
use crate::client::until;
use crate::netns::Netns;

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
