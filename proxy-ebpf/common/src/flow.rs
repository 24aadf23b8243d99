//! Connections under way. Packets that come in get another destination, packets that go out another source, as with the
//! kernel's own NAT, so that routing and the check of the reverse path see what they would see there.
//!
//! A connection from `client` to `service`, carried to `endpoint`, has these entries; the last two only if its source is
//! rewritten, to `masquerade`, or if the client is the node itself:
//!
//! | entry | hook | source → destination | becomes |
//! | --- | --- | --- | --- |
//! | forward | in | client → service | destination `endpoint` |
//! | backward | out | endpoint → client | source `service` |
//! | forward | out | client → endpoint | source `masquerade` |
//! | backward | in | endpoint → masquerade | destination `client` |
//!
//! If the client's port talks to the endpoint already, by way of another service or by none, the connection goes on from
//! another port of the client, an alias: its forward-in entry rewrites that, too, and its backward-out entry undoes it
//! ([`Flow::ALIAS`]). A connection to the endpoint itself has entries only if it needs an alias: `service` is then `endpoint`.
//!
//! The others can be found from the first: see [`FlowKey::siblings`]. If the node itself is the client and the endpoint is
//! on the node, too, `masquerade` is the service's address with the client's port, and there is no forward-out entry.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Address, TCP};

/// The clock of flows: CLOCK_MONOTONIC in nanoseconds, shifted right by this. A unit is 2^30 ns, 1.07 seconds.
pub const TICK: u32 = 30;

/// In units of that clock, a little more than a second: of what went by no longer ago, something may still be on its way.
pub const JUST_NOW: u32 = 1;

/// Key of `flows`, an LRU hash.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable)]
pub struct FlowKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, in network byte order.
    pub source_port: u16,
    /// Destination port, in network byte order.
    pub destination_port: u16,
    /// Protocol number.
    pub protocol: u8,
    /// [`FlowKey::IN`] or [`FlowKey::OUT`].
    pub hook: u8,
    /// 0.
    pub reserved: u16,
}

impl FlowKey {
    /// Packets that come in to the node, or that it makes itself: their destination is rewritten.
    pub const IN: u8 = 0;
    /// Packets that leave through a device: their source is rewritten.
    pub const OUT: u8 = 1;

    /// What comes in for this address and port (network byte order), whoever sends it.
    #[inline(always)]
    pub const fn from_anybody(protocol: u8, destination: Address, port: u16) -> Self {
        Self {
            source: Address::ZERO,
            destination,
            source_port: 0,
            destination_port: port,
            protocol,
            hook: Self::IN,
            reserved: 0,
        }
    }

    /// Writes the key of the backward-out entry of a connection whose forward-in entry is this, with value `flow`.
    #[inline(always)]
    pub fn write_backward(&self, flow: &Flow, to: &mut Self) {
        to.source = flow.address;
        to.destination = self.source;
        to.source_port = flow.port;
        to.destination_port = flow.client_port(self.source_port);
        to.protocol = self.protocol;
        to.hook = Self::OUT;
        to.reserved = 0;
    }

    /// Writes the key of the forward-out entry of a connection whose forward-in entry is this, with value `flow`.
    #[inline(always)]
    pub fn write_forward(&self, flow: &Flow, to: &mut Self) {
        to.source = self.source;
        to.destination = flow.address;
        to.source_port = flow.client_port(self.source_port);
        to.destination_port = flow.port;
        to.protocol = self.protocol;
        to.hook = Self::OUT;
        to.reserved = 0;
    }

    /// Writes the key of the backward-in entry of a connection whose forward-out entry is this, with value `flow`.
    #[inline(always)]
    pub fn write_answer(&self, flow: &Flow, to: &mut Self) {
        to.source = self.destination;
        to.destination = flow.address;
        to.source_port = self.destination_port;
        to.destination_port = flow.port;
        to.protocol = self.protocol;
        to.hook = Self::IN;
        to.reserved = 0;
    }

