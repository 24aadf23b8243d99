//! The configuration file of kube-proxy: `KubeProxyConfiguration`, `kubeproxy.config.k8s.io/v1alpha1`.
//!
//! [`schema`] is the list of all its fields: their type, their bounds, and what becomes of them here. [`decode`] reads a file
//! against that list and keeps the values; `settings` merges them with the flags.

mod decode;
mod duration;
pub mod schema;
mod tree;

use std::collections::BTreeMap;
use std::fmt;

use jiff::SignedDuration;

pub use decode::decode;
pub use duration::{go_duration, go_duration_text};
use schema::{Effect, FIELDS};

/// A value of the file, of the type that its field asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A string.
    Text(String),
    /// A boolean.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any number.
    Number(f64),
    /// A Go duration.
    Duration(SignedDuration),
    /// A list of strings.
    Texts(Vec<String>),
    /// A map of booleans, as `name=true` each.
    Switches(BTreeMap<String, bool>),
    /// Anything else, as JSON text; only fields that do nothing have this.
    Other(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Duration(value) => f.write_str(&go_duration_text(*value)),
            Self::Texts(values) => write!(f, "{values:?}"),
            Self::Switches(map) => {
                let parts: Vec<String> = map.iter().map(|(name, on)| format!("{name}={on}")).collect();
                f.write_str(&parts.join(","))
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// One wrong setting: which, what it says, what is allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The flag (`--cluster-cidr`) or the field with its path (`clusterCIDR`).
    pub what: String,
    /// The value as it was given, quoted where it is text.
    pub value: String,
    /// What is wrong with it and what is allowed.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.value.is_empty() {
            write!(f, "{}: {}", self.what, self.why)
        } else {
            write!(f, "{} = {}: {}", self.what, self.value, self.why)
        }
    }
}

/// What a configuration file says. An absent field, `null` and the zero value all mean the default.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ProxyConfig {
    values: BTreeMap<&'static str, Value>,
}

impl ProxyConfig {
    /// The value of a field that was given and is not zero.
    fn get(&self, path: &str) -> Option<&Value> {
        self.values.get(path)
    }

    /// A string field; `None` when absent or empty.
    pub fn text(&self, path: &str) -> Option<&str> {
        match self.get(path) {
            Some(Value::Text(text)) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// A boolean field; `None` when absent.
    pub fn bool(&self, path: &str) -> Option<bool> {
        match self.get(path) {
            Some(Value::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// A whole number; `None` when absent.
    pub fn integer(&self, path: &str) -> Option<i64> {
        match self.get(path) {
            Some(Value::Integer(value)) => Some(*value),
            _ => None,
        }
    }

    /// A duration; `None` when absent or zero.
    pub fn duration(&self, path: &str) -> Option<SignedDuration> {
        match self.get(path) {
            Some(Value::Duration(value)) if !value.is_zero() => Some(*value),
            _ => None,
        }
    }

    /// A duration; `None` when absent: where zero means something else than the default.
    pub fn duration_or_zero(&self, path: &str) -> Option<SignedDuration> {
        match self.get(path) {
            Some(Value::Duration(value)) => Some(*value),
            _ => None,
        }
    }

    /// A list of strings; `None` when absent or empty.
    pub fn texts(&self, path: &str) -> Option<&[String]> {
        match self.get(path) {
            Some(Value::Texts(values)) if !values.is_empty() => Some(values),
            _ => None,
        }
    }

    /// A warning for each field that asks for something that is not done, `mode` (`iptables`, `ipvs`, `nftables`) being
    /// in force: kube-proxy itself does not read another mode's block.
    pub fn not_honoured(&self, mode: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        for field in FIELDS {
            let (Some(value), Effect::Nothing { defaults, mode: only, instead }) =
                (self.values.get(field.path), field.effect)
            else {
                continue;
            };
            if only.is_some_and(|only| only != mode) {
                continue;
            }
            let asks = match value {
                Value::Switches(map) => {
                    let asked = map.iter().filter(|(name, on)| !defaults.contains(&format!("{name}={on}").as_str()));
                    Value::Switches(asked.map(|(name, on)| (name.clone(), *on)).collect())
                }
                other => other.clone(),
            };
            if asks.is_zero() || defaults.iter().any(|default| asks.is(default)) {
                continue;
            }
            let instead = if instead.is_empty() { String::new() } else { format!("; {instead}") };
            warnings.push(format!("{} = {asks} is not honoured yet{instead}", field.path));
        }
        warnings
    }
}

impl Value {
    fn is_zero(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Bool(value) => !value,
            Self::Integer(value) => *value == 0,
            Self::Number(value) => *value == 0.0,
            Self::Duration(value) => value.is_zero(),
            Self::Texts(values) => values.is_empty(),
            Self::Switches(map) => map.is_empty(),
            Self::Other(text) => matches!(text.as_str(), "0" | "\"0\"" | "\"\"" | "{}" | "[]" | "false"),
        }
    }

    /// Whether this is the value that `text` writes.
    fn is(&self, text: &str) -> bool {
        match self {
            Self::Text(own) => own == text,
            Self::Duration(own) => go_duration(text).is_ok_and(|other| *own == other),
            other => other.to_string() == text,
        }
    }
}

#[cfg(test)]
mod tests;
