//! `kubeferry run` against an API server: the scripted one of [`kubeferry_tests::apiserver`] in a network namespace, over
//! HTTP and TLS. Each test prints which server it used.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod faults;
mod node;
mod objects;
mod refusals;
mod server;
mod traffic;
