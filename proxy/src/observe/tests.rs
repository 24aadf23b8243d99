//! How often what is wrong is gone through, and when the proxy is healthy.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;
use crate::args::{CommonArgs, ServeArgs};
use crate::backend::Report;
use crate::conntrack::UdpService;
use crate::desired::target::Frontend;
use crate::desired::{Desired, Touched};
use crate::state::event::{Event, Kind};

/// A datapath that counts how often it is asked what it leaves out, and leaves out what it is told to.
#[derive(Default)]
struct Asked {
    asked: Cell<usize>,
    refused: Vec<Ignored>,
    rows: BTreeMap<&'static str, usize>,
}

impl Backend for Asked {
    type Error = std::convert::Infallible;

    fn name(&self) -> &'static str {
        "asked"
    }

    fn sync(&mut self, _: &Desired, _: Touched) -> Result<Report, Self::Error> {
        Ok(Report::default())
    }

    fn check(&mut self, _: &Desired) -> Result<Option<Report>, Self::Error> {
        self.refused.push(ignored("device eth9"));
        Ok(None)
    }

    fn rows(&self) -> &BTreeMap<&'static str, usize> {
        &self.rows
    }

    fn refused(&self) -> Vec<Ignored> {
        self.asked.set(self.asked.get() + 1);
        self.refused.clone()
    }

    fn left_out(&self) -> BTreeMap<Frontend, String> {
        BTreeMap::new()
    }

    fn clean_udp(&mut self, _: &[UdpService]) -> Result<Cleaned, Self::Error> {
        Ok(Cleaned::default())
    }
}

fn ignored(what: &str) -> Ignored {
    Ignored { what: what.into(), why: "it is wrong".into() }
}

fn fault(faults: &[&str]) -> Event {
    let faults = faults.iter().map(|what| ignored(what)).collect();
    Event::Ignored { kind: Kind::Service, name: ObjectName::new("default", "web"), faults }
}

fn observed() -> (Observer, Proxy<Asked>) {
    let settings = Settings::checked(&CommonArgs::default(), &ServeArgs::default(), None, "n1").unwrap().0;
    let metrics = Arc::new(Metrics::new());
    let events = Events::to_log(metrics.clone());
    let observer = Observer::new(&settings, Arc::default(), metrics, events, Arc::default());
    (observer, Proxy::new(settings, Asked::default(), BTreeSet::new()))
}

#[test]
fn a_look_that_fails_makes_it_unhealthy_in_time_whatever_is_synced_meanwhile() {
    let (mut observer, mut proxy) = observed();
    observer.health.change(Duration::from_secs(1));
    let sync = |observer: &mut Observer, proxy: &mut Proxy<Asked>| {
        observer.took_in(proxy, true);
        let synced = proxy.sync().unwrap();
        observer.synced(proxy, &synced);
    };
    let began = Instant::now();
    sync(&mut observer, &mut proxy);
    assert!(observer.health.report().healthy);
    while began.elapsed() < Duration::from_millis(1200) {
        observer.check_failed(&"the BPF file system is away");
        std::thread::sleep(Duration::from_millis(20));
        sync(&mut observer, &mut proxy);
    }
    assert!(!observer.health.report().livez().0, "syncs go on, and repair nothing");
    // A change that has not been synced waits by itself.
    observer.took_in(&proxy, true);
    observer.checked(&mut proxy, None, Duration::ZERO);
    assert!(observer.health.report().livez().0, "repaired");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(!observer.health.report().livez().0, "but what is queued was not synced");
}

#[test]
fn what_is_wrong_is_gone_through_where_it_may_have_changed_and_is_told_at_once() {
    let (mut observer, mut proxy) = observed();
    let told = |observer: &mut Observer, proxy: &Proxy<Asked>| {
        observer.took_in(proxy, false);
        let asked = proxy.backend().asked.replace(0);
        (asked > 0, observer.ignored.iter().map(|fault| fault.what.clone()).collect::<Vec<_>>().join(" "))
    };
    let all = |asked: bool, told: &str| (asked, told.to_owned());
    for _ in 0..2 {
        assert_eq!(told(&mut observer, &proxy), all(true, ""), "before the first sync nobody looks at the kernel");
    }
    proxy.sync().unwrap();
    assert_eq!(told(&mut observer, &proxy), all(true, ""));
    // As with every object that is right.
    proxy.apply(fault(&[]));
    assert_eq!(told(&mut observer, &proxy), all(false, ""));
    proxy.apply(fault(&["one"]));
    assert_eq!(told(&mut observer, &proxy), all(true, "one"));
    for _ in 0..3 {
        assert_eq!(told(&mut observer, &proxy), all(false, "one"));
    }
    proxy.apply(fault(&["one", "two"]));
    assert_eq!(told(&mut observer, &proxy), all(true, "one two"));
    proxy.apply(fault(&[]));
    assert_eq!(told(&mut observer, &proxy), all(true, ""));
    proxy.limit("memory", Some("too little".into()));
    assert_eq!(told(&mut observer, &proxy), all(true, "memory"));
    proxy.limit("memory", None);
    assert_eq!(told(&mut observer, &proxy), all(true, ""));
    let synced = proxy.sync().unwrap();
    observer.synced(&proxy, &synced);
    assert!(proxy.backend().asked.replace(0) > 0, "a sync may change all of it");
    assert_eq!(told(&mut observer, &proxy), all(false, ""));
    proxy.check().unwrap();
    assert_eq!(told(&mut observer, &proxy), all(true, "device eth9"), "what a look at the kernel found");
}
