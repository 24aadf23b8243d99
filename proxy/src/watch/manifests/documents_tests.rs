use super::*;

fn content(text: &str) -> Content {
    read("web.yaml", text, "n1").unwrap()
}

fn names(content: &Content) -> Vec<String> {
    content.entries.iter().map(|e| format!("{} {}:{}", e.object.kind.as_str(), e.object.name, e.line)).collect()
}

fn faults(content: &Content) -> Vec<String> {
    content
        .faults
        .all("web.yaml")
        .iter()
        .chain(content.entries.iter().flat_map(|e| &e.object.faults))
        .map(ToString::to_string)
        .collect()
}

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.50, ports: [{port: 80}]}
";

#[test]
fn many_documents_with_their_lines() {
    let text = format!(
        "%YAML 1.1\n---\n# comment\n\n{SERVICE}--- # next\n{SERVICE}...\n---\n\n---\n{{kind: Secret, apiVersion: v1}}\n--- {{kind: ConfigMap, apiVersion: v1, data: {{1: x}}}}\n"
    );
    let got = content(&text);
    assert_eq!(names(&got), ["Service default/web:5", "Service default/web:10"]);
    assert_eq!(faults(&got), Vec::<String>::new());
    assert!(got.entries[0].version == got.entries[1].version);
    let crlf = content(&text.replace('\n', "\r\n"));
    assert_eq!(names(&crlf), names(&got));
    assert!(content("").entries.is_empty() && content("# nothing\n---\n").entries.is_empty());
}

#[test]
fn lists_of_both_kinds() {
    let typed = "apiVersion: v1\nkind: ServiceList\nitems:\n- {metadata: {name: a}, spec: {clusterIP: 10.0.0.1}}\n- {metadata: {name: b}, spec: {clusterIP: 10.0.0.2}}\n";
    assert_eq!(names(&content(typed)), ["Service default/a:1", "Service default/b:1"]);
    let json = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"clusterIP": "10.0.0.1"}},
        {"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "k"}, "spec": {"cidrs": ["10.0.0.0/16"]}}]}
    ]}
    {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}} {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}}"#;
    assert_eq!(names(&content(json)), ["Service default/a:2", "ServiceCIDR k:4", "Node n1:6"]);
    assert_eq!(names(&content("apiVersion: v1\nkind: List\nitems: null\n")), Vec::<String>::new());
    assert_eq!(
        faults(&content("apiVersion: v1\nkind: List\nitems: 3\n")),
        ["web.yaml:1: list ignored: items is not a list"]
    );
}

#[test]
fn a_malformed_object_is_named_with_its_line_and_the_others_are_kept() {
    let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec:\n  clusterIP: 10.0.0.1\n  ports:\n  - port: eighty\n";
    let got = content(&format!(
        "{SERVICE}---\n{bad}---\n[1]\n---\nmetadata: {{}}\n---\nkind: Service\n---\nkind: Service\napiVersion: v1\n"
    ));
    assert_eq!(names(&got), ["Service default/web:1"]);
    let faults = faults(&got);
    assert!(faults[0].starts_with("web.yaml:12: Service ignored: ") && faults[0].contains("eighty"), "{}", faults[0]);
    assert_eq!(
        faults[1..],
        [
            "web.yaml:14: object ignored: not a mapping",
            "web.yaml:16: document ignored: it has no kind",
            "web.yaml:18: Service ignored: it has no apiVersion; write v1",
            "web.yaml:20: Service ignored: metadata.name is missing",
        ]
    );
    let json = "{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"a\"},\n \"spec\": {\n\"ports\": [{\"port\": {}}]}}";
    assert!(self::faults(&content(json))[0].starts_with("web.yaml:3: Service ignored: "), "{:?}", content(json).faults);
}

#[test]
fn what_does_not_parse_names_its_line() {
    let error = read("web.yaml", &format!("{SERVICE}---\n{SERVICE}  broken: [\n"), "n1").unwrap_err();
    assert_eq!(error.line, 10, "{error:?}");
    let error = read("web.json", "{\"apiVersion\": \"v1\",\n \"kind\": \"Service\"", "n1").unwrap_err();
    assert_eq!(error.line, 2, "{error:?}");
    assert!(read("web.yaml", "a: &a [*a]\n", "n1").is_err() || read("web.yaml", "a: 1\na: 2\n", "n1").is_err());
}

#[test]
fn what_the_api_server_would_fill_in_is_filled_in() {
    let got = content(
        "apiVersion: v1\nkind: Service\nmetadata: {name: dual, namespace: ''}\nspec: {clusterIPs: [10.0.0.1, 'fd00::1']}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: dual-1, labels: {kubernetes.io/service-name: dual}}\n\
         ports: [{port: 80}]\nendpoints: [{addresses: ['fd00:1::1']}]\n",
    );
    assert_eq!(faults(&got), Vec::<String>::new());
    let Some(crate::state::event::Event::Service(service)) = &got.entries[0].object.event else { panic!("{got:?}") };
    assert_eq!((service.cluster_ips.len(), &*service.name.namespace), (2, "default"));
    let Some(crate::state::event::Event::Slice(slice)) = &got.entries[1].object.event else { panic!("{got:?}") };
    assert_eq!(
        (slice.family, &*slice.ports[0].name, slice.endpoints.len()),
        (crate::state::objects::Family::V6, "", 1)
    );
    assert_eq!(&*slice.service.namespace, "default");
}

#[test]
fn what_the_api_server_would_allocate_is_a_fault() {
    let got = content(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {type: NodePort, clusterIP: 10.0.0.1, ports: [{port: 80}]}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: c}\nspec: {clusterIP: None}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: d}\nspec: {type: ExternalName, externalName: example.com}\n",
    );
    let faults = faults(&got);
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("Service default/a (web.yaml:1): spec.clusterIP is missing"), "{}", faults[0]);
    assert!(faults[1].starts_with("Service default/b (web.yaml:6): a port has no nodePort"), "{}", faults[1]);
    let served: Vec<bool> = got.entries.iter().map(|entry| entry.object.event.is_some()).collect();
    assert_eq!(served, [false, true, false, false]);
}

#[test]
fn other_groups_of_the_same_name_are_passed_over_and_old_versions_named() {
    let got = content(
        "apiVersion: serving.knative.dev/v1\nkind: Service\n---\napiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n---\napiVersion: rbac.authorization.k8s.io/v1\nkind: RoleList\n",
    );
    assert_eq!(
        faults(&got),
        [
            "web.yaml:4: EndpointSlice ignored: apiVersion discovery.k8s.io/v1beta1 is not read; write discovery.k8s.io/v1"
        ]
    );
}
