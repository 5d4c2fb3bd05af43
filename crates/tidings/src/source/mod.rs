//! Sources: where events come from besides the hub's own interface.
//!
//! The rule: a source publishes as everybody does, takes what it got for done only once it is
//! durable, and can fail without the hub.

#[cfg(feature = "amqp")]
pub mod amqp;
#[cfg(feature = "postgres")]
pub mod outbox;
