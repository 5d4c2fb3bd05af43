//! The admin listener: health and metrics for operators, without credentials.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tidings::Hub;

/// `/health/live`, `/health/ready` and `/metrics`.
pub(crate) fn router(hub: Hub) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(hub)
}

/// The process answers: that is all this says.
async fn live() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], "{\"status\":\"live\"}").into_response()
}

/// Whether the hub takes and serves events; unlike the public answer, with the reason.
async fn ready(State(hub): State<Hub>) -> Response {
    match hub.unready() {
        None => {
            let body = "{\"status\":\"ready\"}";
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Some(reason) => {
            let body = json!({
                "type": "urn:tidings:problem:unavailable", "title": "Unavailable", "status": 503,
                "code": "unavailable", "detail": reason, "retryable": true, "retry_after_ms": 1000,
            });
            let headers =
                [(header::CONTENT_TYPE, "application/problem+json"), (header::RETRY_AFTER, "1")];
            (StatusCode::SERVICE_UNAVAILABLE, headers, body.to_string()).into_response()
        }
    }
}

async fn metrics(State(hub): State<Hub>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], hub.metrics_text()).into_response()
}