    /// Writes the key of the backward-in entry of a connection with [`Flow::LOOPS`], whose forward-in entry is this, with
    /// value `flow`.
    #[inline(always)]
    pub fn write_looped(&self, flow: &Flow, to: &mut Self) {
        to.source = flow.address;
        to.destination = self.destination;
        to.source_port = flow.port;
        to.destination_port = flow.client_port(self.source_port);
        to.protocol = self.protocol;
        to.hook = Self::IN;
        to.reserved = 0;
    }

    /// Writes the key of the forward-in entry of a connection whose backward-out entry is this, with value `flow`.
    #[inline(always)]
    pub fn write_first(&self, flow: &Flow, to: &mut Self) {
        to.source = self.destination;
        to.destination = flow.address;
        to.source_port = flow.client_port(self.destination_port);
        to.destination_port = flow.port;
        to.protocol = self.protocol;
        to.hook = Self::IN;
        to.reserved = 0;
    }

    /// Writes the key that an answer to the packet with this key has at `hook`, if nothing is rewritten.
    #[inline(always)]
    pub fn write_reverse(&self, hook: u8, to: &mut Self) {
        to.source = self.destination;
        to.destination = self.source;
        to.source_port = self.destination_port;
        to.destination_port = self.source_port;
        to.protocol = self.protocol;
        to.hook = hook;
        to.reserved = 0;
    }

    /// For the forward-in entry of a connection: the keys of its backward-out and of its forward-out entry.
    pub fn siblings(&self, flow: &Flow) -> (Self, Self) {
        let (mut backward, mut forward) = (*self, *self);
        self.write_backward(flow, &mut backward);
        self.write_forward(flow, &mut forward);
        (backward, forward)
    }

    /// For the forward-out entry of a connection: the key of its backward-in entry.
    pub fn answer(&self, flow: &Flow) -> Self {
        let mut answer = *self;
        self.write_answer(flow, &mut answer);
        answer
    }
}

/// Value of `flows`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Flow {
    /// The new address.
    pub address: Address,
    /// The new port, in network byte order.
    pub port: u16,
    /// Bits of [`Flow::FORWARD`] and so on; only packets of this entry's direction change them, one by one and atomically.
    pub flags: u16,
    /// When the last packet of this direction went by, in units of [`TICK`].
    pub seen: u32,
    /// For connections of the node itself: the interface that packets to the service's address leave by; backward-in, where
    /// answers then seem to come from. With [`Flow::ALIAS`]: the client's new port, in network byte order.
    pub device: u32,
    /// The endpoint's row of `backends`. In the forward-in entry, with [`Flow::COUNTED`] while the connection counts as
    /// active there; whoever takes the bit away, atomically, takes the connection from the count.
    pub backend: u32,
    /// With [`Flow::KNOWN`]: who this side's packets come from: [`crate::Device::peer`] of the interface that they came in by,
    /// [`Flow::NODE`], [`Flow::BRIDGED`], or 0 for everybody else. Nobody else is believed that this side ends, or begins anew. Of
    /// a client, the first packet after the SYN decides ([`Flow::SETTLED`]): a new pod's SYN may leave by an interface that has no program
    /// yet, and be met only where it comes back from the router.
    pub sender: u32,
    /// 0.
    pub reserved: u32,
}

impl Flow {
    /// Bit of [`Flow::backend`].
    pub const COUNTED: u32 = 1 << 31;

    /// [`Flow::sender`]: the node itself.
    pub const NODE: u32 = 1 << 16;
    /// [`Flow::sender`]: somebody on a bridge; which of them was not seen.
    pub const BRIDGED: u32 = 2 << 16;
    /// Whose packets have come in by an interface that has lost its row of `devices`: nothing tells who that is, until it is repaired.
    pub const ANYBODY: u32 = 3 << 16;

    /// The endpoint's row of `backends`.
    #[inline(always)]
    pub const fn backend_row(&self) -> u32 {
        self.backend & !Self::COUNTED
    }

