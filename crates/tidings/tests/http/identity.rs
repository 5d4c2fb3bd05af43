//! Revoking and renewing credentials over HTTP.

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tidings::auth::jwt;

use super::support::{Reader, Server, json_of, problem_of, token};

async fn revoke(server: &Server, bearer: &str, body: &Value) -> Response {
    let request = server.anonymous(Method::POST, "/v1/revocations").bearer_auth(bearer);
    request.body(body.to_string()).send().await.unwrap()
}

async fn follow(server: &Server, bearer: &str, query: &str) -> Response {
    let path = format!("/v1/events?{query}");
    server.anonymous(Method::GET, &path).bearer_auth(bearer).send().await.unwrap()
}

#[tokio::test]
async fn a_revoked_subject_is_refused_by_every_route_and_let_go_by_every_stream() {
    let server = Server::start().await;
    let (bearer, other) = (token("42", 600, json!({})), token("43", 600, json!({})));
    let mut sse = Reader::of(follow(&server, &bearer, "topic=user/42").await);
    sse.control("tidings.caught_up").await;
    let mut others = Reader::of(follow(&server, &other, "topic=user/43").await);
    others.control("tidings.caught_up").await;
    let ndjson = server.anonymous(Method::GET, "/v1/events?topic=user/42");
    let ndjson = ndjson.bearer_auth(&bearer).header("accept", "application/x-ndjson");
    let ndjson = ndjson.send().await.unwrap();
    let page = server.anonymous(Method::GET, "/v1/events?topic=user/42&wait=25s");
    let page = page.bearer_auth(&bearer).header("accept", "application/json").send();
    let body = json!({ "sub": "42" });
    let ask = revoke(&server, &server.key, &body);
    let (page, revoked) = tokio::join!(page, ask);
    assert_eq!(revoked.status(), 200);
    let revoked = json_of(revoked).await;
    assert_eq!((&revoked["sub"], &revoked["tenant"]), (&json!("42"), &json!("acme")));
    assert!(revoked["until"].is_string(), "{revoked}");
    let (status, problem) = problem_of(page.unwrap()).await;
    assert_eq!((status, &problem["code"]), (401, &json!("credential_revoked")));
    assert_eq!(sse.control("tidings.goaway").await["reason"], "revoked");
    assert_eq!(sse.next().await, None);
    let lines = ndjson.text().await.unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["type"], &last["data"]["reason"]),
        (&json!("tidings.goaway"), &json!("revoked"))
    );
    for (method, path) in [
        (Method::GET, "/v1/events?topic=user/42"),
        (Method::POST, "/v1/events"),
        (Method::GET, "/v1/state?topic=user/42"),
        (Method::GET, "/v1/topics"),
        (Method::PUT, "/v1/topics/message/1"),
        (Method::DELETE, "/v1/topics/message/1"),
        (Method::POST, "/v1/tickets"),
        (Method::POST, "/v1/revocations"),
        (Method::POST, "/v1/connections/x/auth"),
    ] {
        let answer = server.anonymous(method.clone(), path).bearer_auth(&bearer).send().await;
        let (status, problem) = problem_of(answer.unwrap()).await;
        let got = (status, problem["code"].as_str().unwrap());
        assert_eq!(got, (401, "credential_revoked"), "{method} {path}");
    }
    server.publish_numbers("user/43", 1..2).await;
    assert_eq!(others.data(1).await, [1]);
    // Another tenant's subject of that name is another's.
    let foreign = token("42", 600, json!({ "tenant": "globex" }));
    let mut foreign = Reader::of(follow(&server, &foreign, "topic=user/42").await);
    foreign.control("tidings.caught_up").await;
}

