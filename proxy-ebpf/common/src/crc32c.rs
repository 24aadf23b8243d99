//! The checksum of SCTP (CRC32c, RFC 9260 appendix A) of a packet whose first bytes change. The checksum covers all of the
//! packet, which a program cannot read; but it is linear, so the change of the checksum follows from the change of the
//! bytes and from how many bytes come after them.
#![allow(long_running_const_eval)] // 16,384 entries of a table.

/// Castagnoli's polynomial, lowest power first.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Bits of a packet's length.
const LENGTH_BITS: usize = 16;

/// The product of two polynomials, modulo [`POLYNOMIAL`].
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        product ^= b & (0_u32.wrapping_sub((a >> (31 - bit)) & 1));
        b = (b >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(b & 1));
        bit += 1;
    }
    product
}

/// Products by x^(8 * 2^n), what 2^n more bytes come to: by n, by the byte's place, by the byte. A product is the sum of
/// those of its bytes. Looked up and not reckoned, because the kernel's verifier follows every step of a loop.
static SHIFTS: [[[u32; 256]; 4]; LENGTH_BITS] = {
    // x^8.
    let mut power = 1 << 23;
    let mut shifts = [[[0; 256]; 4]; LENGTH_BITS];
    let mut at = 0;
    while at < LENGTH_BITS {
        let mut place = 0;
        while place < 4 {
            let mut byte = 0;
            while byte < 256 {
                shifts[at][place][byte] = multiply((byte as u32) << (8 * place), power);
                byte += 1;
            }
            place += 1;
        }
        power = multiply(power, power);
        at += 1;
    }
    shifts
};

#[inline(always)]
fn shift(sum: u32, tables: &[[u32; 256]; 4]) -> u32 {
    let [a, b, c, d] = sum.to_le_bytes();
    tables[0][a as usize] ^ tables[1][b as usize] ^ tables[2][c as usize] ^ tables[3][d as usize]
}

/// What to XOR a CRC32c with if a word of the packet is XORed with `difference`. Both as a little-endian machine reads
/// them from the packet, where the checksum is stored so. `after`: bytes that come after the word.
#[inline(never)]
pub fn difference(difference: u32, after: u16) -> u32 {
    // Bytes of zero before the change leave the register at zero. The word itself is 4 bytes.
    let mut sum = shift(difference, &SHIFTS[2]);
    let mut at = 0;
    while at < LENGTH_BITS {
        let shifted = shift(sum, &SHIFTS[at]);
        let mask = 0_u32.wrapping_sub(u32::from(after >> at) & 1);
        sum = (shifted & mask) | (sum & !mask);
        at += 1;
    }
    sum
}

/// The CRC32c of bytes, bit by bit, as the standard says it: for userspace, its loop has no bound.
pub fn of(bytes: &[u8]) -> u32 {
    let mut register = u32::MAX;
    for byte in bytes {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            register = (register >> 1) ^ if register & 1 == 1 { POLYNOMIAL } else { 0 };
        }
    }
    !register
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_right() {
        // The check value of CRC-32C, of all catalogues.
        assert_eq!(of(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_changed_word_changes_the_sum_as_told() {
        for length in [4_usize, 5, 12, 20, 77, 1_480, 9_000].into_iter().filter(|length| !cfg!(miri) || *length < 100) {
            let mut bytes: std::vec::Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
            let before = of(&bytes);
            let change = 0x1f90_c350_u32;
            for (byte, change) in bytes.iter_mut().zip(change.to_le_bytes()) {
                *byte ^= change;
            }
            let told = before ^ difference(change, (length - 4) as u16);
            assert_eq!(told, of(&bytes), "{length} bytes");
        }
    }
}
