//! Digests of what tenants write: names of service ports, and their endpoints. Whoever may make a Service must not be able
//! to find one whose digest is another's, which would have the two share endpoints: so these are SHA-256, cut. FNV-1a
//! (`fnv1a`), which can be computed backwards, is for what nobody but us writes.

use sha2::{Digest, Sha256};

/// The first 128 bits of SHA-256; the same on every machine and release.
pub(in crate::backend) fn wide(text: &str) -> u128 {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// The first 64 bits of it.
pub(in crate::backend) fn narrow(text: &str) -> u64 {
    (wide(text) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha_256() {
        // FIPS 180-4, the example of one block.
        assert_eq!(wide("abc"), 0xba78_16bf_8f01_cfea_4141_40de_5dae_2223);
        assert_eq!(narrow("abc"), 0xba78_16bf_8f01_cfea);
    }
}
