//! A client's side of HTTP: a request over a connection of its own, and streams of frames.
//!
//! The rule: only what came whole counts. A frame without its end, or an answer without its last
//! byte, was never received.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;

use crate::network::Network;

/// How long a client waits for an answer's head, or for the rest of an answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// No answer came, or not all of it: whether the request was heard is not known.
#[derive(Debug)]
pub(crate) struct Unanswered;

/// An answer's head and the stream of its body.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    body: Incoming,
}

/// Sends a request on a new connection.
pub(crate) async fn send(
    network: &Network,
    request: Request<Full<Bytes>>,
) -> Result<Answer, Unanswered> {
    let asked = async {
        let stream = network.connect().await.ok()?;
        let connecting = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = connecting.await.ok()?;
        // Ends when the answer was read or dropped.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.ok()?;
        Some(Answer { status: response.status(), body: response.into_body() })
    };
    timeout(ANSWER_MAX, asked).await.ok().flatten().ok_or(Unanswered)
}

/// Sends a request and reads its whole answer.
pub(crate) async fn ask(
    network: &Network,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Unanswered> {
    let answer = send(network, request).await?;
    answer.whole(ANSWER_MAX).await
}

impl Answer {
    /// The whole body.
    pub(crate) async fn whole(self, within: Duration) -> Result<(StatusCode, Bytes), Unanswered> {
        let body = timeout(within, self.body.collect()).await;
        let body = body.map_err(|_| Unanswered)?.map_err(|_| Unanswered)?;
        Ok((self.status, body.to_bytes()))
    }

    /// The next piece of the body; `None` at its end, however that came.
    pub(crate) async fn piece(&mut self) -> Option<Bytes> {
        self.body.frame().await?.ok()?.into_data().ok()
    }
}

/// Something that a stream says.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Of the hub's own words: `tidings.hello`. None for events.
    pub(crate) name: Option<String>,
    pub(crate) cursor: Option<String>,
    pub(crate) data: Value,
}

/// A stream of frames, as far as it was read.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    unread: Vec<u8>,
}

impl Frames {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next whole frame of an event stream (WHATWG HTML §9.2.6).
    pub(crate) fn sse(&mut self) -> Option<Result<Frame, String>> {
        loop {
            let end = self.unread.windows(2).position(|two| two == b"\n\n")?;
            let block: Vec<u8> = self.unread.drain(..end + 2).collect();
            let Ok(block) = String::from_utf8(block) else {
                return Some(Err("a frame is not UTF-8".to_owned()));
            };
            let mut frame = Frame { name: None, cursor: None, data: Value::Null };
            let mut is_empty = true;
            for line in block.lines().filter(|line| !line.is_empty()) {
                match line.split_once(": ") {
                    Some(("id", id)) => frame.cursor = Some(id.to_owned()),
                    Some(("event", name)) => frame.name = Some(name.to_owned()),
                    Some(("data", data)) => match serde_json::from_str(data) {
                        Ok(data) => frame.data = data,
                        Err(error) => return Some(Err(format!("{error}: {data}"))),
                    },
                    Some(("retry" | "", _)) => continue,
                    _ => return Some(Err(format!("no field of an event stream: {line}"))),
                }
                is_empty = false;
            }
            if frame.name.is_none() && frame.cursor.is_some() && frame.data.is_null() {
                frame.name = Some("tidings.checkpoint".to_owned());
            }
            if !is_empty {
                return Some(Ok(frame));
            }
        }
    }

    /// The next whole line of NDJSON.
    pub(crate) fn line(&mut self) -> Option<Result<Frame, String>> {
        let end = self.unread.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.unread.drain(..=end).collect();
        let read: Result<Value, _> = serde_json::from_slice(&line);
        Some(read.map_err(|error| error.to_string()).map(|mut line| {
            let cursor = line["cursor"].as_str().map(str::to_owned);
            let name = line["type"].as_str().filter(|name| name.starts_with("tidings."));
            let name = name.map(str::to_owned);
            let data = if name.is_some() { line["data"].take() } else { line };
            Frame { name, cursor, data }
        }))
    }
}
