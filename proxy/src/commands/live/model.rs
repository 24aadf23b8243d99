//! The model's answer to a packet, from the proxy that runs.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use crate::facts::TraceFacts;
use crate::live::journey::Journey;
use crate::running::RunningProxy;

/// An answer that failed after so long is waited for no more for some time: the next one would take as long.
const SLOW: Duration = Duration::from_secs(1);
/// For so long.
const PAUSE: Duration = Duration::from_secs(10);
/// Between two looks at whether the trace ends.
const LOOK: Duration = Duration::from_millis(50);

/// Asks the proxy, in a thread of its own: one question at a time.
#[derive(Debug)]
pub struct Model {
    questions: Sender<String>,
    answers: Receiver<anyhow::Result<TraceFacts>>,
    /// It is not asked before that time.
    silent: Option<Instant>,
}

impl Model {
    /// Of this proxy.
    pub fn new(proxy: RunningProxy) -> Self {
        let (questions, asked) = channel::<String>();
        let (reply, answers) = channel();
        std::thread::spawn(move || {
            for path in asked {
                let answer = proxy.get(&path).and_then(|answer| answer.context("it has no /api/v1/trace"));
                if reply.send(answer).is_err() {
                    break;
                }
            }
        });
        Self { questions, answers, silent: None }
    }

    /// The answer to a packet; once the trace is `ending`, an answer is not waited for.
    ///
    /// # Errors
    /// There is none. Where that took its time, the next packets are not asked about for 10 s.
    pub fn ask(&mut self, journey: &Journey, ending: &AtomicBool) -> anyhow::Result<TraceFacts> {
        if self.silent.is_some_and(|until| Instant::now() < until) {
            bail!("it did not answer the last time, and is not asked again for {PAUSE:?}");
        }
        let start = Instant::now();
        self.questions.send(path(journey)).context("nobody asks it")?;
        let answer = loop {
            match self.answers.recv_timeout(LOOK) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Timeout) if ending.load(Ordering::Acquire) && start.elapsed() >= SLOW / 4 => {
                    // What it answers to this would be taken for the answer to another.
                    self.silent = Some(start + Duration::from_secs(3600));
                    bail!("it had not answered when the trace ended");
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break Err(anyhow!("nobody asks it")),
            }
        };
        self.silent = (answer.is_err() && start.elapsed() >= SLOW).then(|| Instant::now() + PAUSE);
        answer
    }
}

/// Where the question is asked.
fn path(journey: &Journey) -> String {
    let came = &journey.came;
    let from = match (came.has_source(), came.to.ip().is_ipv4()) {
        (true, _) => came.from.to_string(),
        (false, true) => Ipv4Addr::UNSPECIFIED.to_string(),
        (false, false) => Ipv6Addr::UNSPECIFIED.to_string(),
    };
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("from", &from)
        .append_pair("to", &format!("{}:{}", came.protocol, came.to))
        .append_pair("iif", journey.iif.as_deref().unwrap_or_default())
        .finish();
    format!("/api/v1/trace?{query}")
}
