//! The open connections of this node: who reads what or publishes, by which credential, until when.
//!
//! The rule: an entry lives exactly as long as its connection, whatever ends that. Others change a
//! connection only by leaving an order here, which its own task takes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    auth::Grant,
    error::{ErrorCode, Problem},
    hub::Hub,
    model::{Tenant, Timestamp, Topic, TopicKey},
    sse::GoAway,
    ticket::UsedTicket,
    topic_task::Waker,
};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It follows topics.
    Follow,
    /// It is a long stream of events to publish.
    Publish,
}

impl Role {
    /// `follow` or `publish`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Follow => "follow",
            Self::Publish => "publish",
        }
    }
}

/// An open connection.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// As its first frame told it, if it follows.
    pub id: String,
    /// What it is for.
    pub role: Role,
    /// What its credential allows: tenant, subject, name and end.
    pub grant: Grant,
    /// What it follows; of one that publishes, nothing.
    pub topics: Vec<Topic>,
    /// Since when.
    pub opened_at: Timestamp,
}

/// What is to become of a connection.
#[derive(Debug)]
struct Orders {
    /// Whose leave it reads by, once it has taken what it is told.
    grant: Grant,
    /// Whether it was not told so yet.
    is_renewed: bool,
    /// Why it is to end.
    end: Option<GoAway>,
}

#[derive(Debug)]
struct Entry {
    role: Role,
    topics: Vec<Topic>,
    ticket: Option<UsedTicket>,
    opened_at: Timestamp,
    orders: Mutex<Orders>,
    waker: Arc<Waker>,
}

impl Entry {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an order and calls the connection.
    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders());
        self.waker.call();
    }
}

/// The connections of a hub.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<HashMap<String, Arc<Entry>>>);

impl Connections {
    fn open(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all of them look whether their credential still counts.
    pub(crate) fn call(&self) {
        self.open().values().for_each(|entry| entry.waker.call());
    }
}

/// A connection's place among the open ones. Dropped, it is gone from there.
#[derive(Debug)]
pub(crate) struct Leave {
    hub: Hub,
    id: String,
    entry: Arc<Entry>,
}

/// What a connection is told.
#[derive(Debug)]
pub(crate) enum Told {
    /// To end.
    End(GoAway),
    /// That it reads by another grant from now on.
    Renewed(Grant),
}

impl Leave {
    pub(crate) fn take(
        hub: &Hub,
        id: &str,
        topics: &[TopicKey],
        ticket: Option<UsedTicket>,
        grant: Grant,
        waker: &Arc<Waker>,
    ) -> Self {
        let topics = topics.iter().map(|key| key.topic.clone()).collect();
        Self::enter(hub, id, Role::Follow, topics, ticket, grant, waker)
    }

    /// That of a stream that publishes.
    pub(crate) fn publish(hub: &Hub, id: &str, grant: &Grant, waker: &Arc<Waker>) -> Self {
        Self::enter(hub, id, Role::Publish, Vec::new(), None, grant.clone(), waker)
    }

    fn enter(
        hub: &Hub,
        id: &str,
        role: Role,
        topics: Vec<Topic>,
        ticket: Option<UsedTicket>,
        grant: Grant,
        waker: &Arc<Waker>,
    ) -> Self {
        let entry = Arc::new(Entry {
            role,
            topics,
            ticket,
            opened_at: hub.clock().now(),
            orders: Mutex::new(Orders { grant, is_renewed: false, end: None }),
            waker: Arc::clone(waker),
        });
        // Before anybody asks whether it is revoked, so that no revocation falls in between.
        hub.open_connections().open().insert(id.into(), Arc::clone(&entry));
        Self { hub: hub.clone(), id: id.into(), entry }
    }

    /// Whether the credential has been revoked.
    pub(crate) fn is_revoked(&self) -> bool {
        self.hub.is_revoked(&self.entry.orders().grant)
    }

    /// What is to become of the connection, which was called.
    pub(crate) fn told(&self) -> Option<Told> {
        let mut orders = self.entry.orders();
        if let Some(reason) = orders.end {
            return Some(Told::End(reason));
        }
        if self.hub.is_revoked(&orders.grant) {
            return Some(Told::End(GoAway::Revoked));
        }
        std::mem::take(&mut orders.is_renewed).then(|| Told::Renewed(orders.grant.clone()))
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.hub.open_connections().open().remove(&self.id);
    }
}

impl Hub {
    /// The connections that are open on this node.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let open = self.open_connections().open();
        let info = |(id, entry): (&String, &Arc<Entry>)| ConnectionInfo {
            id: id.clone(),
            role: entry.role,
            grant: entry.orders().grant.clone(),
            topics: entry.topics.clone(),
            opened_at: entry.opened_at,
        };
        open.iter().map(info).collect()
    }

    /// Ends a connection of this node. Returns whether there is one.
    #[must_use]
    pub fn end_connection(&self, id: &str, reason: GoAway) -> bool {
        let Some(entry) = self.open_connections().open().get(id).cloned() else { return false };
        entry.order(|orders| orders.end = Some(reason));
        true
    }

    /// Ends all connections of a subject on this node, and returns how many there were.
    #[must_use]
    pub fn end_subject(&self, tenant: &Tenant, subject: &str) -> usize {
        let is_its = |entry: &&Arc<Entry>| {
            let orders = entry.orders();
            orders.grant.tenant() == tenant && orders.grant.subject() == Some(subject)
        };
        let entries: Vec<Arc<Entry>> =
            self.open_connections().open().values().filter(is_its).cloned().collect();
        for entry in &entries {
            entry.order(|orders| orders.end = Some(GoAway::Drain));
        }
        entries.len()
    }

    /// Has a connection read by another credential of the same subject, which must allow everything
    /// that it reads. Returns what it follows.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if no connection of this subject has the id, and
    /// [`ErrorCode::ForbiddenTopic`] if the credential does not cover a topic; the connection goes on
    /// as before.
    pub async fn renew_connection(&self, id: &str, grant: &Grant) -> Result<Vec<Topic>, Problem> {
        let entry = self.open_connections().open().get(id).cloned();
        // A stream that publishes is not told its id, and sends the rest with another credential.
        let entry = entry
            .filter(|entry| entry.role == Role::Follow && is_same(&entry.orders().grant, grant));
        let Some(entry) = entry else {
            let detail = "this subject has no such connection here";
            return Err(Problem::new(ErrorCode::NotFound, detail));
        };
        // Verified on another node, perhaps with a key that is new.
        self.check_key(grant).await?;
        for topic in &entry.topics {
            if !self.may_read(grant, topic).await? {
                let detail = format!(
                    "this credential may not read the topic {topic}; the connection goes on with \
                     the one that it has"
                );
                return Err(Problem::new(ErrorCode::ForbiddenTopic, detail));
            }
        }
        if let Some(ticket) = &entry.ticket {
            self.renew_ticket(ticket, grant).await?;
        }
        entry.order(|orders| {
            orders.grant = grant.clone();
            orders.is_renewed = true;
        });
        Ok(entry.topics.clone())
    }
}

/// Whether two credentials are of the same subject; without one, whether they are the same.
fn is_same(one: &Grant, other: &Grant) -> bool {
    one.tenant() == other.tenant()
        && one.subject() == other.subject()
        && (one.subject().is_some() || one.credential() == other.credential())
}
