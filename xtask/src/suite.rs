//! `cargo xtask test`: every check and every test, one step after the other.
//!
//! The rule: all steps use one profile and the features of `--workspace --all-targets`, so that
//! each dependency is compiled once for all of them.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use crate::{
    examples, pages, root, services, setup,
    step::{Count, Report, Runner},
    tidings_binary,
};

/// What of the tests to run.
#[derive(Debug, PartialEq, Eq)]
enum Scope {
    Everything,
    /// Formatting, lints, Rust tests.
    Fast,
    /// The Rust tests of these names.
    Named(Vec<String>),
}

/// Runs the tests that the options ask for; the last line printed is `N passed, N failed`.
pub(crate) fn run(options: &[&str]) -> ExitCode {
    let scope = match scope(options) {
        Ok(scope) => scope,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::default();
    let is_ready = report.step("setup", "what the tests need of this machine", || {
        setup::run().map(|()| (Count::default(), None))
    });
    if is_ready {
        steps(&scope, &mut report);
    }
    report.close();
    if report.total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn scope(options: &[&str]) -> Result<Scope, String> {
    match options {
        [] => Ok(Scope::Everything),
        ["--fast"] => Ok(Scope::Fast),
        names if names.iter().all(|name| !name.starts_with('-')) => {
            Ok(Scope::Named(names.iter().map(|&name| name.to_owned()).collect()))
        }
        _ => Err(format!("cargo xtask test takes --fast or names, not {}", options.join(" "))),
    }
}

fn steps(scope: &Scope, report: &mut Report) {
    if let Scope::Named(names) = scope {
        if let Some(servers) = servers(report) {
            report.command("rust", Runner::Nextest, on(&servers, &mut nextest()).args(names));
        }
        return;
    }
    report.command("format", Runner::Plain, cargo("fmt --all --check").arg("--verbose"));
    report.command(
        "lints",
        Runner::Plain,
        &mut cargo("clippy --workspace --all-targets --locked -- -D warnings"),
    );
    let Some(servers) = servers(report) else { return };
    report.command("rust", Runner::Nextest, on(&servers, &mut nextest()));
    drop(servers);
    if *scope == Scope::Fast {
        report.note("the rest", "--fast was asked for");
        return;
    }
    report.command(
        "doc tests",
        Runner::CargoTest,
        &mut cargo("test --doc --workspace --locked --quiet"),
    );
    report.command(
        "rustdoc",
        Runner::Plain,
        cargo("doc --workspace --no-deps --locked").env("RUSTDOCFLAGS", "-D warnings"),
    );
    supply_chain(report);
    if !report.command("build", Runner::Plain, &mut build()) {
        return;
    }
    report.step("pages", "are the generated pages of docs/ up to date?", || {
        pages::check().map(|()| (Count::default(), None))
    });
    report.step("examples", "the commands of README.md and docs/ against a hub", examples::run);
    browser(report);
}

/// Starts what the tests share.
fn servers(report: &mut Report) -> Option<services::Shared> {
    let mut started = None;
    report.step("servers", "private Redis, Redis Cluster, PostgreSQL and RabbitMQ", || {
        started = Some(services::Shared::start()?);
        Ok((Count::default(), None))
    });
    started
}

/// Tells tests where the servers are.
fn on<'a>(servers: &services::Shared, command: &'a mut Command) -> &'a mut Command {
    command.envs(servers.variables.iter().map(|(name, value)| (name, value)))
}

fn supply_chain(report: &mut Report) {
    report.command("deny", Runner::Plain, &mut cargo("deny check licenses bans sources"));
    let fetched = cargo("deny --log-level off fetch db").output();
    if fetched.is_ok_and(|output| output.status.success()) {
        report.command("advisories", Runner::Plain, &mut cargo("deny check advisories"));
    } else {
        report.note("advisories", "the advisory database could not be fetched");
    }
}

fn browser(report: &mut Report) {
    let folder = root().join("tests/browser");
    let Some(node) = setup::node() else {
        report.step("browser", "node --test", || Err("there is no node".to_owned()));
        return;
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(".test.mjs"))
        .collect();
    files.sort();
    let mut command = Command::new(node);
    // One file at a time: two browsers on two processors would only measure each other.
    command
        .args(["--test", "--test-reporter=spec", "--test-concurrency=1"])
        .args(files)
        .current_dir(folder)
        .env("TIDINGS_BIN", tidings_binary());
    report.command("browser", Runner::Node, &mut command);
}

/// Builds everything. Tests too: so the features are theirs, and nothing is built twice.
pub(crate) fn build() -> Command {
    cargo("build --workspace --all-targets --locked")
}

fn nextest() -> Command {
    cargo("nextest run --workspace --all-targets --locked --profile ci --show-progress none")
}

/// Cargo, with the words of a line as its arguments.
pub(crate) fn cargo(line: &str) -> Command {
    // The toolchain that runs this: `cargo` on the path may be another.
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(line.split_whitespace()).current_dir(root());
    // `cargo run` says here which package it runs. Build scripts that look at it (ring's) would run
    // anew, and all that depends on them be built anew, whenever a person's cargo and ours alternate.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
            .iter()
            .any(|of| name_text.starts_with(of))
        {
            command.env_remove(&name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_say_what_to_run() {
        assert_eq!(scope(&[]), Ok(Scope::Everything));
        assert_eq!(scope(&["--fast"]), Ok(Scope::Fast));
        let named = Scope::Named(vec!["ring".to_owned(), "cursor".to_owned()]);
        assert_eq!(scope(&["ring", "cursor"]), Ok(named));
        assert!(scope(&["--slow"]).is_err());
        assert!(scope(&["--fast", "ring"]).is_err());
    }
}
