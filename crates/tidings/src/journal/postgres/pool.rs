//! The connections that read and change topics: a handful, opened when they are needed.
//!
//! The rule: a connection is used by one at a time, and is kept only if it was given back whole:
//! whoever is cancelled halfway takes it along.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{connection::Connection, fault::Fault, options::Target};

#[derive(Debug)]
pub(super) struct Pool {
    target: Target,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

/// A connection while it is used.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) connection: Connection,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(target: Target, size: usize) -> Self {
        let permits = Arc::new(Semaphore::new(size.max(1)));
        Self { target, idle: Mutex::default(), permits }
    }

    pub(super) async fn take(&self) -> Result<Lease, Fault> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| Fault::Lost("the journal was closed".to_owned()))?;
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(connection) = idle() {
            if !connection.is_closed() {
                return Ok(Lease { connection, _permit: permit });
            }
        }
        let connection = Connection::open(&self.target).await?;
        Ok(Lease { connection, _permit: permit })
    }

    /// Keeps a connection for the next; it is in no transaction.
    pub(super) fn give_back(&self, lease: Lease) {
        if !lease.connection.is_closed() && !self.permits.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(lease.connection);
        }
    }

    /// Forgets the connections that wait: the server that they lead to is gone.
    pub(super) fn forget(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn close(&self) {
        self.permits.close();
        self.forget();
    }
}
