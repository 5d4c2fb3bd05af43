//! A connection: made safe before anything is asked of it, with its statements prepared.
//!
//! The rule: a connection that is handed out commits durably, waits for nothing for ever, and knows
//! which history its server has.

use std::{future::poll_fn, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::timeout,
};
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement};

use super::{
    fault::Fault,
    options::Target,
    servers::{Lineage, Server, Standing},
};

/// The oldest that is supported: older ones have no `pg_current_xact_id`, or are not mended.
const VERSION_MIN: i32 = 140_000;
/// The server's ends of connections, each with a name that none had before.
const BACKENDS: &str = "SELECT pid || ' ' || extract(epoch FROM backend_start) \
                        FROM pg_stat_activity WHERE backend_start IS NOT NULL";
/// What an answer may take beyond the statement: the way there and back.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// Declares the statements, each a file.
macro_rules! statements {
    ($($name:ident,)*) => {
        /// What is asked, prepared.
        #[derive(Debug)]
        pub(super) struct Statements { $(pub(super) $name: Statement,)* }

        impl Statements {
            async fn prepare(client: &Client) -> Result<Self, tokio_postgres::Error> {
                Ok(Self {
                    $($name: client.prepare(include_str!(
                        concat!("sql/", stringify!($name), ".sql")
                    )).await?,)*
                })
            }
        }
    };
}

statements! {
    transaction, outcome, lock, seen, current, share_slots, take_slot, absent,
    insert_topics, update_topics, insert_log, put_states, end_states, insert_marks, put_seen,
    head, page, states, states_of, fingerprints, latest, since, expired, due, topics, topics_of,
    excess, old_marks, raise_floor, trim_log, trim_marks, forget_seen,
    delete_topic, deleted, removed, remove_log, remove_states, remove_marks, remove_dedup,
}

/// A server's client whose connection ends with it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    driver: JoinHandle<()>,
    answer_timeout: Duration,
    standing: Standing,
    lineage: Lineage,
    /// The server's end of it; `None` if the role may not know.
    backend: Option<String>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closes the socket: who waits for a server that is stuck does not wait for this too.
        self.driver.abort();
    }
}

/// Who is told what others notify.
pub(crate) type Hear = Arc<dyn Fn(&str) + Send + Sync>;

impl Session {
    /// Connects, and makes the connection safe.
    pub(crate) async fn open(target: &Target) -> Result<Self, Fault> {
        Self::open_hearing(target, Arc::new(|_| {})).await
    }

    /// As [`Self::open`]; `hear` is told the payload of each notification.
    pub(crate) async fn open_hearing(target: &Target, hear: Hear) -> Result<Self, Fault> {
        // Whoever knows nothing yet asks all of them: one that another was promoted over may be up.
        let asks_all = target.lineage.is_unknown();
        let (mut found, mut faults) = (None::<(usize, Self)>, Vec::new());
        let servers: Vec<_> = target.servers.in_order().enumerate().collect();
        // The others at once, so that any number of them that say nothing costs the same time.
        let first = servers.len().min(if asks_all { 0 } else { 1 });
        let (first, others) = servers.split_at(first);
        for group in [first, others] {
            let opening = group.iter().map(async |(order, (place, server))| {
                let opening = Self::connect(target, server, Arc::clone(&hear));
                let opened = timeout(target.connect_timeout, opening).await;
                (*order, *place, *server, opened.unwrap_or_else(|_| Err(Fault::timeout())))
            });
            let mut opening: FuturesUnordered<_> = opening.collect();
            while let Some((order, place, server, opened)) = opening.next().await {
                let is_better = found
                    .as_ref()
                    .is_none_or(|(before, session)| session.is_closed() || order < *before);
                match opened {
                    Ok(session) if is_better => {
                        target.servers.serves(place);
                        found = Some((order, session));
                    }
                    Ok(_) => {}
                    Err(fault) => faults.push((server.name.as_str(), fault)),
                }
                if found.is_some() && !asks_all {
                    break;
                }
            }
            if found.is_some() {
                break;
            }
        }
        found.map(|(_, session)| session).ok_or_else(|| Fault::of_all(faults))
    }

    async fn connect(target: &Target, server: &Server, hear: Hear) -> Result<Self, Fault> {
        let (client, driver) = match server.config.get_ssl_mode() {
            tokio_postgres::config::SslMode::Disable => {
                let (client, connection) = server.config.connect(NoTls).await?;
                (client, tokio::spawn(drive(connection, hear)))
            }
            _ => {
                let (client, connection) = server.config.connect(target.tls.clone()).await?;
                (client, tokio::spawn(drive(connection, hear)))
            }
        };
        let mut session = Self {
            client,
            driver,
            answer_timeout: target.statement_timeout + ANSWER_MARGIN,
            standing: Standing::default(),
            lineage: target.lineage.clone(),
            backend: None,
        };
        session.standing = session.make_safe(target).await?;
        let own = format!("{BACKENDS} AND pid = pg_backend_pid()");
        session.backend = session.client.query_opt(&own, &[]).await?.map(|row| row.get(0));
        if !session.lineage.admits(session.standing) {
            let timeline = session.standing.timeline;
            return Err(Fault::Lost(format!(
                "the server is on timeline {timeline}, and another one was promoted since: make it \
                 a standby of that one"
            )));
        }
        Ok(session)
    }

