//! IPVS's virtual servers, over generic netlink, and the device with their addresses. Where that device is, kube-proxy's ipvs
//! mode ran, which takes every virtual server for its own but those of `ipvs.excludeCIDRs`; without it nothing is touched.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use rtnetlink::packet_route::link::LinkAttribute;

use super::{Outcome, names};
use crate::backend::nftables::netlink::Error as Netlink;
use crate::backend::nftables::netlink::attribute::{Writer, find, frames};
use crate::backend::nftables::netlink::kernel::read_errno;

// include/uapi/linux/genetlink.h, ip_vs.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const IPVS_CMD_DEL_SERVICE: u8 = 3;
const IPVS_CMD_GET_SERVICE: u8 = 4;
const IPVS_CMD_ATTR_SERVICE: u16 = 1;
const IPVS_SVC_ATTR_AF: u16 = 1;
const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
const IPVS_SVC_ATTR_ADDR: u16 = 3;
const IPVS_SVC_ATTR_PORT: u16 = 4;

/// What can go wrong with IPVS.
#[derive(thiserror::Error, Debug)]
pub(super) enum IpvsError {
    /// The device.
    #[error("the device {device}: {0}", device = names::DEVICE)]
    Device(#[from] rtnetlink::Error),
    /// No socket.
    #[error("cannot open a netlink socket for IPVS: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refuses.
    #[error("the kernel refused to {what}: {source}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Bytes that are no message.
    #[error(transparent)]
    Malformed(#[from] Netlink),
}

/// Deletes the virtual servers outside of `excluded`, then the device.
///
/// # Errors
/// The kernel refuses.
pub(super) async fn remove(excluded: &[IpNet]) -> Result<Outcome, IpvsError> {
    let mut outcome = Outcome::default();
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let result = async {
        let mut links = handle.link().get().execute();
        let mut index = None;
        while let Some(link) = links.try_next().await? {
            let is =
                |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if name == names::DEVICE);
            index = index.or(link.attributes.iter().any(is).then_some(link.header.index));
        }
        let Some(index) = index else { return Ok(()) };
        let servers = virtual_servers(excluded)?;
        if servers > 0 {
            outcome.removed.push(format!("{servers} virtual servers of IPVS"));
        }
        handle.link().del(index).execute().await?;
        outcome.removed.push(format!("device {}", names::DEVICE));
        Ok(())
    };
    let result = result.await;
    connection.abort();
    result.map(|()| outcome)
}

/// Deletes them. How many.
fn virtual_servers(excluded: &[IpNet]) -> Result<usize, IpvsError> {
    // Whoever asks for IPVS has it loaded.
    if !Path::new("/proc/thread-self/net/ip_vs").exists() {
        return Ok(0);
    }
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let ask = "say what IPVS is called";
    let family = exchange(&socket, ask, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, NLM_F_ACK, |writer| {
        writer.text(CTRL_ATTR_FAMILY_NAME, "IPVS");
    })?;
    let family = family.first().map(|body| find(body, CTRL_ATTR_FAMILY_ID)).transpose()?.flatten();
    let Some(family) = family.and_then(|id| id.try_into().ok()).map(u16::from_ne_bytes) else { return Ok(0) };
    let listed = exchange(&socket, "list virtual servers", family, IPVS_CMD_GET_SERVICE, NLM_F_DUMP, |_| {})?;
    let mut deleted = 0;
    for body in &listed {
        let Some((service, address)) = server(body)? else { continue };
        if excluded.iter().any(|net| net.contains(&address)) {
            continue;
        }
        exchange(&socket, "delete a virtual server", family, IPVS_CMD_DEL_SERVICE, NLM_F_ACK, |writer| {
            let nest = writer.nest(IPVS_CMD_ATTR_SERVICE);
            for kind in [IPVS_SVC_ATTR_AF, IPVS_SVC_ATTR_PROTOCOL, IPVS_SVC_ATTR_ADDR, IPVS_SVC_ATTR_PORT] {
                if let Ok(Some(value)) = find(service, kind) {
                    writer.value(kind, value);
                }
            }
            writer.end(nest);
        })?;
        deleted += 1;
    }
    Ok(deleted)
}

/// A virtual server and its address. Those of a packet mark have none, and are nothing that kube-proxy makes.
pub(super) fn server(body: &[u8]) -> Result<Option<(&[u8], IpAddr)>, Netlink> {
    let Some(service) = find(body, IPVS_CMD_ATTR_SERVICE)? else { return Ok(None) };
    Ok(address(service)?.map(|address| (service, address)))
}

/// The address of a virtual server.
fn address(service: &[u8]) -> Result<Option<IpAddr>, Netlink> {
    let (family, bytes) = (find(service, IPVS_SVC_ATTR_AF)?, find(service, IPVS_SVC_ATTR_ADDR)?);
    let family = family.and_then(|value| value.try_into().ok()).map(|value| i32::from(u16::from_ne_bytes(value)));
    Ok(match (family, bytes) {
        (Some(libc::AF_INET), Some(bytes)) => bytes.first_chunk::<4>().map(|ip| Ipv4Addr::from(*ip).into()),
        (Some(libc::AF_INET6), Some(bytes)) => bytes.first_chunk::<16>().map(|ip| Ipv6Addr::from(*ip).into()),
        _ => None,
    })
}

/// Sends a request and reads its answers to their end: the attributes of each.
fn exchange(
    socket: &Socket,
    what: &'static str,
    family: u16,
    command: u8,
    flags: u16,
    body: impl Fn(&mut Writer),
) -> Result<Vec<Vec<u8>>, IpvsError> {
    let mut writer = Writer::default();
    // A header of generic netlink has the length of netfilter's, and begins with the command.
    let message = writer.message(family, NLM_F_REQUEST | flags, 1, command, 0);
    body(&mut writer);
    writer.end_message(message);
    socket.send(&writer.into_bytes(), 0)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if answers(&bytes, what, &mut found)? {
            return Ok(found);
        }
    }
}

/// Takes in the answers of a datagram; whether they are the last.
pub(super) fn answers(bytes: &[u8], what: &'static str, found: &mut Vec<Vec<u8>>) -> Result<bool, IpvsError> {
    for frame in frames(bytes) {
        let frame = frame?;
        match frame.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                return match read_errno(&frame)? {
                    0 => Ok(true),
                    errno => Err(IpvsError::Refused { what, source: io::Error::from_raw_os_error(errno) }),
                };
            }
            _ => found.push(frame.payload().get(4..).unwrap_or_default().to_vec()),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_are_told_by_address() {
        let service = |family: u16, address: &[u8]| {
            let mut writer = Writer::default();
            writer.value(IPVS_SVC_ATTR_AF, &family.to_ne_bytes());
            writer.value(IPVS_SVC_ATTR_ADDR, address);
            writer.into_bytes()
        };
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&[10, 96, 0, 1]);
        assert_eq!(address(&service(2, &v4)).unwrap(), Some("10.96.0.1".parse().unwrap()));
        let v6: Ipv6Addr = "fd00::1".parse().unwrap();
        assert_eq!(address(&service(10, &v6.octets())).unwrap(), Some(v6.into()));
        let mut mark = Writer::default();
        mark.value(IPVS_SVC_ATTR_AF, &2u16.to_ne_bytes());
        assert_eq!(address(&mark.into_bytes()).unwrap(), None);
    }
}
