//! The hand-over from stored to live events, checked in every order in which things can happen.
//!
//! Two models, small and exhaustive. The first compares the four ways in which hubs usually do it;
//! three of them lose, double or reorder events, which also shows that the model can fail. The
//! second is this hub's own way: readers are positions over a ring that several share, nodes share
//! one journal, announcements get lost, doubled and reordered, retention trims and topics are
//! recreated. It too is broken on purpose in six ways, and each is found.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "handover_model/one_reader.rs"]
mod one_reader;
#[path = "handover_model/two_nodes.rs"]
mod two_nodes;
