//! The rows against the kernel and against `nft`, each test in a network namespace of its own.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Instant};

use super::*;
use crate::netns::{drop_capabilities, in_new_netns, run};

const TABLE: &str = r#"
table inet t {
  comment "skeleton 1"
  map frontends4 { typeof ip daddr . meta l4proto . th dport : verdict; }
  map frontends6 { typeof ip6 daddr . meta l4proto . th dport : verdict; }
  map endpoints4 { typeof ip daddr . meta l4proto . th dport . numgen random mod 3 : ip daddr . th dport; }
  map endpoints6 { typeof ip6 daddr . meta l4proto . th dport . numgen random mod 3 : ip6 daddr . th dport; }
  set cluster_ips4 { typeof ip daddr; }
  set service_cidrs4 { typeof ip daddr; flags interval; auto-merge; }
  set service_cidrs6 { typeof ip6 daddr; flags interval; auto-merge; }
  set source_ranges4 { typeof ip daddr . meta l4proto . th dport . ip saddr; flags interval; }
  map affinity4 { typeof ip saddr . ip daddr . meta l4proto . th dport : ip daddr . th dport; flags dynamic,timeout; timeout 3h; }
  set small4 { typeof ip daddr; size 2; }
  chain refuse { counter reject; }
  chain random4-3 {
    meta mark set 1
    dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints4
  }
  chain out { type nat hook output priority -100; ip daddr . meta l4proto . th dport vmap @frontends4; }
}
"#;

fn in_table<T: Send>(test: impl FnOnce(&Connection) -> T + Send) -> T {
    in_new_netns(|| {
        run("nft", &["-f", "-"], TABLE);
        test(&Connection::open().unwrap())
    })
}

fn key4(address: [u8; 4], protocol: u8, port: u16) -> Vec<u8> {
    [&address[..], &[protocol, 0, 0, 0], &port.to_be_bytes(), &[0, 0]].concat()
}

fn slot4(address: [u8; 4], port: u16, slot: u32) -> Vec<u8> {
    [key4(address, 6, port), slot.to_ne_bytes().to_vec()].concat()
}

fn target4(address: [u8; 4], port: u16) -> Data {
    Data::Value([&address[..], &port.to_be_bytes(), &[0, 0]].concat())
}

fn add(connection: &Connection, map: &str, elements: &[Element]) -> Result<(), CommitError> {
    let ops: Vec<_> = elements.iter().map(|element| Op::Add { map, element }).collect();
    connection.commit("t", &ops)
}

fn dump(connection: &Connection, map: &str) -> BTreeSet<Element> {
    let mut rows = BTreeSet::new();
    connection.dump("t", map, &mut |element| assert!(rows.insert(element), "a row came twice")).unwrap();
    rows
}

/// What `nft` lists between the braces of `elements = { … }`, sorted.
fn listed(kind: &str, map: &str) -> Vec<String> {
    let text = run("nft", &["-n", "list", kind, "inet", "t", map], "");
    let Some((_, rest)) = text.split_once("elements = {") else { return Vec::new() };
    let inner = rest.split_once('}').unwrap().0;
    let mut rows: Vec<_> = inner.split(',').map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    rows.sort();
    rows
}

#[test]
fn rows_written_here_are_listed_by_nft() {
    in_table(|connection| {
        let frontend = |port, data| Element::new(key4([10, 96, 0, 50], 6, port), data);
        let udp = Element::new(key4([10, 96, 0, 10], 17, 53), Data::Jump("random4-3".to_owned()));
        let rows =
            [frontend(80, Data::Goto("random4-3".into())), frontend(81, Data::Goto("refuse".into())), udp.clone()];
        add(connection, "frontends4", &rows).unwrap();
        assert_eq!(
            listed("map", "frontends4"),
            [
                "10.96.0.10 . 17 . 53 : jump random4-3",
                "10.96.0.50 . 6 . 80 : goto random4-3",
                "10.96.0.50 . 6 . 81 : goto refuse"
            ]
        );
        assert_eq!(dump(connection, "frontends4"), rows.into());

        let rows = [0, 1, 2].map(|slot| {
            Element::new(slot4([10, 96, 0, 50], 80, slot), target4([10, 244, 1, 5 + slot.to_le_bytes()[0]], 8080))
        });
        add(connection, "endpoints4", &rows).unwrap();
        assert_eq!(
            listed("map", "endpoints4"),
            [
                "10.96.0.50 . 6 . 80 . 0 : 10.244.1.5 . 8080",
                "10.96.0.50 . 6 . 80 . 1 : 10.244.1.6 . 8080",
                "10.96.0.50 . 6 . 80 . 2 : 10.244.1.7 . 8080"
            ]
        );
        assert_eq!(dump(connection, "endpoints4"), rows.into());

        let address6 = |last: u8| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let key6 = [&address6(1)[..], &[132, 0, 0, 0], &[0x1f, 0x90, 0, 0]].concat();
        let frontend6 = [Element::new(key6.clone(), Data::Goto("refuse".to_owned()))];
        add(connection, "frontends6", &frontend6).unwrap();
        assert_eq!(listed("map", "frontends6"), ["fd00::1 . 132 . 8080 : goto refuse"]);
        let target6 = Data::Value([&address6(9)[..], &[0, 80, 0, 0]].concat());
        let endpoint6 = [Element::new([key6, 2u32.to_ne_bytes().to_vec()].concat(), target6)];
        add(connection, "endpoints6", &endpoint6).unwrap();
        assert_eq!(listed("map", "endpoints6"), ["fd00::1 . 132 . 8080 . 2 : fd00::9 . 80"]);
        assert_eq!(dump(connection, "endpoints6"), endpoint6.into());
    });
}

