//! `tidings publish`: one event, each line of stdin, or NDJSON in bulk.
//!
//! The rule: what is reported as published is durable, and is there once however often it was sent.

use std::{
    fs::File,
    io::{IsTerminal as _, Read, Write as _},
    path::Path,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Method;
use serde_json::{Map, Value, value::RawValue};
use tidings::model::{EventId, EventType, JsonText, Topic};
use tokio::time::{Instant, sleep};

use super::{
    input::{self, Shape},
    note,
    sender::{Refusals, Sender, Tally},
    warn,
};
use crate::{
    cli::{ClassArg, PublishArgs},
    exit::{Exit, Failure},
    remote::{Backoff, Purpose, Remote, Trouble, accept},
};

/// How long one event is tried.
const RETRY_ONE: Duration = Duration::from_secs(10);
/// How long a stream waits for the hub: a restart or redeployment passes by.
const RETRY_STREAM: Duration = Duration::from_secs(10 * 60);
/// An answer to one event.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Runs the command.
pub(crate) async fn run(args: PublishArgs) -> Result<Exit, Failure> {
    check(&args)?;
    if let Some(url) = &args.amqp {
        return super::amqp::publish(&args, url, data(&args)?).await;
    }
    let remote = Remote::new(&args.hub, Purpose::Publish)?;
    if args.lines {
        let members =
            [("class", args.class.map(ClassArg::as_str)), ("subject", args.subject.as_deref())];
        let members =
            members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        let members = Map::from_iter(members);
        let shape = Shape::Line {
            topic: args.topic.clone().unwrap_or_default(),
            event_type: args.event_type.clone().unwrap_or_else(|| "line".to_owned()),
            members,
        };
        stream(&args, &remote, Box::new(std::io::stdin()), None, shape).await
    } else if args.ndjson {
        let shape = Shape::Event { topic: args.topic.clone(), event_type: args.event_type.clone() };
        let (input, size): (Box<dyn Read + Send>, _) = match &args.file {
            Some(file) if file.as_path() != Path::new("-") => {
                let opened =
                    File::open(file).map_err(|error| Failure::input(file.display(), &error))?;
                let size = opened.metadata().ok().map(|metadata| metadata.len());
                (Box::new(opened), size)
            }
            _ => (Box::new(std::io::stdin()), None),
        };
        stream(&args, &remote, input, size, shape).await
    } else {
        one(&args, &remote).await
    }
}

impl ClassArg {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::State => "state",
            Self::Ephemeral => "ephemeral",
        }
    }
}

/// What the hub would refuse anyway, said at once.
fn check(args: &PublishArgs) -> Result<(), Failure> {
    let usage = |flag: &str, error: &dyn std::fmt::Display| {
        Failure::new(Exit::Usage, format!("{flag}: {error}"))
    };
    if let Some(topic) = &args.topic {
        Topic::parse(topic).map_err(|error| usage("--topic", &error))?;
    }
    if let Some(event_type) = &args.event_type {
        EventType::parse(event_type).map_err(|error| usage("--type", &error))?;
    }
    if args.class == Some(ClassArg::State) && args.key.is_none() {
        return Err(usage("--class state", &"needs --key"));
    }
    Ok(())
}

/// Publishes one event and prints its result as a line of JSON.
async fn one(args: &PublishArgs, remote: &Remote) -> Result<Exit, Failure> {
    let body = event(args)?;
    let retry_for = args.retry_for.map_or(RETRY_ONE, |period| period.0);
    let started = Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let (message, retry_after) = match post(remote, &body).await {
            Ok(result) => {
                let mut out = anstream::stdout();
                return match writeln!(out, "{result}").and_then(|()| out.flush()) {
                    Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                        Err(Failure::output("stdout", &error))
                    }
                    _ => Ok(Exit::Ok),
                };
            }
            Err(Trouble::Final(failure)) => return Err(failure),
            Err(Trouble::Passing { message, retry_after }) => (message, retry_after),
        };
        if started.elapsed() >= retry_for {
            let message = format!("{}: {message}", remote.address());
            return Err(Failure::new(Exit::Unavailable, message));
        }
        if backoff.is_first() && !args.quiet {
            warn(&format!("{}: {message}; trying again", remote.address()));
        }
        sleep(backoff.next(retry_after)).await;
    }
}

async fn post(remote: &Remote, body: &str) -> Result<Value, Trouble> {
    let request = remote.request(Method::POST, "v1/events").map_err(Trouble::Final)?;
    let request = request
        .timeout(ANSWER_MAX)
        .header("content-type", "application/json")
        .body(body.to_owned());
    let answer = accept(request.send().await?).await?.bytes().await?;
    let mut answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let result = answer.pointer_mut("/results/0").map(Value::take);
    result.ok_or_else(|| {
        Trouble::Final(Failure::new(Exit::Software, "the hub's answer has no result"))
    })
}

