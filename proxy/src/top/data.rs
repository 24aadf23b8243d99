//! The facts that a screen needs, from the running proxy.

use super::lately::Spread;
use crate::facts::{NodeFacts, Order, ServiceFacts, ServicePage};
use crate::running::RunningProxy;

/// Services that are asked for: more than anybody scrolls through. A search finds the others.
const MOST: usize = 1_000;

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
    /// What its ports got lately, in their order; empty until somebody who looked before says it.
    pub lately: Vec<Spread>,
}

/// Asks for what is wanted. Blocks.
///
/// # Errors
/// Nobody answers, or with something else.
pub fn fetch(proxy: &RunningProxy, wanted: &Wanted) -> anyhow::Result<Data> {
    let mut data = Data { node: proxy.node()?, list: None, service: None, lately: Vec::new() };
    match &wanted.service {
        Some((namespace, name)) => data.service = Some(proxy.service(namespace, name)?),
        None => {
            let sort = serde_json::to_value(wanted.sort)?;
            let query = form_urlencoded::Serializer::new(String::new())
                .append_pair("search", &wanted.search)
                .append_pair("sort", sort.as_str().unwrap_or_default())
                .append_pair("limit", &MOST.to_string())
                .finish();
            data.list = proxy.get(&format!("/api/v1/services?{query}"))?;
        }
    }
    Ok(data)
}
