//! Entries of connection tracking, for the fuzzer.

use super::accounting;
use super::entry::{read, read_tracked};
use super::kernel::{TCP, UDP};
use crate::backend::nftables::netlink::kernel::Dump;

/// Reads a dump (its messages are numbered 1). What an entry is deleted by is that entry.
pub(crate) fn entries(bytes: &[u8]) {
    let dump = Dump::read_before(bytes.to_vec(), 1);
    for (_, body) in dump.messages().flatten() {
        for protocol in [TCP, UDP] {
            if let Ok(Some(entry)) = read(body, protocol) {
                match read(&entry.identity, protocol) {
                    Ok(Some(again)) => assert_eq!((again.original, again.reply), (entry.original, entry.reply)),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// Reads a dump as what connections carried. Each is the entry that [`read`] sees, and sums have what they are of.
pub(crate) fn counts(bytes: &[u8]) {
    let dump = Dump::read_before(bytes.to_vec(), 1);
    let mut all = Vec::new();
    for (_, body) in dump.messages().flatten() {
        let Ok(tracked) = read_tracked(body) else { continue };
        if let Some(tracked) = tracked {
            match read(body, tracked.way.protocol.number()) {
                Ok(Some(entry)) => {
                    assert_eq!(entry.original.destination, tracked.way.to);
                    assert_eq!(entry.reply.source, tracked.way.endpoint);
                }
                other => panic!("{other:?}"),
            }
        }
        all.extend(tracked);
    }
    accounting::fuzzing::sums(&all);
}
