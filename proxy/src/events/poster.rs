//! Posts Events, one after the other. What the API server does not take costs nobody anything.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{Api, ListParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::mpsc;

use super::{Inner, Message, Notice, Reason, Regarding};
use crate::metrics::EventResult;
use crate::state::event::Kind;
use crate::state::objects::ObjectName;
use crate::state::text::tame;

/// `reportingController` of our Events.
const CONTROLLER: &str = "kubeferry";
/// How long the API server may take for one Event.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many Events that are reported only once are kept for another try.
const KEPT: usize = 16;
/// So many namespaces that take none are told.
const MANY: usize = 1000;

/// Posts what comes until nobody can report any more.
pub(super) async fn post(client: Client, node: Arc<str>, mut messages: mpsc::Receiver<Message>, inner: Weak<Inner>) {
    let reporter = Reporter { controller: CONTROLLER.into(), instance: Some(format!("{CONTROLLER}-{node}")) };
    let mut poster = Poster { client, node, reporter, complained: false, complained_of: BTreeSet::new() };
    let mut kept: VecDeque<Notice> = VecDeque::new();
    let mut retry = Instant::now();
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            () = tokio::time::sleep_until(retry.into()), if !kept.is_empty() => kept.pop_front().map(Message::Post),
        };
        let notice = match message {
            None => return,
            Some(Message::Flush(done)) => {
                // Who asked may have gone.
                let _ = done.send(());
                continue;
            }
            Some(Message::Post(notice)) => notice,
        };
        let result = poster.post(&notice).await;
        let Some(inner) = inner.upgrade() else { return };
        match result {
            Ok(()) => {
                inner.limiter().succeeded(&notice);
                inner.metrics.event(EventResult::Posted);
            }
            Err(Failure::Object(error)) => {
                // It counts as posted: again would be refused again, and other objects have nothing to do with it.
                inner.limiter().succeeded(&notice);
                inner.metrics.event(EventResult::Failed);
                tracing::debug!(%error, regarding = %notice.regarding, "the API server takes no Event of this object");
            }
            Err(failure @ (Failure::Namespace(_) | Failure::Server(_))) => {
                let is_kept = notice.reason == Reason::Starting && kept.len() < KEPT;
                match &failure {
                    Failure::Server(_) => retry = inner.limiter().failed(Instant::now(), &notice),
                    _ => {
                        let until = inner.limiter().refused(Instant::now(), &notice);
                        retry = if is_kept { until } else { retry };
                    }
                }
                inner.metrics.event(EventResult::Failed);
                tracing::debug!(?failure, regarding = %notice.regarding, "cannot post an Event");
                // What stays wrong is reported again by whoever sees it; a start is not.
                if is_kept {
                    kept.push_back(notice);
                }
            }
        }
    }
}

struct Poster {
    client: Client,
    node: Arc<str>,
    reporter: Reporter,
    complained: bool,
    /// The namespaces that none can be posted in, up to [`MANY`].
    complained_of: BTreeSet<String>,
}

impl Poster {
    async fn post(&mut self, notice: &Notice) -> Result<(), Failure> {
        let result = match tokio::time::timeout(PATIENCE, self.try_post(notice)).await {
            Ok(result) => result.map_err(|error| explain(&error)),
            Err(_) => Err(Failure::Server(format!("the API server has not answered for {PATIENCE:?}"))),
        };
        match &result {
            Ok(()) => {
                let namespace = notice.regarding.posted_in();
                if std::mem::take(&mut self.complained) | self.complained_of.remove(namespace) {
                    tracing::info!(namespace, "Events can be posted again");
                }
            }
            Err(Failure::Server(why)) if !std::mem::replace(&mut self.complained, true) => {
                tracing::warn!("cannot post Events: {why}; the proxy goes on without them");
            }
            Err(Failure::Namespace(why)) if !self.complained && self.complained_of.len() < MANY => {
                let namespace = notice.regarding.posted_in();
                if self.complained_of.insert(namespace.to_owned()) {
                    tracing::warn!(namespace, "cannot post Events: {why}; the proxy goes on without them");
                }
            }
            Err(_) => {}
        }
        result
    }

