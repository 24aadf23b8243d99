//! The rows of the eBPF datapath, as they are in the kernel's maps, beside those that a fresh start would write.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kubeferry::backend::ebpf::bpf;
use kubeferry::backend::ebpf::diff::InForce;
use kubeferry::backend::ebpf::following::Following;
use kubeferry::backend::ebpf::kernel::{Maps, Shape};
use kubeferry::backend::ebpf::reconciler::Ebpf;
use kubeferry::backend::ebpf::rows::{Fixed, frontend_of};
use kubeferry::desired::Desired;
use kubeferry::settings::Settings;
use kubeferry_ebpf_common::{Config, Slot};
use tokio::runtime::Handle;

use super::difference;
use super::proxy::Driven;

impl Driven for Ebpf {
    fn open(settings: &Settings, handle: &Handle) -> Result<Self> {
        Ok(Self::open(settings, handle.clone())?)
    }

    fn strange(settings: &Settings, _: &Handle, fresh: &Desired) -> Result<Vec<String>> {
        let maps = Maps::open(&pinned(&settings.ebpf.bpffs_root)?, &Shape::of(settings))?;
        let fixed = Fixed {
            host_netns: bpf::netns_cookie().context("the network namespace's cookie")?,
            masquerade_ports: settings.ebpf.masquerade_ports,
            socket_lb: settings.ebpf.socket_lb,
            established_elsewhere: false,
        };
        let mut wanted = Following::new(InForce::new(maps.room()), *maps.room(), fixed);
        wanted.full(fresh, bpf::now());
        Ok(difference(&lines(&wanted.in_force), &lines(&maps.read()?)))
    }
}

/// The folder of maps below a BPF file system. (Its name is known, too, but takes a digest of the whole object.)
fn pinned(bpffs: &Path) -> Result<PathBuf> {
    let folders = fs::read_dir(bpffs.join("kubeferry"))?.map(|entry| entry.map(|entry| entry.path()));
    let is_ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("maps-"));
    folders.collect::<Result<Vec<_>, _>>()?.into_iter().find(is_ours).context("no folder of maps")
}

/// Rows as text, without what is another each time: where lists lie, the numbers of their endpoints, and clocks.
fn lines(in_force: &InForce) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for (key, row) in &in_force.frontends {
        let name = frontend_of(key).map_or_else(|| format!("{key:?}"), |frontend| frontend.to_string());
        lines.insert(format!(
            "frontend {name}: service {:016x} flags {} affinity {} draw {} turns {} {} slots {} {}",
            row.service,
            row.flags,
            row.affinity,
            row.draw,
            row.cluster_turn != 0,
            row.local_turn != 0,
            row.cluster_count,
            row.local_count,
        ));
    }
    for (number, service) in &in_force.services {
        let slot = |slot: &Slot| {
            let endpoint = SocketAddr::new(slot.address.into(), u16::from_be(slot.port));
            format!("{endpoint} flags {} weight {} counted {}", slot.flags, slot.weight, slot.backend != 0)
        };
        for ((_, list), name) in service.lists.iter().zip(["Cluster", "Local"]) {
            let slots: Vec<_> = list.iter().map(slot).collect();
            lines.insert(format!("service {number:016x}: {name} {}", slots.join(", ")));
        }
        for (key, member) in &service.members {
            let endpoint = SocketAddr::new(key.address.into(), u16::from_be(key.port));
            lines.insert(format!(
                "service {number:016x}: member {endpoint} lists {} flags {}",
                member.lists, member.flags
            ));
        }
        for range in &service.ranges {
            lines.insert(format!("service {number:016x}: {range:?}"));
        }
    }
    for (address, bits) in &in_force.addresses {
        lines.insert(format!("address {}: {bits}", IpAddr::from(*address)));
    }
    let config = Config { flags: in_force.config.flags & !Config::ESTABLISHED_ELSEWHERE, ..in_force.config };
    lines.insert(format!("{config:?}"));
    lines
}
