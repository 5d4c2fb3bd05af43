//! Publishers' long streams: what bounds them, and who sees them.

use std::time::Duration;

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tidings::{connections::Role, http::ServeSettings, settings::Settings, sse::GoAway};
use tokio::{
    sync::mpsc,
    time::{interval, timeout},
};

use super::{
    publish::lines,
    support::{Options, Reader, Server, problem_of},
};

const SHORT: Duration = Duration::from_millis(150);
const SOON: Duration = Duration::from_secs(10);

async fn with(settings: Settings) -> Server {
    Server::with(Options { settings, ..Options::default() }).await
}

fn stream(server: &Server) -> RequestBuilder {
    server.post("/v1/events").header("content-type", "application/x-ndjson")
}

/// A stream that was answered for its first line.
async fn open(request: RequestBuilder) -> (mpsc::Sender<String>, Response) {
    let (sender, body) = lines();
    let event = json!({ "topic": "t", "type": "x" });
    sender.send(format!("{event}\n")).await.unwrap();
    let mut answer = request.body(body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let line = timeout(SOON, answer.chunk()).await.unwrap().unwrap().unwrap();
    let line: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(line["topic"], "t", "{line}");
    (sender, answer)
}

/// The code of the last line that the hub sends by itself.
async fn last_line((sender, answer): (mpsc::Sender<String>, Response)) -> String {
    let text = timeout(SOON, answer.text()).await.expect("the stream ends").unwrap();
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["line"], Value::Null, "{line}");
    drop(sender);
    line["error"]["code"].as_str().unwrap().to_owned()
}

async fn limit_of(request: RequestBuilder) -> String {
    let (status, problem) = problem_of(request.send().await.unwrap()).await;
    assert_eq!(status, 429, "{problem}");
    problem["limit"].as_str().unwrap().to_owned()
}

fn has_metric(server: &Server, line: &str) -> bool {
    server.hub.metrics().encode().lines().any(|text| text == line)
}

#[tokio::test]
async fn a_stream_takes_the_places_that_a_reader_takes() {
    let server = with(Settings { user_connections_max: 1, ..Settings::default() }).await;
    let held = open(stream(&server)).await;
    assert_eq!(limit_of(stream(&server).body("")).await, "user_connections");
    assert_eq!(limit_of(server.get("/v1/events?topic=t")).await, "user_connections");
    drop(held);
    let free = async {
        let mut look = interval(Duration::from_millis(10));
        while server.get("/v1/events?topic=t").send().await.unwrap().status() != 200 {
            look.tick().await;
        }
    };
    timeout(SOON, free).await.expect("the place is given back");
}

#[tokio::test]
async fn streams_through_a_trusted_proxy_are_counted_by_the_address_behind_it() {
    let settings = Settings { address_connections_max: 1, ..Settings::default() };
    let trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let serve = ServeSettings { trusted_proxies, ..ServeSettings::default() };
    let server = Server::with(Options { settings, serve, ..Options::default() }).await;
    let from = |address: &str| stream(&server).header("x-forwarded-for", address);
    let _held = open(from("192.0.2.1")).await;
    assert_eq!(limit_of(from("192.0.2.1").body("")).await, "address_connections");
    let _other = open(from("192.0.2.2")).await;
}

#[tokio::test]
async fn a_stream_lives_as_long_as_a_reader_and_says_that_it_ends() {
    let server = with(Settings { connection_age_max: SHORT, ..Settings::default() }).await;
    assert_eq!(last_line(open(stream(&server)).await).await, "unavailable");
    assert!(has_metric(&server, "tidings_connections_ended_total{reason=\"max_age\"} 1"));
}

#[tokio::test]
async fn a_stream_without_lines_ends_and_says_why() {
    let server = with(Settings { publish_idle_max: SHORT, ..Settings::default() }).await;
    assert_eq!(last_line(open(stream(&server)).await).await, "too_slow");
    assert!(has_metric(&server, "tidings_connections_ended_total{reason=\"slow\"} 1"));
}

#[tokio::test]
async fn a_stream_is_counted_and_listed_and_can_be_sent_away() {
    let server = Server::start().await;
    let held = open(stream(&server)).await;
    let counted = "tidings_connections{format=\"publish\",protocol=\"http1\",tls=\"no\"} 1";
    assert!(has_metric(&server, counted), "{}", server.hub.metrics().encode());
    let reader: Reader = server.follow("topic=t").await;
    let listed = server.hub.connections();
    let roles = [Role::Follow, Role::Publish]
        .map(|role| listed.iter().filter(|connection| connection.role == role).count());
    assert_eq!(roles, [1, 1], "{listed:?}");
    drop(reader);
    let found = listed.iter().find(|connection| connection.role == Role::Publish).unwrap();
    assert!(found.topics.is_empty());
    // It is nobody's to renew: its publisher is not told its id.
    let renewal = server.post(&format!("/v1/connections/{}/auth", found.id));
    assert_eq!(renewal.send().await.unwrap().status(), 404);
    assert!(server.hub.end_connection(&found.id, GoAway::Drain));
    assert_eq!(last_line(held).await, "unavailable");
    assert!(!server.hub.connections().iter().any(|connection| connection.id == found.id));
}
