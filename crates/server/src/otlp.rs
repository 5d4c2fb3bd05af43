//! Sending spans to an OpenTelemetry collector: OTLP over HTTP, as protobuf.
//!
//! The rules: nothing waits for the collector. What does not fit the queue, or what the collector
//! does not take, is counted and gone.

use std::{sync::Arc, time::Duration};

use opentelemetry::{Context, global::BoxedTracer, trace::TracerProvider as _};
use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use percent_encoding::percent_decode_str;
use prost::Message as _;
use reqwest::{
    Client, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use tidings::metrics::{Metrics, ResultLabel};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::config::OtlpConfig;

/// Spans that wait to be sent: some 2 MB, and two seconds of a hub with 1 000 traced requests a
/// second.
const QUEUE_SPANS_MAX: usize = 4096;
/// Spans of one request to the collector: what OpenTelemetry's own exporters send at most.
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for others to be sent with.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// How long the collector may take for an answer (OTLP's own default).
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Makes spans and sends them.
#[derive(Debug)]
pub(crate) struct Export {
    provider: SdkTracerProvider,
    sending: JoinHandle<()>,
    closing: CancellationToken,
}

impl Export {
    /// Begins, if a collector is configured. Needs a running Tokio runtime.
    ///
    /// # Errors
    /// Why it cannot be; [`problems`] finds the same.
    pub(crate) fn start(
        config: &OtlpConfig,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Self>, String> {
        let Some(endpoint) = &config.endpoint else { return Ok(None) };
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(ANSWER_MAX)
            .default_headers(headers(config)?)
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("otlp.endpoint: there is no client: {error}"))?;
        let resource = Resource::builder().with_service_name(config.service_name.clone()).build();
        let collector = Collector {
            client,
            url: traces_url(endpoint)?,
            resource: (&resource).into(),
            metrics: Arc::clone(metrics),
            is_failing: false,
        };
        let (spans, queued) = mpsc::channel(QUEUE_SPANS_MAX);
        let closing = CancellationToken::new();
        let sending = tokio::spawn(collector.run(queued, closing.clone()));
        let ratio = Sampler::TraceIdRatioBased(config.sample_ratio);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(ratio)))
            .with_resource(resource)
            .with_span_processor(Queue { spans, metrics: Arc::clone(metrics) })
            .build();
        Ok(Some(Self { provider, sending, closing }))
    }

    /// What makes the spans.
    pub(crate) fn tracer(&self) -> BoxedTracer {
        BoxedTracer::new(Box::new(self.provider.tracer("tidings")))
    }

    /// Sends what is queued, for no longer than this. Spans that are made afterwards are dropped.
    pub(crate) async fn finish(self, within: Duration) {
        self.closing.cancel();
        // It ends otherwise only by a panic, which has been reported.
        if timeout(within, self.sending).await.is_err() {
            tracing::warn!("the last traces were not sent: the collector did not answer in time");
        }
    }
}

/// Settings that cannot be, and why.
pub(crate) fn problems(config: &OtlpConfig) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if let Some(Err(reason)) = config.endpoint.as_deref().map(traces_url) {
        found.push(("otlp.endpoint", reason));
    }
    if let Err(reason) = headers(config) {
        found.push(("otlp.headers", reason));
    }
    if !(0.0..=1.0).contains(&config.sample_ratio) {
        found.push(("otlp.sample_ratio", "must be from 0 to 1".to_owned()));
    }
    found
}

