//! `/health/live`, `/health/ready` and `/metrics`.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use super::router::App;
use crate::error::{ErrorCode, Problem};

/// The process answers: that is all this says.
pub(super) async fn live() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], "{\"status\":\"live\"}").into_response()
}

/// The hub takes and serves events.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    if let Some(reason) = app.hub.unready() {
        // The reason is the operator's: it may name files.
        tracing::debug!(reason, "not ready");
        let detail = "the hub takes no events now";
        return Err(Problem::new(ErrorCode::Unavailable, detail).after(Duration::from_secs(1)));
    }
    Ok(([(header::CONTENT_TYPE, "application/json")], "{\"status\":\"ready\"}").into_response())
}

/// Counters in OpenMetrics text.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.hub.metrics_text()).into_response()
}
