//! What only the eBPF datapath reads.

use std::fmt;
use std::path::PathBuf;

use kubeferry_ebpf_common::flow::limits;

use super::merge::{Given, Inputs};
use super::node::ConntrackSettings;
use crate::args::EbpfArgs;
use crate::config::{Problem, ProxyConfig};

/// `--backend`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BackendName {
    /// Rows of an nftables table.
    #[default]
    Nftables,
    /// BPF programs and their maps.
    Ebpf,
}

impl BackendName {
    /// As `--backend` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Ebpf => "ebpf",
        }
    }

    /// Whether it knows how many connections each endpoint has.
    pub fn counts_connections(self) -> bool {
        self == Self::Ebpf
    }
}

/// `--socket-lb`: which connections are translated when a socket connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SocketLb {
    /// Those whose whole answer is known then.
    #[default]
    Auto,
    /// All that have an endpoint.
    All,
    /// None: no program is attached to the cgroup.
    Off,
}

impl SocketLb {
    /// As `--socket-lb` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::All => "all",
            Self::Off => "off",
        }
    }
}

/// `--xdp`: whether connections from outside to other nodes are carried before the kernel makes a packet of their frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpMode {
    /// By the driver, on devices whose driver can.
    #[default]
    Auto,
    /// By the driver; a device whose driver cannot is reported.
    Native,
    /// By the kernel, on every driver: for tests, it is no faster.
    Generic,
    /// Not at all.
    Off,
}

impl XdpMode {
    /// As `--xdp` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        }
    }
}

/// `--bpf-log-level`: what the programs write about single connections. The values are those of their constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum BpfLogLevel {
    /// Nothing; the programs have no code for it.
    #[default]
    Off = 0,
    /// Nothing today.
    Error = 1,
    /// Packets that cannot be carried.
    Warn = 2,
    /// And those that are refused or dropped as the Service asks for.
    Info = 3,
    /// And new connections.
    Debug = 4,
    /// And sockets that are left alone.
    Trace = 5,
}

impl BpfLogLevel {
    /// All of them, as `--bpf-log-level` takes them.
    pub const ALL: [(&'static str, Self); 6] = [
        ("off", Self::Off),
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];

    /// As `--bpf-log-level` takes it.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, level)| *level == self).map_or("off", |(text, _)| text)
    }
}

/// Rows that each map has room for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MapSizes {
    /// Where services are reached: addresses with ports, and node ports.
    pub frontends: u32,
    /// Endpoints, once for each list of a service port, and as many again as change at a time.
    pub slots: u32,
    /// Endpoints of service ports, once each, and a row more for each list with a turn.
    pub backends: u32,
    /// ClusterIPs and the node's addresses.
    pub addresses: u32,
    /// Interfaces.
    pub devices: u32,
    /// loadBalancerSourceRanges.
    pub source_ranges: u32,
    /// Endpoints of services with affinity.
    pub members: u32,
    /// Connections under way, two to four rows each.
    pub flows: u32,
    /// Clients of services with affinity.
    pub affinity: u32,
    /// Sockets that were translated when they connected, and are open; a quarter as many endpoints of sockets that are not
    /// connected.
    pub sockets: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            frontends: 65_536,
            slots: 262_144,
            backends: 262_144,
            addresses: 32_768,
            devices: 4_096,
            source_ranges: 65_536,
            members: 65_536,
            flows: 1_048_576,
            affinity: 65_536,
            sockets: 262_144,
        }
    }
}

impl MapSizes {
    /// Rows for sockets that are not connected.
    pub fn unconnected(&self) -> u32 {
        (self.sockets / 4).max(1)
    }