    async fn try_post(&self, notice: &Notice) -> kube::Result<()> {
        let reference = match &notice.regarding {
            // As kubelet and kube-proxy have it, and as `kubectl describe node` looks for it.
            Regarding::Node => {
                ObjectReference { uid: Some(self.node.to_string()), ..reference::<Node>("", &self.node) }
            }
            Regarding::Object(kind, name) => match kind {
                Kind::Service => self.namespaced::<Service>(name).await,
                Kind::EndpointSlice => self.namespaced::<EndpointSlice>(name).await,
                Kind::ServiceCidr => reference::<ServiceCIDR>("", &name.name),
                Kind::Node => ObjectReference { uid: Some(name.name.to_string()), ..reference::<Node>("", &name.name) },
                // A file is no object of the API server's.
                Kind::Manifest => return Ok(()),
            },
        };
        let event = Event {
            type_: if notice.reason.is_warning() { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.as_str().into(),
            note: Some(notice.note.clone()),
            action: notice.reason.action().into(),
            secondary: None,
        };
        // A recorder of its own for each: it would turn a new note of the same reason into a count of the old one, and
        // needs the right to patch for that. What is repeated has not come as far as here.
        Recorder::new(self.client.clone(), self.reporter.clone()).publish(&event, &reference).await
    }

    /// The object by name, with its uid if it can be had: `kubectl describe` shows Events of that uid only.
    async fn namespaced<K>(&self, name: &ObjectName) -> ObjectReference
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &name.namespace);
        let params = ListParams::default().fields(&format!("metadata.name={}", name.name)).limit(1);
        let found = api.list_metadata(&params).await.ok().and_then(|list| list.items.into_iter().next());
        let uid = found.and_then(|object| object.meta().uid.clone());
        ObjectReference { uid, ..reference::<K>(&name.namespace, &name.name) }
    }
}

fn reference<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into()),
        kind: Some(K::kind(&()).into()),
        name: Some(name.into()),
        namespace: (!namespace.is_empty()).then(|| namespace.into()),
        ..ObjectReference::default()
    }
}

/// Why an Event was not taken.
#[derive(Debug)]
enum Failure {
    /// For what it is about, such as a namespace that is being deleted; others may be taken.
    Object(String),
    /// It is forbidden: to our account, or in this namespace, where a quota is used up or somebody is asked before.
    Namespace(String),
    /// For a reason that holds for all of them.
    Server(String),
}

fn explain(error: &kube::Error) -> Failure {
    let of_object = match error {
        kube::Error::Api(status) => {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            matches!(status.code, 400 | 404 | 413 | 422)
                || causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
        }
        kube::Error::BuildRequest(_) | kube::Error::HttpError(_) => true,
        _ => false,
    };
    let why = match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "the API server forbids it (403): let our account create events in the API group events.k8s.io \
             (ClusterRole system:node-proxier does); it says: {}",
            tame(&status.message, 300)
        ),
        other => tame(&other.to_string(), 300),
    };
    match error {
        _ if of_object => Failure::Object(why),
        kube::Error::Api(status) if status.code == 403 => Failure::Namespace(why),
        _ => Failure::Server(why),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn what_is_forbidden_is_of_its_namespace_and_what_concerns_one_object_of_that() {
        let refused = |status: serde_json::Value| {
            explain(&kube::Error::Api(Box::new(serde_json::from_value::<Status>(status).unwrap())))
        };
        let status = |code: u16| serde_json::json!({"status": "Failure", "message": "exceeded quota", "code": code});
        let Failure::Namespace(why) = refused(status(403)) else { panic!("403") };
        assert!(why.contains("exceeded quota"), "{why}");
        let mut ending = status(403);
        ending["details"] =
            serde_json::json!({"causes": [{"reason": "NamespaceTerminating", "message": "", "field": ""}]});
        assert!(matches!(refused(ending), Failure::Object(_)));
        assert!(matches!(refused(status(404)), Failure::Object(_)));
        assert!(matches!(refused(status(500)), Failure::Server(_)));
    }
}
