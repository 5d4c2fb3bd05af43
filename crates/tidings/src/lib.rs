//! Tidings: a live-event hub for web applications, to embed or to run.
//!
//! Workers publish events to topics; readers follow topics and resume exactly where they stopped,
//! or are told what is gone. Start at [`Hub`].

pub mod auth;
pub mod clock;
pub mod connection;
pub mod connections;
mod counted;
mod due;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
mod hub;
pub mod journal;
pub mod metrics;
pub mod model;
pub mod publish;
mod quota;
mod retention;
pub mod revocation;
mod ring;
pub mod settings;
pub mod sse;
pub mod subscribe;
pub mod ticket;
mod topic_task;

pub use hub::{Hub, HubBuilder};
