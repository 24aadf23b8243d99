//! Which endpoints real connections get, by scheduler: by chance, in turn, by hash.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod cluster;
mod hashes;
mod random;
mod turns;
