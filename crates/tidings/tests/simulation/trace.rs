//! What happened in a run, line by line, and a hash of it.
//!
//! The rule: a line holds nothing that the machine decides (ids that the hub mints, cursors, the
//! time of day), so that a run repeated has the same lines.

use std::{collections::VecDeque, fmt::Arguments, sync::Mutex};

use tokio::time::Instant;

use crate::chance::hash;

/// Lines that are told of a run that failed.
const LAST_LINES: usize = 60;

#[derive(Debug)]
pub(crate) struct Trace {
    begun: Instant,
    is_loud: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hash: u64,
    lines: u64,
    last: VecDeque<String>,
    failure: Option<String>,
}

impl Trace {
    pub(crate) fn new(is_loud: bool) -> Self {
        Self { begun: Instant::now(), is_loud, state: Mutex::default() }
    }

    pub(crate) fn line(&self, who: &str, what: Arguments<'_>) {
        let line = format!("{:>9} {who}: {what}", self.begun.elapsed().as_millis());
        if self.is_loud {
            println!("{line}");
        }
        let mut state = self.state.lock().unwrap();
        state.hash = hash(format!("{}{line}", state.hash).as_bytes());
        state.lines += 1;
        state.last.push_back(line);
        if state.last.len() > LAST_LINES {
            state.last.pop_front();
        }
    }

    /// A promise was broken. The first one counts.
    pub(crate) fn fail(&self, who: &str, what: &str) {
        self.line(who, format_args!("FAILED: {what}"));
        let mut state = self.state.lock().unwrap();
        if state.failure.is_none() {
            let lines: Vec<&str> = state.last.iter().map(String::as_str).collect();
            state.failure = Some(format!("{}\n\n{who}: {what}", lines.join("\n")));
        }
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.state.lock().unwrap().failure.clone()
    }

    /// How many lines there were, and their hash.
    pub(crate) fn summary(&self) -> (u64, u64) {
        let state = self.state.lock().unwrap();
        (state.lines, state.hash)
    }
}
