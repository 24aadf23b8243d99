//! Who answered how many of the requests from each place, and the table of that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::bail;

use super::send::Sender;
use crate::interrupt;

/// Where requests come from and which addresses they go to, in turn.
#[derive(Debug)]
pub struct Origin {
    /// `a pod`: the table's row.
    pub name: &'static str,
    pub namespace: String,
    /// The cgroup of the node that it is on, if that matters.
    pub cgroup: Option<PathBuf>,
    pub targets: Vec<SocketAddr>,
}

/// What became of an origin's requests.
#[derive(Clone, Default, Debug)]
pub struct Tally {
    /// How often each pod answered.
    pub answers: BTreeMap<String, usize>,
    /// Which client addresses the pods saw.
    pub seen_as: BTreeSet<String>,
    /// What went wrong, in the order it did.
    pub failures: Vec<String>,
    /// The pod that answered each request, in order; a failed one is empty.
    order: Vec<String>,
}

impl Tally {
    fn add(&mut self, answer: anyhow::Result<(String, String)>) {
        match answer {
            Ok((pod, client)) => {
                *self.answers.entry(pod.clone()).or_default() += 1;
                self.seen_as.insert(client);
                self.order.push(pod);
            }
            Err(error) => {
                self.failures.push(format!("{error:#}"));
                self.order.push(String::new());
            }
        }
    }

    /// How many requests were made.
    pub fn requests(&self) -> usize {
        self.order.len()
    }

    /// How many requests there were since a pod answered last.
    pub fn silence_of(&self, pod: &str) -> usize {
        self.order.iter().rev().take_while(|answered| *answered != pod).count()
    }
}

/// Sends requests from every origin at once, each until `enough` says so of its tally. Tallies can be read meanwhile.
pub fn send(
    origins: &[Origin],
    tallies: &[Mutex<Tally>],
    enough: impl Fn(&Tally) -> bool + Sync,
) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let start = |(origin, tally)| {
            let enough = &enough;
            scope.spawn(move || send_from(origin, tally, enough))
        };
        let threads: Vec<_> = origins.iter().zip(tallies).map(start).collect();
        for thread in threads {
            match thread.join() {
                Ok(done) => done?,
                Err(_) => bail!("a thread that sends requests panicked"),
            }
        }
        Ok(())
    })
}

fn send_from(origin: &Origin, tally: &Mutex<Tally>, enough: &impl Fn(&Tally) -> bool) -> anyhow::Result<()> {
    let mut sender = Sender::start(origin)?;
    for target in origin.targets.iter().cycle() {
        interrupt::check()?;
        let answer = sender.request(*target)?;
        let mut tally = lock(tally);
        tally.add(answer);
        if enough(&tally) {
            break;
        }
    }
    Ok(())
}

/// The tally, whatever became of the thread that held it.
pub fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One line for every origin, one column for every pod.
pub fn table(rows: &[(&str, Tally)]) -> String {
    let pods: BTreeSet<&str> = rows.iter().flat_map(|(_, tally)| tally.answers.keys().map(String::as_str)).collect();
    let mut text = format!("{:<14}{:>9}", "from", "requests");
    for pod in &pods {
        let _ = write!(text, "{pod:>8}");
    }
    text += "  failed  the pods see\n";
    for (name, tally) in rows {
        let _ = write!(text, "{name:<14}{:>9}", tally.requests());
        for pod in &pods {
            let _ = write!(text, "{:>8}", tally.answers.get(*pod).unwrap_or(&0));
        }
        let seen_as: Vec<&str> = tally.seen_as.iter().map(String::as_str).collect();
        let _ = writeln!(text, "{:>8}  {}", tally.failures.len(), seen_as.join(", "));
    }
    text
}

/// Fails if a request failed.
pub fn check_failures(rows: &[(&str, Tally)]) -> anyhow::Result<()> {
    for (name, tally) in rows {
        if let Some(first) = tally.failures.first() {
            bail!("{} of {} requests from {name} failed, the first: {first}", tally.failures.len(), tally.requests());
        }
    }
    Ok(())
}

/// Fails if a pod's share is further from an even one than chance explains: five standard deviations.
pub fn check_shares(rows: &[(&str, Tally)], pods: &[String]) -> anyhow::Result<()> {
    for (name, tally) in rows {
        let requests = tally.requests() as f64;
        let share = 1.0 / pods.len() as f64;
        let allowed = 5.0 * (requests * share * (1.0 - share)).sqrt();
        for pod in pods {
            let answered = *tally.answers.get(pod).unwrap_or(&0) as f64;
            if (answered - requests * share).abs() > allowed {
                bail!(
                    "{pod} answered {answered} of {requests} requests from {name}, not about {:.0}",
                    requests * share
                );
            }
        }
        if let Some(other) = tally.answers.keys().find(|answered| !pods.contains(answered)) {
            bail!("{other} answered requests from {name}, but is no endpoint");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(answers: &[(&str, usize)]) -> Tally {
        let mut tally = Tally::default();
        for (pod, count) in answers {
            (0..*count).for_each(|_| tally.add(Ok(((*pod).to_owned(), "192.0.2.9".to_owned()))));
        }
        tally
    }

    #[test]
    fn shares_may_differ_by_chance_and_no_more() {
        let pods = ["web-1".to_owned(), "web-2".to_owned()];
        check_shares(&[("a pod", tally(&[("web-1", 480), ("web-2", 520)]))], &pods).unwrap();
        check_shares(&[("a pod", tally(&[("web-1", 380), ("web-2", 620)]))], &pods).unwrap_err();
        check_shares(&[("a pod", tally(&[("web-1", 480), ("web-2", 520), ("web-9", 1)]))], &pods).unwrap_err();
    }

    #[test]
    fn a_failed_request_is_counted_and_told() {
        let mut tally = tally(&[("web-1", 3), ("web-2", 2)]);
        tally.add(Err(anyhow::anyhow!("refused")));
        assert_eq!((tally.requests(), tally.silence_of("web-1"), tally.silence_of("web-2")), (6, 3, 1));
        let rows = [("a pod", tally)];
        assert!(check_failures(&rows).unwrap_err().to_string().contains("refused"));
        assert!(table(&rows).lines().nth(1).unwrap().ends_with("6       3       2       1  192.0.2.9"));
    }
}
