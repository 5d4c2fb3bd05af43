//! `POST /v1/tickets`: a credential for the browser's own `EventSource`.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{caller::Caller, router::App};
use crate::error::Problem;

pub(super) async fn issue(
    State(app): State<Arc<App>>,
    Caller(grant): Caller,
) -> Result<Response, Problem> {
    // A ticket is an event in the journal.
    app.hub.quotas().publish(&grant, 1)?;
    let ticket = app.hub.issue_ticket(&grant).await?;
    let expires_in_ms = u64::try_from(ticket.expires_in.as_millis()).unwrap_or(u64::MAX);
    let body = serde_json::json!({ "ticket": ticket.text, "expires_in_ms": expires_in_ms });
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, headers, body.to_string()).into_response())
}
