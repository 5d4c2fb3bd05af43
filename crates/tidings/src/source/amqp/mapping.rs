//! Messages become events. Pure: no I/O.
//!
//! The rule: a message that cannot become one says why, and the same message says the same again.

use std::time::Duration;

use bytes::Bytes;
use lapin::{BasicProperties, message::Delivery, types::ShortString};

use super::template::{Place, Routes, number, text};
use crate::{
    error::{ErrorCode, Problem},
    ingest::{
        Bounds,
        cloudevents::{self, Given},
        data, json_text,
        trace::TraceContext,
    },
    journal::Dedup,
    model::{Class, Data, EventId, JsonText, NewEvent, Tenant, Timestamp},
    publish::Publish,
};

/// The reason of a message that no route takes; others are the codes of problems.
pub(super) const UNMAPPED: &str = "unmapped";

/// A message that cannot become an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Poison {
    /// From a fixed list.
    pub(super) reason: &'static str,
    /// What is wrong with it.
    pub(super) detail: String,
}

impl From<Problem> for Poison {
    fn from(problem: Problem) -> Self {
        let detail = match problem.pointer {
            Some(pointer) => format!("{pointer}: {}", problem.detail),
            None => problem.detail,
        };
        Self { reason: problem.code.as_str(), detail }
    }
}

/// An event and whose it is.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) tenant: Tenant,
    pub(super) publish: Publish,
}

/// What a message is mapped with besides itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct With<'a> {
    pub(super) routes: &'a Routes,
    pub(super) event_bytes_max: usize,
    pub(super) now: Timestamp,
}

/// Maps a message. `minted` is its id if it brings none; the same for every attempt.
pub(super) fn map(delivery: &Delivery, minted: &EventId, with: With<'_>) -> Result<Mapped, Poison> {
    let routing_key = delivery.routing_key.as_str();
    let Some((route, words)) = with.routes.find(routing_key) else {
        let detail = format!("no route takes the routing key {routing_key}");
        return Err(Poison { reason: UNMAPPED, detail });
    };
    let properties = &delivery.properties;
    let place = route.place(&words, properties)?;
    let tenant = place.tenant.clone();
    let bounds = Bounds { event_bytes_max: with.event_bytes_max, events_max: 1 };
    let content_type = properties.content_type().as_ref().map(ShortString::as_str);
    check_encoding(properties)?;
    let mut publish = match essence(content_type).as_str() {
        "application/cloudevents+json" => cloud_event(&delivery.data, place, bounds, with.now)?,
        "application/cloudevents-batch+json" => {
            return Err(malformed("holds a batch of events: publish one event a message").into());
        }
        _ => plain(delivery, content_type, place, minted, bounds, with.now)?,
    };
    if publish.topic.is_reserved() {
        return Err(malformed("the topic is the hub's own").into());
    }
    if let Some(trace) = trace(properties) {
        trace.give_to(&mut publish);
    }
    Ok(Mapped { tenant, publish })
}

/// How often the message was delivered, this time included. Quorum queues count; of others it is
/// only known whether this is the first time.
pub(super) fn attempts(delivery: &Delivery) -> i64 {
    let headers = delivery.properties.headers().as_ref();
    let before = headers.and_then(|headers| headers.inner().get("x-delivery-count"));
    before.and_then(number).unwrap_or_else(|| delivery.redelivered.into()).saturating_add(1)
}

/// How long the message took from its publisher's clock, to the second.
pub(super) fn age(delivery: &Delivery, now: Timestamp) -> Option<Duration> {
    sent(&delivery.properties).map(|sent| sent.until(now))
}

fn sent(properties: &BasicProperties) -> Option<Timestamp> {
    let seconds = properties.timestamp().filter(|seconds| *seconds > 0)?;
    Some(Timestamp::from_millis(seconds.saturating_mul(1000)))
}

fn cloud_event(
    body: &[u8],
    place: Place,
    bounds: Bounds,
    now: Timestamp,
) -> Result<Publish, Problem> {
    let expires_at = expiry(&place, now);
    let given = Given { topic: place.topic, class: Some(place.class), key: place.key };
    let mut publish = cloudevents::structured(json_text(body, "")?, bounds, given)?.publish;
    if publish.event.class == Class::State && publish.event.expires_at.is_none() {
        publish.event.expires_at = expires_at;
    }
    Ok(publish)
}

fn plain(
    delivery: &Delivery,
    content_type: Option<&str>,
    place: Place,
    minted: &EventId,
    bounds: Bounds,
    now: Timestamp,
) -> Result<Publish, Problem> {
    let properties = &delivery.properties;
    let id = match properties.message_id() {
        Some(id) => {
            EventId::parse(id.as_str()).map_err(|error| Problem::from(error).at("message_id"))?
        }
        None => minted.clone(),
    };
    let expires_at = expiry(&place, now);
    let event_type = place.event_type().map_err(|problem| problem.at("type"))?;
    let topic = place.topic.ok_or_else(|| {
        malformed("is no CloudEvent (application/cloudevents+json), and the route has no topic")
    })?;
    let event = NewEvent {
        id,
        class: place.class,
        key: place.key,
        time: sent(properties),
        data: body(content_type, &delivery.data, bounds)?,
        expires_at,
        ..NewEvent::new(event_type)
    };
    // Minted ids too: an attempt whose answer was lost is recognised.
    Ok(Publish { dedup: Dedup::ById, ..Publish::new(topic, event) })
}

/// The body by its media type. Many publishers say none: what is JSON then counts as JSON, and other
/// text as text.
fn body(content_type: Option<&str>, body: &[u8], bounds: Bounds) -> Result<Data, Problem> {
    let guessed = match content_type {
        Some(content_type) => content_type,
        None if std::str::from_utf8(body).is_ok_and(|text| JsonText::parse(text).is_ok()) => {
            "application/json"
        }
        None if std::str::from_utf8(body).is_ok() => "text/plain",
        None => "application/octet-stream",
    };
    data(Some(guessed), Bytes::copy_from_slice(body), bounds)
}

/// Compressed bodies are not looked into.
fn check_encoding(properties: &BasicProperties) -> Result<(), Problem> {
    let Some(encoding) = properties.content_encoding() else { return Ok(()) };
    // What other clients say of any text or bytes, and is no encoding.
    let harmless = ["", "utf-8", "utf8", "identity", "binary", "us-ascii"];
    if harmless.contains(&encoding.as_str().to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    let detail = "has a content encoding, which is not supported: publish it as it is";
    Err(Problem::new(ErrorCode::UnsupportedMediaType, detail).at("content_encoding"))
}

fn expiry(place: &Place, now: Timestamp) -> Option<Timestamp> {
    place.expires_after_ms.map(|ms| now.plus(Duration::from_millis(ms)))
}

fn trace(properties: &BasicProperties) -> Option<TraceContext> {
    let headers = properties.headers().as_ref()?.inner();
    let parent = text(headers.get("traceparent")?)?;
    TraceContext::parse(&parent, headers.get("tracestate").and_then(text).as_deref())
}

fn essence(content_type: Option<&str>) -> String {
    let text = content_type.unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn malformed(detail: &str) -> Problem {
    Problem::new(ErrorCode::Malformed, detail)
}
