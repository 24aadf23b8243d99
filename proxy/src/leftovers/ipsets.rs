//! The sets of kube-proxy's ipvs mode, over nfnetlink.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Outcome, names as ours};
use crate::backend::nftables::netlink::Error;
use crate::backend::nftables::netlink::attribute::{Writer, find, text};
use crate::backend::nftables::netlink::kernel::{Dump, NetfilterSocket};

// include/uapi/linux/netfilter/nfnetlink.h, ipset/ip_set.h
const IPSET: u16 = 6 << 8;
const IPSET_CMD_DESTROY: u16 = IPSET | 3;
const IPSET_CMD_LIST: u16 = IPSET | 7;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_FLAGS: u16 = 6;
const IPSET_PROTOCOL: u8 = 7;
const IPSET_FLAG_LIST_SETNAME: u32 = 1 << 1;
const IPSET_ERR_BUSY: i32 = 4100;
/// Any family: a set is named by its name alone.
const FAMILY: u8 = 2;
/// How long the kernel may take to let go of a set whose rules are deleted; it frees them in the background.
const PATIENCE: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_millis(20);

/// Destroys them. Whoever asks has the kernel load its sets; so nothing is asked where it has none.
///
/// # Errors
/// The kernel refuses the list.
pub(super) fn remove() -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    if !Path::new("/sys/module/ip_set").exists() {
        return Ok(outcome);
    }
    let socket = NetfilterSocket::open()?;
    let mut destroyed = 0;
    for set in list(&socket)?.iter().filter(|set| ours::is_set(set)) {
        match destroy(&socket, set)? {
            0 => destroyed += 1,
            libc::ENOENT => {}
            IPSET_ERR_BUSY => outcome.failed.push(format!("ipset {set} is used by a rule that is not kube-proxy's")),
            errno => {
                let refused = Error::Refused { action: "destroy", what: format!("ipset {set}"), errno };
                outcome.failed.push(refused.to_string());
            }
        }
    }
    if destroyed > 0 {
        outcome.removed.push(format!("{destroyed} ipsets"));
    }
    Ok(outcome)
}

fn list(socket: &NetfilterSocket) -> Result<Vec<String>, Error> {
    let dump = socket.dump("ipsets", IPSET_CMD_LIST, FAMILY, |writer| {
        protocol(writer);
        writer.value(IPSET_ATTR_FLAGS, &IPSET_FLAG_LIST_SETNAME.to_be_bytes());
    })?;
    names(&dump)
}

/// The names in a list.
pub(super) fn names(dump: &Dump) -> Result<Vec<String>, Error> {
    let mut sets = Vec::new();
    for message in dump.messages() {
        let (_, body) = message?;
        sets.extend(find(body, IPSET_ATTR_SETNAME)?.map(text));
    }
    Ok(sets)
}

/// The kernel's error number, 0 for none.
fn destroy(socket: &NetfilterSocket, set: &str) -> Result<i32, Error> {
    let end = Instant::now() + PATIENCE;
    loop {
        let errno = socket.request(IPSET_CMD_DESTROY, FAMILY, |writer| {
            protocol(writer);
            writer.text(IPSET_ATTR_SETNAME, set);
        })?;
        if errno != IPSET_ERR_BUSY || Instant::now() > end {
            return Ok(errno);
        }
        std::thread::sleep(AGAIN);
    }
}

fn protocol(writer: &mut Writer) {
    writer.value(IPSET_ATTR_PROTOCOL, &[IPSET_PROTOCOL]);
}
