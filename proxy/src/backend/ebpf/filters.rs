//! Which program a filter of clsact runs, asked over rtnetlink: where there are no links, nothing else tells that somebody has
//! taken it away.

use std::io;

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

// include/uapi/linux/rtnetlink.h, netlink.h, pkt_sched.h, pkt_cls.h, if_ether.h
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const TC_H_INGRESS: u32 = 0xffff_fff2;
const TC_H_EGRESS: u32 = 0xffff_fff3;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;
const ETH_P_ALL: u16 = 3;
/// Bytes of a message's header, and of `struct tcmsg` after it.
const HEADER: usize = 16;
const TCMSG: usize = 20;

/// The place of our filter where there are no TCX links.
pub(super) const FILTER: (u16, TcHandle) = (0x6b66, TcHandle::new(0, 1));

/// A filter that stays until somebody removes it, in the place of an earlier one of ours.
pub(super) fn attach(
    program: &mut SchedClassifier,
    device: &str,
    hook: TcAttachType,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // It may be there already.
    let _ = qdisc_add_clsact(device);
    let (priority, handle) = FILTER;
    let earlier = SchedClassifierLink::attached(device, hook, priority, handle, None)?;
    let id = match program.attach_to_link(earlier) {
        Ok(id) => id,
        Err(_) => {
            let options = TcAttachOptions::Netlink(NlOptions { priority, handle, classid: None });
            program.attach_with_options(device, hook, options)?
        }
    };
    // Dropped, it would be detached.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// The kernel's number of the program that a filter of a device runs; `None`: there is no such filter, or no such device.
///
/// # Errors
/// The kernel cannot be asked.
pub(super) fn program_at(index: u32, ingress: bool, filter: (u16, TcHandle)) -> io::Result<Option<u32>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(index, ingress, filter), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    read(&answer)
}

/// The number of the program that an answer tells of; `None`: there is none.
///
/// # Errors
/// What the kernel could not do; or it is no answer to that.
pub(crate) fn read(answer: &[u8]) -> io::Result<Option<u32>> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let body = answer.get(HEADER..).unwrap_or_default();
    match kind {
        Some(RTM_NEWTFILTER) => Ok(program(body)),
        Some(NLMSG_ERROR) => match body.first_chunk().and_then(|code| i32::from_ne_bytes(*code).checked_neg()) {
            // No filter; no qdisc; no device.
            Some(libc::ENOENT | libc::EINVAL | libc::ENODEV) => Ok(None),
            errno => Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EPROTO))),
        },
        _ => Err(io::Error::from_raw_os_error(libc::EPROTO)),
    }
}

/// A `struct tcmsg` with its header.
fn request(index: u32, ingress: bool, (priority, handle): (u16, TcHandle)) -> Vec<u8> {
    let length = HEADER + TCMSG;
    let parent = if ingress { TC_H_INGRESS } else { TC_H_EGRESS };
    let info = u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be());
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(RTM_GETTFILTER.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence number, port
    for word in [0, index, u32::from(handle), parent, info] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// The program's number in an answer.
fn program(answer: &[u8]) -> Option<u32> {
    let options = attribute(answer.get(TCMSG..)?, TCA_OPTIONS)?;
    Some(u32::from_ne_bytes(*attribute(options, TCA_BPF_ID)?.first_chunk()?))
}

/// The value of the first attribute of a kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        let value = bytes.get(4..length)?;
        // The upper two bits are flags.
        if kind & 0x3fff == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others() {
        let bytes = [6, 0, 1, 0, 0x62, 0, 0, 0, 12, 0, 2, 0x80, 8, 0, 11, 0, 7, 0, 0, 0];
        assert_eq!(attribute(&bytes, 1), Some(&[0x62, 0][..]));
        let options = attribute(&bytes, TCA_OPTIONS).unwrap();
        assert_eq!(attribute(options, TCA_BPF_ID), Some(&[7, 0, 0, 0][..]));
        assert_eq!(attribute(&bytes, 3), None);
        assert_eq!(attribute(&[3, 0, 1, 0], 1), None, "shorter than its header");
    }
}
