//! `/flagz` and `/statusz` as Kubernetes components have them (KEP-4828, KEP-4827): text, and objects of `config.k8s.io` in JSON for
//! who asks for them.

use std::fmt::Write;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::routes::{NOSNIFF, PATHS, Serving};

const COMPONENT: &str = "kubeferry";
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
    guarantees and is for debugging purposes only.";
/// The Kubernetes whose kube-proxy we follow.
const EMULATED: &str = "1.36";
/// Versions of the objects: of Kubernetes 1.36, and of 1.35.
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];

/// Every flag of `run` with its value.
pub(super) async fn flagz(State(serving): State<Serving>, headers: HeaderMap) -> Response {
    answer(&headers, "Flagz", |form| match form {
        Form::Text => {
            let mut text = format!("\n{COMPONENT} flags\n{WARNING}\n\n");
            for (name, value) in serving.flags.iter() {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{name}={value}");
            }
            plain(text)
        }
        Form::Object(version) => object("Flagz", version, json!({"flags": *serving.flags})),
    })
}

/// Since when it runs, what it is, and what else can be asked.
pub(super) async fn statusz(State(serving): State<Serving>, headers: HeaderMap) -> Response {
    let mut paths = PATHS.to_vec();
    if serving.profiling {
        paths.push("/debug");
        paths.sort_unstable();
    }
    let (started, now) = (serving.started, Timestamp::now());
    answer(&headers, "Statusz", |form| match form {
        Form::Text => plain(status(started, now, &paths)),
        Form::Object(version) => object("Statusz", version, status_object(started, now, &paths)),
    })
}

/// For how long, in seconds.
fn up(started: Timestamp, now: Timestamp) -> i64 {
    (now.as_second() - started.as_second()).max(0)
}

fn status(started: Timestamp, now: Timestamp, paths: &[&str]) -> String {
    let up = up(started, now);
    format!(
        "\n{COMPONENT} statusz\n{WARNING}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {}\n\
         Emulation version: {EMULATED}\nPaths: {}\n",
        started.strftime("%a %b %e %H:%M:%S UTC %Y"),
        up / 3600,
        up / 60 % 60,
        up % 60,
        env!("CARGO_PKG_VERSION"),
        paths.join(" "),
    )
}

/// Without `goVersion`, which is optional: there is no Go.
fn status_object(started: Timestamp, now: Timestamp, paths: &[&str]) -> Value {
    json!({
        "startTime": started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "uptimeSeconds": up(started, now),
        "binaryVersion": env!("CARGO_PKG_VERSION"),
        "emulationVersion": EMULATED,
        "paths": paths,
    })
}

fn plain(text: String) -> Response {
    ([TEXT], text).into_response()
}

const TEXT: (header::HeaderName, HeaderValue) =
    (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));

fn object(kind: &str, version: &str, mut fields: Value) -> Response {
    fields["kind"] = kind.into();
    fields["apiVersion"] = format!("config.k8s.io/{version}").into();
    fields["metadata"] = json!({"name": COMPONENT});
    ([NOSNIFF], Json(fields)).into_response()
}

/// What an answer may be.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Form {
    Text,
    /// JSON of this version.
    Object(&'static str),
}

fn answer(headers: &HeaderMap, kind: &str, tell: impl FnOnce(Form) -> Response) -> Response {
    let given = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let accept = given.filter(|text| !text.trim().is_empty()).unwrap_or("*/*");
    if let Some(form) = accepted(accept, kind) {
        return tell(form);
    }
    let json = VERSIONS.map(|version| format!("application/json;v={version};g=config.k8s.io;as={kind}")).join(", ");
    let refusal = format!("media type not acceptable, must be: text/plain, {json}\n");
    (StatusCode::NOT_ACCEPTABLE, [TEXT, NOSNIFF], refusal).into_response()
}

