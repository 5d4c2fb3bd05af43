//! The journal in PostgreSQL: for any number of nodes on one database.
//!
//! The rule: whoever changes a topic holds the lock of its row until that is committed, so commit
//! order is offset order, on whichever node; and locks of more than one row are taken by ascending
//! id. What queued up, of all topics, is one transaction.
//!
//! What is stored where stands in `migrations/`, what is asked in `sql/`, and why in
//! docs/adr/0010-postgres-journal.md.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Appended, Batch, Change, DeleteIf, Due, DueKind, Found, Head, Journal, JournalError,
    JournalSettings, Judged, Locate, Page, PageLimit, Retention, StateQuery, TopicInfo, TopicQuery,
};
use crate::{
    clock::{Clock, SystemClock},
    model::{Offset, Timestamp, TopicKey, limits::JOURNAL_CLOSE_MAX},
};

mod change;
mod commit;
mod connection;
mod fault;
mod head;
mod health;
mod migrate;
mod options;
mod pool;
mod reads;
mod servers;
mod stage;
mod tls;
mod writer;

use commit::Failed;
pub(crate) use connection::Session;
pub(crate) use fault::Fault;
use health::Health;
pub(crate) use migrate::Migrations;
pub(crate) use options::Target;
pub use options::{Migrate, PostgresOptions, SCHEMA};
use pool::{Lease, Pool};
pub use servers::Lineage;
use writer::{REQUESTS_MAX, Request, Writer};

/// How often a read is tried while connections of a server that is gone are met.
const READ_TRIES: usize = 3;
/// Between two looks for deleted topics whose rows are left, of this node or of one that died.
const REMOVE_EVERY: Duration = Duration::from_secs(60);
/// Damaged places that are remembered, so that each is logged once.
const DAMAGED_MAX: usize = 1000;

/// Reads on some connection, and on another where that was of a server that is gone. No function:
/// what an async closure borrows keeps its future from being sent to another thread.
macro_rules! reading {
    ($shared:expr, $connection:ident => $read:expr) => {
        async {
            let shared: &Shared = &$shared;
            shared.usable()?;
            let mut tries = 0;
            loop {
                let lease = shared.pool.take().await?;
                let $connection = &lease.connection;
                let read = $read.await;
                if let Some(answer) = shared.settle_read(lease, read, &mut tries) {
                    break answer;
                }
            }
        }
        .await
    };
}

/// Changes something, and again as long as nothing was done and the reason may pass.
macro_rules! changing {
    ($shared:expr, $connection:ident => $change:expr) => {
        async {
            let shared: &Shared = &$shared;
            let deadline = Instant::now() + shared.append_timeout;
            loop {
                shared.takes_changes()?;
                let lease = shared.pool.take().await?;
                // What hangs may have begun to while this waited for a connection.
                if let Err(error) = shared.takes_changes() {
                    shared.pool.give_back(lease);
                    break Err(error);
                }
                let $connection = &lease.connection;
                let changed = $change.await;
                if let Some(answer) = shared.settle_change(lease, changed, deadline) {
                    break answer;
                }
            }
        }
        .await
    };
}

/// A journal in a PostgreSQL database.
#[derive(Debug)]
pub struct PostgresJournal {
    shared: Arc<Shared>,
    /// One for each writer; none once the journal is closed.
    writers: Mutex<Vec<mpsc::Sender<Request>>>,
    tasks: TaskTracker,
    stopped: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    settings: JournalSettings,
    append_timeout: Duration,
    clock: Arc<dyn Clock>,
    health: Health,
    pool: Pool,
    damaged: Mutex<HashSet<String>>,
    /// Told when a topic was deleted.
    deleted: Notify,
}

/// Brings the journal's schema up to date; returns how many steps that took.
///
/// # Errors
/// [`JournalError::Unavailable`]: the server does not answer. [`JournalError::Broken`] says what a
/// person must do: the options are wrong, the role may not, or the schema is of a newer version.
pub async fn migrate(options: &PostgresOptions) -> Result<usize, JournalError> {
    migrate::JOURNAL.run(&Target::of(options)?).await
}

impl PostgresJournal {
    /// Opens the journal in a schema, bringing that up to date unless told otherwise.
    ///
    /// # Errors
    /// As [`migrate`]; and [`JournalError::Broken`] if the schema is not up to date and is not to be
    /// brought there, or the server is set to forget.
    pub async fn open(
        options: PostgresOptions,
        settings: JournalSettings,
    ) -> Result<Arc<Self>, JournalError> {
        Self::open_with_clock(options, settings, Arc::new(SystemClock)).await
    }

