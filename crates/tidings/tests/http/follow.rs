//! `GET /v1/events`: what a reader gets.

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tidings::settings::Settings;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::support::{Options, Reader, Server, json_of, problem_of, raw, token};

fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_stream_says_hello_sends_states_and_catches_up_before_what_is_new() {
    let server = Server::start().await;
    server
        .publish(&json!([
            { "topic": "t", "type": "x", "data": 1 },
            { "topic": "t", "type": "x", "class": "state", "key": "k", "data": 2 },
        ]))
        .await;
    let mut reader = server.follow("topic=t").await;
    for (name, want) in [
        ("content-type", Some("text/event-stream")),
        ("cache-control", Some("no-cache, no-transform")),
        ("x-accel-buffering", Some("no")),
        ("content-encoding", None),
        ("referrer-policy", Some("no-referrer")),
    ] {
        assert_eq!(header(&reader.answer, name), want, "{name}");
    }
    let hello = reader.next().await.unwrap();
    assert!(reader.raw.starts_with(": ok\n\nretry: 2500\n"), "{}", reader.raw);
    assert_eq!((hello.event.as_str(), hello.has_id), ("tidings.hello", true));
    assert_eq!(hello.json()["resumed"], "fresh");
    assert_eq!(hello.json()["topics"]["t"]["tail"], 3);
    let state = reader.next().await.unwrap();
    assert_eq!((state.event.as_str(), &state.json()["data"]), ("", &json!(2)));
    let caught_up = reader.next().await.unwrap();
    assert_eq!(caught_up.event, "tidings.caught_up");
    assert_eq!(caught_up.json()["topics"]["t"], 2);
    server.publish_numbers("t", 3..5).await;
    assert_eq!(reader.data(2).await, [3, 4]);
}

#[tokio::test]
async fn the_accept_header_chooses_between_stream_lines_and_pages() {
    let server = Server::start().await;
    server.publish_numbers("t", 1..3).await;
    let ask = async |accept: &str| {
        let request = server.get("/v1/events?topic=t&since=earliest&wait=0");
        request.header("accept", accept).send().await.unwrap()
    };
    for accept in
        ["text/event-stream", "*/*", "text/*", "application/json;q=0.1, text/event-stream"]
    {
        let mut reader = Reader::of(ask(accept).await);
        assert_eq!(header(&reader.answer, "content-type"), Some("text/event-stream"));
        assert_eq!(reader.data(2).await, [1, 2]);
    }
    let page = ask("application/json").await;
    assert_eq!(header(&page, "content-type"), Some("application/json"));
    let page = json_of(page).await;
    let data: Vec<_> =
        page["events"].as_array().unwrap().iter().map(|event| &event["data"]).collect();
    assert_eq!(data, [1, 2]);
    assert_eq!((&page["gaps"], &page["closed"]), (&json!([]), &json!(false)));

    let mut lines = ask("application/x-ndjson").await;
    assert_eq!(header(&lines, "content-type"), Some("application/x-ndjson"));
    let mut text = String::new();
    while !text.contains("tidings.caught_up") || !text.ends_with('\n') {
        text.push_str(std::str::from_utf8(&lines.chunk().await.unwrap().unwrap()).unwrap());
    }
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["type"], "tidings.hello");
    assert_eq!([&lines[1]["data"], &lines[2]["data"]], [1, 2]);
    assert!(lines.iter().take(3).all(|line| line["cursor"].is_string()), "{text}");

    let (status, problem) = problem_of(ask("text/html").await).await;
    assert_eq!((status, &problem["code"]), (406, &json!("not_acceptable")));
}

#[tokio::test]
async fn a_page_is_waited_for_and_always_has_a_cursor() {
    let server = Server::start().await;
    let ask = async |query: &str| {
        let path = format!("/v1/events?topic=t&{query}");
        let request = server.get(&path).header("accept", "application/json");
        json_of(request.send().await.unwrap()).await
    };
    let empty = ask("wait=0").await;
    assert_eq!(empty["events"], json!([]));
    let cursor = empty["cursor"].as_str().unwrap();
    let query = format!("wait=20s&last_event_id={cursor}");
    let (page, ()) = tokio::join!(ask(&query), server.publish_numbers("t", 7..8));
    assert_eq!(page["events"][0]["data"], 7);
    assert_ne!(page["cursor"], empty["cursor"]);
    let empty = ask("wait=50ms&since=now").await;
    assert_eq!((&empty["events"], empty["cursor"].is_string()), (&json!([]), true));
}

