//! What the proxy, the kernel and the node hold at a moment.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::world::World;
use crate::netns::tool;

/// When a sample was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Before anything asked.
    Baseline,
    /// While everything changed under load.
    Churn,
    /// After the load ended and the objects were as at the beginning.
    Quiet,
}

/// A sample. Sizes are bytes.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Sample {
    /// Seconds since the first.
    pub at: f64,
    /// When in the run.
    pub phase: Phase,
    /// The proxy's process id: another one after a restart.
    pub process: u32,
    /// Its resident memory.
    pub resident: u64,
    /// Of that, what belongs to no file: heap and stacks.
    pub anonymous: u64,
    /// Everything else, by name.
    pub counts: BTreeMap<String, u64>,
    /// Rows of each map, as `kubeferry status` tells them.
    pub rows: BTreeMap<String, u64>,
}

/// What is counted, as people read it.
pub mod name {
    /// Files that the proxy has open.
    pub const FILES: &str = "open files";
    /// Its threads.
    pub const THREADS: &str = "threads";
    /// Sockets of netlink in the node's namespace.
    pub const NETLINK: &str = "netlink sockets";
    /// Network namespaces of this run.
    pub const NAMESPACES: &str = "namespaces";
    /// Interfaces of the node.
    pub const INTERFACES: &str = "interfaces";
    /// Connections that connection tracking has, but for those of the loopback interface.
    pub const CONNTRACK: &str = "conntrack entries";
    /// Rows of all maps that Services and devices come to.
    pub const ROWS: &str = "rows";
    /// Rows in which connections of endpoints are counted; those of one that went wait until its connections are over.
    pub const COUNTERS: &str = "rows of counts";
    /// Memory of BPF maps.
    pub const MAPS: &str = "memory of maps";
    /// Pins of the eBPF datapath: maps, programs, links.
    pub const PINS: &str = "pins";
    /// Entries of connections of the eBPF datapath.
    pub const FLOWS: &str = "entries of flows";
    /// Connections that the eBPF datapath counts as active.
    pub const ACTIVE: &str = "active connections";
    /// Rows by which the kernel differs from what is wanted.
    pub const DIFFERENCE: &str = "rows that differ";
}

/// Rows of `status` that follow connections, and are counted by themselves.
const OF_CONNECTIONS: [&str; 2] = ["flows", "backends"];

impl Sample {
    /// Takes one. `thorough`: with what takes the kernel's time.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn take(world: &World, began: Instant, phase: Phase, thorough: bool) -> Result<Self> {
        let process = world.process()?;
        let status = fs::read_to_string(format!("/proc/{process}/status")).context("the proxy has ended")?;
        let mut counts = BTreeMap::new();
        let mut count = |name: &str, number: u64| {
            counts.insert(name.to_owned(), number);
        };
        count(name::FILES, fs::read_dir(format!("/proc/{process}/fd"))?.count() as u64);
        count(name::THREADS, field(&status, "Threads:")?);
        let netlink = world.network.hosts.node.run(|| fs::read_to_string("/proc/thread-self/net/netlink"))??;
        count(name::NETLINK, netlink.lines().skip(1).count() as u64);
        count(name::INTERFACES, world.interfaces()?.len() as u64);
        count(name::NAMESPACES, namespaces()?);
        count(name::CONNTRACK, tracked(world)?);
        let told = world.status()?;
        let rows = told["rows"].as_object().context("no rows in the status")?;
        let rows: BTreeMap<_, _> = rows.iter().filter_map(|(map, rows)| Some((map.clone(), rows.as_u64()?))).collect();
        let of_objects = rows.iter().filter(|(map, _)| !OF_CONNECTIONS.contains(&map.as_str()));
        count(name::ROWS, of_objects.map(|(_, rows)| rows).sum());
        if let Some(counters) = rows.get("backends") {
            count(name::COUNTERS, *counters);
        }
        if let (Some(places), Some(pinned)) = (&world.places, world.pinned()) {
            count(name::PINS, places.pins()?.len() as u64);
            count(name::FLOWS, pinned.flows()? as u64);
            count(name::MAPS, kibibytes(told["datapath"]["memory"].as_str().unwrap_or_default()) << 10);
            if thorough {
                count(name::ACTIVE, pinned.backends()?.iter().map(|row| row.active).sum());
            }
        }
        if thorough {
            count(name::DIFFERENCE, world.difference()?.lines().count() as u64);
        }
        let (resident, anonymous) = (field(&status, "VmRSS:")? << 10, field(&status, "RssAnon:")? << 10);
        Ok(Self { at: began.elapsed().as_secs_f64(), phase, process, resident, anonymous, counts, rows })
    }
}

/// A number of `/proc/PID/status`.
fn field(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}

/// The namespaces that are called by our process.
fn namespaces() -> Result<u64> {
    let ours = format!("kubeferry-test-{}-", std::process::id());
    let entries = fs::read_dir("/run/netns")?.flatten();
    Ok(entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&ours)).count() as u64)
}

/// Connections that the kernel tracks for the node, but for those of the loopback interface: of the API server and of us.
fn tracked(world: &World) -> Result<u64> {
    let node = &world.network.hosts.node;
    if node.read_sysctl("net/netfilter/nf_conntrack_count")? == "0" {
        return Ok(0);
    }
    let mut count = 0;
    for family in ["ipv4", "ipv6"] {
        let list = node.run(|| tool("conntrack", &["-L", "-f", family], ""))??;
        count += list.lines().filter(|line| !line.contains("src=127.") && !line.contains("src=::1 ")).count() as u64;
    }
    Ok(count)
}

/// The sum of `frontends 12 KiB, slots 3 KiB`.
fn kibibytes(text: &str) -> u64 {
    text.split(", ").filter_map(|map| map.strip_suffix(" KiB")?.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_maps_add_up() {
        assert_eq!(kibibytes("frontends 12 KiB, slots 3 KiB"), 15);
        assert_eq!(kibibytes(""), 0);
    }

    #[test]
    fn numbers_of_a_process_are_found() {
        let status = "Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t7\n";
        assert_eq!((field(status, "VmRSS:").unwrap(), field(status, "Threads:").unwrap()), (1234, 7));
        assert!(field(status, "RssAnon:").is_err());
    }
}
