//! Tidings: a live-event hub for web applications, to embed or to run.
//!
//! Workers publish events to topics; readers follow topics and resume exactly where they stopped,
//! or are told what is gone. Start at [`Hub`].

#[cfg(feature = "amqp")]
pub mod amqp;
pub mod auth;
pub mod bus;
pub mod clock;
pub mod cluster;
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
mod ingest;
pub mod journal;
pub mod metrics;
pub mod model;
pub mod publish;
mod quota;
mod relay;
mod request;
mod retention;
pub mod revocation;
mod ring;
pub mod settings;
pub mod source;
mod spans;
pub mod sse;
pub mod subscribe;
pub mod ticket;
mod topic_task;

pub use hub::{Hub, HubBuilder};
