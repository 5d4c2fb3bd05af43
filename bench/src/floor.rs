//! The floor: the least that the work takes. Raw sockets, one thread, epoll, prepared bytes.
//!
//! The rule: whatever a scenario does not ask for is left out. There is no access check, no HTTP
//! beyond what the load generator understands, and one `send` for each delivery. A frame is a fixed
//! envelope, as long as the hub's, around the event as it came. What came in one wake-up shares one
//! write and one fsync, if a log is asked for; what readers may come back for is kept in memory, if
//! a history is asked for.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    ops::Range,
};

use memchr::memmem;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

use crate::client::{CAUGHT_UP, TOPIC};

const LISTENER: Token = Token(0);
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: ok\n\n";
const END: &[u8] = b"\n\n";
/// What the hub's frame has besides the event as it was published, less the offset's ten digits.
const ENVELOPE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ\n\
    data: {\"specversion\":\"1.0\",\"source\":\"/bench/0\",\"id\":\"019a0000-0000-7000-8000-000000000000\",\
    \"time\":\"2026-01-01T00:00:00.000Z\",\"position\":\"0000000-0\",\"class\":\"log\",\"event\":";

/// A socket, and what it is in the middle of.
struct Connection {
    stream: TcpStream,
    /// Part of a request.
    held: Vec<u8>,
    /// What the socket did not take.
    pending: Vec<u8>,
    /// What it is to have of a topic's history before it is live.
    replay: Option<(usize, Range<usize>)>,
}

#[derive(Default)]
struct Topic {
    readers: Vec<Token>,
    history: Vec<u8>,
    /// Where each frame begins.
    starts: Vec<usize>,
    tail: u64,
}

/// A request that waits for the end of the wake-up.
struct Staged {
    from: Token,
    /// Topic and bytes in `Server::frames`.
    events: Vec<(usize, Range<usize>)>,
    last: u64,
}

struct Server {
    has_history: bool,
    log: Option<File>,
    poll: Poll,
    connections: HashMap<Token, Connection>,
    topics: Vec<Topic>,
    staged: Vec<Staged>,
    frames: Vec<u8>,
    topic_mark: memmem::Finder<'static>,
}

/// Says where it listens and serves until it is ended.
pub(crate) fn run(has_history: bool, log: Option<File>) -> io::Result<()> {
    let poll = Poll::new()?;
    let mut listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    println!(r#"{{"message":"serving","listen":"{}"}}"#, listener.local_addr()?);
    let mut server = Server {
        has_history,
        log,
        poll,
        connections: HashMap::new(),
        topics: Vec::new(),
        staged: Vec::new(),
        frames: Vec::new(),
        topic_mark: memmem::Finder::new(TOPIC),
    };
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 256 * 1024];
    let mut next = 1;
    loop {
        server.poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let token = Token(next);
                    next += 1;
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    server.poll.registry().register(&mut stream, token, interest)?;
                    let held = Vec::new();
                    let connection = Connection { stream, held, pending: Vec::new(), replay: None };
                    server.connections.insert(token, connection);
                }
                continue;
            }
            if event.is_writable() {
                server.flush(event.token());
            }
            if event.is_readable() {
                server.read(event.token(), &mut buffer);
            }
        }
        server.commit()?;
    }
}

