//! `kubeferry cleanup`: removes everything that Kubeferry put into the kernel, and on request what kube-proxy left there.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;

use crate::args::CleanupArgs;
use crate::backend::nftables::netfilter::grace_period;
use crate::backend::nftables::netlink::Connection;
use crate::backend::nftables::skeleton::TABLE;
use crate::commands::output;
use crate::conntrack::established;
use crate::leftovers::{self, Outcome};
use crate::lock::{self, Lock};
use crate::settings::{BackendName, EbpfSettings, Settings};

/// Deletes what each datapath left. Connections that are established go on where connection tracking has their translation
/// (nftables); those of eBPF end, after `--drain`. A step that fails does not keep the others. Needs no other program.
///
/// # Errors
/// A proxy runs here; the kernel cannot be asked, or refuses something: CAP_NET_ADMIN is needed; or standard output does.
pub async fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    if let Some(root) = args.bpffs_root.as_ref().filter(|root| !root.is_dir()) {
        anyhow::bail!(
            "--bpffs-root {}: there is no such folder; give the one where the BPF file system is mounted",
            root.display()
        );
    }
    let _alone = alone().await?;
    let root = args.bpffs_root.clone().unwrap_or(EbpfSettings::default().bpffs_root);
    let theirs = args.kube_proxy.then_some(args.ipvs_exclude_cidrs.as_slice());
    everything(&root, args.drain, theirs).await
}

/// `kubeferry run --cleanup`, as kube-proxy has it: ours and kube-proxy's.
///
/// # Errors
/// As for [`cleanup`].
pub async fn as_kube_proxy(settings: &Settings) -> anyhow::Result<()> {
    let _alone = alone().await?;
    everything(&settings.ebpf.bpffs_root, Duration::ZERO, Some(&settings.node.ipvs_excluded)).await
}

/// No proxy writes meanwhile: a running one would put all of it back, and one that starts waits.
async fn alone() -> anyhow::Result<Option<Lock>> {
    lock::take(false, &AtomicBool::new(false)).await.context("nothing was removed")
}

async fn everything(root: &Path, limit: Duration, theirs: Option<&[IpNet]>) -> anyhow::Result<()> {
    let mut outcome = Outcome::default();
    let mut add = |step: anyhow::Result<Outcome>| match step {
        Ok(step) => outcome.extend(step),
        Err(error) => outcome.failed.push(output::whole(&error)),
    };
    add(drain(root, limit).map(|()| Outcome::default()));
    add(ebpf(root).await);
    for table in [TABLE, established::TABLE] {
        add(delete(table));
    }
    if let Some(excluded) = theirs {
        outcome.extend(leftovers::remove(excluded).await);
    }
    let mut said: Vec<String> = outcome.removed.iter().map(|what| format!("removed {what}\n")).collect();
    if said.is_empty() && outcome.failed.is_empty() {
        said.push(match theirs {
            None => format!(
                "nothing to remove: there is no table inet {TABLE}, and nothing of ours in {}\n",
                root.display()
            ),
            Some(_) => format!("nothing to remove: there is no table inet {TABLE}, and nothing of kube-proxy\n"),
        });
    }
    said.extend(outcome.notes.iter().map(|note| format!("note: {note}\n")));
    output::say(&said.concat())?;
    anyhow::ensure!(outcome.failed.is_empty(), "{}", outcome.failed.join("; "));
    Ok(())
}

/// Removes what the datapaths other than `settings`' and what kube-proxy have left, once that one carries the traffic.
pub async fn others(settings: &Settings) -> Outcome {
    // A packet that has gone by where our datapath looks before that was in force has to meet the rules of who came before.
    tokio::task::block_in_place(grace_period);
    let mut ours = Outcome::default();
    let (other, table) = match settings.backend {
        BackendName::Nftables => (ebpf(&settings.ebpf.bpffs_root).await, established::TABLE),
        BackendName::Ebpf => (Ok(Outcome::default()), TABLE),
    };
    for step in [other, delete(table)] {
        match step {
            Ok(step) => ours.extend(step),
            Err(error) => ours.failed.push(output::whole(&error)),
        }
    }
    // Whose programs are at the devices cannot be asked with what the nftables datapath runs with.
    ours.notes.clear();
    ours.extend(leftovers::remove(&settings.node.ipvs_excluded).await);
    ours
}

/// Deletes a table of ours.
fn delete(table: &str) -> anyhow::Result<Outcome> {
    let was = Connection::open()?.delete_table(table).with_context(|| format!("cannot delete table inet {table}"))?;
    Ok(Outcome { removed: was.then(|| format!("table inet {table}")).into_iter().collect(), ..Outcome::default() })
}

#[cfg(feature = "ebpf")]
fn drain(root: &Path, limit: Duration) -> anyhow::Result<()> {
    if limit.is_zero() {
        return Ok(());
    }
    match tokio::task::block_in_place(|| crate::backend::ebpf::drain::drain(root, limit))? {
        left if left.is_empty() => {}
        left => {
            let some: Vec<&str> = left.iter().take(5).map(String::as_str).collect();
            let (count, more) = (left.len(), if left.len() > some.len() { ", ..." } else { "" });
            let some = some.join(", ");
            output::complain(&format!(
                "{count} connections have not ended in {limit:?} and are cut off now: {some}{more}"
            ));
        }
    }
    Ok(())
}

#[cfg(not(feature = "ebpf"))]
fn drain(_: &Path, _: Duration) -> anyhow::Result<()> {
    // Nothing of that datapath can be here: see `ebpf`.
    Ok(())
}

#[cfg(feature = "ebpf")]
async fn ebpf(root: &Path) -> anyhow::Result<Outcome> {
    use crate::backend::ebpf::elsewhere::{Elsewhere, elsewhere};

    let devices: Vec<String> = crate::node::interfaces().await?.into_iter().map(|interface| interface.name).collect();
    let removed = crate::backend::ebpf::cleanup::cleanup(root, &devices)?;
    let mut outcome = Outcome { removed, ..Outcome::default() };
    match tokio::task::block_in_place(|| elsewhere(&devices)) {
        Elsewhere::Nowhere => {}
        Elsewhere::At(devices) => outcome.failed.push(format!(
            "programs of the eBPF datapath go on at {}, and nothing in {} holds them: give the --bpffs-root that they were \
             started with (`findmnt -t bpf` lists the BPF file systems)",
            devices.join(", "),
            root.display()
        )),
        Elsewhere::Unknown => outcome.notes.push(format!(
            "BPF programs are at the devices, and whose cannot be asked without CAP_SYS_ADMIN: if the eBPF datapath ran with \
             another --bpffs-root than {}, its programs go on",
            root.display()
        )),
    }
    Ok(outcome)
}

#[cfg(not(feature = "ebpf"))]
async fn ebpf(root: &Path) -> anyhow::Result<Outcome> {
    let folder = root.join("kubeferry");
    anyhow::ensure!(
        !folder.exists(),
        "{} holds what the eBPF datapath left, and this binary was built without it: run the cleanup of one that has it",
        folder.display()
    );
    Ok(Outcome::default())
}
