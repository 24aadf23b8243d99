//! Answers to requests: lists, single objects, changes, refusals. Watches are in [`watch`](super::watch).

use std::io;

use serde_json::{Value, json};

use super::admit::admit;
use super::fault::Wrong;
use super::http::{Asked, Connection, reason};
use super::resource::{Resource, Target};
use super::select::Selector;
use super::state::{Request, Shared, Verb};
use super::store::Key;
use super::watch::watch;

const JSON: &str = "application/json";
/// How long a list that is held waits before it looks again.
const LONG: std::time::Duration = std::time::Duration::from_secs(3600);

/// Whether the connection can carry another request.
pub(super) type Kept = io::Result<bool>;

/// Answers one request. `cuts`: as it was when the connection began.
pub(super) fn answer(shared: &Shared, connection: &mut Connection, asked: &Asked, cuts: u64) -> Kept {
    connection.delay = shared.lock().delay;
    let received = (asked.method.clone(), asked.path.clone(), asked.is_true("watch"));
    shared.change(|state| state.received.insert(received));
    let token = shared.lock().token.clone();
    if token.is_some() && token != asked.token {
        note(shared, asked);
        return refuse(connection, 401, "Unauthorized");
    }
    let Some(target) = Target::of_path(&asked.path) else { return about(shared, connection, &asked.path) };
    let verb = note(shared, asked).unwrap_or(Verb::Get);
    let resource = target.resource;
    if shared.lock().absent.contains(&resource) {
        return not_served(connection);
    }
    let wrong = shared.change(|state| state.faults.take(resource, verb));
    match (wrong, verb) {
        (Some(Wrong::Status(code)), _) => return refuse(connection, code, refusal(code, resource).as_str()),
        (Some(Wrong::Garbage), Verb::Watch) => {
            connection.begin()?;
            connection.part(b"this is no JSON\n")?;
            connection.end()?;
            return Ok(true);
        }
        (Some(Wrong::Garbage), _) => {
            connection.answer(200, "text/html", "", "<html>Welcome to nginx!</html>")?;
            return Ok(true);
        }
        (Some(Wrong::ShortWatch), _) => {
            connection.begin()?;
            connection.end()?;
            return Ok(true);
        }
        _ => {}
    }
    let half = wrong == Some(Wrong::HalfJson);
    match verb {
        Verb::Write => return write(shared, connection, asked, &target),
        Verb::Get => {
            let key = Key::new(resource, target.namespace.as_deref().unwrap_or_default(), &name_of(&target));
            let object = shared.lock().store.get(&key).cloned();
            return match object {
                Some(object) => connection.answer(200, JSON, "", &object.to_string()).map(|()| true),
                None => refuse(connection, 404, &not_found(&target)),
            };
        }
        Verb::List | Verb::Watch => {}
    }
    let selector = match Selector::new(asked.parameter("labelSelector"), asked.parameter("fieldSelector")) {
        Ok(selector) => selector,
        Err(error) => return refuse(connection, 400, &error.to_string()),
    };
    if verb == Verb::Watch {
        return watch(shared, connection, asked, (&target, &selector), (cuts, wrong));
    }
    let mut state = shared.lock();
    while state.held.contains(&resource) && !state.has_ended && state.cuts == cuts {
        state = shared.wait(state, LONG);
    }
    drop(state);
    let of = match wrong {
        Some(Wrong::OldList(version)) => Some(version),
        _ => None,
    };
    match list(shared, asked, &target, &selector, of) {
        Ok(mut body) if wrong == Some(Wrong::EmptyList) => {
            body["items"] = json!([]);
            body["metadata"]["continue"] = "".into();
            connection.answer(200, JSON, "", &body.to_string()).map(|()| true)
        }
        Ok(mut body) if wrong == Some(Wrong::PartOfList) => {
            if let Some(items) = body["items"].as_array_mut() {
                items.drain(..items.len() / 2);
            }
            connection.answer(200, JSON, "", &body.to_string()).map(|()| true)
        }
        Ok(body) if half => connection.half_answer(&body.to_string()).map(|()| false),
        Ok(body) => connection.answer(200, JSON, "", &body.to_string()).map(|()| true),
        Err((code, message)) => refuse(connection, code, message),
    }
}

fn name_of(target: &Target) -> String {
    target.name.clone().unwrap_or_default()
}

pub(super) fn not_found(target: &Target) -> String {
    format!("{} \"{}\" not found", target.resource.plural(), name_of(target))
}

/// Writes a request about objects into the log.
fn note(shared: &Shared, asked: &Asked) -> Option<Verb> {
    let target = Target::of_path(&asked.path)?;
    let verb = match (asked.method.as_str(), &target.name) {
        ("GET", _) if asked.is_true("watch") => Verb::Watch,
        ("GET", None) => Verb::List,
        ("GET", Some(_)) => Verb::Get,
        _ => Verb::Write,
    };
    let query = asked.query.iter().cloned().collect();
    let request = Request { verb, resource: target.resource, path: asked.path.clone(), query };
    shared.change(|state| state.requests.push(request));
    Some(verb)
}

