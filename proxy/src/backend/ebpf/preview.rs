//! What would be programmed, without programming it: `kubeferry plan`.

use super::bpf;
use super::diff::{InForce, Room};
use super::error::EbpfError;
use super::folder::Folder;
use super::following::Following;
use super::kernel::{Maps, Shape};
use super::rows::Fixed;
use super::text;
use crate::args::PlanOutput;
use crate::desired::Desired;
use crate::settings::Settings;

fn fixed(settings: &Settings, host_netns: u64) -> Fixed {
    Fixed {
        host_netns,
        masquerade_ports: settings.ebpf.masquerade_ports,
        socket_lb: settings.ebpf.socket_lb,
        established_elsewhere: false,
    }
}

/// Every row, and what has no place in maps of these sizes.
pub fn whole(desired: &Desired, settings: &Settings, output: PlanOutput) -> String {
    let (fixed, room) = (fixed(settings, 0), Room::of(&settings.ebpf.map_sizes));
    let mut following = Following::new(InForce::new(&room), room, fixed);
    following.full(desired, 0);
    let left_out = following.ignored();
    match output {
        PlanOutput::Nft => text::left_out(&left_out) + &text::lines(desired, &fixed),
        PlanOutput::Json => format!("{:#}\n", text::document(desired, &fixed, &left_out)),
    }
}

/// What `run` would change in the maps that are pinned.
///
/// # Errors
/// The maps are there and cannot be read.
pub fn difference(desired: &Desired, settings: &Settings) -> Result<String, EbpfError> {
    let shape = Shape::of(settings);
    let folder = Folder::new(&settings.ebpf, &shape);
    if !folder.has_maps() {
        return Ok(format!(
            "write everything: there are no maps of this version and these sizes in {}\n",
            folder.root().display()
        ));
    }
    let maps = Maps::open(folder.maps(), &shape)?;
    let host_netns =
        bpf::netns_cookie().map_err(|source| EbpfError::Node { what: "the network namespace's cookie", source })?;
    let mut following = Following::new(maps.read()?, *maps.room(), fixed(settings, host_netns));
    let changes = text::changes(&following.full(desired, bpf::now()));
    Ok(text::left_out(&following.ignored()) + &changes)
}