    /// The sizes by map.
    pub fn all(&self) -> [(&'static str, u32); 10] {
        let Self { frontends, slots, backends, addresses, devices, source_ranges, members, flows, affinity, sockets } =
            *self;
        [
            ("frontends", frontends),
            ("slots", slots),
            ("backends", backends),
            ("addresses", addresses),
            ("devices", devices),
            ("source_ranges", source_ranges),
            ("members", members),
            ("flows", flows),
            ("affinity", affinity),
            ("sockets", sockets),
        ]
    }

    fn set(&mut self, map: &str, rows: u32) -> bool {
        let place = match map {
            "frontends" => &mut self.frontends,
            "slots" => &mut self.slots,
            "backends" => &mut self.backends,
            "addresses" => &mut self.addresses,
            "devices" => &mut self.devices,
            "source_ranges" => &mut self.source_ranges,
            "members" => &mut self.members,
            "flows" => &mut self.flows,
            "affinity" => &mut self.affinity,
            "sockets" => &mut self.sockets,
            _ => return false,
        };
        *place = rows;
        true
    }
}

impl fmt::Display for MapSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.all().iter().map(|(map, rows)| format!("{map}={rows}")).collect();
        f.write_str(&texts.join(","))
    }
}

/// The flags of the eBPF datapath.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EbpfSettings {
    /// Patterns of interface names (`*` any letters, `?` one); empty: every device that packets of services can pass.
    pub devices: Vec<String>,
    /// Whether and how frames are carried at XDP.
    pub xdp: XdpMode,
    /// Patterns of the interfaces where they are; empty: hardware.
    pub xdp_devices: Vec<String>,
    /// The cgroup whose sockets are translated; `None`: the root of the cgroup v2 hierarchy.
    pub cgroup_root: Option<PathBuf>,
    /// Which connections are translated when a socket connects.
    pub socket_lb: SocketLb,
    /// Whether connected UDP sockets of pods are ended as well when their endpoint goes.
    pub end_pod_sockets: bool,
    /// Where the BPF file system is mounted: the folder `kubeferry` in it holds what outlives the process.
    pub bpffs_root: PathBuf,
    /// The first and the last port of masqueraded connections.
    pub masquerade_ports: (u16, u16),
    /// Rows that each map has room for.
    pub map_sizes: MapSizes,
    /// What the programs write to the log.
    pub log_level: BpfLogLevel,
}

impl Default for EbpfSettings {
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            xdp: XdpMode::Auto,
            xdp_devices: Vec::new(),
            cgroup_root: None,
            socket_lb: SocketLb::Auto,
            end_pod_sockets: false,
            bpffs_root: "/sys/fs/bpf".into(),
            masquerade_ports: (16_384, 29_999),
            map_sizes: MapSizes::default(),
            log_level: BpfLogLevel::Off,
        }
    }
}

/// A warning for each of these flags that is given, where another datapath is in force. `--bpffs-root` is none of them: what
/// this one has left is looked for there.
pub(super) fn without_effect(args: &EbpfArgs) -> impl Iterator<Item = String> {
    let given = [
        ("--devices", args.devices.is_some()),
        ("--xdp", args.xdp.is_some()),
        ("--xdp-devices", args.xdp_devices.is_some()),
        ("--cgroup-root", args.cgroup_root.is_some()),
        ("--socket-lb", args.socket_lb.is_some()),
        ("--end-pod-sockets", args.end_pod_sockets.is_some()),
        ("--masquerade-ports", args.masquerade_ports.is_some()),
        ("--bpf-log-level", args.bpf_log_level.is_some()),
        ("--map-sizes", args.map_sizes.is_some()),
    ];
    let given = given.into_iter().filter(|(_, is)| *is);
    given.map(|(flag, _)| format!("{flag} has no effect without --backend ebpf"))
}

