//! `kubeferry run` against an API server: the scripted one of [`kubeferry_tests::apiserver`] in a network namespace, over
//! HTTP and TLS; and a real one as far as its objects go, where `KUBEFERRY_TEST_KUBECONFIG` names one.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod faults;
mod node;
mod objects;
mod refusals;
mod server;
mod traffic;
