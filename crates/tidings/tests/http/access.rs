//! Who may do what, through every door.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::support::{Options, Reader, Server, json_of, problem_of, token};

#[tokio::test]
async fn a_missing_a_wrong_and_an_expired_credential_are_told_apart_and_never_echoed() {
    let server = Server::start().await;
    let expired = token("42", -3600, json!({}));
    let with = |value: &str| vec![value.to_owned()];
    for (headers, code) in [
        (vec![], "credential_missing"),
        (with("Basic dTpw"), "credential_missing"),
        (with("Bearer"), "credential_missing"),
        (with("Bearer tdk_secret-that-is-none"), "credential_invalid"),
        (with("Bearer secret.that.is-none"), "credential_invalid"),
        (vec!["Bearer a".to_owned(), "Bearer b".to_owned()], "credential_invalid"),
        (with(&format!("Bearer {expired}")), "credential_expired"),
    ] {
        for (method, path) in [
            (Method::GET, "/v1/events?topic=user/42"),
            (Method::POST, "/v1/events"),
            (Method::GET, "/v1/state?topic=user/42"),
            (Method::GET, "/v1/topics"),
            (Method::PUT, "/v1/topics/user/42"),
            (Method::DELETE, "/v1/topics/user/42"),
            (Method::POST, "/v1/tickets"),
        ] {
            let mut request = server.anonymous(method.clone(), path);
            for value in &headers {
                request = request.header("authorization", value);
            }
            let answer = request.send().await.unwrap();
            let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
            let (status, problem) = problem_of(answer).await;
            assert_eq!((status, &problem["code"]), (401, &json!(code)), "{method} {path}");
            assert!(challenge.starts_with("Bearer"), "{challenge}");
            let text = problem.to_string();
            assert!(!text.contains("is-none") && !text.contains(&expired), "{text}");
        }
    }
}

#[tokio::test]
async fn no_credential_is_taken_from_the_query() {
    let server = Server::start().await;
    for name in ["access_token", "token", "authorization", "api_key"] {
        let path = format!("/v1/events?topic=t&{name}={}", server.key);
        let answer = server.anonymous(Method::GET, &path).send().await.unwrap();
        let (status, problem) = problem_of(answer).await;
        assert!(status == 400 || status == 401, "{name}: {problem}");
        assert!(!problem.to_string().contains(&server.key), "{problem}");
    }
}

/// Everything about a problem but its request's id and the topic's name in the detail.
async fn brief(request: RequestBuilder, topic: &str) -> (u16, Value) {
    let (status, mut problem) = problem_of(request.send().await.unwrap()).await;
    problem.as_object_mut().unwrap().remove("request_id");
    let text = problem.to_string().replace(topic, "<topic>");
    (status, serde_json::from_str(&text).unwrap())
}

#[tokio::test]
async fn what_a_grant_does_not_cover_looks_the_same_whether_it_exists_or_not() {
    let server = Server::start().await;
    server.publish_numbers("user/7", 1..3).await;
    server
        .publish(&json!({ "topic": "message/1", "type": "x", "properties": { "owner": "7" } }))
        .await;
    let bearer = token("42", 600, json!({}));
    let as_user =
        |method: Method, path: String| server.anonymous(method, &path).bearer_auth(&bearer);
    for (there, absent) in [("user/7", "user/8"), ("message/1", "message/2")] {
        let requests = |topic: &str| {
            let body = json!({ "topic": topic, "type": "x" }).to_string();
            let json = |request: RequestBuilder| request.header("content-type", "application/json");
            // Where owners write, anybody may create a topic for himself, and sees whether he did.
            let mut owners = vec![json!({ "owner": "7" })];
            if topic.starts_with("user/") {
                owners.extend([json!({}), json!({ "owner": "42" }), json!({ "owner": null })]);
            }
            let puts = owners.iter().map(|properties| {
                let request = json(as_user(Method::PUT, format!("/v1/topics/{topic}")));
                request.body(properties.to_string())
            });
            let mut all = vec![
                as_user(Method::GET, format!("/v1/events?topic={topic}")),
                as_user(Method::GET, format!("/v1/events?topic=user/42&topic={topic}")),
                as_user(Method::GET, format!("/v1/state?topic={topic}")),
                as_user(Method::GET, format!("/v1/topics/{topic}")),
                as_user(Method::DELETE, format!("/v1/topics/{topic}")),
                json(as_user(Method::POST, "/v1/events".to_owned())).body(body),
            ];
            all.extend(puts);
            all
        };
        for (one, other) in requests(there).into_iter().zip(requests(absent)) {
            let asked = format!("{one:?}");
            let (one, other) = (brief(one, there).await, brief(other, absent).await);
            assert_eq!(one, other, "{asked}");
            assert!(matches!(one.0, 403 | 404), "{asked}: {one:?}");
        }
    }
    let listed = json_of(as_user(Method::GET, "/v1/topics".to_owned()).send().await.unwrap()).await;
    assert_eq!(listed, json!({ "topics": [], "next": null }));
}

