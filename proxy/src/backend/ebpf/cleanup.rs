//! Takes everything of ours out of the kernel.

use std::path::Path;

use aya::programs::TcAttachType;
use aya::programs::links::Link;
use aya::programs::tc::SchedClassifierLink;

use super::error::EbpfError;
use super::filters::FILTER;
use super::folder::{list, remove};

/// Detaches every program and unpins what is in our folder of the BPF file system at `bpffs_root`; `devices` are the
/// interfaces of this network namespace. What was removed, for people; empty: there was nothing.
///
/// # Errors
/// Something cannot be removed.
pub fn cleanup(bpffs_root: &Path, devices: &[String]) -> Result<Vec<String>, EbpfError> {
    let mut removed = Vec::new();
    let filters = devices.iter().map(|device| remove_filters(device)).sum::<usize>();
    if filters > 0 {
        removed.push(format!("{filters} filters of clsact"));
    }
    let root = bpffs_root.join("kubeferry");
    if !root.exists() {
        return Ok(removed);
    }
    let links = list(&root.join("links"))?.len();
    // Attachments first, so that no program runs without its maps.
    remove(&root.join("links"))?;
    remove(&root)?;
    removed.push(format!("{links} attached programs and everything else in {}", root.display()));
    Ok(removed)
}

/// Removes our filters of a device.
pub(super) fn remove_filters(device: &str) -> usize {
    let (priority, handle) = FILTER;
    let hooks = [TcAttachType::Ingress, TcAttachType::Egress];
    let ours = |hook: &TcAttachType| {
        let filter = SchedClassifierLink::attached(device, *hook, priority, handle, None);
        filter.is_ok_and(|filter| filter.detach().is_ok())
    };
    hooks.iter().filter(|hook| ours(hook)).count()
}
