//! Keys that change while the hub runs: an issuer's key set (JWKS, RFC 7517), read now and then.
//!
//! The rules: one task reads a set, and whoever needs it sooner asks that task and waits; nothing of
//! a token but the fact that its key is unknown has an influence on what is read or how often. Keys
//! that were read serve on while their source is down, for a time that the operator sets, and then
//! no longer.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::{
    io::AsyncReadExt as _,
    sync::{Notify, watch},
    time::Instant,
};

use super::key::{Algorithm, Jwk, Key};
use crate::{
    metrics::Metrics,
    model::{
        JsonText,
        limits::{KEY_SET_ASKED_EVERY, KEY_SET_BYTES_MAX, KEY_SET_KEYS_MAX, KEY_SET_READ_MAX},
    },
};

/// After a failure the source is tried again this soon: an identity provider that restarts is back
/// by then, and one that is down is not kept busy.
const RETRY: Duration = Duration::from_secs(30);

/// Where an issuer's key set is read from. The hub has one for files; one for URLs comes from
/// outside, with the HTTP client that it needs.
#[async_trait]
pub trait KeySource: fmt::Debug + Send + Sync {
    /// Reads the set as it is now: a JSON object with `keys`, at most
    /// [`KEY_SET_BYTES_MAX`]. Given up after [`KEY_SET_READ_MAX`].
    ///
    /// A source over a network follows no redirects, and checks the address that it has connected
    /// to, not the one that the name had a moment ago.
    ///
    /// # Errors
    /// Why the set could not be read, for the log.
    async fn read(&self) -> Result<Vec<u8>, KeySourceError>;
}

/// Why a key set was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeySourceError(pub String);

/// How often key sets are read, and how long they last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySetTimes {
    /// How often a set is read: a key that its issuer removed is refused this much later.
    pub refresh: Duration,
    /// How long the keys serve since they were last read, while their source is down.
    pub stale_max: Duration,
}

impl Default for KeySetTimes {
    fn default() -> Self {
        Self { refresh: Duration::from_secs(10 * 60), stale_max: Duration::from_secs(24 * 60 * 60) }
    }
}

/// How an issuer's key set is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySetStatus {
    /// Whose.
    pub issuer: String,
    /// The keys in use.
    pub keys: usize,
    /// How long ago they were read; `None`: never.
    pub age: Option<Duration>,
    /// Why the last reading failed, if it did.
    pub failure: Option<String>,
}

/// An issuer's key set.
#[derive(Debug)]
pub(super) struct KeySet {
    issuer: String,
    algorithms: Vec<Algorithm>,
    source: Arc<dyn KeySource>,
    times: KeySetTimes,
    state: Mutex<State>,
    /// Tells the task that somebody waits.
    asked: Notify,
    /// Counts the readings that ended.
    readings: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    keys: Arc<[Key]>,
    read_at: Option<Instant>,
    began_at: Option<Instant>,
    failure: Option<String>,
    phase: Phase,
}

/// What became of the keys that were in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renewal {
    /// All of them are.
    Kept,
    /// One at least is no more.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Asked,
    Reading,
}

impl KeySet {
    pub(super) fn new(
        issuer: &str,
        algorithms: &[Algorithm],
        source: Arc<dyn KeySource>,
        times: KeySetTimes,
    ) -> Self {
        let state = State {
            keys: Arc::default(),
            read_at: None,
            began_at: None,
            failure: None,
            phase: Phase::Idle,
        };
        Self {
            issuer: issuer.to_owned(),
            algorithms: algorithms.to_vec(),
            source,
            times,
            state: Mutex::new(state),
            asked: Notify::new(),
            readings: watch::Sender::new(0),
        }
    }

    /// Takes keys that were read by other means.
    pub(super) fn put(&self, text: &[u8]) -> Result<(), KeySourceError> {
        let keys = parse(text, &self.algorithms)?;
        let mut state = self.state();
        state.keys = keys.into();
        state.read_at = Some(Instant::now());
        Ok(())
    }

    /// The keys in use; `None` if they were never read, or too long ago.
    pub(super) fn keys(&self) -> Option<Arc<[Key]>> {
        let state = self.state();
        let read_at = state.read_at?;
        (read_at.elapsed() <= self.times.stale_max).then(|| Arc::clone(&state.keys))
    }

    pub(super) fn status(&self) -> KeySetStatus {
        let state = self.state();
        KeySetStatus {
            issuer: self.issuer.clone(),
            keys: state.keys.len(),
            age: state.read_at.map(|at| at.elapsed()),
            failure: state.failure.clone(),
        }
    }

    /// Waits until the set was read anew. `false`: it will not be, because that was not long ago.
    pub(super) async fn renewed(&self) -> bool {
        let mut readings = self.readings.subscribe();
        {
            let mut state = self.state();
            if state.phase == Phase::Idle {
                if state.began_at.is_some_and(|at| at.elapsed() < KEY_SET_ASKED_EVERY) {
                    return false;
                }
                state.phase = Phase::Asked;
                self.asked.notify_one();
            }
        }
        let reading = tokio::time::timeout(KEY_SET_READ_MAX * 2, readings.changed());
        reading.await.is_ok_and(|changed| changed.is_ok())
    }

