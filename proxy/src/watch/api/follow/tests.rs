//! A server of a few answers, and a clock that does not run but for those who sleep.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;

use axum::body::Body;
use http::{Request, Response};
use serde_json::{Value, json};

use super::*;
use crate::state::State;

/// What is answered to a list, or to a watch.
#[derive(Debug)]
enum Answer {
    /// The version and the names of Services.
    List(u32, &'static [&'static str]),
    /// One ServiceCIDR.
    Cidrs(u32),
    /// Lines, then the end; or silence, where `true`.
    Watch(Vec<Value>, bool),
    Refused(u16),
    /// Nobody is there.
    Away,
}

use Answer::{Away, Cidrs, List, Refused, Watch};

fn service(name: &str, version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": version.to_string()},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "protocol": "TCP"}]}})
}

fn event(kind: &str, name: &str, version: u32) -> Value {
    json!({"type": kind, "object": service(name, version)})
}

fn bookmark(version: u32) -> Value {
    json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": version.to_string()}}})
}

fn list(api_version: &str, kind: &str, version: u32, items: Vec<Value>) -> Response<Body> {
    let metadata = json!({"resourceVersion": version.to_string()});
    let list = json!({"kind": format!("{kind}List"), "apiVersion": api_version, "metadata": metadata, "items": items});
    Response::new(list.to_string().into())
}

fn answer(answer: Answer) -> std::io::Result<Response<Body>> {
    Ok(match answer {
        Away => return Err(std::io::ErrorKind::ConnectionRefused.into()),
        List(version, names) => {
            list("v1", "Service", version, names.iter().map(|name| service(name, version)).collect())
        }
        Cidrs(version) => {
            let metadata = json!({"name": "kubernetes", "resourceVersion": version.to_string()});
            let item = json!({"metadata": metadata, "spec": {"cidrs": ["10.96.0.0/16"]}});
            list("networking.k8s.io/v1", "ServiceCIDR", version, vec![item])
        }
        Watch(events, goes_on) => {
            let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
            let lines = futures::stream::iter([Ok::<_, Infallible>(lines)]);
            Response::new(match goes_on {
                true => Body::from_stream(lines.chain(futures::stream::pending())),
                false => Body::from_stream(lines),
            })
        }
        Refused(code) => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no",
                "reason": "Test", "code": code});
            let mut response = Response::new(status.to_string().into());
            *response.status_mut() = code.try_into().unwrap();
            response
        }
    })
}

/// Follows Services of a server that gives these answers, one after the other, until it has no more. The Services in force, and
/// the requests: what was asked for, from which version, and how many seconds after the first.
async fn run(answers: Vec<Answer>) -> (Vec<String>, Vec<String>) {
    let (state, requests) = run_of(Kind::Service, answers).await;
    (state.services().keys().map(|name| name.name.to_string()).collect(), requests)
}

/// The same of another kind.
async fn run_of(kind: Kind, answers: Vec<Answer>) -> (State, Vec<String>) {
    let (answers, requests) = (Arc::new(Mutex::new(VecDeque::from(answers))), Arc::new(Mutex::new(Vec::new())));
    let (began, noted) = (Instant::now(), requests.clone());
    let (done_in, mut done) = mpsc::channel::<()>(1);
    let server = tower::service_fn(move |request: Request<kube::client::Body>| {
        let next = answers.lock().unwrap().pop_front();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let version = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let what =
            if query.contains("watch=true") { format!("watch {}", version.unwrap_or("?")) } else { "list".into() };
        if next.is_some() {
            noted.lock().unwrap().push(format!("{what} {}", began.elapsed().as_secs()));
        }
        let done = done_in.clone();
        async move {
            let Some(next) = next else {
                let _ = done.send(()).await;
                return std::future::pending().await;
            };
            let is_list = matches!(next, List(..) | Cidrs(_));
            assert!(matches!(next, Refused(_) | Away) || is_list == (what == "list"), "{what} where there is {next:?}");
            answer(next)
        }
    });
    let client = Client::new(server, "default");
    let watched = Watched::all(&"n1".into()).into_iter().find(|watched| watched.kind == kind).unwrap();
    let (tx, mut events) = mpsc::channel(1024);
    let following = tokio::spawn(follow(watched, client, tx, Arc::default()));
    done.recv().await;
    following.abort();
    let mut state = State::default();
    while let Ok(event) = events.try_recv() {
        state.apply(event);
    }
    let requests = requests.lock().unwrap().clone();
    (state, requests)
}