/// What an `Accept` header takes, the most wanted first: plain text, with no parameter but `charset=utf-8`, or JSON with all of `v`,
/// `g` and `as`, as in Kubernetes.
fn accepted(accept: &str, kind: &str) -> Option<Form> {
    let mut best: Option<(f32, Form)> = None;
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let (weights, parameters): (Vec<&str>, Vec<&str>) = parts.partition(|part| part.starts_with("q="));
        let weight = weights.first().and_then(|part| part[2..].parse().ok()).unwrap_or(1.0);
        let form = match media {
            "text/plain" | "text/*" | "*/*" => match parameters[..] {
                [] => Some(Form::Text),
                [one] if one.eq_ignore_ascii_case("charset=utf-8") => Some(Form::Text),
                _ => None,
            },
            "application/json" => {
                let of = |name: &str| {
                    parameters
                        .iter()
                        .find_map(|part| part.split_once('=').filter(|(key, _)| *key == name))
                        .map(|it| it.1)
                };
                let version = VERSIONS.into_iter().find(|version| of("v") == Some(version));
                version.filter(|_| of("g") == Some("config.k8s.io") && of("as") == Some(kind)).map(Form::Object)
            }
            _ => None,
        };
        if let Some(form) = form.filter(|_| weight > best.map_or(0.0, |(weight, _)| weight)) {
            best = Some((weight, form));
        }
    }
    best.map(|(_, form)| form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_has_the_form_of_kubernetes_components() {
        let started = Timestamp::from_second(1_725_603_591).unwrap();
        let now = Timestamp::from_second(1_725_603_591 + 3 * 3600 + 4 * 60 + 5).unwrap();
        assert_eq!(
            status(started, now, &["/healthz", "/metrics"]),
            format!(
                "\nkubeferry statusz\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
                 compatibility guarantees and is for debugging purposes only.\n\nStarted: Fri Sep  6 06:19:51 UTC 2024\n\
                 Up: 3 hr 04 min 05 sec\nBinary version: {}\nEmulation version: 1.36\nPaths: /healthz /metrics\n",
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn the_status_is_an_object_of_kubernetes_too() {
        let started = Timestamp::from_second(1_725_603_591).unwrap();
        let now = Timestamp::from_second(1_725_603_591 + 3605).unwrap();
        assert_eq!(
            status_object(started, now, &["/healthz", "/metrics"]),
            json!({
                "startTime": "2024-09-06T06:19:51Z",
                "uptimeSeconds": 3605,
                "binaryVersion": env!("CARGO_PKG_VERSION"),
                "emulationVersion": "1.36",
                "paths": ["/healthz", "/metrics"],
            })
        );
    }

    #[test]
    fn text_is_told_and_objects_to_who_names_them_whole() {
        let json = |version: &str, kind: &str| format!("application/json;v={version};g=config.k8s.io;as={kind}");
        let (beta, alpha) = (Some(Form::Object("v1beta1")), Some(Form::Object("v1alpha1")));
        for (accept, wanted) in [
            ("*/*", Some(Form::Text)),
            ("text/plain", Some(Form::Text)),
            ("text/*;q=0.5", Some(Form::Text)),
            ("application/json, text/plain; charset=UTF-8", Some(Form::Text)),
            (&json("v1beta1", "Statusz"), beta),
            (&json("v1alpha1", "Statusz"), alpha),
            ("application/json; as=Statusz; g=config.k8s.io; v=v1beta1", beta),
            (&format!("{}, {}", json("v1beta1", "Statusz"), json("v1alpha1", "Statusz")), beta),
            (&format!("{};q=0.5, text/plain", json("v1beta1", "Statusz")), Some(Form::Text)),
            (&format!("{}, */*", json("v2", "Statusz")), Some(Form::Text)),
            (&format!("{}, text/plain;q=0.1", json("v1alpha1", "Statusz")), alpha),
            (&json("v1beta1", "Flagz"), None),
            (&json("v2", "Statusz"), None),
            ("application/json;v=v1beta1;g=config.k8s.io", None),
            ("application/json", None),
            ("text/html", None),
            ("text/plain;charset=latin1", None),
            ("text/plain;q=0", None),
            ("some header", None),
            ("", None),
        ] {
            assert_eq!(accepted(accept, "Statusz"), wanted, "{accept}");
        }
    }
}
