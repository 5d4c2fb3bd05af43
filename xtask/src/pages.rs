//! The pages that the code writes: made from it, committed, and compared with it.

use std::process::Command;

use crate::{root, suite, tidings_binary};

/// Each page and the `tidings` command that prints it.
const PAGES: &[(&str, &[&str])] = &[
    ("docs/configuration.md", &["config", "docs"]),
    ("docs/cli.md", &["config", "docs", "cli"]),
    ("docs/metrics.md", &["config", "docs", "metrics"]),
    ("docs/tidings.schema.json", &["config", "schema"]),
];

/// Builds the binary and writes all pages.
pub(crate) fn write() -> Result<(), String> {
    if !suite::build().status().is_ok_and(|status| status.success()) {
        return Err("the binary that prints the pages does not build".to_owned());
    }
    for (path, arguments) in PAGES {
        let text = print(arguments)?;
        std::fs::write(root().join(path), text).map_err(|error| format!("{path}: {error}"))?;
        println!("wrote {path}");
    }
    Ok(())
}

/// Compares all pages with what the binary prints; the binary must have been built.
pub(crate) fn check() -> Result<(), String> {
    let mut stale = Vec::new();
    for (path, arguments) in PAGES {
        let committed = std::fs::read(root().join(path)).unwrap_or_default();
        if committed != print(arguments)? {
            stale.push(*path);
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!("out of date: {}. Run `cargo xtask docs` and commit them", stale.join(", ")))
}

fn print(arguments: &[&str]) -> Result<Vec<u8>, String> {
    let binary = tidings_binary();
    let line = format!("{} {}", binary.display(), arguments.join(" "));
    let output = Command::new(&binary)
        .args(arguments)
        .current_dir(std::env::temp_dir())
        .env_remove("TIDINGS_CONFIG")
        .output()
        .map_err(|error| format!("cannot run {line}: {error}"))?;
    if output.status.success() && !output.stdout.is_empty() {
        return Ok(output.stdout);
    }
    Err(format!("{line} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