/// One page of a list, which tells of the version `of` in place of the present one. A list says nothing of the kind of its
/// objects, as an API server's does not.
fn list(
    shared: &Shared,
    asked: &Asked,
    target: &Target,
    selector: &Selector,
    of: Option<u64>,
) -> Result<Value, (u16, &'static str)> {
    const EXPIRED: (u16, &str) =
        (410, "The provided continue parameter is too old to display a consistent list result.");
    let state = shared.lock();
    let store = &state.store;
    // The last object that has been told: VERSION:NAMESPACE/NAME.
    let (revision, after) = match asked.parameter("continue") {
        "" => match (asked.parameter("resourceVersion"), asked.parameter("resourceVersionMatch")) {
            (exact, "Exact") => (exact.parse().map_err(|_| (400, "resourceVersion is no number"))?, None),
            _ => (of.unwrap_or(store.revision()), None),
        },
        token => {
            let read = token.split_once(':').and_then(|(revision, after)| {
                let (namespace, name) = after.split_once('/')?;
                Some((revision.parse().ok()?, Some(Key::new(target.resource, namespace, name))))
            });
            read.ok_or((400, "continue key is not valid"))?
        }
    };
    let mut objects = store.list(target, selector, revision).map_err(|_| EXPIRED)?;
    if let Some(after) = after {
        objects.retain(|(key, _)| *key > after);
    }
    let limit = asked.parameter("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if objects.len() > limit {
        metadata["remainingItemCount"] = (objects.len() - limit).into();
        objects.truncate(limit);
        if let Some((last, _)) = objects.last() {
            metadata["continue"] = format!("{revision}:{}/{}", last.namespace, last.name).into();
        }
    }
    let bare = |object: &Value| {
        let mut object = object.clone();
        if let Some(fields) = object.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        object
    };
    let items: Vec<_> = objects.iter().map(|(_, object)| bare(object)).collect();
    let (kind, version) = (format!("{}List", target.resource.kind()), target.resource.api_version());
    Ok(json!({"kind": kind, "apiVersion": version, "metadata": metadata, "items": items}))
}

/// Creates, replaces, merges or deletes.
fn write(shared: &Shared, connection: &mut Connection, asked: &Asked, target: &Target) -> Kept {
    if asked.method == "DELETE" {
        let key = Key::new(target.resource, target.namespace.as_deref().unwrap_or_default(), &name_of(target));
        return match shared.change(|state| state.store.delete(&key, false)) {
            true => connection.answer(200, JSON, "", &json!({"kind": "Status", "status": "Success"}).to_string()),
            false => return refuse(connection, 404, &not_found(target)),
        }
        .map(|()| true);
    }
    let Ok(body) = serde_yaml_ng::from_slice::<Value>(&asked.body) else {
        return refuse(connection, 400, "the body is no object");
    };
    let written = shared.change(|state| {
        let object = admit(&state.store, &asked.method, target, body)?;
        state.store.apply(object).map_err(|error| (422, error.to_string()))
    });
    match written {
        Ok(object) => {
            connection.answer(if asked.method == "POST" { 201 } else { 200 }, JSON, "", &object.to_string())?;
            Ok(true)
        }
        Err((code, message)) => refuse(connection, code, &message),
    }
}

/// Paths about the server itself.
fn about(shared: &Shared, connection: &mut Connection, path: &str) -> Kept {
    let group: Vec<_> = Resource::ALL
        .into_iter()
        .filter(|resource| resource.group_path() == path && !shared.lock().absent.contains(resource))
        .map(|resource| {
            json!({"name": resource.plural(), "singularName": "", "kind": resource.kind(),
                "namespaced": resource.is_namespaced(), "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]})
        })
        .collect();
    match path {
        "/version" => {
            let version = json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "",
                "buildDate": "", "goVersion": "", "compiler": "", "platform": "linux/amd64"});
            connection.answer(200, JSON, "", &version.to_string())?;
        }
        "/readyz" | "/livez" => connection.answer(200, "text/plain", "", "ok")?,
        _ if !group.is_empty() => {
            let version = group_version(path);
            let list = json!({"kind": "APIResourceList", "groupVersion": version, "resources": group});
            connection.answer(200, JSON, "", &list.to_string())?;
        }
        _ => return not_served(connection),
    }
    Ok(true)
}

fn group_version(path: &str) -> &str {
    path.strip_prefix("/apis/").or(path.strip_prefix("/api/")).unwrap_or(path)
}

fn not_served(connection: &mut Connection) -> Kept {
    connection.answer(404, "text/plain; charset=utf-8", "", "404 page not found\n").map(|()| true)
}

fn refusal(code: u16, resource: Resource) -> String {
    match code {
        401 => "Unauthorized".into(),
        403 => format!(
            "{plural} is forbidden: User \"system:serviceaccount:default:test\" cannot list resource \"{plural}\" in API \
             group \"{group}\" at the cluster scope",
            plural = resource.plural(),
            group = resource.api_version().split_once('/').map_or("", |(group, _)| group),
        ),
        429 => "Too many requests, please try again later.".into(),
        _ => "Internal error occurred: this was asked for by a test".into(),
    }
}

/// Refuses in the API server's words.
pub(super) fn refuse(connection: &mut Connection, code: u16, message: &str) -> Kept {
    let extra = if code == 429 { "Retry-After: 1\r\n" } else { "" };
    connection.answer(code, JSON, extra, &status(code, message).to_string()).map(|()| true)
}

/// A `Status` object of a failure.
pub(super) fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason(code), "code": code})
}
