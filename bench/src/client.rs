//! The load generator's connections: one thread, no allocation for a delivery.
//!
//! The rule: what is measured is the server. Requests are prepared bytes in which only the time of
//! sending is written anew; answers are searched for a mark and not parsed; one buffer serves all
//! readers.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::LazyLock,
    time::Duration,
};

use memchr::memmem::{self, Finder};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpSocket, TcpStream},
    sync::Notify,
    task::{JoinHandle, spawn_local},
    time::{Instant, timeout},
};

/// How every event of the load begins.
pub(crate) const TOPIC: &[u8] = b"{\"topic\":\"bench/";
/// What tells a reader that it has everything there was.
pub(crate) const CAUGHT_UP: &str = "tidings.caught_up";
/// What occurs once in each event: the time of sending, sixteen digits, follows it.
const SENT: &[u8] = b"\"sent\":";
const DIGITS: usize = 16;
/// What begins an event's own id, of as many digits.
const ID: &[u8] = b"\"id\":\"";
/// Makes every time, and every id, sixteen digits long.
const TIME_BASE: u64 = 1_000_000_000_000_000;
/// Longest wait for anything: past it something is wrong.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(180);
/// Ports of one source address that are used, of the 28 000 that Linux gives by default.
const ADDRESS_PORTS: usize = 20_000;

static SENT_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(SENT));
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

thread_local! {
    /// The last event's own id.
    static LAST_ID: Cell<u64> = const { Cell::new(0) };
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 256 * 1024]);
}

fn now() -> u64 {
    u64::try_from(BEGAN.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// What a server's clients say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The hub's own, which the floor and our servers around others' libraries understand.
    Tidings,
    /// nginx with Nchan: `/pub/N` and `/sub/N`.
    Nchan,
    /// The Durable Streams protocol: a stream is made by PUT, followed by long GETs.
    DurableStreams,
}

/// Where a server is, and how it is spoken to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) dialect: Dialect,
    pub(crate) key: String,
    pub(crate) token: String,
    /// Whether events have ids of their publisher's own, which are looked up and kept.
    pub(crate) has_ids: bool,
}

/// Where a reader starts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From<'a> {
    Now,
    Earliest,
    Cursor(&'a str),
}

