//! Large answers that are the same for all who ask at one time: made once, no more often than for a part of the time, and
//! never many of them in memory, however slowly they are read.

use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::Mutex;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep};

/// Of the time, making answers takes no more than one part in so many, …
const PART: u32 = 20;
/// … but an answer is never older than this because of it.
const OLDEST: Duration = Duration::from_secs(2);
/// How long one that nobody asks for is kept.
const KEPT: Duration = Duration::from_secs(10);
/// How many may be in memory at one time: the last one, and older ones that somebody still reads.
const MOST: usize = 4;
/// Answers up to this many bytes are made for each who asks, and not counted among them: the room for connections bounds these.
const SMALL: usize = 128 << 10;

/// The answers of one path. Clones share them.
#[derive(Debug)]
pub(super) struct Shared<K>(Arc<Mutex<State<K>>>);

#[derive(Debug)]
struct State<K> {
    last: Option<Made<K>>,
    /// Large ones that may still be read.
    alive: Vec<Weak<Vec<u8>>>,
    /// Somebody sees to it that the last one is forgotten.
    watched: bool,
}

#[derive(Debug)]
struct Made<K> {
    key: K,
    body: Arc<Vec<u8>>,
    at: Instant,
    took: Duration,
}

/// Too many answers are still being read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// A body that is shared.
struct Owner(Arc<Vec<u8>>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<K> Clone for Shared<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Shared<K> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { last: None, alive: Vec::new(), watched: false })))
    }
}

impl<K: PartialEq + Send + 'static> Shared<K> {
    /// The answer of this key: a large one that was just made, or one that `make` makes now, off the runtime's threads. Who comes
    /// while a large one is made gets that one.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) async fn get(&self, key: K, make: impl FnOnce() -> Vec<u8> + Send + 'static) -> Result<Bytes, Full> {
        let mut state = self.0.clone().lock_owned().await;
        if let Some(last) = state.last.as_ref().filter(|last| last.key == key && last.is_fresh()) {
            return Ok(last.bytes());
        }
        state.last = None;
        state.alive.retain(|body| body.strong_count() > 0);
        if state.alive.len() >= MOST {
            return Err(Full);
        }
        if !std::mem::replace(&mut state.watched, true) {
            self.forget_later();
        }
        // A task of its own: whoever asks and goes must not have another one made beside it.
        let making = tokio::spawn(async move {
            let start = Instant::now();
            let body = Arc::new(tokio::task::spawn_blocking(make).await?);
            if body.len() > SMALL {
                state.alive.push(Arc::downgrade(&body));
            }
            let made = Made { key, body, at: Instant::now(), took: start.elapsed() };
            let bytes = made.bytes();
            state.last = Some(made);
            Ok::<_, JoinError>(bytes)
        });
        // It fails only where `make` panics, or the runtime ends.
        making.await.and_then(|made| made).map_err(|_| Full)
    }

    fn forget_later(&self) {
        let weak = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                sleep(KEPT).await;
                let Some(state) = weak.upgrade() else { return };
                let mut state = state.lock().await;
                if state.last.as_ref().is_none_or(|last| last.at.elapsed() >= KEPT) {
                    (state.last, state.watched) = (None, false);
                    return;
                }
            }
        });
    }
}

impl<K> Made<K> {
    fn is_fresh(&self) -> bool {
        self.body.len() > SMALL && self.at.elapsed() < (self.took * PART).min(OLDEST)
    }

    fn bytes(&self) -> Bytes {
        Bytes::from_owner(Owner(self.body.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Makes a large answer that takes a tenth of a second.
    fn slow(made: &Arc<AtomicUsize>) -> impl FnOnce() -> Vec<u8> + Send + 'static {
        let made = made.clone();
        move || {
            std::thread::sleep(Duration::from_millis(100));
            vec![u8::try_from(made.fetch_add(1, Ordering::Relaxed)).unwrap(); SMALL + 1]
        }
    }

    #[tokio::test]
    async fn all_who_ask_at_one_time_get_one_answer() {
        let (shared, made) = (Shared::default(), Arc::new(AtomicUsize::new(0)));
        let ask = || {
            let (shared, make): (Shared<u8>, _) = (shared.clone(), slow(&made));
            tokio::spawn(async move { shared.get(1, make).await.unwrap() })
        };
        let all: Vec<_> = (0..50).map(|_| ask()).collect();
        let mut bodies = Vec::new();
        for one in all {
            bodies.push(one.await.unwrap());
        }
        assert_eq!(made.load(Ordering::Relaxed), 1);
        assert!(bodies.iter().all(|body| body.as_ptr() == bodies[0].as_ptr()), "no copies");
        // Another question is another answer.
        shared.get(2, slow(&made)).await.unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn those_that_are_read_slowly_are_few() {
        let (shared, made) = (Shared::default(), Arc::new(AtomicUsize::new(0)));
        let mut held = Vec::new();
        for key in 0..MOST {
            held.push(shared.get(key, slow(&made)).await.unwrap());
        }
        assert_eq!(shared.get(MOST, slow(&made)).await, Err(Full));
        assert_eq!(made.load(Ordering::Relaxed), MOST);
        held.pop();
        assert!(shared.get(MOST, slow(&made)).await.is_ok());
        // Small ones are not counted.
        for key in 0..100 {
            held.push(Shared::default().get(key, || vec![0; 10]).await.unwrap());
        }
    }

    #[tokio::test]
    async fn small_ones_are_always_of_now() {
        let shared = Shared::default();
        for number in 0..3 {
            assert_eq!(shared.get(1, move || vec![number]).await.unwrap(), [number].as_slice());
        }
    }

    #[tokio::test]
    async fn one_that_nobody_asks_for_is_forgotten() {
        let (shared, made) = (Shared::default(), Arc::new(AtomicUsize::new(0)));
        drop(shared.get(1, slow(&made)).await.unwrap());
        assert!(shared.0.lock().await.last.is_some());
        tokio::time::pause();
        sleep(KEPT * 2 + OLDEST).await;
        tokio::task::yield_now().await;
        assert!(shared.0.lock().await.last.is_none());
    }
}
