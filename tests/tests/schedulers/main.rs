//! Which endpoints real connections get, by scheduler: by chance, in turn, by hash.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod cluster;
mod hashes;
mod random;
mod turns;

/// Makes a test of each of these functions, which take a datapath, on each datapath that has these schedulers.
macro_rules! on_each_datapath {
    ($($name:ident,)*) => {
        mod nftables {
            $(
                #[test]
                fn $name() {
                    super::$name(kubeferry_tests::datapath::Datapath::Nftables);
                }
            )*
        }
    };
}
use on_each_datapath;