fn data(bytes: usize) -> String {
    let pad = "x".repeat(bytes.saturating_sub(SENT.len() + DIGITS + 11));
    format!(r#"{{"sent":{TIME_BASE},"pad":"{pad}"}}"#)
}

impl Target {
    /// An event for a topic, whose data has so many bytes.
    fn event(&self, topic: usize, data_bytes: usize) -> String {
        let data = data(data_bytes);
        let id = if self.has_ids { format!(r#""id":"{TIME_BASE}","#) } else { String::new() };
        format!(r#"{{"topic":"bench/{topic}",{id}"type":"bench","data":{data}}}"#)
    }

    /// A request that publishes one event.
    pub(crate) fn publish(&self, topic: usize, data_bytes: usize) -> Request {
        match self.dialect {
            Dialect::Tidings => self.post("/v1/events", &self.event(topic, data_bytes)),
            Dialect::Nchan => self.post(&format!("/pub/{topic}"), &data(data_bytes)),
            Dialect::DurableStreams => self.post(&format!("/bench/{topic}"), &data(data_bytes)),
        }
    }

    /// A request that publishes events to these topics, in one array.
    pub(crate) fn publish_all(
        &self,
        topics: impl Iterator<Item = usize>,
        data_bytes: usize,
    ) -> Request {
        let dialect = self.dialect;
        let mut path = "/v1/events".to_owned();
        let events = topics.map(|topic| match dialect {
            Dialect::Tidings => self.event(topic, data_bytes),
            Dialect::Nchan | Dialect::DurableStreams => {
                path = format!("/bench/{topic}");
                data(data_bytes)
            }
        });
        let body = format!("[{}]", events.collect::<Vec<_>>().join(","));
        self.post(&path, &body)
    }

    fn post(&self, path: &str, body: &str) -> Request {
        let (key, length) = (&self.key, body.len());
        Request::new(format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
             authorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    }

    /// A line of a publisher's stream, as a chunk of its own (RFC 9112 §7.1).
    fn line(&self, topic: usize, data_bytes: usize) -> Request {
        let line = self.event(topic, data_bytes) + "\n";
        Request::new(format!("{:x}\r\n{line}\r\n", line.len()))
    }

    /// What must be asked once before a topic is used, if anything.
    pub(crate) fn create(&self, topic: usize) -> Option<Vec<u8>> {
        (self.dialect == Dialect::DurableStreams).then(|| {
            format!(
                "PUT /bench/{topic} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
                 content-length: 0\r\n\r\n"
            )
            .into_bytes()
        })
    }

    /// A request that follows a topic.
    pub(crate) fn follow(&self, topic: usize, from: From<'_>) -> String {
        let path = match (self.dialect, from) {
            (Dialect::Tidings, From::Earliest) => {
                format!("/v1/events?topic=bench/{topic}&since=earliest")
            }
            (Dialect::Tidings, _) => format!("/v1/events?topic=bench/{topic}"),
            (Dialect::Nchan, From::Earliest) => format!("/all/{topic}"),
            (Dialect::Nchan, _) => format!("/sub/{topic}"),
            (Dialect::DurableStreams, From::Earliest) => {
                format!("/bench/{topic}?offset=-1&live=sse")
            }
            (Dialect::DurableStreams, _) => format!("/bench/{topic}?offset=now&live=sse"),
        };
        let cursor = match from {
            From::Cursor(cursor) => format!("last-event-id: {cursor}\r\n"),
            From::Now | From::Earliest => String::new(),
        };
        let token = &self.token;
        format!(
            "GET {path} HTTP/1.1\r\nhost: bench\r\naccept: text/event-stream\r\n{cursor}\
             authorization: Bearer {token}\r\n\r\n"
        )
    }

    /// What a reader has seen once it will get what is published from now on.
    pub(crate) fn ready(&self) -> &'static [u8] {
        match self.dialect {
            Dialect::Tidings => CAUGHT_UP.as_bytes(),
            Dialect::Nchan => b": hi",
            Dialect::DurableStreams => b"upToDate",
        }
    }

    /// Connects, the `nth` of many.
    pub(crate) async fn connect(&self, nth: usize) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        if nth >= ADDRESS_PORTS {
            let host = u8::try_from(1 + nth / ADDRESS_PORTS).unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
        }
        let connecting = timeout(WAIT_MAX, socket.connect(self.address));
        let stream = connecting.await.unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

/// A request as bytes, in which the times of sending, and the ids if there are any, are written anew.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    times: Vec<usize>,
    ids: Vec<usize>,
}

impl Request {
    fn new(text: String) -> Self {
        let bytes = text.into_bytes();
        let times = SENT_FINDER.find_iter(&bytes).map(|at| at + SENT.len()).collect();
        let ids = memmem::find_iter(&bytes, ID).map(|at| at + ID.len()).collect();
        Self { bytes, times, ids }
    }

    /// The request, sent now.
    pub(crate) fn stamped(&mut self) -> &[u8] {
        self.stamped_at(now())
    }

    /// The request, as if it was sent so many nanoseconds after the clock began.
    fn stamped_at(&mut self, at: u64) -> &[u8] {
        for place in &self.times {
            write_digits(&mut self.bytes[*place + 1..*place + DIGITS], at);
        }
        for place in &self.ids {
            let id = LAST_ID.get() + 1;
            LAST_ID.set(id);
            write_digits(&mut self.bytes[*place + 1..*place + DIGITS], id);
        }
        &self.bytes
    }

    /// The request as it was due, if it is late by more than a timer's coarseness: what waited for
    /// the answer before it has waited from when it was due.
    pub(crate) fn stamped_due(&mut self, due: Instant) -> &[u8] {
        let late = due.elapsed();
        let forgiven = late < Duration::from_millis(2);
        let at = now() - if forgiven { 0 } else { u64::try_from(late.as_nanos()).unwrap_or(0) };
        self.stamped_at(at)
    }
}

fn write_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// A connection that asks and is answered.
#[derive(Debug)]
pub(crate) struct Publisher {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Publisher {
    pub(crate) async fn connect(target: &Target) -> Self {
        Self { stream: target.connect(0).await, answer: Vec::with_capacity(4096) }
    }

    /// Sends a request and returns the body of its answer, which must be a success.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> &[u8] {
        self.stream.write_all(request).await.unwrap();
        self.answer.clear();
        let body = loop {
            self.read().await;
            if let Some(body) = whole(&self.answer) {
                break body;
            }
        };
        let status = self.answer.get(9..10);
        assert_eq!(status, Some(&b"2"[..]), "{}", String::from_utf8_lossy(&self.answer));
        self.answer.get(body..).unwrap_or_default()
    }

    /// Sends a line and waits for the line that says it is stored.
    async fn tell(&mut self, line: &[u8]) {
        self.stream.write_all(line).await.unwrap();
        self.answer.clear();
        while memmem::find(&self.answer, b"\"duplicate\":false}\n").is_none() {
            self.read().await;
            let said = String::from_utf8_lossy(&self.answer);
            assert!(!said.contains("error"), "{said}");
        }
    }

    /// Reads more of the answer.
    async fn read(&mut self) {
        let read = tokio::io::AsyncReadExt::read_buf(&mut self.stream, &mut self.answer);
        let count = timeout(WAIT_MAX, read).await.expect("an answer in time").unwrap();
        assert!(count > 0, "the server closed a publisher's connection");
    }
}

/// How one event after the other is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Each by a request.
    Requests,
    /// Each by a line of one long request (NDJSON), which is answered by a line.
    Lines,
}

/// Publishes the same event again and again, and waits for each answer.
#[derive(Debug)]
pub(crate) struct Repeating {
    publisher: Publisher,
    event: Request,
    form: Form,
}

impl Repeating {
    pub(crate) async fn start(target: &Target, form: Form, topic: usize, data: usize) -> Self {
        let mut publisher = Publisher::connect(target).await;
        let event = match form {
            Form::Requests => target.publish(topic, data),
            Form::Lines => {
                let head = format!(
                    "POST /v1/events HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {}\r\n\
                     content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n",
                    target.key
                );
                publisher.stream.write_all(head.as_bytes()).await.unwrap();
                target.line(topic, data)
            }
        };
        Self { publisher, event, form }
    }

    /// Publishes once, as if it was when it was due.
    pub(crate) async fn publish(&mut self, due: Instant) {
        let bytes = self.event.stamped_due(due);
        match self.form {
            Form::Requests => drop(self.publisher.ask(bytes).await),
            Form::Lines => self.publisher.tell(bytes).await,
        }
    }
}

/// Where the body of an answer begins, once all of it is there.
fn whole(answer: &[u8]) -> Option<usize> {
    let body = memmem::find(answer, b"\r\n\r\n")? + 4;
    let head = answer.get(..body)?;
    let mut length = 0;
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        if name.eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(&value[1..]).ok()?.trim().parse().ok()?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return answer.ends_with(b"0\r\n\r\n").then_some(body);
        }
    }
    (answer.len() >= body + length).then_some(body)
}

/// The cursor in the answer to a publish of one event.
pub(crate) fn cursor(answer: &[u8]) -> String {
    let mark = b"\"cursor\":\"";
    let start = memmem::find(answer, mark).expect("a cursor") + mark.len();
    let rest = &answer[start..];
    let end = rest.iter().position(|byte| *byte == b'"').unwrap();
    String::from_utf8(rest[..end].to_vec()).unwrap()
}

/// What all readers of a scenario have seen together.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    events: Cell<u64>,
    /// Whoever waits is told when this many have come.
    awaited: Cell<u64>,
    reached: Notify,
    /// From publishing to reading, in microseconds, while recording.
    delays: RefCell<Vec<u32>>,
    is_recording: Cell<bool>,
}

