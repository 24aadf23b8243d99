//! `kubeferry cleanup`: removes everything that Kubeferry put into the kernel.

use anyhow::Context;

use crate::args::CleanupArgs;
use crate::backend::nftables::netlink::Connection;
use crate::backend::nftables::skeleton::TABLE;
use crate::commands::output;
use crate::conntrack::established;
use crate::settings::{BackendName, EbpfSettings, Settings};

/// Deletes what each datapath left. Connections that are established go on where connection tracking has their translation
/// (nftables); those of eBPF end. Needs no other program.
///
/// # Errors
/// The kernel cannot be asked, or refuses: CAP_NET_ADMIN is needed; or standard output does.
pub async fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    if let Some(root) = args.bpffs_root.as_ref().filter(|root| !root.is_dir()) {
        anyhow::bail!(
            "--bpffs-root {}: there is no such folder; give the one where the BPF file system is mounted",
            root.display()
        );
    }
    let root = args.bpffs_root.clone().unwrap_or(EbpfSettings::default().bpffs_root);
    let mut said: Vec<String> = ebpf(&root).await?.iter().map(|what| format!("removed {what}\n")).collect();
    for table in [TABLE, established::TABLE] {
        if delete(table)? {
            said.push(format!("removed table inet {table}\n"));
        }
    }
    if said.is_empty() {
        said.push(format!(
            "nothing to remove: there is no table inet {TABLE}, and nothing of ours in {}\n",
            root.display()
        ));
    }
    Ok(output::say(&said.concat())?)
}

/// Removes what the datapaths other than `settings`' have left, once that one carries the traffic. What was removed.
///
/// # Errors
/// As for [`cleanup`].
pub async fn others(settings: &Settings) -> anyhow::Result<Vec<String>> {
    let (mut removed, table) = match settings.backend {
        BackendName::Nftables => (ebpf(&settings.ebpf.bpffs_root).await?, established::TABLE),
        BackendName::Ebpf => (Vec::new(), TABLE),
    };
    if delete(table)? {
        removed.push(format!("table inet {table}"));
    }
    Ok(removed)
}

fn delete(table: &str) -> anyhow::Result<bool> {
    Connection::open()?.delete_table(table).with_context(|| format!("cannot delete table inet {table}"))
}

#[cfg(feature = "ebpf")]
async fn ebpf(root: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let devices: Vec<String> = crate::node::interfaces().await?.into_iter().map(|interface| interface.name).collect();
    Ok(crate::backend::ebpf::cleanup::cleanup(root, &devices)?)
}

#[cfg(not(feature = "ebpf"))]
async fn ebpf(root: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let folder = root.join("kubeferry");
    anyhow::ensure!(
        !folder.exists(),
        "{} holds what the eBPF datapath left, and this binary was built without it: run the cleanup of one that has it",
        folder.display()
    );
    Ok(Vec::new())
}
