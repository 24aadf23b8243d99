//! Addresses of both families in one form.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An IPv6 address, or an IPv4 address as IPv4-mapped IPv6 (`::ffff:a.b.c.d`): four words, each in network byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct Address {
    /// The words as they stand in a packet.
    pub words: [u32; 4],
}

const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    /// `::`, which no frontend has.
    pub const ZERO: Self = Self { words: [0; 4] };

    /// An IPv4 address, given as the word in a packet.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// An IPv6 address, given as the words in a packet.
    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// Whether this is `::`.
    #[inline(always)]
    pub const fn is_zero(&self) -> bool {
        self.words[0] | self.words[1] | self.words[2] | self.words[3] == 0
    }

    /// Whether this is 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let last = u32::from_be(self.words[3]);
        match self.is_v4() {
            true => last >> 24 == 127,
            false => self.words[0] | self.words[1] | self.words[2] == 0 && last == 1,
        }
    }

    /// Whether this is in fe80::/10.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        u32::from_be(self.words[0]) >> 22 == 0xfe80 >> 6
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(ip: core::net::IpAddr) -> Self {
        let octets = match ip {
            core::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(ip) => ip.octets(),
        };
        let word = |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
        Self { words: [word(0), word(4), word(8), word(12)] }
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(address.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        core::net::Ipv6Addr::from(octets).to_canonical()
    }
}

/// A range of addresses: those that are `address` under `mask`. An empty range has the address `::` and a mask of ones.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Prefix {
    /// The first address.
    pub address: Address,
    /// Ones where addresses of the range agree.
    pub mask: Address,
}

impl Prefix {
    /// No address that a packet may have.
    pub const EMPTY: Self = Self { address: Address::ZERO, mask: Address { words: [u32::MAX; 4] } };

    /// `address/length`, the length counted within the address's own family.
    pub fn new(ip: core::net::IpAddr, length: u8) -> Self {
        let length = u32::from(length) + if ip.is_ipv4() { 96 } else { 0 };
        let bits = if length == 0 { 0 } else { u128::MAX << (128 - length.min(128)) };
        let mask = Address::from(core::net::IpAddr::V6(bits.into()));
        let mut address = Address::from(ip);
        for (word, mask) in address.words.iter_mut().zip(mask.words) {
            *word &= mask;
        }
        Self { address, mask }
    }

    /// Whether an address is in the range.
    #[inline(always)]
    pub const fn contains(&self, ip: &Address) -> bool {
        let (a, m, i) = (&self.address.words, &self.mask.words, &ip.words);
        (i[0] & m[0]) ^ a[0] | (i[1] & m[1]) ^ a[1] | (i[2] & m[2]) ^ a[2] | (i[3] & m[3]) ^ a[3] == 0
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn addresses_go_there_and_back() {
        for text in ["10.96.0.1", "0.0.0.0", "fd00::1", "::1", "2001:db8::ffff:1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(ip)), ip);
            assert_eq!(Address::from(ip).is_v4(), ip.is_ipv4());
            assert_eq!(Address::from(ip).is_loopback(), ip.is_loopback());
        }
        assert!(address("127.3.2.1").is_loopback() && !address("128.0.0.1").is_loopback());
        assert!(Address::ZERO.is_zero() && !address("0.0.0.0").is_zero());
    }

    #[test]
    fn prefixes_hold_what_is_under_them() {
        let holds = |net: (&str, u8), ip: &str| Prefix::new(net.0.parse().unwrap(), net.1).contains(&address(ip));
        assert!(holds(("10.244.7.0", 16), "10.244.255.1") && !holds(("10.244.0.0", 16), "10.245.0.1"));
        assert!(holds(("0.0.0.0", 0), "1.2.3.4") && !holds(("0.0.0.0", 0), "fd00::1"));
        assert!(holds(("fd00::", 8), "fdff::1") && !holds(("fd00::", 8), "10.0.0.1"));
        assert!(holds(("10.0.0.1", 32), "10.0.0.1") && !holds(("10.0.0.1", 32), "10.0.0.2"));
        assert!(!Prefix::EMPTY.contains(&address("10.0.0.1")) && !Prefix::EMPTY.contains(&address("::1")));
    }
}
