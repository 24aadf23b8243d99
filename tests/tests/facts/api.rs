//! `/api/v1/` of a real proxy against its own OpenAPI description.

use kubeferry_tests::client::{Running, until};
use kubeferry_tests::web::{MANIFESTS, Web};
use serde_json::{Value, json};

use super::asking::{ask, json, try_json};

/// Another Service with an address that is taken, and one that nobody serves.
const MORE: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: late, namespace: other, creationTimestamp: '2026-01-02T00:00:00Z'}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.11
  externalIPs: [10.96.0.10]
  internalTrafficPolicy: Local
  loadBalancerSourceRanges: [192.0.2.0/24]
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: wrong, namespace: other, annotations: {kubeferry.dev/scheduler: roundrobin}}
spec:
  clusterIP: 10.96.0.12
  ports: [{name: http, port: 80}]
";

/// Holds an answer to what the description says of its path.
struct Description(Value);

impl Description {
    /// `path` as the description has it, with the names of its parts.
    fn holds(&self, path: &str, answer: &Value) {
        let schema = &self.0["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{path} is not described");
        let mut whole = schema.clone();
        whole["components"] = self.0["components"].clone();
        let validator = jsonschema::draft202012::new(&whole).unwrap();
        let wrong: Vec<String> =
            validator.iter_errors(answer).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(wrong.is_empty(), "{path}: {wrong:#?} in {answer:#}");
        self.names(path, schema, answer);
    }

    /// Every field of an answer is described: a schema alone would let others be there.
    fn names(&self, at: &str, schema: &Value, answer: &Value) {
        let mut schema = schema;
        while let Some(reference) = schema["$ref"].as_str() {
            schema = self.0.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{at}: {reference}"));
        }
        match answer {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let place = format!("{at}.{name}");
                    let field = match (&schema["properties"][name], &schema["additionalProperties"]) {
                        (Value::Null, Value::Null) => panic!("{place} is not described"),
                        (Value::Null, any) => any,
                        (field, _) => field,
                    };
                    let any_of = field["anyOf"].as_array().into_iter().flatten();
                    let inner = any_of.into_iter().find(|one| one["$ref"].is_string()).unwrap_or(field);
                    self.names(&place, inner, value);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.names(at, &schema["items"], item)),
            _ => {}
        }
    }
}

#[test]
fn every_answer_is_as_it_is_described() {
    let web = Web::build().unwrap();
    web.write(&format!("{MANIFESTS}{MORE}")).unwrap();
    let _running = Running::start(&web.source, &web.hosts.node).unwrap();
    web.until_served().unwrap();
    let node = &web.hosts.node;
    let description = Description(json(node, "/api/v1/openapi.json"));
    for (path, asked) in [
        ("/api/v1/node", "/api/v1/node"),
        ("/api/v1/services", "/api/v1/services?sort=health&limit=2"),
        ("/api/v1/services/{namespace}/{name}", "/api/v1/services/default/web"),
        ("/api/v1/services/{namespace}/{name}", "/api/v1/services/other/late"),
        ("/api/v1/history", "/api/v1/history?limit=5"),
        ("/api/v1/ignored", "/api/v1/ignored"),
        ("/api/v1/trace", "/api/v1/trace?from=10.244.1.7&to=tcp:10.96.0.10:80"),
        ("/api/v1/trace", "/api/v1/trace?from=10.244.1.7:1&to=tcp:10.96.0.11:80"),
        ("/api/v1/trace", "/api/v1/trace?from=10.244.1.7&to=udp:192.0.2.200:1"),
    ] {
        description.holds(path, &json(node, asked));
    }
    let schema = &description.0["components"]["schemas"]["ErrorFacts"];
    let missing = ask(node, "/api/v1/services/default/nobody");
    assert_eq!(missing.code, 404);
    assert!(jsonschema::is_valid(schema, &serde_json::from_str(&missing.body).unwrap()), "{}", missing.body);
}

