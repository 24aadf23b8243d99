//! Services: where they are reached, and what is behind.

use crate::Address;

/// Key of `frontends`: where a service port is reached.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
}

/// Value of `slots`, an array: one endpoint of a list.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Slot {
    /// The endpoint's address.
    pub address: Address,
    /// Its port, in network byte order.
    pub port: u16,
    /// Bits of [`Slot::HOST`].
    pub flags: u16,
    /// Number of the endpoint, for counters.
    pub backend: u32,
}

impl Slot {
    /// The address is one of this node's own: the endpoint is in the host network here.
    pub const HOST: u16 = 1;
}

/// Key of `affinity`, an LRU hash.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AffinityKey {
    /// [`Frontend::service`].
    pub service: u64,
    /// The client.
    pub client: Address,
}

/// Value of `affinity`: where a client went. It counts while the endpoint's [`Member`] is older than `seen` and the
/// timeout has not passed since.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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
