//! Where a member is in a structure of the running kernel, which says so itself (BTF: `/sys/kernel/btf/vmlinux`; the format is that of
//! `include/uapi/linux/btf.h`). What the kernel offers programs by name does not need this.

const MAGIC: u16 = 0xeb9f;
/// Bytes of what every type begins with: its name, kind and count, size or type.
const TYPE: usize = 12;
/// Bytes of a member: its name, type and offset.
const MEMBER: usize = 12;
const STRUCT: u32 = 4;

/// The bit, from the structure's beginning on, where a member begins; `None`: there is none, or this is no BTF that is known here.
pub fn bit_of(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    let word = |at: usize| btf.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let length = |at: usize| word(at).map(|word| word as usize);
    if word(0)? as u16 != MAGIC {
        return None;
    }
    let header = length(4)?;
    let (mut at, strings) = (header + length(8)?, header + length(16)?);
    let end = at + length(12)?;
    let is = |name: u32, wanted: &str| {
        let text = btf.get(strings + name as usize..).and_then(|text| text.strip_prefix(wanted.as_bytes()));
        text.and_then(<[u8]>::first) == Some(&0)
    };
    while at < end {
        let (name, info) = (word(at)?, word(at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
        at += TYPE;
        if kind == STRUCT && is(name, structure) {
            let mut members = (0..count).map(|number| at + number * MEMBER);
            let found = members.find(|at| word(*at).is_some_and(|name| is(name, member)))?;
            // With fields of bits their size is in the upper byte.
            let offset = word(found + 8)?;
            return Some(if info >> 31 != 0 { offset & 0x00ff_ffff } else { offset });
        }
        at += match kind {
            // Pointers, forward declarations, other names, qualifiers, functions, floating point numbers and tags of types.
            2 | 7..=12 | 16 | 18 => 0,
            // Integers, variables, tags of declarations.
            1 | 14 | 17 => 4,
            // Arrays.
            3 => 12,
            // Structures, unions, sections, enumerations of 64 bits.
            4 | 5 | 15 | 19 => 12 * count,
            // Enumerations, prototypes.
            6 | 13 => 8 * count,
            _ => return None,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const STRINGS: &[u8] = b"\0int\0sock\0sk_plain\0sk_bit\0sk\0";
    const INT: u32 = 1;
    const SOCK: u32 = 5;
    const PLAIN: u32 = 10;
    const BIT: u32 = 19;
    const SK: u32 = 26;

    fn btf(words: &[u32]) -> Vec<u8> {
        let types = words.len() as u32 * 4;
        let header = [u32::from(MAGIC) | 1 << 16, 24, 0, types, types, STRINGS.len() as u32];
        header.iter().chain(words).flat_map(|word| word.to_ne_bytes()).chain(STRINGS.iter().copied()).collect()
    }

    /// An integer, a structure `sk` with one member, and `sock` with fields of bits or without.
    fn types(bits: bool) -> Vec<u8> {
        let flag = u32::from(bits) << 31;
        let place = |offset: u32, size: u32| if bits { size << 24 | offset } else { offset };
        btf(&[
            [INT, 1 << 24, 4].as_slice(),
            &[32],
            &[SK, STRUCT << 24 | 1, 4, PLAIN, 1, 7],
            &[SOCK, flag | STRUCT << 24 | 2, 8],
            &[PLAIN, 1, place(0, 0), BIT, 1, place(33, 1)],
        ]
        .concat())
    }

    #[test]
    fn a_member_is_found_by_its_name() {
        for bits in [false, true] {
            assert_eq!(bit_of(&types(bits), "sock", "sk_bit"), Some(33));
            assert_eq!(bit_of(&types(bits), "sock", "sk_plain"), Some(0));
            assert_eq!(bit_of(&types(bits), "sock", "sk_bi"), None, "part of a name");
            assert_eq!(bit_of(&types(bits), "sk", "sk_bit"), None, "another structure's");
        }
    }

    #[test]
    fn what_is_cut_off_or_not_known_is_nothing() {
        let whole = types(true);
        for length in 0..whole.len() - STRINGS.len() {
            assert_eq!(bit_of(&whole[..length], "sock", "sk_bit"), None, "{length}");
        }
        assert_eq!(bit_of(&btf(&[INT, 20 << 24, 0]), "sock", "sk_bit"), None);
        assert_eq!(bit_of(&[0xff; 64], "sock", "sk_bit"), None);
    }
}
