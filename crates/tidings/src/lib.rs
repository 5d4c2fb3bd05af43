//! Tidings: a live-event hub.

pub mod auth;
pub mod clock;
pub mod error;
pub mod journal;
pub mod model;
