//! The open connections of this node: who reads what, by which credential, until when.
//!
//! The rule: an entry lives exactly as long as its connection, whatever ends that. Others change a
//! connection only by leaving an order here, which its own task takes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    auth::Grant,
    error::{ErrorCode, Problem},
    hub::Hub,
    model::{Timestamp, Topic, TopicKey},
    sse::GoAway,
    ticket::UsedTicket,
};

/// An open connection.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// As its first frame told it.
    pub id: String,
    /// What its credential allows: tenant, subject, name and end.
    pub grant: Grant,
    /// What it follows.
    pub topics: Vec<Topic>,
    /// Since when.
    pub opened_at: Timestamp,
}

/// What is to become of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Orders {
    /// Whose leave it reads by.
    pub(crate) grant: Grant,
    /// Why it is to end.
    pub(crate) end: Option<GoAway>,
}

#[derive(Debug)]
struct Entry {
    topics: Vec<Topic>,
    ticket: Option<UsedTicket>,
    opened_at: Timestamp,
    orders: watch::Sender<Orders>,
}

/// The connections of a hub.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<HashMap<String, Arc<Entry>>>);

impl Connections {
    fn open(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the open ones. Dropped, it is gone from there.
#[derive(Debug)]
pub(crate) struct Leave {
    hub: Hub,
    id: String,
    orders: watch::Receiver<Orders>,
    arrivals: watch::Receiver<u64>,
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
    ) -> Self {
        let entry = Entry {
            topics: topics.iter().map(|key| key.topic.clone()).collect(),
            ticket,
            opened_at: hub.clock().now(),
            orders: watch::Sender::new(Orders { grant, end: None }),
        };
        let orders = entry.orders.subscribe();
        // Before anybody asks whether it is revoked, so that no revocation falls in between.
        let arrivals = hub.revocations().arrivals();
        hub.open_connections().open().insert(id.into(), Arc::new(entry));
        Self { hub: hub.clone(), id: id.into(), orders, arrivals }
    }

    /// Whether the credential has been revoked.
    pub(crate) fn is_revoked(&self) -> bool {
        let orders = self.orders.borrow();
        self.hub.is_revoked(&orders.grant)
    }

    /// Waits for something that is to become of the connection.
    ///
    /// Cancel-safe.
    pub(crate) async fn told(&mut self) -> Told {
        loop {
            tokio::select! {
                biased;
                // Its sender is in the entry, which lives as long as this.
                _ = self.orders.changed() => {
                    let Orders { grant, end } = self.orders.borrow_and_update().clone();
                    return match end {
                        Some(reason) => Told::End(reason),
                        None => Told::Renewed(grant),
                    };
                }
                _ = self.arrivals.changed() => {
                    if self.is_revoked() {
                        return Told::End(GoAway::Revoked);
                    }
                }
            }
        }
    }

    /// The same without waiting.
    pub(crate) fn told_now(&mut self) -> Option<Told> {
        use futures_util::FutureExt as _;
        self.told().now_or_never()
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
            grant: entry.orders.borrow().grant.clone(),
            topics: entry.topics.clone(),
            opened_at: entry.opened_at,
        };
        open.iter().map(info).collect()
    }

    /// Ends a connection of this node. Returns whether there is one.
    #[must_use]
    pub fn end_connection(&self, id: &str, reason: GoAway) -> bool {
        let Some(entry) = self.open_connections().open().get(id).cloned() else { return false };
        entry.orders.send_modify(|orders| orders.end = Some(reason));
        true
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
        let entry = entry.filter(|entry| is_same(&entry.orders.borrow().grant, grant));
        let Some(entry) = entry else {
            let detail = "this subject has no such connection here";
            return Err(Problem::new(ErrorCode::NotFound, detail));
        };
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
        entry.orders.send_modify(|orders| orders.grant = grant.clone());
        Ok(entry.topics.clone())
    }
}

/// Whether two credentials are of the same subject; without one, whether they are the same.
fn is_same(one: &Grant, other: &Grant) -> bool {
    one.tenant() == other.tenant()
        && one.subject() == other.subject()
        && (one.subject().is_some() || one.credential() == other.credential())
}
