//! What the writer tells others about itself: how far it is, and why it does not get on.
//!
//! The rule: asking never waits for the disk.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{metrics::Metrics, model::limits::COMMIT_SLOW};

#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    commits: AtomicU64,
    /// When the running commit began, milliseconds since the start plus one; 0: none runs.
    since: AtomicU64,
    failure: Mutex<Option<String>>,
    /// Where commits and sizes are counted.
    pub(super) metrics: Arc<Metrics>,
}

/// A commit that runs until this is dropped.
pub(super) struct Running<'a>(&'a Progress);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.since.store(0, Ordering::SeqCst);
    }
}

impl Progress {
    /// After so many commits of earlier processes.
    pub(super) fn after(commits: u64, metrics: Arc<Metrics>) -> Self {
        Self {
            started: Instant::now(),
            commits: AtomicU64::new(commits),
            since: AtomicU64::new(0),
            failure: Mutex::default(),
            metrics,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    pub(super) fn begin(&self) -> Running<'_> {
        self.since.store(self.now(), Ordering::SeqCst);
        Running(self)
    }

    /// How long the running commit has taken.
    pub(super) fn committing(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::SeqCst);
        (since > 0).then(|| Duration::from_millis(self.now().saturating_sub(since)))
    }

    pub(super) fn reach(&self, commits: u64) {
        self.commits.store(commits, Ordering::SeqCst);
    }

    /// Durable commits, ever.
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    /// Says why nothing is acknowledged any more; the first reason stays.
    pub(super) fn fail(&self, reason: String) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.is_none() {
            tracing::error!(reason, "the journal takes no more events");
            *failure = Some(reason);
        }
    }

    /// Says that the writer ended by a panic.
    pub(super) fn panicked(&self) {
        self.fail("the writer ended by a panic; start the hub anew".to_owned());
    }

    /// Why nothing is acknowledged now.
    pub(super) fn failure(&self) -> Option<String> {
        let failed = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failed.or_else(|| {
            let taken = self.committing().filter(|taken| *taken >= COMMIT_SLOW)?;
            Some(format!("a commit has taken {} ms: the disk does not get on", taken.as_millis()))
        })
    }
}

/// Says that the writer ended by a panic, if it did.
pub(super) struct Witness(pub(super) Arc<Progress>);

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_takes_a_second_is_a_failure_until_it_ends() {
        let progress = Progress::after(0, Arc::default());
        let running = progress.begin();
        assert_eq!(progress.failure(), None);
        tokio::time::advance(COMMIT_SLOW - Duration::from_millis(1)).await;
        assert_eq!(progress.failure(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(progress.failure().unwrap().contains("1000 ms"));
        drop(running);
        assert_eq!(progress.failure(), None);
        progress.fail("the disk is full".to_owned());
        progress.fail("and more".to_owned());
        assert_eq!(progress.failure().unwrap(), "the disk is full");
    }
}
