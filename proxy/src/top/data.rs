//! The facts that a screen needs, from the running proxy.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::facts::{NodeFacts, Order, ServiceFacts, ServicePage};
use crate::state::text::tame;
use crate::status;

/// How long the proxy is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Services that are asked for: more than anybody scrolls through. A search finds the others.
const MOST: usize = 1_000;
/// The longest text that is shown.
const LONGEST: usize = 300;

/// What a screen needs.
#[derive(Clone, PartialEq, Debug)]
pub struct Wanted {
    /// As `search` of `/api/v1/services`.
    pub search: String,
    /// The order.
    pub sort: Order,
    /// The Service that is looked at by itself, namespace and name; instead of the list.
    pub service: Option<(String, String)>,
}

/// What is known.
#[derive(Clone, PartialEq, Debug)]
pub struct Data {
    /// The node.
    pub node: NodeFacts,
    /// The list, if it was wanted.
    pub list: Option<ServicePage>,
    /// The Service, if one was wanted; `None` inside: it is not served.
    pub service: Option<Option<ServiceFacts>>,
}

/// The running proxy, by its metrics address.
#[derive(Clone, Debug)]
pub struct Source(String);

impl Source {
    /// At this URL, with or without a slash at its end.
    pub fn new(url: &str) -> Self {
        Self(url.trim_end_matches('/').to_owned())
    }

    /// Asks for what is wanted. Blocks.
    ///
    /// # Errors
    /// Nobody answers, or with something else.
    pub fn fetch(&self, wanted: &Wanted) -> anyhow::Result<Data> {
        let node: Option<NodeFacts> = self.get("/api/v1/node")?;
        let Some(node) = node.filter(|node| !node.backend.is_empty()) else {
            bail!("what answers at {} has no API of Kubeferry: is it kube-proxy, or an older Kubeferry?", self.0);
        };
        let mut data = Data { node, list: None, service: None };
        match &wanted.service {
            Some((namespace, name)) => {
                let part = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                data.service = Some(self.get(&format!("/api/v1/services/{}/{}", part(namespace), part(name)))?);
            }
            None => {
                let sort = serde_json::to_value(wanted.sort)?;
                let query = form_urlencoded::Serializer::new(String::new())
                    .append_pair("search", &wanted.search)
                    .append_pair("sort", sort.as_str().unwrap_or_default())
                    .append_pair("limit", &MOST.to_string())
                    .finish();
                data.list = self.get(&format!("/api/v1/services?{query}"))?;
            }
        }
        Ok(data)
    }

    /// `None`: there is no such thing.
    fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Option<T>> {
        let url = format!("{}{path}", self.0);
        let answer = status::get(&url, TIMEOUT)?;
        match answer.code {
            200 => read(&answer.body).map(Some).with_context(|| format!("{url} answers with something else")),
            404 => Ok(None),
            code => bail!("{url}: code {code}: {}", tame(answer.body.trim(), LONGEST)),
        }
    }
}

/// Reads an answer with all of its texts fit for a terminal, whoever it is that answers.
fn read<T: DeserializeOwned>(body: &str) -> serde_json::Result<T> {
    let mut answer = serde_json::from_str(body)?;
    tame_all(&mut answer);
    serde_json::from_value(answer)
}

fn tame_all(value: &mut Value) {
    match value {
        Value::String(text) => *text = tame(text, LONGEST),
        Value::Array(values) => values.iter_mut().for_each(tame_all),
        Value::Object(fields) => fields.values_mut().for_each(tame_all),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
