//! Bringing a schema up to date, one step after the other, each once.
//!
//! The rule: steps are only ever added. Whoever migrates holds the schema's advisory lock, so any
//! number of nodes may start at once; a schema of a newer version is left alone.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, error::SqlState};

use super::{connection::Session, fault::Fault, options::Target};
use crate::journal::JournalError;

/// Steps of one part of the schema, which counts its own versions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Migrations {
    /// The part's name, as the table of versions has it.
    pub(crate) part: &'static str,
    /// The steps; the first is version 1.
    pub(crate) steps: &'static [&'static str],
}

/// The journal's.
pub(super) const JOURNAL: Migrations = Migrations {
    part: "journal",
    steps: &[
        include_str!("migrations/0001_journal.sql"),
        include_str!("migrations/0002_oldest_at.sql"),
    ],
};

/// Begins the advisory locks of migrations, so that other programs' locks are others.
const LOCK: i32 = 0x7469_6469;
/// A step may rewrite tables, and so long it is tried to lock them.
const STEP_TIMEOUT_MS: u32 = 600_000;
/// How long a step waits for a table that somebody holds: everybody else waits behind it, readers too.
const LOCK_TIMEOUT_MS: u32 = 1000;
/// Between two tries, in which who waited behind the last one goes on.
const TRY_AGAIN: Duration = Duration::from_secs(2);

impl Migrations {
    fn version(&self) -> i32 {
        i32::try_from(self.steps.len()).unwrap_or(i32::MAX)
    }

    /// Takes the steps that were not taken; returns how many.
    pub(crate) async fn run(&self, target: &Target) -> Result<usize, JournalError> {
        let session = Session::open(target).await?;
        let client = &session.client;
        let steps = self.run_on(client, &target.schema).await;
        // Closing the connection lets the lock go too, if this cannot.
        Ok(steps.map_err(Fault::from)??)
    }

    async fn run_on(
        &self,
        client: &Client,
        schema: &str,
    ) -> Result<Result<usize, Fault>, tokio_postgres::Error> {
        let lock = crc32c::crc32c(schema.as_bytes()).cast_signed();
        client
            .batch_execute(&format!(
                "SET statement_timeout = {STEP_TIMEOUT_MS}; SET lock_timeout = {STEP_TIMEOUT_MS}; \
                 SET idle_in_transaction_session_timeout = {STEP_TIMEOUT_MS}; \
                 SELECT pg_advisory_lock({LOCK}, {lock})"
            ))
            .await?;
        // Not in one statement with IF NOT EXISTS: that needs the right to create what is there.
        let is_there = client
            .query_one("SELECT to_regclass($1) IS NOT NULL", &[&format!("{schema}.versions")])
            .await?;
        if !is_there.get::<_, bool>(0) {
            client
                .batch_execute(&format!(
                    "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE TABLE {schema}.versions \
                     (part text PRIMARY KEY, version integer NOT NULL)"
                ))
                .await?;
        }
        let found = version(client, self.part).await?;
        if found > self.version() {
            return Ok(Err(self.newer(found)));
        }
        let mut taken = 0;
        for (step, version) in self.steps.iter().zip(1_i32..).filter(|(_, step)| *step > found) {
            let part = self.part;
            let sql = format!(
                "BEGIN;\n{step}\n; INSERT INTO versions VALUES ('{part}', {version}) \
                 ON CONFLICT (part) DO UPDATE SET version = excluded.version; COMMIT"
            );
            patiently(client, &sql).await?;
            tracing::info!(schema, part, version, "the schema was brought up to date");
            taken += 1;
        }
        Ok(Ok(taken))
    }

    /// Refuses a schema that is not at this version.
    pub(crate) async fn check(&self, target: &Target) -> Result<(), JournalError> {
        let session = Session::open(target).await?;
        let name = format!("{}.versions", target.schema);
        let asked = async {
            session.client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&name]).await
        };
        let found = if session.answer(asked).await?.get(0) {
            session.answer(version(&session.client, self.part)).await?
        } else {
            0
        };
        if found > self.version() {
            return Err(self.newer(found).into());
        }
        if found < self.version() {
            return Err(JournalError::Broken(format!(
                "PostgreSQL: schema {} has version {found} of `{}`, and {} is needed: run \
                 `tidings migrate`",
                target.schema,
                self.part,
                self.version()
            )));
        }
        Ok(())
    }

    fn newer(&self, found: i32) -> Fault {
        Fault::Broken(format!(
            "PostgreSQL: the schema has version {found} of `{}`, and this program knows {}: start a \
             newer one",
            self.part,
            self.version()
        ))
    }
}

/// Takes a step as soon as nobody holds its tables, giving way in between.
async fn patiently(client: &Client, step: &str) -> Result<(), tokio_postgres::Error> {
    let until = Instant::now() + Duration::from_millis(STEP_TIMEOUT_MS.into());
    client.batch_execute(&format!("SET lock_timeout = {LOCK_TIMEOUT_MS}")).await?;
    loop {
        match client.batch_execute(step).await {
            Err(error)
                if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
                    && Instant::now() < until =>
            {
                client.batch_execute("ROLLBACK").await?;
                tracing::warn!(
                    "the schema's next version waits for who holds a table; trying again"
                );
                sleep(TRY_AGAIN).await;
            }
            taken => return taken,
        }
    }
}

async fn version(client: &Client, part: &str) -> Result<i32, tokio_postgres::Error> {
    let found = client.query_opt("SELECT version FROM versions WHERE part = $1", &[&part]).await?;
    Ok(found.map_or(0, |row| row.get(0)))
}
