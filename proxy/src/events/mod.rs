//! Kubernetes Events (`events.k8s.io/v1`) on our Node and on the objects that something is wrong with.
//!
//! Reporting never waits and never fails: [`Limiter`] decides at once whether an Event is posted, a task of its own posts it.
//! What stays wrong is reported again and again, and so posted later if it could not be at first. Without an API server
//! (`--manifests`) Events are lines of the log.

mod closed;
mod limiter;
mod poster;
mod standing;
mod turns;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::{mpsc, oneshot};

pub use closed::PAUSE;
pub use limiter::{AGAIN, BURST, Limiter, PER_MINUTE, Verdict};
pub(crate) use standing::fallbacks;
pub use standing::{Fault, each_fault, standing};

use crate::metrics::{EventResult, Metrics};
use crate::state::event::Kind;
use crate::state::objects::ObjectName;

/// How many Events may wait for the API server.
const QUEUE: usize = 64;
/// The longest note that the API server takes, in bytes.
const LONGEST_NOTE: usize = 1024;

/// Why there is an Event. The first four are kube-proxy's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// The proxy has started to serve its Node.
    Starting,
    /// The address of `/healthz` cannot be bound, and that ends the process.
    FailedToStartProxierHealthcheck,
    /// The address of `/metrics` cannot be bound, and that ends the process.
    FailedToStartMetricServer,
    /// A health check node port cannot be bound.
    FailedToStartServiceHealthcheck,
    /// Something of an object is left out, because it is wrong.
    Ignored,
    /// A Service asks for a scheduler that is none, or that this datapath cannot do: the node's is used.
    SchedulerFallback,
    /// A Service asks for a frontend that another one has.
    FrontendContested,
    /// A frontend is not served: the kernel refuses it, or a map is full.
    FrontendLeftOut,
    /// Something of the node keeps the datapath from serving everything.
    DatapathLimited,
    /// What another proxy left on the node cannot be removed, or not be looked for.
    LeftoversRemain,
}

impl Reason {
    /// As it is written in the Event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::FailedToStartProxierHealthcheck => "FailedToStartProxierHealthcheck",
            Self::FailedToStartMetricServer => "FailedToStartMetricServer",
            Self::FailedToStartServiceHealthcheck => "FailedToStartServiceHealthcheck",
            Self::Ignored => "Ignored",
            Self::SchedulerFallback => "SchedulerFallback",
            Self::FrontendContested => "FrontendContested",
            Self::FrontendLeftOut => "FrontendLeftOut",
            Self::DatapathLimited => "DatapathLimited",
            Self::LeftoversRemain => "LeftoversRemain",
        }
    }

    /// `action` of the Event: kube-proxy's words where the reason is kube-proxy's.
    pub fn action(self) -> &'static str {
        match self {
            Self::Starting | Self::FailedToStartProxierHealthcheck | Self::FailedToStartMetricServer => {
                "StartKubeProxy"
            }
            Self::FailedToStartServiceHealthcheck => "Listen",
            Self::LeftoversRemain => "Cleanup",
            Self::Ignored => "Read",
            Self::SchedulerFallback => "Schedule",
            Self::FrontendContested | Self::FrontendLeftOut | Self::DatapathLimited => "Sync",
        }
    }

    /// Whether its `type` is Warning and not Normal.
    pub fn is_warning(self) -> bool {
        self != Self::Starting
    }
}

/// What an Event is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Regarding {
    /// Our Node.
    Node,
    /// Another object.
    Object(Kind, ObjectName),
}

impl Regarding {
    /// The namespace of the object; empty, where it is in none.
    fn namespace(&self) -> &str {
        match self {
            Self::Node => "",
            Self::Object(_, name) => &name.namespace,
        }
    }

    /// The namespace that the Event is put in.
    fn posted_in(&self) -> &str {
        Some(self.namespace()).filter(|namespace| !namespace.is_empty()).unwrap_or("default")
    }
}

impl fmt::Display for Regarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("Node"),
            Self::Object(kind, name) => write!(f, "{} {name}", kind.as_str()),
        }
    }
}

