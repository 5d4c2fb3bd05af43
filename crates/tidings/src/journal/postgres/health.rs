//! Whether the server answers: asked all the time on a connection of its own.
//!
//! The rule: a connection's word that it is alive is not trusted, an answer is.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{connection::Session, fault::Fault, options::Target};

/// Between two questions: a server that died is told within this and one answer's time.
const EVERY: Duration = Duration::from_millis(500);
/// An answer to nothing takes a millisecond.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// What the last question gave.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<String>>);

impl Health {
    pub(super) fn failure(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, failure: Option<String>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
            let mut answer = ask(target, &mut session).await;
            if answer.is_err() {
                session = None;
                on_failure();
                if had_one {
                    answer = ask(target, &mut session).await;
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
}

async fn ask(target: &Target, session: &mut Option<Session>) -> Result<(), Fault> {
    session.take_if(|session| session.is_closed());
    let session = match session {
        Some(session) => session,
        None => session.insert(Session::open(target).await?),
    };
    let question = session.client.simple_query("SELECT 1");
    match timeout(ANSWER_MAX, question).await {
        Ok(answer) => Ok(answer.map(drop)?),
        Err(_) => Err(Fault::timeout()),
    }
}
