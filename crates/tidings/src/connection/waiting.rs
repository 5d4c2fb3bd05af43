//! A connection while it waits, which is nearly always: what carries thousands of them holds this.
//!
//! The rule: a quiet connection is its position and no more. What it takes to ask the journal is
//! made when it has to be asked, and let go of with the answer.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::{Connection, Next};

/// A connection as bodies are: polled for its bytes.
pub struct Waiting(State);

enum State {
    Quiet(Box<Connection>),
    Working(Working),
    Ended,
}

type Working = Pin<Box<dyn Future<Output = (Box<Connection>, Option<Bytes>)> + Send>>;

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

impl From<Connection> for Waiting {
    fn from(connection: Connection) -> Self {
        Self(State::Quiet(Box::new(connection)))
    }
}

impl Waiting {
    /// The next bytes; `None` once the connection has ended.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let next = match &mut self.0 {
                State::Quiet(connection) => ready!(connection.poll_next(context)),
                State::Working(working) => {
                    let (connection, bytes) = ready!(working.as_mut().poll(context));
                    self.0 = State::Quiet(connection);
                    match bytes {
                        Some(bytes) => Next::Bytes(bytes),
                        None => continue,
                    }
                }
                State::Ended => Next::Ended,
            };
            match next {
                Next::Bytes(bytes) => return Poll::Ready(Some(bytes)),
                Next::Ended => {
                    // Its places are free for others before its last bytes are on their way.
                    self.0 = State::Ended;
                    return Poll::Ready(None);
                }
                Next::Work => {
                    let State::Quiet(mut connection) = std::mem::replace(&mut self.0, State::Ended)
                    else {
                        return Poll::Ready(None);
                    };
                    self.0 = State::Working(Box::pin(async move {
                        let bytes = connection.work().await;
                        (connection, bytes)
                    }));
                }
            }
        }
    }
}