#[tokio::test]
async fn another_tenants_topics_are_as_if_they_did_not_exist() {
    let server = Server::start().await;
    server
        .publish(&json!({ "topic": "t", "type": "s", "class": "state", "key": "k", "data": 1 }))
        .await;
    let mut own = server.follow("topic=t&since=earliest").await;
    assert_eq!(own.data(1).await, [1]);
    let cursor = own.last_id.clone();
    let as_other =
        |method: Method, path: &str| server.anonymous(method, path).bearer_auth(&server.other_key);
    for path in ["/v1/topics", "/v1/topics?prefix=t"] {
        let listed = json_of(as_other(Method::GET, path).send().await.unwrap()).await;
        assert_eq!(listed["topics"], json!([]), "{path}");
    }
    for method in [Method::GET, Method::DELETE] {
        let answer = as_other(method, "/v1/topics/t").send().await.unwrap();
        assert_eq!(problem_of(answer).await.0, 404);
    }
    let states = as_other(Method::GET, "/v1/state?topic=t").send().await.unwrap();
    assert_eq!(json_of(states).await["states"], json!([]));
    let foreign = as_other(Method::GET, "/v1/events?topic=t&since=earliest");
    let foreign = foreign.header("last-event-id", &cursor).send().await.unwrap();
    let mut foreign = Reader::of(foreign);
    foreign.control("tidings.caught_up").await;
    assert!(!foreign.raw.contains("specversion"), "{}", foreign.raw);
    // What is published there is not seen here.
    let body = json!({ "topic": "t", "type": "x", "data": 9 }).to_string();
    let request = as_other(Method::POST, "/v1/events").header("content-type", "application/json");
    assert_eq!(request.body(body).send().await.unwrap().status(), 200);
    assert_eq!(foreign.data(1).await, [9]);
    server.publish_numbers("t", 2..3).await;
    assert_eq!(own.data(1).await, [2]);
}

#[tokio::test]
async fn a_topics_owner_and_readers_come_in_and_nobody_else() {
    let server = Server::start().await;
    let as_user = |sub: &str, method: Method, path: &str| {
        server.anonymous(method, path).bearer_auth(token(sub, 600, json!({})))
    };
    let publish = async |sub: &str, body: Value| {
        let request = as_user(sub, Method::POST, "/v1/events");
        let request = request.header("content-type", "application/json").body(body.to_string());
        request.send().await.unwrap().status().as_u16()
    };
    let first = json!({ "topic": "message/9", "type": "x", "data": 1,
        "properties": { "owner": "7", "readers": ["8"] } });
    assert_eq!(publish("8", first.clone()).await, 403, "nobody creates a topic for another");
    assert_eq!(publish("7", first.clone()).await, 200);
    let takeover = json!({ "topic": "message/9", "type": "x", "properties": { "owner": "8" } });
    assert_eq!(publish("8", takeover).await, 403);
    let follow = async |sub: &str| {
        let request = as_user(sub, Method::GET, "/v1/events?topic=message/9&since=earliest");
        request.send().await.unwrap()
    };
    for sub in ["7", "8"] {
        assert_eq!(Reader::of(follow(sub).await).data(1).await, [1], "{sub}");
    }
    assert_eq!(problem_of(follow("9").await).await.0, 403);
    let put = |sub: &str, owner: &str| {
        let request = as_user(sub, Method::PUT, "/v1/topics/message/9");
        request.body(json!({ "owner": owner }).to_string()).send()
    };
    assert_eq!(put("8", "8").await.unwrap().status(), 403);
    assert_eq!(put("7", "8").await.unwrap().status(), 200);
    assert_eq!(problem_of(follow("7").await).await.0, 403);
}

