//! What is counted and logged of each request: its route, its status and how long its answer took.
//!
//! The rule: a stream of events is no slow answer, so it is logged and not timed; and nothing of a
//! request is logged but its method and path, as a ticket may be in the query.

use std::borrow::Cow;

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, Method, StatusCode, header},
};
use tokio::time::Instant;

use crate::{
    metrics::{Metrics, RequestLabel},
    request,
};

/// A request that is being answered.
pub(super) struct Observed {
    asked_at: Instant,
    label: RequestLabel,
    is_probe: bool,
}

impl Observed {
    pub(super) fn of(request: &Request) -> Self {
        let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        // The router marks a part that may have slashes; the protocol does not.
        let route = route.unwrap_or("none").replace("{*", "{");
        let is_probe = route.ends_with("/health/ready");
        Self::new(route.into(), method(request.method()), is_probe)
    }

    /// One that publishes.
    pub(super) fn publish() -> Self {
        Self::new(Cow::Borrowed("/v1/events"), "POST", false)
    }

    fn new(route: Cow<'static, str>, method: &'static str, is_probe: bool) -> Self {
        let label = RequestLabel { route, method, status: "" };
        Self { asked_at: Instant::now(), label, is_probe }
    }

    /// Counts and logs it, within its span.
    pub(super) fn answered(self, status: StatusCode, is_stream: bool, metrics: &Metrics) {
        let took = self.asked_at.elapsed();
        if !is_stream {
            let label = RequestLabel { status: class(status), ..self.label };
            metrics.request_duration.get_or_create(&label).observe_duration(took);
        }
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // Probes come every second while the hub is not ready, which was logged where it began.
        if status.is_server_error() && !self.is_probe {
            request::logged(|| {
                tracing::warn!(status = status.as_u16(), took_us, "request failed");
            });
        } else {
            tracing::debug!(status = status.as_u16(), took_us, is_stream, "request answered");
        }
    }
}

/// Whether it is the head of an answer that goes on for long.
pub(super) fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes);
    matches!(kind, Some(b"text/event-stream" | b"application/x-ndjson"))
}

/// A label's value: clients can make up methods.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}
