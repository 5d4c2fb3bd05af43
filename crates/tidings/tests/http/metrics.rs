//! What the hub's own listener counts, and that no label has a value that is not in the catalogue.

use reqwest::{Client, Method};
use serde_json::json;
use tidings::metrics::{MetricInfo, Metrics};

use crate::publish::lines;
use crate::support::{Options, Reader, Server, json_of};

type Labels = Vec<(String, String)>;

/// Name, labels and value of every sample.
fn samples(text: &str) -> Vec<(String, Labels, f64)> {
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').unwrap().split("\",");
        let label = |label: &str| {
            let (name, value) = label.split_once("=\"").unwrap();
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        };
        let labels = labels.filter(|label| !label.is_empty()).map(label).collect();
        (name.to_owned(), labels, value.parse().unwrap())
    };
    text.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}

fn check(catalogue: &[MetricInfo], name: &str, labels: &[(String, String)]) {
    let of_histogram = |metric: &MetricInfo| {
        metric.kind == "histogram"
            && ["_sum", "_count", "_bucket"].iter().any(|end| metric.name.clone() + end == name)
    };
    let known = catalogue.iter().find(|metric| metric.name == name || of_histogram(metric));
    let metric = known.unwrap_or_else(|| panic!("{name} is not in the catalogue"));
    for (label, value) in labels {
        if label == "le" && name.ends_with("_bucket") {
            continue;
        }
        let known = metric.labels.iter().find(|known| known.name == label);
        let known = known.unwrap_or_else(|| panic!("{name} has no label {label}"));
        assert!(known.may_be(value), "{name} {label}={value}");
    }
}

/// Broken on purpose, it failed: with the method or the path of a request as it came, with a route as
/// the router writes it, and without `publish` in the catalogue.
#[tokio::test]
async fn whatever_clients_do_the_labels_are_those_of_the_catalogue() {
    let server = Server::with(Options { metrics: true, ..Options::default() }).await;
    server.publish_numbers("secret/topic", 0..10).await;
    let mut sse = server.follow("topic=secret/topic&since=earliest").await;
    sse.data(10).await;
    let broken = server.follow("topic=secret/topic&last_event_id=nonsense").await;
    let ndjson = server.get("/v1/events?topic=secret/topic").header("accept", "application/jsonl");
    let ndjson = ndjson.send().await.unwrap();
    let http2 = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let request = http2.get(server.url("/v1/events?topic=secret/topic")).bearer_auth(&server.key);
    let mut http2 = Reader::of(request.send().await.unwrap());
    http2.control("tidings.caught_up").await;
    let page = server.get("/v1/events?topic=secret/topic&wait=0s");
    json_of(page.header("accept", "application/json").send().await.unwrap()).await;
    for (method, path) in [
        (Method::GET, "/v1/topics/secret/topic"),
        (Method::GET, "/nowhere/secret/topic"),
        (Method::from_bytes(b"SECRET").unwrap(), "/v1/events"),
        (Method::POST, "/v1/events?topic=secret/topic"),
        (Method::GET, "/v1/events?topic=secret/topic&ticket=secret"),
    ] {
        server.request(method, path).body("{").send().await.unwrap();
    }
    server.anonymous(Method::GET, "/v1/topics").send().await.unwrap();
    let refused = json!([{ "topic": "//", "type": "t" }, { "topic": "secret/topic", "type": "t" }]);
    server.publish(&refused).await;
    let (_sender, body) = lines();
    let stream = server.post("/v1/events").header("content-type", "application/x-ndjson");
    let _publishing = stream.body(body).send().await.unwrap();
    let text = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    let catalogue = Metrics::catalogue();
    let samples = samples(&text);
    for (name, labels, _) in &samples {
        check(&catalogue, name, labels);
    }
    assert!(!text.contains("secret"), "{text}");
    let value = |name: &str, labels: &[&str]| {
        let has = |of: &[(String, String)]| of.iter().all(|(_, v)| labels.contains(&v.as_str()));
        let sample =
            samples.iter().find(|(n, of, _)| n == name && of.len() == labels.len() && has(of));
        sample.unwrap_or_else(|| panic!("no {name} {labels:?} in\n{text}")).2
    };
    assert_eq!(value("tidings_connections", &["sse", "http1", "no"]), 2.0);
    assert_eq!(value("tidings_connections", &["sse", "http2", "no"]), 1.0);
    assert_eq!(value("tidings_connections", &["ndjson", "http1", "no"]), 1.0);
    assert_eq!(value("tidings_connections", &["long_poll", "http1", "no"]), 0.0);
    assert_eq!(value("tidings_connections", &["publish", "http1", "no"]), 1.0);
    assert_eq!(value("tidings_events_published_total", &["stored"]), 11.0);
    assert_eq!(value("tidings_events_published_total", &["malformed"]), 2.0);
    assert_eq!(value("tidings_resumes_total", &["gap"]), 1.0);
    assert_eq!(value("tidings_gaps_total", &["unknown_cursor"]), 1.0);
    assert_eq!(value("tidings_ready", &[]), 1.0);
    let requests = "tidings_request_duration_seconds_count";
    assert_eq!(value(requests, &["/v1/topics/{topic}", "GET", "2xx"]), 1.0);
    assert_eq!(value(requests, &["none", "GET", "4xx"]), 1.0);
    assert_eq!(value(requests, &["/v1/events", "other", "4xx"]), 1.0);
    // The long-poll and no stream.
    assert_eq!(value(requests, &["/v1/events", "GET", "2xx"]), 1.0);
    drop((sse, broken, ndjson, http2));
}
