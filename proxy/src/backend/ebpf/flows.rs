//! Which entries of `flows` are over. Pure: entries are looked up by whoever asks.

use kubeferry_ebpf_common::flow::{limits, since, timeout};
use kubeferry_ebpf_common::{Flow, FlowKey, SCTP, TCP};

/// Entries of one connection.
pub type Entries = Vec<(FlowKey, Flow)>;

/// Ticks since an entry was used.
fn idle(flow: &Flow, now: u32) -> u32 {
    since(now, flow.seen)
}

/// Whether it is the forward-in entry of a connection, from which the others are found.
pub fn is_first(key: &FlowKey, flow: &Flow) -> bool {
    key.hook == FlowKey::IN && flow.flags & Flow::FORWARD != 0
}

/// All entries of the connection with this forward-in entry that are there, the first included.
pub fn connection(key: &FlowKey, flow: &Flow, get: &mut dyn FnMut(&FlowKey) -> Option<Flow>) -> Entries {
    let mut entries = vec![(*key, *flow)];
    let (backward, forward) = key.siblings(flow);
    let mut add = |key: FlowKey| {
        let found = get(&key);
        entries.extend(found.map(|flow| (key, flow)));
        found
    };
    add(backward);
    if flow.flags & Flow::LOOPS != 0 {
        let mut looped = *key;
        key.write_looped(flow, &mut looped);
        add(looped);
    } else if let Some(out) = add(forward).filter(|out| out.flags & Flow::PENDING == 0) {
        add(forward.answer(&out));
    }
    entries
}

/// Whether a connection, all of whose entries these are, has lost one: it carries nothing any more, and its client may never hear of that.
pub fn is_torn(entries: &[(FlowKey, Flow)]) -> bool {
    let Some((_, first)) = entries.first() else { return false };
    let is_open = |(key, flow): &(FlowKey, Flow)| key.hook == FlowKey::OUT && flow.flags & Flow::PENDING != 0;
    let whole = match first.flags {
        flags if flags & Flow::LOOPS != 0 => 3,
        // What its first packet is masqueraded as is decided where it leaves, which it never did.
        _ if entries.iter().any(is_open) => 3,
        flags if flags & (Flow::MASQUERADED | Flow::OWN) != 0 => 4,
        _ => 2,
    };
    entries.len() < whole
}

/// Whether a connection has been silent for longer than its state allows; one that is torn, for longer than `orphans` ticks.
pub fn is_over(entries: &[(FlowKey, Flow)], now: u32, orphans: u32) -> bool {
    let (mut forward, mut backward, mut least) = (0, 0, u32::MAX);
    for (_, flow) in entries {
        let side = if flow.flags & Flow::FORWARD != 0 { &mut forward } else { &mut backward };
        *side |= flow.flags;
        least = least.min(idle(flow, now));
    }
    let Some((key, _)) = entries.first() else { return false };
    let allowed = timeout(key.protocol, forward, backward);
    least > if is_torn(entries) { allowed.min(orphans) } else { allowed }
}

/// Whether an entry may be over: what is not need not be looked at together with the others. One that is an orphan is, if it
/// was not used for `orphans` ticks.
pub fn may_be_over(key: &FlowKey, flow: &Flow, now: u32, orphans: u32) -> bool {
    let shortest = match (is_first(key, flow), key.protocol) {
        (true, TCP | SCTP) => limits::CLOSED,
        (true, _) => limits::ONE_WAY,
        // Without its first entry, one has to do with what it knows itself.
        (false, protocol) => timeout(protocol, flow.flags, flow.flags).min(orphans),
    };
    idle(flow, now) > shortest
}

/// Whether an entry that is not a connection's first belongs to none that is there.
pub fn is_orphan(key: &FlowKey, flow: &Flow, get: &mut dyn FnMut(&FlowKey) -> Option<Flow>) -> bool {
    let forward = flow.flags & Flow::FORWARD != 0;
    // The two ends as the endpoint's answer has them where it leaves.
    let mut backward = FlowKey { hook: FlowKey::OUT, ..*key };
    if forward {
        (backward.source, backward.source_port) = (key.destination, key.destination_port);
        (backward.destination, backward.destination_port) = (key.source, key.source_port);
    } else if key.hook == FlowKey::IN {
        (backward.destination, backward.destination_port) = (flow.address, flow.port);
    }
    let service = match backward == *key {
        true => Some(*flow),
        false => get(&backward),
    };
    let Some(service) = service else { return true };
    let first = FlowKey {
        source: backward.destination,
        source_port: service.client_port(backward.destination_port),
        destination: service.address,
        destination_port: service.port,
        hook: FlowKey::IN,
        ..backward
    };
    let endpoint = (backward.source, backward.source_port);
    !get(&first).is_some_and(|flow| flow.flags & Flow::FORWARD != 0 && (flow.address, flow.port) == endpoint)
}

#[cfg(test)]
mod tests;