    /// Opens it with a clock that says when topics are created that have no events.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with_clock(
        options: PostgresOptions,
        settings: JournalSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, JournalError> {
        let target = Target::of(&options)?;
        match options.migrate {
            Migrate::Automatic if migrate::JOURNAL.check(&target).await.is_ok() => {}
            Migrate::Automatic => drop(migrate::JOURNAL.run(&target).await?),
            Migrate::ByCommand => migrate::JOURNAL.check(&target).await?,
        }
        let shared = Arc::new(Shared {
            pool: Pool::new(target.clone(), options.readers),
            target,
            settings,
            append_timeout: options.append_timeout,
            clock,
            health: Health::default(),
            damaged: Mutex::default(),
            deleted: Notify::new(),
        });
        let first = shared.pool.take().await?;
        shared.pool.give_back(first);
        let (tasks, stopped) = (TaskTracker::new(), CancellationToken::new());
        let writers = (0..options.writers.max(1)).map(|_| {
            let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
            tasks.spawn(Writer::new(Arc::clone(&shared)).run(receiver));
            requests
        });
        let writers = Mutex::new(writers.collect());
        let watching = Arc::clone(&shared);
        tasks.spawn(stopped.clone().run_until_cancelled_owned(async move {
            watching.health.watch(&watching.target, || watching.pool.forget()).await;
        }));
        let removing = Arc::clone(&shared);
        tasks.spawn(stopped.clone().run_until_cancelled_owned(async move {
            removing.remove_deleted().await;
        }));
        Ok(Arc::new(Self { shared, writers, tasks, stopped }))
    }

    /// The writer of a topic: always the same, so that its events stay in order.
    fn writer(&self, topic: &TopicKey) -> Result<mpsc::Sender<Request>, JournalError> {
        let writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hasher = DefaultHasher::new();
        topic.hash(&mut hasher);
        let count = u64::try_from(writers.len()).unwrap_or(u64::MAX);
        let place = hasher.finish().checked_rem(count).and_then(|at| usize::try_from(at).ok());
        place.and_then(|at| writers.get(at)).cloned().ok_or_else(closed)
    }
}

fn closed() -> JournalError {
    JournalError::Unavailable("the journal was closed".to_owned())
}

/// A record of a topic is wrong.
fn damaged(topic: &TopicKey, what: &dyn std::fmt::Display) -> JournalError {
    JournalError::Broken(format!(
        "topic {} of tenant {}: {what}; restore the database, or delete the topic",
        topic.topic, topic.tenant
    ))
}

impl Shared {
    /// Logs damage once, and counts it.
    fn met(&self, error: &JournalError) {
        let JournalError::Broken(what) = error else { return };
        let mut met = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if met.contains(what) {
            return;
        }
        tracing::error!(error = what, "the journal is damaged");
        if met.len() < DAMAGED_MAX {
            met.insert(what.clone());
        }
    }

    fn usable(&self) -> Result<(), JournalError> {
        self.health.failure().map_or(Ok(()), |reason| Err(JournalError::Unavailable(reason)))
    }

    /// Fails also while commits hang: another one would hang too, and hold what it locks.
    fn takes_changes(&self) -> Result<(), JournalError> {
        self.usable()?;
        self.health.hanging().map_or(Ok(()), |reason| Err(JournalError::Unavailable(reason)))
    }

    /// Gives a read's answer, or `None` to try it on another connection: one of a server that is
    /// gone may have been met.
    fn settle_read<T>(
        &self,
        lease: Lease,
        read: Result<T, Fault>,
        tries: &mut usize,
    ) -> Option<Result<T, JournalError>> {
        *tries += 1;
        match read {
            Ok(value) => {
                self.pool.give_back(lease);
                Some(Ok(value))
            }
            Err(fault) if fault.is_lost() && *tries <= READ_TRIES => {
                self.pool.forget();
                None
            }
            Err(fault) => Some(Err(fault.into())),
        }
    }

    /// Gives a change's answer, or `None` to try it again, as long as nothing was done and the
    /// reason may pass.
    fn settle_change<T>(
        &self,
        lease: Lease,
        change: Result<Result<T, JournalError>, Failed>,
        deadline: Instant,
    ) -> Option<Result<T, JournalError>> {
        let fault = match change {
            Ok(value) => {
                self.pool.give_back(lease);
                return Some(value.inspect_err(|error| self.met(error)));
            }
            Err(Failed::NotStored(fault)) => fault,
            Err(Failed::Unknown(lost)) => Fault::Uncertain(lost.fault.to_string()),
        };
        if fault.is_unanswered() && !lease.connection.is_closed() {
            self.health.wait_for(lease.connection);
        }
        if !fault.is_passing() || fault.is_lock() || Instant::now() >= deadline {
            return Some(Err(fault.into()));
        }
        if fault.is_lost() {
            self.pool.forget();
        }
        None
    }