#[tokio::test]
async fn filters_and_bare_data_narrow_what_is_sent() {
    let server = Server::start().await;
    server
        .publish(&json!([
            { "topic": "t", "type": "job.done", "data": 1 },
            { "topic": "t", "type": "job.run.step", "data": "two\nlines\r\u{0}" },
            { "topic": "t", "type": "jobs", "data": 3 },
            { "topic": "t", "type": "job.done", "class": "state", "key": "run/1", "data": 4 },
            { "topic": "t", "type": "job.done", "class": "state", "key": "other", "data": 5 },
        ]))
        .await;
    for (filter, want) in [
        ("type=job.*", json!([1, "two\nlines\r\u{0}", 4, 5])),
        ("type=jobs", json!([3])),
        ("type=jobs&type=job.run.step", json!(["two\nlines\r\u{0}", 3])),
        ("key=run/*", json!([4])),
        ("key=other", json!([5])),
        ("class=log", json!([1, "two\nlines\r\u{0}", 3])),
        ("class=state&type=job.*", json!([4, 5])),
    ] {
        let want = want.as_array().unwrap();
        let query = format!("topic=t&since=earliest&{filter}");
        let mut reader = server.follow(&query).await;
        assert_eq!(&reader.data(want.len()).await, want, "{filter}");
        let mut bare = server.follow(&format!("{query}&envelope=none")).await;
        for value in want {
            assert_eq!(&bare.event().await.json(), value, "{filter}");
        }
        assert_eq!(bare.next().await.unwrap().event, "tidings.caught_up", "{filter}");
    }
}

#[tokio::test]
async fn a_reader_starts_where_it_asks_to() {
    let server = Server::start().await;
    server.publish_numbers("t", 1..6).await;
    for (since, want) in [
        ("since=earliest", 1..6),
        ("since=latest:2", 4..6),
        ("since=latest:0", 6..6),
        ("since=10m", 1..6),
        ("since=PT10M", 1..6),
        ("since=2020-01-01T00:00:00Z", 1..6),
        ("since=2100-01-01T00:00:00Z", 6..6),
        ("since=now", 6..6),
        ("state=0", 6..6),
    ] {
        let mut reader = server.follow(&format!("topic=t&{since}")).await;
        let want: Vec<u64> = want.collect();
        assert_eq!(reader.data(want.len()).await, want, "{since}");
        let mut rest = Vec::new();
        while reader.next().await.is_some_and(|message| {
            rest.push(message.event.clone());
            message.event != "tidings.caught_up"
        }) {}
        assert!(rest.iter().all(|event| event.starts_with("tidings.")), "{since}: {rest:?}");
    }
}

#[tokio::test]
async fn a_query_with_a_mistake_is_refused_by_the_parameters_name() {
    let server = Server::start().await;
    let topics: String = (0..33).map(|n| format!("&topic=t/{n}")).collect();
    for (query, status, pointer) in [
        ("", 400, "topic"),
        ("topic=a//b", 400, "topic"),
        ("topic=a&topc=b", 400, "topc"),
        ("topic=a&since=soon", 400, "since"),
        ("topic=a&since=now&since=earliest", 400, "since"),
        ("topic=a&type=A", 400, "type"),
        ("topic=a&class=other", 400, "class"),
        ("topic=a&since=36%20h", 400, "since"),
        ("topic=a&since=1969-12-31T23:59:59Z", 400, "since"),
        ("topic=a&wait=26s", 400, "wait"),
        ("topic=a&wait=1%20s", 400, "wait"),
        ("topic=a&envelope=all", 400, "envelope"),
        ("topic=a&state=yes", 400, "state"),
        ("topic=%ff", 400, "topic"),
        (topics.as_str(), 413, "topic"),
    ] {
        let request = server.get(&format!("/v1/events?{query}"));
        let (got, problem) = problem_of(request.send().await.unwrap()).await;
        assert_eq!((got, &problem["pointer"]), (status, &json!(pointer)), "{query}: {problem}");
    }
    let (_, problem) =
        problem_of(server.get("/v1/events?topic=a&last_event=b").send().await.unwrap()).await;
    assert_eq!(problem["detail"], "there is no such parameter; did you mean `last_event_id`?");
    let (_, problem) =
        problem_of(server.get("/v1/events?topic=a&volume=11").send().await.unwrap()).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.starts_with("there is no such parameter; known are topic, "), "{detail}");
}

