//! A writer: one task with one connection, which appends what queued up in one transaction.
//!
//! The rule: what queued up while the last commit ran is the next one, whatever topics it is for. A
//! commit whose answer was lost is looked for before it is done again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use super::{
    Shared,
    commit::{self, Answers, Failed, Fate, Lost, Witness},
    connection::{Connection, History},
    fault::Fault,
};
use crate::{
    journal::{Appended, Batch, JournalError},
    model::{
        TopicKey,
        limits::{COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX},
    },
};

/// Appends that wait for a writer; beyond it publishers wait.
pub(super) const REQUESTS_MAX: usize = 1024;
/// Between two tries: a server that restarts is up within a second.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// An append that waits.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) topic: TopicKey,
    pub(super) batch: Batch,
    pub(super) reply: oneshot::Sender<Result<Appended, JournalError>>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    connection: Option<Connection>,
}

impl Writer {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared, connection: None }
    }

    /// Works until nobody can ask any more.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.recv().await {
            let mut group = Vec::new();
            let (mut events, mut bytes) = (0, 0);
            let mut next = Some(first);
            while let Some(request) = next.take() {
                events += request.batch.events.len().max(1);
                let data = request.batch.events.iter().map(|append| append.event.data.len());
                bytes += data.sum::<usize>();
                group.push(request);
                if events < COMMIT_EVENTS_MAX && bytes < COMMIT_BYTES_MAX {
                    next = requests.try_recv().ok();
                }
            }
            // What queued up behind a commit that hangs is not another one that does.
            if let Err(error) = self.shared.takes_changes() {
                refuse(group, &error);
                continue;
            }
            let deadline = Instant::now() + self.shared.append_timeout;
            match self.append(&group, deadline).await {
                Ok(answers) => answer(group, answers),
                // One topic that somebody holds must not keep the others back.
                Err(fault) if fault.is_lock() => self.append_each(group).await,
                Err(fault) => refuse(group, &fault.into()),
            }
        }
    }

    /// Appends topic by topic, each with its own time.
    async fn append_each(&mut self, group: Vec<Request>) {
        let mut by_topic: HashMap<TopicKey, Vec<Request>> = HashMap::new();
        for request in group {
            by_topic.entry(request.topic.clone()).or_default().push(request);
        }
        for group in by_topic.into_values() {
            // Each that hangs would keep a connection, and all behind it wait.
            if let Err(error) = self.shared.takes_changes() {
                refuse(group, &error);
                continue;
            }
            match self.append(&group, Instant::now()).await {
                Ok(answers) => answer(group, answers),
                Err(fault) => refuse(group, &fault.into()),
            }
        }
    }

    /// Appends a group; tries again what may pass, until the deadline. Once at least.
    async fn append(&mut self, group: &[Request], deadline: Instant) -> Result<Answers, Fault> {
        let batches: Vec<_> =
            group.iter().map(|request| (&request.topic, &request.batch)).collect();
        loop {
            let fault = match self.try_append(&batches, deadline).await {
                Ok(answers) => return Ok(answers),
                Err(fault) => fault,
            };
            if !fault.is_passing() || fault.is_lock() || Instant::now() >= deadline {
                return Err(fault);
            }
            tracing::debug!(?fault, "an append is tried again");
            if fault.is_lost() {
                sleep(TRY_AGAIN).await;
            }
        }
    }

    async fn try_append(
        &mut self,
        batches: &[(&TopicKey, &Batch)],
        deadline: Instant,
    ) -> Result<Answers, Fault> {
        let shared = Arc::clone(&self.shared);
        let connection = self.connected().await?;
        let history = connection.history;
        let appended =
            commit::append(connection, &shared.target.schema, &shared.settings, batches).await;
        match appended {
            Ok(answers) => Ok(answers),
            Err(Failed::NotStored(fault)) => {
                // What was not answered in time is not asked for more.
                if fault.is_lost() {
                    self.connection = None;
                } else {
                    self.leave_transaction().await;
                }
                Err(fault)
            }
            Err(Failed::Unknown(lost)) => {
                if let Some(connection) = self.connection.take_if(|it| !it.is_closed()) {
                    shared.health.wait_for(connection);
                }
                self.connection = None;
                let Lost { witness, answers, fault } = *lost;
                let Some(witness) = witness else { return Err(fault) };
                match self.find_out(&witness, history, deadline).await {
                    Fate::Stored => Ok(answers),
                    Fate::NotStored => Err(fault),
                    Fate::Open | Fate::Unknown => Err(Fault::Uncertain(fault.to_string())),
                }
            }
        }
    }

    /// Looks for a transaction whose answer was lost.
    async fn find_out(&mut self, witness: &Witness, history: History, deadline: Instant) -> Fate {
        loop {
            let fate = match self.connected().await {
                // Another history does not know this one's transactions.
                Ok(connection) if connection.history != history => return Fate::Unknown,
                Ok(connection) => witness.fate(connection).await,
                Err(fault) => Err(fault),
            };
            match fate {
                Ok(Fate::Open) => {}
                Ok(fate) => return fate,
                Err(_) => self.connection = None,
            }
            if Instant::now() >= deadline {
                return Fate::Unknown;
            }
            sleep(TRY_AGAIN).await;
        }
    }

    async fn connected(&mut self) -> Result<&Connection, Fault> {
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.connection = None;
            self.connection = Some(Connection::open(&self.shared.target).await?);
        }
        self.connection.as_ref().ok_or_else(Fault::timeout)
    }

    /// Leaves a transaction that failed; a connection that cannot is given up.
    async fn leave_transaction(&mut self) {
        let Some(connection) = &self.connection else { return };
        let left = connection.session.answer(connection.batch_execute("ROLLBACK")).await;
        if left.is_err() {
            self.connection = None;
        }
    }
}

/// Answers everybody. Whoever asked may have gone away.
fn answer(group: Vec<Request>, answers: Answers) {
    for (request, answer) in group.into_iter().zip(answers) {
        let _ = request.reply.send(answer);
    }
}

fn refuse(group: Vec<Request>, error: &JournalError) {
    for request in group {
        let _ = request.reply.send(Err(error.clone()));
    }
}
