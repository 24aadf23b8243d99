//! The smallest cluster with a `kubeferry run` that serves it, and that can be started anew.

use anyhow::Result;

use crate::client::{Running, synced, until};
use crate::datapath::Datapath;
use crate::netns::Netns;
use crate::web::Web;

/// The whole; see the module.
#[derive(Debug)]
pub struct Served {
    // In this order: what runs ends before what it runs in.
    running: Option<Running>,
    /// What carries the packets.
    pub datapath: Datapath,
    /// The cluster.
    pub web: Web,
}

impl Served {
    /// With these objects, and these flags more.
    ///
    /// # Errors
    /// Namespaces cannot be made, there is no binary, or it does not serve.
    pub fn start(datapath: Datapath, manifests: &str, flags: &[&str]) -> Result<Self> {
        let web = Web::build()?;
        web.write(manifests)?;
        let mut served = Self { running: None, datapath, web };
        served.restart(flags)?;
        Ok(served)
    }

    /// Ends what runs (SIGKILL) and starts it with other flags; waits until it is in force.
    ///
    /// # Errors
    /// As [`Served::start`].
    pub fn restart(&mut self, flags: &[&str]) -> Result<()> {
        self.end();
        let mut command = self.datapath.command(&self.web.source)?;
        self.running = Some(Running::start_command(command.args(flags), self.node())?);
        until("the first sync", || synced(self.node()))
    }

    /// Ends what runs (SIGKILL); what it has put into the kernel goes on.
    pub fn end(&mut self) {
        drop(self.running.take());
    }

    /// The node.
    pub fn node(&self) -> &Netns {
        &self.web.hosts.node
    }
}
