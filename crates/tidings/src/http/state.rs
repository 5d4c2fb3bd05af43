//! `GET /v1/state`: the current states of a topic, and a cursor to follow from.

use axum::{
    extract::{RawQuery, State},
    http::header,
    response::{IntoResponse, Response},
};

use super::{
    caller::{Caller, may_read, not_found},
    query::{self, Parameter},
    router::App,
};
use crate::{
    error::Problem,
    model::{Topic, TopicKey},
};

/// Query parameters.
pub(super) const PARAMETERS: &[&str] = &["topic", "prefix"];

pub(super) async fn snapshot(
    State(app): State<App>,
    Caller(grant): Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut topic = None;
    let mut prefix = String::new();
    for Parameter { name, value } in query::parameters(query.as_deref(), PARAMETERS)? {
        match &*name {
            "topic" => {
                topic = Some(Topic::parse(&value).map_err(|e| Problem::from(e).at("topic"))?)
            }
            _ => prefix = value,
        }
    }
    let topic = topic.ok_or_else(|| query::missing("topic"))?;
    if !may_read(&app.hub, &grant, &topic).await? {
        return Err(not_found());
    }
    let key = TopicKey::new(grant.tenant().clone(), topic);
    let (states, cursor) = app.hub.states(&key, &prefix).await?;
    let mut body = format!("{{\"topic\":\"{}\",\"states\":[", key.topic).into_bytes();
    for (number, frame) in states.iter().enumerate() {
        if number > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&frame.json());
    }
    body.extend_from_slice(format!("],\"cursor\":\"{}\"}}", cursor.encode()).as_bytes());
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, body).into_response())
}
