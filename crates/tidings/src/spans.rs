//! Spans (OpenTelemetry) of an event's way: the request that publishes it, its commit, and the first
//! time that it is handed to a reader.
//!
//! The rule: nothing is made without a tracer, or of a publish that is not sampled; a commit has one
//! span of delivery however many readers there are; and a span holds names and numbers, never data
//! or a credential.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use opentelemetry::{
    Context, KeyValue,
    global::{BoxedSpan, BoxedTracer},
    trace::{
        FutureExt as _, Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status,
        TraceContextExt as _, Tracer as _,
    },
};
use tokio::time::Instant;

use crate::model::{Offset, TopicKey};

/// Makes the spans, if it has a tracer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spans(Option<Arc<BoxedTracer>>);

impl Spans {
    pub(crate) fn new(tracer: Option<BoxedTracer>) -> Self {
        Self(tracer.map(Arc::new))
    }

    /// Begins the span of a request that publishes, which belongs to the application's around it, or
    /// else continues the caller's.
    pub(crate) fn request(
        &self,
        caller: impl FnOnce() -> Option<SpanContext>,
    ) -> Option<PublishSpan> {
        let tracer = self.0.as_ref()?;
        let around = Context::current();
        let around = match caller() {
            Some(caller) if !around.has_active_span() => around.with_remote_span_context(caller),
            _ => around,
        };
        let builder = SpanBuilder::from_name("POST /v1/events")
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("http.route", "/v1/events"),
            ]);
        Some(PublishSpan(around.with_span(tracer.build_with_context(builder, &around))))
    }

    /// Begins the span of a commit, if this is within a publish that is sampled.
    pub(crate) fn commit(&self, topic: &TopicKey, events: usize) -> Option<Commit> {
        let tracer = self.0.as_ref()?;
        let around = Context::current();
        let publish = around.span().span_context().clone();
        if !publish.is_sampled() {
            return None;
        }
        let count = i64::try_from(events).unwrap_or(i64::MAX);
        let attributes = [KeyValue::new("messaging.batch.message_count", count)];
        let builder = SpanBuilder::from_name("commit")
            .with_kind(SpanKind::Internal)
            .with_attributes(destination(topic).into_iter().chain(attributes));
        let span = tracer.build_with_context(builder, &around);
        let delivery = Arc::new(Delivery {
            tracer: Arc::clone(tracer),
            publish,
            topic: topic.clone(),
            committed_at: OnceLock::new(),
            is_told: AtomicBool::new(false),
        });
        Some(Commit { span, delivery })
    }
}

/// The span of a request that publishes.
#[derive(Debug)]
pub(crate) struct PublishSpan(Context);

impl PublishSpan {
    /// Does the request's work within the span and ends it. `status` says how it was answered.
    pub(crate) async fn around<T>(
        self,
        work: Pin<Box<impl Future<Output = T>>>,
        status: impl FnOnce(&T) -> u16,
    ) -> T {
        let done = work.with_context(self.0.clone()).await;
        let status = status(&done);
        let span = self.0.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            span.set_status(Status::error(""));
        }
        span.end();
        done
    }
}

/// Which topic a span is about.
fn destination(topic: &TopicKey) -> [KeyValue; 3] {
    [
        KeyValue::new("messaging.system", "tidings"),
        KeyValue::new("messaging.destination.name", topic.topic.as_str().to_owned()),
        KeyValue::new("tidings.tenant", topic.tenant.as_str().to_owned()),
    ]
}

/// The span of a commit; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Commit {
    span: BoxedSpan,
    delivery: Arc<Delivery>,
}

impl Commit {
    /// What will be told of the delivery of its events.
    pub(crate) fn delivery(&self) -> Arc<Delivery> {
        Arc::clone(&self.delivery)
    }

    /// Says that nothing was stored.
    pub(crate) fn failed(&mut self) {
        self.span.set_status(Status::error(""));
    }
}

/// Tells once that an event of a commit reached a reader.
#[derive(Debug)]
pub(crate) struct Delivery {
    tracer: Arc<BoxedTracer>,
    publish: SpanContext,
    topic: TopicKey,
    committed_at: OnceLock<Instant>,
    is_told: AtomicBool,
}

impl Delivery {
    /// Says that readers can see the events from now on.
    pub(crate) fn committed(&self) {
        // Once: a request's events of one topic are one commit.
        let _ = self.committed_at.set(Instant::now());
    }

    /// Says that an event is handed to a reader: makes the span if it is the first.
    pub(crate) fn handed(&self, offset: Option<Offset>) {
        if self.is_told.load(Ordering::Relaxed) || self.is_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let took = self.committed_at.get().map(Instant::elapsed).unwrap_or_default();
        // The tracer's own time, as that of the other spans.
        let now = opentelemetry::time::now();
        let offset = offset.and_then(|offset| i64::try_from(offset.0).ok());
        let offset = offset.map(|offset| KeyValue::new("tidings.offset", offset));
        let builder = SpanBuilder::from_name("deliver")
            .with_kind(SpanKind::Consumer)
            .with_start_time(now.checked_sub(took).unwrap_or(now))
            .with_attributes(destination(&self.topic).into_iter().chain(offset))
            .with_links(vec![Link::with_context(self.publish.clone())]);
        let around = Context::new().with_remote_span_context(self.publish.clone());
        self.tracer.build_with_context(builder, &around).end_with_timestamp(now);
    }
}
