//! `kubeferry cleanup`: removes everything that Kubeferry put into the kernel.

use anyhow::Context;

use crate::args::CleanupArgs;
use crate::backend::nftables::netlink::Connection;
use crate::backend::nftables::skeleton::TABLE;
use crate::settings::{BackendName, EbpfSettings, Settings};

/// Deletes what each datapath left. Connections that are established go on where connection tracking has their translation
/// (nftables); those of eBPF end. Needs no other program.
///
/// # Errors
/// The kernel cannot be asked, or refuses: CAP_NET_ADMIN is needed.
pub async fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    let root = args.bpffs_root.clone().unwrap_or(EbpfSettings::default().bpffs_root);
    let removed = ebpf(&root).await?;
    removed.iter().for_each(|what| println!("removed {what}"));
    match table()? {
        true => println!("removed table inet {TABLE}"),
        false if removed.is_empty() => println!("nothing to remove: there is no table inet {TABLE}"),
        false => {}
    }
    Ok(())
}

/// Removes what the datapaths other than `settings`' have left, once that one carries the traffic. What was removed.
///
/// # Errors
/// As for [`cleanup`].
pub async fn others(settings: &Settings) -> anyhow::Result<Vec<String>> {
    match settings.backend {
        BackendName::Nftables => ebpf(&settings.ebpf.bpffs_root).await,
        BackendName::Ebpf => Ok(if table()? { vec![format!("table inet {TABLE}")] } else { Vec::new() }),
    }
}

fn table() -> anyhow::Result<bool> {
    Connection::open()?.delete_table(TABLE).with_context(|| format!("cannot delete table inet {TABLE}"))
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
