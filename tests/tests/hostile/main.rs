//! Objects made to harm, from an API server that checks nothing and from a folder of manifests, with both datapaths: nothing is
//! injected, nothing ends, time and memory are bounded, and the Services beside them go on. What each is for: `SECURITY.md`.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod chains;
mod cluster;
mod conflicts;
mod flapping;
mod folder;
mod requests;
mod sizes;
mod strings;
