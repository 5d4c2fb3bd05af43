//! `POST /v1/connections/{id}/auth`: an open connection goes on by a new credential.

use std::sync::Arc;

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{caller::Caller, router::App};
use crate::{
    error::{ErrorCode, Problem},
    model::Topic,
};

pub(super) async fn renew(
    State(app): State<Arc<App>>,
    Caller(grant): Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(id) = id.map_err(|_| {
        Problem::new(ErrorCode::Malformed, "the path is not percent-encoded UTF-8").at("id")
    })?;
    let topics = app.hub.renew_connection_anywhere(&id, &grant).await?;
    let names = |topics: &[Topic]| topics.iter().map(|topic| topic.to_string()).collect::<Vec<_>>();
    let answer = json!({
        "connection": id,
        "expires_at": grant.expires_at().map(|end| end.to_string()),
        "topics": names(&topics),
        "feed": names(&grant.feed()),
    });
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::OK, headers, answer.to_string()).into_response())
}