    /// Reads the set for ever; calls `lost` when keys are not in it any more.
    pub(super) async fn keep(&self, metrics: &Metrics, lost: &(dyn Fn() + Sync)) {
        loop {
            let pause = match self.read(metrics).await {
                Ok(Renewal::Lost) => {
                    lost();
                    self.times.refresh
                }
                Ok(Renewal::Kept) => self.times.refresh,
                Err(_) => self.times.refresh.min(RETRY),
            };
            // Not all nodes at the same time.
            let spread = 0.9 + 0.2 * f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(spread)) => {}
                () = self.until_asked() => {}
            }
        }
    }

    async fn until_asked(&self) {
        // A notification may be left over from a reading that began by itself.
        while self.state().phase != Phase::Asked {
            self.asked.notified().await;
        }
    }

    async fn read(&self, metrics: &Metrics) -> Result<Renewal, KeySourceError> {
        {
            let mut state = self.state();
            state.phase = Phase::Reading;
            state.began_at = Some(Instant::now());
        }
        let read = match tokio::time::timeout(KEY_SET_READ_MAX, self.source.read()).await {
            Ok(read) => read.and_then(|text| parse(&text, &self.algorithms)),
            Err(_) => {
                Err(KeySourceError(format!("took longer than {} s", KEY_SET_READ_MAX.as_secs())))
            }
        };
        Metrics::count(&metrics.key_sets_read, if read.is_ok() { "read" } else { "failed" });
        let result = self.take(read, metrics);
        self.readings.send_modify(|count| *count += 1);
        result
    }

    fn take(
        &self,
        read: Result<Vec<Key>, KeySourceError>,
        metrics: &Metrics,
    ) -> Result<Renewal, KeySourceError> {
        let issuer = self.issuer.as_str();
        let mut state = self.state();
        state.phase = Phase::Idle;
        let failed_before = state.failure.is_some();
        match read {
            Ok(keys) => {
                let names = |keys: &[Key]| -> Vec<Option<String>> {
                    keys.iter().map(|key| key.kid().map(str::to_owned)).collect()
                };
                if names(&keys) != names(&state.keys) || state.read_at.is_none() || failed_before {
                    tracing::info!(issuer, keys = keys.len(), "an issuer's keys were read");
                }
                if failed_before {
                    metrics.key_sets_failing.dec();
                }
                let has = |old: &Key| keys.iter().any(|key| key.fingerprint() == old.fingerprint());
                let lost = state.keys.iter().filter(|old| !has(old)).count();
                if lost > 0 {
                    tracing::info!(issuer, lost, "keys were taken away: what they let in ends");
                }
                state.keys = keys.into();
                state.read_at = Some(Instant::now());
                state.failure = None;
                Ok(if lost > 0 { Renewal::Lost } else { Renewal::Kept })
            }
            Err(error) => {
                let age_s = state.read_at.map(|at| at.elapsed().as_secs());
                match state.read_at {
                    Some(at) if at.elapsed() <= self.times.stale_max => tracing::warn!(
                        issuer, %error, age_s,
                        "an issuer's keys were not read; those read before stay in use"
                    ),
                    _ => tracing::error!(
                        issuer, %error, age_s,
                        "an issuer's keys were not read; none of its tokens is accepted"
                    ),
                }
                if !failed_before {
                    metrics.key_sets_failing.inc();
                }
                state.failure = Some(error.to_string());
                Err(error)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a key set. A key that is not for this use is left out, as RFC 7517 §5 asks; a set that is
/// none is refused whole.
fn parse(bytes: &[u8], algorithms: &[Algorithm]) -> Result<Vec<Key>, KeySourceError> {
    let wrong = |what: String| KeySourceError(what);
    if bytes.len() > KEY_SET_BYTES_MAX {
        return Err(wrong(format!("is larger than {KEY_SET_BYTES_MAX} bytes")));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("is not UTF-8".to_owned()))?;
    let json = JsonText::parse(text).map_err(|error| wrong(format!("is no JSON: {error}")))?;
    let set: Value = serde_json::from_str(json.as_str()).map_err(|e| wrong(e.to_string()))?;
    let keys = set.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or_else(|| wrong("is no key set: it has no list `keys`".to_owned()))?;
    if keys.len() > KEY_SET_KEYS_MAX {
        return Err(wrong(format!("has more than {KEY_SET_KEYS_MAX} keys")));
    }
    let mut usable = Vec::new();
    for (place, value) in keys.iter().enumerate() {
        let jwk = Jwk::deserialize(value).map_err(|_| "it is no key");
        match jwk.and_then(|jwk| Key::of_jwk(&jwk, algorithms)) {
            Ok(key) => usable.push(key),
            Err(reason) => tracing::debug!(place, reason, "a key of a key set is not used"),
        }
    }
    if usable.is_empty() {
        // An issuer without keys signs nothing: this is its mistake, and not a rotation.
        return Err(wrong(format!("has no key that can be used, of {}", keys.len())));
    }
    Ok(usable)
}

/// A key set in a file.
#[derive(Debug)]
pub(super) struct FileSource(pub(super) PathBuf);

impl FileSource {
    fn fail(path: &Path, error: &std::io::Error) -> KeySourceError {
        KeySourceError(format!("{} cannot be read: {error}", path.display()))
    }

    /// Reads it at once, where waiting is no matter.
    pub(super) fn read_now(&self) -> Result<Vec<u8>, KeySourceError> {
        std::fs::read(&self.0).map_err(|error| Self::fail(&self.0, &error))
    }
}

#[async_trait]
impl KeySource for FileSource {
    async fn read(&self) -> Result<Vec<u8>, KeySourceError> {
        let read = async {
            let file = tokio::fs::File::open(&self.0).await?;
            let mut bytes = Vec::new();
            file.take(KEY_SET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await?;
            Ok(bytes)
        };
        read.await.map_err(|error| Self::fail(&self.0, &error))
    }
}
