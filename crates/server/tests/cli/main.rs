//! Runs the real binary: every command, its exit codes, and what survives a killed hub.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on ends")]

mod admin;
mod amqp;
mod config;
mod docs;
mod drain;
mod follow;
mod hub;
mod journal;
mod keys;
mod publish;
mod secrets;
mod startup;
mod support;
mod traces;
