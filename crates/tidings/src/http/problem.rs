//! Problems as answers (RFC 9457), and the request id that ties them to the log.

use std::panic::AssertUnwindSafe;

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use tracing::Instrument as _;

use crate::error::{ErrorCode, Problem};

/// The request's id, in the answer and in the log. Never taken from the caller.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    static REQUEST: String;
}

/// The id of the request that is being answered.
pub(super) fn request_id() -> String {
    REQUEST.try_with(Clone::clone).unwrap_or_default()
}

/// The problem as its JSON object, with the request's id.
pub(super) fn to_json(problem: &Problem) -> serde_json::Value {
    let mut json = problem.to_json();
    json.insert("request_id".to_owned(), request_id().into());
    serde_json::Value::Object(json)
}

/// Whole seconds for `Retry-After` (RFC 9110 §10.2.3), rounded up.
pub(super) fn retry_after_seconds(problem: &Problem) -> Option<u64> {
    problem.retry_after.map(|after| after.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        respond(&self, to_json(&self).to_string())
    }
}

/// Answers with the problem's status and headers and this body.
pub(super) fn respond(problem: &Problem, body: String) -> Response {
    let status =
        StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
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
    response
}

/// Gives every request an id, in its problem, its answer's header and its span. The span has the
/// path without the query, where a ticket may be. A handler that panics is answered for.
pub(super) async fn identify(request: Request, next: Next) -> Response {
    let id = uuid::Uuid::now_v7().simple().to_string();
    let value = HeaderValue::from_str(&id).ok();
    let (method, path) = (request.method(), request.uri().path());
    let span = tracing::info_span!("request", request_id = %id, %method, %path);
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind();
    let answer = async {
        answered.await.unwrap_or_else(|_| {
            tracing::error!("a handler panicked");
            Problem::new(ErrorCode::Internal, "the hub failed; its log has this request's id")
                .into_response()
        })
    };
    let mut response = REQUEST.scope(id, answer.instrument(span)).await;
    if let Some(value) = value {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Goes on with a request's work under its id, after its handler has returned.
pub(super) async fn within<T>(id: String, work: impl Future<Output = T>) -> T {
    REQUEST.scope(id, work).await
}
