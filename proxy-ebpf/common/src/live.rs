//! Following packets (`kubeferry trace --live`): what userspace asks for, and what the programs tell.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Address, FlowKey};

/// Value of `live_filter`, an array of one row: which packets are told of.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct LiveFilter {
    /// Until when, in nanoseconds of CLOCK_MONOTONIC; 0: none are told of. Whoever follows moves it on; when that ends, however
    /// it does, this passes, and the first program to see that writes 0.
    pub until: u64,
    /// How many connections are told of in 2^30 ns, at most.
    pub most: u32,
    /// Bits of [`LiveFilter::ANYWHERE`].
    pub flags: u32,
    /// The source; [`Address::ZERO`]: any.
    pub from: Address,
    /// The source port, in network byte order; 0: any.
    pub from_port: u16,
    /// 0.
    pub reserved: [u16; 3],
}

impl LiveFilter {
    /// Packets to anywhere; otherwise to what is [`live_destination::FOLLOWED`].
    pub const ANYWHERE: u32 = 1;

    /// Nothing is told.
    pub const OFF: Self = Self { until: 0, most: 0, flags: 0, from: Address::ZERO, from_port: 0, reserved: [0; 3] };

    /// Whether a packet comes from where it should.
    #[inline(always)]
    pub fn takes_source(&self, key: &FlowKey) -> bool {
        (self.from_port == 0 || self.from_port == key.source_port) && (self.from.is_zero() || self.from == key.source)
    }
}

/// Value of `live_destinations`, a hash by [`crate::FrontendKey`] of kind 0: a place that packets go to, as they come. The address is
/// [`Address::ZERO`] for any; or port and protocol are any, both of them.
pub mod live_destination {
    /// Every port, with [`ANY_PROTOCOL`].
    pub const ANY_PORT: u16 = 0;
    /// Every protocol, with [`ANY_PORT`].
    pub const ANY_PROTOCOL: u8 = 0;
    /// Packets to there are followed.
    pub const FOLLOWED: u32 = 1;
    /// They are not, wherever else is looked.
    pub const PASSED: u32 = 2;
}

/// Value of `live_spent`, an array of one row: what was told lately.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct LiveSpent {
    /// In which 2^30 ns.
    pub second: u64,
    /// Connections that were told of in it; may be a few more than [`LiveFilter::most`].
    pub told: u64,
    /// Events for which the ring buffer had no room, ever.
    pub lost: u64,
}

/// Value of `live_followed`, an LRU hash by [`FlowKey`]: a packet that was told of is expected here once more, as the key has it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct LiveFollowed {
    /// [`LiveEvent::number`]. Of keys with [`FlowKey::IN`] nothing is told any more: it is nobody's packet.
    pub number: u32,
    /// When it was told of, or last seen, in units of [`crate::flow::TICK`].
    pub seen: u32,
}

/// An event of `live_events`, a ring buffer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct LiveEvent {
    /// The packet: as it came; for [`LiveEvent::LEFT`] as it is before its source is rewritten; for sockets without a source.
    pub key: FlowKey,
    /// The endpoint; for [`LiveEvent::LEFT`] the source as it leaves.
    pub address: Address,
    /// Its port, in network byte order.
    pub port: u16,
    /// `LiveEvent::…`: what happened.
    pub kind: u8,
    /// `LiveEvent::AT_…`: where.
    pub place: u8,
    /// The index of the interface; 0: none.
    pub device: u32,
    /// For what was stopped, the [`crate::stats::Counter`]; otherwise bits of [`LiveEvent::MASQUERADE`].
    pub detail: u32,
    /// The same in all events of a packet, and seldom in those of another.
    pub number: u32,
}

impl LiveEvent {
    /// An endpoint was chosen.
    pub const CHOSEN: u8 = 1;
    /// It was refused.
    pub const REFUSED: u8 = 2;
    /// It was dropped.
    pub const DROPPED: u8 = 3;
    /// It leaves: of those that an endpoint was chosen for, or that are nobody's.
    pub const LEFT: u8 = 4;
    /// It is nobody's: it goes on as it is.
    pub const NOT_OURS: u8 = 5;

    /// A socket connects or sends.
    pub const AT_SOCKET: u8 = 1;
    /// The packet comes in, at TC.
    pub const AT_INGRESS: u8 = 2;
    /// The packet leaves, at TC.
    pub const AT_EGRESS: u8 = 3;
    /// The packet comes in, at XDP.
    pub const AT_XDP: u8 = 4;

    /// The source is rewritten where the packet leaves.
    pub const MASQUERADE: u32 = 1;
    /// The endpoint is in the host network of this node: the packet does not leave.
    pub const HERE: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_zero_is_not_looked_at() {
        let address = |last: u8| Address::v4(u32::from_ne_bytes([10, 0, 0, last]));
        let key = FlowKey {
            source: address(1),
            destination: address(2),
            source_port: 7,
            destination_port: 80,
            protocol: 6,
            hook: FlowKey::IN,
            reserved: 0,
        };
        let mut filter = LiveFilter::OFF;
        assert!(filter.takes_source(&key));
        filter.from = address(1);
        assert!(filter.takes_source(&key));
        filter.from_port = 8;
        assert!(!filter.takes_source(&key));
        filter = LiveFilter { from: address(2), ..LiveFilter::OFF };
        assert!(!filter.takes_source(&key));
    }
}
