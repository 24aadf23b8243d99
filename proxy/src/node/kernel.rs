//! Addresses over rtnetlink: a list, and a watch. Both are of the network namespace of the thread that polls first.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::NetlinkMessage,
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage, AddressScope},
        link::LinkAttribute,
    },
    sys::SocketAddr,
};
use tokio::{sync::watch, task::JoinHandle};
use tracing::warn;

/// The kernel's release, as `uname -r` says it; empty where /proc is not there.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// How long after a failure the watch begins again.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// An address of an interface of this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeAddress {
    /// The address itself, on point-to-point links the node's and not the peer's. Addresses that are tentative or
    /// deprecated count: the kernel treats them as local too.
    pub address: IpAddr,
    /// The length of its network's prefix, in bits.
    pub prefix_length: u8,
    /// The interface's name; empty where the interface went between two questions.
    pub interface: String,
    /// As the kernel numbers it: 0 universe, 200 site, 253 link, 254 host.
    pub scope: u8,
}

/// The node's addresses cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No socket.
    #[error("cannot open an rtnetlink socket for the node's addresses: {0}")]
    Open(#[from] io::Error),
    /// The kernel refused the list.
    #[error("cannot list the node's addresses: {0}")]
    List(#[from] rtnetlink::Error),
    /// The kernel's notifications ended.
    #[error("the kernel's notifications of address changes ended")]
    Ended,
}

/// All addresses of all interfaces, of both families, loopback included, sorted.
///
/// # Errors
/// No socket, or the kernel refuses. Needs no capability.
pub async fn list_addresses() -> Result<Vec<NodeAddress>, AddressError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let _connection = Running(tokio::spawn(connection));
    let mut names = BTreeMap::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        for attribute in link.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                names.insert(link.header.index, name);
            }
        }
    }
    let mut found: Vec<_> = list(&handle)
        .await?
        .into_iter()
        .filter_map(|message| {
            Some(NodeAddress {
                address: address_of(&message)?,
                prefix_length: message.header.prefix_len,
                interface: names.get(&message.header.index).cloned().unwrap_or_default(),
                scope: AddressScope::into(message.header.scope),
            })
        })
        .collect();
    found.sort();
    Ok(found)
}

/// The addresses of all interfaces, each once, sorted.
///
/// # Errors
/// As for [`list_addresses`].
pub async fn addresses() -> Result<Vec<IpAddr>, AddressError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let _connection = Running(tokio::spawn(connection));
    Ok(sorted(&list(&handle).await?))
}

/// The addresses of all interfaces now, and again whenever they differ. Notifications lost to a full buffer, or a
/// socket that fails, lead to a new list; nothing else is noticed of them but a warning. Ends with the last receiver.
///
/// # Errors
/// As for [`list_addresses`], for the first list.
pub async fn watch_addresses() -> Result<watch::Receiver<Vec<IpAddr>>, AddressError> {
    let mut watcher = Watcher::open()?;
    let (sender, receiver) = watch::channel(watcher.list().await?);
    tokio::spawn(async move {
        loop {
            let error = tokio::select! {
                () = sender.closed() => return,
                Err(error) = watcher.follow(&sender) => error,
            };
            warn!(%error, "addresses of this node: watching again");
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
            match Watcher::open() {
                Ok(new) => watcher = new,
                Err(error) => warn!(%error, "addresses of this node"),
            }
            match watcher.list().await {
                Ok(now) => send(&sender, now),
                Err(error) => warn!(%error, "addresses of this node"),
            }
        }
    });
    Ok(receiver)
}

/// Notifications and questions on a socket each: notifications that overflow theirs take no answer along.
struct Watcher {
    changes: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    handle: Handle,
    _connections: [Running; 2],
}

impl Watcher {
    fn open() -> Result<Self, AddressError> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (notifications, _, changes) = rtnetlink::new_multicast_connection(&groups)?;
        let (questions, handle, _) = rtnetlink::new_connection()?;
        let _connections = [Running(tokio::spawn(notifications)), Running(tokio::spawn(questions))];
        Ok(Self { changes, handle, _connections })
    }

    async fn list(&self) -> Result<Vec<IpAddr>, AddressError> {
        Ok(sorted(&list(&self.handle).await?))
    }

    /// Lists again after each notification, whatever it says (`NLMSG_OVERRUN` comes this way too); those that came
    /// meanwhile are answered by the same list.
    async fn follow(&mut self, sender: &watch::Sender<Vec<IpAddr>>) -> Result<std::convert::Infallible, AddressError> {
        loop {
            self.changes.next().await.ok_or(AddressError::Ended)?;
            while self.changes.try_recv().is_ok() {}
            send(sender, self.list().await?);
        }
    }
}