#[tokio::test]
async fn a_stream_of_publishes_ends_with_its_credential() {
    let server = Server::start().await;
    let write = json!({ "jti": "t-1", "tidings": { "read": [], "write": ["build/*"] } });
    let (lines, sent) = futures_channel();
    let request = server
        .anonymous(Method::POST, "/v1/events")
        .bearer_auth(token("worker", 600, write))
        .header("content-type", "application/x-ndjson")
        .body(reqwest::Body::wrap_stream(sent));
    let line = json!({ "topic": "build/1", "type": "line", "data": 1 }).to_string() + "\n";
    lines.send(line.clone()).await.unwrap();
    let mut answer = request.send().await.unwrap();
    let first = answer.chunk().await.unwrap().unwrap();
    assert!(first.starts_with(b"{\"id\""), "{first:?}");
    let revoked = revoke(&server, &server.key, &json!({ "jti": "t-1" })).await;
    assert_eq!(revoked.status(), 200);
    let mut rest = Vec::new();
    while let Some(bytes) = answer.chunk().await.unwrap() {
        rest.extend_from_slice(&bytes);
    }
    let last: Value = serde_json::from_slice(&rest).unwrap();
    assert_eq!(last["error"]["code"], "credential_revoked");
    drop(lines);
}

type Lines = tokio::sync::mpsc::Sender<String>;

/// A body that a test writes line by line.
fn futures_channel()
-> (Lines, impl futures_util::Stream<Item = Result<String, std::io::Error>> + Send + 'static) {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let stream = futures_util::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|line| (Ok(line), receiver))
    });
    (sender, stream)
}

#[tokio::test]
async fn who_may_revoke_is_what_the_operator_says_and_within_the_own_tenant() {
    let server = Server::start().await;
    let may = json!({ "permissions": ["credentials:revoke"] });
    let body = json!({ "sub": "42" });
    let plain = revoke(&server, &token("1", 600, json!({})), &body).await;
    let (status, problem) = problem_of(plain).await;
    assert_eq!((status, &problem["code"]), (403, &json!("forbidden")));
    assert_eq!(revoke(&server, &token("1", 600, may), &body).await.status(), 200);
    assert_eq!(revoke(&server, &server.other_key, &json!({ "sub": "43" })).await.status(), 200);
    // The other tenant's revocation is none here.
    assert_eq!(follow(&server, &token("43", 600, json!({})), "topic=user/43").await.status(), 200);
    assert_eq!(follow(&server, &token("42", 600, json!({})), "topic=user/42").await.status(), 401);
    let foreign =
        revoke(&server, &server.other_key, &json!({ "sub": "44", "tenant": "acme" })).await;
    let (status, problem) = problem_of(foreign).await;
    assert_eq!((status, &problem["pointer"]), (400, &json!("/tenant")));
    let own = revoke(&server, &server.other_key, &json!({ "sub": "44", "tenant": "globex" })).await;
    assert_eq!(own.status(), 200);
}

