//! What the programs have to know of the node.

use core::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Address, Prefix};

/// Ranges of ServiceCIDR objects, at most: what is beyond is reported and not dropped.
pub const MAX_SERVICE_CIDRS: usize = 8;

/// The one value of `config`, an array.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Config {
    /// SO_NETNS_COOKIE of the node's own network namespace.
    pub host_netns: u64,
    /// Bits of [`Config::MASQUERADE_ALL`] and so on.
    pub flags: u32,
    /// First port of masqueraded connections, in the machine's byte order.
    pub masquerade_first: u16,
    /// How many ports masqueraded connections may take; not 0.
    pub masquerade_ports: u16,
    /// Pods by source address: IPv4, IPv6; [`Prefix::EMPTY`] where there is none.
    pub pods: [Prefix; 2],
    /// How many of `service_cidrs` count.
    pub service_cidr_count: u32,
    /// The least port of the frontends at addresses that the node holds, in the machine's byte order.
    pub own_first: u16,
    /// How many ports there are from that to the greatest one; 0: there are no such frontends.
    pub own_ports: u16,
    /// Addresses in here that nobody has are dropped.
    pub service_cidrs: [Prefix; MAX_SERVICE_CIDRS],
}

impl Config {
    /// All traffic to ClusterIPs is masqueraded.
    pub const MASQUERADE_ALL: u32 = 1;
    /// IPv4 has a detector of pods.
    pub const DETECTOR4: u32 = 2;
    /// IPv6 has a detector of pods.
    pub const DETECTOR6: u32 = 4;
    /// Pods are detected by [`Device::POD`].
    pub const BY_DEVICE: u32 = 8;
    /// Node ports of IPv4 answer at every address of the node.
    pub const ALL_NODE_PORTS4: u32 = 16;
    /// Node ports of IPv6 answer at every address of the node.
    pub const ALL_NODE_PORTS6: u32 = 32;
    /// Sockets of pods may be translated at connect: pods are told by address, and every pod of this node has one there.
    pub const PODS_AT_CONNECT: u32 = 64;
    /// `--socket-lb=all`: translate at connect whatever has an endpoint.
    pub const ALL_AT_CONNECT: u32 = 128;
    /// Connections are being moved here from maps of an earlier run, which other programs still use: no connection begins
    /// meanwhile, and packets of one that is not here yet are dropped. Both come again.
    pub const MOVING: u32 = 256;
    /// TCP connections that began before are connection tracking's: a packet that opens none and belongs to none of ours is
    /// left to it.
    pub const ESTABLISHED_ELSEWHERE: u32 = 1024;

    /// Whether some frontend at an address that the node holds may have this port, in network byte order.
    #[inline(always)]
    pub const fn may_be_own(&self, port: u16) -> bool {
        u16::from_be(port).wrapping_sub(self.own_first) < self.own_ports
    }

    /// Whether connections are masqueraded by this port, in network byte order, among others.
    #[inline(always)]
    pub const fn masquerades_by(&self, port: u16) -> bool {
        let port = u16::from_be(port);
        port.wrapping_sub(self.masquerade_first) < self.masquerade_ports
            || port.wrapping_sub(PRIVILEGED.start) < PRIVILEGED.end - PRIVILEGED.start
    }

    /// Nothing is known yet.
    pub const EMPTY: Self = Self {
        host_netns: 0,
        flags: 0,
        masquerade_first: 0,
        masquerade_ports: 1,
        pods: [Prefix::EMPTY; 2],
        service_cidr_count: 0,
        own_first: 0,
        own_ports: 0,
        service_cidrs: [Prefix::EMPTY; MAX_SERVICE_CIDRS],
    };
}

/// The ports that clients with a privileged one are masqueraded by; the kernel's own are the same (`nf_nat_core.c`), but for clients below
/// 512.
pub const PRIVILEGED: Range<u16> = 600..1024;

/// Value of `addresses`: bits of what an address is to this node.
pub mod address_is {
    /// An interface of the node holds it. Loopback addresses are held without being listed.
    pub const HELD: u32 = 1;
    /// Node ports answer there.
    pub const NODE_PORTS: u32 = 2;
    /// Some Service's ClusterIP.
    pub const CLUSTER_IP: u32 = 4;
}

/// Value of `devices`, by interface index.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Device {
    /// The source address of masqueraded IPv4 packets that leave here; [`Address::ZERO`] for none.
    pub masquerade4: Address,
    /// The same for IPv6.
    pub masquerade6: Address,
    /// Bits of [`Device::POD`].
    pub flags: u32,
    /// Its address on the link; zeroes where it has none of six bytes.
    pub link: [u16; 3],
    /// The network namespace of whoever is at the other end (a pod's), as the node numbers it (IFLA_LINK_NETNSID), plus 1;
    /// 0: it is not known.
    pub peer: u16,
}

impl Device {
    /// What comes in here comes from a pod (detectors by interface).
    pub const POD: u32 = 1;
    /// A program at XDP may send packets out here.
    pub const XDP: u32 = 4;
    /// It is a bridge: what comes in by it has come in by one of its ports before.
    pub const BRIDGE: u32 = 8;
    /// It carries another that the programs are at, too: a port of a bridge or bond, or what a macvlan lies upon. What leaves here may have
    /// left there.
    pub const PORT: u32 = 16;
    /// One namespace is behind it, as its routes say, and nothing else: a pod's veth that is on no bridge.
    pub const ROUTED: u32 = 32;
    /// Packets begin with the IP header (tunnels): no Ethernet header.
    pub const NO_ETHERNET: u32 = 2;
}