fn send(sender: &watch::Sender<Vec<IpAddr>>, now: Vec<IpAddr>) {
    sender.send_if_modified(|old| {
        let changed = *old != now;
        *old = now;
        changed
    });
}

/// A connection's task, ended with this.
pub(super) struct Running(pub(super) JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) async fn list(handle: &Handle) -> Result<Vec<AddressMessage>, AddressError> {
    Ok(handle.address().get().execute().try_collect().await?)
}

fn sorted(messages: &[AddressMessage]) -> Vec<IpAddr> {
    let addresses: BTreeSet<_> = messages.iter().filter_map(address_of).collect();
    addresses.into_iter().collect()
}

/// `IFA_LOCAL` where there is one: `IFA_ADDRESS` is then the peer's.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::{in_new_netns, run};

    fn ip(arguments: &str) {
        run("ip", &arguments.split(' ').collect::<Vec<_>>(), "");
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn parse(texts: &[&str]) -> Vec<IpAddr> {
        let addresses: BTreeSet<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
        addresses.into_iter().collect()
    }

    #[test]
    fn all_addresses_of_all_interfaces_are_listed() {
        in_new_netns(|| {
            ip("link add eth7 type bridge");
            ip("addr add 192.0.2.7/24 dev eth7");
            ip("addr add 192.0.2.1 peer 192.0.2.99/32 dev eth7");
            ip("addr add fd00::7/64 dev eth7");
            let expected = ["127.0.0.1", "::1", "192.0.2.7", "192.0.2.1", "fd00::7"];
            assert_eq!(block_on(addresses()).unwrap(), parse(&expected));
            let found = block_on(list_addresses()).unwrap();
            let of = |text: &str| found.iter().find(|found| found.address == text.parse::<IpAddr>().unwrap()).unwrap();
            assert_eq!((of("fd00::7").interface.as_str(), of("fd00::7").prefix_length), ("eth7", 64));
            assert_eq!((of("127.0.0.1").interface.as_str(), of("127.0.0.1").scope), ("lo", 254));
            assert_eq!(of("192.0.2.7").scope, 0);
        });
    }

    #[test]
    fn changes_are_told() {
        in_new_netns(|| {
            block_on(async {
                let mut watch = watch_addresses().await.unwrap();
                assert_eq!(*watch.borrow_and_update(), parse(&["127.0.0.1", "::1"]));
                ip("link add eth7 type bridge");
                ip("addr add 192.0.2.7/24 dev eth7");
                wait_for(&mut watch, &["127.0.0.1", "::1", "192.0.2.7"]).await;
                ip("addr add fd00::7/64 dev eth7");
                ip("addr del 192.0.2.7/24 dev eth7");
                wait_for(&mut watch, &["127.0.0.1", "::1", "fd00::7"]).await;
                ip("link del eth7");
                wait_for(&mut watch, &["127.0.0.1", "::1"]).await;
            });
        });
    }

    #[test]
    fn a_flood_of_changes_ends_with_the_right_list() {
        in_new_netns(|| {
            block_on(async {
                let mut watch = watch_addresses().await.unwrap();
                ip("link add eth7 type bridge");
                // Nothing is read while `ip` works, so the notifications overflow the socket.
                let batch: String = (0..8000)
                    .map(|number| format!("addr add 10.1.{}.{}/32 dev eth7\n", number / 250, number % 250))
                    .collect();
                run("ip", &["-batch", "-"], &batch);
                ip("addr add 192.0.2.7/24 dev eth7");
                let reached = watch.wait_for(|addresses| addresses.len() == 8003);
                let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
                assert!(reached.is_ok(), "8,003 addresses did not come");
            });
        });
    }

    async fn wait_for(watch: &mut watch::Receiver<Vec<IpAddr>>, expected: &[&str]) {
        let expected = parse(expected);
        let reached = watch.wait_for(|addresses| *addresses == expected);
        let reached = tokio::time::timeout(Duration::from_secs(30), reached).await.is_ok();
        assert!(reached, "waited 30s for {expected:?}, there is {:?}", *watch.borrow());
    }
}
