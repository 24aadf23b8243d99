//! Which endpoints real connections get, by scheduler: by chance, in turn, by hash.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod cluster;
mod counted;
mod counting;
mod hashes;
mod least;
mod metrics;
mod random;
mod turns;
mod weights;
