//! The clients of these tests themselves: an outage that costs no request, as they wait long enough, is no secret.

use std::thread::sleep;
use std::time::Duration;

use kubeferry_tests::client::patience;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::Place;

use crate::RIGHT;
use crate::answers::caught_up_with;

/// So long no connection opens.
const OUTAGE: Duration = Duration::from_secs(5);

#[test]
fn an_outage_that_every_client_outlasts_is_seen() {
    let place = Place::of_manifests(Datapath::Nftables).unwrap();
    place.start().unwrap();
    let outage = || {
        let chain = "type filter hook prerouting priority raw; tcp flags & (syn | ack) == syn drop";
        place.node().nft(&["-f", "-"], &format!("table inet outage {{ chain syn_lost {{ {chain}; }}; }}"))?;
        sleep(patience(OUTAGE));
        place.node().nft(&["delete", "table", "inet", "outage"], "").map(drop)
    };
    let (_, seen) = caught_up_with(&place, RIGHT, outage).unwrap();
    seen.none_failed().unwrap();
    let error = seen.nothing_seen().unwrap_err().to_string();
    assert!(error.contains("requests were slow, ") && error.ends_with("at most"), "{error}");
}
