//! `cargo xtask mutants`: the code that must not be wrong, changed in small ways, against its tests.
//!
//! The rule: a change that no test notices is a test that is missing. Each change is a build and a run
//! of tests, so only the layers that the code is in and those below it are built, from a copy under
//! `target/mutants`: 5 s for a change instead of a minute.

use std::{fs, path::Path};

use crate::{root, setup, suite, target};

/// What is changed: where a mistake would lose, double or leak events.
const FILES: &[&str] = &[
    "model/cursor.rs",
    "model/resume.rs",
    "model/topic.rs",
    "ring.rs",
    "journal/mod.rs",
    "journal/memory.rs",
    "auth/grant.rs",
    "auth/policy.rs",
    "auth/template.rs",
    "auth/mod.rs",
];

/// The modules of the library that those files are in, and what those use.
const LAYERS: &[&str] = &[
    "model", "clock", "error", "metrics", "spans", "sse", "journal", "bus", "auth", "ring",
    "settings", "quota",
];

/// Runs cargo-mutants over those files, or over those that are named (below `crates/tidings/src`).
pub(crate) fn run(files: &[&str]) -> Result<(), String> {
    if let Some(option) = files.iter().find(|file| file.starts_with('-')) {
        return Err(format!("cargo xtask mutants takes files, not {option}"));
    }
    setup::mutants()?;
    let copy = target().join("mutants");
    copy_layers(&copy).map_err(|error| format!("{}: {error}", copy.display()))?;
    let mut command = suite::cargo("mutants --in-place --no-shuffle --timeout 60");
    command.args(["--package", "tidings", "--cargo-arg=--lib"]).current_dir(&copy);
    for file in if files.is_empty() { FILES } else { files } {
        command.arg("--file").arg(Path::new("crates/tidings/src").join(file));
    }
    let status = command.status().map_err(|error| format!("cannot run cargo mutants: {error}"))?;
    if status.success() { Ok(()) } else { Err("some mutants survived".to_owned()) }
}

/// Makes a workspace of the library's lower layers alone.
fn copy_layers(copy: &Path) -> std::io::Result<()> {
    let from = root().join("crates/tidings");
    let to = copy.join("crates/tidings");
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    fs::create_dir_all(to.join("src"))?;
    let whole = fs::read_to_string(root().join("Cargo.toml"))?;
    let is_ours = |line: &str| line.contains("path = \"") || line.starts_with("default-members");
    let workspace: String = whole
        .lines()
        .map(|line| if line.starts_with("members") { MEMBERS } else { line })
        .filter(|line| !is_ours(line))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(copy.join("Cargo.toml"), workspace)?;
    fs::copy(root().join("Cargo.lock"), copy.join("Cargo.lock"))?;
    let package = fs::read_to_string(from.join("Cargo.toml"))?;
    let package = package.lines().filter(|line| !line.starts_with("tidings"));
    fs::write(to.join("Cargo.toml"), package.map(|line| format!("{line}\n")).collect::<String>())?;
    let mut lib =
        "//! The lower layers.\n#![allow(dead_code, unused_imports, missing_docs)]\n".to_owned();
    for layer in LAYERS {
        lib.push_str(&format!("pub mod {layer};\n"));
        for path in [format!("src/{layer}.rs"), format!("src/{layer}")] {
            copy_all(&from.join(&path), &to.join(&path))?;
        }
    }
    fs::write(to.join("src/lib.rs"), lib)?;
    // The stores of others have suites of their own, which take minutes.
    fs::remove_dir_all(to.join("src/journal/embedded"))?;
    let port = to.join("src/journal/mod.rs");
    let text = fs::read_to_string(&port)?.replace("pub mod embedded;\n", "");
    fs::write(port, text)
}

const MEMBERS: &str = "members = [\"crates/tidings\"]";

/// Copies a file or a folder, if it is there.
fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    if from.is_file() {
        return fs::copy(from, to).map(drop);
    }
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy_all(&from.join(&name), &to.join(&name))?;
        }
    }
    Ok(())
}
