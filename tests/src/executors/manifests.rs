//! A case as the binary gets it: a folder of manifests, a configuration file and flags.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::binary;
use crate::flows::{Case, Step};

/// The folder and the flags of a case.
#[derive(Debug)]
pub struct Source {
    folder: TempDir,
    flags: Vec<String>,
    addresses: String,
}

impl Source {
    /// Makes the folder, still without objects.
    ///
    /// # Errors
    /// A temporary folder cannot be written.
    pub fn new(case: &Case) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        fs::create_dir(folder.path().join("manifests"))?;
        let mut flags = case.node.flags();
        flags.extend(["--manifests".into(), folder.path().join("manifests").display().to_string()]);
        if let Some(text) = case.node.config_file() {
            let path = folder.path().join("config.yaml");
            fs::write(&path, text)?;
            flags.extend(["--config".into(), path.display().to_string()]);
        }
        let addresses: Vec<_> = case.node.all_addresses().map(|ip| ip.to_string()).collect();
        Ok(Self { folder, flags, addresses: addresses.join(",") })
    }

    /// Puts the objects of a step into the folder, in place of those before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, step: &Step) -> Result<()> {
        fs::write(self.folder.path().join("manifests/cluster.yaml"), &step.manifests)
            .context("cannot write the manifests")
    }

    /// `kubeferry SUBCOMMAND` with source and settings.
    ///
    /// # Errors
    /// There is no binary.
    pub fn command(&self, subcommand: &str) -> Result<Command> {
        let mut command = Command::new(binary::path()?);
        command.arg(subcommand).args(&self.flags);
        Ok(command)
    }

    /// As [`Source::command`], for a command that does not look at the node: it is told the node's addresses.
    ///
    /// # Errors
    /// There is no binary.
    pub fn offline(&self, subcommand: &str) -> Result<Command> {
        let mut command = self.command(subcommand)?;
        command.args(["--node-addresses", &self.addresses]);
        Ok(command)
    }
}
