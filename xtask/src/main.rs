//! `cargo xtask`: the repository's own commands.
//!
//! The rule: what a developer runs and what CI runs is the same command, and a tool that is
//! missing is installed or is a failure, never a reason to leave something out.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command that a person runs and reads"
)]
#![allow(
    clippy::disallowed_types,
    reason = "measures its own steps, without a runtime whose clock a test could pause"
)]

mod bench;
mod examples;
mod fuzz;
#[cfg(test)]
mod guarantees;
mod markdown;
mod mutants;
mod pages;
mod services;
mod setup;
mod simulate;
mod step;
mod suite;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

const USAGE: &str = "\
cargo xtask <command>

  setup             installs what the tests need and this machine lacks
  test              sets up, then runs every check and every test of the repository
  test --fast       only formatting, lints, Rust tests
  test NAME…        only the Rust tests whose names contain one of the words
  bench [NAME…]     builds for release and measures scenarios beside a floor: docs/benchmarks.md
  bench --instructions
                    fails if encoding, cursors, rings or access checks take 5 % more instructions
  simulate [--seeds N] [--seed X]
                    runs the simulation with N seeds (2000), or one and tells what happens in it
  fuzz [TARGET] [--seconds N]
                    runs the fuzz targets under libFuzzer, each for N seconds (60)
  mutants [FILE…]   changes the code in small ways and says which changes no test notices
  services [NAME…]  starts private redis, redis-cluster, postgres and rabbitmq and prints where they are
  cluster [JOURNAL] starts three hubs on a private redis (or postgres) behind one port
  docs              writes the pages under docs/ that are generated from the code
  docs --check      says which of them are out of date
  docs --run        runs the commands shown in README.md and docs/ against a hub
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["setup"] => setup::run(),
        ["test", options @ ..] => return suite::run(options),
        ["bench", arguments @ ..] => bench::run(arguments),
        ["simulate", options @ ..] => simulate::run(options),
        ["fuzz", options @ ..] => fuzz::run(options),
        ["mutants", files @ ..] => mutants::run(files),
        ["services", names @ ..] => services::run(names),
        ["cluster", journal @ ..] => services::cluster(journal),
        ["docs"] => pages::write(),
        ["docs", "--check"] => pages::check(),
        ["docs", "--run"] => examples::run_alone(),
        [] | ["help" | "--help" | "-h", ..] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => Err(format!("no such command: {}\n\n{USAGE}", arguments.join(" "))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where Cargo puts what it builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The binary that the tests run, as `cargo build` leaves it.
fn tidings_binary() -> PathBuf {
    target().join("debug").join("tidings")
}
