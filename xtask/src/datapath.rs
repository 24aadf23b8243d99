//! Which datapath a proxy of the demo or the benchmark programs, and what it has in the kernel.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use crate::netns::Namespace;
use crate::pins::Pins;
use crate::places::Places;
use crate::step;

/// The choice of `--backend`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Rows of nftables maps
    #[default]
    Nftables,
    /// BPF programs on devices and sockets
    Ebpf,
}

impl Backend {
    /// Both, in the order of tables.
    pub const ALL: [Self; 2] = [Self::Nftables, Self::Ebpf];

    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Ebpf => "eBPF",
        }
    }
}

/// The datapath of one node.
#[derive(Debug)]
pub enum Datapath {
    Nftables,
    Ebpf(Places),
}

impl Datapath {
    /// Makes what a backend needs for a node, see [`Places::create`].
    pub fn create(backend: Backend, home: &Path, node: &str) -> anyhow::Result<Self> {
        Ok(match backend {
            Backend::Nftables => Self::Nftables,
            Backend::Ebpf => Self::Ebpf(Places::create(home, node)?),
        })
    }

    /// Which one it is.
    pub const fn backend(&self) -> Backend {
        match self {
            Self::Nftables => Backend::Nftables,
            Self::Ebpf(_) => Backend::Ebpf,
        }
    }

    /// Has a `kubeferry` command use it.
    pub fn apply(&self, command: &mut Command) {
        match self {
            Self::Nftables => drop(command.args(["--backend", "nftables"])),
            Self::Ebpf(places) => {
                command.args(["--backend", "ebpf", "--bpffs-root"]).arg(places.bpffs());
                command.arg("--cgroup-root").arg(places.cgroup());
            }
        }
    }

    /// The cgroup that the node's processes have to be in.
    pub fn cgroup(&self) -> Option<&Path> {
        match self {
            Self::Nftables => None,
            Self::Ebpf(places) => Some(places.cgroup()),
        }
    }

    /// Whether the node's kernel has an address, as a service's or an endpoint's. Before the first sync it has none.
    pub fn has(&self, node: &Namespace, address: &str) -> anyhow::Result<bool> {
        match self {
            Self::Nftables => {
                let rules = step::output(node.command("nft").args(["list", "table", "inet", "kubeferry"]));
                Ok(rules.map(|rules| names(&rules, address)).unwrap_or(false))
            }
            Self::Ebpf(places) => {
                let address: IpAddr = address.parse()?;
                Ok(match Pins::find(places.bpffs())? {
                    Some(pins) => pins.has(address)?,
                    None => false,
                })
            }
        }
    }

    /// Leaves everything when we go.
    pub fn leave(self) {
        if let Self::Ebpf(places) = self {
            places.leave();
        }
    }
}

/// Whether the proxy of a node has done a sync, by its own status. Rows may be in the kernel before the programs that read
/// them are at every device.
pub fn synced(binary: &Path, node: &Namespace) -> anyhow::Result<bool> {
    // Before it serves its status there is none.
    let Ok(text) = step::output(node.command(binary).args(["status", "--output", "json"])) else { return Ok(false) };
    let status: serde_json::Value = serde_json::from_str(&text)?;
    Ok(!status["lastSync"].is_null() && status["lastSync"]["error"].is_null())
}

/// Whether an address stands in a rule set as a whole: 10.0.0.1 is not in 10.0.0.12.
fn names(rules: &str, address: &str) -> bool {
    rules.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == ':')).any(|word| word == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_whole() {
        let rules = "10.96.0.50 . tcp . 80 . 0 : 10.244.1.12 . 8080,";
        assert!(names(rules, "10.244.1.12") && names(rules, "10.96.0.50"));
        assert!(!names(rules, "10.244.1.1") && !names(rules, "0.244.1.12"));
    }
}
