//! Settings of what several nodes share: the servers that keep events, and the bus between nodes.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings::{
    auth::Secret,
    bus::rabbitmq::RabbitMqBusSettings,
    journal::{
        JournalError,
        postgres::{Migrate, PostgresOptions},
        redis::RedisOptions,
    },
    model::Pattern,
};

use super::{Config, JournalKind, Period};

/// Shortest secret that nodes seal what they tell each other with: 128 bits in hex digits.
pub(super) const CLUSTER_SECRET_CHARACTERS_MIN: usize = 32;

/// What nodes that share a journal need of each other.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClusterConfig {
    /// What this node is called in `/admin/v1/nodes`. Default: the machine's host name.
    pub(crate) name: Option<String>,
    /// The secret, at least 32 characters, that all nodes share: what they hand on to readers without
    /// asking the journal is sealed with it.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) secret: Option<Secret>,
    /// What nodes tell each other by that a topic advanced. `"auto"`: the server of the journal.
    pub(crate) bus: BusKind,
}

/// What carries announcements between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BusKind {
    /// The journal's own server; none for the embedded journal.
    #[default]
    Auto,
    /// Redis, `redis.url`.
    Redis,
    /// PostgreSQL, `postgres.url`.
    Postgres,
    /// RabbitMQ, `rabbitmq.url`.
    Rabbitmq,
}

/// A Redis (7 or later) or Valkey server, or a cluster of them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RedisConfig {
    /// `redis://[user:password@]host[:port][/database]`, `rediss://…` with TLS,
    /// `redis+sentinel://[user:password@]host:port,host:port/name` (`rediss+sentinel://…`) to ask
    /// Sentinels where the server is, or `redis+cluster://[user:password@]host:port,host:port`
    /// (`rediss+cluster://…`) for a Redis Cluster, of which some nodes are named.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) url: Option<Secret>,
    /// What the names of all keys and channels begin with. Hubs with the same one are one hub.
    pub(crate) prefix: String,
    /// File of certificates (PEM) that a server with TLS is trusted by, instead of the machine's.
    #[schemars(with = "Option<String>")]
    pub(crate) ca: Option<PathBuf>,
    /// How long an answer may take before Redis counts as unavailable.
    pub(crate) timeout: Period,
    /// Whether to start although the server may evict any key when its memory is full, which loses
    /// topics without a word.
    pub(crate) allow_evicting: bool,
    /// Replicas that must have an event before it is acknowledged (`WAIT`). Best effort: the replica
    /// that is promoted may be another one.
    pub(crate) wait_replicas: u64,
}

impl Default for RedisConfig {
    fn default() -> Self {
        let options = RedisOptions::new("");
        Self {
            url: None,
            prefix: options.prefix,
            ca: None,
            timeout: Period(options.timeout),
            allow_evicting: options.allow_evicting,
            wait_replicas: options.wait_replicas.into(),
        }
    }
}

impl RedisConfig {
    /// The server; the configuration was checked.
    pub(crate) fn options(&self) -> Result<RedisOptions, JournalError> {
        let url = self.url.as_ref().map_or("", Secret::expose);
        let root_certificates = self.ca.as_ref().map(std::fs::read).transpose();
        Ok(RedisOptions {
            prefix: self.prefix.clone(),
            root_certificates: root_certificates.map_err(|error| {
                let file = self.ca.as_deref().unwrap_or_else(|| "".as_ref()).display();
                JournalError::Broken(format!("`redis.ca`: {file}: {error}"))
            })?,
            timeout: self.timeout.0,
            allow_evicting: self.allow_evicting,
            wait_replicas: u32::try_from(self.wait_replicas).unwrap_or(u32::MAX),
            ..RedisOptions::new(url)
        })
    }
}

/// A PostgreSQL (14 or later) database.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PostgresConfig {
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`. Several hosts
    /// (`host1:5432,host2:5432`) are a primary and its standbys: the one that takes events is found.
    /// `sslmode` is `disable`, `prefer` (the default), `require`, `verify-ca` or `verify-full`;
    /// `sslrootcert` names a PEM file of authorities instead of the system's, `sslcert` and `sslkey`
    /// the hub's own certificate; see [TLS](operations.md#tls-to-it). Through PgBouncer: session
    /// pooling.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) url: Option<Secret>,
    /// Where to LISTEN, if `postgres.url` leads through a pool that cannot: the server itself. A URL
    /// of the same form, with an `sslmode` of its own.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) listen_url: Option<Secret>,
    /// The schema, which the hub has to itself.
    pub(crate) schema: String,
    /// Connections that append.
    pub(crate) writers: u64,
    /// Connections that read and change topics.
    pub(crate) readers: u64,
    /// Whether the schema is brought up to date at the start: `"automatic"`, or only `"by_command"`,
    /// `tidings migrate`.
    pub(crate) migrate: MigrateKind,
    /// Whether events that applications enqueue in their own transactions, by `tidings.enqueue`, are
    /// published; see [the guide](guides/outbox.md).
    pub(crate) outbox: bool,
}

/// When the schema is brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MigrateKind {
    /// At the start.
    #[default]
    Automatic,
    /// By `tidings migrate`.
    ByCommand,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        let options = PostgresOptions::new("");
        Self {
            url: None,
            listen_url: None,
            schema: options.schema,
            writers: options.writers as u64,
            readers: options.readers as u64,
            migrate: MigrateKind::default(),
            outbox: false,
        }
    }
}

impl PostgresConfig {
    /// The server; the configuration was checked.
    pub(crate) fn options(&self) -> PostgresOptions {
        let url = |secret: &Secret| secret.expose().to_owned();
        PostgresOptions {
            listen_url: self.listen_url.as_ref().map(url),
            schema: self.schema.clone(),
            writers: super::size(self.writers),
            readers: super::size(self.readers),
            migrate: match self.migrate {
                MigrateKind::Automatic => Migrate::Automatic,
                MigrateKind::ByCommand => Migrate::ByCommand,
            },
            ..PostgresOptions::new(self.url.as_ref().map(url).unwrap_or_default())
        }
    }
}

/// A RabbitMQ broker that nodes talk by. Queues whose messages become events are `sources`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RabbitMqConfig {
    /// `amqp://user:password@host:5672/vhost`, or `amqps://` with TLS.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) url: Option<Secret>,
    /// The topic exchange of announcements, declared if it is not there. All nodes of a journal have
    /// the same one, and nobody else.
    pub(crate) exchange: String,
}