impl Tally {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    pub(crate) fn events(&self) -> u64 {
        self.events.get()
    }

    /// Waits until so many events have come.
    pub(crate) async fn reach(&self, events: u64) {
        let waiting = async {
            while self.events.get() < events {
                self.awaited.set(events);
                self.reached.notified().await;
            }
        };
        let in_time = timeout(WAIT_MAX, waiting).await;
        assert!(in_time.is_ok(), "{} of {events} events came", self.events.get());
    }

    /// Forgets the delays so far and records those to come.
    pub(crate) fn record(&self) {
        self.delays.borrow_mut().clear();
        self.is_recording.set(true);
    }

    /// The delays recorded.
    pub(crate) fn delays(&self) -> Delays {
        self.is_recording.set(false);
        Delays::of(self.delays.take())
    }

    fn came(&self, events: u64) {
        let count = self.events.get() + events;
        self.events.set(count);
        if count >= self.awaited.get() && count - events < self.awaited.get() {
            self.reached.notify_one();
        }
    }
}

/// Delays in order.
#[derive(Debug)]
pub(crate) struct Delays(Vec<u32>);

impl Delays {
    pub(crate) fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        Self(micros)
    }

    /// The delay that so many of a thousand do not exceed, in milliseconds.
    pub(crate) fn ms(&self, permille: usize) -> f64 {
        let place = (self.0.len() * permille / 1000).min(self.0.len().saturating_sub(1));
        self.0.get(place).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
    }
}

