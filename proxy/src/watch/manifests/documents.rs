//! A manifest file's text to its objects: many YAML documents or JSON values a file, lists among them.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_yaml_ng::Value;

use super::super::object::{Object, Reported};
use super::{MOST_VALUES, defaults};
use crate::input::documents::{self, newlines};
use crate::input::yaml;
use crate::state::event::Kind;
use crate::state::objects::Ignored;
use crate::state::text::{Quoted, tame};

/// The faults of a file that are named one by one, at most; the others are counted.
const NAMED_FAULTS: usize = 50;
/// Lists inside lists, no deeper.
const MAX_NESTING: u32 = 4;

/// What a file that parses holds.
#[derive(Default, Debug)]
pub(super) struct Content {
    pub entries: Vec<Entry>,
    /// Documents that are no proper objects.
    pub faults: Faults,
}

/// What is wrong with a file.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Faults {
    named: Vec<Ignored>,
    more: usize,
}

impl Faults {
    pub fn of(fault: Ignored) -> Self {
        Self { named: vec![fault], more: 0 }
    }

    /// Takes one in; `fault` is asked only if it is to be named.
    pub fn add(&mut self, fault: impl FnOnce() -> Ignored) {
        if self.named.len() < NAMED_FAULTS {
            self.named.push(fault());
        } else {
            self.more += 1;
        }
    }

    /// All of them, of the file `what`.
    pub fn all(&self, what: &str) -> Vec<Ignored> {
        let more = (self.more > 0)
            .then(|| Ignored { what: what.to_owned(), why: format!("and {} more faults of this file", self.more) });
        self.named.iter().cloned().chain(more).collect()
    }
}

/// An object of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub line: usize,
    /// A hash of the object's text.
    pub version: u64,
    pub object: Reported,
}

/// Why a file does not parse.
#[derive(Debug)]
pub(super) struct Unparsable {
    pub line: usize,
    pub why: String,
}

/// Reads a file's text. `file` is what faults call it; Nodes other than `node` are passed over, as are other kinds.
pub(super) fn read(file: &str, text: &str, node: &str) -> Result<Content, Unparsable> {
    let mut reader = Reader { file, node, content: Content::default() };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{') {
        match reader.json(text) {
            Ok(()) => return Ok(reader.content),
            Err(error) if file.ends_with(".json") => {
                return Err(Unparsable { line: error.line(), why: without_location(&error.to_string()) });
            }
            // What looks like JSON and is not may still be YAML's flow style.
            Err(_) => reader.content = Content::default(),
        }
    }
    reader.yaml(text)?;
    Ok(reader.content)
}

struct Reader<'a> {
    file: &'a str,
    node: &'a str,
    content: Content,
}

/// The part of an object that says what it is.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
}

