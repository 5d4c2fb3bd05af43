//! Private, throw-away instances of Redis, PostgreSQL and RabbitMQ, from Debian's packages, and small
//! disks.
//!
//! The rule: an instance listens on loopback on a free port, keeps its files in a directory of its
//! own, belongs to who started it and ends with it; a server that is not installed is a failure
//! that says so, never a reason to leave something out.
#![allow(
    clippy::disallowed_types,
    reason = "waits for servers outside of any runtime whose clock a test could pause"
)]

mod postgres;
mod process;
mod rabbitmq;
mod redis;
mod redis_cluster;
mod small_disk;

pub use postgres::{Encryption, POSTGRES_URL, Postgres, SharedPostgres};
pub use process::{Process, free_port, until};
pub use rabbitmq::{RABBITMQ_URL, RabbitMq, SharedRabbitMq};
pub use redis::{Guard, REDIS_URL, Redis};
pub use redis_cluster::{Move, REDIS_CLUSTER_URL, RedisCluster};
pub use small_disk::{on_a_small_disk, small_disk};
