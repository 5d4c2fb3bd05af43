//! Publishes a stream of events through the NDJSON endpoint.
//!
//! The rules: an event is forgotten only once the hub has answered for it, so nothing is lost; each
//! has an id of its own, so nothing is stored twice; one request runs at a time, so order is kept;
//! at most [`WINDOW_EVENTS`] or [`WINDOW_BYTES`] wait, so memory is bounded.

use std::{collections::VecDeque, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    input::{Line, Read1},
    note, warn,
};
use crate::{
    exit::{Exit, Failure},
    remote::{Backoff, Remote, Trouble, accept, describe, refusal},
};

/// Events of one request.
const WINDOW_EVENTS: usize = 2000;
/// Bytes of one request.
const WINDOW_BYTES: usize = 2 * 1024 * 1024;
/// Silence after which an answer is taken for lost.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Refusals that are reported one by one; the rest is counted.
const REPORTS_MAX: u64 = 20;
/// Longest line of an answer, bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// What became of the stream.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    /// Events that are stored, once each.
    pub(super) published: u64,
    /// Of these, those that a lost answer had stored before.
    pub(super) repeated: u64,
    /// Events that were refused or could not be events.
    pub(super) refused: u64,
    /// Lines of which bytes were replaced.
    pub(super) repaired: u64,
    /// How far into the input everything is settled, bytes.
    pub(super) settled_bytes: u64,
}

/// Whether one event's refusal is everyone's: all lines go to one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusals {
    EndAll,
    AreTheirOwn,
}

/// A stream of events on its way to a hub.
pub(super) struct Sender<'a> {
    pub(super) remote: &'a Remote,
    /// How long to try while nothing works.
    pub(super) retry_for: Duration,
    pub(super) refusals: Refusals,
    /// Told after each answer.
    pub(super) progress: &'a dyn Fn(&Tally),
}

