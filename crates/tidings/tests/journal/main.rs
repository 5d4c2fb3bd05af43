//! Journals against each other, against crashes and against damage.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]

mod crash;
mod damage;
mod differential;
mod tools;
