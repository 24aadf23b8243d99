//! An `nft` that fails while it is told to: syncs fail, and what waits for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tempfile::TempDir;

use crate::node::Node;

pub struct BreakableNft(TempDir);

impl BreakableNft {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (nft, broken) = (folder.path().join("nft"), folder.path().join("broken"));
        let path = std::env::var("PATH").unwrap();
        let script = format!("#!/bin/sh\n[ -e {} ] && exit 1\nPATH={path} exec nft \"$@\"\n", broken.display());
        fs::write(&nft, script).unwrap();
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    /// Has a command of `kubeferry run` call it, and hold a change to be late after two seconds.
    pub fn apply(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap();
        // Twice the period is how long a change may wait.
        command.args(["--iptables-sync-period", "1s"]).env("PATH", format!("{}:{path}", self.0.path().display()));
    }

    /// It fails from now on, and is needed.
    pub fn fail(&self, node: &Node) {
        fs::write(self.0.path().join("broken"), "").unwrap();
        node.namespace.nft(&["delete table inet kubeferry"], "").unwrap();
    }

    /// It works again.
    pub fn mend(&self) {
        fs::remove_file(self.0.path().join("broken")).unwrap();
    }
}
