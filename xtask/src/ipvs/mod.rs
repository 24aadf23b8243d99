//! `cargo xtask test ipvs`: the assignments of the kernel's own IPVS, for the test `ipvs` to set beside our definitions; and that
//! a first sync removes what kube-proxy's ipvs mode leaves.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::cargo::{self, workspace};
use crate::vm::{Guest, Kernel, Series};
use crate::{packages, step};

pub mod arrivals;
pub mod leftovers;
mod script;

/// How long the machine may take. It took well under two minutes on two busy cores.
const PATIENCE: Duration = Duration::from_secs(900);
/// What IPVS, the sets of kube-proxy and our nftables need of a kernel.
const MODULES: &[&str] = &[
    "veth",
    "dummy",
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_wrr",
    "ip_vs_lc",
    "ip_vs_wlc",
    "ip_vs_sed",
    "ip_vs_nq",
    "ip_vs_sh",
    "ip_vs_dh",
    "ip_vs_mh",
    "ip_set",
    "ip_set_hash_ip",
    "ip_set_hash_ipport",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject_inet",
];

/// Has IPVS carry the scripted arrivals in a virtual machine, prints the assignments, and gives the file with them. Before, our
/// first sync removes what kube-proxy's ipvs mode left in such a machine.
pub fn record() -> anyhow::Result<PathBuf> {
    let lists = [
        packages::NETWORK,
        packages::MIGRATION,
        packages::VIRTUAL_MACHINES,
        packages::VIRTUAL_MACHINE_TESTS,
        packages::IPVS,
    ];
    packages::ensure(&lists)?;
    let kubeferry = cargo::kubeferry(false)?;
    let kernel = Kernel::find_or_fetch(Series::V6_12)?;
    leave_and_sync(&kernel, &kubeferry)?;
    let mut guest = Guest::new(&kernel, MODULES)?;
    guest.program("/xtask", &std::env::current_exe().context("where is xtask?")?)?;
    guest.tools(&["ip", "ipvsadm"])?;
    let mut recorded = Vec::new();
    let mut line = |text: &str| {
        println!("{text}");
        if text.starts_with('{') {
            recorded.push(text.to_owned());
        }
    };
    let code = guest.boot("ipvs", "/xtask arrivals", PATIENCE, &mut line)?;
    if code != 0 {
        bail!("the arrivals ended with {code}");
    }
    step::note(format!("{} virtual services got their connections", recorded.len()));
    let file = workspace().join("target/vm/ipvs.json");
    let text = format!("{{\"kernel\": {:?}, \"cases\": [\n{}\n]}}\n", kernel.release, recorded.join(",\n"));
    std::fs::write(&file, text).with_context(|| file.display().to_string())?;
    Ok(file)
}

/// Boots a machine for [`leftovers`].
fn leave_and_sync(kernel: &Kernel, kubeferry: &Path) -> anyhow::Result<()> {
    let mut guest = Guest::new(kernel, MODULES)?;
    guest.program("/xtask", &std::env::current_exe().context("where is xtask?")?)?;
    guest.tools(&["ip", "ipvsadm", "ipset", "nft"])?;
    // Without debug information, which is most of it.
    let stripped = tempfile::NamedTempFile::new()?;
    step::output(Command::new("strip").arg("-o").arg(stripped.path()).arg(kubeferry))?;
    guest.program("/kubeferry", stripped.path())?;
    let mut line = |text: &str| println!("{text}");
    let code = guest.boot("ipvs-leftovers", "/xtask leftovers /kubeferry", PATIENCE, &mut line)?;
    if code != 0 {
        bail!("the leftovers ended with {code}");
    }
    Ok(())
}
