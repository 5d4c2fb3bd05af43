//! Tokens in cookies: for named pages, and never in place of what a request shows itself.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tidings::http::CookieSettings;

use super::support::{ORIGIN, Options, Reader, Server, json_of, problem_of, token};

async fn server() -> Server {
    let cookie = CookieSettings { name: "__Host-t".to_owned(), origins: vec![ORIGIN.to_owned()] };
    Server::with(Options { cookie: Some(cookie), ..Options::default() }).await
}

fn with_cookie(server: &Server, method: Method, path: &str, bearer: &str) -> RequestBuilder {
    server.anonymous(method, path).header("cookie", format!("a=1; __Host-t={bearer}"))
}

#[tokio::test]
async fn a_page_follows_by_cookie_and_writes_from_a_named_origin_only() {
    let server = server().await;
    let claims = json!({ "tidings": { "read": [], "write": ["note/*"] } });
    let bearer = token("42", 600, claims);
    let native = with_cookie(&server, Method::GET, "/v1/events?topic=user/42", &bearer)
        .header("accept", "text/event-stream")
        .header("sec-fetch-site", "same-origin");
    let mut reader = Reader::of(native.send().await.unwrap());
    reader.control("tidings.hello").await;
    let body = json!({ "topic": "note/1", "type": "x" }).to_string();
    let publish = || {
        with_cookie(&server, Method::POST, "/v1/events", &bearer)
            .header("content-type", "application/json")
            .header("sec-fetch-site", "same-origin")
            .body(body.clone())
    };
    assert_eq!(publish().header("origin", ORIGIN).send().await.unwrap().status(), 200);
    for (method, path) in [
        (Method::POST, "/v1/events"),
        (Method::PUT, "/v1/topics/note/1"),
        (Method::DELETE, "/v1/topics/note/1"),
        (Method::POST, "/v1/tickets"),
        (Method::POST, "/v1/revocations"),
        (Method::POST, "/v1/connections/x/auth"),
    ] {
        for origin in [None, Some("null"), Some("https://evil.example")] {
            let mut request = with_cookie(&server, method.clone(), path, &bearer);
            if let Some(origin) = origin {
                request = request.header("origin", origin);
            }
            let (status, problem) = problem_of(request.send().await.unwrap()).await;
            let got = (status, problem["code"].as_str().unwrap());
            assert_eq!(got, (403, "forbidden_origin"), "{method} {path} {origin:?}");
        }
    }
    let there = server.get("/v1/topics/note/1").send().await.unwrap();
    assert_eq!(json_of(there).await["events"], json!(1), "nothing was done");
}

#[tokio::test]
async fn what_a_request_shows_itself_wins_over_its_cookie() {
    let server = server().await;
    let (mine, others) = (token("42", 600, json!({})), token("43", 600, json!({})));
    let own = |path: &str| {
        with_cookie(&server, Method::GET, path, &mine).header("sec-fetch-site", "same-origin")
    };
    let answer = own("/v1/events?topic=user/43").bearer_auth(&others).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer = own("/v1/events?topic=user/42").bearer_auth(&others).send().await.unwrap();
    assert_eq!(answer.status(), 403);
    // One that is not valid is refused, and the cookie is no second try.
    for (header, value) in [("authorization", "Bearer x.y.z"), ("authorization", "Basic x")] {
        let answer = own("/v1/events?topic=user/42").header(header, value).send().await.unwrap();
        assert_eq!(problem_of(answer).await.0, 401, "{value}");
    }
    let answer = own("/v1/events?topic=user/42&ticket=tdt_none").send().await.unwrap();
    assert_eq!(problem_of(answer).await.0, 401);
    let none = server.anonymous(Method::GET, "/v1/topics").header("sec-fetch-site", "same-origin");
    let (status, problem) = problem_of(none.send().await.unwrap()).await;
    assert_eq!((status, &problem["code"]), (401, &json!("credential_missing")));
}

#[tokio::test]
async fn a_cookie_is_nothing_to_a_hub_that_was_not_told_of_it() {
    let server = Server::start().await;
    let bearer = token("42", 600, json!({}));
    let request = with_cookie(&server, Method::GET, "/v1/events?topic=user/42", &bearer);
    let request = request.header("origin", ORIGIN).header("sec-fetch-site", "same-origin");
    let (status, problem) = problem_of(request.send().await.unwrap()).await;
    assert_eq!((status, &problem["code"]), (401, &json!("credential_missing")));
}

#[tokio::test]
async fn an_expired_cookie_and_a_revoked_one_say_so() {
    let server = server().await;
    let ask = async |bearer: &str| {
        let request = with_cookie(&server, Method::GET, "/v1/topics", bearer);
        let request = request.header("sec-fetch-site", "same-origin");
        let (_, problem) = problem_of(request.send().await.unwrap()).await;
        problem["code"].clone()
    };
    let expired = token("42", -3600, json!({}));
    assert_eq!(ask(&expired).await, Value::from("credential_expired"));
    let body = json!({ "sub": "42" }).to_string();
    server.post("/v1/revocations").body(body).send().await.unwrap();
    assert_eq!(ask(&token("42", 600, json!({}))).await, Value::from("credential_revoked"));
    assert_eq!(ask(&server.key).await, Value::from("credential_invalid"));
}
