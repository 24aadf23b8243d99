//! The description of `/api/v1/` (OpenAPI 3.1), its schemas made from the types that are answered.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::answers::ErrorFacts;
use crate::facts::{HistoryPage, IgnoredPage, NodeFacts, Order, ServiceFacts, ServicePage, TraceFacts};

/// The document.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut paths = Paths { generator: settings.for_serialize().into_generator(), all: Map::new() };
    let text = |description: &str| (json!({"type": "string"}), description.to_owned());
    let number = |least: u32, description: &str| (json!({"type": "integer", "minimum": least}), description.to_owned());
    paths.add::<NodeFacts>("/api/v1/node", "The node, the proxy on it, its syncs and what it found in the kernel", &[]);
    let order = serde_json::to_value(paths.generator.subschema_for::<Order>()).unwrap_or_default();
    let sorted = "The order; those that are the same in it come by name. `name` by default";
    paths.add::<ServicePage>("/api/v1/services", "The Services that are served, a page at a time", &[
        ("search", false, text("Only those whose name, type, health, scheduler, address or port matches; several words: all of them")),
        ("sort", false, (order, sorted.to_owned())),
        ("limit", false, (json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}), "Rows of the page".to_owned())),
        ("continue", false, text("`continue` of the page before")),
    ]);
    paths.add::<ServiceFacts>(
        "/api/v1/services/{namespace}/{name}",
        "One Service with its frontends and endpoints",
        &[],
    );
    paths.add::<HistoryPage>(
        "/api/v1/history",
        "The last syncs, the newest first",
        &[
            ("since", false, number(0, "Only those with a larger number")),
            ("limit", false, number(0, "How many at most; 50 by default")),
        ],
    );
    paths.add::<IgnoredPage>(
        "/api/v1/ignored",
        "What of the objects is not served as it is asked for, why, and the fix",
        &[],
    );
    paths.add::<TraceFacts>(
        "/api/v1/trace",
        "Where a new connection would go: the answer of `kubeferry trace`, with the path",
        &[
            ("from", true, text("The source: IP or IP:PORT, IPv6 with a port in brackets")),
            ("to", true, text("The destination: tcp:10.96.0.10:80, udp:[fd00::1]:53 or sctp:…")),
            ("iif", false, text("The interface that the packet comes in by")),
        ],
    );
    paths.generator.subschema_for::<ErrorFacts>();
    let schemas = paths.generator.take_definitions(true);
    paths.all.insert("/api/v1/openapi.json".to_owned(), json!({"get": {
        "summary": "This document", "operationId": "openapi",
        "responses": {"200": {"description": "OpenAPI 3.1", "content": {"application/json": {"schema": {"type": "object"}}}}},
    }}));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Kubeferry",
            "version": "v1",
            "description": "What a node's proxy does. Read-only: other methods than GET and HEAD are answered with 405. Bodies have \
                an ETag: send it back in If-None-Match, and 304 says that nothing has changed. Numbers of traffic are absent where \
                they are not counted (--service-metrics); `traffic` of the node says which are. Fields may be added.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths.all,
        "components": {"schemas": schemas},
    })
}

struct Paths {
    generator: SchemaGenerator,
    all: Map<String, Value>,
}

/// A parameter of a query: its name, whether it has to be there, its schema and what it means.
type Parameter<'a> = (&'a str, bool, (Value, String));

impl Paths {
    fn add<T: JsonSchema>(&mut self, path: &str, summary: &str, query: &[Parameter<'_>]) {
        let schema: Schema = self.generator.subschema_for::<T>();
        let content = |schema: Value| json!({"application/json": {"schema": schema}});
        let error = || content(json!({"$ref": "#/components/schemas/ErrorFacts"}));
        let failure = |description: &str| json!({"description": description, "content": error()});
        let in_path = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let mut parameters: Vec<Value> = in_path
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        let mut responses = json!({
            "200": {
                "description": summary,
                "headers": {"ETag": {"schema": {"type": "string"}}},
                "content": content(serde_json::to_value(schema).unwrap_or_default()),
            },
            "304": {"description": "The body is the one that If-None-Match names"},
            "400": failure("A parameter is wrong"),
            "421": failure("The Host is neither an IP address nor localhost"),
            "503": failure("The proxy is busy: ask again"),
        });
        if !parameters.is_empty() {
            responses["404"] = failure("There is no such object");
        }
        parameters.extend(query.iter().map(|(name, required, (schema, description))| {
            json!({"name": name, "in": "query", "required": required, "schema": schema, "description": description})
        }));
        let parts: Vec<&str> = path.trim_start_matches("/api/v1/").split('/').collect();
        let id = match parts.as_slice() {
            [one] => (*one).to_owned(),
            _ => "service".to_owned(),
        };
        let get = json!({"summary": summary, "operationId": id, "parameters": parameters, "responses": responses});
        self.all.insert(path.to_owned(), json!({"get": get}));
    }
}
