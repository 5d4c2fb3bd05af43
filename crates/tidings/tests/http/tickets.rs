//! Tickets: what uses one up, what does not, and where they are never seen.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::support::{Log, Reader, Server, json_of, problem_of, token};

async fn ticket(server: &Server, bearer: &str) -> String {
    let request = server.anonymous(Method::POST, "/v1/tickets").bearer_auth(bearer);
    let answer = json_of(request.send().await.unwrap()).await;
    answer["ticket"].as_str().unwrap().to_owned()
}

/// A request as a native `EventSource` makes it.
async fn native(server: &Server, query: &str, last_id: Option<&str>) -> Response {
    let request = server
        .anonymous(Method::GET, &format!("/v1/events?{query}"))
        .header("accept", "text/event-stream");
    match last_id {
        Some(id) => request.header("last-event-id", id).send().await.unwrap(),
        None => request.send().await.unwrap(),
    }
}

/// Broken on purpose: using the ticket before the topics are looked at makes it fail.
#[tokio::test]
async fn a_request_that_is_refused_uses_no_ticket() {
    let server = Server::start().await;
    server.publish_numbers("user/42", 1..2).await;
    let ticket = ticket(&server, &token("42", 600, json!({}))).await;
    let many: String = (0..33).map(|n| format!("topic=user/{n}&")).collect();
    for (query, status) in [
        ("topic=user/7&", 403),
        ("topic=user/42&topic=user/7&", 403),
        (many.as_str(), 413),
        ("topic=a//b&", 400),
        ("topic=user/42&sinse=now&", 400),
    ] {
        let refused = native(&server, &format!("{query}ticket={ticket}"), None).await;
        assert_eq!(problem_of(refused).await.0, status, "{query}");
    }
    let query = format!("topic=user/42&since=earliest&ticket={ticket}");
    let mut reader = Reader::of(native(&server, &query, None).await);
    assert_eq!(reader.data(1).await, [1]);
    assert_eq!(problem_of(native(&server, &query, None).await).await.0, 401, "now it is used");
}

/// Broken on purpose: sending `: ok` without an id makes it fail.
#[tokio::test]
async fn a_reader_that_is_cut_off_after_its_first_bytes_comes_back_with_its_ticket() {
    let server = Server::start().await;
    server.publish_numbers("user/42", 1..3).await;
    let ticket = ticket(&server, &token("42", 600, json!({}))).await;
    let query = format!("topic=user/42&since=earliest&ticket={ticket}");
    let mut first = native(&server, &query, None).await;
    let bytes = first.chunk().await.unwrap().unwrap();
    drop(first);
    let text = std::str::from_utf8(&bytes).unwrap();
    let id = text.strip_prefix(": ok\nid: ").and_then(|rest| rest.split('\n').next());
    let id = id.unwrap_or_else(|| panic!("{text}")).to_owned();
    // What it has is nobody's position: it begins as it would have.
    for _ in 0..2 {
        let mut again = Reader::of(native(&server, &query, Some(&id)).await);
        assert_eq!(again.control("tidings.hello").await["resumed"], "fresh");
        assert_eq!(again.data(2).await, [1, 2]);
    }
    assert_eq!(problem_of(native(&server, &query, None).await).await.0, 401);
}

#[tokio::test]
async fn a_position_that_a_ticket_is_first_used_with_is_kept() {
    let server = Server::start().await;
    let results = server.publish(&json!({ "topic": "user/42", "type": "x", "data": 1 })).await;
    server.publish_numbers("user/42", 2..3).await;
    let ticket = ticket(&server, &token("42", 600, json!({}))).await;
    let cursor = results[0]["cursor"].as_str().unwrap();
    let query = format!("topic=user/42&ticket={ticket}&last_event_id={cursor}");
    let mut first = native(&server, &query, None).await;
    let bytes = first.chunk().await.unwrap().unwrap();
    drop(first);
    let text = std::str::from_utf8(&bytes).unwrap().to_owned();
    let id = text.strip_prefix(": ok\nid: ").and_then(|rest| rest.split('\n').next()).unwrap();
    let mut again = Reader::of(native(&server, &query, Some(id)).await);
    assert_eq!(again.control("tidings.hello").await["resumed"], "exact");
    assert_eq!(again.data(1).await, [2]);
}

/// A cursor of nobody's must be told as a gap, and no id may come before that.
#[tokio::test]
async fn a_foreign_position_is_told_before_any_id() {
    let server = Server::start().await;
    let ticket = ticket(&server, &token("42", 600, json!({}))).await;
    let query = format!("topic=user/42&ticket={ticket}&last_event_id=foreign");
    let mut first = native(&server, &query, None).await;
    assert_eq!(&first.chunk().await.unwrap().unwrap()[..], b": ok\n\n");
    let mut reader = Reader::of(first);
    assert_eq!(reader.control("tidings.gap").await["reason"], "unknown_cursor");
}

#[tokio::test]
async fn of_two_uses_at_once_one_wins_also_as_pages() {
    let server = Server::start().await;
    server.publish_numbers("user/42", 1..2).await;
    for accept in ["text/event-stream", "application/json"] {
        let ticket = ticket(&server, &token("42", 600, json!({}))).await;
        let path = format!("/v1/events?topic=user/42&since=earliest&ticket={ticket}");
        let ask = || server.anonymous(Method::GET, &path).header("accept", accept).send();
        let answers: Vec<u16> = futures_util::future::join_all((0..8).map(|_| ask()))
            .await
            .into_iter()
            .map(|answer| answer.unwrap().status().as_u16())
            .collect();
        assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
        assert!(answers.iter().all(|status| matches!(status, 200 | 401)), "{answers:?}");
    }
}

/// Broken on purpose: a span with the whole address makes it fail.
#[tokio::test]
async fn no_log_line_and_no_answer_has_a_ticket_or_a_token() {
    // What the client logs is its own affair.
    let log = Log::of_this_thread(tracing::Level::TRACE);
    let server = Server::start().await;
    let bearer = token("42", 600, json!({}));
    let ticket = ticket(&server, &bearer).await;
    let query = format!("topic=user/42&ticket={ticket}");
    let mut answers = Vec::new();
    for bad in [format!("topic=user/7&ticket={ticket}"), format!("topic=a//b&ticket={ticket}")] {
        answers.push(problem_of(native(&server, &bad, None).await).await.1);
    }
    let mut reader = Reader::of(native(&server, &query, None).await);
    answers.push(reader.control("tidings.hello").await);
    for (last_id, bad) in [(None, query.clone()), (None, format!("{query}x")), (Some("x"), query)] {
        answers.push(problem_of(native(&server, &bad, last_id).await).await.1);
    }
    let wrong = server.anonymous(Method::GET, "/v1/topics").bearer_auth(format!("{bearer}x"));
    answers.push(problem_of(wrong.send().await.unwrap()).await.1);
    server.hub.shutdown().await;
    let log = log.end();
    let ours: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("tidings") || line.contains("hyper::proto"))
        .collect();
    assert!(ours.len() > 5, "{log}");
    let answers = Value::from(answers).to_string();
    for secret in [&ticket[..], &ticket[4..20], &bearer[bearer.len() - 20..], &server.key[4..]] {
        assert!(!answers.contains(secret), "{answers}");
        for line in &ours {
            assert!(!line.contains(secret), "{line}");
        }
    }
}
