//! Another program has the kernel forget all connections that are translated.

use std::process::Command;

use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;

use super::trial::{Sees, Trial};

/// What is open may break, which each client sees once; what is new is answered as before.
fn all_connections(datapath: Datapath) {
    let trial = Trial::start(datapath, &[]);
    let forget = || match trial.site.datapath() {
        Datapath::Nftables => {
            let mut command = Command::new("conntrack");
            let output = trial.site.node().output(command.arg("-F"), "").unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        Datapath::Ebpf(places) => Pinned::open(places.bpffs()).unwrap().forget_flows().unwrap(),
    };
    let seen = trial.watches("all translated connections forgotten", Sees::NewFail, forget, || Some(()));
    let new: Vec<_> = seen.failures.iter().filter(|failure| failure.what.starts_with("a new connection")).collect();
    // One of each client at most, whose packets were just then on their way.
    assert!(new.len() <= trial.ways().len(), "{new:?}");
    trial.site.until_served().unwrap();
}

on_both_datapaths! { all_connections, }