/// A warning for each time of connection tracking that is not that of connections to Services: programs keep these themselves.
pub(super) fn other_times(config: &ProxyConfig, conntrack: &ConntrackSettings) -> impl Iterator<Item = String> {
    let times = [
        ("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout, limits::ESTABLISHED),
        ("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout, limits::HALF_CLOSED),
        ("conntrack.udpTimeout", conntrack.udp_timeout, limits::ONE_WAY),
        ("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout, limits::STREAM),
    ];
    let others = times.into_iter().filter(|(_, time, ours)| !time.is_zero() && time.as_secs() != u64::from(*ours));
    others.map(|(path, _, ours)| {
        let what = config.origin(path);
        format!("{what} is for connections past Services: with eBPF, those to Services are kept for {ours} s")
    })
}

/// Checks the flags and the block `ebpf`.
pub(super) fn check(given: &Inputs<'_>, problems: &mut Vec<Problem>) -> EbpfSettings {
    let (args, mut settings) = (&given.common.ebpf, EbpfSettings::default());
    let patterns = |flag: &Option<Vec<String>>, name: &str, path: &str| -> Vec<String> {
        let texts = given.texts(flag.as_ref(), name, path).map(|g| g.value).unwrap_or_default();
        texts.iter().map(|text| text.trim().to_owned()).filter(|pattern| !pattern.is_empty()).collect()
    };
    let folder = |flag: &Option<PathBuf>, path: &str| flag.clone().or_else(|| given.config.text(path).map(Into::into));
    let mut wrong = |given: &Given<String>, why: &str| problems.push(given.problem(why));
    settings.devices = patterns(&args.devices, "--devices", "ebpf.devices");
    settings.xdp_devices = patterns(&args.xdp_devices, "--xdp-devices", "ebpf.xdpDevices");
    if let Some(mode) = given.text(args.xdp.as_ref(), "--xdp", "ebpf.xdp") {
        match [XdpMode::Auto, XdpMode::Native, XdpMode::Generic, XdpMode::Off].iter().find(|m| m.as_str() == mode.value)
        {
            Some(mode) => settings.xdp = *mode,
            None => wrong(&mode, "must be auto, native, generic or off"),
        }
    }
    settings.cgroup_root = folder(&args.cgroup_root, "ebpf.cgroupRoot");
    if let Some(mode) = given.text(args.socket_lb.as_ref(), "--socket-lb", "ebpf.socketLB") {
        match [SocketLb::Auto, SocketLb::All, SocketLb::Off].iter().find(|m| m.as_str() == mode.value) {
            Some(mode) => settings.socket_lb = *mode,
            None => wrong(&mode, "must be auto, all or off"),
        }
    }
    settings.end_pod_sockets = given.switch(args.end_pod_sockets, "ebpf.endPodSockets");
    if let Some(root) = folder(&args.bpffs_root, "ebpf.bpffsRoot") {
        settings.bpffs_root = root;
    }
    if let Some(text) = given.text(args.masquerade_ports.as_ref(), "--masquerade-ports", "ebpf.masqueradePorts") {
        let ports = text.value.split_once('-');
        let ports = ports.and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        match ports.filter(|(first, last): &(u16, u16)| *first > 0 && first <= last) {
            Some(ports) => settings.masquerade_ports = ports,
            None => wrong(&text, "must be a range of ports such as 16384-29999"),
        }
    }
    if let Some(level) = given.text(args.bpf_log_level.as_ref(), "--bpf-log-level", "ebpf.bpfLogLevel") {
        match BpfLogLevel::ALL.iter().find(|(name, _)| *name == level.value) {
            Some((_, level)) => settings.log_level = *level,
            None => wrong(&level, "must be off, error, warn, info, debug or trace"),
        }
    }
    for (map, _) in MapSizes::default().all() {
        let rows = given.config.integer(&format!("ebpf.mapSizes.{map}"));
        if let Some(rows) = rows.and_then(|rows| u32::try_from(rows).ok()) {
            settings.map_sizes.set(map, rows);
        }
    }
    for text in args.map_sizes.iter().flatten().filter(|text| !text.trim().is_empty()) {
        let size = text.split_once('=').and_then(|(map, rows)| Some((map.trim(), rows.trim().parse::<u32>().ok()?)));
        if !size.filter(|(_, rows)| *rows > 0).is_some_and(|(map, rows)| settings.map_sizes.set(map, rows)) {
            let maps = settings.map_sizes.all().map(|(map, _)| map).join(", ");
            let given = Given { what: "--map-sizes".to_owned(), value: text.clone() };
            wrong(&given, &format!("must be NAME=ROWS, NAME one of {maps}"));
        }
    }
    settings
}
