//! Services: where they are reached, and what is behind.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Address;

/// Key of `frontends`: where a service port is reached.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable)]
pub struct FrontendKey {
    /// The address; [`Address::ZERO`] for a node port.
    pub address: Address,
    /// The port, in network byte order.
    pub port: u16,
    /// [`crate::TCP`], [`crate::UDP`] or [`crate::SCTP`].
    pub protocol: u8,
    /// [`FrontendKey::ADDRESS`], [`FrontendKey::NODE_PORT4`] or [`FrontendKey::NODE_PORT6`].
    pub kind: u8,
}

impl FrontendKey {
    /// An address of the Service.
    pub const ADDRESS: u8 = 0;
    /// A node port of IPv4.
    pub const NODE_PORT4: u8 = 4;
    /// A node port of IPv6.
    pub const NODE_PORT6: u8 = 6;
}

/// Value of `frontends`: what to do with a new connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct Frontend {
    /// Identity of the service port in its family, the same over restarts: key of `affinity`, `members`, `source_ranges`.
    pub service: u64,
    /// First slot of the Cluster list.
    pub cluster_first: u32,
    /// Slots of the Cluster list.
    pub cluster_count: u32,
    /// First slot of the Local list.
    pub local_first: u32,
    /// Slots of the Local list.
    pub local_count: u32,
    /// Bits of [`Frontend::REFUSE`] and so on.
    pub flags: u32,
    /// ClientIP affinity: seconds for which a client is remembered; 0 for none.
    pub affinity: u32,
    /// How a slot is drawn: [`draw::RANDOM`] and so on.
    pub draw: u32,
    /// The row of `backends` that keeps the turn of the Cluster list; 0: none is needed.
    pub cluster_turn: u32,
    /// The same for the Local list.
    pub local_turn: u32,
    /// 0.
    pub reserved: u32,
}

/// How one of a list's slots is drawn for a new connection.
pub mod draw {
    /// Any, each with the same probability.
    pub const RANDOM: u32 = 0;
    /// The next in turn.
    pub const TURN: u32 = 1;
    /// By the hash of the source address.
    pub const SOURCE: u32 = 2;
    /// By the hash of the source address and port.
    pub const SOURCE_AND_PORT: u32 = 3;
    /// By the hash of the destination address.
    pub const DESTINATION: u32 = 4;
    /// The fewest active connections for its weight; of equals the next in turn.
    pub const LEAST: u32 = 5;
    /// The fewest (active connections + 1) for its weight; of equals the next in turn.
    pub const SHORTEST: u32 = 6;
    /// The next in turn that has no active connection, if there is one; otherwise as [`SHORTEST`].
    pub const NEVER_QUEUE: u32 = 7;
    /// How many slots are looked at, at most, where connections are counted: of longer lists those that come next in turn.
    pub const LOOKED_AT: u32 = 1_024;
}

impl Frontend {
    /// No usable endpoint anywhere: reset or ICMP port unreachable.
    pub const REFUSE: u32 = 1;
    /// Not a ClusterIP: external traffic policy and its masquerade rules apply.
    pub const EXTERNAL: u32 = 2;
    /// The traffic policy that applies (internal for a ClusterIP, otherwise external) is Local.
    pub const LOCAL: u32 = 4;
    /// Sources have to be in `source_ranges`.
    pub const RANGED: u32 = 8;
    /// A packet to one of its endpoints is a Service's, too. Sockets are left to packets, which get one translation; a packet of
    /// a socket that was translated would get another.
    pub const NESTED: u32 = 16;
}

/// Value of `slots`, an array: one endpoint of a list.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct Slot {
    /// The endpoint's address.
    pub address: Address,
    /// Its port, in network byte order.
    pub port: u16,
    /// Bits of [`Slot::HOST`].
    pub flags: u16,
    /// The endpoint's row of `backends`; 0: it is not counted.
    pub backend: u32,
    /// Its weight, where connections are counted; not 0 there.
    pub weight: u32,
}

/// Value of `backends`, an array: an endpoint of a service port, or the turn of one of its lists. Programs and userspace
/// (which maps the array into its memory) change each field atomically.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct Backend {
    /// New connections that it got since it has the row; of a list: its turn.
    pub opened: u64,
    /// Connections that have not ended yet.
    pub active: u64,
}

/// Value of `traffic`, an array that has a row for each of `backends` once for each shard, one shard after the other: CPUs that count
/// at a time do so in memory of their own. What is carried by connections of a row of `backends` is the sum over its shards. Programs
/// and userspace (which maps the array into its memory) change each field atomically.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct Traffic {
    /// Packets, both ways.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

impl Slot {
    /// The address is one of this node's own: the endpoint is in the host network here.
    pub const HOST: u16 = 1;
}

/// Key of `affinity`, an LRU hash.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct AffinityKey {
    /// [`Frontend::service`].
    pub service: u64,
    /// The client.
    pub client: Address,
}

/// Value of `affinity`: where a client went. It counts while the endpoint's [`Member`] is older than `seen` and the
/// timeout has not passed since.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Affinity {
    /// The endpoint's address.
    pub address: Address,
    /// Its port, in network byte order.
    pub port: u16,
    /// 0.
    pub reserved: [u16; 3],
    /// Nanoseconds since boot (CLOCK_MONOTONIC) of the last new connection.
    pub seen: u64,
}

/// Key of `members`: an endpoint of a service port with affinity.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable)]
pub struct MemberKey {
    /// [`Frontend::service`].
    pub service: u64,
    /// The endpoint's address.
    pub address: Address,
    /// Its port, in network byte order.
    pub port: u16,
    /// 0.
    pub reserved: [u16; 3],
}

/// Value of `members`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Member {
    /// Nanoseconds since boot (CLOCK_MONOTONIC) at which the endpoint joined: clients of before are forgotten.
    pub since: u64,
    /// Bits of [`Member::CLUSTER`] and [`Member::LOCAL`]: the lists it is in.
    pub lists: u32,
    /// Its slot's [`Slot::backend`].
    pub backend: u32,
    /// Its slot's [`Slot::flags`].
    pub flags: u16,
    /// 0.
    pub reserved: [u16; 3],
}

impl Member {
    /// In the Cluster list.
    pub const CLUSTER: u32 = 1;
    /// In the Local list.
    pub const LOCAL: u32 = 2;
}

/// Key of `source_ranges`, an LPM trie, without its length: the length counts [`RangeKey::SERVICE_BITS`] for the service
/// and then the bits of the range's address (96 more for IPv4).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable)]
pub struct RangeKey {
    /// [`Frontend::service`] as bytes of the machine's order: two words, so that no padding is needed after the length.
    pub service: [u32; 2],
    /// A source.
    pub address: Address,
}

impl RangeKey {
    /// Bits of the service.
    pub const SERVICE_BITS: u32 = 64;

    /// The key of a source of a service.
    #[inline(always)]
    pub const fn new(service: u64, address: Address) -> Self {
        Self { service: [(service >> 32) as u32, service as u32], address }
    }
}
