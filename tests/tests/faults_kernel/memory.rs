//! A limit of memory, as the container of the proxy has one.

use std::fmt::Write as _;

use kubeferry_tests::client::{Connection, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::memory::MemoryLimit;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::site::at;

use super::trial::{EVERYWHERE, PATIENCE, Sees, Trial};

on_both_datapaths! {
    an_end_for_want_of_memory_costs_no_request,
}

const MIB: u64 = 1 << 20;
/// What one is told.
const TOLD: &str = "there is no memory for so many rows: allow the container more, or give --map-sizes smaller numbers";

fn an_end_for_want_of_memory_costs_no_request(datapath: Datapath) {
    let trial = Trial::start(datapath, &[]);
    // What it has taken so far is not of this group.
    let limit = MemoryLimit::new(8 * MIB).unwrap();
    limit.takes(trial.site.pid().unwrap()).unwrap();
    let flood = || {
        trial.site.change_as(&EVERYWHERE, &|manifests| manifests + &services(20_000)).unwrap();
        until_for(PATIENCE, "the kernel to end the proxy", || (limit.killed().unwrap() > 0).then_some(())).unwrap();
        trial.site.change(&EVERYWHERE).unwrap();
        trial.site.run().unwrap();
    };
    trial.suffers("ended for want of memory", Sees::Nothing, flood, || {
        (trial.status()["syncs"].as_u64()? > 0).then_some(())
    });
}

fn services(count: u32) -> String {
    let mut text = String::new();
    for number in 0..count {
        let ip = format!("10.97.{}.{}", number >> 8, number & 0xff);
        writeln!(
            text,
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: many-{number}, namespace: default}}\n\
             spec: {{clusterIP: {ip}, clusterIPs: [{ip}], ipFamilies: [IPv4], ports: [{{port: 80}}]}}"
        )
        .unwrap();
    }
    text
}

#[test]
fn maps_beyond_the_limit_are_named_at_the_start() {
    let trial = Trial::start(Datapath::ebpf().unwrap(), &[]);
    let pins = trial.site.places().pins().unwrap();
    let start = || {
        trial.site.kill();
        let limit = MemoryLimit::new(256 * MIB).unwrap();
        let mut command = trial.site.command(kubeferry_tests::binary::path().unwrap()).unwrap();
        command.args(["--map-sizes", "flows=4000000"]);
        let ended = trial.site.node().output(&mut limit.command(&command), "").unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success(), "{said}");
        assert!(said.contains(TOLD), "{said}");
        assert_eq!(limit.killed().unwrap(), 0, "{said}");
        let now = trial.site.places().pins().unwrap();
        assert!(pins.iter().all(|pin| now.contains(pin)), "{now:?}");
        trial.site.run().unwrap();
    };
    // The programs and maps of the run before go on, and the next run takes them over.
    trial.suffers("a start with maps beyond the limit of memory", Sees::Nothing, start, || {
        trial.status()["datapath"].to_string().contains("adopted from an earlier run").then_some(())
    });
    assert_eq!(trial.site.places().pins().unwrap(), pins);
}

/// Rows of maps are the memory of who made the maps.
#[test]
fn rows_that_there_is_no_memory_for_are_told_and_written_when_there_is() {
    let trial = Trial::build(Datapath::ebpf().unwrap(), &[], None);
    let limit = MemoryLimit::new(512 * MIB).unwrap();
    let command = trial.site.command(kubeferry_tests::binary::path().unwrap()).unwrap();
    trial.site.run_command(&mut limit.command(&command)).unwrap();
    trial.site.until_served().unwrap();
    limit.frees(trial.site.pid().unwrap()).unwrap();
    limit.leave(MIB).unwrap();
    let error = || trial.status()["lastSync"]["error"].as_str().map(str::to_owned);
    let flood = || {
        trial.site.change_as(&EVERYWHERE, &|manifests| manifests + &services(20_000)).unwrap();
        let told = until_for(PATIENCE, "a sync to have no memory", error).unwrap();
        assert!(told.contains(TOLD), "{told}");
        limit.set(512 * MIB).unwrap();
    };
    // A Service without endpoints refuses.
    let last = || Connection::open(trial.site.client(), at("10.97.78.31", 80)).err();
    let served = || {
        last().filter(|refused| refused.kind() == std::io::ErrorKind::ConnectionRefused)?;
        error().is_none().then_some(())
    };
    trial.suffers("no memory for rows, and then there is", Sees::Nothing, flood, served);
}
