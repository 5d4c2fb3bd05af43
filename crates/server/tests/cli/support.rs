//! A hub and its clients as processes. Every wait has an end.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use serde_json::Value;

/// How long anything may take before its test fails.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The binary, run in a directory, with nothing of this process's settings.
pub(crate) fn tidings(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(args).current_dir(directory).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDINGS_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
pub(crate) fn run(directory: &Path, args: &[&str]) -> Ran {
    Ran::of(&tidings(directory, args).output().unwrap())
}

/// Runs a command to its end with this input.
pub(crate) fn run_with_input(directory: &Path, args: &[&str], input: &[u8]) -> Ran {
    let mut child = tidings(directory, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let ran = Ran::of(&child.wait_with_output().unwrap());
    // A command that refuses its arguments does not read.
    drop(writer.join().unwrap());
    ran
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout.clone()).unwrap(),
            err: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    /// What was printed, if the command ended with this code.
    pub(crate) fn expect(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.out
    }
}

/// A running `tidings dev` with its data in `.tidings` of a directory.
#[derive(Debug)]
pub(crate) struct Hub {
    child: Child,
    /// Its line of `--json`.
    pub(crate) says: Value,
}

impl Hub {
    pub(crate) fn start(directory: &Path) -> Self {
        let args = ["dev", "--listen", "127.0.0.1:0", "--json"];
        let mut child = tidings(directory, &args).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, says: serde_json::from_str(&line).unwrap() }
    }

    pub(crate) fn says(&self, name: &str) -> &str {
        self.says[name].as_str().unwrap()
    }

    /// `kill -9`: no destructor, no flush, no goodbye.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; waits for the end and says how it ended.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        send_signal(&self.child, "TERM");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn send_signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
}

/// A client that runs while the test goes on.
#[derive(Debug)]
pub(crate) struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Client {
    pub(crate) fn start(directory: &Path, args: &[&str]) -> Self {
        let mut child = tidings(directory, args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            let mut line = String::new();
            // What a kill cut off in the middle of a line was not printed.
            while out.read_line(&mut line).is_ok() && line.ends_with('\n') {
                line.pop();
                if sender.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines }
    }

    /// Writes to its input.
    pub(crate) fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// The next line of its output.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(WAIT_MAX).unwrap()
    }

    /// The next lines of its output.
    pub(crate) fn lines(&self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.line()).collect()
    }

    /// The next line of its stderr.
    pub(crate) fn error_line(&mut self) -> String {
        let mut line = Vec::new();
        let err = self.child.stderr.as_mut().unwrap();
        let mut byte = [0];
        while err.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Ends its input and waits for its end.
    pub(crate) fn finish(mut self) -> i32 {
        drop(self.stdin.take());
        self.child.wait().unwrap().code().unwrap_or(-1)
    }

    /// `kill -9`; what it had printed and nobody has read yet.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.lines.iter().collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `1`, `2`, … as texts.
pub(crate) fn numbers(range: std::ops::RangeInclusive<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// The numbers, a line each.
pub(crate) fn numbered_lines(range: std::ops::RangeInclusive<u32>) -> String {
    numbers(range).iter().map(|number| format!("{number}\n")).collect()
}
