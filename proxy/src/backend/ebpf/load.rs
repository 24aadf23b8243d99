//! Maps and programs in the kernel, pinned in the BPF file system so that they outlive the process. An earlier run's are
//! adopted where they are of the same shape; other ones stay in force until the new are attached, see [`Folder::tidy`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::{
    CgroupSock, CgroupSockAddr, CgroupSockAddrAttachType as Hook, CgroupSockAttachType, Program, ProgramError,
    SchedClassifier, Xdp,
};
use aya::{Ebpf, EbpfLoader};
use aya_obj::programs::XdpAttachType;
use kubeferry_ebpf_common::btf::bit_of;

use super::error::{EbpfError, help};
use super::folder::{Folder, list, remove};
use super::kernel::{Maps, Shape, definitions};
use super::log::{self, Lines};
use super::pins::Pins;
use super::{bpf, live, object, own_folder};
use crate::backend::nftables::chains::fnv1a;
use crate::settings::{BpfLogLevel, EbpfSettings};

/// Rows of each map where programs are only tried.
const TRIAL_ROWS: u32 = 64;

/// The programs of traffic control: each hook, for devices with an Ethernet header and for those without.
pub const TC: [[&str; 2]; 2] = [["tc_egress", "tc_egress_l3"], ["tc_ingress", "tc_ingress_l3"]];

/// The program of uplinks.
pub const XDP: &str = "xdp_uplink";

/// The program of sockets that are closed.
pub const RELEASE: &str = "sock_release";

/// The programs of sockets.
pub const SOCKETS: [(&str, Hook); 8] = [
    // What undoes a translation comes before what does it.
    ("getpeername4", Hook::GetPeerName4),
    ("getpeername6", Hook::GetPeerName6),
    ("recvmsg4", Hook::UDPRecvMsg4),
    ("recvmsg6", Hook::UDPRecvMsg6),
    ("sendmsg4", Hook::UDPSendMsg4),
    ("sendmsg6", Hook::UDPSendMsg6),
    ("connect4", Hook::Connect4),
    ("connect6", Hook::Connect6),
];

/// What is in the kernel.
#[derive(Debug)]
pub struct Loaded {
    /// Where it is pinned.
    pub folder: Folder,
    /// The maps.
    pub maps: Maps,
    /// The programs of traffic control, by name.
    pub tc: BTreeMap<&'static str, SchedClassifier>,
    /// The program of uplinks.
    pub xdp: Option<Xdp>,
    /// The programs of sockets, by name.
    pub sockets: BTreeMap<&'static str, CgroupSockAddr>,
    /// The program of sockets that are closed.
    pub release: Option<CgroupSock>,
    /// An earlier run had loaded these very programs.
    pub adopted: bool,
    /// The maps are new: no program has ever been attached that uses them.
    pub fresh: bool,
    /// What the programs write, if they do.
    pub lines: Option<Lines>,
    /// The maps and programs where they are pinned.
    pub pins: Pins,
}

