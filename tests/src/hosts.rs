//! A node with real machines around it: each host is a namespace with a stack, a cable to the node and servers that say who
//! they are. For what crafted packets cannot show: whole connections, and what a client's own socket is told.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use anyhow::{Context, Result};

use crate::netns::{End, Netns, link, mac_text};
use crate::server::Server;

/// The node's address at each cable as the hosts' routes know it, and the hosts' as the node's do; never on the wire.
const GATEWAY: (&str, &str) = ("169.254.1.1", "fe80::1");

/// A machine beside the node: a pod, or a client outside.
#[derive(Debug)]
pub struct Host {
    /// Its name, which its servers answer with; also its interface on the node.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Where it lives.
    pub namespace: Netns,
}

/// The node and the hosts around it.
#[derive(Debug)]
pub struct Hosts {
    /// The node.
    pub node: Netns,
    /// The hosts, in the order given.
    pub hosts: Vec<Host>,
}

impl Hosts {
    /// Builds a node that holds `addresses` on `eth0`, and a host for each name with its addresses. The node's default
    /// route goes to the last of them.
    ///
    /// # Errors
    /// `ip` is missing or refuses, or the right to make namespaces is missing.
    pub fn build(addresses: &[IpAddr], hosts: &[(&str, &[IpAddr])]) -> Result<Self> {
        let node = Netns::new("node")?;
        node.sysctl("net/ipv4/ip_forward", "1")?;
        node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        node.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        // The addresses need an interface, and not every kernel has dummies.
        node.ip(&[
            "link add eth0 type veth peer name unplugged",
            "link set eth0 addrgenmode none",
            "link set eth0 up",
        ])?;
        node.ip(&addresses.iter().map(|ip| address(*ip, "eth0")).collect::<Vec<_>>())?;
        let mut built = Vec::new();
        for (number, (name, addresses)) in hosts.iter().enumerate() {
            let number = u8::try_from(number)?;
            let host = Host::join(&node, name, number, addresses)?;
            if usize::from(number) + 1 == hosts.len() {
                node.ip(&host.default_ways())?;
            }
            built.push(host);
        }
        Ok(Self { node, hosts: built })
    }

    /// The host of this name.
    ///
    /// # Panics
    /// There is none.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap_or_else(|| panic!("no host {name}"))
    }
}

impl Host {
    /// A new host with a cable to a namespace, which gets routes to its addresses; its own routes all go there. `number`
    /// tells the cables of a namespace apart.
    ///
    /// # Errors
    /// As [`Hosts::build`].
    pub fn join(near: &Netns, name: &str, number: u8, addresses: &[IpAddr]) -> Result<Self> {
        let host = Self { name: name.into(), addresses: addresses.to_vec(), namespace: Netns::new(name)? };
        host.plug(near, number)?;
        Ok(host)
    }

    /// Gives the host its cable, again if somebody has taken it away: as [`Host::join`] does for a new one.
    ///
    /// # Errors
    /// `ip` refuses: it has its cable.
    pub fn plug(&self, near: &Netns, number: u8) -> Result<()> {
        let (name, addresses, namespace) = (self.name.as_str(), &self.addresses, &self.namespace);
        let (near_mac, far_mac) = ([2, 0, 0, 0, 1, number], [2, 0, 0, 0, 2, number]);
        let end = End { namespace: near, interface: name, mac: near_mac };
        link(end, End { namespace, interface: "eth0", mac: far_mac })?;
        let mut lines: Vec<_> = addresses.iter().map(|ip| address(*ip, "eth0")).collect();
        lines.extend(neighbours(near_mac, "eth0"));
        lines.push(format!("route add default via {} dev eth0 onlink", GATEWAY.0));
        lines.push(format!("route add ::/0 via {} dev eth0 onlink", GATEWAY.1));
        namespace.ip(&lines)?;
        near.ip(&self.ways(number))
    }

    /// The lines of `ip` for where the host is joined to, that lead to it. An interface that goes down takes them along.
    pub fn ways(&self, number: u8) -> Vec<String> {
        let mut lines = neighbours([2, 0, 0, 0, 2, number], &self.name);
        lines.extend(self.addresses.iter().map(|ip| route(*ip, &self.name)));
        lines
    }

    /// The lines for where the host is joined to, that lead to everywhere else by it.
    pub fn default_ways(&self) -> [String; 2] {
        [("default", GATEWAY.0), ("::/0", GATEWAY.1)]
            .map(|(to, gateway)| format!("route add {to} via {gateway} dev {} onlink", self.name))
    }

    /// The line of `ip` that routes one of its addresses to it from the namespace that it was joined to.
    pub fn route_to(&self, ip: IpAddr) -> String {
        route(ip, &self.name)
    }

    /// Starts servers on a port at each address, TCP and UDP, that send back what they get.
    ///
    /// # Errors
    /// The port is taken.
    pub fn echo(&self, port: u16) -> Result<()> {
        for ip in &self.addresses {
            let at = SocketAddr::new(*ip, port);
            let bound =
                self.namespace.run(|| Ok::<_, std::io::Error>((TcpListener::bind(at)?, UdpSocket::bind(at)?)))?;
            let (listener, socket) = bound.with_context(|| format!("cannot serve at {at}"))?;
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // A client that breaks off is its own affair.
                    thread::spawn(move || drop(std::io::copy(&mut &stream, &mut &stream)));
                }
            });
            thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                    drop(socket.send_to(&buffer[..length], client));
                }
            });
        }
        Ok(())
    }

    /// Starts a [`Server`], which ends with the test process.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve(&self, port: u16) -> Result<()> {
        Server::start(self, port).map(Server::for_good)
    }
}

fn address(ip: IpAddr, interface: &str) -> String {
    if ip.is_ipv4() {
        format!("addr add {ip}/32 dev {interface}")
    } else {
        format!("addr add {ip}/128 dev {interface} nodad")
    }
}

fn route(ip: IpAddr, interface: &str) -> String {
    if ip.is_ipv4() {
        format!("route add {ip}/32 via {} dev {interface} onlink", GATEWAY.0)
    } else {
        format!("route add {ip}/128 via {} dev {interface} onlink", GATEWAY.1)
    }
}

fn neighbours(mac: [u8; 6], interface: &str) -> Vec<String> {
    let line = |gateway| format!("neigh add {gateway} lladdr {} dev {interface} nud permanent", mac_text(mac));
    [GATEWAY.0, GATEWAY.1].map(line).to_vec()
}
