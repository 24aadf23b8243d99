//! Reads a configuration file against the schema.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::schema::{self, Field, Kind};
use super::tree::Tree;
use super::{Problem, ProxyConfig, Value, go_duration};
use crate::input::{documents, yaml};
use crate::state::text::tame;

/// The most values that a file with aliases may come to.
const MOST_VALUES: usize = 100_000;
/// How much of a value or an unknown name is shown.
const SHOWN: usize = 200;

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// What came of a file: the values that are right, everything that is wrong with the others, and warnings about unknown and
/// duplicate fields, which kube-proxy lets pass too.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Decoded {
    /// The values.
    pub config: ProxyConfig,
    /// Values of a wrong type or out of bounds.
    pub problems: Vec<Problem>,
    /// Unknown and duplicate fields.
    pub warnings: Vec<String>,
}

/// Reads the text of a configuration file, YAML or JSON: its first document. What would take too long to read, or comes to too
/// much, is a problem of the file.
pub fn decode(text: &str) -> Decoded {
    let mut decoded = Decoded::default();
    let documents = documents::split(text.strip_prefix('\u{feff}').unwrap_or(text));
    if documents.len() > 1 {
        let text = format!("the file has {} documents: only the first is read, as by kube-proxy", documents.len());
        decoded.warnings.push(text);
    }
    // With lines before it, so that what is told of it has the file's.
    let first = documents.first().map(|(line, document)| format!("{}{document}", "\n".repeat(line.saturating_sub(1))));
    let text = first.as_deref().unwrap_or_default();
    if let Err(why) = yaml::check(text, MOST_VALUES) {
        decoded.problem("the file", String::new(), format!("cannot be read: {why}"));
        return decoded;
    }
    let tree = match serde_yaml_ng::from_str::<Tree>(text) {
        Ok(tree) => tree,
        Err(error) => {
            decoded.problem("the file", String::new(), format!("cannot be read as YAML or JSON: {error}"));
            return decoded;
        }
    };
    decoded.section("", &tree);
    for (path, wanted) in [("apiVersion", API_VERSION), ("kind", "KubeProxyConfiguration")] {
        let given = decoded.config.text(path).unwrap_or_default().to_owned();
        if given != wanted {
            decoded.problem(path, format!("{given:?}"), format!("must be {wanted}"));
        }
    }
    decoded
}

impl Decoded {
    fn problem(&mut self, what: &str, value: String, why: impl Into<String>) {
        self.problems.push(Problem { what: what.to_owned(), value: tame(&value, SHOWN), why: why.into() });
    }

    fn section(&mut self, path: &str, tree: &Tree) {
        let map = match tree {
            Tree::Map(map) => map,
            Tree::Null if !path.is_empty() => return,
            other => {
                let what = if path.is_empty() { "the file" } else { path };
                return self.problem(what, other.to_string(), "must be a mapping of fields to values");
            }
        };
        for (path, value) in self.last(path, map) {
            if let Some(field) = schema::field_at(&path) {
                self.field(field, value);
            } else if schema::is_section(&path) {
                self.section(&path, value);
            } else {
                self.unknown(&path);
            }
        }
    }

