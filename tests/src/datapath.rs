//! Tests that hold for every datapath.

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
        let mut command = source.command("run")?;
        if let Self::Ebpf(places) = self {
            places.apply(&mut command);
        }
        Running::start_command(&mut command, node)
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
