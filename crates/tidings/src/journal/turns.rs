//! Readers take turns: a journal in front of another that bounds how many pages are read at once.
//!
//! The rule: replay never takes all that the journal can do. Reading pages is what readers may cause
//! as much of as they like, so it waits for its turn, in the order of asking and with a share for
//! each tenant; appending and describing, which publishers wait for, never do.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    Appended, Batch, Change, DeleteIf, Due, DueKind, Durability, Found, Head, Journal,
    JournalError, Judged, Locate, Page, PageLimit, Retention, StateQuery, TopicInfo, TopicQuery,
};
use crate::model::{Offset, Tenant, Timestamp, TopicKey};

/// How many pages may be read at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TurnLimit {
    pub(crate) all: usize,
    pub(crate) of_tenant: usize,
}

/// A journal whose readers take turns.
#[derive(Debug)]
pub(crate) struct Turns {
    journal: Arc<dyn Journal>,
    all: Semaphore,
    of_tenant_max: usize,
    /// Only of tenants that have somebody reading or waiting.
    of_tenants: Mutex<HashMap<Tenant, Share>>,
}

#[derive(Debug)]
struct Share {
    turns: Arc<Semaphore>,
    users: usize,
}

impl Turns {
    pub(crate) fn new(journal: Arc<dyn Journal>, limit: TurnLimit) -> Self {
        Self {
            journal,
            all: Semaphore::new(limit.all.max(1)),
            of_tenant_max: limit.of_tenant.max(1),
            of_tenants: Mutex::default(),
        }
    }

    /// Reads when it is this tenant's turn. The hub's own reads are part of answering others.
    async fn read_in_turn<T>(
        &self,
        tenant: &Tenant,
        read: impl Future<Output = Result<T, JournalError>>,
    ) -> Result<T, JournalError> {
        if tenant.is_reserved() {
            return read.await;
        }
        let share = self.share(tenant);
        // A tenant's own first, so that those of a crowded one do not stand in everybody's line.
        let _of_tenant = turn(&share.turns).await?;
        let _of_all = turn(&self.all).await?;
        read.await
    }

    fn share(&self, tenant: &Tenant) -> Using<'_> {
        let mut shares = self.shares();
        let share = shares.entry(tenant.clone()).or_insert_with(|| Share {
            turns: Arc::new(Semaphore::new(self.of_tenant_max)),
            users: 0,
        });
        share.users += 1;
        Using { all: self, tenant: tenant.clone(), turns: Arc::clone(&share.turns) }
    }

    fn shares(&self) -> MutexGuard<'_, HashMap<Tenant, Share>> {
        self.of_tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>, JournalError> {
    turns.acquire().await.map_err(|error| JournalError::Unavailable(error.to_string()))
}

/// A tenant's share, while somebody uses it.
struct Using<'a> {
    all: &'a Turns,
    tenant: Tenant,
    turns: Arc<Semaphore>,
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        let mut shares = self.all.shares();
        if let Some(share) = shares.get_mut(&self.tenant) {
            share.users -= 1;
            if share.users == 0 {
                shares.remove(&self.tenant);
            }
        }
    }
}

#[async_trait]
impl Journal for Turns {
    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        self.read_in_turn(&topic.tenant, self.journal.read(topic, after, limit)).await
    }

    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError> {
        self.read_in_turn(&topic.tenant, self.journal.states(topic, query)).await
    }

    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        self.read_in_turn(&topic.tenant, self.journal.locate(topic, from)).await
    }

    async fn topics(&self, query: TopicQuery) -> Found<TopicInfo> {
        let Some(tenant) = query.tenant.clone() else { return self.journal.topics(query).await };
        let found = async { Ok(self.journal.topics(query).await) };
        self.read_in_turn(&tenant, found).await.unwrap_or_else(|error| Err(error).into())
    }

    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError> {
        self.journal.append(topic, batch).await
    }

    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        self.journal.describe(topic).await
    }

    async fn describe_all(&self, topics: &[TopicKey]) -> Vec<Result<TopicInfo, JournalError>> {
        self.journal.describe_all(topics).await
    }

    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        self.journal.set_properties(topic, change).await
    }

    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        self.journal.delete(topic, condition).await
    }

    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError> {
        self.journal.trim(topic, retention, now).await
    }

    async fn due(&self, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due> {
        self.journal.due(kind, now, limit).await
    }

    fn failure(&self) -> Option<String> {
        self.journal.failure()
    }

    fn failure_of(&self, topic: &TopicKey) -> Option<String> {
        self.journal.failure_of(topic)
    }

    fn durability(&self, topic: &TopicKey) -> Durability {
        self.journal.durability(topic)
    }

    fn durabilities(&self) -> Vec<Durability> {
        self.journal.durabilities()
    }

    fn damaged_places(&self) -> usize {
        self.journal.damaged_places()
    }

    async fn close(&self) {
        self.journal.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{JournalSettings, contract::Store, memory::MemoryJournal},
        journal_contract,
    };

    async fn store(settings: JournalSettings) -> Store {
        let memory = Arc::new(MemoryJournal::new(settings));
        Store::new(Arc::new(Turns::new(memory, TurnLimit { all: 1, of_tenant: 1 })))
    }

    journal_contract!(turns, store);
}
