//! What an OpenTelemetry collector is sent: a trace from publish to delivery.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, channel},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;

use crate::{
    hub::{log_line, serve},
    support::send_signal,
};

const DATA: &str = "data-canary-7f31";
const HEADER: &str = "header-canary-20ce";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A request that the collector got: its head and body.
type Got = (String, Vec<u8>);

/// A collector that takes everything, one request after the other.
fn collector() -> (u16, Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, got) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).unwrap() > 0 {}
            let length = head.to_lowercase();
            let length = length.split("content-length: ").nth(1).unwrap();
            let length = length.split('\r').next().unwrap().parse().unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            // First, so that everything is there once the hub has its answers and ends.
            if sender.send((head, body)).is_err() {
                return;
            }
            stream.get_mut().write_all(answer).unwrap();
        }
    });
    (port, got)
}

/// A reader that has everything there is, so that what comes is delivered live.
struct Reader(Child, BufReader<ChildStdout>);

impl Reader {
    fn start(url: &str, key: &str) -> Self {
        let mut curl = Command::new("curl")
            .args(["-sN", "-m", "60", "-H", &format!("Authorization: Bearer {key}")])
            .args(["-H", "Accept: text/event-stream", &format!("{url}/v1/events?topic=a/1")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stream = BufReader::new(curl.stdout.take().unwrap());
        let mut reader = Self(curl, stream);
        reader.until("event: tidings.caught_up");
        reader
    }

    fn until(&mut self, wanted: &str) {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            assert_ne!(self.1.read_line(&mut line).unwrap(), 0, "no {wanted}");
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn publish(url: &str, key: &str, traceparent: Option<&str>, data: &str) {
    let mut curl = Command::new("curl");
    curl.args(["-sf", "-m", "60", "-H", &format!("Authorization: Bearer {key}")]);
    if let Some(traceparent) = traceparent {
        curl.args(["-H", &format!("traceparent: {traceparent}")]);
    }
    let event = format!("{{\"topic\":\"a/1\",\"type\":\"t\",\"data\":\"{data}\"}}");
    curl.args(["-H", "Content-Type: application/json", "-d", &event]);
    let output = curl.arg(format!("{url}/v1/events")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Runs a hub with these settings, publishes to three readers with each traceparent, and ends it.
/// Returns what the collector was sent, and the publisher's key.
fn traced(directory: &Path, settings: &str, traceparents: &[Option<&str>]) -> (Vec<Got>, String) {
    let (port, got) = collector();
    let settings = format!("drain_grace = \"0s\"\n{settings}").replace("PORT", &port.to_string());
    let (mut child, mut log, key) = serve(directory, &settings);
    let url = format!("http://{}", log_line(&mut log)["listen"].as_str().unwrap());
    let mut readers: Vec<Reader> = (0..3).map(|_| Reader::start(&url, &key)).collect();
    for (number, traceparent) in traceparents.iter().enumerate() {
        let data = format!("{DATA}-{number}");
        publish(&url, &key, *traceparent, &data);
        readers.iter_mut().for_each(|reader| reader.until(&data));
    }
    drop(readers);
    send_signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    (got.try_iter().collect(), key)
}

fn spans(got: &[Got]) -> Vec<Span> {
    let requests = got.iter().map(|(_, body)| ExportTraceServiceRequest::decode(&**body).unwrap());
    let resources = requests.flat_map(|request| request.resource_spans);
    let scopes = resources.flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found.next().unwrap_or_else(|| panic!("no {name}: {spans:?}"));
    assert!(found.next().is_none(), "two of {name}: {spans:?}");
    span
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Broken on purpose, it failed: with a span for each reader, without the link, and without the
/// caller's context and the flush at the end.
#[test]
fn a_trace_leads_from_the_publisher_to_the_first_delivery() {
    let directory = tempfile::tempdir().unwrap();
    let settings = format!(
        "otlp.endpoint = \"http://127.0.0.1:PORT\"\notlp.service_name = \"hub-1\"\n\
         otlp.headers = \"x-collector-key={HEADER}\"\n"
    );
    let traceparent = |flags: &str| format!("00-{TRACE}-{CALLER}-{flags}");
    let (not_sampled, sampled) = (traceparent("00"), traceparent("01"));
    let (got, key) = traced(directory.path(), &settings, &[Some(&not_sampled), Some(&sampled)]);
    let spans = spans(&got);
    assert_eq!(spans.len(), 3, "{spans:?}");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:?}");
    let publish = named(&spans, "POST /v1/events");
    let commit = named(&spans, "commit");
    let deliver = named(&spans, "deliver");
    assert_eq!((publish.kind(), hex(&publish.parent_span_id).as_str()), (SpanKind::Server, CALLER));
    assert_eq!((commit.kind(), &commit.parent_span_id), (SpanKind::Internal, &publish.span_id));
    assert_eq!((deliver.kind(), &deliver.parent_span_id), (SpanKind::Consumer, &publish.span_id));
    let links: Vec<_> = deliver.links.iter().map(|link| (&link.trace_id, &link.span_id)).collect();
    assert_eq!(links, [(&publish.trace_id, &publish.span_id)]);
    assert!(deliver.start_time_unix_nano >= commit.start_time_unix_nano, "{spans:?}");
    assert!(deliver.end_time_unix_nano >= deliver.start_time_unix_nano, "{spans:?}");
    let names = |span: &Span| {
        let mut names: Vec<_> = span.attributes.iter().map(|each| each.key.clone()).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(names(publish), "http.request.method http.response.status_code http.route");
    let topic = "messaging.destination.name messaging.system tidings.";
    assert_eq!(names(deliver), format!("{topic}offset tidings.tenant"));
    assert!(names(commit).ends_with(&format!("{topic}tenant")), "{commit:?}");
    for (head, body) in &got {
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("x-collector-key: {HEADER}\r\n")), "{head}");
        let body = String::from_utf8_lossy(body);
        assert!(body.contains("hub-1") && body.contains("a/1"), "{body}");
        for secret in [DATA, HEADER, &key] {
            assert!(!body.contains(secret), "{body}");
        }
    }
}

#[test]
fn what_nobody_wants_traced_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let settings = "otlp.endpoint = \"http://127.0.0.1:PORT\"\notlp.sample_ratio = 0\n";
    let (got, _) = traced(directory.path(), settings, &[None, None]);
    assert_eq!(spans(&got), [], "{got:?}");
}