impl Default for RabbitMqConfig {
    fn default() -> Self {
        Self { url: None, exchange: "tidings.bus".to_owned() }
    }
}

impl RabbitMqConfig {
    /// The bus; the configuration was checked.
    pub(crate) fn settings(&self) -> RabbitMqBusSettings {
        let url = self.url.clone().unwrap_or_default();
        RabbitMqBusSettings { url, exchange: self.exchange.clone() }
    }
}

/// Topics that are in another journal than `journal.kind`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JournalRule {
    /// Their names: `message/**`. The first rule that fits decides.
    pub(crate) topics: String,
    /// Where they are. Topics that were written before the rule stay where they were, unread.
    pub(crate) journal: JournalKind,
}

impl JournalRule {
    pub(crate) fn pattern(&self) -> Result<Pattern, String> {
        Pattern::parse(&self.topics).map_err(|error| error.to_string())
    }
}

impl Config {
    /// The journals that topics are in, the main one first, each once.
    pub(crate) fn journals(&self) -> Vec<JournalKind> {
        let mut kinds = vec![self.journal.kind];
        for rule in &self.journal.rules {
            if !kinds.contains(&rule.journal) {
                kinds.push(rule.journal);
            }
        }
        kinds
    }

    /// What carries announcements; `None` for a hub that is alone.
    pub(crate) fn bus(&self) -> Option<BusKind> {
        match self.cluster.bus {
            BusKind::Auto => self.journals().into_iter().find_map(|kind| match kind {
                JournalKind::Redis => Some(BusKind::Redis),
                JournalKind::Postgres => Some(BusKind::Postgres),
                JournalKind::Embedded | JournalKind::Memory => None,
            }),
            named => Some(named),
        }
    }

    /// What this node is called.
    pub(crate) fn node_name(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.cluster.name.clone().unwrap_or_else(host)
    }
}

/// Paths of settings that cannot be, and why.
pub(super) fn problems(config: &Config) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut wrong = |path: &str, reason: &str| found.push((path.to_owned(), reason.to_owned()));
    for (number, rule) in config.journal.rules.iter().enumerate() {
        let path = format!("journal.rules[{number}].topics");
        if let Err(reason) = rule.pattern() {
            wrong(&path, &reason);
        }
    }
    let (kinds, bus) = (config.journals(), config.bus());
    if (kinds.contains(&JournalKind::Redis) || bus == Some(BusKind::Redis))
        && config.redis.url.is_none()
    {
        wrong("redis.url", "is missing: events or announcements are to go by Redis");
    }
    let needs_postgres = kinds.contains(&JournalKind::Postgres)
        || bus == Some(BusKind::Postgres)
        || config.postgres.outbox;
    if needs_postgres && config.postgres.url.is_none() {
        wrong("postgres.url", "is missing: events, announcements or an outbox are to be there");
    }
    for (path, connections) in [
        ("postgres.writers", config.postgres.writers),
        ("postgres.readers", config.postgres.readers),
    ] {
        if !(1..=100).contains(&connections) {
            wrong(path, "must be from 1 to 100");
        }
    }
    if bus == Some(BusKind::Rabbitmq) && config.rabbitmq.url.is_none() {
        wrong("rabbitmq.url", "is missing: announcements are to go by RabbitMQ");
    }
    let long_enough =
        |secret: &Secret| secret.expose().chars().count() >= CLUSTER_SECRET_CHARACTERS_MIN;
    match (&config.cluster.secret, bus) {
        (None, Some(_)) => wrong(
            "cluster.secret",
            "is missing: all nodes need the same secret (`openssl rand -hex 32`)",
        ),
        (Some(secret), _) if !long_enough(secret) => {
            wrong("cluster.secret", "must have at least 32 characters (`openssl rand -hex 32`)");
        }
        _ => {}
    }
    let is_local = |kind: &JournalKind| matches!(kind, JournalKind::Embedded | JournalKind::Memory);
    if bus.is_some() && kinds.iter().any(is_local) {
        wrong(
            "journal.kind",
            "is this machine's own, which other nodes cannot read: with a bus, keep all topics in a \
             journal that nodes share",
        );
    }
    found
}
