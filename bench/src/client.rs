//! The load generator's connections: one thread, no allocation for a delivery.
//!
//! The rule: what is measured is the server. Requests are prepared bytes in which only the time of
//! sending and the events' numbers are written anew; answers are searched for a mark and not parsed;
//! one buffer serves all readers.
//!
//! Each event has its number in its topic, from 1 on, in its data, which every server hands on as it
//! came. A reader that gets another than the next one fails the run: one that is doubled does not
//! make up for one that is lost.

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
    time::{Instant, sleep_until, timeout},
};

use crate::figure::{Figure, Unit};

/// How every event of the load begins.
pub(crate) const TOPIC: &[u8] = b"{\"topic\":\"bench/";
/// What tells a reader that it has everything there was.
pub(crate) const CAUGHT_UP: &str = "tidings.caught_up";
/// What occurs once in each event: the time of sending, sixteen digits, a space and the event's
/// number follow it.
const SENT: &[u8] = b"\"sent\":\"";
const DIGITS: usize = 16;
const NUMBER_DIGITS: usize = 10;
/// What follows the mark.
const STAMP: usize = DIGITS + 1 + NUMBER_DIGITS;
/// What begins an event's own id, of as many digits.
const ID: &[u8] = b"\"id\":\"";
/// What the hub says of an event that it did not take, in an answer that is a success for others.
const REFUSED: &[u8] = b"\"error\":{";
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

/// A moment, in nanoseconds since the clock began.
fn nanos(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*BEGAN).as_nanos()).unwrap_or(u64::MAX)
}

fn now() -> u64 {
    nanos(Instant::now())
}

/// Waits until something is due, and gives the nanoseconds that it counts from. What had to wait for
/// the answer to the one before is late because of the server, and counts from when it was due. What
/// only a timer of the load generator made late counts from now, and how late it was is recorded.
pub(crate) async fn due(at: Instant, tally: &Tally) -> u64 {
    if at <= Instant::now() {
        return nanos(at);
    }
    sleep_until(at).await;
    if tally.is_recording.get() {
        tally.late.borrow_mut().push(micros(at));
    }
    now()
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
    let number = 0;
    let whole = |pad: &str| format!(r#"{{"sent":"{TIME_BASE} {number:010}","pad":"{pad}"}}"#);
    whole(&"x".repeat(bytes.saturating_sub(whole("").len())))
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

/// A request as bytes, in which the times of sending, the events' numbers, and the ids if there are
/// any, are written anew. All its events are of one topic where anybody reads them.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    /// Where each event's time begins.
    stamps: Vec<usize>,
    ids: Vec<usize>,
    /// The number of the event that was written last.
    last: u64,
}

impl Request {
    fn new(text: String) -> Self {
        let bytes = text.into_bytes();
        let stamps = SENT_FINDER.find_iter(&bytes).map(|at| at + SENT.len()).collect();
        let ids = memmem::find_iter(&bytes, ID).map(|at| at + ID.len()).collect();
        Self { bytes, stamps, ids, last: 0 }
    }

    /// The same, for a topic that has so many events already.
    pub(crate) const fn after(mut self, events: u64) -> Self {
        self.last = events;
        self
    }

    /// The request, sent now.
    pub(crate) fn stamped(&mut self) -> &[u8] {
        self.stamped_at(now())
    }

    /// The request, as if it was sent so many nanoseconds after the clock began.
    pub(crate) fn stamped_at(&mut self, at: u64) -> &[u8] {
        for place in &self.stamps {
            self.last += 1;
            let (time, number) = self.bytes[*place..*place + STAMP].split_at_mut(DIGITS);
            write_digits(&mut time[1..], at);
            write_digits(&mut number[1..], self.last);
        }
        for place in &self.ids {
            let id = LAST_ID.get() + 1;
            LAST_ID.set(id);
            write_digits(&mut self.bytes[*place + 1..*place + DIGITS], id);
        }
        &self.bytes
    }
}

fn write_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// An event's number as it is written.
fn number(number: u64) -> [u8; NUMBER_DIGITS] {
    let mut digits = [b'0'; NUMBER_DIGITS];
    write_digits(&mut digits, number);
    digits
}

/// Makes digits those of the next number.
fn increment(digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        if *digit != b'9' {
            *digit += 1;
            return;
        }
        *digit = b'0';
    }
}