/// An object in either notation.
enum Document<'a> {
    Json(&'a RawValue),
    /// With the text where the object is a whole document: it is read again to find the line of a mistake.
    Yaml(Value, Option<&'a str>),
}

/// What is wrong with a document, and how many lines below its first.
struct Malformed {
    below: usize,
    why: String,
}

impl Reader<'_> {
    fn json(&mut self, text: &str) -> Result<(), serde_json::Error> {
        let (mut line, mut counted) = (1, 0);
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
        while let Some(value) = values.next().transpose()? {
            let at = offset(text, value.get());
            line += newlines(&text[counted..at]);
            counted = at;
            self.object(Document::Json(value), line, &Header::default(), 0);
        }
        Ok(())
    }

    fn yaml(&mut self, text: &str) -> Result<(), Unparsable> {
        for (line, document) in documents::split(text) {
            // What is missing at the end of a text is missing on its last line.
            let last = || text.lines().count().max(1);
            let unparsable = |error: serde_yaml_ng::Error| Unparsable {
                line: (line + below(&error)).min(last()),
                why: plain(&error),
            };
            yaml::check(&document, MOST_VALUES).map_err(|why| Unparsable { line, why })?;
            let mut value: Value = serde_yaml_ng::from_str(&document).map_err(unparsable)?;
            value.apply_merge().map_err(unparsable)?;
            if !value.is_null() {
                self.object(Document::Yaml(value, Some(&document)), line, &Header::default(), 0);
            }
        }
        Ok(())
    }

    /// One document or item of a list. `inherited`: apiVersion and kind that a typed list gives its items.
    fn object(&mut self, document: Document<'_>, line: usize, inherited: &Header, depth: u32) {
        let mut header = match document.header() {
            Ok(header) => header,
            Err(malformed) => return self.fault(line, "object", malformed),
        };
        header.api_version = header.api_version.or_else(|| inherited.api_version.clone());
        header.kind = header.kind.or_else(|| inherited.kind.clone());
        match kind_of(&header) {
            Ok(Wanted::Other) => {
                let kind = Quoted(header.kind.as_deref().unwrap_or_default());
                tracing::debug!(file = self.file, line, %kind, "passed over");
            }
            Ok(Wanted::Object(kind)) => self.entry(kind, document, line),
            Ok(Wanted::List(items)) if depth < MAX_NESTING => self.list(document, line, &items, depth),
            Ok(Wanted::List(_)) => self.fault(line, "list", format!("nested more than {MAX_NESTING} deep")),
            Err(why) => self.fault(line, header.kind.as_deref().unwrap_or("document"), why),
        }
    }

    fn list(&mut self, document: Document<'_>, line: usize, inherited: &Header, depth: u32) {
        let whole = match document {
            Document::Json(raw) => raw.get(),
            Document::Yaml(..) => "",
        };
        let items = match document.items() {
            Ok(items) => items,
            Err(malformed) => return self.fault(line, "list", malformed),
        };
        let (mut at_line, mut counted) = (line, 0);
        for item in items {
            if let Document::Json(raw) = &item {
                let at = offset(whole, raw.get());
                at_line += newlines(&whole[counted..at]);
                counted = at;
            }
            self.object(item, at_line, inherited, depth + 1);
        }
    }

    fn entry(&mut self, kind: Kind, document: Document<'_>, line: usize) {
        let version = document.version();
        let named = document.ports_with_name();
        let mut object = match document.decode(kind) {
            Ok(object) => object,
            Err(malformed) => return self.fault(line, kind.as_str(), malformed),
        };
        let missing = match defaults::fill_in(&mut object, &named) {
            Ok(missing) => missing,
            Err(why) => return self.fault(line, kind.as_str(), why),
        };
        let mut object = object.report();
        if kind == Kind::Node && *object.name.name != *self.node {
            tracing::debug!(file = self.file, line, node = %object.name, "passed over: not our Node");
            return;
        }
        let what = format!("{} {}", kind.as_str(), object.name);
        object.faults.extend(missing.into_iter().map(|why| Ignored { what: what.clone(), why }));
        for fault in &mut object.faults {
            fault.what = format!("{} ({}:{line})", fault.what, self.file);
        }
        self.content.entries.push(Entry { line, version, object });
    }

    fn fault(&mut self, line: usize, what: &str, malformed: impl Into<Malformed>) {
        let Malformed { below, why } = malformed.into();
        let (what, file) = (tame(what, 60), self.file);
        let fault =
            || Ignored { what: format!("{file}:{}", line + below), why: format!("{what} ignored: {why}") }.tamed();
        self.content.faults.add(fault);
    }
}

enum Wanted {
    Object(Kind),
    /// With what its items are where they do not say so themselves.
    List(Header),
    Other,
}

fn kind_of(header: &Header) -> Result<Wanted, String> {
    let kind = header.kind.as_deref().filter(|kind| !kind.is_empty()).ok_or("it has no kind")?;
    let api_version = header.api_version.as_deref().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if kind == "List" && group.is_empty() {
        return Ok(Wanted::List(Header::default()));
    }
    let single = kind.strip_suffix("List").filter(|single| !single.is_empty());
    let (wanted, expected) = match (single.unwrap_or(kind), group) {
        ("Service", "") => (Kind::Service, "v1"),
        ("Node", "") => (Kind::Node, "v1"),
        ("EndpointSlice", "" | "discovery.k8s.io") => (Kind::EndpointSlice, "discovery.k8s.io/v1"),
        ("ServiceCIDR", "" | "networking.k8s.io") => (Kind::ServiceCidr, "networking.k8s.io/v1"),
        _ => return Ok(Wanted::Other),
    };
    if api_version != expected {
        return Err(match version {
            "" => format!("it has no apiVersion; write {expected}"),
            _ => format!("apiVersion {api_version} is not read; write {expected}"),
        });
    }
    Ok(match single {
        Some(single) => Wanted::List(Header { api_version: Some(api_version.into()), kind: Some(single.into()) }),
        None => Wanted::Object(wanted),
    })
}

