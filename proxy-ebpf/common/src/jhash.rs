//! The kernel's `jhash` (`linux/jhash.h`, Bob Jenkins' lookup3) of whole words, as nft's expression `jhash` has it, and how
//! a hash becomes a slot. All datapaths and the model of hashing schedulers use this.

/// The initial value of every scheduler's hash, the same on all nodes: "kube" in ASCII.
pub const SEED: u32 = 0x6b75_6265;

/// `JHASH_INITVAL`.
const INITIAL: u32 = 0xdead_beef;

/// `__jhash_mix`.
#[inline(always)]
const fn mix([mut a, mut b, mut c]: [u32; 3]) -> [u32; 3] {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    [a, b, c]
}

/// `__jhash_final`, of which only the last word is of use.
#[inline(always)]
const fn last([mut a, mut b, mut c]: [u32; 3]) -> u32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

/// `jhash(words, 4 * WORDS, seed)`; `words` as the machine reads them from the packet (`u32::from_ne_bytes`). The number of
/// words is known to the compiler: no loop is left for the kernel's verifier.
///
/// Keys: an IPv4 address, 1 word; with the source port, 2 words; an IPv6 address, 4 words; with the source port, 5 words.
/// The word of a port has its two bytes as in the packet, then two bytes of zero ([`port_word`]).
#[inline(always)]
pub const fn jhash<const WORDS: usize>(words: [u32; WORDS], seed: u32) -> u32 {
    let start = INITIAL.wrapping_add(4 * WORDS as u32).wrapping_add(seed);
    let mut state = [start; 3];
    let mut at = 0;
    while WORDS - at > 3 {
        let mut place = 0;
        while place < 3 {
            state[place] = state[place].wrapping_add(words[at + place]);
            place += 1;
        }
        state = mix(state);
        at += 3;
    }
    if WORDS == 0 {
        return state[2];
    }
    let mut place = 0;
    while at + place < WORDS {
        state[place] = state[place].wrapping_add(words[at + place]);
        place += 1;
    }
    last(state)
}

/// `jhash(bytes, bytes.len(), seed)` as a little-endian machine has it, for userspace: its loop has no bound.
pub fn jhash_bytes(bytes: &[u8], seed: u32) -> u32 {
    let mut state = [INITIAL.wrapping_add(bytes.len() as u32).wrapping_add(seed); 3];
    let add = |state: &mut [u32; 3], bytes: &[u8]| {
        for (at, byte) in bytes.iter().enumerate() {
            state[at / 4] = state[at / 4].wrapping_add(u32::from(*byte) << (8 * (at % 4)));
        }
    };
    let mut rest = bytes;
    while rest.len() > 12 {
        add(&mut state, &rest[..12]);
        state = mix(state);
        rest = &rest[12..];
    }
    if rest.is_empty() {
        return state[2];
    }
    add(&mut state, rest);
    last(state)
}

/// The word of a port in a key. `port` in the machine's order.
#[inline(always)]
pub const fn port_word(port: u16) -> u32 {
    let [high, low] = port.to_be_bytes();
    u32::from_ne_bytes([high, low, 0, 0])
}

/// The slot of a hash among `slots`: the kernel's `reciprocal_scale`, which is what nft's `jhash … mod` does. 0 of none.
#[inline(always)]
pub const fn scale(hash: u32, slots: u32) -> u32 {
    ((hash as u64 * slots as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_values_are_given() {
        // `driver5` of Bob Jenkins' lookup3.c names these of hashlittle(), which jhash is.
        assert_eq!(jhash_bytes(b"", 0), 0xdead_beef);
        assert_eq!(jhash_bytes(b"", 0xdead_beef), 0xbd5b_7dde);
        assert_eq!(jhash_bytes(b"Four score and seven years ago", 0), 0x1777_0551);
        assert_eq!(jhash_bytes(b"Four score and seven years ago", 1), 0xcd62_8161);
    }

    #[test]
    fn keys_have_the_hashes_that_another_program_reckons() {
        let address = u32::from_ne_bytes([10, 244, 1, 5]);
        assert_eq!(jhash([address], SEED), 0xec07_c61a);
        assert_eq!(jhash([address, port_word(40_001)], SEED), 0x4bd6_7233);
    }

    fn agrees<const WORDS: usize>() {
        for round in 0..if cfg!(miri) { 20 } else { 1_000_u32 } {
            let words: [u32; WORDS] = core::array::from_fn(|at| (round + 1).wrapping_mul(0x9e37_79b1 + at as u32));
            let bytes: std::vec::Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(jhash(words, round), jhash_bytes(&bytes, round), "{bytes:?}");
        }
    }

    #[test]
    fn words_hash_as_their_bytes_do() {
        agrees::<0>();
        agrees::<1>();
        agrees::<2>();
        agrees::<3>();
        agrees::<4>();
        agrees::<5>();
        agrees::<6>();
        agrees::<7>();
    }

    #[test]
    fn a_hash_scales_to_the_number_of_slots() {
        assert_eq!(
            [scale(0, 10), scale(u32::MAX, 10), scale(1 << 31, 10), scale(77, 1), scale(77, 0)],
            [0, 9, 5, 0, 0]
        );
        assert_eq!(port_word(0x1f90).to_ne_bytes(), [0x1f, 0x90, 0, 0]);
    }
}
