//! The hub through its Rust API: publishing, following, resuming, and the seams between.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    reason = "a test fails by panicking, and reads better short"
)]

mod cluster;
mod connection;
mod follow;
mod identity;
mod metrics;
mod nodes;
mod publish;
mod seam;
mod support;
mod turns;