#[test]
fn the_api_the_status_and_the_metrics_agree() {
    let web = Web::build().unwrap();
    web.write(&format!("{MANIFESTS}{MORE}")).unwrap();
    let _running = Running::start(&web.source, &web.hosts.node).unwrap();
    web.until_served().unwrap();
    let node = &web.hosts.node;
    let (facts, status) = (json(node, "/api/v1/node"), json(node, "/status"));
    for (ours, theirs) in [
        ("/backend", "/backend"),
        ("/node", "/node"),
        ("/started", "/started"),
        ("/sync/last", "/lastSync"),
        ("/sync/succeeded", "/syncs"),
        ("/rows", "/rows"),
        ("/settings", "/settings"),
        ("/healthy", "/healthy"),
    ] {
        assert_eq!(facts.pointer(ours).unwrap(), status.pointer(theirs).unwrap(), "{ours}");
    }
    let metrics = ask(node, "/metrics").body;
    let metric = |line: &str| {
        let value = metrics.lines().find_map(|one| one.strip_prefix(line)).unwrap_or_else(|| panic!("{line}"));
        value.trim().parse::<u64>().unwrap()
    };
    assert_eq!(facts["counts"]["services"], metric("kubeferry_services "));
    assert_eq!(facts["rows"]["frontends4"], metric("kubeferry_rows{map=\"frontends4\"} "));
    assert_eq!(facts["counts"]["services"], json(node, "/api/v1/services")["total"]);
    let ready = json(node, "/api/v1/services/default/web")["ports"][0]["counts"]["ready"].clone();
    assert_eq!((ready, status["services"][0]["ports"][0]["ready"].clone()), (json!(2), json!(2)));
    let ignored = json(node, "/api/v1/ignored");
    let reasons: Vec<_> = ignored["items"].as_array().unwrap().iter().map(|one| one["reason"].clone()).collect();
    assert!(
        reasons.contains(&json!("FrontendContested")) && reasons.contains(&json!("SchedulerFallback")),
        "{ignored}"
    );
    assert_eq!(ignored["total"], status["ignored"].as_array().unwrap().len());
}

#[test]
fn a_change_a_repair_and_a_trace_are_told() {
    let web = Web::build().unwrap();
    let _running = Running::start(&web.source, &web.hosts.node).unwrap();
    web.until_served().unwrap();
    let node = &web.hosts.node;
    let newest = || json(node, "/api/v1/history")["newest"].as_u64().unwrap();
    let before = newest();
    web.write(&format!("{MANIFESTS}{MORE}")).unwrap();
    let changed = |history: &Value| {
        let items = history["items"].as_array().unwrap().clone();
        items.into_iter().find(|sync| sync["objects"].as_array().unwrap().contains(&json!("other/wrong")))
    };
    let since = format!("/api/v1/history?since={before}");
    let sync = until("the change in the history", || changed(&json(node, &since))).unwrap();
    // The file's objects may come in one sync or in two.
    assert_eq!(
        sync["objects"].as_array().map(Vec::len),
        sync["objectsTotal"].as_u64().map(|all| all as usize),
        "{sync}"
    );
    assert_eq!(sync["kind"], "partial");
    assert!(sync["rows"]["frontends4"]["added"].as_u64() >= Some(1) && sync["tookSeconds"].as_f64() > Some(0.0));
    assert!(sync["changeToKernelSeconds"].as_f64() >= sync["tookSeconds"].as_f64(), "{sync}");

    let harm = "delete element inet kubeferry frontends4 { 10.96.0.10 . tcp . 80 }";
    node.nft(&["-f", "-"], harm).unwrap();
    let repair =
        |history: Value| history["items"].as_array().unwrap().iter().find(|sync| sync["kind"] == "repair").cloned();
    let repair = until("the repair in the history", || repair(json(node, "/api/v1/history"))).unwrap();
    assert_eq!((&repair["repaired"], &repair["rows"]["frontends4"]["added"]), (&json!(1), &json!(1)), "{repair}");
    assert_eq!(json(node, "/api/v1/node")["drift"]["repairs"], 1);

    let trace = json(node, "/api/v1/trace?from=10.244.1.7&to=tcp:10.96.0.10:80");
    assert_eq!(trace["endpoints"], json!(["10.244.1.1:8080", "10.244.1.2:8080"]), "{trace}");
    let kinds: Vec<_> = trace["steps"].as_array().unwrap().iter().map(|step| step["kind"].as_str().unwrap()).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"packet"), Some(&"outcome")), "{trace}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "endpoint").count(), 2);
    assert!(try_json(node, "/api/v1/trace?from=10.244.1.7").is_none());
}
