//! The proxy that runs on this node, asked over its API by other commands.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::facts::{NodeFacts, ServiceFacts};
use crate::state::text::tame;
use crate::status;

/// How long the proxy is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest text that is taken from it.
const LONGEST: usize = 300;

/// The running proxy, by its metrics address.
#[derive(Clone, Debug)]
pub struct RunningProxy(String);

impl RunningProxy {
    /// At this URL, with or without a slash at its end.
    pub fn new(url: &str) -> Self {
        Self(url.trim_end_matches('/').to_owned())
    }

    /// Where it is asked.
    ///
    /// # Errors
    /// The name in the URL has no address.
    pub fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let authority = self.0.strip_prefix("http://").unwrap_or(&self.0).split('/').next().unwrap_or_default();
        let found = authority.to_socket_addrs().or_else(|_| (authority, 80).to_socket_addrs());
        Ok(found.with_context(|| format!("{authority} has no address"))?.collect())
    }

    /// The node that it serves. Blocks, as all of these.
    ///
    /// # Errors
    /// Nobody answers, or somebody else.
    pub fn node(&self) -> anyhow::Result<NodeFacts> {
        let node: Option<NodeFacts> = self.get("/api/v1/node")?;
        let Some(node) = node.filter(|node| !node.backend.is_empty()) else {
            bail!("what answers at {} has no API of Kubeferry: is it kube-proxy, or an older Kubeferry?", self.0);
        };
        Ok(node)
    }

    /// A Service; `None`: it is not served.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn service(&self, namespace: &str, name: &str) -> anyhow::Result<Option<ServiceFacts>> {
        let part = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        self.get(&format!("/api/v1/services/{}/{}", part(namespace), part(name)))
    }

    /// A document; `None`: there is no such thing. All of its texts are fit for a terminal, whoever it is that answers.
    ///
    /// # Errors
    /// Nobody answers, or with something else.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Option<T>> {
        let url = format!("{}{path}", self.0);
        let answer = status::get(&url, TIMEOUT)?;
        match answer.code {
            200 => read(&answer.body, LONGEST).map(Some).with_context(|| format!("{url} answers with something else")),
            404 => Ok(None),
            code => bail!("{url}: code {code}: {}", tame(answer.body.trim(), LONGEST)),
        }
    }
}

/// Namespace and name of a Service, as `[NAMESPACE/]NAME` says them.
pub fn service_name(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or(("default", text))
}

/// A JSON document of whoever answers: each text in it, names of fields too, is one line of at most so many characters, fit for a
/// terminal.
///
/// # Errors
/// It is no such document.
pub(crate) fn read<T: DeserializeOwned>(body: &str, most: usize) -> serde_json::Result<T> {
    let mut answer = serde_json::from_str(body)?;
    tame_all(&mut answer, most);
    serde_json::from_value(answer)
}

fn tame_all(value: &mut Value, most: usize) {
    match value {
        Value::String(text) => *text = tame(text, most),
        Value::Array(values) => values.iter_mut().for_each(|value| tame_all(value, most)),
        Value::Object(fields) => {
            let tamed = std::mem::take(fields).into_iter().map(|(name, mut value)| {
                tame_all(&mut value, most);
                (tame(&name, most), value)
            });
            *fields = tamed.collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