impl Sender<'_> {
    /// Publishes until the input ends. The tally tells what is stored, also after a failure.
    pub(super) async fn run(
        &self,
        mut input: mpsc::Receiver<std::io::Result<Vec<Read1>>>,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let mut waiting: VecDeque<Line> = VecDeque::new();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut last_progress = Instant::now();
        loop {
            if waiting.is_empty() {
                match input.recv().await {
                    Some(read) => take(read, &mut waiting, tally)?,
                    None => return Ok(()),
                }
                last_progress = Instant::now();
            }
            while waiting.len() < WINDOW_EVENTS
                && waiting.iter().map(|line| line.event.len()).sum::<usize>() < WINDOW_BYTES
                && let Ok(read) = input.try_recv()
            {
                take(read, &mut waiting, tally)?;
            }
            if waiting.is_empty() {
                continue;
            }
            let before = waiting.len();
            let sent = self.send(&mut waiting, tally).await;
            (self.progress)(tally);
            if waiting.len() < before {
                last_progress = Instant::now();
            }
            let (message, retry_after) = match sent {
                Ok(()) => {
                    if !backoff.is_first() {
                        note(&format!("{} is back", self.remote.address()));
                    }
                    backoff.reset();
                    continue;
                }
                Err(Trouble::Final(failure)) => return Err(failure),
                Err(Trouble::Passing { message, retry_after }) => (message, retry_after),
            };
            if last_progress.elapsed() >= self.retry_for {
                let message = format!(
                    "{} did not take events for {}s ({message}); {} that were read are not published",
                    self.remote.address(),
                    self.retry_for.as_secs(),
                    waiting.len(),
                );
                return Err(Failure::new(Exit::Unavailable, message));
            }
            if backoff.is_first() {
                warn(&format!("{}: {message}; trying again", self.remote.address()));
            }
            sleep(backoff.next(retry_after)).await;
        }
    }

    /// Sends what waits and drops what was answered for. What is to be tried again stays, in order.
    async fn send(&self, waiting: &mut VecDeque<Line>, tally: &mut Tally) -> Result<(), Trouble> {
        let mut body = String::new();
        let mut count = 0;
        for line in waiting.iter().take(WINDOW_EVENTS) {
            if count > 0 && body.len() + line.event.len() > WINDOW_BYTES {
                break;
            }
            body.push_str(&line.event);
            body.push('\n');
            count += 1;
        }
        let mut sent: VecDeque<Line> = waiting.drain(..count).collect();
        let mut again: Vec<Line> = Vec::new();
        let exchanged = self.exchange(body, &mut sent, &mut again, tally).await;
        for line in again.into_iter().chain(sent).rev() {
            waiting.push_front(line);
        }
        exchanged
    }

    /// One request: takes lines from `sent` as their answers come in.
    async fn exchange(
        &self,
        body: String,
        sent: &mut VecDeque<Line>,
        again: &mut Vec<Line>,
        tally: &mut Tally,
    ) -> Result<(), Trouble> {
        let request = self.remote.request(Method::POST, "v1/events").map_err(|failure| {
            // A `tidings dev` that is being restarted.
            match failure.exit {
                Exit::Unavailable => {
                    Trouble::Passing { message: failure.message, retry_after: None }
                }
                _ => Trouble::Final(failure),
            }
        })?;
        let request = request.header("content-type", "application/x-ndjson").body(body).send();
        let mut response = accept(within(request).await??).await?;
        let mut answers = Vec::new();
        let mut trouble = None;
        loop {
            let Some(chunk) = within(response.chunk()).await?? else { break };
            answers.extend_from_slice(&chunk);
            while let Some(end) = answers.iter().position(|byte| *byte == b'\n') {
                let answer: Vec<u8> = answers.drain(..=end).collect();
                let Some(line) = sent.pop_front() else { break };
                match self.settle(&answer, &line, tally) {
                    Ok(()) => tally.settled_bytes = tally.settled_bytes.max(line.end),
                    Err(Trouble::Final(failure)) => return Err(Trouble::Final(failure)),
                    Err(passing) => {
                        again.push(line);
                        trouble = Some(passing);
                    }
                }
            }
            if answers.len() > ANSWER_BYTES_MAX {
                return Err(lost("the hub's answer is no NDJSON"));
            }
            (self.progress)(tally);
        }
        match trouble {
            Some(trouble) => Err(trouble),
            None if sent.is_empty() => Ok(()),
            None => Err(lost("the hub's answer broke off")),
        }
    }

    /// What the hub says of one event. An error: it is to be tried again, or all is over.
    fn settle(&self, answer: &[u8], line: &Line, tally: &mut Tally) -> Result<(), Trouble> {
        let answer: Value =
            serde_json::from_slice(answer).map_err(|_| lost("the hub's answer is no NDJSON"))?;
        let Some(problem) = answer.get("error") else {
            tally.published += 1;
            tally.repaired += u64::from(line.was_repaired);
            let repeated = answer.get("duplicate").and_then(Value::as_bool).unwrap_or(false);
            tally.repeated += u64::from(repeated);
            return Ok(());
        };
        let status = problem.get("status").and_then(Value::as_u64).unwrap_or(400);
        let status =
            u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.unwrap_or(StatusCode::BAD_REQUEST);
        match refusal(status, Some(problem), None) {
            Trouble::Final(failure) => {
                let code = problem.get("code").and_then(Value::as_str).unwrap_or_default();
                let ends_all = failure.exit == Exit::Refused || code == "topic_closed";
                if ends_all && self.refusals == Refusals::EndAll {
                    return Err(Trouble::Final(failure));
                }
                refuse(tally, line.number, &describe(status, Some(problem)));
                Ok(())
            }
            passing => Err(passing),
        }
    }
}

fn take(
    read: std::io::Result<Vec<Read1>>,
    waiting: &mut VecDeque<Line>,
    tally: &mut Tally,
) -> Result<(), Failure> {
    for read in read.map_err(|error| Failure::input("the input", &error))? {
        match read {
            Read1::Line(line) => waiting.push_back(line),
            Read1::Unusable { number, reason } => refuse(tally, number, &reason),
        }
    }
    Ok(())
}

fn refuse(tally: &mut Tally, number: u64, reason: &str) {
    tally.refused += 1;
    if tally.refused <= REPORTS_MAX {
        warn(&format!("line {number}: {reason}"));
    } else if tally.refused == REPORTS_MAX + 1 {
        warn("further refusals are only counted");
    }
}

/// Waits for the hub, but not for ever.
async fn within<T>(future: impl Future<Output = T>) -> Result<T, Trouble> {
    timeout(ANSWER_MAX, future).await.map_err(|_| lost("the hub did not answer in time"))
}

fn lost(message: &str) -> Trouble {
    Trouble::Passing { message: message.to_owned(), retry_after: None }
}
