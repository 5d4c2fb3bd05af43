//! Whether the server answers: asked all the time on a connection of its own; and whether it commits.
//!
//! The rule: a connection's word that it is alive is not trusted, an answer is. A commit that is not
//! answered in time is waited for on its connection, and until it is done no other one begins: reading
//! goes on.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    connection::{Connection, History, Session},
    fault::Fault,
    options::Target,
};

/// Between two questions: a server that died is told within this and one answer's time.
const EVERY: Duration = Duration::from_millis(500);
/// An answer to nothing takes a millisecond.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Whether commits of this role wait for a standby, which only its own sessions show to it.
const WAITS_FOR_STANDBY: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity \
                                 WHERE wait_event = 'SyncRep' AND usename = current_user)";
/// Why commits hang that do.
const NO_STANDBY: &str = "commits wait for a synchronous standby, and none that \
                          synchronous_standby_names asks for answers";
/// Why others do.
const NO_ANSWER: &str = "a commit was not answered in time and is not done yet";

/// What the last question gave.
#[derive(Debug, Default)]
pub(super) struct Health {
    failure: Mutex<Option<String>>,
    /// Each waits for a commit.
    hanging: Mutex<JoinSet<()>>,
    /// Whether they wait for a standby, when it was last asked.
    lacks_standby: AtomicBool,
}

impl Health {
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why commits are not done now; `None` while they are.
    pub(super) fn hanging(&self) -> Option<String> {
        let mut hanging = self.waiting();
        let had_some = !hanging.is_empty();
        while hanging.try_join_next().is_some() {}
        if hanging.is_empty() {
            if had_some {
                tracing::info!("the commits that hung are done");
            }
            return None;
        }
        let lacks_standby = self.lacks_standby.load(Ordering::Relaxed);
        let why = if lacks_standby { NO_STANDBY } else { NO_ANSWER };
        Some(format!("PostgreSQL: {why}"))
    }

    /// Waits on a connection until what was asked last is done.
    pub(super) fn wait_for(&self, connection: Connection) {
        let mut hanging = self.waiting();
        if hanging.is_empty() {
            tracing::error!("a commit hangs: the journal takes no events until it is done");
        }
        hanging.spawn(async move { connection.session.until_answered().await });
    }

    /// Waits no more.
    pub(super) fn close(&self) {
        self.waiting().abort_all();
    }

    fn waiting(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.hanging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, failure: Option<String>) {
        let mut told = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*told, &failure) {
            (None, Some(reason)) => tracing::error!(reason, "the journal takes no events"),
            (Some(_), None) => tracing::info!("the journal takes events again"),
            _ => {}
        }
        *told = failure;
    }

    /// Asks for ever.
    pub(super) async fn watch(&self, target: &Target, on_failure: impl Fn()) {
        let mut session = None;
        loop {
            // One connection that ended is not the server's end: it is asked on another one first.
            let had_one = session.is_some();
            let mut answer = self.ask(target, &mut session).await;
            if answer.is_err() {
                session = None;
                on_failure();
                if had_one {
                    answer = self.ask(target, &mut session).await;
                }
            }
            match answer {
                Ok(()) => self.set(None),
                Err(fault) => {
                    session = None;
                    self.set(Some(crate::journal::JournalError::from(fault).to_string()));
                }
            }
            sleep(EVERY).await;
        }
    }

    async fn ask(&self, target: &Target, session: &mut Option<Session>) -> Result<(), Fault> {
        session.take_if(|session| session.is_closed());
        let session = match session {
            Some(session) => session,
            None => {
                let opened = Session::open(target).await?;
                // A history that cannot be noted down lets nobody in.
                if let Err(fault) = opened.answer(History::look(&opened.client)).await {
                    let lacks_standby = waits_for_standby(&opened).await?;
                    return Err(if lacks_standby {
                        Fault::Lost(NO_STANDBY.to_owned())
                    } else {
                        fault
                    });
                }
                session.insert(opened)
            }
        };
        if self.hanging().is_some() {
            self.lacks_standby.store(waits_for_standby(session).await?, Ordering::Relaxed);
            return Ok(());
        }
        answer(session.client.simple_query("SELECT 1")).await.map(drop)
    }
}

async fn waits_for_standby(session: &Session) -> Result<bool, Fault> {
    let row = answer(session.client.query_one(WAITS_FOR_STANDBY, &[])).await?;
    Ok(row.get(0))
}

async fn answer<T>(
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Fault> {
    match timeout(ANSWER_MAX, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Fault::timeout()),
    }
}
