//! Servers of others, for comparison: whichever are installed, configured as `bench/peers` says.
//!
//! The rule: their fastest documented settings, one process where they have a choice, and as durable
//! as their names in the tables say. What is missing is named with the command that installs it.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{client::Dialect, machine};

/// Somebody else's server.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) dialect: Dialect,
    /// Whether it gives readers what was before they came.
    pub(crate) replays: bool,
    /// Whether its documented protocol takes several events in one request.
    pub(crate) takes_lists: bool,
    /// What must be there, under `bench/peers` or as a path.
    needs: &'static str,
    /// What installs it, in `bench/peers`.
    install: &'static str,
    /// What is installed, asked from it.
    version: fn() -> String,
    command: fn(port: u16, directory: &Path) -> Command,
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Peer {}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

static PEERS: [Peer; 6] = [
    Peer {
        name: "nginx + Nchan (memory)",
        dialect: Dialect::Nchan,
        replays: true,
        takes_lists: false,
        needs: "/usr/lib/nginx/modules/ngx_nchan_module.so",
        install: "apt-get install nginx-light libnginx-mod-nchan",
        version: || {
            let nginx = said("nginx", &["-v"]);
            let nchan = said("dpkg-query", &["-W", "-f", "${Version}", "libnginx-mod-nchan"]);
            format!("{}, Nchan {nchan}", nginx.trim_start_matches("nginx version: "))
        },
        command: |port, directory| {
            let text = fs::read_to_string(folder().join("nchan.conf")).unwrap();
            let text = text.replace("PORT", &port.to_string());
            let file = directory.join("nginx.conf");
            fs::write(&file, text.replace("DIRECTORY", &directory.to_string_lossy())).unwrap();
            let mut command = machine::pinned("nginx");
            command.arg("-c").arg(file).arg("-p").arg(directory);
            command
        },
    },
    Peer {
        name: "better-sse (memory)",
        dialect: Dialect::Tidings,
        replays: false,
        takes_lists: false,
        needs: "node_modules/better-sse",
        install: "npm install",
        version: || npm("better-sse"),
        command: |port, _| node("better-sse.mjs", port),
    },
    Peer {
        name: "@durable-streams (memory)",
        dialect: Dialect::DurableStreams,
        replays: true,
        takes_lists: true,
        needs: "node_modules/@durable-streams/server",
        install: "npm install",
        version: || npm("@durable-streams/server"),
        command: |port, _| node("durable-streams.mjs", port),
    },
    Peer {
        name: "@durable-streams (files)",
        dialect: Dialect::DurableStreams,
        replays: true,
        takes_lists: true,
        needs: "node_modules/@durable-streams/server",
        install: "npm install",
        version: || npm("@durable-streams/server"),
        command: |port, directory| {
            let mut command = node("durable-streams.mjs", port);
            command.arg(directory.join("streams"));
            command
        },
    },
    Peer {
        name: "durable-streams (wal)",
        dialect: Dialect::DurableStreams,
        replays: true,
        takes_lists: true,
        needs: "cargo/bin/durable-streams-server",
        install: "cargo install durable-streams --version 0.1.5 --locked --root cargo",
        version: || {
            // What cargo notes down of what it installs: the program does not tell.
            let noted = fs::read_to_string(folder().join("cargo/.crates.toml")).unwrap_or_default();
            let found = noted.lines().find_map(|line| line.strip_prefix("\"durable-streams "));
            let version = found.and_then(|rest| rest.split_whitespace().next());
            format!("crate {}", version.unwrap_or(UNKNOWN))
        },
        command: |port, directory| {
            let mut command = machine::pinned(folder().join("cargo/bin/durable-streams-server"));
            command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            command.args(["--durability", "wal", "--data-dir"]).arg(directory.join("streams"));
            command
        },
    },
    Peer {
        name: "sse-starlette + Redis",
        dialect: Dialect::Tidings,
        replays: false,
        takes_lists: false,
        needs: "venv/bin/python",
        install: "apt-get install redis-server; python3 -m venv venv && venv/bin/pip install -r requirements.txt",
        version: || {
            let script = "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' \
                          for n in ['sse-starlette', 'starlette', 'uvicorn', 'redis']))";
            let redis = said("redis-server", &["--version"]);
            let redis = redis.split_whitespace().find_map(|word| word.strip_prefix("v="));
            let packages = said(folder().join("venv/bin/python"), &["-c", script]);
            format!("{packages}, Redis {}", redis.unwrap_or(UNKNOWN))
        },
        command: |port, directory| {
            let mut command = machine::pinned(folder().join("venv/bin/python"));
            command.arg(folder().join("starlette.py")).arg(port.to_string()).arg(directory);
            command
        },
    },
];

const UNKNOWN: &str = "of unknown version";

/// The first line that a program prints.
fn said(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().next().unwrap_or(UNKNOWN).to_owned()
}

/// A package, and what runs it.
fn npm(package: &str) -> String {
    let file = folder().join("node_modules").join(package).join("package.json");
    let text = fs::read_to_string(file).unwrap_or_default();
    let text: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let version = text["version"].as_str().unwrap_or(UNKNOWN);
    format!("{version}, Node {}", said("node", &["--version"]).trim_start_matches('v'))
}

fn node(script: &str, port: u16) -> Command {
    let mut command = machine::pinned("node");
    command.arg(folder().join(script)).arg(port.to_string());
    command
}

/// Those that are there; says of the others how to get them.
pub(crate) fn installed() -> Vec<&'static Peer> {
    let (there, missing): (Vec<_>, Vec<_>) =
        PEERS.iter().partition(|peer| folder().join(peer.needs).exists());
    for peer in missing {
        println!("{} is not installed: cd bench/peers && {}", peer.name, peer.install);
    }
    there
}

impl Peer {
    /// What is installed, in a line.
    pub(crate) fn version(&self) -> String {
        (self.version)()
    }

    pub(crate) fn spawn(&self, port: u16, directory: &Path) -> Child {
        let mut command = (self.command)(port, directory);
        // A group of its own, so that what it starts ends with it.
        command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Ends it with what it started.
    pub(crate) fn end(&self, child: &mut Child) {
        let group = format!("-{}", child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = child.wait();
    }
}
