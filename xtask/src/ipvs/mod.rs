//! `cargo xtask test ipvs`: the assignments of the kernel's own IPVS, for the test `ipvs` to set beside our definitions.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::cargo::workspace;
use crate::vm::{Guest, Kernel, Series};
use crate::{packages, step};

pub mod arrivals;
mod script;

/// How long the machine may take. It took well under two minutes on two busy cores.
const PATIENCE: Duration = Duration::from_secs(900);
const MODULES: [&str; 12] = [
    "veth",
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
    "nf_conntrack",
];

/// Has IPVS carry the scripted arrivals in a virtual machine, prints the assignments, and gives the file with them.
pub fn record() -> anyhow::Result<PathBuf> {
    packages::ensure(&[packages::NETWORK, packages::VIRTUAL_MACHINES, packages::IPVS])?;
    let kernel = Kernel::find_or_fetch(Series::V6_12)?;
    let mut guest = Guest::new(&kernel, &MODULES)?;
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
