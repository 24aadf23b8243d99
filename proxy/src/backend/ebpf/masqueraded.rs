//! What was masqueraded by an address that the node has lost.

use std::collections::BTreeSet;
use std::io;

use kubeferry_ebpf_common::{Address, Device, Flow, FlowKey, SCTP, UDP};

use super::table::Table;

/// The addresses that devices masquerade by.
pub fn addresses<'a>(devices: impl IntoIterator<Item = &'a Device>) -> BTreeSet<Address> {
    let both = devices.into_iter().flat_map(|device| [device.masquerade4, device.masquerade6]);
    both.filter(|address| !address.is_zero()).collect()
}

/// Has connections over UDP and SCTP that were masqueraded by these addresses be masqueraded anew by their next packet: no answer
/// comes to the old ones, and a client that sends all the time would keep them for as long as it does. One of TCP could not go on
/// under another address. How many.
///
/// # Errors
/// The map cannot be read or written.
pub fn begin_anew(flows: &Table<FlowKey, Flow>, lost: &BTreeSet<Address>) -> io::Result<usize> {
    let mut found = Vec::new();
    flows.each_batch(|rows| found.extend(rows.iter().copied().filter(|(key, flow)| is_by(key, flow, lost))))?;
    let mut begun = 0;
    for (key, old) in found {
        let (address, port, flags) = (key.source, key.source_port, old.flags | Flow::PENDING);
        if flows.put_known(&key, &Flow { address, port, flags, ..old })? {
            flows.delete(&[key.answer(&old)])?;
            begun += 1;
        }
    }
    Ok(begun)
}

/// Whether it is the forward-out entry of such a connection.
fn is_by(key: &FlowKey, flow: &Flow, lost: &BTreeSet<Address>) -> bool {
    const KINDS: u16 = Flow::FORWARD | Flow::PENDING | Flow::KEEPS | Flow::OWN;
    matches!(key.protocol, UDP | SCTP)
        && key.hook == FlowKey::OUT
        && flow.flags & KINDS == Flow::FORWARD
        && lost.contains(&flow.address)
}
