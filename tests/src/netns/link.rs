//! Virtual cables between namespaces.

use anyhow::Result;

use super::command::tool;
use super::namespace::Netns;

/// One end of a veth pair: where it is, its name there, and its Ethernet address (`02:…`).
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// The namespace that the end is in.
    pub namespace: &'a Netns,
    /// The interface's name there, at most 15 bytes.
    pub interface: &'a str,
    /// The Ethernet address.
    pub mac: [u8; 6],
}

/// Joins two namespaces by a veth pair and brings both ends up, without addresses. IPv6 link-local addresses are not
/// made, so that the addresses of an interface are those that a test gave it.
///
/// # Errors
/// `ip` is missing, or refuses (a name taken, no right).
pub fn link(one: End<'_>, other: End<'_>) -> Result<()> {
    let (one_mac, other_mac) = (mac_text(one.mac), mac_text(other.mac));
    #[rustfmt::skip]
    let arguments = [
        "link", "add", "name", one.interface, "address", &one_mac, "netns", one.namespace.name(),
        "type", "veth",
        "peer", "name", other.interface, "address", &other_mac, "netns", other.namespace.name(),
    ];
    tool("ip", &arguments, "")?;
    for end in [one, other] {
        let name = end.interface;
        end.namespace.ip(&[format!("link set {name} addrgenmode none"), format!("link set {name} up")])?;
    }
    Ok(())
}

/// `02:00:…` as `ip` writes it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
