//! `/v1/topics`.

use reqwest::Method;
use serde_json::{Value, json};

use super::support::{Server, json_of, problem_of};

async fn put(server: &Server, topic: &str, body: Value) -> (u16, Value) {
    let request = server.request(Method::PUT, &format!("/v1/topics/{topic}"));
    let request = request.header("content-type", "application/json").body(body.to_string());
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), json_of(answer).await)
}

#[tokio::test]
async fn a_topic_is_created_described_changed_closed_and_deleted() {
    let server = Server::start().await;
    let properties = json!({ "owner": "7", "readers": ["8"], "ttl": "36h",
        "retention": { "age": "7d", "events": 100, "bytes": 1000 } });
    let (status, created) = put(&server, "message/1", properties).await;
    assert_eq!(status, 201);
    assert_eq!((&created["owner"], &created["ttl"]), (&json!("7"), &json!(36 * 3600)));
    let retention = json!({ "age": 7 * 24 * 3600, "events": 100, "bytes": 1000 });
    assert_eq!(created["retention"], retention);
    server.publish_numbers("message/1", 1..3).await;
    let (status, changed) = put(&server, "message/1", json!({ "owner": "9" })).await;
    assert_eq!((status, &changed["owner"], &changed["readers"]), (200, &json!("9"), &json!([])));
    let shown = json_of(server.get("/v1/topics/message/1").send().await.unwrap()).await;
    assert_eq!(
        (&shown["topic"], &shown["tail"], &shown["events"]),
        (&json!("message/1"), &json!(3), &json!(2))
    );
    let (status, closed) = put(&server, "message/1", json!({ "closed": true })).await;
    assert_eq!((status, &closed["closed"]), (200, &json!(true)));
    let (status, problem) = put(&server, "message/1", json!({ "closed": false })).await;
    assert_eq!((status, &problem["code"]), (409, &json!("topic_closed")));
    let deleted = server.request(Method::DELETE, "/v1/topics/message/1");
    assert_eq!(deleted.send().await.unwrap().status(), 204);
    for method in [Method::GET, Method::DELETE] {
        let gone = server.request(method, "/v1/topics/message/1").send().await.unwrap();
        assert_eq!(problem_of(gone).await.0, 404);
    }
}

#[tokio::test]
async fn topics_are_listed_page_by_page() {
    let server = Server::start().await;
    let events: Vec<Value> =
        (0..25).map(|n| json!({ "topic": format!("job/{n:02}"), "type": "x" })).collect();
    server.publish(&events.into()).await;
    server.publish_numbers("user/1", 1..2).await;
    let mut names = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/topics?prefix=job/&limit=10{after}");
        let page = json_of(server.get(&path).send().await.unwrap()).await;
        let topics = page["topics"].as_array().unwrap();
        assert!(topics.len() <= 10);
        names.extend(topics.iter().map(|topic| topic["topic"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    let want: Vec<String> = (0..25).map(|n| format!("job/{n:02}")).collect();
    assert_eq!(names, want);
}

#[tokio::test]
async fn mistakes_are_pointed_at() {
    let server = Server::start().await;
    for (topic, body, pointer) in [
        ("t", r#"{"ownr":"7"}"#, "/ownr"),
        ("t", r#"{"owner":"7","owner":"8"}"#, "/owner"),
        ("t", r#"{"readers":["a\n"]}"#, "/readers/0"),
        ("t", r#"{"retention":{"events":NaN}}"#, "/retention/events"),
        ("t", r#"{"ttl":"36 h"}"#, "/ttl"),
        ("t", r#"{"a/b":1}"#, "/a~1b"),
        ("t", r#"{"ttl":"soon"}"#, "/ttl"),
        ("t", "[]", ""),
        ("a%20b", "{}", "topic"),
        ("a//b", "{}", "topic"),
        ("%ff", "{}", "topic"),
    ] {
        let request = server.request(Method::PUT, &format!("/v1/topics/{topic}")).body(body);
        let (status, problem) = problem_of(request.send().await.unwrap()).await;
        let at = problem["pointer"].as_str().unwrap_or_default();
        assert_eq!((status, at), (400, pointer), "{topic} {body}: {problem}");
    }
    for (method, path) in [
        (Method::GET, "/v1/topics/t?limit=1"),
        (Method::PUT, "/v1/topics/t?owner=7"),
        (Method::DELETE, "/v1/topics/t?force=1"),
        (Method::POST, "/v1/tickets?ttl=1h"),
        (Method::GET, "/v1/state?topic=t&key=k"),
        (Method::GET, "/v1/topics?page=2"),
    ] {
        let request = server.request(method.clone(), path).body("{}");
        let (status, problem) = problem_of(request.send().await.unwrap()).await;
        let (_, name) = path.split_once(['?', '&']).unwrap();
        let name = name.rsplit('&').next().unwrap().split('=').next().unwrap();
        assert_eq!((status, &problem["pointer"]), (400, &json!(name)), "{method} {path}");
    }
    assert_eq!(server.get("/v1/topics/t").send().await.unwrap().status(), 404, "nothing was made");
    // Probes may add what they like.
    for path in ["/health/live?at=1", "/health/ready?at=1", "/openapi.json?v=1"] {
        assert_eq!(server.get(path).send().await.unwrap().status(), 200, "{path}");
    }
    for (query, pointer) in [("limit=0", "limit"), ("limit=1001", "limit"), ("after=a//b", "after")]
    {
        let request = server.get(&format!("/v1/topics?{query}"));
        let (status, problem) = problem_of(request.send().await.unwrap()).await;
        assert_eq!((status, &problem["pointer"]), (400, &json!(pointer)), "{query}");
    }
    let reserved = server.request(Method::PUT, "/v1/topics/$hub/x").body("{}");
    let (status, problem) = problem_of(reserved.send().await.unwrap()).await;
    assert_eq!((status, &problem["pointer"]), (403, &json!("topic")));
}
