//! The hub through its Rust API: publishing, following, resuming, and the seams between.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod connection;
mod follow;
mod publish;
mod seam;
mod support;
