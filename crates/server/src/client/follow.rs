//! `tidings follow`: prints events as they happen, for as long as somebody reads them.
//!
//! The rules: the cursor moves only once its event is printed, on disk as in memory; every way of
//! losing the connection ends in resuming from it, unless the hub says that it is no use.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::{
    note,
    sse_reader::{SseFrame, SseReader},
    warn,
};
use crate::{
    cli::{FollowArgs, FormatArg},
    exit::{Exit, Failure},
    remote::{Backoff, Purpose, Remote, Trouble, accept, random, refusal},
};

/// How long the first bytes may take: the hub sends them before it reads anything.
const FIRST_BYTES_MAX: Duration = Duration::from_secs(30);
/// Silence that means a dead connection, until the hub has told its heartbeat.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What a dead connection is given beyond two heartbeats.
const SILENCE_SLACK: Duration = Duration::from_secs(5);

/// Runs the command.
pub(crate) async fn run(args: FollowArgs) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.hub, Purpose::Follow)?;
    let place = Place::open(args.cursor_file.clone())?;
    let query = query(&args)?;
    let mut follower = Follower { args, remote, place, query, printed: 0, retry: None };
    follower.run().await
}

/// The request's parameters besides where to start.
fn query(args: &FollowArgs) -> Result<Vec<(String, String)>, Failure> {
    let mut query: Vec<(String, String)> =
        args.topic.iter().map(|topic| ("topic".to_owned(), topic.clone())).collect();
    for filter in &args.filter {
        match filter.split_once('=') {
            Some((name @ ("type" | "key" | "class"), value)) => {
                query.push((name.to_owned(), value.to_owned()));
            }
            _ => {
                let message = format!("--filter {filter}: must be type=…, key=… or class=…");
                return Err(Failure::new(Exit::Usage, message));
            }
        }
    }
    if args.no_states {
        query.push(("state".to_owned(), "0".to_owned()));
    }
    Ok(query)
}

/// Why one connection is over.
enum End {
    /// All that was asked for is done, or nobody reads any more.
    Done,
    /// The hub asks to come back after so long.
    ComeBack(Duration),
    Trouble(Trouble),
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<reqwest::Error> for End {
    fn from(error: reqwest::Error) -> Self {
        Self::Trouble(error.into())
    }
}

struct Follower {
    args: FollowArgs,
    remote: Remote,
    place: Place,
    query: Vec<(String, String)>,
    printed: u64,
    /// What the hub's last `retry:` said.
    retry: Option<Duration>,
}

impl Follower {
    async fn run(&mut self) -> Result<Exit, Failure> {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(20));
        let mut away_since: Option<Instant> = None;
        loop {
            let mut heard = false;
            let end = self.connect(&mut heard).await;
            if heard {
                if away_since.take().is_some() {
                    self.note(&format!("{} is back", self.remote.address()));
                }
                backoff.reset();
            }
            let (message, retry_after) = match end {
                End::Done => return Ok(Exit::Ok),
                End::ComeBack(after) => {
                    sleep(after).await;
                    continue;
                }
                End::Trouble(Trouble::Final(failure)) => return Err(failure),
                End::Trouble(Trouble::Passing { message, retry_after }) => (message, retry_after),
            };
            let since = *away_since.get_or_insert_with(Instant::now);
            if self.args.retry_for.is_some_and(|period| since.elapsed() >= period.0) {
                let message = format!("{}: {message}", self.remote.address());
                return Err(Failure::new(Exit::Unavailable, message));
            }
            if backoff.is_first() {
                self.warn(&format!("{}: {message}; trying again", self.remote.address()));
            }
            // A hub that went down without a word has told before how to spread its readers.
            let spread = self.retry.take().filter(|_| heard).map(|retry| retry.mul_f64(random()));
            sleep(backoff.next(retry_after) + spread.unwrap_or_default()).await;
        }
    }

