//! rtnetlink's messages, for the fuzzer.

use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::kernel::address_of;
use super::links::interface;

/// Reads an interface or an address.
pub(crate) fn message(payload: &NetlinkPayload<RouteNetlinkMessage>) {
    match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            assert_eq!(interface(link).index, link.header.index)
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => drop(address_of(address)),
        _ => {}
    }
}
