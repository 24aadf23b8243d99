//! Another program deletes or overwrites the rows by which packets are refused and clients remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::time::Duration;

use kubeferry_tests::bpf::pinned::{Pinned, Written};
use kubeferry_tests::client::{Connection, until_for};
use kubeferry_tests::site::{VIPS, at};

use super::ebpf_maps::start;
use super::guarded::{GUARDED_IPS, GUARDED_VIPS, guarded};
use super::trial::{EVERYWHERE, Sees, Trial};

/// How long one waits for an answer that is not to come.
const SILENCE: Duration = Duration::from_millis(500);
/// So many connections all have one endpoint of two by chance once in 32,000 times.
const LOYAL: usize = 16;

/// A node that serves that Service, too.
fn start_guarded() -> (Trial, Pinned) {
    let (trial, pinned) = start(&[]);
    trial.site.change_as(&EVERYWHERE, &|manifests| manifests + &guarded("")).unwrap();
    for to in GUARDED_IPS {
        let answered = || Connection::attempt(trial.site.outside(), at(to, 80))?.ask().ok();
        until_for(trial.right, "the Service to be served", answered).unwrap();
    }
    behaves(&trial);
    (trial, pinned)
}

/// What the rows say happens to packets: undefined ports of ClusterIPs are refused, others than those in the ranges are not
/// answered, and clients keep their endpoint.
fn behaves(trial: &Trial) {
    let (client, outside) = (trial.site.client(), trial.site.outside());
    for vip in VIPS {
        let error = Connection::open(client, at(vip, 9)).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{vip}: {error}");
    }
    for ip in GUARDED_IPS {
        assert!(Connection::attempt(outside, at(ip, 80)).unwrap().ask().is_ok(), "{ip}");
        let error = Connection::open_within(client, at(ip, 80), SILENCE).map(drop).unwrap_err();
        assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{ip}: {error}");
    }
    for vip in GUARDED_VIPS {
        let ask = || Connection::open(client, at(vip, 80)).unwrap().ask().unwrap().0;
        let servers: BTreeSet<_> = (0..LOYAL).map(|_| ask()).collect();
        assert_eq!(servers.len(), 1, "{vip}: {servers:?}");
    }
}

/// The rows without the time at which an endpoint joined, which is another where its row was away.
fn lasting(pinned: &Pinned, map: Written) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let time = if map == Written::Members { size_of::<u64>() } else { 0 };
    pinned.rows(map).unwrap().into_iter().map(|(key, value)| (key, value[time..].to_vec())).collect()
}

/// Does harm to a map; waits until so many rows of it have been counted as put right, and everything is as before.
fn comes_back(map: Written, counted: impl Fn(usize) -> u64) {
    let (trial, pinned) = start_guarded();
    let mut ways = trial.ways();
    ways.extend(GUARDED_IPS.map(|ip| (trial.site.outside(), at(ip, 80))));
    ways.extend(GUARDED_VIPS.map(|ip| (trial.site.client(), at(ip, 80))));
    let before = lasting(&pinned, map);
    let delete = || pinned.delete_rows(map).unwrap();
    let write = |byte| pinned.overwrite_rows(map, byte).unwrap();
    let harms: [(&str, &dyn Fn() -> usize); 3] =
        [("deleted", &delete), ("overwritten with zeroes", &|| write(0)), ("overwritten with ones", &|| write(0xff))];
    for (harm, does) in harms {
        let (repairs, rows) = trial.drift();
        let is_counted = || {
            let now = trial.drift();
            (now.0 > repairs && now.1 >= rows + counted(before.len())).then_some(())
        };
        let fault = format!("rows of {map:?} {harm}");
        trial.watches_by(&ways, &fault, Sees::NewFail, || assert_eq!(does(), before.len(), "{fault}"), is_counted);
        assert_eq!(lasting(&pinned, map), before, "{fault}");
        behaves(&trial);
    }
}

#[test]
fn addresses_that_are_deleted_or_overwritten_come_back() {
    comes_back(Written::Addresses, |rows| rows as u64);
}

/// Those of a service port in a family count as one.
#[test]
fn members_that_are_deleted_or_overwritten_come_back() {
    comes_back(Written::Members, |_| 4);
}

/// As [`members_that_are_deleted_or_overwritten_come_back`].
#[test]
fn source_ranges_that_are_deleted_or_overwritten_come_back() {
    comes_back(Written::SourceRanges, |_| 4);
}