    /// What stands below a path, by paths: the last of several of one name, as in kube-proxy, which are warned about.
    fn last<'a>(&mut self, path: &str, map: &'a [(String, Tree)]) -> BTreeMap<String, &'a Tree> {
        let mut last = BTreeMap::new();
        for (key, value) in map {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if last.insert(path.clone(), value).is_some() {
                let path = tame(&path, SHOWN);
                self.warnings.push(format!("{path} is given more than once: the last one counts"));
            }
        }
        last
    }

    fn unknown(&mut self, path: &str) {
        self.warnings.push(format!("{} is not a field of KubeProxyConfiguration: ignored", tame(path, SHOWN)));
    }

    /// Warns about names within a value: repeated ones, and in an entry those that nothing reads.
    fn names(&mut self, field: &Field, tree: &Tree) {
        match (field.kind, tree) {
            (Kind::Switches, Tree::Map(map)) => drop(self.last(field.path, map)),
            (Kind::Modules, Tree::List(list)) => {
                for (number, entry) in list.iter().enumerate() {
                    let Tree::Map(map) = entry else { continue };
                    let path = format!("{}[{number}]", field.path);
                    let known = MODULE.map(|name| format!("{path}.{name}"));
                    for path in self.last(&path, map).into_keys() {
                        if !known.contains(&path) {
                            self.unknown(&path);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn field(&mut self, field: &Field, tree: &Tree) {
        if *tree == Tree::Null {
            return;
        }
        self.names(field, tree);
        match value(field.kind, &switched(field.kind, tree)) {
            Ok(value) => {
                self.config.values.insert(field.path, value);
            }
            Err(why) => self.problem(field.path, tree.to_string(), why),
        }
    }
}

/// Where a switch is wanted: also the words for it of YAML 1.1, which kube-proxy reads, and for a name's `null`, which is off
/// there.
fn switched(kind: Kind, tree: &Tree) -> Cow<'_, Tree> {
    match (kind, tree) {
        (Kind::Bool, Tree::Text(text)) => match text.as_str() {
            "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Cow::Owned(Tree::Bool(true)),
            "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Cow::Owned(Tree::Bool(false)),
            _ => Cow::Borrowed(tree),
        },
        (Kind::Switches, Tree::Map(map)) => {
            let switch = |(name, on): &(String, Tree)| match on {
                Tree::Null => (name.clone(), Tree::Bool(false)),
                on => (name.clone(), switched(Kind::Bool, on).into_owned()),
            };
            Cow::Owned(Tree::Map(map.iter().map(switch).collect()))
        }
        _ => Cow::Borrowed(tree),
    }
}

/// The value of a flag, as Go's flags are written.
pub(super) fn flag(kind: Kind, text: &str) -> Result<Value, String> {
    let parts = || text.split(',').filter(|part| !part.is_empty());
    let pairs = |value: fn(&str) -> Tree| {
        parts().map(move |part| {
            let (name, text) = part.split_once('=').unwrap_or((part, ""));
            (name.trim().to_owned(), value(text.trim()))
        })
    };
    let tree = match kind {
        Kind::Text | Kind::Duration | Kind::Nanoseconds | Kind::Quantity => Tree::Text(text.to_owned()),
        Kind::Bool => switch(text),
        Kind::Integer(..) => integer(text),
        Kind::Number => text.parse().map_or_else(|_| Tree::Text(text.to_owned()), Tree::Number),
        Kind::Texts => Tree::List(parts().map(|part| Tree::Text(part.to_owned())).collect()),
        Kind::Switches => Tree::Map(pairs(switch).collect()),
        Kind::Modules => Tree::List(
            pairs(decimal)
                .map(|(name, level)| {
                    Tree::Map(vec![("filePattern".to_owned(), Tree::Text(name)), ("verbosity".to_owned(), level)])
                })
                .collect(),
        ),
    };
    value(kind, &tree).map_err(|why| if kind == Kind::Modules { MODULES_FLAG.to_owned() } else { why })
}

fn integer(text: &str) -> Tree {
    go_integer(text).map_or_else(|| Tree::Text(text.to_owned()), Tree::Integer)
}

/// The verbosity of a pattern: klog reads it by the base 10.
fn decimal(text: &str) -> Tree {
    text.parse().map_or_else(|_| Tree::Text(text.to_owned()), Tree::Integer)
}

fn switch(text: &str) -> Tree {
    go_bool(text).map_or_else(|| Tree::Text(text.to_owned()), Tree::Bool)
}

/// A whole number as Go's flags take it (`strconv.ParseInt` with base 0): a leading `0x`, `0b`, `0o` or `0` names the base, and
/// underscores may stand between digits.
pub fn go_integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = digits.to_ascii_lowercase();
    let prefixes = [("0x", 16), ("0b", 2), ("0o", 8), ("0", 8)];
    let based = prefixes.iter().find_map(|(prefix, base)| Some((digits.strip_prefix(prefix)?, *base)));
    let (rest, base) = based.filter(|_| digits != "0").unwrap_or((&digits, 10));
    let lone = rest.ends_with('_') || rest.contains("__") || (base == 10 && rest.starts_with('_'));
    if lone || rest.starts_with(['+', '-']) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{}", rest.replace('_', "")), base).ok()
}

/// A boolean as Go's flags take it.
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn value(kind: Kind, tree: &Tree) -> Result<Value, String> {
    match (kind, tree) {
        (Kind::Text, Tree::Text(text)) => Ok(Value::Text(text.clone())),
        (Kind::Text, _) => Err("must be a string: put it in quotes".to_owned()),
        (Kind::Bool, Tree::Bool(value)) => Ok(Value::Bool(*value)),
        (Kind::Bool, _) => Err("must be true or false".to_owned()),
        (Kind::Integer(min, max), Tree::Integer(value)) if (min..=max).contains(value) => Ok(Value::Integer(*value)),
        (Kind::Integer(min, max), _) => Err(format!("must be a whole number from {min} to {max}")),
        (Kind::Number, Tree::Integer(value)) => Ok(Value::Number(*value as f64)),
        (Kind::Number, Tree::Number(value)) => Ok(Value::Number(*value)),
        (Kind::Number, _) => Err("must be a number".to_owned()),
        (Kind::Duration, Tree::Text(text)) => match go_duration(text)? {
            duration if duration.is_negative() => Err("must not be negative".to_owned()),
            duration => Ok(Value::Duration(duration)),
        },
        (Kind::Duration, _) => Err("must be a duration such as 30s, 500ms or 1h5m".to_owned()),
        (Kind::Texts, Tree::List(list)) => list
            .iter()
            .map(|item| match item {
                Tree::Text(text) => Ok(text.clone()),
                _ => Err("must be a list of strings".to_owned()),
            })
            .collect::<Result<_, _>>()
            .map(Value::Texts),
        (Kind::Texts, _) => Err("must be a list of strings".to_owned()),
        (Kind::Switches, Tree::Map(map)) => map
            .iter()
            .map(|(name, on)| match on {
                Tree::Bool(on) => Ok((name.clone(), *on)),
                _ => Err(format!("{name} must be true or false")),
            })
            .collect::<Result<_, _>>()
            .map(Value::Switches),
        (Kind::Switches, _) => Err("must be a mapping of names to true or false".to_owned()),
        (Kind::Nanoseconds, Tree::Integer(value)) if *value >= 0 => {
            Ok(Value::Duration(SignedDuration::from_nanos(*value)))
        }
        (Kind::Nanoseconds, Tree::Text(_)) => self::value(Kind::Duration, tree),
        (Kind::Nanoseconds, _) => Err("must be a duration such as 5s, or nanoseconds".to_owned()),
        (Kind::Quantity, Tree::Integer(value)) if *value >= 0 => Ok(Value::Quantity(value.to_string())),
        (Kind::Quantity, Tree::Text(text)) if is_quantity(text) => Ok(Value::Quantity(text.clone())),
        (Kind::Quantity, _) => Err("must be a number of bytes such as 512, 4Ki or 1M".to_owned()),
        (Kind::Modules, Tree::List(list)) => {
            list.iter().map(module).collect::<Option<_>>().map(Value::Modules).ok_or_else(|| MODULES.to_owned())
        }
        (Kind::Modules, _) => Err(MODULES.to_owned()),
    }
}

/// The fields of an entry of `logging.vmodule`.
const MODULE: [&str; 2] = ["filePattern", "verbosity"];
const MODULES: &str =
    "must be a list of filePattern (not empty, without `=` and `,`) with a verbosity (a whole number; none is 0) each";
/// Where there is no leaving the verbosity out.
const MODULES_FLAG: &str = "must be filePattern=verbosity (a whole number), with commas";

fn module(tree: &Tree) -> Option<(String, i64)> {
    let Tree::Map(map) = tree else { return None };
    let [pattern, level] = MODULE.map(|name| map.iter().rfind(|(key, _)| key == name).map(|(_, value)| value));
    let Some(Tree::Text(pattern)) = pattern else { return None };
    let level = match level {
        None | Some(Tree::Null) => 0,
        Some(Tree::Integer(level)) => *level,
        Some(_) => return None,
    };
    let good = !pattern.is_empty() && !pattern.contains(['=', ',']) && (0..=i64::from(i32::MAX)).contains(&level);
    good.then(|| (pattern.clone(), level))
}

/// A Kubernetes quantity: a number, and perhaps a suffix of tens or twos.
fn is_quantity(text: &str) -> bool {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[number.len()..];
    let suffixes = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    number.parse::<f64>().is_ok_and(|value| value >= 0.0) && suffixes.contains(&suffix)
}
