//! Builds the hub and what serves it from the configuration.
//!
//! The rule: everything that can be wrong is found here, before the first connection is accepted.

use std::{
    fs::{File, TryLockError},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tidings::{
    Hub,
    auth::Authenticator,
    http::{ServeSettings, Tls},
    journal::{
        Journal, JournalError,
        embedded::{EmbeddedJournal, EmbeddedOptions},
        memory::MemoryJournal,
    },
    metrics::Metrics,
};

use crate::{
    config::{Config, JournalKind},
    exit::{Exit, Failure},
    key_client::connect,
};

/// Where the journal is within the data directory; the rest of it is for keys and the like.
pub(crate) const JOURNAL_DIRECTORY: &str = "journal";
/// The file that a process locks while it has the journal open.
const LOCK_FILE: &str = "TIDINGS";

/// A hub and what it is served with.
#[derive(Debug)]
pub(crate) struct Components {
    pub(crate) hub: Hub,
    /// The HTTP interface.
    pub(crate) router: axum::Router,
    /// Deadlines and limits of the listener.
    pub(crate) serve: ServeSettings,
    pub(crate) tls: Option<Arc<Tls>>,
    /// Between being told to end and beginning to drain.
    pub(crate) drain_grace: Duration,
}

impl Components {
    /// Opens the journal and starts the hub. Blocks while the journal recovers.
    pub(crate) fn start(config: &Config) -> Result<Self, Failure> {
        let refused = |message: String| Failure::new(Exit::Config, message);
        let authenticator = Authenticator::with_key_sources(&config.auth_settings(), &connect)
            .map_err(|error| refused(error.to_string()))?;
        let tls = match (&config.tls.cert, &config.tls.key) {
            (Some(cert), Some(key)) => {
                let tls = Tls::open(cert, key).map_err(|error| refused(error.to_string()))?;
                Some(Arc::new(tls))
            }
            _ => None,
        };
        let metrics = Arc::new(Metrics::new());
        let journal = open_journal(config, &metrics)?;
        let hub = Hub::builder()
            .settings(config.hub_settings())
            .journal(journal)
            .metrics(metrics)
            .start();
        let router = hub
            .router(Arc::new(authenticator), &config.http_settings())
            .map_err(|p| refused(format!("{}: {p}", p.pointer.as_deref().unwrap_or_default())))?;
        let serve = config.serve_settings();
        Ok(Self { hub, router, serve, tls, drain_grace: config.drain_grace.0 })
    }
}

fn open_journal(config: &Config, metrics: &Arc<Metrics>) -> Result<Arc<dyn Journal>, Failure> {
    let settings = config.journal_settings();
    if config.journal.kind == JournalKind::Memory {
        return Ok(Arc::new(MemoryJournal::new(settings)));
    }
    let directory = config.data.join(JOURNAL_DIRECTORY);
    std::fs::create_dir_all(&directory)
        .map_err(|error| Failure::output(directory.display(), &error))?;
    let options = EmbeddedOptions { metrics: Arc::clone(metrics), ..EmbeddedOptions::default() };
    match EmbeddedJournal::open_with(&directory, settings, options) {
        Ok(journal) => Ok(journal),
        Err(error) => Err(unusable(&config.data, &directory, &error)),
    }
}

/// Why there is no journal. Whether it is damaged or only taken is two things to do.
fn unusable(data: &Path, journal: &Path, error: &JournalError) -> Failure {
    let data = data.display();
    if is_in_use(journal) {
        let message = format!(
            "{data}: another process has this data directory open; end it, or choose another \
             directory with `--data`"
        );
        return Failure::new(Exit::InUse, message);
    }
    let message = format!("the data directory {data} cannot be used\n{error}");
    Failure::new(Exit::DataDirectory, message)
}

/// Whether some process holds the lock of a journal.
pub(crate) fn is_in_use(journal: &Path) -> bool {
    let lock = File::open(journal.join(LOCK_FILE));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}
