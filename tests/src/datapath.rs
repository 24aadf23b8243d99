//! Tests that hold for every datapath.

use std::process::Command;

use anyhow::Result;

use crate::bpf::Places;
use crate::client::Running;
use crate::executors::Source;
use crate::netns::Netns;

/// A datapath under test, with what it needs.
#[derive(Debug)]
pub enum Datapath {
    /// Rules.
    Nftables,
    /// Programs, pinned and attached in places of their own.
    Ebpf(Places),
}

impl Datapath {
    /// The eBPF datapath.
    ///
    /// # Errors
    /// As [`Places::new`].
    pub fn ebpf() -> Result<Self> {
        Places::new().map(Self::Ebpf)
    }

    /// The same datapath with nothing in it.
    ///
    /// # Errors
    /// As [`Places::new`].
    pub fn another(&self) -> Result<Self> {
        match self {
            Self::Nftables => Ok(Self::Nftables),
            Self::Ebpf(_) => Self::ebpf(),
        }
    }

    /// Its name, as `--backend` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Ebpf(_) => "ebpf",
        }
    }

    /// Starts `kubeferry run` in a node's namespace.
    ///
    /// # Errors
    /// There is no binary, or it cannot be started.
    pub fn run(&self, source: &Source, node: &Netns) -> Result<Running> {
        Running::start_command(&mut self.command(source)?, node)
    }

    /// `kubeferry run`, to be written on.
    ///
    /// # Errors
    /// There is no binary.
    pub fn command(&self, source: &Source) -> Result<Command> {
        let mut command = source.command("run")?;
        if let Self::Ebpf(places) = self {
            places.apply(&mut command);
        }
        Ok(command)
    }
}

/// Makes two tests of each of these functions, which take a [`Datapath`].
#[macro_export]
macro_rules! on_both_datapaths {
    ($($name:ident,)*) => {
        mod nftables {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::datapath::Datapath::Nftables);
                }
            )*
        }
        mod ebpf {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::datapath::Datapath::ebpf().unwrap());
                }
            )*
        }
    };
}