/// An Event that may be posted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    /// The object.
    pub regarding: Regarding,
    /// Why.
    pub reason: Reason,
    /// What to tell people, up to 1 kB.
    pub note: String,
}

impl Notice {
    /// A note that is too long is cut.
    pub fn new(regarding: Regarding, reason: Reason, note: impl Into<String>) -> Self {
        let mut note = note.into();
        if note.len() > LONGEST_NOTE {
            let mut end = LONGEST_NOTE - "…".len();
            while !note.is_char_boundary(end) {
                end -= 1;
            }
            note.truncate(end);
            note.push('…');
        }
        Self { regarding, reason, note }
    }
}

enum Message {
    Post(Notice),
    /// Answered when all before it has been tried.
    Flush(oneshot::Sender<()>),
}

/// Where Events are reported. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

struct Inner {
    limiter: Mutex<Limiter>,
    /// `None`: to the log.
    poster: Option<mpsc::Sender<Message>>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("limiter", &self.limiter).finish_non_exhaustive()
    }
}

impl Events {
    /// Events as lines of the log.
    pub fn to_log(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner { limiter: Mutex::new(Limiter::new(Instant::now())), poster: None, metrics }))
    }

    /// Events to the API server, for the Node of this name. Has to be called within a runtime.
    pub fn to_api(client: Client, node: &str, metrics: Arc<Metrics>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let limiter = Mutex::new(Limiter::new(Instant::now()));
        let events = Self(Arc::new(Inner { limiter, poster: Some(sender), metrics }));
        tokio::spawn(poster::post(client, node.into(), receiver, Arc::downgrade(&events.0)));
        events
    }

    /// Reports an Event: it is posted, unless it has been lately, or too many have. Does not wait.
    pub fn report(&self, notice: Notice) {
        let verdict = self.0.limiter().admit(Instant::now(), &notice);
        match (verdict, &self.0.poster) {
            (Verdict::Repeated, _) => {}
            (Verdict::Dropped { first }, _) => {
                if first {
                    self.0.metrics.event(EventResult::Dropped);
                    tracing::debug!(regarding = %notice.regarding, reason = notice.reason.as_str(), "Event dropped");
                }
            }
            (Verdict::Post, Some(poster)) => {
                if let Err(full) = poster.try_send(Message::Post(notice)) {
                    self.0.metrics.event(EventResult::Dropped);
                    if let Message::Post(notice) = full.into_inner() {
                        self.0.limiter().forget(&notice);
                    }
                }
            }
            (Verdict::Post, None) => {
                let Notice { regarding, reason, note } = notice;
                tracing::info!(%regarding, reason = reason.as_str(), warning = reason.is_warning(), "event: {note}");
            }
        }
    }

    /// Waits until what was reported so far has been posted or refused, `patience` at most.
    pub async fn flush(&self, patience: Duration) {
        let Some(poster) = &self.0.poster else { return };
        let (done, tried) = oneshot::channel();
        let asked = async {
            if poster.send(Message::Flush(done)).await.is_ok() {
                // A poster that has ended posts nothing more.
                let _ = tried.await;
            }
        };
        // What has not been posted by then is lost, as with any Event.
        let _ = tokio::time::timeout(patience, asked).await;
    }
}

impl Inner {
    fn limiter(&self) -> std::sync::MutexGuard<'_, Limiter> {
        // A panic elsewhere leaves this small state whole.
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_are_cut_between_characters() {
        let notice = Notice::new(Regarding::Node, Reason::Ignored, "é".repeat(600));
        assert!(notice.note.len() <= LONGEST_NOTE && notice.note.ends_with("é…"), "{}", notice.note.len());
        assert_eq!(Notice::new(Regarding::Node, Reason::Ignored, "short").note, "short");
    }

    #[test]
    fn only_the_start_is_no_warning() {
        assert!(!Reason::Starting.is_warning());
        assert!(Reason::FailedToStartServiceHealthcheck.is_warning() && Reason::SchedulerFallback.is_warning());
    }
}
