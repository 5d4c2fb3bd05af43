//! The `tidings` binary.
mod config;
fn main() {}
