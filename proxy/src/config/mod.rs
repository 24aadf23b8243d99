//! The configuration file of kube-proxy: `KubeProxyConfiguration`, `kubeproxy.config.k8s.io/v1alpha1`.
//!
//! [`schema`] is the list of all its fields: their type, their bounds, kube-proxy's flags for them, and what becomes of them
//! here; [`flags`] are kube-proxy's flags without a field, [`gates`] its feature gates. [`decode`] reads a file against that list and keeps the values;
//! `settings` makes settings of them. [`table`] writes the list for people.

mod decode;
mod duration;
pub mod flags;
pub mod gates;
pub mod schema;
pub mod table;
mod tree;

use std::collections::BTreeMap;
use std::fmt;

use jiff::SignedDuration;

pub use decode::{decode, go_bool, go_integer};
pub use duration::{go_duration, go_duration_text};
use schema::{Effect, FIELDS, Field};

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
    /// Bytes, as they were written.
    Quantity(String),
    /// File patterns with a verbosity each.
    Modules(Vec<(String, i64)>),
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
            Self::Quantity(text) => f.write_str(text),
            Self::Modules(modules) => {
                let parts: Vec<String> = modules.iter().map(|(pattern, level)| format!("{pattern}={level}")).collect();
                f.write_str(&parts.join(","))
            }
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

/// What a configuration file says, or in its absence kube-proxy's flags. In a file an absent field, `null` and the zero value
/// all mean the default; a flag that is given says what it says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ProxyConfig {
    values: BTreeMap<&'static str, Value>,
    /// The flags that some values come from, with dashes.
    flags: BTreeMap<&'static str, String>,
}

impl ProxyConfig {
    /// Puts the value of kube-proxy's flag, given without dashes, in the place of its field's.
    ///
    /// # Errors
    /// What is wrong with it. A flag without a field is no flag of this configuration.
    pub fn set_flag(&mut self, flag: &str, text: &str) -> Result<(), Problem> {
        let what = format!("--{flag}");
        let problem = |why: String| Problem { what: what.clone(), value: format!("{text:?}"), why };
        let field = schema::field_of_flag(flag).ok_or_else(|| problem("has no field".to_owned()))?;
        self.values.insert(field.path, decode::flag(field.kind, text).map_err(problem)?);
        self.flags.insert(field.path, what);
        Ok(())
    }

    /// Where the value of a field comes from: the flag with dashes, or the field itself.
    pub fn origin(&self, path: &str) -> String {
        self.flags.get(path).cloned().unwrap_or_else(|| path.to_owned())
    }

    /// The values that were given, by field.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.values.iter().map(|(path, value)| (*path, value))
    }

    /// The value of a field that was given.
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

    /// A duration; `None` when absent, or zero in a file.
    pub fn duration(&self, path: &str) -> Option<SignedDuration> {
        self.duration_or_zero(path).filter(|value| !value.is_zero() || self.flags.contains_key(path))
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

    /// Names that are turned on or off; empty when absent.
    pub fn switches(&self, path: &str) -> impl Iterator<Item = (&str, bool)> {
        let map = match self.get(path) {
            Some(Value::Switches(map)) => Some(map),
            _ => None,
        };
        map.into_iter().flatten().map(|(name, on)| (name.as_str(), *on))
    }

    /// A warning for each value that asks for something that is not done: by a field that has no effect, or in the block of
    /// another mode. `reads` tells whether the mode in force reads this field of a mode's block, `mode` is its name.
    pub fn without_effect(&self, mode: &str, reads: impl Fn(&Field) -> bool) -> Vec<String> {
        let mut warnings = Vec::new();
        for field in FIELDS {
            let Some(value) = self.values.get(field.path) else { continue };
            let asks = value.beyond(field);
            if asks.is_zero() || asks.is(field.default) || field.harmless.iter().any(|harmless| asks.is(harmless)) {
                continue;
            }
            let what = self.origin(field.path);
            if let Value::Switches(gates) = &asks {
                // What is refused is told as that.
                let taken = gates.iter().filter(|(name, on)| gates::refused(name, **on).is_none());
                warnings.extend(
                    taken.map(|(name, on)| format!("{what}.{name} = {on} has no effect: {}", gates::reason(name, *on))),
                );
                continue;
            }
            if field.block().is_some() && !reads(field) {
                let hint = if field.path == "ipvs.scheduler" { "; --scheduler chooses one" } else { "" };
                warnings.push(format!("{what} = {asks} is not read: the mode is {mode}{hint}"));
            } else if field.effect == Effect::Warned {
                warnings.push(format!("{what} = {asks} has no effect: {}", field.note));
            }
        }
        warnings
    }
}

impl Value {
    /// Whether this is what an absent field holds.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Bool(value) => !value,
            Self::Integer(value) => *value == 0,
            Self::Number(value) => *value == 0.0,
            Self::Duration(value) => value.is_zero(),
            Self::Quantity(text) => {
                text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).bytes().all(|b| b == b'0' || b == b'.')
            }
            Self::Texts(values) => values.is_empty(),
            Self::Switches(map) => map.is_empty(),
            Self::Modules(modules) => modules.is_empty(),
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

    /// Without those switches that ask for nothing.
    fn beyond(&self, field: &Field) -> Self {
        match self {
            Self::Switches(map) => {
                let asked = map.iter().filter(|(name, on)| !field.harmless.contains(&format!("{name}={on}").as_str()));
                Self::Switches(asked.map(|(name, on)| (name.clone(), *on)).collect())
            }
            other => other.clone(),
        }
    }
}

/// kube-proxy's default of a field, where it has one that a file could hold.
pub fn default_value(field: &Field) -> Option<Value> {
    let sentence = field.default.is_empty() || field.default.contains(' ');
    if sentence { None } else { decode::flag(field.kind, field.default).ok() }
}

#[cfg(test)]
mod tests;
