//! `cargo xtask mutants`: the code that must not be wrong, changed in small ways, against its tests.
//!
//! The rule: a change that no test notices is a test that is missing.

use crate::{setup, suite};

/// What is changed: where a mistake would lose, double or leak events.
const FILES: &[&str] = &[
    "crates/tidings/src/model/cursor.rs",
    "crates/tidings/src/model/resume.rs",
    "crates/tidings/src/ring.rs",
    "crates/tidings/src/auth/*.rs",
    "crates/tidings/src/journal/memory.rs",
    "crates/tidings/src/journal/embedded/writer.rs",
];

/// Runs cargo-mutants over those files, or over those that are named.
pub(crate) fn run(files: &[&str]) -> Result<(), String> {
    if let Some(option) = files.iter().find(|file| file.starts_with('-')) {
        return Err(format!("cargo xtask mutants takes files, not {option}"));
    }
    setup::mutants()?;
    let mut command = suite::cargo("mutants --no-shuffle --test-tool nextest --jobs 1");
    command.args(["--package", "tidings", "--output", "target"]);
    // Only what is run is built.
    command.args([
        "--cargo-arg=--lib",
        "--cargo-arg=--test=hub",
        "--cargo-arg=--test=handover_model",
    ]);
    for file in if files.is_empty() { FILES } else { files } {
        command.args(["--file", file]);
    }
    // What does not run in a second or two finds few mutants that the others do not.
    let fast = "package(tidings) & (kind(lib) | binary(hub) | binary(handover_model))";
    command.args(["--", "-E", fast]);
    let status = command.status().map_err(|error| format!("cannot run cargo mutants: {error}"))?;
    if status.success() { Ok(()) } else { Err("some mutants survived".to_owned()) }
}
