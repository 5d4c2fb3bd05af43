//! The bus: what one node tells the others. This is the port; adapters are its files.
//!
//! The rule: a bus may lose, double and reorder whatever it is told, and nothing is lost by it. What
//! it says is a hint: it makes a node look into the journal, which it does now and then unasked.
//! `contract` holds what an adapter owes while its server works.

use async_trait::async_trait;

use crate::model::TopicKey;

#[cfg(any(test, feature = "contract"))]
pub mod contract;
#[cfg(any(feature = "amqp", feature = "postgres", feature = "redis"))]
mod ears;
pub mod local;
mod message;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "amqp")]
pub mod rabbitmq;
#[cfg(feature = "redis")]
pub mod redis;

pub use message::{Announcement, Codec};

/// Lossy announcements between the nodes that share a journal.
#[async_trait]
pub trait Bus: std::fmt::Debug + Send + Sync + 'static {
    /// Tells the other nodes. Never waits: what does not fit into the bus is dropped and counted by
    /// [`Bus::dropped`].
    fn announce(&self, announcement: Announcement);

    /// Readers follow the topic here from now on. Once announcements of it arrive,
    /// [`Heard::Missed`] names it: what was said before is not known.
    fn follow(&self, topic: &TopicKey);

    /// Nobody follows the topic here any more; announcements of it may still arrive.
    fn unfollow(&self, topic: &TopicKey);

    /// Waits for what another node says. It may say it to the one that said it, too. One caller at
    /// a time; what a dropped future would have heard is heard by the next.
    async fn heard(&self) -> Heard;

    /// Why nothing is heard now; `None` while the bus works.
    fn failure(&self) -> Option<String>;

    /// Announcements that this node dropped because there were too many at once.
    fn dropped(&self) -> u64;

    /// Releases the bus. What was announced before may not be heard.
    async fn close(&self);
}

/// What a node hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Another node's announcement, or one's own.
    Announced(Announcement),
    /// Something may not have been heard: of this topic, or of any.
    Missed(Option<TopicKey>),
}
