//! `kubeferry run` against an API server: the scripted one of [`kubeferry_tests::apiserver`], over HTTP and TLS. What holds for
//! any server (`any_server`, `traffic`) is asked of the scripted one by the same means as of a real one, and of the cluster
//! that `KUBEFERRY_TEST_KUBECONFIG` names, too. Each test prints which server it used.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod any_server;
mod breakable;
mod connections;
mod events;
mod families;
mod faults;
mod health_check_ports;
mod healthz;
mod in_cluster;
mod metrics_address;
mod names;
mod node;
mod objects;
mod old_flags;
mod pacing;
mod pod_ranges;
mod refusals;
mod server;
mod traffic;