impl<'a> Document<'a> {
    fn header(&self) -> Result<Header, Malformed> {
        match self {
            Self::Json(raw) => Ok(serde_json::from_str(raw.get())?),
            Self::Yaml(value @ Value::Mapping(_), _) => {
                let text = |key: &str| match value.get(key) {
                    None | Some(Value::Null) => Ok(None),
                    Some(Value::String(text)) => Ok(Some(text.clone())),
                    Some(_) => Err(format!("{key} is not a string")),
                };
                Ok(Header { api_version: text("apiVersion")?, kind: text("kind")? })
            }
            Self::Yaml(..) => Err("not a mapping".to_string().into()),
        }
    }

    /// For each entry of `ports`, whether it says anything of its name, be it null.
    fn ports_with_name(&self) -> Vec<bool> {
        #[derive(Deserialize)]
        struct Ports {
            #[serde(default)]
            ports: Vec<serde_json::Map<String, serde_json::Value>>,
        }
        match self {
            Self::Json(raw) => {
                let ports = serde_json::from_str::<Ports>(raw.get()).map(|ports| ports.ports).unwrap_or_default();
                ports.iter().map(|port| port.contains_key("name")).collect()
            }
            Self::Yaml(value, _) => {
                let ports = value.get("ports").and_then(Value::as_sequence);
                ports.into_iter().flatten().map(|port| port.get("name").is_some()).collect()
            }
        }
    }

    fn items(self) -> Result<Vec<Document<'a>>, Malformed> {
        #[derive(Deserialize)]
        struct List<'a> {
            #[serde(borrow, default)]
            items: Option<Vec<&'a RawValue>>,
        }
        match self {
            Self::Json(raw) => {
                let list: List<'a> = serde_json::from_str(raw.get())?;
                Ok(list.items.unwrap_or_default().into_iter().map(Document::Json).collect())
            }
            Self::Yaml(mut value, _) => match value.get_mut("items").map(std::mem::take) {
                None | Some(Value::Null) => Ok(Vec::new()),
                Some(Value::Sequence(items)) => Ok(items.into_iter().map(|item| Document::Yaml(item, None)).collect()),
                Some(_) => Err("items is not a list".to_string().into()),
            },
        }
    }

    fn version(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self {
            Self::Json(raw) => raw.get().hash(&mut hasher),
            Self::Yaml(value, _) => value.hash(&mut hasher),
        }
        hasher.finish()
    }

    fn decode(self, kind: Kind) -> Result<Object, Malformed> {
        match self {
            Self::Json(raw) => Ok(Object::decode(kind, &mut serde_json::Deserializer::from_str(raw.get()))?),
            Self::Yaml(value, text) => Object::decode(kind, value).map_err(|error| {
                let again = text.map(|text| Object::decode(kind, serde_yaml_ng::Deserializer::from_str(text)));
                Malformed { below: again.and_then(Result::err).map_or(0, |error| below(&error)), why: plain(&error) }
            }),
        }
    }
}

impl From<String> for Malformed {
    fn from(why: String) -> Self {
        Self { below: 0, why }
    }
}

impl From<serde_json::Error> for Malformed {
    fn from(error: serde_json::Error) -> Self {
        Self { below: error.line().saturating_sub(1), why: without_location(&error.to_string()) }
    }
}

/// How many lines below the first of its text a YAML error is.
fn below(error: &serde_yaml_ng::Error) -> usize {
    error.location().map_or(0, |at| at.line().saturating_sub(1))
}

fn plain(error: &serde_yaml_ng::Error) -> String {
    without_location(&error.to_string())
}

/// An error's text without " at line 3 column 5", which counts from the object's start and not the file's.
fn without_location(text: &str) -> String {
    text.rfind(" at line ").map_or(text, |at| &text[..at]).to_string()
}

/// Where `part`, a slice of `text`, begins in it.
fn offset(text: &str, part: &str) -> usize {
    (part.as_ptr().addr() - text.as_ptr().addr()).min(text.len())
}

#[cfg(test)]
#[path = "documents_tests.rs"]
mod tests;
