//! `cargo xtask mutants`: the code that must not be wrong, changed in small ways, against its tests.
//!
//! The rule: a change that no test notices is a test that is missing. Each change is a build and a run
//! of tests, so only the layers that the code is in and those below it are built, from a copy under
//! `target/mutants`: 5 s for a change instead of a minute. The embedded journal is left out of it but
//! where its own code is changed, since its tests take longer than all others together.

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
    "journal/embedded/writer.rs",
];

/// The files below here are tried against the tests of the same place alone.
const EMBEDDED: &str = "journal/embedded";
/// It waits for its whole time limit, whatever the writer does.
const SLOW_TEST: &str = "closing_does_not_wait_for_a_compaction_that_goes_on";

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
    let files = if files.is_empty() { FILES } else { files };
    let (embedded, others): (Vec<_>, Vec<_>) =
        files.iter().partition(|file| file.starts_with(EMBEDDED));
    let mut survived = false;
    for (files, has_embedded) in [(others, false), (embedded, true)] {
        survived |= !files.is_empty() && !all_noticed(&files, has_embedded)?;
    }
    if survived { Err("some mutants survived".to_owned()) } else { Ok(()) }
}

/// Whether tests notice each change of these files.
fn all_noticed(files: &[&str], has_embedded: bool) -> Result<bool, String> {
    let copy = target().join("mutants");
    copy_layers(&copy, has_embedded).map_err(|error| format!("{}: {error}", copy.display()))?;
    let mut command = suite::cargo("mutants --in-place --no-shuffle --timeout 60");
    command.args(["--package", "tidings", "--cargo-arg=--lib"]).current_dir(&copy);
    for file in files {
        command.arg("--file").arg(Path::new("crates/tidings/src").join(file));
    }
    if has_embedded {
        command.args(["--", "--", "journal::embedded", "--skip", SLOW_TEST]);
    }
    let status = command.status().map_err(|error| format!("cannot run cargo mutants: {error}"))?;
    Ok(status.success())
}

/// Makes a workspace of the library's lower layers alone.
fn copy_layers(copy: &Path, has_embedded: bool) -> std::io::Result<()> {
    let from = root().join("crates/tidings");
    let to = copy.join("crates/tidings");
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    fs::create_dir_all(to.join("src"))?;
    let whole = fs::read_to_string(root().join("Cargo.toml"))?;
    let is_left_out = |line: &str| {
        (line.contains("path = \"") && !line.starts_with(SLICE))
            || line.starts_with("default-members")
    };
    let workspace: String = whole
        .lines()
        .map(|line| if line.starts_with("members") { MEMBERS } else { line })
        .filter(|line| !is_left_out(line))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(copy.join("Cargo.toml"), workspace)?;
    fs::copy(root().join("Cargo.lock"), copy.join("Cargo.lock"))?;
    fs::write(to.join("Cargo.toml"), manifest(&fs::read_to_string(from.join("Cargo.toml"))?))?;
    copy_all(&root().join("crates/slice"), &copy.join("crates/slice"))?;
    let mut lib =
        "//! The lower layers.\n#![allow(dead_code, unused_imports, missing_docs)]\n".to_owned();
    for layer in LAYERS {
        lib.push_str(&format!("pub mod {layer};\n"));
        for path in [format!("src/{layer}.rs"), format!("src/{layer}")] {
            copy_all(&from.join(&path), &to.join(&path))?;
        }
    }
    fs::write(to.join("src/lib.rs"), lib)?;
    if has_embedded {
        return Ok(());
    }
    fs::remove_dir_all(to.join("src").join(EMBEDDED))?;
    let port = to.join("src/journal/mod.rs");
    let text = fs::read_to_string(&port)?.replace("pub mod embedded;\n", "");
    fs::write(port, text)
}

/// The library's manifest without its examples and what else of this repository it names.
fn manifest(whole: &str) -> String {
    let sections = whole.split_inclusive("\n\n");
    let kept = sections.filter(|section| !section.starts_with("[[example]]"));
    let lines = kept
        .flat_map(str::lines)
        .filter(|line| !line.starts_with("tidings") || line.starts_with(SLICE));
    lines.map(|line| format!("{line}\n")).collect()
}

const MEMBERS: &str = "members = [\"crates/slice\", \"crates/tidings\"]";
/// The one other crate of this repository that the library needs.
const SLICE: &str = "tidings-slice";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copys_manifest_names_nothing_that_is_not_copied() {
        let whole = fs::read_to_string(root().join("crates/tidings/Cargo.toml")).unwrap();
        let copied = manifest(&whole);
        assert!(whole.contains("[[example]]") && whole.contains("tidings-services"));
        assert!(!copied.contains("example") && !copied.contains("tidings-services"), "{copied}");
        assert!(copied.contains("[lints]\nworkspace = true"), "{copied}");
    }
}
