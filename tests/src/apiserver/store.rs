//! The objects with their history: every change gets the next resource version, and watches go on from any that is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::resource::{Resource, Target};
use super::select::Selector;

/// Names an object; the order is that of lists.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub resource: Resource,
    /// Empty for kinds without namespaces.
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(resource: Resource, namespace: &str, name: &str) -> Self {
        let namespace = if resource.is_namespaced() { namespace } else { "" };
        Self { resource, namespace: namespace.into(), name: name.into() }
    }

    /// Whether a list or watch of `target` is about the object.
    fn is_in(&self, target: &Target) -> bool {
        self.resource == target.resource
            && target.namespace.as_ref().is_none_or(|namespace| *namespace == self.namespace)
            && target.name.as_ref().is_none_or(|name| *name == self.name)
    }
}

/// An object as it was at some version.
pub(super) type Object = Arc<Value>;

#[derive(Debug)]
struct Change {
    revision: u64,
    key: Key,
    before: Option<Object>,
    after: Option<Object>,
    /// No watch tells of it.
    silent: bool,
    /// Watches tell of it with this version, and of nothing that is.
    replayed: Option<u64>,
}

/// What a watch tells.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Event {
    pub revision: u64,
    pub kind: &'static str,
    pub object: Value,
}

#[derive(Debug)]
pub(super) struct Store {
    revision: u64,
    compacted: u64,
    objects: BTreeMap<Key, Object>,
    history: Vec<Change>,
}

/// The wanted version is no longer kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gone;

impl Store {
    pub fn new() -> Self {
        // Version 0 and none have meanings of their own, so the first change is far from them.
        Self { revision: 100, compacted: 0, objects: BTreeMap::new(), history: Vec::new() }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// The objects of a kind, in all namespaces.
    pub fn all(&self, resource: Resource) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(move |(key, _)| key.resource == resource).map(|(_, object)| object)
    }

    /// Creates or replaces an object; the metadata that an API server gives is given,
    /// but for a uid and a creation time that it has.
    pub fn apply(&mut self, mut object: Value) -> Result<Object> {
        let resource = object["kind"].as_str().and_then(Resource::of_kind).context("no kind that is served here")?;
        let metadata = object["metadata"].as_object_mut().context("no metadata")?;
        let name = metadata.get("name").and_then(Value::as_str).context("no metadata.name")?.to_owned();
        let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or("default").to_owned();
        let key = Key::new(resource, &namespace, &name);
        if resource.is_namespaced() {
            metadata.insert("namespace".into(), namespace.into());
        }
        let revision = self.revision + 1;
        let before = self.objects.get(&key).cloned();
        for (field, fresh) in [
            ("uid", format!("00000000-0000-4000-8000-{revision:012}")),
            ("creationTimestamp", "2026-01-01T00:00:00Z".into()),
        ] {
            let kept = before.as_ref().map(|before| before["metadata"][field].clone());
            let given = metadata.get(field).filter(|given| given.is_string()).cloned();
            metadata.insert(field.into(), given.or(kept).unwrap_or_else(|| fresh.into()));
        }
        metadata.insert("resourceVersion".into(), revision.to_string().into());
        object["apiVersion"] = resource.api_version().into();
        let object = Arc::new(object);
        self.change(key, Some(object.clone()), false);
        Ok(object)
    }

    /// Removes an object; `false`: there is none. `silent`: no watch is told. A namespace goes with all that is in it.
    pub fn delete(&mut self, key: &Key, silent: bool) -> bool {
        let is_there = self.objects.contains_key(key);
        if is_there && key.resource == Resource::Namespace {
            let inside: Vec<_> = self.objects.keys().filter(|inside| inside.namespace == key.name).cloned().collect();
            inside.into_iter().for_each(|inside| self.change(inside, None, silent));
        }
        if is_there {
            self.change(key.clone(), None, silent);
        }
        is_there
    }

    fn change(&mut self, key: Key, after: Option<Object>, silent: bool) {
        self.revision += 1;
        let before = match &after {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(&key),
        };
        self.history.push(Change { revision: self.revision, key, before, after, silent, replayed: None });
    }

    /// Has watches tell once more how an object was at a version that is over; the objects stay as they are.
    pub fn replay(&mut self, key: &Key, version: u64) -> bool {
        let was = self.history.iter().rev().find(|change| change.key == *key && change.revision <= version);
        let Some(after) = was.and_then(|change| change.after.clone()) else { return false };
        self.revision += 1;
        let (key, before) = (key.clone(), self.objects.get(key).cloned());
        let replayed = Some(version);
        let revision = self.revision;
        self.history.push(Change { revision, key, before, after: Some(after), silent: false, replayed });
        true
    }

    /// Forgets the history: nobody can go on from a version before the present one; with `even_present`, from that neither.
    pub fn compact(&mut self, even_present: bool) {
        self.revision += u64::from(even_present);
        self.compacted = self.revision;
        self.history.clear();
    }

    /// The selected objects as they were at `revision`, in order.
    pub fn list(&self, target: &Target, selector: &Selector, revision: u64) -> Result<Vec<(Key, Object)>, Gone> {
        if revision < self.compacted {
            return Err(Gone);
        }
        let mut objects: BTreeMap<&Key, &Object> = self.objects.iter().filter(|(key, _)| key.is_in(target)).collect();
        for change in self.history.iter().rev().take_while(|change| change.revision > revision) {
            if !change.key.is_in(target) {
                continue;
            }
            match &change.before {
                Some(before) => objects.insert(&change.key, before),
                None => objects.remove(&change.key),
            };
        }
        let selected = objects.into_iter().filter(|(_, object)| selector.matches(object));
        Ok(selected.map(|(key, object)| (key.clone(), object.clone())).collect())
    }

    /// What has happened after `revision`, as a watch tells it: an object that comes into the selection is added, one that
    /// leaves it is deleted.
    pub fn events(&self, target: &Target, selector: &Selector, revision: u64) -> Result<Vec<Event>, Gone> {
        if revision < self.compacted {
            return Err(Gone);
        }
        let new = self.history.partition_point(|change| change.revision <= revision);
        let changes = self.history[new..].iter().filter(|change| !change.silent && change.key.is_in(target));
        Ok(changes.filter_map(|change| event(change, selector)).collect())
    }
}

fn event(change: &Change, selector: &Selector) -> Option<Event> {
    let selected = |object: &Option<Object>| object.clone().filter(|object| selector.matches(object));
    let (kind, object) = match (selected(&change.before), selected(&change.after)) {
        (None, None) => return None,
        (None, Some(after)) => ("ADDED", after),
        (Some(_), Some(after)) => ("MODIFIED", after),
        (Some(before), None) => ("DELETED", before),
    };
    let mut object = Value::clone(&object);
    object["metadata"]["resourceVersion"] = change.replayed.unwrap_or(change.revision).to_string().into();
    Some(Event { revision: change.revision, kind, object })
}

/// The object of a bookmark: nothing but a version, and whether the initial events have been told.
pub(super) fn bookmark(resource: Resource, revision: u64, initial: bool) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"kind": resource.kind(), "apiVersion": resource.api_version(), "metadata": metadata})
}
