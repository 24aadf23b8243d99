//! The kernel's expressions that our rules are made of, and their netlink attributes
//! (`include/uapi/linux/netfilter/nf_tables.h`).

use std::time::Duration;

use crate::state::objects::Family;

use super::netlink::attribute::Writer;
use super::rule::Field;

/// One of the sixteen 32-bit registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register(u32);

impl Register {
    /// `NFT_REG32_00`.
    pub const FIRST: Self = Self(8);

    /// The number by which the kernel reports the register, and takes it too: that of the 128-bit register which begins
    /// there, if one does.
    fn number(self) -> u32 {
        const NFT_REG32_00: u32 = 8;
        match self.0 - NFT_REG32_00 {
            offset if offset % 4 == 0 => 1 + offset / 4,
            _ => self.0,
        }
    }

    /// The register after a value of up to 4 bytes.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The register four further on.
    pub fn after_four(self) -> Self {
        Self(self.0 + 4)
    }

    /// The register after an address.
    pub fn after_address(self, family: Family) -> Self {
        Self(self.0 + if family == Family::V4 { 1 } else { 4 })
    }
}

/// How a register is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compare {
    /// `NFT_CMP_EQ`.
    Equal = 0,
    /// `NFT_CMP_NEQ`.
    NotEqual = 1,
}

/// One expression of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expression {
    /// Loads the family of the packet (1 byte).
    NfProto(Register),
    /// Loads the transport protocol (1 byte).
    L4Proto(Register),
    /// Loads the name of the input interface (16 bytes).
    InputInterface(Register),
    /// Loads the mark.
    LoadMark(Register),
    /// Stores the mark.
    StoreMark(Register),
    /// Loads the first bytes of an address.
    AddressBytes {
        /// Which address.
        field: Field,
        /// Of which header.
        family: Family,
        /// How many bytes.
        length: usize,
        /// Where to.
        to: Register,
    },
    /// Loads the source port (2 bytes, network order).
    SourcePort(Register),
    /// Loads the destination port (2 bytes, network order).
    DestinationPort(Register),
    /// Goes on only if the register compares so.
    Compare {
        /// The register.
        register: Register,
        /// How.
        compare: Compare,
        /// With what.
        value: Vec<u8>,
    },
    /// `register &= mask`.
    Mask {
        /// The register.
        register: Register,
        /// As long as the value.
        mask: Vec<u8>,
    },
    /// `register |= bits`.
    Or {
        /// The register.
        register: Register,
        /// In host order.
        bits: u32,
    },
    /// A random number from `offset` to `offset + modulus - 1`, in host order.
    Random {
        /// How many numbers.
        modulus: u32,
        /// The first of them.
        offset: u32,
        /// Where to.
        to: Register,
    },
    /// The next number from `offset` to `offset + modulus - 1`, in host order. The kernel keeps the turn in the
    /// expression, and all CPUs take from it.
    Next {
        /// How many numbers.
        modulus: u32,
        /// The first of them.
        offset: u32,
        /// Where to.
        to: Register,
    },
    /// A hash (`jhash`) scaled to a number from `offset` to `offset + modulus - 1`, in host order.
    Hash {
        /// Where the bytes begin.
        from: Register,
        /// How many bytes.
        length: u32,
        /// The initial value.
        seed: u32,
        /// How many numbers.
        modulus: u32,
        /// The first of them.
        offset: u32,
        /// Where to.
        to: Register,
    },
    /// A fixed number in host order, in the shape that nft can list in a concatenation: a counter of one step.
    Constant {
        /// The number.
        value: u32,
        /// Where to.
        to: Register,
    },
    /// Looks up a set (goes on if there) or a map (loads the data).
    Lookup {
        /// The set or map.
        set: String,
        /// Where the key begins.
        from: Register,
        /// Where a map's data goes.
        to: Option<Register>,
    },
    /// Loads a value.
    Immediate {
        /// The value.
        value: Vec<u8>,
        /// Where to.
        to: Register,
    },
    /// Rewrites the destination.
    Nat {
        /// The family of the address.
        family: Family,
        /// Where the address is.
        address: Register,
        /// Where the port is.
        port: Register,
    },
    /// Goes to a chain.
    Goto(String),
    /// Loads the type of the source address (`RTN_…`).
    SourceType(Register),
    /// Loads the source address of the connection's first packet as it was sent.
    OriginalSource {
        /// The family.
        family: Family,
        /// Where to.
        to: Register,
    },
    /// Loads the state of the connection (`NF_CT_STATE_BIT`, host order).
    ConnectionState(Register),
    /// Loads the status of the connection (`enum ip_conntrack_status`, host order).
    ConnectionStatus(Register),
    /// Goes on while no more packets than this come.
    Limit {
        /// Packets in a second.
        per_second: u32,
        /// Packets beyond that at once.
        burst: u32,
    },
    /// Has the kernel tell of the packet's way from here on, if the register is 1 (1 byte).
    StoreTrace(Register),
    /// Adds the key to a set, or renews its time.
    Update {
        /// The set.
        set: String,
        /// Where the key begins.
        key: Register,
        /// How long the element lives.
        timeout: Duration,
    },
}

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

