//! What an operator says about the server.
//!
//! The rule: whatever waits for the server has an end, and a password is in no message.

use std::{fmt, sync::Arc, time::Duration};

use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    servers::{Lineage, Servers},
    tls::Wanted,
};
use crate::journal::JournalError;

/// The schema that the journal is in, unless another is named.
pub const SCHEMA: &str = "tidings";
/// Connections that append: while one waits for the disk, the next commit is made.
const WRITERS: usize = 4;
/// Connections that read: as many as pages are read at once, and half as many for what publishers
/// wait for.
const READERS: usize = 12;
/// Connecting within a network takes milliseconds; twice this and a probe still tells in time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Far above what a full commit or a page takes on a server that works.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);
/// Other nodes hold a topic for one commit.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks whether the other end of a connection is still there.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// How long an append is tried before its publisher is told to come back.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether an older schema is brought up to date when the journal is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Migrate {
    /// At once.
    #[default]
    Automatic,
    /// Never: opening fails and names the command that does it.
    ByCommand,
}

/// Which server, and how much of it.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`, with several hosts
    /// (`host1:5432,host2:5432`) of which the primary is found. `sslmode` is `disable`, `prefer` (the
    /// default), `require` (encrypted, whoever the server is), `verify-ca` or `verify-full`;
    /// `sslrootcert` names a PEM file of authorities, which are then looked at in every mode with
    /// TLS, instead of the system's; `sslcert` and `sslkey` name this side's own. Through PgBouncer:
    /// session pooling.
    pub url: String,
    /// Where to LISTEN, if `url` leads through a pool that cannot: the server itself.
    pub listen_url: Option<String>,
    /// The schema, which the journal has to itself: `a-z`, `0-9` and `_`, 1 to 63.
    pub schema: String,
    /// Connections that append; topics are spread over them. At least 1.
    pub writers: usize,
    /// Connections that read and change topics. At least 1.
    pub readers: usize,
    /// Whether the schema is brought up to date.
    pub migrate: Migrate,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long one statement may take.
    pub statement_timeout: Duration,
    /// How long to wait for a row that another node or a person has locked.
    pub lock_timeout: Duration,
    /// How long an append is tried.
    pub append_timeout: Duration,
    /// Which of the servers went on. Clones of the options share it, so that the journal, the bus and
    /// the outbox leave a primary together that another server was promoted over.
    pub lineage: Lineage,
}

impl PostgresOptions {
    /// A server, and the defaults.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            listen_url: None,
            schema: SCHEMA.to_owned(),
            writers: WRITERS,
            readers: READERS,
            migrate: Migrate::default(),
            connect_timeout: CONNECT_TIMEOUT,
            statement_timeout: STATEMENT_TIMEOUT,
            lock_timeout: LOCK_TIMEOUT,
            append_timeout: APPEND_TIMEOUT,
            lineage: Lineage::default(),
        }
    }

    /// In another schema.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// The options, checked.
#[derive(Clone)]
pub(crate) struct Target {
    pub(super) servers: Arc<Servers>,
    pub(super) lineage: Lineage,
    pub(super) tls: MakeRustlsConnect,
    pub(crate) schema: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) statement_timeout: Duration,
    pub(crate) lock_timeout: Duration,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Target {
    pub(crate) fn of(options: &PostgresOptions) -> Result<Self, JournalError> {
        let schema = options.schema.clone();
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if schema.is_empty() || schema.len() > 63 || !schema.bytes().all(is_name) {
            return Err(broken("the schema's name must be 1 to 63 of a-z 0-9 _"));
        }
        let is_url =
            ["postgres://", "postgresql://"].iter().any(|start| options.url.starts_with(start));
        if !is_url {
            return Err(broken("the server is named by a URL: postgres://user@host/database"));
        }
        let (url, wanted) = Wanted::take_from(&options.url)?;
        let mut config: tokio_postgres::Config = url.parse().map_err(|error| {
            broken(&format!("the URL is not one of a PostgreSQL server: {error}"))
        })?;
        config.ssl_mode(wanted.mode());
        config.connect_timeout(options.connect_timeout);
        config.tcp_user_timeout(options.statement_timeout);
        // A connection on which nobody asks, as one whose commit hangs, ends as soon as its server is
        // back without it.
        config.keepalives_idle(KEEPALIVE).keepalives_interval(KEEPALIVE);
        if config.get_application_name().is_none() {
            config.application_name("tidings");
        }
        Ok(Self {
            servers: Arc::new(Servers::of(&config)?),
            lineage: options.lineage.clone(),
            tls: MakeRustlsConnect::new(wanted.config()?),
            schema,
            connect_timeout: options.connect_timeout,
            statement_timeout: options.statement_timeout,
            lock_timeout: options.lock_timeout,
        })
    }
}

pub(super) fn broken(what: &str) -> JournalError {
    JournalError::Broken(format!("PostgreSQL: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_options_are_told_and_a_password_is_not() {
        let wrong = |options: PostgresOptions| Target::of(&options).unwrap_err().to_string();
        let options = PostgresOptions::new("postgres://a:secret@h/d");
        assert!(wrong(options.clone().schema("a\"b")).contains("schema"));
        assert!(!format!("{options:?} {:?}", Target::of(&options).unwrap()).contains("secret"));
        let url = "postgres://a:secret@h:port/d";
        assert!(!wrong(PostgresOptions::new(url)).contains("secret"));
        let url = "postgres://a@h/d?sslmode=verify-full&sslrootcert=/nowhere.pem";
        assert!(wrong(PostgresOptions::new(url)).contains("/nowhere.pem"));
        // Its sslmode would not be seen.
        let pairs = "host=h user=a password=secret sslmode=verify-full";
        assert!(wrong(PostgresOptions::new(pairs)).contains("named by a URL"));
    }
}