/// What was asked for, without the time.
fn asked(requests: &[String]) -> Vec<&str> {
    requests.iter().map(|request| request.rsplit_once(' ').unwrap().0).collect()
}

fn seconds(request: &str) -> u64 {
    request.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_been_away_for_long_is_listed_as_soon_as_it_says_that_the_version_is_gone() {
    let away = (0..12).map(|_| Away);
    let answers = [List(10, &["a"])].into_iter().chain(away).chain([Refused(410), List(20, &["b"])]);
    let (services, requests) = run(answers.collect()).await;
    assert_eq!(services, ["b"]);
    let [.., last, refused, listed] = requests.as_slice() else { panic!("{requests:?}") };
    assert!(seconds(refused) - seconds(last) >= 15, "asked for with pauses: {requests:?}");
    assert!(seconds(listed) - seconds(refused) <= 1, "and listed at once: {requests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_from_the_last_version_it_told() {
    let first = Watch(vec![event("ADDED", "b", 11), bookmark(15)], false);
    let second = Watch(vec![event("DELETED", "a", 16)], false);
    let (services, requests) = run(vec![List(10, &["a"]), first, second]).await;
    assert_eq!(services, ["b"]);
    assert_eq!(asked(&requests), ["list", "watch 10", "watch 15"]);
    assert_eq!(seconds(&requests[2]), 0, "an end is no failure");
}

#[tokio::test(start_paused = true)]
async fn watches_that_end_at_once_are_not_begun_without_end() {
    let mut answers = vec![List(10, &["a"])];
    answers.extend((0..8).map(|_| Watch(Vec::new(), false)));
    let (services, requests) = run(answers).await;
    assert_eq!(services, ["a"]);
    assert!(seconds(&requests[8]) >= 30, "with growing pauses: {requests:?}");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_older_than_the_last_is_not_taken_over() {
    let disorder = Watch(vec![event("MODIFIED", "b", 20), event("DELETED", "a", 15)], true);
    let (services, requests) = run(vec![List(10, &["a", "b"]), disorder, List(21, &["a", "b"])]).await;
    assert_eq!(services, ["a", "b"], "what the list says holds");
    assert_eq!(asked(&requests), ["list", "watch 10", "list"]);
    let back = Watch(vec![bookmark(9)], true);
    let (_, requests) = run(vec![List(10, &["a"]), back, List(11, &["a"])]).await;
    assert_eq!(asked(&requests), ["list", "watch 10", "list"], "nor is a bookmark");
}

#[tokio::test(start_paused = true)]
async fn an_older_list_is_believed_when_the_server_insists() {
    let gone = || Watch(Vec::new(), true);
    let passing = vec![List(100, &["a", "b"]), Refused(410), List(90, &["a"]), List(101, &["a", "b"]), gone()];
    let (services, requests) = run(passing).await;
    assert_eq!(services, ["a", "b"]);
    assert_eq!(asked(&requests), ["list", "watch 100", "list", "list", "watch 101"]);
    let mut restored = vec![List(100, &["a", "b"]), Refused(410)];
    restored.extend((0..6).map(|_| List(90, &["a"])));
    restored.push(gone());
    let (services, requests) = run(restored).await;
    assert_eq!(services, ["a"], "the server was set back");
    assert_eq!(requests.last().map(|last| last.rsplit_once(' ').unwrap().0), Some("watch 90"));
    assert!(seconds(&requests[8]) >= 5, "it takes its time: {requests:?}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_list_takes_nothing_away_before_the_server_insists() {
    let (services, _) = run(vec![List(10, &["a", "b"]), Refused(410), List(11, &[]), List(12, &["b"])]).await;
    assert_eq!(services, ["b"], "one that shrinks is believed, one that is empty was not");
    let mut emptied = vec![List(10, &["a", "b"]), Refused(410)];
    emptied.extend((0..6).map(|_| List(11, &[])));
    let (services, _) = run(emptied).await;
    assert!(services.is_empty(), "{services:?}");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_lacks_some_is_asked_for_once_more() {
    let told = |version| Watch(vec![bookmark(version)], true);
    let lacking = vec![List(10, &["a", "b"]), Refused(410), List(11, &["b"]), told(11), List(11, &["a", "b"])];
    let (services, requests) = run(lacking).await;
    assert_eq!(services, ["a", "b"], "it was wrong");
    assert_eq!(asked(&requests), ["list", "watch 10", "list", "watch 11", "list"]);
    let after = seconds(&requests[4]) - seconds(&requests[2]);
    assert!((15..=30).contains(&after), "{requests:?}");
    // The second lacks more, and is the last all the same.
    let lacking = vec![List(10, &["a", "b", "c"]), Refused(410), List(11, &["b", "c"]), told(11), List(12, &["c"])];
    let silent = [told(12), List(13, &["c"])];
    let (services, requests) = run(lacking.into_iter().chain(silent).collect()).await;
    assert_eq!(services, ["c"]);
    assert!(seconds(&requests[6]) - seconds(&requests[4]) >= 100, "by its silence: {requests:?}");
    // What the watch has told the end of is not missed.
    let told = Watch(vec![event("DELETED", "a", 11)], false);
    let (services, requests) = run(vec![
        List(10, &["a", "b"]),
        told,
        Refused(410),
        List(12, &["b"]),
        Watch(Vec::new(), true),
        List(13, &["b"]),
    ])
    .await;
    assert_eq!(services, ["b"]);
    assert!(seconds(&requests[5]) - seconds(&requests[3]) >= 100, "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_ended_by_a_list() {
    let (services, requests) = run(vec![List(100, &["a"]), Watch(Vec::new(), true), List(101, &["b"])]).await;
    assert_eq!(services, ["b"]);
    assert!((100..300).contains(&seconds(&requests[2])), "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_lost_is_not_asked_for_again() {
    for code in [410, 400, 504] {
        let (_, requests) = run(vec![List(10, &["a"]), Refused(code), List(11, &["a"])]).await;
        assert_eq!(asked(&requests), ["list", "watch 10", "list"], "{code}");
    }
    // 500: at first it may be a hiccup.
    let refused = [500, 500, 500].map(Refused);
    let (_, requests) = run([List(10, &["a"])].into_iter().chain(refused).chain([List(11, &["a"])]).collect()).await;
    assert_eq!(asked(&requests), ["list", "watch 10", "watch 10", "watch 10", "list"]);
    let refused = [429, 429, 429, 429].map(Refused);
    let (_, requests) =
        run([List(10, &["a"])].into_iter().chain(refused).chain([Watch(Vec::new(), true)]).collect()).await;
    assert_eq!(asked(&requests)[1..], ["watch 10"; 5], "who has too much to do is not asked for more");
}

#[tokio::test(start_paused = true)]
async fn service_cidrs_that_were_served_stay_until_the_server_insists_that_there_are_none() {
    let cidrs = |state: &State| state.service_cidrs().len();
    for code in [403, 404] {
        // Of a watch, and of lists.
        let passing = vec![Cidrs(10), Refused(code), Refused(code), Refused(code), Cidrs(11), Watch(Vec::new(), true)];
        let (state, requests) = run_of(Kind::ServiceCidr, passing).await;
        assert_eq!(cidrs(&state), 1, "{code}");
        assert!(seconds(&requests[4]) < 60, "asked for again soon: {requests:?}");
        let mut gone = vec![Cidrs(10), Watch(Vec::new(), false), Refused(410)];
        gone.extend((0..7).map(|_| Refused(code)));
        let (state, _) = run_of(Kind::ServiceCidr, gone).await;
        assert_eq!(cidrs(&state), 1, "{code}");
        let mut gone = vec![Cidrs(10), Refused(410)];
        gone.extend((0..8).map(|_| Refused(code)));
        gone.push(Refused(code));
        let (state, requests) = run_of(Kind::ServiceCidr, gone).await;
        assert_eq!(cidrs(&state), 0, "{code}");
        assert!((20..120).contains(&seconds(&requests[9])), "{requests:?}");
        assert!(seconds(&requests[10]) >= 300, "{requests:?}");
    }
}
