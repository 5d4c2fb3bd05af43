//! The servers under measurement: started, asked for their CPU time, and ended.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

/// A server's process.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) address: String,
    pub(crate) key: String,
    pub(crate) token: String,
    child: Child,
    _data: tempfile::TempDir,
}

impl Server {
    /// The floor: this program again.
    pub(crate) fn floor() -> Self {
        Self::start("floor", Command::new(own_path()).arg("floor"))
    }

    /// The hub of the same build, with journal, fsync and access checks.
    pub(crate) fn hub() -> Self {
        let hub = own_path().with_file_name("tidings");
        let mut command = Command::new(hub);
        Self::start("tidings", command.args(["dev", "--json", "--listen", "127.0.0.1:0"]))
    }

    fn start(name: &'static str, command: &mut Command) -> Self {
        let data = tempfile::tempdir().unwrap();
        if name == "tidings" {
            command.arg("--data").arg(data.path());
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let facts: Value = serde_json::from_str(&line).unwrap();
        let fact = |name: &str| facts.get(name).and_then(Value::as_str).unwrap().to_owned();
        Self {
            name,
            address: fact("url").replace("http://", ""),
            key: fact("publisher_key"),
            token: fact("reader_token"),
            child,
            _data: data,
        }
    }

    /// Seconds of CPU that the process has used, user and system (proc(5), fields 14 and 15).
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u32 = fields.skip(11).take(2).map(|field| field.parse::<u32>().unwrap()).sum();
        f64::from(ticks) / 100.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own_path() -> PathBuf {
    std::env::current_exe().unwrap()
}