impl Server {
    fn read(&mut self, token: Token, buffer: &mut [u8]) {
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            let count = match connection.stream.read(buffer) {
                Ok(0) => return self.close(token),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.close(token),
            };
            let read = buffer.get(..count).unwrap_or_default();
            if connection.held.is_empty() {
                if !self.request(token, read)
                    && let Some(connection) = self.connections.get_mut(&token)
                {
                    connection.held.extend_from_slice(read);
                }
            } else {
                connection.held.extend_from_slice(read);
                let held = std::mem::take(&mut connection.held);
                if !self.request(token, &held)
                    && let Some(connection) = self.connections.get_mut(&token)
                {
                    connection.held = held;
                }
            }
            if count < buffer.len() {
                return;
            }
        }
    }

    fn close(&mut self, token: Token) {
        self.connections.remove(&token);
        for topic in &mut self.topics {
            topic.readers.retain(|reader| *reader != token);
        }
    }

    /// Takes a request; false if it is not whole. Nobody sends a second before the answer.
    fn request(&mut self, token: Token, bytes: &[u8]) -> bool {
        let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return false };
        let (head, body) = bytes.split_at(end + 4);
        if head.starts_with(b"GET") {
            self.follow(token, head);
            return true;
        }
        if number_after(head, b"content-length: ") != Some(body.len() as u64) {
            return false;
        }
        self.publish(token, body);
        true
    }

    fn topic(&mut self, number: usize) -> &mut Topic {
        while self.topics.len() <= number {
            self.topics.push(Topic::default());
        }
        &mut self.topics[number]
    }

    fn publish(&mut self, from: Token, body: &[u8]) {
        let starts: Vec<usize> = self.topic_mark.find_iter(body).collect();
        let ends = starts.iter().skip(1).copied().chain([body.len()]);
        let mut events = Vec::with_capacity(starts.len());
        let mut last = 0;
        for (start, end) in starts.iter().copied().zip(ends) {
            let event = body.get(start..end).unwrap_or_default();
            let number = number_after(event, TOPIC).unwrap_or_default() as usize;
            let topic = self.topic(number);
            topic.tail += 1;
            last = topic.tail;
            let begin = self.frames.len();
            let _ = write!(self.frames, "id: {last:010}{ENVELOPE}");
            self.frames.extend_from_slice(event.trim_ascii_end());
            self.frames.extend_from_slice(END);
            events.push((number, begin..self.frames.len()));
        }
        self.staged.push(Staged { from, events, last });
    }

    /// Makes durable what came in this wake-up, hands it out and answers.
    fn commit(&mut self) -> io::Result<()> {
        if self.staged.is_empty() {
            return Ok(());
        }
        if let Some(log) = &mut self.log {
            log.write_all(&self.frames)?;
            log.sync_data()?;
        }
        let frames = std::mem::take(&mut self.frames);
        for staged in std::mem::take(&mut self.staged) {
            for (number, range) in staged.events {
                let frame = frames.get(range).unwrap_or_default();
                let has_history = self.has_history;
                let topic = self.topic(number);
                if has_history {
                    topic.starts.push(topic.history.len());
                    topic.history.extend_from_slice(frame);
                }
                let readers = std::mem::take(&mut topic.readers);
                for reader in &readers {
                    self.send(*reader, frame);
                }
                self.topic(number).readers = readers;
            }
            let body = format!(r#"{{"cursor":"{:010}"}}"#, staged.last);
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            self.send(staged.from, answer.as_bytes());
        }
        self.frames = frames;
        self.frames.clear();
        Ok(())
    }

    fn follow(&mut self, token: Token, head: &[u8]) {
        let number = number_after(head, b"topic=bench/").unwrap_or_default() as usize;
        let after = if memmem::find(head, b"since=earliest").is_some() {
            Some(0)
        } else {
            number_after(head, b"last-event-id: ")
        };
        let topic = self.topic(number);
        topic.readers.push(token);
        let end = topic.history.len();
        let start = after.map_or(end, |after| *topic.starts.get(after as usize).unwrap_or(&end));
        self.send(token, HEAD);
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.replay = Some((number, start..end));
        }
        self.flush(token);
    }

    /// Sends bytes after what waits. A reader that went away is not measured.
    fn send(&mut self, token: Token, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.replay.is_some() || !connection.pending.is_empty() {
            connection.pending.extend_from_slice(bytes);
            return;
        }
        let sent = connection.stream.write(bytes).unwrap_or(0);
        connection.pending.extend_from_slice(bytes.get(sent..).unwrap_or_default());
    }

    fn flush(&mut self, token: Token) {
        let Self { connections, topics, .. } = self;
        let Some(connection) = connections.get_mut(&token) else { return };
        if let Some((number, range)) = &mut connection.replay {
            let history = topics.get(*number).map_or(&[][..], |topic| &topic.history);
            while range.start < range.end {
                let rest = history.get(range.clone()).unwrap_or_default();
                let Ok(sent) = connection.stream.write(rest) else { return };
                range.start += sent;
            }
            connection.replay = None;
            let frame = format!("event: {CAUGHT_UP}\ndata: {{}}\n\n");
            let live = std::mem::take(&mut connection.pending);
            connection.pending = [frame.as_bytes(), &live].concat();
        }
        while !connection.pending.is_empty() {
            let Ok(sent) = connection.stream.write(&connection.pending) else { return };
            connection.pending.drain(..sent);
        }
    }
}

/// The number that stands after a mark.
fn number_after(bytes: &[u8], mark: &[u8]) -> Option<u64> {
    let start = memmem::find(bytes, mark)? + mark.len();
    let digits = bytes.get(start..)?.iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}
