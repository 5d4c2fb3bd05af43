//! Three nodes on one real server or cluster of servers, which is broken while all of them publish and follow.
//!
//! The rule: whatever breaks, what was acknowledged is read by every reader once and in order, or
//! its loss is told ([`history`]); publishers are answered in time; and nobody restarts anything.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and reads better short"
)]

mod history;
mod identity;
mod load;
mod nodes;
mod postgres;
mod promotion;
#[cfg(feature = "amqp")]
mod rabbitmq;
mod redis;
mod redis_cluster;
mod routed;
