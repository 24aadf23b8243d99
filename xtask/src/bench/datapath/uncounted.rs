//! The programs of TC without their counting of connections, in the place of those that a proxy has attached, with the same maps:
//! the difference is what the counting costs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use aya::EbpfLoader;
use aya::maps::{Array, Map, MapData};
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::SchedClassifierLink;

use crate::datapath::Datapath;
use crate::{ebpf, pins};

/// Constants of the programs (`counting.rs` of proxy-ebpf, aya-log): neither connections nor packets are counted, nothing is logged.
const CONSTANTS: [(&str, u32); 3] = [("COUNT_CONNECTIONS", 0), ("TRAFFIC_ROWS", 0), ("TRAFFIC_MASK", 0)];
const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
/// Rows of `backends` that are looked at: more than a benchmark's endpoints, which have the first.
const ROWS: u32 = 4_096;

/// Replaces what is attached, by links that are pinned.
///
/// # Errors
/// Nothing is attached so, or the kernel refuses.
pub fn replace(datapath: &Datapath) -> anyhow::Result<()> {
    let Datapath::Ebpf(places) = datapath else { bail!("no programs with nftables") };
    let (maps, programs) = folders(places.bpffs())?;
    let live = programs.join("live");
    let pinned: Vec<(String, PathBuf)> = names(&maps)?.into_iter().chain(names(&live)?).collect();
    let mut loader = EbpfLoader::new();
    for (name, path) in &pinned {
        loader.map_pin_path(name, path);
    }
    for (name, value) in &CONSTANTS {
        loader.override_global(name, value, true);
    }
    loader.override_global(LOG_LEVEL, &0_u8, true);
    let object = fs::read(ebpf::object()).context("the BPF object")?;
    let mut object = loader.load(&object).context("loading the programs that count nothing")?;
    for name in ["tc_ingress", "tc_egress"] {
        let program = object.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load().with_context(|| format!("the program {name}"))?;
        let links = names(&places.bpffs().join("kubeferry/links"))?;
        let links: Vec<_> = links.into_iter().filter(|(link, _)| link.starts_with(name)).collect();
        ensure!(!links.is_empty(), "{name} is attached by no link");
        for (_, path) in links {
            let link = FdLink::from(PinnedLink::from_pin(&path)?);
            program.attach_to_link(SchedClassifierLink::try_from(link)?).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// How many connections the rows of endpoints have counted.
///
/// # Errors
/// There are no maps.
pub fn counted(datapath: &Datapath) -> anyhow::Result<u64> {
    let Datapath::Ebpf(places) = datapath else { bail!("no rows of endpoints with nftables") };
    let (maps, _) = folders(places.bpffs())?;
    let rows = Map::Array(MapData::from_pin(maps.join("backends")).context("map backends")?);
    let rows: Array<MapData, [u64; 2]> = rows.try_into().context("map backends")?;
    (1..ROWS).map(|row| Ok(rows.get(&row, 0).context("reading backends")?[0])).sum()
}

fn folders(bpffs: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let maps = pins::folder(bpffs, "maps")?.context("no maps are pinned")?;
    Ok((maps, pins::folder(bpffs, "programs")?.context("no programs are pinned")?))
}

/// What is pinned in a folder, by its names.
fn names(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let named = entries.map(|entry| {
        let path = entry?.path();
        let name = path.file_name().context("no name")?.to_string_lossy().into_owned();
        Ok((name, path))
    });
    named
        .filter(|named| named.as_ref().is_ok_and(|(_, path): &(String, PathBuf)| !path.is_dir()) || named.is_err())
        .collect()
}
