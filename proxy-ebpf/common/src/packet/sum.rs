//! The Internet checksum of what changes (RFC 1624), where nothing is left to the hardware: at XDP. Words are as the machine
//! reads them from the packet: the checksum does not care.

/// Flag of `bpf_l4_csum_replace`: a checksum of 0 says that there is none, and one that comes to 0 is written as 0xffff.
pub const MANGLED_0: u32 = 0x20;
/// Flag of `bpf_l4_csum_replace`: what changes is part of the pseudo-header.
pub const PSEUDO_HEADER: u32 = 0x10;
/// The bits of the flags that say how many bytes change; 0: what is given is a difference already.
pub const SIZE: u32 = 0xf;

/// The difference that other words make to a sum, as `bpf_csum_diff` gives it.
#[inline(always)]
pub const fn difference(old: &[u32; 4], new: &[u32; 4]) -> u32 {
    let mut sum = 0_u64;
    let mut at = 0;
    while at < 4 {
        sum += !old[at] as u64 + new[at] as u64;
        at += 1;
    }
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum as u32
}

/// The difference of a word of 4 bytes, of half a word, or as it is given, by the flags of `bpf_l4_csum_replace`.
#[inline(always)]
pub const fn difference_of(from: u64, to: u64, flags: u32) -> u64 {
    match flags & SIZE {
        0 => to as u32 as u64,
        2 => !(from as u16) as u64 + to as u16 as u64,
        _ => !(from as u32) as u64 + to as u32 as u64,
    }
}

/// A checksum with a difference added to what it sums up; `flags` as of `bpf_l4_csum_replace`.
#[inline(always)]
pub const fn mended(sum: u16, difference: u64, flags: u32) -> u16 {
    let mangled = flags & MANGLED_0 != 0;
    // UDP without a checksum stays so.
    if mangled && sum == 0 {
        return 0;
    }
    let mut total = !sum as u64 + difference;
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    let sum = !(total as u16);
    if mangled && sum == 0 { 0xffff } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standards_come_out() {
        // RFC 1624, section 4: a word 0x5555 becomes 0x3285 under a checksum of 0xdd2f.
        assert_eq!(mended(0xdd2f, difference_of(0x5555, 0x3285, 2), 0), 0x0000);
        assert_eq!(mended(0xdd2f, difference_of(0x5555, 0x3285, 2), MANGLED_0), 0xffff);
        assert_eq!(mended(0, difference_of(1, 2, 2), MANGLED_0), 0, "none stays none");
    }

    #[test]
    fn a_difference_of_words_is_that_of_each() {
        let (old, new) = ([1, u32::MAX, 0x1234_5678, 0], [u32::MAX, 7, 0xffff_0000, 3]);
        let whole = mended(0x1111, difference(&old, &new).into(), 0);
        let step = |sum, at: usize| mended(sum, difference_of(old[at].into(), new[at].into(), 4), 0);
        assert_eq!(whole, (0..4).fold(0x1111, step));
    }
}
