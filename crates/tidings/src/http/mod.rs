//! HTTP: the only module that knows axum and hyper.
//!
//! The rule: every refusal is a problem (RFC 9457), and what a grant does not cover looks the same
//! whether it exists or not.

mod admission;
mod caller;
mod chunks;
mod connections;
mod cookie;
mod cors;
mod direct;
mod events;
mod follow;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod health;
mod observe;
mod openapi;
mod problem;
mod proxy;
mod publisher;
mod query;
mod rest;
mod revocations;
mod router;
mod serve;
mod socket;
mod state;
mod tickets;
mod tls;
mod topics;
mod transport;

pub use cookie::CookieSettings;
pub use problem::identify;
pub use router::{HttpSettings, Service};
pub use serve::{Peer, ServeSettings, serve};
pub use tls::{Tls, TlsError};
