//! Interfaces over rtnetlink with their addresses: a list, and a watch, of the network namespace of the thread that polls
//! first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::address::{AddressHeaderFlags, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};
use tokio::sync::watch;
use tracing::warn;

use super::kernel::{AddressError, RETRY, Running, address_of, list};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `veth`, `bridge` and so on; empty for most hardware.
    pub kind: String,
    /// ARPHRD_*: what its packets begin with.
    pub hardware: u16,
    /// It is hardware, or what a virtual machine takes for it.
    pub physical: bool,
    /// Its address on the link, where that has six bytes.
    pub link: Option<[u8; 6]>,
    /// The bridge, bond or VRF that it is part of.
    pub controller: Option<u32>,
    /// What a macvlan or ipvlan lies upon, in the same network namespace.
    pub carrier: Option<u32>,
    /// The network namespace of its other end, if that is another one than this; as this one numbers it.
    pub peer_namespace: Option<u32>,
    /// Its addresses as the kernel lists them, primary ones first, without tentative and deprecated ones.
    pub addresses: Vec<Held>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The node's own, not the peer's.
    pub address: IpAddr,
    /// As the kernel numbers it: 0 universe, 200 site, 253 link, 254 host.
    pub scope: u8,
}

/// All interfaces, by index.
///
/// # Errors
/// No socket, or the kernel refuses. Needs no capability.
pub async fn interfaces() -> Result<Vec<Interface>, AddressError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let _connection = Running(tokio::spawn(connection));
    let mut links = handle.link().get().execute();
    let mut found = BTreeMap::new();
    while let Some(link) = links.try_next().await? {
        let interface = interface(&link);
        found.insert(interface.index, interface);
    }
    for message in list(&handle).await? {
        let out = AddressHeaderFlags::Deprecated | AddressHeaderFlags::Tentative;
        if message.header.flags.intersects(out) {
            continue;
        }
        if let (Some(interface), Some(address)) = (found.get_mut(&message.header.index), address_of(&message)) {
            interface.addresses.push(Held { address, scope: AddressScope::into(message.header.scope) });
        }
    }
    Ok(found.into_values().collect())
}

pub(super) fn interface(link: &LinkMessage) -> Interface {
    let mut found = Interface {
        index: link.header.index,
        name: String::new(),
        kind: String::new(),
        hardware: link.header.link_layer_type.into(),
        physical: false,
        link: None,
        controller: None,
        carrier: None,
        peer_namespace: None,
        addresses: Vec::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(address) => found.link = address.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => found.controller = Some(*index).filter(|index| *index != 0),
            LinkAttribute::Link(index) => found.carrier = Some(*index).filter(|index| *index != 0),
            // Negative: it has no number.
            LinkAttribute::LinkNetNsId(number) => found.peer_namespace = u32::try_from(*number).ok(),
            LinkAttribute::LinkInfo(parts) => {
                for part in parts {
                    if let LinkInfo::Kind(kind) = part {
                        found.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    if found.peer_namespace.is_some() || !["macvlan", "macvtap", "ipvlan", "ipvtap"].contains(&found.kind.as_str()) {
        found.carrier = None;
    }
    // The folder is of the network namespace that it was mounted in: what says of itself to be virtual is.
    found.physical = found.kind.is_empty() && Path::new("/sys/class/net").join(&found.name).join("device").exists();
    found
}

/// The interfaces now, and again whenever one, or an address of one, comes, goes or changes. What is lost to a full buffer
/// or a socket that fails leads to a new list. Ends with the last receiver.
///
/// # Errors
/// As for [`interfaces`], for the first list.
pub async fn watch_interfaces() -> Result<watch::Receiver<Vec<Interface>>, AddressError> {
    // The notifications first: what happens after the list is then told.
    let mut changes = Some(notifications()?);
    let (sender, receiver) = watch::channel(interfaces().await?);
    tokio::spawn(async move {
        loop {
            if let Some((_connection, messages)) = &mut changes {
                tokio::select! {
                    () = sender.closed() => return,
                    message = messages.next() => match message {
                        Some(_) => while messages.try_recv().is_ok() {},
                        None => changes = None,
                    },
                }
            } else {
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
                changes = notifications().inspect_err(|error| warn!(%error, "interfaces of this node")).ok();
            }
            match interfaces().await {
                Ok(now) => drop(sender.send_if_modified(|last| {
                    let differs = *last != now;
                    if differs {
                        *last = now;
                    }
                    differs
                })),
                Err(error) => {
                    warn!(%error, "interfaces of this node: watching again");
                    changes = None;
                }
            }
        }
    });
    Ok(receiver)
}

type Messages = futures::channel::mpsc::UnboundedReceiver<(
    rtnetlink::packet_core::NetlinkMessage<rtnetlink::packet_route::RouteNetlinkMessage>,
    rtnetlink::sys::SocketAddr,
)>;

fn notifications() -> Result<(Running, Messages), AddressError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
    Ok((Running(tokio::spawn(connection)), messages))
}
