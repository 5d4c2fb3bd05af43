//! Pages of other origins.

use reqwest::{Method, Response};

use super::support::{ORIGIN, Server, problem_of};

fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_page_of_a_named_origin_may_read_every_answer() {
    let server = Server::start().await;
    for path in ["/v1/events?topic=t", "/v1/events?topic=a//b", "/nothing", "/v1/topics"] {
        let answer = server.get(path).header("origin", ORIGIN).send().await.unwrap();
        assert_eq!(header(&answer, "access-control-allow-origin"), Some(ORIGIN), "{path}");
        assert_eq!(header(&answer, "access-control-allow-credentials"), Some("true"), "{path}");
        let exposed = header(&answer, "access-control-expose-headers").unwrap();
        assert!(exposed.contains("x-request-id") && exposed.contains("retry-after"), "{exposed}");
        let vary: Vec<_> = answer.headers().get_all("vary").iter().collect();
        assert!(vary.iter().any(|value| value.to_str().unwrap() == "Origin"), "{path}: {vary:?}");
    }
}

#[tokio::test]
async fn a_preflight_is_answered_for_named_origins_and_no_others() {
    let server = Server::start().await;
    let preflight = async |origin: &str| {
        let request = server.anonymous(Method::OPTIONS, "/v1/events").header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        let request = request
            .header("access-control-request-headers", "authorization,ce-id,ce-source,ce-,x-other");
        request.send().await.unwrap()
    };
    let answer = preflight(ORIGIN).await;
    assert_eq!(answer.status(), 204);
    assert_eq!(header(&answer, "access-control-allow-origin"), Some(ORIGIN));
    assert!(header(&answer, "access-control-allow-methods").unwrap().contains("POST"));
    let allowed = header(&answer, "access-control-allow-headers").unwrap();
    // Of CloudEvents in binary mode, those that are asked for.
    let own =
        "authorization, content-type, idempotency-key, last-event-id, traceparent, tracestate";
    assert_eq!(allowed, format!("{own}, ce-id, ce-source"));
    for origin in [
        "https://app.example.evil",
        "https://evil-app.example",
        "https://evil.app.example",
        "http://app.example",
        "https://app.example:8443",
        "null",
    ] {
        let answer = preflight(origin).await;
        assert_eq!(header(&answer, "access-control-allow-origin"), None, "{origin}");
        assert_eq!(problem_of(answer).await.0, 403, "{origin}");
        let answer = server.get("/v1/topics").header("origin", origin).send().await.unwrap();
        assert_eq!(header(&answer, "access-control-allow-origin"), None, "{origin}");
    }
}

#[tokio::test]
async fn a_request_without_an_origin_still_varies_by_it() {
    let server = Server::start().await;
    let answer = server.get("/v1/topics").send().await.unwrap();
    assert_eq!(header(&answer, "access-control-allow-origin"), None);
    assert_eq!(header(&answer, "vary"), Some("Origin"));
}