/// The event as JSON. Its id is fixed here, so that it may be sent again.
fn event(args: &PublishArgs) -> Result<String, Failure> {
    let data = data(args)?.and_then(|data| RawValue::from_string(data.as_str().to_owned()).ok());
    let class = args.class.or(args.key.is_some().then_some(ClassArg::State));
    let id = args.id.clone().unwrap_or_else(|| EventId::mint().to_string());
    let event = NewEventJson {
        topic: args.topic.as_deref().unwrap_or_default(),
        event_type: args.event_type.as_deref().unwrap_or_default(),
        id: &id,
        class: class.map(ClassArg::as_str),
        key: args.key.as_deref(),
        subject: args.subject.as_deref(),
        if_offset: args.if_offset,
        expires_at: args.expires_at.as_deref(),
        delete: args.delete.then_some(true),
        close: args.close.then_some(true),
        data: data.as_deref(),
    };
    serde_json::to_string(&event).map_err(|error| Failure::new(Exit::Software, error.to_string()))
}

/// The data as JSON: strictly, as the hub reads it, and as text, so that numbers keep their digits.
fn data(args: &PublishArgs) -> Result<Option<JsonText>, Failure> {
    let text = match (&args.data, &args.data_file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(file)) => Some(read_data(file)?),
        (None, None) => None,
    };
    Ok(text.map(|text| JsonText::parse(&text).unwrap_or_else(|_| JsonText::string(&text))))
}

#[derive(serde::Serialize)]
struct NewEventJson<'a> {
    topic: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delete: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

fn read_data(file: &Path) -> Result<String, Failure> {
    let read = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    read.map_err(|error| Failure::input(file.display(), &error))
}

/// Publishes a stream and says on stderr what became of it.
async fn stream(
    args: &PublishArgs,
    remote: &Remote,
    input: Box<dyn Read + Send>,
    size: Option<u64>,
    shape: Shape,
) -> Result<Exit, Failure> {
    let refusals = match shape {
        Shape::Line { .. } => Refusals::EndAll,
        Shape::Event { .. } => Refusals::AreTheirOwn,
    };
    let run = EventId::mint().to_string();
    let lines = input::spawn(input, run, shape);
    let bar = if args.ndjson && !args.quiet { progress_bar(size) } else { ProgressBar::hidden() };
    let started = Instant::now();
    let mut tally = Tally::default();
    let show = |tally: &Tally| {
        let seconds = started.elapsed().as_secs_f64().max(0.001);
        let rate =
            (f64::from(u32::try_from(tally.published).unwrap_or(u32::MAX)) / seconds).round();
        bar.set_position(tally.settled_bytes);
        bar.set_message(format!("{} events, {rate}/s", tally.published));
    };
    let retry_for = args.retry_for.map_or(RETRY_STREAM, |period| period.0);
    let sender = Sender { remote, retry_for, refusals, progress: &show };
    let sent = sender.run(lines, &mut tally).await;
    bar.finish_and_clear();
    if !args.quiet {
        note(&summary(args, &tally, started.elapsed()));
    }
    sent?;
    Ok(if tally.refused > 0 { Exit::Data } else { Exit::Ok })
}

/// A bar with count, rate and remaining time; invisible unless stderr is a terminal.
fn progress_bar(size: Option<u64>) -> ProgressBar {
    let template = match size {
        Some(_) => "{bar:24} {percent:>3}%  {msg}  {bytes}/{total_bytes}  {eta} left",
        None => "{spinner} {msg}  {bytes}  {elapsed}",
    };
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = match size {
        Some(size) => ProgressBar::new(size),
        None => ProgressBar::new_spinner(),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn summary(args: &PublishArgs, tally: &Tally, took: Duration) -> String {
    let what = if args.lines { "line" } else { "event" };
    let plural = if tally.published == 1 { "" } else { "s" };
    // Lines of NDJSON may have gone anywhere.
    let topic = args.topic.as_deref().filter(|_| args.lines);
    let place = topic.map(|topic| format!(" to {topic}")).unwrap_or_default();
    let seconds = took.as_secs_f64();
    let mut text = format!("published {} {what}{plural}{place} in {seconds:.1}s", tally.published);
    for (count, meaning) in [
        (tally.repeated, "sent again after a lost answer, stored once"),
        (tally.refused, "refused"),
        (tally.repaired, "with bytes that are no UTF-8, replaced"),
    ] {
        if count > 0 {
            text.push_str(&format!("; {count} {meaning}"));
        }
    }
    text
}
