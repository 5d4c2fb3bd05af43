//! Journals against each other, against crashes and against damage.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]

mod crash;
mod damage;
mod differential;
mod full;
mod postgres;
mod postgres_outbox;
mod postgres_tls;
mod redis;
mod redis_bus;
mod redis_cluster;
mod redis_cluster_bus;
mod redis_cluster_faults;
mod redis_faults;
mod redis_tls;
mod tools;
mod whole;
