//! Problems as answers (RFC 9457), and the request id that ties them to the log.

use std::panic::AssertUnwindSafe;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use tracing::Instrument as _;

use crate::{
    error::{ErrorCode, Problem},
    request,
};

/// The request's id, in the answer and in the log. Never taken from the caller.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The problem as its JSON object, with the request's id.
pub(super) fn to_json(problem: &Problem) -> serde_json::Value {
    let mut json = problem.to_json();
    json.insert("request_id".to_owned(), request::id().into());
    serde_json::Value::Object(json)
}

/// Whole seconds for `Retry-After` (RFC 9110 §10.2.3), rounded up.
pub(super) fn retry_after_seconds(problem: &Problem) -> Option<u64> {
    problem.retry_after_ms().map(|ms| ms.div_ceil(1000))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, headers) = head(&self);
        (status, headers, to_json(&self).to_string()).into_response()
    }
}

/// The status of an answer that is a problem.
fn status(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The status and the headers of an answer that is a problem.
pub(super) fn head(problem: &Problem) -> (StatusCode, HeaderMap) {
    let status = status(problem);
    let mut headers = HeaderMap::new();
    let kind = HeaderValue::from_static("application/problem+json");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = retry_after_seconds(problem) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UNAUTHORIZED {
        let challenge = match problem.code {
            ErrorCode::CredentialMissing => "Bearer",
            _ => "Bearer error=\"invalid_token\"",
        };
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    (status, headers)
}

/// The whole HTTP/1.1 answer, for a connection that has no other way to refuse, and then ends.
pub(super) fn raw(problem: &Problem) -> String {
    let id = request::new_id();
    let mut body = problem.to_json();
    body.insert("request_id".to_owned(), id.clone().into());
    let body = serde_json::Value::Object(body).to_string();
    let status = status(problem);
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         x-request-id: {id}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len(),
    )
}

/// Gives every request an id, in its problem, its answer's header and its span. The span has the
/// path without the query, where a ticket may be. A handler that panics is answered for. For
/// `axum::middleware::from_fn`, around other routers than [`Hub::router`](crate::Hub::router).
pub async fn identify(request: Request, next: Next) -> Response {
    Named::of(&request).around(next.run(request)).await
}

/// A request's id and its span.
pub(super) struct Named {
    id: String,
    span: tracing::Span,
}

impl Named {
    pub(super) fn of(asked: &Request) -> Self {
        let id = request::new_id();
        let span = request::span(&id, asked.method().as_str(), asked.uri().path());
        Self { id, span }
    }

    /// Answers within them.
    pub(super) fn around(
        self,
        answer: impl Future<Output = Response>,
    ) -> impl Future<Output = Response> {
        let value = HeaderValue::from_str(&self.id).ok();
        let answered = answer_panics(answer, Problem::into_response);
        request::within(self.id, answered.instrument(self.span)).map(|mut response| {
            if let Some(value) = value {
                response.headers_mut().insert(REQUEST_ID, value);
            }
            response
        })
    }
}

/// A handler that panics is answered for.
pub(super) async fn answer_panics<T>(
    answer: impl Future<Output = T>,
    refused: impl FnOnce(Problem) -> T,
) -> T {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
        request::logged(|| tracing::error!("a handler panicked"));
        let detail = "the hub failed; its log has this request's id";
        refused(Problem::new(ErrorCode::Internal, detail))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{Router, body::Body, middleware, routing::get};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn answer(handler: fn() -> Response) -> (StatusCode, HeaderMap, serde_json::Value) {
        let app = Router::new().route("/", get(async move || handler()));
        let app = app.layer(middleware::from_fn(identify));
        // An id of the caller's own is not taken.
        let request = Request::builder().uri("/").header(REQUEST_ID, "mine").body(Body::empty());
        let (parts, body) = app.oneshot(request.unwrap()).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_for_and_says_nothing_of_why() {
        let (status, headers, body) = answer(|| panic!("the secret")).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(body["request_id"], headers[REQUEST_ID].to_str().unwrap());
        assert!(!body.to_string().contains("the secret") && body["request_id"] != "mine");
    }

    #[tokio::test]
    async fn a_problem_says_when_to_come_back_rounded_up_and_never_at_once() {
        for (us, seconds, ms) in [
            (0, "1", 1),
            (1, "1", 1),
            (1001, "1", 2),
            (1_000_000, "1", 1000),
            (1_000_001, "2", 1001),
        ] {
            let problem = Problem::new(ErrorCode::Unavailable, "x");
            let answer = problem.after(Duration::from_micros(us)).into_response();
            assert_eq!(answer.headers()[header::RETRY_AFTER], seconds, "{us} us");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["retry_after_ms"], ms, "{us} us");
        }
    }
}