    async fn connect(&mut self, heard: &mut bool) -> End {
        match self.exchange(heard).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn exchange(&mut self, heard: &mut bool) -> Result<End, End> {
        let request = match self.remote.request(Method::GET, "v1/events") {
            Ok(request) => request,
            // A `tidings dev` that is being restarted.
            Err(failure) if failure.exit == Exit::Unavailable => {
                return Err(passing(&failure.message));
            }
            Err(failure) => return Err(End::Trouble(Trouble::Final(failure))),
        };
        let mut request = request.query(&self.query).header("accept", "text/event-stream");
        match (&self.place.cursor, &self.args.since) {
            (Some(cursor), _) => request = request.header("last-event-id", cursor),
            (None, Some(since)) => request = request.query(&[("since", since)]),
            (None, None) => {}
        }
        let response = timeout(FIRST_BYTES_MAX, request.send());
        let response = response.await.map_err(|_| passing("the hub did not answer"))??;
        let mut response = accept(response).await?;
        if response.status() == StatusCode::NO_CONTENT {
            self.note("nothing more will follow");
            return Ok(End::Done);
        }
        let mut reader = SseReader::default();
        let mut silence_max = SILENCE_MAX;
        loop {
            let chunk = timeout(silence_max, response.chunk()).await;
            let Some(chunk) = chunk.map_err(|_| passing("the hub fell silent"))?? else {
                return Err(passing("the connection ended"));
            };
            *heard = true;
            let frames = reader.feed(&chunk).map_err(|error| {
                End::Trouble(Trouble::Final(Failure::new(Exit::Software, error.to_string())))
            })?;
            let mut end = None;
            {
                let mut out = io::BufWriter::new(io::stdout().lock());
                for frame in frames {
                    match self.frame(&frame, &mut out, &mut silence_max) {
                        Ok(None) => {}
                        Ok(Some(over)) => end = Some(over),
                        Err(error) => return Err(end_of_output(&error)),
                    }
                    if end.is_some() {
                        break;
                    }
                }
                out.flush().map_err(|error| end_of_output(&error))?;
            }
            // Only now: what the cursor covers is in the hands of whoever reads the output.
            self.place.save().map_err(|failure| End::Trouble(Trouble::Final(failure)))?;
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    /// Prints a frame or does what it says.
    fn frame(
        &mut self,
        frame: &SseFrame,
        out: &mut impl Write,
        silence_max: &mut Duration,
    ) -> io::Result<Option<End>> {
        if self.args.format == FormatArg::Sse {
            out.write_all(frame.raw.as_bytes())?;
        }
        if let Some(ms) = frame.retry_ms {
            self.retry = Some(Duration::from_millis(ms));
        }
        let data = frame.data.as_deref().unwrap_or_default();
        let mut end = None;
        match frame.event.as_deref() {
            None if frame.data.is_some() => {
                self.print(data, out)?;
                self.printed += 1;
                if self.args.count.is_some_and(|count| self.printed >= count) {
                    end = Some(End::Done);
                }
            }
            Some(name) => {
                let content: Value = serde_json::from_str(data).unwrap_or_default();
                end = self.control(name, &content, silence_max);
            }
            None => {}
        }
        if let Some(id) = &frame.id {
            self.place.reached(id);
        }
        Ok(end)
    }

    fn print(&self, data: &str, out: &mut impl Write) -> io::Result<()> {
        match self.args.format {
            FormatArg::Sse => Ok(()),
            FormatArg::Ndjson => writeln!(out, "{data}"),
            FormatArg::Data => {
                let event: EventData<'_> = serde_json::from_str(data).unwrap_or_default();
                match event.data {
                    Some(raw) => match serde_json::from_str::<String>(raw.get()) {
                        Ok(text) => writeln!(out, "{text}"),
                        Err(_) => writeln!(out, "{}", raw.get()),
                    },
                    None => writeln!(out, "{}", event.data_base64.unwrap_or_default()),
                }
            }
        }
    }

    fn control(&self, name: &str, content: &Value, silence_max: &mut Duration) -> Option<End> {
        let text = |name: &str| content.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = |name: &str| content.get(name).and_then(Value::as_u64);
        match name {
            "tidings.hello" => {
                if let Some(ms) = number("heartbeat_ms") {
                    *silence_max = Duration::from_millis(ms.saturating_mul(2)) + SILENCE_SLACK;
                }
            }
            "tidings.caught_up" if self.args.catch_up => return Some(End::Done),
            "tidings.gap" => {
                let (topic, reason) = (text("topic"), text("reason"));
                let bounds = match (number("from"), number("to")) {
                    (Some(from), Some(to)) => format!(", offsets {from} to {to}"),
                    _ => String::new(),
                };
                warn(&format!("gap in {topic}: {reason}{bounds}"));
            }
            "tidings.goaway" => {
                let after = Duration::from_millis(number("retry_ms").unwrap_or(1000));
                return match text("reason") {
                    "closed" => {
                        self.note("closed: nothing more will follow");
                        Some(End::Done)
                    }
                    reason => {
                        if reason != "max_age" {
                            self.note(&format!("the hub ends the connection: {reason}"));
                        }
                        Some(End::ComeBack(after))
                    }
                };
            }
            "tidings.problem" => {
                let status = number("status").and_then(|status| u16::try_from(status).ok());
                let status = status.and_then(|status| StatusCode::from_u16(status).ok());
                let status = status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
                return Some(End::Trouble(refusal(status, Some(content), None)));
            }
            "tidings.auth" => self.note(&format!("the credential ends at {}", text("expires_at"))),
            _ => {}
        }
        None
    }

    fn note(&self, text: &str) {
        if !self.args.quiet {
            note(text);
        }
    }

    fn warn(&self, text: &str) {
        if !self.args.quiet {
            warn(text);
        }
    }
}

/// An event's data, as it was written.
#[derive(Default, serde::Deserialize)]
struct EventData<'a> {
    #[serde(borrow)]
    data: Option<&'a serde_json::value::RawValue>,
    data_base64: Option<String>,
}

fn passing(message: &str) -> End {
    End::Trouble(Trouble::Passing { message: message.to_owned(), retry_after: None })
}

/// Whoever read the output has enough: that is a good end. Any other error is none.
fn end_of_output(error: &io::Error) -> End {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return End::Done;
    }
    End::Trouble(Trouble::Final(Failure::output("stdout", error)))
}

/// How far the output has got, kept in a file if one was named.
#[derive(Debug)]
struct Place {
    file: Option<PathBuf>,
    cursor: Option<String>,
    saved: Option<String>,
}

impl Place {
    /// Begins where the file says, if there is one.
    fn open(file: Option<PathBuf>) -> Result<Self, Failure> {
        let cursor = match &file {
            None => None,
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(Failure::input(path.display(), &error)),
            },
        };
        Ok(Self { file, saved: cursor.clone(), cursor })
    }

    fn reached(&mut self, cursor: &str) {
        self.cursor = Some(cursor.to_owned());
    }

    /// Replaces the file as a whole, so that a crash leaves the old place or the new one.
    fn save(&mut self) -> Result<(), Failure> {
        let (Some(file), Some(cursor)) = (&self.file, &self.cursor) else { return Ok(()) };
        if self.saved.as_ref() == Some(cursor) {
            return Ok(());
        }
        replace(file, &format!("{cursor}\n"))
            .map_err(|error| Failure::output(file.display(), &error))?;
        self.saved = Some(cursor.clone());
        Ok(())
    }
}

/// Writes a file beside the old one and renames it over it. Not fsynced for each event: after a
/// power failure the place may be an earlier one, which repeats events but loses none.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, file)
}