impl Expression {
    /// Loads a whole address.
    pub fn address(field: Field, family: Family, to: Register) -> Self {
        Self::AddressBytes { field, family, length: if family == Family::V4 { 4 } else { 16 }, to }
    }

    /// Rewrites the destination to the `address . port` that a map gave.
    pub fn nat_from_map(family: Family) -> Self {
        Self::Nat { family, address: Register::FIRST, port: Register::FIRST.after_address(family) }
    }

    /// Appends the expression as an element of a rule's list.
    pub(super) fn write(&self, writer: &mut Writer) {
        let element = writer.nest(NFTA_LIST_ELEM);
        writer.text(NFTA_EXPR_NAME, self.name());
        let data = writer.nest(NFTA_EXPR_DATA);
        self.write_data(writer);
        writer.end(data);
        writer.end(element);
    }

    fn name(&self) -> &'static str {
        match self {
            Self::NfProto(_)
            | Self::L4Proto(_)
            | Self::InputInterface(_)
            | Self::LoadMark(_)
            | Self::StoreMark(_)
            | Self::StoreTrace(_) => "meta",
            Self::AddressBytes { .. } | Self::SourcePort(_) | Self::DestinationPort(_) => "payload",
            Self::Compare { .. } => "cmp",
            Self::Mask { .. } | Self::Or { .. } => "bitwise",
            Self::Random { .. } | Self::Next { .. } | Self::Constant { .. } => "numgen",
            Self::Hash { .. } => "hash",
            Self::Lookup { .. } => "lookup",
            Self::Immediate { .. } | Self::Goto(_) => "immediate",
            Self::Nat { .. } => "nat",
            Self::SourceType(_) => "fib",
            Self::OriginalSource { .. } | Self::ConnectionState(_) | Self::ConnectionStatus(_) => "ct",
            Self::Limit { .. } => "limit",
            Self::Update { .. } => "dynset",
        }
    }

    /// Every attribute that the kernel reports is written, defaults too: what is read back can be compared.
    fn write_data(&self, writer: &mut Writer) {
        const NFTA_META_DREG: u16 = 1;
        const NFTA_META_SREG: u16 = 3;
        let mut meta =
            |key: u32, kind: u16, register: Register| numbers(writer, &[(kind, register.number()), (2, key)]);
        match self {
            Self::LoadMark(to) => meta(3, NFTA_META_DREG, *to),
            Self::StoreMark(from) => meta(3, NFTA_META_SREG, *from),
            Self::StoreTrace(from) => meta(12, NFTA_META_SREG, *from),
            Self::InputInterface(to) => meta(6, NFTA_META_DREG, *to),
            Self::NfProto(to) => meta(15, NFTA_META_DREG, *to),
            Self::L4Proto(to) => meta(16, NFTA_META_DREG, *to),
            Self::AddressBytes { field, family, length, to } => {
                let offset = match (field, family) {
                    (Field::Source, Family::V4) => 12,
                    (Field::Destination, Family::V4) => 16,
                    (Field::Source, Family::V6) => 8,
                    (Field::Destination, Family::V6) => 24,
                };
                // NFTA_PAYLOAD_DREG, _BASE (1: network header), _OFFSET, _LEN
                numbers(writer, &[(1, to.number()), (2, 1), (3, offset), (4, u32::try_from(*length).unwrap_or(16))]);
            }
            // Base 2: transport header; the same two bytes in TCP, UDP and SCTP.
            Self::SourcePort(to) => numbers(writer, &[(1, to.number()), (2, 2), (3, 0), (4, 2)]),
            Self::DestinationPort(to) => numbers(writer, &[(1, to.number()), (2, 2), (3, 2), (4, 2)]),
            Self::Compare { register, compare, value } => {
                numbers(writer, &[(1, register.number()), (2, *compare as u32)]);
                data_value(writer, 3, value);
            }
            Self::Mask { register, mask } => bitwise(writer, *register, mask, &vec![0; mask.len()]),
            Self::Or { register, bits } => bitwise(writer, *register, &(!bits).to_ne_bytes(), &bits.to_ne_bytes()),
            // NFTA_NG_DREG, _MODULUS, _TYPE (0 incremental, 1 random), _OFFSET
            Self::Random { modulus, offset, to } => {
                numbers(writer, &[(1, to.number()), (2, *modulus), (3, 1), (4, *offset)])
            }
            Self::Next { modulus, offset, to } => {
                numbers(writer, &[(1, to.number()), (2, *modulus), (3, 0), (4, *offset)])
            }
            Self::Hash { from, length, seed, modulus, offset, to } => {
                // NFTA_HASH_SREG, _DREG, _LEN, _MODULUS, _SEED
                numbers(writer, &[(1, from.number()), (2, to.number()), (3, *length), (4, *modulus), (5, *seed)]);
                // NFTA_HASH_OFFSET: the kernel does not report none.
                if *offset > 0 {
                    numbers(writer, &[(6, *offset)]);
                }
                numbers(writer, &[(7, 0)]); // NFTA_HASH_TYPE: jhash
            }
            Self::Constant { value, to } => numbers(writer, &[(1, to.number()), (2, 1), (3, 0), (4, *value)]),
            Self::Lookup { set, from, to } => {
                writer.text(1, set);
                numbers(writer, &[(2, from.number())]);
                if let Some(to) = to {
                    numbers(writer, &[(3, to.number())]);
                }
                numbers(writer, &[(5, 0)]); // NFTA_LOOKUP_FLAGS: not turned around
            }
            Self::Immediate { value, to } => {
                numbers(writer, &[(1, to.number())]);
                data_value(writer, 2, value);
            }
            Self::Goto(chain) => {
                numbers(writer, &[(1, 0)]);
                let data = writer.nest(2);
                let verdict = writer.nest(NFTA_DATA_VERDICT);
                writer.value(1, &(-4i32).to_be_bytes());
                writer.text(2, chain);
                writer.end(verdict);
                writer.end(data);
            }
            Self::Nat { family, address, port } => {
                let family = if *family == Family::V4 { 2 } else { 10 };
                let (address, port) = (address.number(), port.number());
                // NFTA_NAT_TYPE (1: destination), _FAMILY, _REG_ADDR_MIN and _MAX, _REG_PROTO_MIN and _MAX, _FLAGS (an
                // address and a port)
                numbers(writer, &[(1, 1), (2, family), (3, address), (4, address), (5, port), (6, port), (7, 3)]);
            }
            // NFTA_FIB_DREG, _RESULT (3: address type), _FLAGS (1: of the source address)
            Self::SourceType(to) => numbers(writer, &[(1, to.number()), (2, 3), (3, 1)]),
            Self::OriginalSource { family, to } => {
                let key = if *family == Family::V4 { 19 } else { 21 };
                numbers(writer, &[(1, to.number()), (2, key)]);
                writer.value(3, &[0]); // NFTA_CT_DIRECTION: original
            }
            // NFTA_CT_DREG, _KEY (0: state)
            Self::ConnectionState(to) => numbers(writer, &[(1, to.number()), (2, 0)]),
            // 2: status
            Self::ConnectionStatus(to) => numbers(writer, &[(1, to.number()), (2, 2)]),
            Self::Limit { per_second, burst } => {
                // NFTA_LIMIT_RATE, _UNIT (seconds), _BURST, _TYPE (0: packets), _FLAGS (not turned around)
                writer.value(1, &u64::from(*per_second).to_be_bytes());
                writer.value(2, &1u64.to_be_bytes());
                numbers(writer, &[(3, *burst), (4, 0), (5, 0)]);
            }
            Self::Update { set, key, timeout } => {
                writer.text(1, set);
                // NFTA_DYNSET_OP (1: update), _SREG_KEY
                numbers(writer, &[(3, 1), (4, key.number())]);
                let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                writer.value(6, &milliseconds.to_be_bytes());
                numbers(writer, &[(9, 0)]); // NFTA_DYNSET_FLAGS: not turned around
            }
        }
    }
}

fn numbers(writer: &mut Writer, pairs: &[(u16, u32)]) {
    for (kind, number) in pairs {
        writer.value(*kind, &number.to_be_bytes());
    }
}

fn data_value(writer: &mut Writer, kind: u16, value: &[u8]) {
    let data = writer.nest(kind);
    writer.value(NFTA_DATA_VALUE, value);
    writer.end(data);
}

fn bitwise(writer: &mut Writer, register: Register, mask: &[u8], xor: &[u8]) {
    let length = u32::try_from(mask.len()).unwrap_or(16);
    numbers(writer, &[(1, register.number()), (2, register.number()), (3, length)]);
    data_value(writer, 4, mask);
    data_value(writer, 5, xor);
    numbers(writer, &[(6, 0)]); // NFTA_BITWISE_OP: mask and xor
}
