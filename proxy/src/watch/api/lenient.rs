//! An object as the server sends it, decoded so leniently that one malformed object cannot spoil the list it comes in.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{ApiResource, DynamicObject};
use kube::core::DynamicResourceScope;
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;

use super::value::{MOST, Reader};

/// Any JSON object. Its kind's own decoding comes later, and fails for this object alone.
#[derive(Clone, Debug)]
pub(super) struct Lenient {
    /// Of malformed metadata, the name, the namespace and the version at least.
    pub metadata: ObjectMeta,
    /// The whole object, metadata included.
    pub data: Value,
    /// What was too much of it, or nested too deep: so many values.
    pub left_out: usize,
}

impl<'de> Deserialize<'de> for Lenient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut reader = Reader::new(MOST);
        let data = reader.read(deserializer)?;
        if !data.is_object() {
            return Err(D::Error::custom("an item that is no object"));
        }
        let written = data.get("metadata").unwrap_or(&Value::Null);
        let metadata = ObjectMeta::deserialize(written).unwrap_or_else(|_| {
            let text = |key: &str| written.get(key).and_then(Value::as_str).map(str::to_owned);
            ObjectMeta {
                name: text("name"),
                namespace: text("namespace"),
                resource_version: text("resourceVersion"),
                ..ObjectMeta::default()
            }
        });
        Ok(Self { metadata, data, left_out: reader.left_out })
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
}
