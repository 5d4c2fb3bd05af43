//! `cargo xtask services` and `cargo xtask cluster`, and the servers that the tests share.
//!
//! The rule: tests never use a server that they find on the machine. One of each kind is started for
//! a whole run, because a start takes seconds; tests that break a server start their own.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
};

use crate::{setup, suite, target, tidings_binary};

/// Starts servers for a person.
pub(crate) fn run(names: &[&str]) -> Result<(), String> {
    setup::servers()?;
    succeed(command()?.args(names))
}

/// Starts a cluster for a person.
pub(crate) fn cluster(journal: &[&str]) -> Result<(), String> {
    setup::servers()?;
    let mut build = suite::cargo("build --package tidings-server");
    succeed(&mut build)?;
    succeed(command()?.arg("cluster").args(journal).env("HUB_PROGRAM", tidings_binary()))
}

/// Servers that the tests share; dropped, they end.
pub(crate) struct Shared {
    process: Child,
    /// Closed, it tells the process to end.
    input: Option<ChildStdin>,
    /// Where the servers are: names and values of variables.
    pub(crate) variables: Vec<(String, String)>,
}

impl Shared {
    /// Starts one of each kind.
    pub(crate) fn start() -> Result<Self, String> {
        let mut command = command()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(|error| format!("no servers: {error}"))?;
        let input = process.stdin.take();
        let printed = process.stdout.take();
        let mut shared = Self { process, input, variables: Vec::new() };
        for line in BufReader::new(printed.ok_or("no servers")?).lines() {
            let line = line.map_err(|error| error.to_string())?;
            match line.split_once('=') {
                Some((name, value)) => shared.variables.push((name.to_owned(), value.to_owned())),
                None if line == "ready" => return Ok(shared),
                None => {}
            }
        }
        Err("the servers that the tests need did not start; what is wrong stands above".to_owned())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.input.take());
        // It was told to end, and its servers end with it.
        let _ = self.process.wait();
    }
}

fn command() -> Result<Command, String> {
    let mut build = suite::cargo("build --package tidings-services");
    succeed(&mut build)?;
    Ok(Command::new(target().join("debug").join("tidings-services")))
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} failed")) }
}
