//! Label and field selectors, as far as they are simple requirements with commas between.

use anyhow::{Result, bail};
use serde_json::Value;

/// Which objects a list or watch is about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Requirement {
    path: Vec<String>,
    test: Test,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Test {
    Exists(bool),
    /// Absent is the empty text for a field.
    Equals(String, bool),
}

impl Selector {
    /// Reads the values of `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// A form that is not known here (`in`, `notin`), or a field that the API server does not select by.
    pub fn new(labels: &str, fields: &str) -> Result<Self> {
        let mut requirements = Vec::new();
        for text in labels.split(',').filter(|text| !text.is_empty()) {
            let (key, test) = match (comparison(text), text.strip_prefix('!')) {
                (Some((key, test)), _) => (key, test),
                (None, Some(key)) => (key, Test::Exists(false)),
                (None, None) => (text, Test::Exists(true)),
            };
            if key.contains(' ') {
                bail!("unable to parse requirement: {text:?}");
            }
            requirements.push(Requirement { path: ["metadata", "labels", key].map(str::to_owned).to_vec(), test });
        }
        for text in fields.split(',').filter(|text| !text.is_empty()) {
            let Some((field, test)) = comparison(text) else { bail!("invalid selector: {text:?}") };
            if !["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"].contains(&field) {
                bail!("field label not supported: {field}");
            }
            requirements.push(Requirement { path: field.split('.').map(str::to_owned).collect(), test });
        }
        Ok(Self { requirements })
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.requirements.iter().all(|requirement| {
            let found = requirement.path.iter().try_fold(object, |value, key| value.get(key));
            match &requirement.test {
                Test::Exists(wanted) => found.is_some() == *wanted,
                Test::Equals(text, wanted) => (found.and_then(Value::as_str).unwrap_or_default() == text) == *wanted,
            }
        })
    }
}

fn comparison(text: &str) -> Option<(&str, Test)> {
    let (key, operator, value) = match (text.split_once("!="), text.split_once("=")) {
        (Some((key, value)), _) => (key, false, value),
        (None, Some((key, value))) => (key, true, value.strip_prefix('=').unwrap_or(value)),
        (None, None) => return None,
    };
    Some((key, Test::Equals(value.to_owned(), operator)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_and_fields_select() {
        let object = json!({"metadata": {"name": "a", "labels": {"x.y/z": "1"}}, "spec": {"clusterIP": "None"}});
        for (labels, fields, matches) in [
            ("", "", true),
            ("x.y/z", "", true),
            ("!x.y/z", "", false),
            ("!other", "metadata.name=a", true),
            ("x.y/z=1,!other", "metadata.name==a", true),
            ("x.y/z!=1", "", false),
            ("", "spec.clusterIP!=None", false),
            ("", "metadata.name=b", false),
        ] {
            assert_eq!(Selector::new(labels, fields).unwrap().matches(&object), matches, "{labels} {fields}");
        }
        assert!(Selector::new("a in (b)", "").is_err());
        assert!(Selector::new("", "spec.ports=1").is_err());
    }
}