/// Loads the programs and makes the maps, or adopts those of an earlier run. Attaches nothing.
///
/// # Errors
/// No BPF file system, no right, or the kernel takes a program or map not.
pub fn load(settings: &EbpfSettings, shape: &Shape) -> Result<Loaded, EbpfError> {
    if bpf::file_system(&settings.bpffs_root).ok() != Some(bpf::BPF_FS) {
        return Err(EbpfError::NoFileSystem(settings.bpffs_root.clone()));
    }
    let folder = Folder::new(settings, shape);
    for path in [&folder.root, &folder.links(), &folder.maps, &folder.programs, &live::folder(&folder.programs)] {
        own_folder::make(path)?;
    }
    if is_frozen(&folder.maps)? {
        // What cannot be written any more goes on with its programs, as maps of another size would, until others are in their places.
        tracing::warn!(maps = %folder.maps.display(), "somebody has frozen maps of ours: making new ones");
        let aside = folder.root.join("maps-frozen");
        remove(&aside)?;
        fs::rename(&folder.maps, &aside).map_err(EbpfError::pin(&aside))?;
        own_folder::make(&folder.maps)?;
    }
    // Programs that write are loaded with a ring buffer of ours.
    let silent = settings.log_level == BpfLogLevel::Off;
    let adopted =
        silent && Maps::open(&folder.maps, shape).is_ok() && seal(&folder, shape).is_ok_and(|seal| seal.exists());
    let (mut lines, mut fresh) = (None, false);
    if !adopted {
        remove(&folder.programs)?;
        own_folder::make(&folder.programs)?;
        own_folder::make(&live::folder(&folder.programs))?;
        if list(&folder.maps)?.is_empty() || Maps::open(&folder.maps, shape).is_err() {
            remove(&folder.maps)?;
            own_folder::make(&folder.maps)?;
            fresh = true;
        }
        let mut object = load_object(settings, shape, Some(&folder))?;
        if !silent {
            lines = Some(Lines::of(&mut object)?);
        }
        let seal = seal(&folder, shape)?;
        own_folder::make(&seal)?;
    }
    let mut pins = Pins::new(folder.file_system().to_owned());
    for path in [&folder.maps, &folder.programs, &live::folder(&folder.programs)]
        .into_iter()
        .map(|folder| list(folder))
        .collect::<Result<Vec<_>, _>>()?
    {
        for path in path.into_iter().filter(|path| !path.is_dir()) {
            let object = bpf::open_pin(&path).map_err(EbpfError::pin(&path))?;
            pins.hold(path, object);
        }
    }
    pins.seal(seal(&folder, shape)?);
    let maps = Maps::open(&folder.maps, shape)?;
    let (mut tc, mut sockets) = (BTreeMap::new(), BTreeMap::new());
    let failed = |what: &str, error: ProgramError| EbpfError::Load { what: what.to_owned(), why: error.to_string() };
    for name in TC.into_iter().flatten().filter(|name| folder.programs.join(name).exists()) {
        let program = SchedClassifier::from_pin(folder.programs.join(name)).map_err(|error| failed(name, error))?;
        tc.insert(name, program);
    }
    for (name, hook) in SOCKETS.into_iter().filter(|(name, _)| folder.programs.join(name).exists()) {
        let program =
            CgroupSockAddr::from_pin(folder.programs.join(name), hook).map_err(|error| failed(name, error))?;
        sockets.insert(name, program);
    }
    let xdp = match folder.programs.join(XDP) {
        path if path.exists() => {
            Some(Xdp::from_pin(path, XdpAttachType::Interface).map_err(|error| failed(XDP, error))?)
        }
        _ => None,
    };
    let release = match folder.programs.join(RELEASE) {
        path if path.exists() => Some(
            CgroupSock::from_pin(path, CgroupSockAttachType::SockRelease).map_err(|error| failed(RELEASE, error))?,
        ),
        _ => None,
    };
    Ok(Loaded { folder, maps, tc, xdp, sockets, release, adopted, fresh, lines, pins })
}