#[tokio::test]
async fn without_topics_the_credentials_feed_is_followed() {
    let server = Server::start().await;
    let claims = json!({ "teams": ["7", "8"], "permissions": ["events:read"] });
    let request = server.anonymous(Method::GET, "/v1/events");
    let answer = request.bearer_auth(token("42", 600, claims)).send().await.unwrap();
    let hello = Reader::of(answer).control("tidings.hello").await;
    let topics: Vec<_> = hello["topics"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(topics, ["team/7/jobs", "team/8/jobs", "user/42"]);
}

#[tokio::test]
async fn a_live_and_a_replayed_event_are_the_same_bytes() {
    let server = Server::start().await;
    let frames = |raw: &str| -> Vec<String> {
        let frames = raw.split_inclusive("\n\n").filter(|frame| frame.contains("specversion"));
        frames.map(str::to_owned).collect()
    };
    let mut live = server.follow("topic=t").await;
    live.control("tidings.caught_up").await;
    let event = |class: &str, data: Value| {
        let mut event = json!({ "topic": "t", "type": "x", "class": class, "data": data });
        if class == "state" {
            event["key"] = json!("k");
        }
        event
    };
    server.publish(&event("log", json!("a\r\n\u{0}\u{2028}ü"))).await;
    server.publish(&event("state", json!({ "b": 1.5 }))).await;
    live.data(2).await;
    let mut replayed = server.follow("topic=t&since=earliest").await;
    replayed.data(2).await;
    assert_eq!(frames(&live.raw), frames(&replayed.raw));
    assert_eq!(frames(&live.raw).len(), 2);
}

#[tokio::test]
async fn head_has_the_headers_and_does_nothing() {
    let server = Server::start().await;
    let answer = server.request(Method::HEAD, "/v1/events?topic=t").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(header(&answer, "content-type"), Some("text/event-stream"));
    let page = server.request(Method::HEAD, "/v1/events?topic=t&wait=25s");
    let begun = tokio::time::Instant::now();
    let answer = page.header("accept", "application/json").send().await.unwrap();
    assert_eq!(header(&answer, "content-type"), Some("application/json"));
    assert!(begun.elapsed() < Duration::from_secs(10), "HEAD waited for an event");
    assert_eq!(server.hub.metrics().connections.get(), 0);
}

/// What the client of the other tests does not show: whether a length is told.
#[tokio::test]
async fn head_of_a_stream_tells_no_length() {
    let server = Server::start().await;
    for accept in ["text/event-stream", "application/x-ndjson", "application/json"] {
        let request = format!(
            "HEAD /v1/events?topic=t HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {accept}\r\n\
             Authorization: Bearer {}\r\n\r\n",
            server.key
        );
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let answer = raw(&mut stream, request.as_bytes()).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert!(answer.contains(&format!("content-type: {accept}")), "{answer}");
        assert!(!answer.contains("content-length"), "{answer}");
    }
}

#[tokio::test]
async fn a_closed_topic_ends_its_streams_and_keeps_finished_readers_away() {
    let server = Server::start().await;
    server.publish_numbers("t", 1..3).await;
    let mut live = server.follow("topic=t&since=earliest").await;
    assert_eq!(live.data(2).await, [1, 2]);
    server.publish(&json!({ "topic": "t", "type": "end", "close": true })).await;
    assert_eq!(live.event().await.json()["type"], "end");
    let goaway = live.control("tidings.goaway").await;
    assert_eq!(goaway["reason"], "closed");
    assert_eq!(live.next().await, None);
    // The browser comes back with its last id and is told to stay away.
    let request = server.get("/v1/events?topic=t").header("last-event-id", &live.last_id);
    assert_eq!(request.send().await.unwrap().status(), 204);
    let mut late = server.follow("topic=t&since=latest:1").await;
    assert_eq!(late.event().await.json()["type"], "end");
    assert_eq!(late.control("tidings.goaway").await["reason"], "closed");
    let body = json!({ "topic": "t", "type": "x" }).to_string();
    let request = server.post("/v1/events").header("content-type", "application/json").body(body);
    let (status, problem) = problem_of(request.send().await.unwrap()).await;
    assert_eq!((status, &problem["code"]), (409, &json!("topic_closed")));
}

/// A stream's head is hyper's, its chunks are not, and the requests behind it are hyper's again.
#[tokio::test]
async fn a_connection_takes_requests_again_behind_a_stream_that_ended() {
    let server = Server::start().await;
    server.publish_numbers("t", 1..3).await;
    server.publish(&json!({ "topic": "t", "type": "end", "close": true })).await;
    let head = |path: &str, more: &str| {
        let key = &server.key;
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{more}\r\n")
    };
    let stream = "/v1/events?topic=t&since=earliest";
    let requests = [
        head(stream, ""),
        head("/health/live", ""),
        head(stream, ""),
        head(stream, "connection: Close\r\n"),
    ];
    let mut ways = vec![requests.to_vec()];
    // All at once, whole or cut anywhere, and one behind the other.
    ways.push(vec![requests.concat()]);
    for cut in [1, 100, requests[0].len() - 1, requests[0].len(), requests[0].len() + 9] {
        let all = requests.concat();
        ways.push(vec![all[..cut].to_owned(), all[cut..].to_owned()]);
    }
    for way in ways {
        let mut connection = TcpStream::connect(server.address).await.unwrap();
        for part in &way[..way.len() - 1] {
            connection.write_all(part.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        let answers = raw(&mut connection, way[way.len() - 1].as_bytes()).await;
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 4, "{answers}");
        assert_eq!(answers.matches("transfer-encoding: chunked\r\n").count(), 3, "{answers}");
        assert_eq!(answers.matches("\n\n\r\n0\r\n\r\n").count(), 3, "{answers}");
        assert_eq!(answers.matches("\"reason\":\"closed\"").count(), 3, "{answers}");
        assert!(answers.ends_with("\r\n0\r\n\r\n"), "{answers}");
    }
}

#[tokio::test]
async fn a_client_that_knows_no_chunks_gets_none() {
    let server = Server::start().await;
    server.publish(&json!({ "topic": "t", "type": "end", "close": true })).await;
    let request = format!(
        "GET /v1/events?topic=t&since=earliest HTTP/1.0\r\nauthorization: Bearer {}\r\n\r\n",
        server.key
    );
    let mut connection = TcpStream::connect(server.address).await.unwrap();
    let answer = raw(&mut connection, request.as_bytes()).await;
    assert!(!answer.contains("chunked") && answer.contains("\r\n\r\n: ok\n\n"), "{answer}");
    assert!(answer.ends_with("}\n\n"), "{answer}");
}

#[tokio::test]
async fn a_quiet_stream_is_pinged() {
    let settings = Settings { heartbeat: Duration::from_millis(50), ..Settings::default() };
    let server = Server::with(Options { settings, ..Options::default() }).await;
    let mut reader = server.follow("topic=t").await;
    for _ in 0..3 {
        assert!(reader.control("tidings.ping").await["time"].is_string());
    }
}

#[tokio::test]
async fn a_connection_that_is_old_is_sent_away_with_its_cursor() {
    let age = Duration::from_millis(200);
    let settings = Settings { connection_age_max: age, ..Settings::default() };
    let server = Server::with(Options { settings, ..Options::default() }).await;
    let mut reader = server.follow("topic=t").await;
    let hello = reader.next().await.unwrap();
    let goaway = reader.control("tidings.goaway").await;
    assert_eq!(goaway["reason"], "max_age");
    assert_eq!(reader.retry_ms, goaway["retry_ms"].as_u64());
    assert_eq!(reader.last_id, hello.id);
    assert_eq!(reader.next().await, None);
}
