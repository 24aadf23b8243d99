//! Bodies with their tags: made once for all who ask the same of the same snapshot.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::facts::{Refusal, Snapshot};

/// How many answers of one snapshot are kept, and how many bytes of all of them.
const KEPT: usize = 256;
const KEPT_BYTES: usize = 8 << 20;

/// Why there is no answer.
#[derive(thiserror::Error, Debug)]
pub(super) enum Wrong {
    /// The question is none.
    #[error("{0}")]
    Asked(String),
    /// There is nothing of this name.
    #[error("{0}")]
    NotFound(String),
    /// It is asked for otherwise than by GET or HEAD.
    #[error("this is read-only: GET or HEAD")]
    Method,
    /// Too many ask, or the run loop has other things to do.
    #[error("the proxy is busy or ends: it did not answer in time; ask again")]
    Busy,
    /// A bug.
    #[error("the answer cannot be made")]
    Broken,
}

/// The body of an answer that is none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorFacts {
    /// What is wrong, as a sentence.
    pub error: String,
}

impl From<QueryRejection> for Wrong {
    fn from(rejection: QueryRejection) -> Self {
        Self::Asked(rejection.body_text())
    }
}

impl From<Refusal> for Wrong {
    fn from(refusal: Refusal) -> Self {
        Self::Asked(refusal.to_string())
    }
}

impl From<Wrong> for Response {
    fn from(wrong: Wrong) -> Self {
        let code = match wrong {
            Wrong::Asked(_) => StatusCode::BAD_REQUEST,
            Wrong::NotFound(_) => StatusCode::NOT_FOUND,
            Wrong::Method => StatusCode::METHOD_NOT_ALLOWED,
            Wrong::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Wrong::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = (code, Json(ErrorFacts { error: wrong.to_string() })).into_response();
        if matches!(wrong, Wrong::Busy) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A body and its tag.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    body: Bytes,
    tag: HeaderValue,
}

impl Answer {
    pub(super) fn json(facts: &impl Serialize) -> Result<Self, Wrong> {
        Ok(Self::text(serde_json::to_string(facts).map_err(|_| Wrong::Broken)?))
    }

    pub(super) fn text(body: String) -> Self {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let tag = HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish()));
        Self { body: body.into(), tag: tag.unwrap_or_else(|_| HeaderValue::from_static("\"\"")) }
    }

    /// The response: 304 to whoever has this body already.
    pub(super) fn to(&self, asked: &HeaderMap) -> Response {
        let tags = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let ours = self.tag.to_str().unwrap_or_default();
        let has = |tag: &str| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == ours;
        let known = tags.flat_map(|tags| tags.split(',')).any(|tag| has(tag.trim()));
        let caching = [(header::ETAG, self.tag.clone()), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
        if known {
            return (StatusCode::NOT_MODIFIED, caching).into_response();
        }
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (caching, json, self.body.clone()).into_response()
    }
}

pub(super) fn respond(answer: Result<Answer, Wrong>, asked: &HeaderMap) -> Response {
    match answer {
        Ok(answer) => answer.to(asked),
        Err(wrong) => wrong.into(),
    }
}

/// The answers of the newest snapshot, by what was asked for.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    of: Weak<Snapshot>,
    answers: HashMap<String, Answer>,
    bytes: usize,
}

impl Answers {
    pub(super) fn known(&self, snapshot: &Arc<Snapshot>, asked: &str) -> Option<Answer> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = std::ptr::eq(kept.of.as_ptr(), Arc::as_ptr(snapshot));
        kept.answers.get(asked).filter(|_| same).cloned()
    }

    pub(super) fn keep(&self, snapshot: &Arc<Snapshot>, asked: String, answer: &Answer) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A weak pointer keeps the place in memory: another snapshot never has the same.
        if !std::ptr::eq(kept.of.as_ptr(), Arc::as_ptr(snapshot)) {
            *kept = Kept { of: Arc::downgrade(snapshot), ..Kept::default() };
        }
        let bytes = asked.len() + answer.body.len();
        if kept.answers.len() < KEPT && kept.bytes + bytes <= KEPT_BYTES {
            kept.bytes += bytes;
            kept.answers.insert(asked, answer.clone());
        }
    }
}
