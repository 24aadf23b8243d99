//! Counters of the programs: indices of `stats`, a per-CPU array of u64.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What is counted; the value is the index.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// All of them with their names, in the order of their indices.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $text),)*];
        }
    };
}

counters! {
    /// A new connection got an endpoint, at TC or XDP.
    Connected = "connected",
    /// A connection was translated when a socket connected, or a datagram when it was sent.
    SocketConnected = "socket_connected",
    /// Refused: no usable endpoint anywhere.
    Refused = "refused",
    /// Refused: a ClusterIP without this port.
    UndefinedPort = "undefined_port",
    /// Dropped: endpoints exist, none that the policy allows.
    NoLocalEndpoint = "no_local_endpoint",
    /// Dropped: outside loadBalancerSourceRanges.
    SourceRange = "source_range",
    /// Dropped: inside a ServiceCIDR, and nobody has the address.
    Unallocated = "unallocated",
    /// Dropped: no free port to masquerade with, or no address on the way out.
    NoMasqueradePort = "no_masquerade_port",
    /// Dropped: a flow could not be written.
    FlowTable = "flow_table",
    /// Dropped: a fragment whose first part was not seen.
    Fragment = "fragment",
    /// Dropped: a packet could not be rewritten.
    Rewrite = "rewrite",
    /// ICMP errors translated.
    IcmpError = "icmp_error",
    /// Dropped: an endpoint cannot be reached from this place of the path.
    Unreachable = "unreachable",
    /// Dropped: connections were being moved to maps of other sizes, or a frontend was written again and again.
    Moving = "moving",
    /// Dropped: a pod, or somebody in the node's own name, would open a connection from an address that is not theirs.
    Forged = "forged",
}
