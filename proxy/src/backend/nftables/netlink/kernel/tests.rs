//! A socket that has no room for what the kernel sends (`ENOBUFS`), each test in a network namespace of its own.

use super::*;
use crate::netns::{in_new_netns, run};

// enum nfnetlink_groups, and messages of include/uapi/linux/netfilter/{nf_tables,nfnetlink_conntrack}.h
const NFNLGRP_NFTABLES: u32 = 7;
const NFT_MSG_GETTABLE: u16 = 10 << 8 | 1;
const IPCTNL_MSG_CT_GET: u16 = 1 << 8 | 1;
const TABLES: usize = 200;

/// A socket that is told of every table, and has next to no room for it.
fn cramped() -> NetfilterSocket {
    let socket = NetfilterSocket::open().unwrap();
    socket.listen(NFNLGRP_NFTABLES, 1).unwrap();
    socket
}

fn add_tables() {
    let script: String = (0..TABLES).map(|number| format!("add table inet t{number}\n")).collect();
    run("nft", &["-f", "-"], &script);
}

/// How many messages had no room, of all sockets of the namespace.
fn lost() -> usize {
    let table = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let column = table.lines().next().unwrap().split_whitespace().position(|name| name == "Drops").unwrap();
    let drops = table.lines().skip(1).map(|line| line.split_whitespace().nth(column).unwrap());
    drops.map(|number| number.parse::<usize>().unwrap()).sum()
}

/// The dump is asked for while there is no room even for the answer that there is none: the kernel begins it when there is.
#[test]
fn a_dump_that_there_is_no_room_for_is_begun_again() {
    in_new_netns(|| {
        let socket = cramped();
        add_tables();
        let before = lost();
        assert!(before > 0, "there was room for all of it");
        let dump = socket.dump("tables", NFT_MSG_GETTABLE, 0, |_| {}).unwrap();
        assert!(lost() > before, "the dump had room");
        assert_eq!((dump.complete, dump.attempts), (true, 2));
        assert_eq!(dump.messages().map(Result::unwrap).count(), TABLES);
    });
}

/// What is lost while a dump is read may be a part of it.
#[test]
fn a_dump_that_has_lost_something_is_not_complete() {
    in_new_netns(|| {
        let socket = cramped();
        let mut dump = Dump { bytes: Vec::new(), sequence: socket.number(1), complete: false, attempts: 1 };
        // Of connections: nothing tells whether these change meanwhile.
        let ask = |dump: &Dump| {
            socket.send(&question(IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP, dump.sequence, 0, |_| {})).unwrap();
        };
        ask(&dump);
        assert!(socket.read_dump("connections", &mut dump).unwrap());
        ask(&dump);
        add_tables();
        assert!(lost() > 0, "there was room for all of it");
        assert!(!socket.read_dump("connections", &mut dump).unwrap());
    });
}

/// An answer that had no room is no answer, and no success.
#[test]
fn a_request_whose_answer_there_is_no_room_for_fails() {
    in_new_netns(|| {
        let socket = cramped();
        add_tables();
        assert!(lost() > 0, "there was room for all of it");
        // Whatever it is answered, it is after what filled the socket.
        let result = socket.request(IPCTNL_MSG_CT_GET, 0, |_| {});
        assert!(matches!(result, Err(Error::Unanswered { .. })), "{result:?}");
    });
}