    /// Whether it is of no more use: it ended, or another server was promoted since.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed() || self.lineage.has_left(self.standing)
    }

    /// Waits until all that was asked is answered, however long that takes, or the connection is of no
    /// more use.
    pub(super) async fn until_answered(&self) {
        tokio::select! {
            // Answers come in the order of the questions. Whether it is one or an end is the same.
            _ = self.client.simple_query("SELECT 1") => {}
            () = self.lineage.until_left(self.standing) => {}
        }
    }

    /// The server's end of it; `None` if the role may not know.
    pub(super) fn backend(&self) -> Option<&str> {
        self.backend.as_deref()
    }

    /// All ends of connections that the server has now, and the role may know.
    pub(super) async fn backends(&self) -> Result<Vec<String>, tokio_postgres::Error> {
        let rows = self.client.query(BACKENDS, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Sets what a role, a database or a server may have set otherwise, and looks at what cannot be.
    /// Gives where the server is.
    async fn make_safe(&self, target: &Target) -> Result<Standing, Fault> {
        let (statement, lock) =
            (target.statement_timeout.as_millis(), target.lock_timeout.as_millis());
        // Every question is for few rows by an index, whatever the statistics say: plans are made
        // once and are these. What is stricter than `on` stays.
        let settings = format!(
            "SET search_path TO {schema}, pg_temp; SET statement_timeout = {statement}; \
             SET lock_timeout = {lock}; SET idle_in_transaction_session_timeout = {statement}; \
             SET default_transaction_isolation = 'read committed'; \
             SET default_transaction_read_only = off; \
             SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
             SET plan_cache_mode = force_generic_plan; SET jit = off; \
             SET client_min_messages = warning; \
             SELECT set_config('synchronous_commit', 'on', false) \
             WHERE current_setting('synchronous_commit') IN ('off', 'local')",
            schema = target.schema,
        );
        self.client.batch_execute(&settings).await?;
        let row = self
            .client
            .query_one(
                "SELECT current_setting('server_version_num')::integer, pg_is_in_recovery(), \
                 current_setting('server_encoding'), current_setting('fsync') = 'on', \
                 current_setting('full_page_writes') = 'on', system_identifier, \
                 CASE WHEN pg_is_in_recovery() THEN 0 ELSE ('x' || substr(pg_walfile_name( \
                 pg_current_wal_lsn()), 1, 8))::bit(32)::integer END FROM pg_control_system()",
                &[],
            )
            .await?;
        let version: i32 = row.get(0);
        if version < VERSION_MIN {
            let major = version / 10_000;
            let what = format!("PostgreSQL {major} is too old: 14 is needed");
            return Err(Fault::Broken(what));
        }
        if row.get(1) {
            return Err(Fault::Lost("the server is a standby, which takes no events".to_owned()));
        }
        let encoding: String = row.get(2);
        if encoding != "UTF8" {
            let what = format!("the database's encoding is {encoding}: make one with UTF8");
            return Err(Fault::Broken(format!("PostgreSQL: {what}")));
        }
        if !row.get::<_, bool>(3) || !row.get::<_, bool>(4) {
            let what =
                "fsync or full_page_writes is off, so nothing it says is durable: turn it on";
            return Err(Fault::Broken(format!("PostgreSQL: {what}")));
        }
        Ok(Standing { system_identifier: row.get(5), timeline: row.get(6) })
    }

    /// Waits for an answer as long as one can take.
    pub(crate) async fn answer<T>(
        &self,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Fault> {
        match timeout(self.answer_timeout, asked).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Fault::timeout()),
        }
    }
}

/// Moves bytes until the connection ends; whoever asked learns of that by its answers.
async fn drive<S, T>(mut connection: tokio_postgres::Connection<S, T>, hear: Hear)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notification(notification) = message {
            hear(notification.payload());
        }
    }
}

/// A connection to a schema that is up to date.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) session: Session,
    pub(super) statements: Statements,
    /// Which history the server has.
    pub(super) history: History,
}

/// Which history, of which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct History {
    pub(super) epoch: u32,
    pub(super) system_identifier: i64,
    pub(super) timeline: i32,
}

impl Connection {
    pub(super) async fn open(target: &Target) -> Result<Self, Fault> {
        let opening = async {
            let session = Session::open(target).await?;
            let history = session.answer(History::look(&session.client)).await?;
            let statements = session.answer(Statements::prepare(&session.client)).await?;
            Ok(Self { session, statements, history })
        };
        opening.await
    }

    pub(super) fn is_closed(&self) -> bool {
        self.session.is_closed()
    }
}

impl std::ops::Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.session.client
    }
}

impl History {
    /// Which history the server has now. A server that was restored or promoted since is another,
    /// or went on from another point: it gets a new epoch, once, whoever notices first.
    pub(super) async fn look(client: &Client) -> Result<Self, tokio_postgres::Error> {
        let fresh = getrandom::u32().unwrap_or_default().cast_signed();
        client.execute(include_str!("sql/renew_epoch.sql"), &[&fresh]).await?;
        let row =
            client.query_one("SELECT epoch, system_identifier, timeline FROM store", &[]).await?;
        let epoch: i32 = row.get(0);
        Ok(Self {
            epoch: epoch.cast_unsigned(),
            system_identifier: row.get(1),
            timeline: row.get(2),
        })
    }
}