#[test]
fn rows_written_by_nft_are_read_here() {
    in_table(|connection| {
        run(
            "nft",
            &["-f", "-"],
            "add element inet t frontends4 { 10.96.0.50 . tcp . 80 : goto random4-3, 10.96.0.51 . sctp . 9 : drop }
             add element inet t endpoints4 { 10.96.0.50 . tcp . 80 . 1 : 10.244.1.5 . 8080 }
             add element inet t cluster_ips4 { 10.96.0.50 comment \"web\" }
             add element inet t affinity4 { 192.0.2.9 . 10.96.0.50 . tcp . 80 timeout 1h : 10.244.1.5 . 8080 }
             add element inet t source_ranges4 { 10.96.0.50 . tcp . 80 . 192.0.2.0/24 }",
        );
        let web = || key4([10, 96, 0, 50], 6, 80);
        let expected = [
            Element::new(web(), Data::Goto("random4-3".to_owned())),
            Element::new(key4([10, 96, 0, 51], 132, 9), Data::Verdict(0)),
        ];
        assert_eq!(dump(connection, "frontends4"), expected.into());
        let expected = [Element::new(slot4([10, 96, 0, 50], 80, 1), target4([10, 244, 1, 5], 8080))];
        assert_eq!(dump(connection, "endpoints4"), expected.into());
        assert_eq!(dump(connection, "cluster_ips4"), [Element::new(vec![10, 96, 0, 50], Data::None)].into());
        let remembered = Element::new([vec![192, 0, 2, 9], web()].concat(), target4([10, 244, 1, 5], 8080));
        assert_eq!(dump(connection, "affinity4"), [remembered.clone()].into());
        let range = Element {
            key_end: Some([web(), vec![192, 0, 2, 255]].concat()),
            ..Element::new([web(), vec![192, 0, 2, 0]].concat(), Data::None)
        };
        assert_eq!(dump(connection, "source_ranges4"), [range.clone()].into());

        connection
            .commit(
                "t",
                &[
                    Op::Delete { map: "affinity4", element: &remembered },
                    Op::Delete { map: "source_ranges4", element: &range },
                ],
            )
            .unwrap();
        assert_eq!((dump(connection, "affinity4"), dump(connection, "source_ranges4")), Default::default());
    });
}

#[test]
fn plain_intervals() {
    in_table(|connection| {
        let interval = |first: [u8; 4], last: [u8; 4]| Element::interval(first.to_vec(), &last);
        let rows = [
            interval([10, 96, 0, 0], [10, 96, 255, 255]),
            interval([10, 97, 0, 0], [10, 97, 0, 255]),
            interval([240, 0, 0, 0], [255, 255, 255, 255]),
        ]
        .concat();
        add(connection, "service_cidrs4", &rows).unwrap();
        assert_eq!(dump(connection, "service_cidrs4"), rows.iter().cloned().collect());
        assert_eq!(listed("set", "service_cidrs4"), ["10.96.0.0/16", "10.97.0.0/24", "240.0.0.0/4"]);
        let ops: Vec<_> = rows[2..4].iter().map(|element| Op::Delete { map: "service_cidrs4", element }).collect();
        connection.commit("t", &ops).unwrap();
        assert_eq!(listed("set", "service_cidrs4"), ["10.96.0.0/16", "240.0.0.0/4"]);

        let all = Element::interval(vec![0; 16], &[255; 16]);
        add(connection, "service_cidrs6", &all).unwrap();
        assert_eq!(listed("set", "service_cidrs6"), ["::/0"]);
        assert_eq!(dump(connection, "service_cidrs6"), all.into_iter().collect());
    });
}

#[test]
fn plain_intervals_written_by_nft_can_be_changed_here() {
    in_table(|connection| {
        run("nft", &["-f", "-"], "add element inet t service_cidrs4 { 10.96.0.0/16, 10.98.0.0/16 }");
        let first = Element::interval(vec![10, 96, 0, 0], &[10, 96, 255, 255]);
        let second = Element::interval(vec![10, 98, 0, 0], &[10, 98, 255, 255]);
        let rows = dump(connection, "service_cidrs4");
        assert!(first.iter().chain(&second).all(|element| rows.contains(element)), "{rows:?}");
        let others: Vec<_> = rows.iter().filter(|row| !first.contains(row) && !second.contains(row)).collect();
        let lowest = Element { interval_end: true, ..Element::new(vec![0; 4], Data::None) };
        assert!(others.iter().all(|row| **row == lowest), "{others:?}");
        let mut ops: Vec<_> = first.iter().map(|element| Op::Delete { map: "service_cidrs4", element }).collect();
        ops.extend(others.into_iter().map(|element| Op::Delete { map: "service_cidrs4", element }));
        connection.commit("t", &ops).unwrap();
        assert_eq!(listed("set", "service_cidrs4"), ["10.98.0.0/16"]);
    });
}

#[test]
fn concatenated_intervals() {
    in_table(|connection| {
        let range = |first: [u8; 4], last: [u8; 4]| Element {
            key_end: Some([key4([203, 0, 113, 7], 6, 80), last.to_vec()].concat()),
            ..Element::new([key4([203, 0, 113, 7], 6, 80), first.to_vec()].concat(), Data::None)
        };
        let rows = [range([192, 0, 2, 0], [192, 0, 2, 255]), range([198, 51, 100, 7], [198, 51, 100, 7])];
        add(connection, "source_ranges4", &rows).unwrap();
        assert_eq!(
            listed("set", "source_ranges4"),
            ["203.0.113.7 . 6 . 80 . 192.0.2.0/24", "203.0.113.7 . 6 . 80 . 198.51.100.7"]
        );
        assert_eq!(dump(connection, "source_ranges4"), rows.clone().into());
        connection.commit("t", &[Op::Delete { map: "source_ranges4", element: &rows[0] }]).unwrap();
        assert_eq!(listed("set", "source_ranges4"), ["203.0.113.7 . 6 . 80 . 198.51.100.7"]);
    });
}

#[test]
fn a_row_is_replaced_in_one_transaction() {
    in_table(|connection| {
        let old = Element::new(slot4([10, 96, 0, 50], 80, 0), target4([10, 244, 1, 5], 8080));
        let new = Element { data: target4([10, 244, 2, 8], 8080), ..old.clone() };
        add(connection, "endpoints4", std::slice::from_ref(&old)).unwrap();
        add(connection, "endpoints4", std::slice::from_ref(&old)).expect("the same row again is no error");
        let before = connection.generation().unwrap();
        let ops = [Op::Delete { map: "endpoints4", element: &old }, Op::Add { map: "endpoints4", element: &new }];
        connection.commit("t", &ops).unwrap();
        assert_eq!(dump(connection, "endpoints4"), [new].into());
        assert_eq!(connection.generation().unwrap(), before + 1, "one transaction");
    });
}

#[test]
fn a_refused_row_is_named_and_nothing_changes() {
    in_table(|connection| {
        let row = |last: u8, data| Element::new(key4([10, 96, 0, last], 6, 80), data);
        let goto = |chain: &str| Data::Goto(chain.to_owned());
        add(connection, "frontends4", &[row(7, goto("refuse"))]).unwrap();
        let refused = |map: &str, elements: &[Element]| match add(connection, map, elements) {
            Err(CommitError::Refused(refused)) => refused,
            other => panic!("{other:?}"),
        };

        let mut rows: Vec<_> = (0..20).map(|last| row(last, goto("random4-3"))).collect();
        let error = refused("frontends4", &rows);
        assert_eq!((error.errno, error.ops.clone()), (libc::EEXIST, 7..8), "{error}");
        assert!(error.to_string().contains("add row 0a6000070600000000500000 to map frontends4"), "{error}");

        rows[7] = row(7, goto("refuse"));
        rows[13] = row(13, goto("nowhere"));
        let error = refused("frontends4", &rows);
        assert_eq!((error.errno, error.ops.clone()), (libc::ENOENT, 13..14), "{error}");

        rows[13] = Element::new(vec![1, 2, 3], goto("refuse"));
        let error = refused("frontends4", &rows);
        assert_eq!((error.errno, error.ops.clone()), (libc::EINVAL, 13..14), "{error}");
        assert_eq!(dump(connection, "frontends4"), [row(7, goto("refuse"))].into());

        let error = refused("nomap", &rows[..1]);
        assert_eq!(error.errno, libc::ENOENT, "{error}");
        let addresses = [1, 2, 3].map(|last| Element::new(vec![10, 0, 0, last], Data::None));
        let error = refused("small4", &addresses);
        assert_eq!((error.errno, error.ops.clone()), (libc::ENFILE, 2..3), "{error}");

        let gone = row(9, Data::None);
        let ops =
            [Op::Delete { map: "frontends4", element: &rows[7] }, Op::Delete { map: "frontends4", element: &gone }];
        match connection.commit("t", &ops) {
            Err(CommitError::Refused(error)) => {
                assert_eq!((error.errno, error.ops.clone()), (libc::ENOENT, 1..2), "{error}")
            }
            other => panic!("{other:?}"),
        }
        match connection.commit("notable", &ops) {
            Err(CommitError::Refused(error)) => {
                assert_eq!((error.errno, error.part.clone()), (libc::ENOENT, RefusedPart::Table("notable".into())))
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(dump(connection, "frontends4"), [row(7, goto("refuse"))].into());
        assert!(connection.dump("t", "nomap", &mut |_| {}).unwrap_err().is_not_found());
        assert!(connection.dump("notable", "nomap", &mut |_| {}).unwrap_err().is_not_found());
    });
}

#[test]
fn without_the_right_the_error_says_which() {
    in_table(|_| {
        drop_capabilities();
        let connection = Connection::open().unwrap();
        let rows: Vec<_> =
            (0..10_000u32).map(|number| Element::new(number.to_be_bytes().to_vec(), Data::None)).collect();
        for rows in [&rows[..1], &rows] {
            let error = add(&connection, "cluster_ips4", rows).unwrap_err();
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        }
        let error = connection.table("t").unwrap_err();
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    });
}

#[test]
fn a_table_and_its_chains() {
    in_table(|connection| {
        let table = connection.table("t").unwrap().unwrap();
        assert_eq!(table.comment.as_deref(), Some("skeleton 1"));
        assert_eq!(connection.table("other").unwrap(), None);
        assert!(connection.chains("other").unwrap().is_empty());

        let chains = connection.chains("t").unwrap();
        let counts: Vec<_> = chains.iter().map(|(name, chain)| (name.as_str(), chain.rules)).collect();
        assert_eq!(counts, [("out", 1), ("random4-3", 2), ("refuse", 1)]);

        let generation = connection.generation().unwrap();
        run("nft", &["-f", "-"], "add table inet other\nadd chain inet other c\nadd rule inet other c accept");
        assert_ne!(connection.generation().unwrap(), generation);
        assert_eq!(connection.chains("t").unwrap(), chains, "another table is not ours");

        run("nft", &["-f", "-"], "add rule inet t out accept\ninsert rule inet t random4-3 meta mark set 2");
        let changed = connection.chains("t").unwrap();
        assert_ne!(changed["out"].digest, chains["out"].digest);
        assert_eq!(changed["refuse"], chains["refuse"]);
        assert_eq!(changed["random4-3"].rules, 3);

        run("nft", &["-f", "-"], &format!("delete table inet t\n{TABLE}"));
        assert_eq!(connection.chains("t").unwrap(), chains, "the same text has the same digests");
        assert_ne!(connection.table("t").unwrap().unwrap().handle, table.handle);
    });
}

#[test]
fn a_hundred_thousand_rows_in_one_transaction() {
    in_table(|connection| {
        let address = |number: u32| Ipv4Addr::from_bits(0x0a60_0000 + number).octets();
        let rows: Vec<_> = (0..110_000u32)
            .map(|number| Element::new(slot4(address(number / 10), 80, number % 10), target4([10, 244, 0, 1], 8080)))
            .collect();
        let begin = Instant::now();
        add(connection, "endpoints4", &rows).unwrap();
        let took = begin.elapsed();
        let begin = Instant::now();
        assert_eq!(dump(connection, "endpoints4").len(), rows.len());
        println!("110,000 rows: written in {took:?}, read in {:?}", begin.elapsed());
        let ops: Vec<_> = rows.iter().map(|element| Op::Delete { map: "endpoints4", element }).collect();
        let begin = Instant::now();
        connection.commit("t", &ops).unwrap();
        println!("deleted in {:?}", begin.elapsed());
        assert!(dump(connection, "endpoints4").is_empty());

        let text: Vec<_> = (0..110_000u32)
            .map(|number| {
                let address = Ipv4Addr::from(address(number / 10));
                format!("{address} . tcp . 80 . {} : 10.244.0.1 . 8080", number % 10)
            })
            .collect();
        let script = format!("add element inet t endpoints4 {{ {} }}", text.join(", "));
        let begin = Instant::now();
        run("nft", &["-f", "-"], &script);
        println!("by nft in {:?}", begin.elapsed());
        assert_eq!(dump(connection, "endpoints4"), rows.into_iter().collect());
    });
}