/// Broken on purpose: in `Live::refresh`, leave `changes` as it is.
#[tokio::test]
async fn a_reader_is_let_go_before_it_gets_what_is_not_for_it_any_more() {
    let server = Server::start().await;
    let as_user = |sub: &str, path: &str| {
        server.anonymous(Method::GET, path).bearer_auth(token(sub, 600, json!({})))
    };
    let put = async |properties: Value| {
        let request = server.request(Method::PUT, "/v1/topics/message/9");
        request.body(properties.to_string()).send().await.unwrap().status().as_u16()
    };
    let follow = async |sub: &str| {
        let mut reader =
            Reader::of(as_user(sub, "/v1/events?topic=message/9").send().await.unwrap());
        reader.control("tidings.caught_up").await;
        reader
    };
    assert_eq!(put(json!({ "owner": "7", "readers": ["8"] })).await, 201);
    let (mut owner, mut reader) = (follow("7").await, follow("8").await);
    let page = as_user("8", "/v1/events?topic=message/9&wait=20s");
    let page = tokio::spawn(page.header("accept", "application/json").send());
    // Either it waits by now and is let go, or it comes late and is not let in.
    assert_eq!(put(json!({ "owner": "7" })).await, 200);
    assert_eq!(problem_of(page.await.unwrap().unwrap()).await.0, 403);
    // Nobody need publish for that.
    let goaway = reader.control("tidings.goaway").await;
    assert_eq!(goaway["reason"], "revoked");
    assert_eq!(reader.next().await, None);
    server.publish(&json!({ "topic": "message/9", "type": "x", "data": 1 })).await;
    assert_eq!(owner.data(1).await, [1]);
    // Deleted and written anew by somebody else, it is another topic.
    let deleted = server.request(Method::DELETE, "/v1/topics/message/9").send().await.unwrap();
    assert_eq!(deleted.status(), 204);
    let anew = json!({ "topic": "message/9", "type": "x", "properties": { "owner": "8" } });
    server.publish(&anew).await;
    assert_eq!(owner.control("tidings.goaway").await["reason"], "revoked");
    assert!(!owner.raw.contains("\"owner\":\"8\""));
}

#[tokio::test]
async fn the_end_of_a_token_ends_its_stream() {
    let server = Server::start().await;
    // A token serves a leeway of 60 s beyond its end.
    let bearer = token("42", -59, json!({}));
    let request = server.anonymous(Method::GET, "/v1/events?topic=user/42").bearer_auth(bearer);
    let mut reader = Reader::of(request.send().await.unwrap());
    let goaway = reader.control("tidings.goaway").await;
    assert_eq!(goaway["reason"], "expired");
    assert_eq!(reader.next().await, None);
}

#[tokio::test]
async fn a_page_is_not_waited_for_beyond_the_end_of_a_token() {
    let server = Server::start().await;
    let bearer = token("42", -58, json!({}));
    let request = server.anonymous(Method::GET, "/v1/events?topic=user/42&wait=25s");
    let request = request.bearer_auth(bearer).header("accept", "application/json");
    let answer = tokio::time::timeout(std::time::Duration::from_secs(10), request.send()).await;
    let page = json_of(answer.expect("the page ends with its token").unwrap()).await;
    assert_eq!(page["events"], json!([]));
}

