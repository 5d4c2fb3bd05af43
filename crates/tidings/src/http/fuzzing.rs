//! Requests as hostile bytes: see [`crate::fuzzing`].

use std::convert::Infallible;

use axum::{body::Body, http::HeaderMap};
use bytes::Bytes;
use futures_util::{FutureExt as _, stream};

use super::{
    direct::{Looked, Request},
    events::Lines,
    follow, query as parameters,
};
use crate::{
    error::Problem,
    fuzzing::check_event,
    ingest::{self, Bounds, Draft, cloudevents as events},
    model::Timestamp,
};

const BOUNDS: Bounds = Bounds { event_bytes_max: 300, events_max: 5 };
/// Short, so that lines beyond it are tried.
const LINE_BYTES_MAX: usize = 200;

/// What must hold of an event that was read, or of its refusal.
fn check(draft: Result<Draft, Problem>) {
    match draft {
        Ok(Draft { publish, .. }) => {
            assert!(publish.event.data.len() <= BOUNDS.event_bytes_max);
            assert!(publish.event.key.is_some() || publish.if_offset.is_none());
            check_event(&publish.topic, publish.event);
        }
        Err(problem) => check_refusal(&problem),
    }
}

fn check_refusal(problem: &Problem) {
    assert!(matches!(problem.code.status(), 400 | 413 | 415), "{problem:?}");
    let is_pointer = |pointer: &String| pointer.is_empty() || pointer.starts_with('/');
    assert!(problem.pointer.as_ref().is_none_or(is_pointer), "{problem:?}");
    assert!(!problem.detail.chars().any(char::is_control), "{problem:?}");
}

/// `application/json`.
pub fn json_body(input: &[u8]) {
    match ingest::json(input, BOUNDS) {
        Ok(drafts) => {
            assert!((1..=BOUNDS.events_max).contains(&drafts.events.len()));
            drafts.events.into_iter().for_each(check);
        }
        Err(problem) => check_refusal(&problem),
    }
}

/// CloudEvents in structured mode, one and a batch.
pub fn cloudevents(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        check(events::structured(text, BOUNDS, events::Given::default()));
    }
    match ingest::cloudevents_batch(input, BOUNDS, None) {
        Ok(drafts) => drafts.events.into_iter().for_each(check),
        Err(problem) => check_refusal(&problem),
    }
}

/// A request's head: what is answered without hyper is what hyper would have read.
pub fn request_head(input: &[u8]) {
    let Looked::Whole(request) = Request::look(input) else { return };
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut head = httparse::Request::new(&mut fields);
    let parsed = head.parse(input).expect("it was parsed");
    assert_eq!(parsed.unwrap() + request.body.len(), request.count);
    assert_eq!((head.method, head.path, head.version), (Some("POST"), Some("/v1/events"), Some(1)));
    let all = |name: &str| {
        let fields = head.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        fields.map(|field| field.value).collect::<Vec<_>>()
    };
    let length = |text| str::from_utf8(text).ok()?.parse::<usize>().ok();
    let lengths: Vec<_> = all("content-length").into_iter().map(length).collect();
    assert_eq!(lengths, [Some(request.body.len())]);
    assert_eq!(all("authorization").len(), 1);
    for name in ["transfer-encoding", "expect", "upgrade", "origin", "cookie", "content-encoding"] {
        assert!(all(name).is_empty(), "{name}");
    }
}

/// A stream of lines: however it is cut into pieces, it is the same lines.
pub fn ndjson(input: &[u8]) {
    let piece = usize::from(input.first().copied().unwrap_or(1)).max(1);
    assert_eq!(lines(input, piece), lines(input, input.len().max(1)));
}

/// A line's number, and what it is: a topic, or the code and pointer of its refusal.
fn lines(input: &[u8], piece: usize) -> Vec<(u64, String)> {
    let pieces: Vec<_> = input
        .chunks(piece)
        .map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)))
        .collect();
    let mut lines = Lines::new(Body::from_stream(stream::iter(pieces)), LINE_BYTES_MAX);
    let mut all = Vec::new();
    let mut next = || lines.next(BOUNDS, None).now_or_never().expect("the body is at hand");
    while let Some((numbers, drafts)) = next().expect("nothing is waited for") {
        for (number, draft) in numbers.into_iter().zip(drafts) {
            let what = match &draft {
                Ok(draft) => draft.publish.topic.as_str().to_owned(),
                Err(problem) => format!("{} {:?}", problem.code.as_str(), problem.pointer),
            };
            assert!(all.last().is_none_or(|(last, _)| *last < number));
            all.push((number, what));
            check(draft);
        }
    }
    all
}

/// A query: what is read is spelled in one way, and reads back.
pub fn query(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let read = |text: &str| parameters::repeatable(Some(text), follow::PARAMETERS, &["topic"]);
    let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let value = |text: &str| read(&format!("topic={text}")).ok()?.pop().map(|pair| pair.value);
    assert_eq!(value(&encode(text)).as_deref(), Some(text));
    if !text.contains(['&', '%', '+']) {
        assert_eq!(value(text).as_deref(), Some(text));
    }
    if let Ok(pairs) = read(text) {
        let again: Vec<String> =
            pairs.iter().map(|pair| format!("{}={}", pair.name, encode(&pair.value))).collect();
        assert_eq!(read(&again.join("&")).ok(), Some(pairs));
    }
    if let Err(problem) = follow::parse(Some(text), &HeaderMap::new(), Timestamp::from_millis(0)) {
        assert!(matches!(problem.code.status(), 400 | 413), "{problem:?}");
    }
}
