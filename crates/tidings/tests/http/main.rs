//! The hub through HTTP: a real listener, real sockets, the memory journal.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod access;
mod connections;
mod cookies;
mod cross_origin;
mod direct;
mod encryption;
mod expiry;
mod follow;
mod frames;
mod identity;
mod interface;
mod isolation;
mod keys;
mod limits;
mod metrics;
mod publish;
mod publishers;
mod resume;
mod support;
mod tickets;
mod topics;