/// Whether userspace may not write some map that is pinned there.
fn is_frozen(maps: &Path) -> Result<bool, EbpfError> {
    for path in list(maps)? {
        let map = bpf::open_pin(&path).map_err(EbpfError::pin(&path))?;
        if bpf::is_frozen(map.as_fd()).map_err(EbpfError::pin(&path))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A folder, since files cannot be made there, whose name says which programs are pinned beside it, and that they use the
/// maps that are pinned: with it, they are all there and nobody has put another in the place of one.
fn seal(folder: &Folder, shape: &Shape) -> Result<PathBuf, EbpfError> {
    let (mut text, mut used) = (String::new(), BTreeSet::new());
    for path in list(&folder.programs)?.into_iter().filter(|path| !path.is_dir()) {
        let program = bpf::open_pin(&path).and_then(|program| bpf::program(program.as_fd()));
        let (tag, maps) = program.map_err(EbpfError::pin(&path))?;
        used.extend(maps);
        text += &format!("{} {tag:016x}\n", path.file_name().unwrap_or_default().display());
    }
    let maps = definitions(shape).into_iter().map(|(map, _)| (map, folder.maps.join(map)));
    let live = live::MAPS.into_iter().map(|map| (map, live::folder(&folder.programs).join(map)));
    for (map, path) in maps.chain(live) {
        let number = bpf::open_pin(&path).and_then(|map| bpf::number(map.as_fd())).map_err(EbpfError::pin(&path))?;
        text += &format!("{map} {}\n", used.contains(&number));
    }
    Ok(folder.programs.join(format!("complete-{:016x}", fnv1a(text.as_bytes()))))
}

/// Has the kernel's verifier look at every program, with maps of the least size, and lets go of all of it.
///
/// # Errors
/// As [`load`].
pub fn trial(settings: &EbpfSettings, shape: &Shape) -> Result<(), EbpfError> {
    if bpf::file_system(&settings.bpffs_root).ok() != Some(bpf::BPF_FS) {
        return Err(EbpfError::NoFileSystem(settings.bpffs_root.clone()));
    }
    load_object(settings, shape, None).map(drop)
}

/// Loads the object's programs; those of a folder with its maps, and pinned there.
fn load_object(settings: &EbpfSettings, shape: &Shape, folder: Option<&Folder>) -> Result<Ebpf, EbpfError> {
    let definitions = definitions(shape);
    let mut loader = EbpfLoader::new();
    for (map, definition) in &definitions {
        match folder {
            Some(folder) => loader.map_pin_path(map, folder.maps.join(map)).map_max_entries(map, definition.rows),
            None => loader.map_max_entries(map, definition.rows.min(TRIAL_ROWS)),
        };
    }
    if let Some(folder) = folder {
        for map in live::MAPS {
            loader.map_pin_path(map, live::folder(&folder.programs).join(map));
        }
    }
    // The programs' constants.
    let (rows, mask) = (shape.shards.rows, shape.shards.mask());
    loader.override_global("TRAFFIC_ROWS", &rows, true).override_global("TRAFFIC_MASK", &mask, true);
    let kernel_socket = kernel_socket_bit();
    loader.override_global("KERNEL_SOCKET_BIT", &kernel_socket, true);
    let level = settings.log_level as u8;
    loader.override_global(log::LEVEL, &level, true).map_max_entries(log::MAP, log::bytes(settings.log_level));
    let mut object = loader.load(object::OBJECT).map_err(|error| {
        let why = chain(&error);
        EbpfError::Load { what: "the maps".to_owned(), why: why + help_in(&error) }
    })?;
    for (name, program) in object.programs_mut() {
        let failed = |error: &(dyn std::error::Error + 'static)| EbpfError::Load {
            what: format!("the program {name}"),
            why: chain(error) + help_in(error),
        };
        match program {
            Program::SchedClassifier(program) => program.load().map_err(|error| failed(&error))?,
            Program::CgroupSockAddr(program) => program.load().map_err(|error| failed(&error))?,
            Program::CgroupSock(program) => program.load().map_err(|error| failed(&error))?,
            Program::Xdp(program) => program.load().map_err(|error| failed(&error))?,
            // Programs of hooks that are not used.
            _ => continue,
        }
        if let Some(folder) = folder {
            program.pin(folder.programs.join(name)).map_err(|error| failed(&error))?;
        }
    }
    Ok(object)
}

/// Where the kernel says that it has made a socket for itself; 0: it does not.
fn kernel_socket_bit() -> u32 {
    const TYPES: &str = "/sys/kernel/btf/vmlinux";
    const MEANS: &str = "connections of network file systems to Services count as active until their row of the map socket_connections \
                         is thrown out";
    match fs::read(TYPES).map(|types| bit_of(&types, "sock", "sk_kern_sock")) {
        Ok(Some(bit)) => return bit,
        Ok(None) => tracing::warn!("{TYPES} does not say which sockets the kernel makes for itself: {MEANS}"),
        Err(error) => tracing::warn!(%error, "{TYPES} cannot be read: {MEANS}"),
    }
    0
}

/// An error with its causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text += &format!(": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What helps, by the first of the causes that is the system's.
fn help_in(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return help(error);
        }
        next = cause.source();
    }
    ""
}