fn read_digits(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit.wrapping_sub(b'0')))
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

    /// Sends a request and returns the body of its answer, which must be a success of all of it.
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
        let is_whole = memmem::find(&self.answer, REFUSED).is_none();
        let is_success = status == Some(&b"2"[..]) && is_whole;
        assert!(is_success, "{}", String::from_utf8_lossy(&self.answer));
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

    /// Publishes once, as if it was so many nanoseconds after the clock began.
    pub(crate) async fn publish(&mut self, at: u64) {
        let bytes = self.event.stamped_at(at);
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
    /// How late the load generator was with what was due, in microseconds, while recording.
    late: RefCell<Vec<u32>>,
    is_recording: Cell<bool>,
    /// The first event that was not the next one.
    wrong: RefCell<Option<String>>,
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
            while self.events.get() < events && self.wrong.borrow().is_none() {
                self.awaited.set(events);
                self.reached.notified().await;
            }
        };
        let in_time = timeout(WAIT_MAX, waiting).await;
        let wrong = self.wrong.borrow().clone();
        assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
        assert!(in_time.is_ok(), "{} of {events} events came", self.events.get());
    }

    /// Waits until so many events have come, which are all there are.
    pub(crate) async fn reach_all(&self, events: u64) {
        self.reach(events).await;
        assert_eq!(self.events(), events, "events came that were not published");
    }

    /// Whoever waits is told that an event came where another was due.
    fn fail(&self, wrong: &str) {
        self.wrong.borrow_mut().get_or_insert_with(|| wrong.to_owned());
        self.reached.notify_one();
    }

    /// Forgets the delays so far and records those to come.
    pub(crate) fn record(&self) {
        self.delays.borrow_mut().clear();
        self.late.borrow_mut().clear();
        self.is_recording.set(true);
    }

    /// How late the load generator was while it was recorded, unless all had to wait for answers.
    pub(crate) fn sent_late(&self) -> Option<Figure> {
        let late = Some(self.late.take()).filter(|late| !late.is_empty());
        late.map(|late| Figure::new("sent late, p99", Unit::Ms, Delays::of(late).ms(990)))
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

    pub(crate) fn figures(&self) -> [Figure; 2] {
        let of = |name, permille| Figure::new(name, Unit::Ms, self.ms(permille));
        [of("p50", 500), of("p99", 990)]
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
    /// The number of the event that is to come next, as it will be written: comparing costs less
    /// than reading each.
    next: [u8; NUMBER_DIGITS],
}

impl<S: AsyncRead + AsyncWrite + Unpin> Reader<S> {
    /// Sends a request, and waits until the reader is live, or (without `ready`) not at all.
    pub(crate) async fn open(mut stream: S, request: &str, ready: Option<&[u8]>) -> Self {
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut reader =
            Self { stream, rest: Vec::with_capacity(SENT.len() + STAMP), next: number(1) };
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

    /// The same, for a reader that has so many events of its topic already.
    pub(crate) fn after(mut self, events: u64) -> Self {
        self.next = number(events + 1);
        self
    }

    /// Counts events until so many have come, or for ever. Each must be the next of its topic.
    pub(crate) async fn count(&mut self, tally: &Tally, events: u64) -> io::Result<()> {
        let mut seen = 0;
        while seen < events {
            let (mut found, mut next, mut wrong) = (0, self.next, None);
            self.read(|bytes| {
                let now = now();
                let mut after = 0;
                for at in SENT_FINDER.find_iter(bytes) {
                    let begin = at + SENT.len();
                    let Some(stamp) = bytes.get(begin..begin + STAMP) else { break };
                    let (sent, came) = stamp.split_at(DIGITS);
                    if came[1..] != next {
                        wrong.get_or_insert((read_digits(&came[1..]), read_digits(&next)));
                    }
                    increment(&mut next);
                    found += 1;
                    after = begin + STAMP;
                    if tally.is_recording.get() {
                        let delay = now.saturating_sub(read_digits(&sent[1..])) / 1000;
                        let delay = u32::try_from(delay).unwrap_or(u32::MAX);
                        tally.delays.borrow_mut().push(delay);
                    }
                }
                after
            })
            .await?;
            if let Some((number, due)) = wrong {
                let wrong = format!("a reader was given event {number} where {due} was due");
                tally.fail(&wrong);
                return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
            }
            self.next = next;
            seen += found;
            if found > 0 {
                tally.came(found);
            }
        }
        Ok(())
    }

    /// Reads what has come and has it looked at; up to where it needs not be looked at again.
    async fn read(&mut self, mut look: impl FnMut(&[u8]) -> usize) -> io::Result<()> {
        let Self { stream, rest, .. } = self;
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
                let keep = looked.max(filled.len().saturating_sub(SENT.len() + STAMP - 1));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            dialect: Dialect::Tidings,
            key: String::new(),
            token: String::new(),
            has_ids: false,
        }
    }

    /// What a reader makes of the bodies of such requests, sent to it byte by byte.
    fn read(requests: &[&[u8]]) -> (Tally, io::Result<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bytes = requests.concat();
            let (mut server, client) = tokio::io::duplex(1);
            let mut reader = Reader::open(client, "", None).await;
            let tally = Tally::default();
            let writing = async move {
                // The reader may have gone away by then.
                let _ = server.write_all(&bytes).await;
                drop(server);
            };
            let reading = async {
                let read = reader.count(&tally, u64::MAX).await;
                drop(reader);
                read
            };
            let (read, ()) = tokio::join!(reading, writing);
            (tally, read)
        })
    }

    #[test]
    fn a_reader_counts_events_that_follow_each_other() {
        let mut one = target().publish_all([0, 0].into_iter(), 200);
        let mut other = target().publish(0, 200).after(2);
        let sent = [one.stamped().to_vec(), other.stamped().to_vec(), other.stamped().to_vec()];
        let (tally, read) = read(&sent.each_ref().map(Vec::as_slice));
        assert_eq!(tally.events(), 4);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// Broken on purpose: this failed without the comparison in `Reader::count`, and `fanout` failed
    /// with a floor that left out the fiftieth event of each hundred and sent the next one twice.
    #[test]
    fn an_event_that_is_doubled_does_not_make_up_for_one_that_is_lost() {
        let mut event = target().publish(0, 200);
        let [first, _lost, third] = [(); 3].map(|()| event.stamped().to_vec());
        for (sent, wrong) in [
            ([&first[..], &first[..]], "a reader was given event 1 where 2 was due"),
            ([&first[..], &third[..]], "a reader was given event 3 where 2 was due"),
            ([&third[..], &first[..]], "a reader was given event 3 where 1 was due"),
        ] {
            let (tally, read) = read(&sent);
            assert_eq!(tally.wrong.borrow().as_deref(), Some(wrong));
            assert_eq!(read.unwrap_err().to_string(), wrong);
        }
    }

    #[test]
    fn numbers_follow_each_other_past_each_nine() {
        let mut digits = number(1);
        for next in 2..=1100 {
            increment(&mut digits);
            assert_eq!((digits, read_digits(&digits)), (number(next), next));
        }
    }

    #[test]
    fn data_has_the_bytes_that_are_asked_for() {
        assert_eq!(data(200).len(), 200);
        assert!(serde_json::from_str::<serde_json::Value>(&data(200)).is_ok());
    }
}