#[tokio::test]
async fn a_revocation_that_cannot_be_says_why() {
    let server = Server::start().await;
    let long = "x".repeat(257);
    for (body, pointer) in [
        ("", None),
        ("[]", None),
        (r#"{"sub":"1","sub":"2"}"#, None),
        ("{}", Some("/sub")),
        (r#"{"sub":"1","jti":"2"}"#, Some("/sub")),
        (r#"{"sub":1}"#, Some("/sub")),
        (r#"{"sub":""}"#, Some("/sub")),
        (r#"{"jti":"a\u0000"}"#, Some("/jti")),
        (&format!(r#"{{"team":"{long}"}}"#), Some("/team")),
        (r#"{"subject":"1"}"#, Some("/subject")),
        (r#"{"sub":"1","until":"tomorrow"}"#, Some("/until")),
        (r#"{"sub":"1","until":"2999-01-01T00:00:00Z"}"#, Some("/until")),
        (r#"{"sub":"1","issued_before":7}"#, Some("/issued_before")),
    ] {
        let request = server.post("/v1/revocations").body(body.to_owned());
        let (status, problem) = problem_of(request.send().await.unwrap()).await;
        assert_eq!((status, problem["pointer"].as_str()), (400, pointer), "{body}: {problem}");
    }
    let large = server.post("/v1/revocations").body(" ".repeat(10_000)).send().await.unwrap();
    assert_eq!(problem_of(large).await.0, 413);
}

#[tokio::test]
async fn a_team_and_tokens_of_a_time_are_revoked() {
    let server = Server::start().await;
    let teams =
        |teams: Value| token("42", 600, json!({ "teams": teams, "permissions": ["events:read"] }));
    let (in_red, in_blue) = (teams(json!(["blue", "red"])), teams(json!(["blue"])));
    let mut red = Reader::of(follow(&server, &in_red, "").await);
    red.control("tidings.caught_up").await;
    assert_eq!(revoke(&server, &server.key, &json!({ "team": "red" })).await.status(), 200);
    assert_eq!(red.control("tidings.goaway").await["reason"], "revoked");
    assert_eq!(follow(&server, &in_red, "").await.status(), 401);
    assert_eq!(follow(&server, &in_blue, "").await.status(), 200);
    let before = json!({ "sub": "7", "issued_before": "2026-11-21T07:00:00Z" });
    assert_eq!(revoke(&server, &server.key, &before).await.status(), 200);
    for (issued_at, status) in [(1_795_244_399, 401), (1_795_244_400, 200)] {
        let bearer = token("7", 600, json!({ "iat": issued_at }));
        let issued = jwt::inspect(&bearer).unwrap().claims["iat"].clone();
        let answer = follow(&server, &bearer, "topic=user/7").await;
        assert_eq!(answer.status(), status, "{issued}");
    }
}

#[tokio::test]
async fn an_open_connection_is_renewed_by_its_subject_and_told_of_it() {
    let server = Server::start().await;
    let old = token("42", 600, json!({}));
    let mut reader = Reader::of(follow(&server, &old, "topic=user/42").await);
    let hello = reader.control("tidings.hello").await;
    let path = format!("/v1/connections/{}/auth", hello["connection"].as_str().unwrap());
    let renew = async |bearer: &str| {
        server.anonymous(Method::POST, &path).bearer_auth(bearer).send().await.unwrap()
    };
    for (bearer, status) in [
        (token("43", 900, json!({})), 404),
        (token("42", 900, json!({ "tenant": "globex" })), 404),
        (server.key.clone(), 404),
    ] {
        assert_eq!(problem_of(renew(&bearer).await).await.0, status);
    }
    let absent = server.anonymous(Method::POST, "/v1/connections/none/auth").bearer_auth(&old);
    assert_eq!(problem_of(absent.send().await.unwrap()).await.0, 404);
    let new = token("42", 900, json!({ "teams": ["7"], "permissions": ["events:read"] }));
    let answer = json_of(renew(&new).await).await;
    // It follows what it followed; what the new credential's feed has besides is said.
    assert_eq!(answer["topics"], json!(["user/42"]));
    assert_eq!(answer["feed"], json!(["user/42", "team/7/jobs"]));
    assert_eq!(reader.control("tidings.auth").await["expires_at"], answer["expires_at"]);
    server.publish_numbers("user/42", 1..2).await;
    server.publish_numbers("team/7/jobs", 1..2).await;
    server.publish_numbers("user/42", 2..3).await;
    assert_eq!(reader.data(2).await, [1, 2]);
    // What it was opened by may end: it reads by the new one.
    let revoked = revoke(&server, &server.key, &json!({ "team": "7" })).await;
    assert_eq!(revoked.status(), 200);
    assert_eq!(reader.control("tidings.goaway").await["reason"], "revoked");
}

#[tokio::test]
async fn a_credential_that_covers_less_is_refused_and_the_connection_goes_on() {
    let server = Server::start().await;
    let in_team = json!({ "teams": ["7"], "permissions": ["events:read"] });
    let mut reader = Reader::of(follow(&server, &token("42", 600, in_team), "").await);
    let hello = reader.control("tidings.hello").await;
    assert!(hello["topics"].get("team/7/jobs").is_some(), "{hello}");
    let path = format!("/v1/connections/{}/auth", hello["connection"].as_str().unwrap());
    let left = token("42", 900, json!({ "teams": [], "permissions": ["events:read"] }));
    let refused = server.anonymous(Method::POST, &path).bearer_auth(&left).send().await.unwrap();
    let (status, problem) = problem_of(refused).await;
    assert_eq!((status, &problem["code"]), (403, &json!("forbidden_topic")));
    server.publish_numbers("team/7/jobs", 1..2).await;
    assert_eq!(reader.data(1).await, [1]);
}
