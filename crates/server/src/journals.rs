//! Opens the journals that topics are in, and the bus between the nodes that share them.
//!
//! The rule: each journal is opened once, whichever rules name it, and what is wrong with it is told by
//! the setting that names it.

use std::{
    fs::{File, TryLockError},
    path::Path,
    sync::Arc,
};

use tidings::{
    auth::Secret,
    bus::{
        Bus, Codec,
        postgres::PostgresBus,
        rabbitmq::RabbitMqBus,
        redis::{RedisBus, SaidBy},
    },
    journal::{
        Journal, JournalError,
        embedded::{EmbeddedJournal, EmbeddedOptions},
        memory::MemoryJournal,
        postgres::{PostgresJournal, PostgresOptions},
        redis::RedisJournal,
        routed::{Route, RoutedJournal},
    },
    metrics::Metrics,
};

use crate::{
    config::{BusKind, Config, JournalKind},
    exit::{Exit, Failure},
};

/// Where the journal is within the data directory; the rest of it is for keys and the like.
pub(crate) const JOURNAL_DIRECTORY: &str = "journal";
/// The file that a process locks while it has the journal open.
const LOCK_FILE: &str = "TIDINGS";

/// What topics are kept in, and what nodes talk by.
pub(crate) struct Journals {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) bus: Option<Arc<dyn Bus>>,
}

impl Journals {
    /// Opens what the configuration names. Blocks while an embedded journal recovers.
    pub(crate) async fn open(
        config: &Config,
        postgres: &PostgresOptions,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Failure> {
        let mut opened = Vec::new();
        for kind in config.journals() {
            opened.push((kind, open(config, kind, postgres, metrics).await?));
        }
        let of = |kind: JournalKind| {
            let found = opened.iter().find(|(opened, _)| *opened == kind);
            found.map(|(_, journal)| Arc::clone(journal)).expect("every journal was opened")
        };
        let mut journal = of(config.journal.kind);
        if !config.journal.rules.is_empty() {
            let route = |rule: &crate::config::JournalRule| {
                let topics = rule.pattern().map_err(|m| Failure::new(Exit::Config, m))?;
                Ok(Route { topics, journal: of(rule.journal) })
            };
            let routes = config.journal.rules.iter().map(route).collect::<Result<_, Failure>>()?;
            journal = Arc::new(RoutedJournal::new(routes, journal));
        }
        let bus = match (config.bus(), &config.cluster.secret) {
            (Some(kind), Some(secret)) => Some(open_bus(config, kind, postgres, secret).await?),
            _ => None,
        };
        Ok(Self { journal, bus })
    }
}

async fn open(
    config: &Config,
    kind: JournalKind,
    postgres: &PostgresOptions,
    metrics: &Arc<Metrics>,
) -> Result<Arc<dyn Journal>, Failure> {
    let settings = config.journal_settings();
    Ok(match kind {
        JournalKind::Memory => Arc::new(MemoryJournal::new(settings)),
        JournalKind::Embedded => return open_embedded(config, metrics),
        JournalKind::Redis => {
            let told = |error| unusable_server("redis.url", &error);
            let options = config.redis.options().map_err(told)?;
            RedisJournal::open(options, settings).await.map_err(told)?
        }
        JournalKind::Postgres => PostgresJournal::open(postgres.clone(), settings)
            .await
            .map_err(|error| unusable_server("postgres.url", &error))?,
    })
}

async fn open_bus(
    config: &Config,
    kind: BusKind,
    postgres: &PostgresOptions,
    secret: &Secret,
) -> Result<Arc<dyn Bus>, Failure> {
    match kind {
        BusKind::Auto | BusKind::Redis => {
            let told = |error| unusable_server("redis.url", &error);
            let options = config.redis.options().map_err(told)?;
            let in_redis = |kind: &JournalKind| *kind == JournalKind::Redis;
            // Its scripts announce. Of what is in other journals the hub has to.
            let all = config.journals().iter().all(in_redis);
            let said_by = if all { SaidBy::Journal } else { SaidBy::Hub };
            Ok(RedisBus::open(options, Codec::new(secret), said_by).await.map_err(told)?)
        }
        BusKind::Postgres => {
            let opened = PostgresBus::open(postgres, Codec::new(secret)).await;
            Ok(opened.map_err(|error| unusable_server("postgres.url", &error))?)
        }
        BusKind::Rabbitmq => RabbitMqBus::start(&config.rabbitmq.settings(), secret)
            .map(|bus| bus as Arc<dyn Bus>)
            .map_err(|error| Failure::new(Exit::Config, format!("`rabbitmq.url`: {error}"))),
    }
}

pub(crate) fn unusable_server(setting: &str, error: &JournalError) -> Failure {
    let exit = match error {
        JournalError::Unavailable(_) => Exit::Unavailable,
        _ => Exit::Config,
    };
    Failure::new(exit, format!("the server of `{setting}` cannot be used\n{error}"))
}

fn open_embedded(config: &Config, metrics: &Arc<Metrics>) -> Result<Arc<dyn Journal>, Failure> {
    let directory = config.data.join(JOURNAL_DIRECTORY);
    let options = EmbeddedOptions { metrics: Arc::clone(metrics), ..EmbeddedOptions::default() };
    match EmbeddedJournal::open_with(&directory, config.journal_settings(), options) {
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
