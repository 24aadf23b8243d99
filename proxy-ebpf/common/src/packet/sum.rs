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

/// The sum of a pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1): what stands in the place of a transport checksum that is still to be made
/// (CHECKSUM_PARTIAL).
#[inline(always)]
pub const fn pseudo_header(source: &[u32; 4], destination: &[u32; 4], protocol: u8, length: u16) -> u16 {
    // An IPv4 address is the last of the words; the two before it are the same for both ends of all, and no part of it.
    let v4 = source[0] == 0 && source[1] == 0 && source[2] == 0xffff_u32.to_be();
    let mut sum = (protocol as u16).to_be() as u64 + length.to_be() as u64;
    let mut at = if v4 { 3 } else { 0 };
    while at < 4 {
        sum += source[at] as u64 + destination[at] as u64;
        at += 1;
    }
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
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
    fn a_pseudo_header_is_what_the_kernel_begins_with() {
        // Seen in a segment of 40 bytes from 10.0.0.1 to 10.0.0.2: 0a00 + 0001 + 0a00 + 0002 + 0006 + 0028.
        let v4 = |last: u8| [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 0, 0, last])];
        assert_eq!(pseudo_header(&v4(1), &v4(2), 6, 40), 0x1431_u16.to_be());
        let v6 = |last: u8| [u32::from_ne_bytes([0xfd, 0, 0, 0]), 0, 0, u32::from_ne_bytes([0, 0, 0, last])];
        // Twice fd00, and what is carried.
        assert_eq!(pseudo_header(&v6(1), &v6(2), 17, 8), (0xfa01_u16 + 3 + 17 + 8).to_be());
    }

    #[test]
    fn a_difference_of_words_is_that_of_each() {
        let (old, new) = ([1, u32::MAX, 0x1234_5678, 0], [u32::MAX, 7, 0xffff_0000, 3]);
        let whole = mended(0x1111, difference(&old, &new).into(), 0);
        let step = |sum, at: usize| mended(sum, difference_of(old[at].into(), new[at].into(), 4), 0);
        assert_eq!(whole, (0..4).fold(0x1111, step));
    }
}
