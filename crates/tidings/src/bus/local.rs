//! A bus between hubs of one process: they share a journal in memory, as nodes share a server.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use tokio::sync::{
    Mutex,
    broadcast::{self, error::RecvError},
    mpsc,
};

use super::{Announcement, Bus, Heard};
use crate::model::TopicKey;

/// Announcements that a hub is behind before it is told that it missed some.
const BEHIND_MAX: usize = 1024;
/// Topics whose readers came and were not looked at yet; of more, all are looked at.
const FOLLOWED_MAX: usize = 1024;

/// One hub's end of the bus. Each [`LocalBus::join`] is another's.
#[derive(Debug)]
pub struct LocalBus {
    /// `None` once it was closed.
    others: RwLock<Option<broadcast::Sender<Announcement>>>,
    heard: Mutex<Ears>,
    followed: mpsc::Sender<TopicKey>,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Ears {
    announced: broadcast::Receiver<Announcement>,
    followed: mpsc::Receiver<TopicKey>,
}

impl LocalBus {
    /// A bus without others.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::on(broadcast::Sender::new(BEHIND_MAX))
    }

    /// Another end of the same bus; of a closed one, an end of another.
    #[must_use]
    pub fn join(&self) -> Arc<Self> {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner).clone();
        Self::on(others.unwrap_or_else(|| broadcast::Sender::new(BEHIND_MAX)))
    }

    fn on(others: broadcast::Sender<Announcement>) -> Arc<Self> {
        let (sender, followed) = mpsc::channel(FOLLOWED_MAX);
        let heard = Mutex::new(Ears { announced: others.subscribe(), followed });
        let others = RwLock::new(Some(others));
        Arc::new(Self { others, heard, followed: sender, dropped: AtomicU64::new(0) })
    }
}

#[async_trait]
impl Bus for LocalBus {
    fn announce(&self, announcement: Announcement) {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let said = others.as_ref().map(|others| others.send(announcement));
        if !matches!(said, Some(Ok(_))) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn follow(&self, topic: &TopicKey) {
        if self.followed.try_send(topic.clone()).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn unfollow(&self, _: &TopicKey) {}

    async fn heard(&self) -> Heard {
        let mut ears = self.heard.lock().await;
        let Ears { announced, followed } = &mut *ears;
        tokio::select! {
            biased;
            Some(topic) = followed.recv() => Heard::Missed(Some(topic)),
            announced = announced.recv() => match announced {
                Ok(announcement) => Heard::Announced(announcement),
                Err(RecvError::Lagged(_)) => Heard::Missed(None),
                // Nobody is left to say anything.
                Err(RecvError::Closed) => std::future::pending().await,
            },
        }
    }

    fn failure(&self) -> Option<String> {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        others.is_none().then(|| "the bus was closed".to_owned())
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    async fn close(&self) {
        *self.others.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bus::contract::Pair, bus_contract};

    async fn pair() -> Pair {
        let one = LocalBus::new();
        let other = one.join();
        Pair::new(one, other)
    }

    bus_contract!(local, pair);
}
