//! An object as the server sends it, decoded so leniently that one malformed object cannot spoil the list it comes in.

use std::borrow::Cow;

use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{ApiResource, DynamicObject};
use kube::core::DynamicResourceScope;
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::de::StrRead;
use serde_json::value::RawValue;

use super::super::object::{Object, Reported, report_in_parts};
use super::value::{MOST, Reader};
use crate::state::event::Kind;

/// The field of a slice that is read item by item.
const ENDPOINTS: &str = "endpoints";

/// Any JSON object, as text: a page of 500 large ones would be many times its text as values. Its kind's own decoding comes
/// later, one object at a time, and fails for this object alone.
#[derive(Clone, Debug)]
pub(super) struct Lenient {
    /// The name, the namespace and the version, however malformed the rest is.
    pub metadata: ObjectMeta,
    /// The whole object, metadata included.
    text: Box<RawValue>,
}

/// What an object comes to, if it can be decoded, and how many values were too much of it, or nested too deep.
pub(super) type Decoded = (serde_json::Result<Reported>, usize);

impl Lenient {
    /// Decodes it as one of this kind.
    pub fn decode(&self, kind: Kind) -> Decoded {
        if kind == Kind::EndpointSlice {
            return self.decode_slice();
        }
        let mut reader = Reader::new(MOST);
        let value = reader.read(&mut self.json());
        (value.and_then(|value| Ok(Object::decode(kind, value)?.report())), reader.left_out)
    }

    /// A slice has most of what there is in its endpoints: each is reduced to what is kept of it before the next is read.
    fn decode_slice(&self) -> Decoded {
        let mut reader = Reader::without(MOST, ENDPOINTS);
        let value = reader.read(&mut self.json());
        let object = value.and_then(discovery::EndpointSlice::deserialize);
        let reported = object.and_then(|object| {
            report_in_parts(&object, |slice| {
                reader.read_items(&mut self.json(), &mut |item| {
                    slice.endpoint(&discovery::Endpoint::deserialize(item)?);
                    Ok(())
                })
            })
        });
        (reported, reader.left_out)
    }

    fn json(&self) -> serde_json::Deserializer<StrRead<'_>> {
        serde_json::Deserializer::from_str(self.text.get())
    }
}

impl<'de> Deserialize<'de> for Lenient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        // Without room for anything else, but for the metadata.
        let named =
            Reader::new(0).read(&mut serde_json::Deserializer::from_str(text.get())).map_err(D::Error::custom)?;
        if !named.is_object() {
            return Err(D::Error::custom("an item that is no object"));
        }
        let part = |key: &str| named.get("metadata")?.get(key)?.as_str().map(str::to_owned);
        let metadata = ObjectMeta {
            name: part("name"),
            namespace: part("namespace"),
            resource_version: part("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, text })
    }
}

impl Resource for Lenient {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        DynamicObject::kind(of)
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        DynamicObject::group(of)
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        DynamicObject::version(of)
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        DynamicObject::api_version(of)
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        DynamicObject::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::ObjectList;
    use serde_json::json;

    #[test]
    fn malformed_metadata_spoils_no_list() {
        let list = json!({"metadata": {"resourceVersion": "7"}, "items": [
            {"metadata": {"name": "a", "namespace": "ns", "resourceVersion": "5", "labels": {"x": 1}}},
            {"metadata": {"name": "b", "labels": {"x": "1"}}, "spec": 3},
            {"metadata": "none"}]});
        let list: ObjectList<Lenient> = serde_json::from_value(list).unwrap();
        let names: Vec<_> = list.items.iter().map(|object| object.metadata.name.as_deref()).collect();
        assert_eq!(names, [Some("a"), Some("b"), None]);
        assert_eq!(list.items[0].metadata.resource_version.as_deref(), Some("5"));
    }

    fn slice(endpoints: serde_json::Value) -> serde_json::Value {
        json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 8080}, {"name": "bad", "port": -1}],
            "metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": endpoints})
    }

    fn lenient(object: &serde_json::Value) -> Lenient {
        serde_json::from_str(&object.to_string()).unwrap()
    }

    #[test]
    fn a_slice_that_is_read_in_parts_is_what_it_is_as_a_whole() {
        let hints = json!({"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]});
        let one = json!({"addresses": ["10.0.0.1"], "nodeName": "n1", "zone": "a", "hints": hints});
        for endpoints in [json!([one, {"addresses": ["10.0.0.2"]}, {"addresses": ["::1"]}]), json!([]), json!(null)] {
            let object = slice(endpoints);
            let (got, left_out) = lenient(&object).decode(Kind::EndpointSlice);
            let (got, whole) = (got.unwrap(), Object::decode(Kind::EndpointSlice, object).unwrap().report());
            assert_eq!((got.event, got.faults, left_out), (whole.event, whole.faults, 0));
        }
        for bad in [json!({"addresses": 3}), json!("text")] {
            let (got, _) = lenient(&slice(json!([one, bad]))).decode(Kind::EndpointSlice);
            assert!(got.is_err(), "{bad}: {got:?}");
        }
    }
}
