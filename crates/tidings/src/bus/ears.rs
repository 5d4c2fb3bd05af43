//! A node's end of a bus, whatever the server: what was heard and not handed on, whether anything is
//! heard now, and what was not said.
//!
//! The rule: a connection is believed as long as this node hears itself over it. What may not have
//! been heard is told before anything else, and what was to be said over a lost connection is stale.

use std::{
    fmt::Display,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, interval, sleep},
};

use super::Heard;

/// How often a node says something to itself …
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(2);
/// … and how long it may not hear it: with the next look, a dead connection is noticed within 8 s.
const SILENCE_MAX: Duration = Duration::from_secs(6);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The first wait between two attempts to connect, doubled each time, up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// What is heard on a bus.
#[derive(Debug)]
pub(super) struct Ears {
    hears: mpsc::Sender<Heard>,
    heard: tokio::sync::Mutex<mpsc::Receiver<Heard>>,
    /// Whether something was said that is not among what waits to be heard.
    missed: AtomicBool,
    woken: Notify,
    state: watch::Sender<State>,
    heard_itself: Mutex<Instant>,
    dropped: AtomicU64,
}

#[derive(Debug)]
enum State {
    Hearing,
    Down(String),
    Closed,
}

impl Ears {
    /// So many announcements wait to be handed on; of more, the node is told that it missed some.
    /// `failure` is why nothing is heard yet.
    pub(super) fn new(waiting_max: usize, failure: Option<&str>) -> Self {
        let (hears, heard) = mpsc::channel(waiting_max);
        let down = |reason: &str| State::Down(reason.to_owned());
        Self {
            hears,
            heard: tokio::sync::Mutex::new(heard),
            missed: AtomicBool::new(false),
            woken: Notify::new(),
            state: watch::Sender::new(failure.map_or(State::Hearing, down)),
            heard_itself: Mutex::new(Instant::now()),
            dropped: AtomicU64::new(0),
        }
    }

    /// Hands something to the node, or lets it know that it missed something.
    pub(super) fn hear(&self, heard: Heard) {
        if self.hears.try_send(heard).is_err() {
            self.miss();
        }
    }

    /// Lets the node know that it may have missed anything.
    pub(super) fn miss(&self) {
        self.missed.store(true, Ordering::SeqCst);
        self.woken.notify_one();
    }

    /// As [`Bus::heard`](super::Bus::heard).
    pub(super) async fn next(&self) -> Heard {
        let mut heard = self.heard.lock().await;
        loop {
            let woken = self.woken.notified();
            if self.missed.swap(false, Ordering::SeqCst) {
                return Heard::Missed(None);
            }
            tokio::select! {
                // What waits is older than what was missed.
                biased;
                Some(heard) = heard.recv() => return heard,
                () = woken => {}
            }
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), State::Hearing)
    }

    /// Waits until something can be heard.
    pub(super) async fn until_up(&self) {
        let mut state = self.state.subscribe();
        // Its sender lives as long as this.
        let _ = state.wait_for(|state| matches!(state, State::Hearing)).await;
    }

    pub(super) fn failure(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Hearing => None,
            State::Down(reason) => Some(reason.clone()),
            State::Closed => Some("the bus was closed".to_owned()),
        }
    }

    /// It hears again.
    pub(super) fn up(&self) {
        self.turn(State::Hearing);
    }

    /// It hears nothing any more.
    pub(super) fn down(&self, reason: String) {
        self.turn(State::Down(reason));
    }

    /// For good: a closed bus stays closed.
    pub(super) fn close(&self) {
        self.turn(State::Closed);
    }

    fn turn(&self, now: State) {
        self.state.send_if_modified(|state| {
            let changes = !matches!(state, State::Closed);
            if changes {
                *state = now;
            }
            changes
        });
    }

    /// Counts something that is not said.
    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Notes that the node heard itself, or has just connected.
    pub(super) fn heard_itself(&self) {
        *self.last_heard_itself() = Instant::now();
    }

    fn last_heard_itself(&self) -> MutexGuard<'_, Instant> {
        self.heard_itself.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the node has not heard itself for too long, or this says that it cannot.
    pub(super) async fn silence(&self, is_lost: impl Fn() -> bool) {
        let mut look = interval(LOOK_EVERY);
        loop {
            look.tick().await;
            if self.last_heard_itself().elapsed() > SILENCE_MAX || is_lost() {
                return;
            }
        }
    }

    /// Connects anew after a connection was lost, for as long as that takes.
    pub(super) async fn again<T, C, E, F>(
        &self,
        reason: String,
        says: &mut mpsc::Receiver<T>,
        mut connect: impl FnMut() -> F,
    ) -> C
    where
        E: Display,
        F: Future<Output = Result<C, E>>,
    {
        self.down(reason);
        let mut retry_after = RETRY_FIRST;
        let connected = loop {
            sleep(retry_after).await;
            retry_after = (retry_after * 2).min(RETRY_MAX);
            match connect().await {
                Ok(connected) => break connected,
                Err(error) => self.down(error.to_string()),
            }
        };
        // What was to be said before is stale.
        while says.try_recv().is_ok() {
            self.drop_one();
        }
        self.up();
        connected
    }
}
