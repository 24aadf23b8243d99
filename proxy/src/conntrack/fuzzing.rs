//! Entries of connection tracking, for the fuzzer.

use super::entry::read;
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