    /// Packets from the client.
    pub const FORWARD: u16 = 1;
    /// Forward-out: the source is to be rewritten, and to what is decided by the first packet that gets here.
    pub const PENDING: u16 = 2;
    /// The client is the node itself: answers get both rewrites where they come in, since nothing lets them out again.
    pub const OWN: u16 = 4;
    /// A FIN went by in this direction.
    pub const FIN: u16 = 8;
    /// A RST went by in this direction; of SCTP an ABORT or SHUTDOWN COMPLETE.
    pub const RST: u16 = 16;
    /// A packet of this direction has been seen.
    pub const SEEN: u16 = 32;
    /// Forward-in, of the node itself: the endpoint is on this node, too. What comes from one's own address is refused
    /// where it comes in, so the packet's source becomes the service's address, with the client's port or its alias.
    pub const LOOPS: u16 = 128;
    /// The entry leaves packets as they are: a connection whose own source stays (see [`Flow::OWN`]).
    pub const KEEPS: u16 = 64;
    /// [`Flow::sender`] is known.
    pub const KNOWN: u16 = 512;
    /// This side has sent something after its SYN: [`Flow::sender`] stays.
    pub const SETTLED: u16 = 4096;
    /// Forward-in: the source is to be rewritten as well, so there is a forward-out entry, and a backward-in one once that is decided.
    pub const MASQUERADED: u16 = 1024;
    /// Packets of this direction have gone by at two times of which one is the next, in units of [`TICK`]: there may be no time between them.
    pub const AGAIN: u16 = 8192;
    /// They have at three, or at two that are further apart.
    pub const LASTS: u16 = 2048;
    /// Forward-in and backward-out: the client's port is rewritten, too, to [`Flow::device`].
    pub const ALIAS: u16 = 256;

    /// Whether an entry with this key leaves packets as they are, of a connection that goes by on its own: see `others.rs` of the
    /// programs.
    #[inline(always)]
    pub fn passes(&self, key: &FlowKey) -> bool {
        let translates = Self::OWN | Self::LOOPS | Self::MASQUERADED | Self::ALIAS;
        self.backend == 0
            && self.flags & translates == 0
            && (self.address, self.port) == (key.destination, key.destination_port)
    }

    /// The client's port behind a forward-in entry; `port` in its key.
    #[inline(always)]
    pub const fn client_port(&self, port: u16) -> u16 {
        if self.flags & Self::ALIAS != 0 { self.device as u16 } else { port }
    }
}

/// For how many units of [`TICK`] a connection is kept without a packet.
pub mod limits {
    /// TCP, both sides heard (kube-proxy sets the kernel's to the same).
    pub const ESTABLISHED: u32 = 86_400;
    /// TCP, not answered yet.
    pub const OPENING: u32 = 60;
    /// TCP, closed by both sides, or reset; SCTP, shut down or aborted.
    pub const CLOSED: u32 = 10;
    /// TCP, closed by one side (kube-proxy's `tcpCloseWaitTimeout`).
    pub const HALF_CLOSED: u32 = 3_600;
    /// UDP and SCTP, not answered yet, and UDP that was a question and its answer. A masqueraded one has a port for so long.
    pub const ONE_WAY: u32 = 30;
    /// UDP, both sides heard, one of them at different times.
    pub const STREAM: u32 = 120;
    /// SCTP, both sides heard.
    pub const ASSOCIATION: u32 = 210;
}

/// How many units of [`TICK`] are over since `seen`: none where another CPU has noted a later one than our `now`.
#[inline(always)]
pub const fn since(now: u32, seen: u32) -> u32 {
    let idle = now.wrapping_sub(seen);
    if idle > u32::MAX / 2 { 0 } else { idle }
}

