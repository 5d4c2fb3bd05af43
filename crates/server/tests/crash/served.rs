//! A hub as it is served in earnest, and what the system says of its process.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

/// `tidings serve` with a key that may read and write everything.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) url: String,
    pub(crate) admin: String,
}

/// Writes the configuration of a hub in this directory, and returns its key.
pub(crate) fn configure(directory: &Path, settings: &str) -> String {
    let create = ["key", "create", "--write", "**", "--read", "**", "--json"];
    let output = command(directory, &create).output().unwrap();
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    let entry = |name: &str| made["entry"][name].as_str().unwrap();
    let toml = format!(
        "admin.listen = \"127.0.0.1:0\"\ndata = \"data\"\nlimits.user_connections = 0\n{settings}\n\
         [[auth.api_keys]]\nid = \"{}\"\nsha256 = \"{}\"\nread = [\"**\"]\nwrite = [\"**\"]\n",
        entry("id"),
        entry("sha256"),
    );
    std::fs::write(directory.join("tidings.toml"), toml).unwrap();
    made["key"].as_str().unwrap().to_owned()
}

fn command(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(args).current_dir(directory).stdin(Stdio::null());
    command
}

impl Served {
    /// Starts the hub that was configured, once it listens.
    pub(crate) fn start(directory: &Path, listen: &str) -> Self {
        let mut child = command(directory, &["serve", "--listen", listen])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let started: Value = loop {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the hub ended");
            let logged: Value = serde_json::from_str(&line).unwrap();
            if logged["message"] == "serving" {
                break logged;
            }
        };
        // Read on, so that the hub never waits for somebody to read its log.
        std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
        let address = |name: &str| format!("http://{}", started[name].as_str().unwrap());
        Self { child, url: address("listen"), admin: address("admin") }
    }

    pub(crate) fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// SIGTERM; how the process ends.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    /// Open file descriptors of the process.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Memory that the process has in use, bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Kernel memory of each of the hub's connections, bytes: what `ss` calls skmem (ss(8)), less
    /// the limits among it.
    pub(crate) fn kernel_memory(&self) -> Vec<u64> {
        let port = format!("sport = :{}", self.port());
        let output = Command::new("ss").args(["-tmnH", &port]).output().expect("ss, of iproute2");
        let text = String::from_utf8(output.stdout).unwrap();
        let numbers = |skmem: &str| {
            let used = |part: &str| {
                let name: String = part.chars().take_while(char::is_ascii_alphabetic).collect();
                let counts = ["r", "t", "f", "w", "o", "bl"].contains(&&*name);
                counts.then(|| part[name.len()..].parse::<u64>().unwrap())
            };
            skmem.split(',').filter_map(used).sum()
        };
        let found = text.split("skmem:(").skip(1).map(|rest| rest.split(')').next().unwrap());
        found.map(numbers).collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Already ended in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many of something: few by default, as many as the variable says in a long run.
pub(crate) fn count(variable: &str, by_default: usize) -> usize {
    std::env::var(variable).map_or(by_default, |text| text.parse().unwrap())
}
