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

use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

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

/// A commit that is waited for until this is dropped.
#[derive(Debug)]
struct Hanging {
    /// The server's end of its connection, if that is known.
    backend: Option<String>,
    wait: AbortOnDropHandle<()>,
}

/// What the last question gave.
#[derive(Debug, Default)]
pub(super) struct Health {
    failure: Mutex<Option<String>>,
    hanging: Mutex<Vec<Hanging>>,
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
        hanging.retain(|commit| !commit.wait.is_finished());
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
        let backend = connection.session.backend().map(str::to_owned);
        let wait = tokio::spawn(async move { connection.session.until_answered().await });
        hanging.push(Hanging { backend, wait: AbortOnDropHandle::new(wait) });
    }

    /// Waits no more for commits whose connections the server does not have: their answers cannot
    /// come, although a proxy between may keep its side open.
    fn give_up_all_but(&self, backends: &[String]) {
        for Hanging { backend, wait } in self.waiting().iter() {
            if backend.as_ref().is_some_and(|backend| !backends.contains(backend)) {
                wait.abort();
            }
        }
    }

    /// Waits no more.
    pub(super) fn close(&self) {
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Hanging>> {
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
            self.give_up_all_but(&answer(session.backends()).await?);
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

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt as _;
    use tidings_services::Postgres;
    use tokio::{
        io::{copy, split},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::journal::{
        JournalSettings,
        postgres::{PostgresJournal, PostgresOptions},
    };

    /// Longer than anything here takes on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A way to a server whose end towards the client stays open whatever becomes of the other one.
    /// Returns its port.
    async fn proxy(server: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                tokio::spawn(async move {
                    let ((mut from, mut to), (mut answers, mut asks)) =
                        (split(client), split(server));
                    // However either ends, nobody is told.
                    let _ = tokio::join!(copy(&mut from, &mut asks), copy(&mut answers, &mut to));
                    pending::<()>().await;
                });
            }
        });
        port
    }

    /// Broken on purpose: when only an answer or an end is waited for, no event is taken any more.
    #[tokio::test]
    async fn a_commit_whose_connection_the_server_does_not_have_is_waited_for_no_more() {
        let server = Postgres::shared().unwrap();
        let schema = format!("t{}", uuid::Uuid::new_v4().simple());
        let direct = PostgresOptions::new(server.url()).schema(schema);
        PostgresJournal::open(direct.clone(), JournalSettings::default()).await.unwrap();
        let to: u16 = server.url().split([':', '/']).find_map(|part| part.parse().ok()).unwrap();
        let url = server.url().replace(&to.to_string(), &proxy(to).await.to_string());
        let options = PostgresOptions { url, statement_timeout: PATIENCE, ..direct.clone() };
        let connection = Connection::open(&Target::of(&options).unwrap()).await.unwrap();
        let backend = connection.session.backend().unwrap().to_owned();
        let hangs = connection.batch_execute("SELECT pg_sleep(3600)").now_or_never();
        assert!(hangs.is_none());

        let health = Health::default();
        health.wait_for(connection);
        let (target, mut session) = (Target::of(&direct).unwrap(), None);
        health.ask(&target, &mut session).await.unwrap();
        assert!(health.hanging().is_some());
        let end = format!("SELECT pg_terminate_backend({})", backend.split(' ').next().unwrap());
        session.as_ref().unwrap().client.batch_execute(&end).await.unwrap();
        let until_told = async {
            while health.hanging().is_some() {
                health.ask(&target, &mut session).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, until_told).await.expect("it is waited for still");
    }
}
