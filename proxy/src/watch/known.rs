//! What a source has reported so far: turns "this object looks so now" and "this one is gone" into the events that differ
//! from what was said before. Holds names and versions, not objects.

use std::collections::BTreeMap;

use super::object::Reported;
use crate::state::event::{Event, Kind};
use crate::state::objects::{Ignored, ObjectName};

/// The objects that a source has reported, by kind and name.
#[derive(Default, Debug)]
pub(super) struct Known {
    told: BTreeMap<(Kind, ObjectName), Told>,
    listing: u32,
}

#[derive(Debug)]
struct Told {
    /// Stands for the content that was reported: a hash of its text or of its resourceVersion.
    version: u64,
    served: bool,
    faulty: bool,
    listing: u32,
}

impl Known {
    /// An object's present form. Nothing is sent where the version is the one that was sent last.
    pub fn put(&mut self, version: u64, object: Reported, send: &mut dyn FnMut(Event)) {
        let Reported { kind, name, event, faults } = object;
        let told = self.told.get(&(kind, name.clone()));
        let (served, faulty) = told.map_or((false, false), |told| (told.served, told.faulty));
        let told = Told { version, served: event.is_some(), faulty: !faults.is_empty(), listing: self.listing };
        let same =
            self.told.get(&(kind, name.clone())).is_some_and(|before| before.version == version && !before.faulty);
        self.told.insert((kind, name.clone()), told);
        if same && faults.is_empty() {
            return;
        }
        match event {
            Some(event) => send(event),
            None if served => send(gone(kind, name.clone())),
            None => {}
        }
        if faulty || !faults.is_empty() {
            send(Event::Ignored { kind, name, faults });
        }
    }

    /// An object that cannot be read at present: what was served of it stays in force, the fault is said.
    pub fn unreadable(&mut self, kind: Kind, name: ObjectName, fault: Ignored, send: &mut dyn FnMut(Event)) {
        let served = self.told.get(&(kind, name.clone())).is_some_and(|told| told.served);
        let told = Told { version: 0, served, faulty: true, listing: self.listing };
        self.told.insert((kind, name.clone()), told);
        send(Event::Ignored { kind, name, faults: vec![fault] });
    }

    /// An object is gone.
    pub fn remove(&mut self, kind: Kind, name: &ObjectName, send: &mut dyn FnMut(Event)) {
        let Some(told) = self.told.remove(&(kind, name.clone())) else { return };
        if told.served {
            send(gone(kind, name.clone()));
        }
        if told.faulty {
            send(Event::Ignored { kind, name: name.clone(), faults: Vec::new() });
        }
    }

    /// Whether this version of an object is the one that was sent last, without a fault; then it counts as named by the list.
    pub fn is_as_told(&mut self, kind: Kind, name: &ObjectName, version: u64) -> bool {
        let told = self.told.get_mut(&(kind, name.clone())).filter(|told| told.version == version && !told.faulty);
        told.map(|told| told.listing = self.listing).is_some()
    }

    /// How many objects of a kind have been reported and are not gone.
    pub fn count(&self, kind: Kind) -> usize {
        self.told.keys().filter(|(of, _)| *of == kind).count()
    }

    /// A full list begins; what it does not name until [`Known::listed`] is gone.
    pub fn begin_list(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// The full list of `kind` has ended.
    pub fn listed(&mut self, kind: Kind, send: &mut dyn FnMut(Event)) {
        let current = self.listing;
        let missing = self.told.iter().filter(|((of, _), told)| *of == kind && told.listing != current);
        let missing: Vec<ObjectName> = missing.map(|((_, name), _)| name.clone()).collect();
        for name in missing {
            self.remove(kind, &name, send);
        }
    }
}

fn gone(kind: Kind, name: ObjectName) -> Event {
    match kind {
        Kind::Service => Event::ServiceGone(name),
        Kind::EndpointSlice => Event::SliceGone(name),
        Kind::Node => Event::NodeGone,
        Kind::ServiceCidr => Event::ServiceCidrGone(name),
        Kind::Manifest => Event::Ignored { kind, name, faults: Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::objects::ServiceCidr;

    fn object(name: &str, served: bool, fault: bool) -> Reported {
        let faults = if fault { vec![Ignored { what: name.into(), why: "test".into() }] } else { Vec::new() };
        let event = served.then(|| Event::ServiceCidr(ServiceCidr { name: name.into(), cidrs: Vec::new() }));
        Reported { kind: Kind::ServiceCidr, name: ObjectName::new("", name), event, faults }
    }

    fn run(act: impl FnOnce(&mut dyn FnMut(Event))) -> Vec<String> {
        let mut seen = Vec::new();
        act(&mut |event| {
            seen.push(match event {
                Event::ServiceCidr(cidr) => format!("+{}", cidr.name),
                Event::ServiceCidrGone(name) => format!("-{name}"),
                Event::Ignored { name, faults, .. } => format!("!{name}{}", faults.len()),
                other => format!("{other:?}"),
            });
        });
        seen
    }

    #[test]
    fn only_differences_are_sent() {
        let mut known = Known::default();
        assert_eq!(run(|send| known.put(1, object("a", true, false), send)), ["+a"]);
        assert!(run(|send| known.put(1, object("a", true, false), send)).is_empty());
        assert_eq!(run(|send| known.put(2, object("a", true, true), send)), ["+a", "!a1"]);
        assert_eq!(run(|send| known.put(3, object("a", false, false), send)), ["-a", "!a0"]);
        assert!(run(|send| known.put(4, object("a", false, false), send)).is_empty());
        assert!(run(|send| known.remove(Kind::ServiceCidr, &ObjectName::new("", "a"), send)).is_empty());
    }

    #[test]
    fn a_relist_sends_what_changed_and_what_is_gone() {
        let mut known = Known::default();
        run(|send| ["a", "b", "c"].iter().for_each(|name| known.put(1, object(name, true, false), send)));
        known.begin_list();
        assert_eq!(run(|send| known.put(1, object("a", true, false), send)), Vec::<String>::new());
        assert_eq!(run(|send| known.put(2, object("b", true, false), send)), ["+b"]);
        assert_eq!(run(|send| known.listed(Kind::ServiceCidr, send)), ["-c"]);
    }

    #[test]
    fn an_unreadable_object_stays_in_force_until_it_is_gone() {
        let mut known = Known::default();
        run(|send| known.put(1, object("a", true, false), send));
        let fault = Ignored { what: "a".into(), why: "test".into() };
        assert_eq!(run(|send| known.unreadable(Kind::ServiceCidr, ObjectName::new("", "a"), fault, send)), ["!a1"]);
        assert_eq!(run(|send| known.put(1, object("a", true, false), send)), ["+a", "!a0"]);
        known.begin_list();
        assert_eq!(run(|send| known.listed(Kind::ServiceCidr, send)), ["-a"]);
    }
}