fn traces_url(endpoint: &str) -> Result<Url, String> {
    let example = "must be an address like http://127.0.0.1:4318";
    let mut url = Url::parse(endpoint).map_err(|_| example.to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() {
        return Err(example.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a credential: that is for `otlp.headers`".to_owned());
    }
    let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

/// No message repeats a value.
fn headers(config: &OtlpConfig) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let text = config.headers.as_ref().map_or("", |secret| secret.expose());
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let wrong = || "must be `name=value`, several with commas between them".to_owned();
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        let name = name.trim().parse::<HeaderName>().map_err(|_| wrong())?;
        let value: Vec<u8> = percent_decode_str(value.trim()).collect();
        let mut value = HeaderValue::from_bytes(&value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    Ok(headers)
}

/// Takes ended spans from those who publish and deliver.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
    metrics: Arc<Metrics>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            count(&self.metrics, "dropped", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn count(metrics: &Metrics, result: &'static str, spans: usize) {
    metrics.spans.get_or_create(&ResultLabel { result }).inc_by(spans as u64);
}

/// Where spans are sent to.
struct Collector {
    client: Client,
    url: Url,
    resource: ResourceAttributesWithSchema,
    metrics: Arc<Metrics>,
    /// Whether the last sending failed: only a change is logged.
    is_failing: bool,
}

impl Collector {
    /// Sends what comes, until it is told to close and the queue is empty.
    async fn run(mut self, mut queued: mpsc::Receiver<SpanData>, closing: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_SPANS_MAX);
        loop {
            tokio::select! {
                count = queued.recv_many(&mut batch, BATCH_SPANS_MAX) => {
                    if count == 0 {
                        return;
                    }
                }
                () = closing.cancelled(), if !queued.is_closed() => queued.close(),
            }
            let more = async {
                let mut room = BATCH_SPANS_MAX - batch.len();
                while room > 0 {
                    match queued.recv_many(&mut batch, room).await {
                        0 => return,
                        count => room -= count,
                    }
                }
            };
            tokio::select! {
                _ = timeout(BATCH_WAIT, more) => {}
                () = closing.cancelled() => {}
            }
            if !batch.is_empty() {
                self.send(std::mem::take(&mut batch)).await;
            }
        }
    }

    async fn send(&mut self, spans: Vec<SpanData>) {
        let number = spans.len();
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let sent = self.client.post(self.url.clone()).body(body).send().await;
        match sent.and_then(reqwest::Response::error_for_status) {
            Ok(_) => {
                count(&self.metrics, "sent", number);
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("traces are sent again");
                }
            }
            Err(error) => {
                count(&self.metrics, "failed", number);
                if !std::mem::replace(&mut self.is_failing, true) {
                    let error = error.without_url();
                    tracing::warn!(%error, "traces are not sent; see `otlp.endpoint`");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer as _};

    use super::*;

    fn config(endpoint: &str, headers: &str, sample_ratio: f64) -> OtlpConfig {
        let headers = Some(tidings::auth::Secret::new(headers));
        OtlpConfig {
            endpoint: Some(endpoint.to_owned()),
            headers,
            sample_ratio,
            ..OtlpConfig::default()
        }
    }

    #[test]
    fn what_cannot_be_is_named_by_its_setting_and_not_repeated() {
        let of = |endpoint: &str, headers: &str, ratio: f64| {
            problems(&config(endpoint, headers, ratio))
                .into_iter()
                .map(|(path, reason)| {
                    assert!(!reason.contains("canary"), "{reason}");
                    path
                })
                .collect::<Vec<_>>()
        };
        for good in ["http://127.0.0.1:4318", "https://otel.example/tenant/"] {
            assert!(of(good, "a=b, authorization=Basic%20eA==", 0.1).is_empty(), "{good}");
        }
        for bad in ["canary", "127.0.0.1:4318", "grpc://a:4317", "http://u:canary@a", "http://a?b"]
        {
            assert_eq!(of(bad, "", 1.0), ["otlp.endpoint"], "{bad}");
        }
        for bad in ["canary", "=canary", "a b=canary", "a=canary%0a"] {
            assert_eq!(of("http://a", bad, 1.0), ["otlp.headers"], "{bad}");
        }
        for bad in [-0.1, 1.1, f64::NAN] {
            assert_eq!(of("http://a", "", bad), ["otlp.sample_ratio"], "{bad}");
        }
    }

    #[test]
    fn traces_go_below_the_path_of_the_endpoint() {
        for (endpoint, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://otel.example/tenant/", "https://otel.example/tenant/v1/traces"),
        ] {
            assert_eq!(traces_url(endpoint).unwrap().as_str(), url);
        }
    }

    /// Broken on purpose, it failed: without the count in `on_end`.
    #[tokio::test]
    async fn what_does_not_fit_or_is_not_taken_is_counted() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let metrics = Arc::new(Metrics::new());
        let (spans, mut queued) = mpsc::channel(2);
        let queue = Queue { spans, metrics: Arc::clone(&metrics) };
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        for _ in 0..5 {
            provider.tracer("t").start("s").end();
        }
        // Nothing listens on a port that was given back.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut collector = Collector {
            client: Client::builder().no_proxy().build().unwrap(),
            url: traces_url(&format!("http://127.0.0.1:{port}")).unwrap(),
            resource: ResourceAttributesWithSchema::default(),
            metrics: Arc::clone(&metrics),
            is_failing: false,
        };
        let mut batch = Vec::new();
        queued.recv_many(&mut batch, 8).await;
        collector.send(batch).await;
        let text = metrics.encode();
        assert!(text.contains("tidings_spans_total{result=\"dropped\"} 3"), "{text}");
        assert!(text.contains("tidings_spans_total{result=\"failed\"} 2"), "{text}");
    }
}
