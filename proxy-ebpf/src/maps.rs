//! Every map. Sizes here are the defaults; userspace sets them when it loads the object.

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use kubeferry_ebpf_common::{
    Address, Affinity, AffinityKey, Backend, Config, Device, Flow, FlowKey, Frontend, FrontendKey, Member, MemberKey,
    RangeKey, Slot, SocketConnection, SocketKey, SocketPeer, Traffic,
    live::{LiveEvent, LiveFilter, LiveFollowed, LiveSpent},
    stats::Counter,
};

/// Hash maps whose rows come one by one take memory for the rows that they have.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

/// Userspace maps the array into its memory, where it can change it atomically as well.
const MMAPABLE: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

/// The node.
#[btf_map(name = "config")]
pub static CONFIG: Array<Config, 1> = Array::new();

/// Where services are reached.
#[btf_map(name = "frontends")]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, 65_536, NO_PREALLOC> = HashMap::new();

/// Endpoints; a list is a range of slots.
#[btf_map(name = "slots")]
pub static SLOTS: Array<Slot, 262_144> = Array::new();

/// Endpoints' counters, and the turns of lists.
#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, 262_144, MMAPABLE> = Array::new();

/// What their connections carry, once for each shard of the CPUs: see `counting.rs`.
#[btf_map(name = "traffic")]
pub static TRAFFIC: Array<Traffic, 262_144, MMAPABLE> = Array::new();

/// What addresses are to this node.
#[btf_map(name = "addresses")]
pub static ADDRESSES: HashMap<Address, u32, 32_768, NO_PREALLOC> = HashMap::new();

/// Interfaces.
#[btf_map(name = "devices")]
pub static DEVICES: HashMap<u32, Device, 4_096, NO_PREALLOC> = HashMap::new();

/// Sources that may reach a load balancer address.
#[btf_map(name = "source_ranges")]
pub static SOURCE_RANGES: LpmTrie<RangeKey, u32, 65_536> = LpmTrie::new();

/// Connections under way; written by packets.
#[btf_map(name = "flows")]
pub static FLOWS: LruHashMap<FlowKey, Flow, 1_048_576> = LruHashMap::new();

/// Clients of services with affinity; written by packets.
#[btf_map(name = "affinity")]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity, 65_536> = LruHashMap::new();

/// Endpoints of services with affinity.
#[btf_map(name = "members")]
pub static MEMBERS: HashMap<MemberKey, Member, 65_536, NO_PREALLOC> = HashMap::new();

/// Counters.
#[btf_map(name = "stats")]
pub static STATS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// Ports (source, destination) and protocol of datagrams that come in fragments; written by their first fragments.
#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<kubeferry_ebpf_common::packet::FragmentKey, [u16; 3], 8_192> = LruHashMap::new();

/// Room to work in: see `work.rs`.
#[btf_map(name = "work")]
pub static WORK: PerCpuArray<crate::work::Work, 1> = PerCpuArray::new();

/// Whose answers sockets that are not connected believe to get: by socket and endpoint.
#[btf_map(name = "socket_services")]
pub static SOCKET_SERVICES: LruHashMap<SocketKey, SocketPeer, 65_536> = LruHashMap::new();

/// Where datagrams of unconnected sockets go: by socket and service address.
#[btf_map(name = "socket_endpoints")]
pub static SOCKET_ENDPOINTS: LruHashMap<SocketKey, SocketPeer, 65_536> = LruHashMap::new();

/// Connections of translated sockets, until they are closed: by cookie.
#[btf_map(name = "socket_connections")]
pub static SOCKET_CONNECTIONS: LruHashMap<u64, SocketConnection, 262_144> = LruHashMap::new();

/// Which packets somebody follows.
#[btf_map(name = "live_filter")]
pub static LIVE_FILTER: Array<LiveFilter, 1> = Array::new();

/// Where these packets go.
#[btf_map(name = "live_destinations")]
pub static LIVE_DESTINATIONS: HashMap<FrontendKey, u32, 4_096, NO_PREALLOC> = HashMap::new();

/// How many were told of lately.
#[btf_map(name = "live_spent")]
pub static LIVE_SPENT: Array<LiveSpent, 1> = Array::new();

/// Those that were, and are expected elsewhere.
#[btf_map(name = "live_followed")]
pub static LIVE_FOLLOWED: LruHashMap<FlowKey, LiveFollowed, 4_096> = LruHashMap::new();

/// What is told of them.
#[btf_map(name = "live_events")]
pub static LIVE_EVENTS: RingBuf<LiveEvent, 131_072> = RingBuf::new();