    /// Removes what deleted topics left, for ever.
    async fn remove_deleted(&self) {
        loop {
            let removed = changing!(self, connection => async {
                change::remove_deleted(connection).await.map(Ok)
            });
            match removed {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "rows of deleted topics stay for now"),
            }
            tokio::select! {
                () = self.deleted.notified() => {}
                () = sleep(REMOVE_EVERY) => {}
            }
        }
    }
}

#[async_trait]
impl Journal for PostgresJournal {
    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError> {
        let requests = self.writer(topic)?;
        // Nobody waits behind a server that does not answer.
        self.shared.takes_changes()?;
        let (reply, answer) = oneshot::channel();
        let request = Request { topic: topic.clone(), batch, reply };
        requests.send(request).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?.inspect_err(|error| self.shared.met(error))
    }

    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        let page = reading!(self.shared, on => reads::read(on, topic, after, limit))?;
        page.inspect_err(|error| self.shared.met(error))
    }

    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError> {
        let page = reading!(self.shared, on => reads::states(on, topic, &query))?;
        page.inspect_err(|error| self.shared.met(error))
    }

    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        let info = reading!(self.shared, on => reads::describe(on, topic))?;
        info.inspect_err(|error| self.shared.met(error))
    }

    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        let offset = reading!(self.shared, on => reads::locate(on, topic, from))?;
        offset.inspect_err(|error| self.shared.met(error))
    }

    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        let (schema, now) = (&self.shared.target.schema, self.shared.clock.now());
        changing!(self.shared, on => change::set_properties(on, schema, topic, &change, now))
    }

    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        let schema = &self.shared.target.schema;
        let deleted = changing!(self.shared, on => change::delete(on, schema, topic, &condition))?;
        self.shared.deleted.notify_one();
        Ok(deleted)
    }

    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError> {
        let head = loop {
            let (head, may_be_more) =
                changing!(self.shared, on => change::trim(on, topic, retention, now))?;
            if !may_be_more {
                break head;
            }
        };
        let settings = &self.shared.settings;
        let forget = async || {
            changing!(self.shared, on => async {
                change::forget_ids(on, topic, settings, now).await.map(Ok).map_err(Failed::from)
            })
        };
        while forget().await? {}
        Ok(head)
    }

    async fn due(&self, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due> {
        let due = async || {
            reading!(self.shared, on => {
                reads::due(on, kind, now, limit, |error| self.shared.met(error))
            })
        };
        due().await.into()
    }

    async fn topics(&self, query: TopicQuery) -> Found<TopicInfo> {
        let topics = async || reading!(self.shared, on => reads::topics(on, &query, |error| self.shared.met(error)));
        topics().await.into()
    }

    fn failure(&self) -> Option<String> {
        if self.stopped.is_cancelled() {
            return Some("the journal was closed".to_owned());
        }
        self.shared.health.failure().or_else(|| self.shared.health.hanging())
    }

    fn damaged_places(&self) -> usize {
        self.shared.damaged.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    async fn close(&self) {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.stopped.cancel();
        self.tasks.close();
        // Writers finish what was accepted.
        if timeout(JOURNAL_CLOSE_MAX, self.tasks.wait()).await.is_err() {
            tracing::error!("the server does not answer: the journal was not closed in order");
        }
        self.shared.health.close();
        self.shared.pool.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{journal::contract::Store, journal_contract};

    /// In a schema of its own.
    async fn store(settings: JournalSettings) -> Store {
        let server = tidings_services::Postgres::shared().unwrap();
        let schema = format!("t{}", uuid::Uuid::new_v4().simple());
        // All cases run at once on one server: what is tested is not how fast it is.
        let patience = Duration::from_secs(30);
        let options = PostgresOptions {
            connect_timeout: patience,
            statement_timeout: patience,
            ..PostgresOptions::new(server.url()).schema(schema)
        };
        let journal = PostgresJournal::open(options.clone(), settings).await.unwrap();
        let reopen = move || {
            let options = options.clone();
            async move { PostgresJournal::open(options, settings).await.unwrap() as Arc<dyn Journal> }
        };
        Store::new(journal).reopened_by(reopen).keeping(server)
    }

    journal_contract!(postgres, store);
}
