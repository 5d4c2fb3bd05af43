//! RabbitMQ against a real broker: the source, its faults, the bus' faults, the publisher.
//!
//! The rule: what does not break the broker shares one, under names of its own.
#![cfg(feature = "amqp")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and reads better short"
)]

mod bus;
mod faults;
mod publisher;
mod source;
mod support;
