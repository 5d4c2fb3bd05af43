//! HTTP/2 and HTTP/1 by hand: what no client library would send.
//!
//! What the server holds a peer to is read from its own frames: an option that is passed wrongly is
//! off (hyper issue 3782).

use std::time::Duration;

use tidings::http::ServeSettings;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::support::{Options, Reader, Server, raw};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SHORT: Duration = Duration::from_millis(150);
const SOON: Duration = Duration::from_secs(10);

/// Kinds of frames (RFC 9113 §6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM_AND_HEADERS: u8 = 5;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /health/live` (RFC 7541: entries 2, 6 and 4 of the static table, and one literal).
fn request(stream: u32) -> Vec<u8> {
    let block = [&b"\x82\x86\x04\x0c"[..], b"/health/live", b"\x01\x01x"].concat();
    frame(HEADERS, END_STREAM_AND_HEADERS, stream, &block)
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// A connection on which the preface has been exchanged.
struct Connection(TcpStream);

impl Connection {
    async fn open(server: &Server) -> Self {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        Self(stream)
    }

    async fn send(&mut self, bytes: &[u8]) {
        // The server may have ended the connection.
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame; `None` at the connection's end.
    async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        let read = timeout(SOON, self.0.read_exact(&mut head)).await.expect("a frame or the end");
        read.ok()?;
        let [a, b, c, kind, flags, s, t, u, v] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes([s, t, u, v]), payload })
    }

    /// The next frame of this kind, answering pings as an honest client does.
    async fn next(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let found = self.frame().await?;
            if found.kind == PING && found.flags & ACK == 0 {
                self.send(&frame(PING, ACK, 0, &found.payload)).await;
            }
            if found.kind == kind && found.flags & ACK == 0 {
                return Some(found);
            }
        }
    }
}

fn error_code(goaway: &Frame) -> u32 {
    u32::from_be_bytes(goaway.payload[4..8].try_into().unwrap())
}

#[tokio::test]
async fn a_peer_is_told_the_limits_of_http_2() {
    let server = Server::start().await;
    let mut connection = Connection::open(&server).await;
    let settings = connection.next(SETTINGS).await.unwrap().payload;
    let value = |number: u8| {
        let entry = settings.chunks(6).find(|entry| entry[..2] == [0, number]);
        entry.map(|entry| u32::from_be_bytes(entry[2..].try_into().unwrap()))
    };
    // MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE and MAX_HEADER_LIST_SIZE (RFC 9113 §6.5.2).
    assert_eq!([value(3), value(4), value(6)], [Some(64), Some(128 * 1024), Some(16 * 1024)]);
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_end_the_connection() {
    let server = Server::start().await;
    let mut connection = Connection::open(&server).await;
    let cancel = 8_u32.to_be_bytes();
    let burst: Vec<u8> = (0..2000)
        .flat_map(|n| {
            let stream = 2 * n + 1;
            [request(stream), frame(RST_STREAM, 0, stream, &cancel)].concat()
        })
        .collect();
    connection.send(&burst).await;
    let goaway = connection.next(GOAWAY).await.expect("the server says why");
    assert_eq!(error_code(&goaway), 11, "ENHANCE_YOUR_CALM");
    assert!(server.get("/health/live").send().await.unwrap().status() == 200);
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused() {
    let server = Server::start().await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    // An honest client waits for its turn; this one does not.
    drop(client);
    let mut connection = Connection::open(&server).await;
    let follow = |stream: u32| {
        let path = b"/v1/events?topic=t";
        let length = u8::try_from(path.len()).unwrap();
        let bearer = format!("Bearer {}", server.key);
        let block = [
            &[0x82, 0x86, 0x04, length][..],
            path,
            b"\x01\x01x\x0f\x08",
            &[u8::try_from(bearer.len()).unwrap()],
            bearer.as_bytes(),
        ];
        frame(HEADERS, END_STREAM_AND_HEADERS, stream, &block.concat())
    };
    let all: Vec<u8> = (0..65).flat_map(|n| follow(2 * n + 1)).collect();
    connection.send(&all).await;
    let refused = connection.next(RST_STREAM).await.unwrap();
    assert_eq!(refused.stream, 129);
    assert_eq!(refused.payload, 7_u32.to_be_bytes(), "REFUSED_STREAM");
}

/// Broken on purpose, it failed: without `idle_for`, as hyper leaves it.
#[tokio::test]
async fn an_http_2_connection_that_asks_for_nothing_is_closed_although_it_answers_pings() {
    let serve = ServeSettings { idle: SHORT * 3, h2_ping: SHORT, ..ServeSettings::default() };
    let server = Server::with(Options { serve, ..Options::default() }).await;
    let mut connection = Connection::open(&server).await;
    connection.send(&request(1)).await;
    connection.next(HEADERS).await.expect("it is answered");
    let goaway = connection.next(GOAWAY).await.expect("it is told so");
    assert_eq!(error_code(&goaway), 0, "NO_ERROR");
    while connection.next(GOAWAY).await.is_some() {}
}

#[tokio::test]
async fn an_http_2_connection_with_a_stream_is_not_idle() {
    let serve = ServeSettings { idle: SHORT, ..ServeSettings::default() };
    let server = Server::with(Options { serve, ..Options::default() }).await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let request = client.get(server.url("/v1/events?topic=t")).bearer_auth(&server.key);
    let mut reader = Reader::of(request.send().await.unwrap());
    reader.control("tidings.caught_up").await;
    assert!(timeout(SHORT * 4, reader.next()).await.is_err(), "nothing was to come");
    server.publish_numbers("t", 1..2).await;
    assert_eq!(reader.data(1).await, [1]);
}

/// What hyper refuses itself is a problem like every other refusal.
#[tokio::test]
async fn a_head_that_is_no_http_is_answered_with_a_problem() {
    let server = Server::start().await;
    for (bytes, status, code) in [
        (&b"\0\x01\x02\r\n\r\n"[..], "400 Bad Request", "malformed"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", "400 Bad Request", "malformed"),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: \0\r\n\r\n", "400 Bad Request", "malformed"),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let answer = raw(&mut stream, bytes).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert!(head.contains("content-type: application/problem+json"), "{answer}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["code"], code, "{answer}");
        assert!(head.contains(problem["request_id"].as_str().unwrap()), "{answer}");
    }
}
