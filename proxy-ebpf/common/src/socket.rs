//! Sockets whose connections were translated before their first packet.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Address;

/// Key of `socket_services` and `socket_endpoints`, LRU hashes: a socket of UDP that is not connected, and an address of a
/// peer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable)]
pub struct SocketKey {
    /// SO_COOKIE of the socket.
    pub cookie: u64,
    /// In `socket_services` the endpoint's address, in `socket_endpoints` the service's.
    pub address: Address,
    /// Its port, in network byte order.
    pub port: u16,
    /// [`crate::TCP`] or [`crate::UDP`].
    pub protocol: u16,
    /// 0.
    pub reserved: u32,
}

/// Value of `socket_services`: the service's address and port that the program that has the socket knows. Value of
/// `socket_endpoints` (datagrams of unconnected sockets): the endpoint that they go to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct SocketPeer {
    /// The address.
    pub address: Address,
    /// Its port, in network byte order.
    pub port: u16,
    /// 0.
    pub reserved: u16,
    /// When it was last used, in units of [`crate::flow::TICK`].
    pub seen: u32,
}

/// Value of `socket_connections`, an LRU hash, by SO_COOKIE: the connection of a translated socket, until that is closed.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct SocketConnection {
    /// The service's address: what the program that has the socket knows.
    pub service: Address,
    /// The endpoint's address.
    pub endpoint: Address,
    /// The service's port, in network byte order.
    pub service_port: u16,
    /// The endpoint's port, in network byte order.
    pub endpoint_port: u16,
    /// [`crate::TCP`] or [`crate::UDP`].
    pub protocol: u32,
    /// The endpoint's row of `backends`; 0: it is not counted.
    pub backend: u32,
    /// When it connected, in units of [`crate::flow::TICK`].
    pub since: u32,
}

impl SocketConnection {
    /// Value of a socket that was closed while connections were moved here ([`crate::Config::MOVING`]): what another map says of it
    /// is over, and is not to come.
    pub const CLOSED: Self = Self {
        service: Address::ZERO,
        endpoint: Address::ZERO,
        service_port: 0,
        endpoint_port: 0,
        protocol: 0,
        backend: 0,
        since: 0,
    };

    /// Whether it says that, and nothing else.
    pub const fn is_closed(&self) -> bool {
        self.protocol == 0
    }
}