async fn ticket(server: &Server, bearer: &str) -> String {
    let request = server.anonymous(Method::POST, "/v1/tickets").bearer_auth(bearer);
    let answer = request.send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["cache-control"]),
        (201, &"no-store".parse().unwrap())
    );
    let answer = json_of(answer).await;
    assert_eq!(answer["expires_in_ms"], 30_000);
    answer["ticket"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_ticket_opens_one_connection_and_its_reconnects_and_no_other() {
    let server = Server::start().await;
    server.publish_numbers("user/42", 1..3).await;
    let ticket = ticket(&server, &token("42", 600, json!({}))).await;
    let native = |query: &str, last_id: Option<&str>| {
        let path = format!("/v1/events?topic=user/42&ticket={ticket}{query}");
        let request = server.anonymous(Method::GET, &path).header("accept", "text/event-stream");
        match last_id {
            Some(id) => request.header("last-event-id", id),
            None => request,
        }
    };
    let head = native("", None).build().unwrap();
    let mut head = reqwest::Request::new(Method::HEAD, head.url().clone());
    head.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
    assert_eq!(server.client.execute(head).await.unwrap().status(), 401, "HEAD uses no ticket");

    let mut first = Reader::of(native("&since=earliest", None).send().await.unwrap());
    assert_eq!(first.data(2).await, [1, 2]);
    let id = first.last_id.clone();
    assert_eq!(problem_of(native("", None).send().await.unwrap()).await.0, 401, "used already");
    drop(first);
    // A cursor that anybody can have: the publisher's answer.
    let results = server.publish(&json!({ "topic": "user/42", "type": "x", "data": 3 })).await;
    let foreign = results[0]["cursor"].as_str().unwrap();
    assert_eq!(problem_of(native("", Some(foreign)).send().await.unwrap()).await.0, 401);
    let mut again = Reader::of(native("", Some(&id)).send().await.unwrap());
    assert_eq!(again.data(1).await, [3]);
    // It stands for its grant and no more.
    let path = format!("/v1/events?topic=user/7&ticket={ticket}");
    let request = server.anonymous(Method::GET, &path).header("last-event-id", &again.last_id);
    assert_eq!(problem_of(request.send().await.unwrap()).await.0, 403);
    let path = format!("/v1/state?topic=user/42&ticket={ticket}");
    assert_eq!(server.anonymous(Method::GET, &path).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_ticket_is_not_used_up_by_a_hub_that_drains() {
    let server = Server::start().await;
    let ticket = ticket(&server, &token("42", 600, json!({}))).await;
    server.hub.draining().cancel();
    let path = format!("/v1/events?topic=user/42&ticket={ticket}");
    let refused = server.anonymous(Method::GET, &path).header("accept", "text/event-stream");
    let mut reader = Reader::of(refused.send().await.unwrap());
    assert_eq!(reader.control("tidings.problem").await["code"], "unavailable");
    let goaway = reader.control("tidings.goaway").await;
    assert_eq!(reader.retry_ms, goaway["retry_ms"].as_u64());
    assert_eq!(reader.next().await, None);
    assert!(server.hub.find_ticket(&ticket, None).await.is_ok(), "it still serves");
}

#[tokio::test]
async fn a_refusal_that_may_pass_is_a_status_to_programs_and_a_stream_to_browsers() {
    let server = Server::start().await;
    server.hub.draining().cancel();
    let answer = server.get("/v1/events?topic=t").send().await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "1");
    let (status, problem) = problem_of(answer).await;
    assert_eq!((status, &problem["retryable"]), (503, &json!(true)));
    let ready = server.anonymous(Method::GET, "/health/ready").send().await.unwrap();
    assert_eq!(problem_of(ready).await.0, 503);
    let live = server.anonymous(Method::GET, "/health/live").send().await.unwrap();
    assert_eq!(live.status(), 200);
}

#[tokio::test]
async fn metrics_are_not_for_clients_unless_the_operator_says_so() {
    let server = Server::start().await;
    let answer = server.get("/metrics").send().await.unwrap();
    assert_eq!(problem_of(answer).await.0, 404);
    let open = Server::with(Options { metrics: true, ..Options::default() }).await;
    let answer = open.anonymous(Method::GET, "/metrics?scrape=1").send().await.unwrap();
    assert!(answer.text().await.unwrap().contains("tidings_topics_active"));
}
