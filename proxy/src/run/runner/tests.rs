//! A start that waits for the Node's pod ranges, by a clock that stands until the test puts it on.

use std::collections::BTreeMap;

use serde_json::json;
use tokio::time::{advance, pause};

use super::*;
use crate::args::{Command, parse};
use crate::backend::Report;
use crate::conntrack::{Cleaned, UdpService};
use crate::desired::target::Frontend;
use crate::desired::{Desired, Touched};
use crate::events::Events;
use crate::metrics::Metrics;
use crate::state::convert;
use crate::state::event::{Event, Kind};
use crate::state::objects::Ignored;
use crate::watch::WatchStats;

/// A datapath that counts how often it is written.
#[derive(Default)]
struct Counting {
    syncs: usize,
    rows: BTreeMap<&'static str, usize>,
}

impl Backend for Counting {
    type Error = std::convert::Infallible;

    fn name(&self) -> &'static str {
        "counting"
    }

    fn sync(&mut self, _: &Desired, _: Touched) -> Result<Report, Self::Error> {
        self.syncs += 1;
        Ok(Report::default())
    }

    fn check(&mut self, _: &Desired) -> Result<Option<Report>, Self::Error> {
        Ok(None)
    }

    fn rows(&self) -> &BTreeMap<&'static str, usize> {
        &self.rows
    }

    fn refused(&self) -> Vec<Ignored> {
        Vec::new()
    }

    fn left_out(&self) -> BTreeMap<Frontend, String> {
        BTreeMap::new()
    }

    fn clean_udp(&mut self, _: &[UdpService]) -> Result<Cleaned, Self::Error> {
        Ok(Cleaned::default())
    }
}

/// A runner whose source has listed everything, with these flags.
fn runner(flags: &[&str]) -> Runner<Counting> {
    let line = [&["kubeferry", "run"], flags].concat();
    let Command::Run(args) = parse(line).unwrap().command else { panic!("run") };
    let settings = Settings::checked(&args.common, &args.serve, None, "n1").unwrap().0;
    let metrics = Arc::new(Metrics::new());
    let events = Events::to_log(metrics.clone());
    let observer = Observer::new(&settings, Arc::new(WatchStats::default()), metrics, events, Arc::default());
    let proxy = Proxy::new(settings.clone(), Counting::default(), BTreeSet::new());
    let mut runner = Runner::new(proxy, settings, observer);
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr] {
        runner.proxy.apply(Event::Listed(kind));
    }
    runner
}

fn node(ranges: &[&str]) -> Event {
    let object = json!({"metadata": {"name": "n1"}, "spec": {"podCIDRs": ranges},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
    Event::Node(convert::node(&serde_json::from_value(object).unwrap()).object.unwrap())
}

#[tokio::test]
async fn a_start_without_pod_ranges_ends_after_five_minutes() {
    pause();
    let mut runner = runner(&["--detect-local-mode=NodeCIDR"]);
    runner.proxy.apply(node(&[]));
    for _ in 0..299 {
        assert!(!runner.turn().unwrap());
        assert!(!runner.observer.health.report().healthz().0, "it is not ready");
        advance(Duration::from_secs(1)).await;
    }
    advance(Duration::from_millis(999)).await;
    assert!(!runner.turn().unwrap());
    advance(Duration::from_millis(1)).await;
    assert_eq!(
        runner.turn().unwrap_err().to_string(),
        "the Node n1 has no spec.podCIDRs after 300 s: give it some, or choose another --detect-local-mode"
    );
    assert_eq!(runner.proxy.backend().syncs, 0, "nothing was written");
}