/// Microseconds since then.
pub(crate) fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// A reader of a stream of events.
#[derive(Debug)]
pub(crate) struct Reader<S> {
    stream: S,
    /// The end of what was read, which may be the beginning of a mark.
    rest: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Reader<S> {
    /// Sends a request, and waits until the reader is live, or (without `ready`) not at all.
    pub(crate) async fn open(mut stream: S, request: &str, ready: Option<&[u8]>) -> Self {
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut reader = Self { stream, rest: Vec::with_capacity(SENT.len() + DIGITS) };
        if let Some(ready) = ready {
            let waiting = timeout(WAIT_MAX, reader.until(ready));
            assert!(waiting.await.is_ok_and(|read| read.is_ok()), "a reader was not served");
        }
        reader
    }

    /// Reads until a text has come. What comes with it or before is passed over.
    pub(crate) async fn until(&mut self, mark: &[u8]) -> io::Result<()> {
        let mut came = Vec::new();
        while memmem::find(&came, mark).is_none() {
            self.read(|bytes| {
                came.extend_from_slice(bytes);
                bytes.len()
            })
            .await?;
        }
        Ok(())
    }

    /// Counts events until so many have come, or for ever.
    pub(crate) async fn count(&mut self, tally: &Tally, events: u64) -> io::Result<()> {
        let mut seen = 0;
        while seen < events {
            let mut found = 0;
            self.read(|bytes| {
                let now = now();
                let mut after = 0;
                for at in SENT_FINDER.find_iter(bytes) {
                    let Some(digits) = bytes.get(at + SENT.len()..at + SENT.len() + DIGITS) else {
                        break;
                    };
                    found += 1;
                    after = at + SENT.len() + DIGITS;
                    if tally.is_recording.get() {
                        let sent = digits.iter().skip(1);
                        let sent = sent.fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
                        let delay = now.saturating_sub(sent) / 1000;
                        let delay = u32::try_from(delay).unwrap_or(u32::MAX);
                        tally.delays.borrow_mut().push(delay);
                    }
                }
                after
            })
            .await?;
            seen += found;
            if found > 0 {
                tally.came(found);
            }
        }
        Ok(())
    }

    /// Reads what has come and has it looked at; up to where it needs not be looked at again.
    async fn read(&mut self, mut look: impl FnMut(&[u8]) -> usize) -> io::Result<()> {
        let Self { stream, rest } = self;
        std::future::poll_fn(|context| {
            BUFFER.with_borrow_mut(|buffer| {
                let held = rest.len();
                buffer[..held].copy_from_slice(rest);
                let mut free = ReadBuf::new(&mut buffer[held..]);
                let polled = Pin::new(&mut *stream).poll_read(context, &mut free);
                let count = free.filled().len();
                std::task::ready!(polled)?;
                if count == 0 {
                    return std::task::Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                let filled = &buffer[..held + count];
                let looked = look(filled);
                // At most one mark and its digits, less a byte, can be cut by the end.
                let keep = looked.max(filled.len().saturating_sub(SENT.len() + DIGITS - 1));
                rest.clear();
                rest.extend_from_slice(&filled[keep..]);
                std::task::Poll::Ready(Ok(()))
            })
        })
        .await
    }
}

/// Publishers that send their requests in turn, each when the last is answered, until stopped.
#[derive(Debug)]
pub(crate) struct Publishing {
    /// Their answers, and how long these took.
    pub(crate) answers: Rc<Tally>,
    stopped: Rc<Cell<bool>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Publishing {
    /// Starts one for each list of requests.
    pub(crate) async fn start(target: &Target, lists: impl Iterator<Item = Vec<Request>>) -> Self {
        let (answers, stopped) = (Tally::new(), Rc::new(Cell::new(false)));
        let mut tasks = Vec::new();
        for mut requests in lists {
            let mut publisher = Publisher::connect(target).await;
            let (answers, stopped) = (Rc::clone(&answers), Rc::clone(&stopped));
            tasks.push(spawn_local(async move {
                for turn in (0..requests.len()).cycle() {
                    if stopped.get() {
                        return;
                    }
                    let sent = Instant::now();
                    publisher.ask(requests[turn].stamped()).await;
                    if answers.is_recording.get() {
                        answers.delays.borrow_mut().push(micros(sent));
                    }
                    answers.came(1);
                }
            }));
        }
        Self { answers, stopped, tasks }
    }

    /// Lets each have its last answer; how many there were in all.
    pub(crate) async fn stop(self) -> u64 {
        self.stopped.set(true);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.answers.events()
    }
}