/// For how many units of [`TICK`] after its last packet a connection is kept, by the flags of all of its entries, together for each
/// direction.
#[inline(always)]
pub const fn timeout(protocol: u8, forward: u16, backward: u16) -> u32 {
    let both = forward & backward;
    let either = forward | backward;
    match protocol {
        TCP if either & Flow::RST != 0 || both & Flow::FIN != 0 => limits::CLOSED,
        TCP if both & Flow::SEEN == 0 => limits::OPENING,
        TCP if either & Flow::FIN != 0 => limits::HALF_CLOSED,
        TCP => limits::ESTABLISHED,
        crate::SCTP if either & Flow::RST != 0 => limits::CLOSED,
        _ if both & Flow::SEEN == 0 => limits::ONE_WAY,
        crate::SCTP => limits::ASSOCIATION,
        // As the kernel's connection tracking, which asks for two seconds.
        _ if either & Flow::LASTS == 0 => limits::ONE_WAY,
        _ => limits::STREAM,
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::UDP;

    fn key(source: (&str, u16), destination: (&str, u16), hook: u8) -> FlowKey {
        let address = |text: &str| text.parse::<IpAddr>().unwrap().into();
        FlowKey {
            source: address(source.0),
            destination: address(destination.0),
            source_port: source.1.to_be(),
            destination_port: destination.1.to_be(),
            protocol: TCP,
            hook,
            reserved: 0,
        }
    }

    fn flow(to: (&str, u16)) -> Flow {
        let address = to.0.parse::<IpAddr>().unwrap().into();
        Flow { address, port: to.1.to_be(), flags: 0, seen: 0, device: 0, backend: 0, sender: 0, reserved: 0 }
    }

    #[test]
    fn all_entries_are_found_from_the_first() {
        let (client, service, endpoint, node) =
            (("10.0.0.1", 5000), ("10.96.0.1", 80), ("10.244.0.9", 8080), ("172.18.0.2", 20_000));
        let first = key(client, service, FlowKey::IN);
        let (backward, forward) = first.siblings(&flow(endpoint));
        assert_eq!(backward, key(endpoint, client, FlowKey::OUT));
        assert_eq!(forward, key(client, endpoint, FlowKey::OUT));
        assert_eq!(forward.answer(&flow(node)), key(endpoint, node, FlowKey::IN));
        let mut back = forward;
        backward.write_first(&flow(service), &mut back);
        assert_eq!(back, first);
    }

    #[test]
    fn an_alias_takes_the_place_of_the_clients_port() {
        let first = key(("10.0.0.1", 5000), ("10.96.0.1", 80), FlowKey::IN);
        let other = Flow { flags: Flow::ALIAS, device: 20_001_u16.to_be().into(), ..flow(("10.244.0.9", 8080)) };
        let (backward, forward) = first.siblings(&other);
        assert_eq!(backward, key(("10.244.0.9", 8080), ("10.0.0.1", 20_001), FlowKey::OUT));
        assert_eq!(forward, key(("10.0.0.1", 20_001), ("10.244.0.9", 8080), FlowKey::OUT));
    }

    #[test]
    fn a_clock_that_is_behind_makes_nothing_old() {
        assert_eq!((since(7, 7), since(9, 7), since(6, 7), since(3, u32::MAX)), (0, 2, 0, 4));
    }

    #[test]
    fn timeouts_follow_the_state() {
        let seen = Flow::SEEN;
        assert_eq!(timeout(TCP, seen, 0), limits::OPENING);
        assert_eq!(timeout(TCP, seen, seen), limits::ESTABLISHED);
        assert_eq!(timeout(TCP, seen | Flow::FIN, seen), limits::HALF_CLOSED);
        assert_eq!(timeout(TCP, seen | Flow::FIN, seen | Flow::FIN), limits::CLOSED);
        assert_eq!(timeout(TCP, seen, seen | Flow::RST), limits::CLOSED);
        assert_eq!((timeout(UDP, seen, 0), timeout(UDP, seen, seen)), (limits::ONE_WAY, limits::ONE_WAY));
        assert_eq!(timeout(crate::SCTP, seen | Flow::RST, 0), limits::CLOSED);
        assert_eq!(timeout(UDP, seen | Flow::RST, seen), limits::ONE_WAY, "nothing sets it");
        let lasts = seen | Flow::LASTS;
        assert_eq!((timeout(UDP, lasts, seen), timeout(UDP, seen, lasts)), (limits::STREAM, limits::STREAM));
        assert_eq!((timeout(UDP, lasts, 0), timeout(crate::SCTP, seen, seen)), (limits::ONE_WAY, limits::ASSOCIATION));
    }
}
