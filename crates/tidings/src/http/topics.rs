//! `/v1/topics`: listing, properties, closing and deleting.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    admission::room_for_topic,
    caller::{Caller, may_write, not_found, read_body},
    query,
    router::App,
};
use crate::{
    error::{ErrorCode, Problem},
    ingest::{
        Parameter, json_text,
        properties::{self, PropertiesText},
        strict_text,
    },
    journal::{Change, DeleteIf, TopicInfo, TopicQuery},
    model::{Topic, TopicKey},
};

/// Query parameters of the listing.
pub(super) const PARAMETERS: &[&str] = &["prefix", "after", "limit"];
/// Topics of one answer by default and at most.
const TOPICS_DEFAULT: usize = 100;
const TOPICS_MAX: usize = 1000;
/// Topics looked at for one answer: a caller who may read few of many asks again with `next`.
const LOOKED_AT_MAX: usize = 10_000;
/// Bytes of a body with properties.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// The topic that the path names.
pub(super) struct TopicPath(Topic);

impl FromRequestParts<Arc<App>> for TopicPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, app).await.map_err(|_| {
            Problem::new(ErrorCode::Malformed, "the path is not percent-encoded UTF-8").at("topic")
        })?;
        Topic::parse(&text).map(Self).map_err(|error| Problem::from(error).at("topic"))
    }
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(grant): Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut prefix = String::new();
    let mut after = None;
    let mut limit = TOPICS_DEFAULT;
    for Parameter { name, value } in query::parameters(query.as_deref(), PARAMETERS)? {
        match &*name {
            "prefix" => prefix = value,
            "after" => {
                let topic = Topic::parse(&value).map_err(|e| Problem::from(e).at("after"))?;
                after = Some(TopicKey::new(grant.tenant().clone(), topic));
            }
            _ => limit = query::number(&name, &value, 1..=TOPICS_MAX)?,
        }
    }
    let mut topics = Vec::new();
    let mut looked_at = 0;
    let mut next = None;
    'pages: loop {
        let query = TopicQuery {
            tenant: Some(grant.tenant().clone()),
            prefix: prefix.clone(),
            after: after.take(),
            limit: TOPICS_MAX,
        };
        let page = app.hub.list(query).await?;
        if page.is_empty() {
            break;
        }
        for info in page {
            looked_at += 1;
            after = Some(info.topic.clone());
            if grant.may_read(&info.topic.topic, &info.properties) {
                topics.push(describe(&info));
            }
            if topics.len() >= limit || looked_at >= LOOKED_AT_MAX {
                next = Some(info.topic.topic.as_str().to_owned());
                break 'pages;
            }
        }
    }
    Ok(answer(StatusCode::OK, &json!({ "topics": topics, "next": next })))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(grant): Caller,
    TopicPath(topic): TopicPath,
) -> Result<Response, Problem> {
    if !app.hub.may_read(&grant, &topic).await? {
        return Err(not_found());
    }
    let info = app.hub.describe(&TopicKey::new(grant.tenant().clone(), topic)).await?;
    if !info.exists {
        return Err(not_found());
    }
    Ok(answer(StatusCode::OK, &describe(&info)))
}

pub(super) async fn put(
    State(app): State<Arc<App>>,
    Caller(grant): Caller,
    TopicPath(topic): TopicPath,
    body: Body,
) -> Result<Response, Problem> {
    app.hub.quotas().publish(&grant, 1)?;
    let body = read_body(app.hub.settings(), body, BODY_BYTES_MAX).await;
    let body = body.map_err(|problem| problem.at(""))?;
    let PropertiesText { properties, closed } =
        properties::parse(&strict_text(json_text(&body, "")?, "")?, "")?;
    let key = TopicKey::new(grant.tenant().clone(), topic);
    let owner = may_write(&grant, &key.topic).map_err(at_topic)?;
    let before = app.hub.describe(&key).await?;
    let is_theirs = owner.is_none() || owner.as_deref() == before.properties.owner.as_deref();
    if is_theirs && closed == Some(false) && before.head.closed {
        let detail = "a closed topic stays closed; delete it to begin anew";
        return Err(Problem::new(ErrorCode::TopicClosed, detail).at("/closed"));
    }
    let mut room = match before.exists {
        true => None,
        false => Some(room_for_topic(&app.hub, grant.tenant())?),
    };
    let change = Change { properties, close: closed == Some(true), owner };
    let changed = app.hub.set_properties(&key, change).await?;
    let info = changed.map_err(|refusal| at_topic(Problem::from(&refusal)))?;
    if let Some(room) = &mut room {
        room.made_one();
    }
    let status = if before.exists { StatusCode::OK } else { StatusCode::CREATED };
    Ok(answer(status, &describe(&info)))
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Caller(grant): Caller,
    TopicPath(topic): TopicPath,
) -> Result<Response, Problem> {
    app.hub.quotas().publish(&grant, 1)?;
    let owner = may_write(&grant, &topic).map_err(at_topic)?;
    let condition = owner.map_or(DeleteIf::Always, DeleteIf::OwnedBy);
    let key = TopicKey::new(grant.tenant().clone(), topic);
    match app.hub.delete(&key, condition).await? {
        Ok(true) => {
            app.hub.quotas().holdings.deleted(grant.tenant());
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Ok(false) => Err(not_found()),
        Err(refusal) => Err(at_topic(Problem::from(&refusal))),
    }
}

/// A refusal that is about the topic of the path.
fn at_topic(problem: Problem) -> Problem {
    problem.at("topic")
}

fn describe(info: &TopicInfo) -> Value {
    let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs());
    let properties = &info.properties;
    json!({
        "topic": info.topic.topic.as_str(),
        "epoch": info.head.epoch.to_string(),
        "earliest": info.head.earliest.0,
        "tail": info.head.tail.0,
        "closed": info.head.closed,
        "events": info.events,
        "states": info.states,
        "bytes": info.bytes,
        "written_at": info.written_at.to_string(),
        "owner": properties.owner,
        "readers": properties.readers,
        "ttl": seconds(properties.ttl),
        "retention": properties.retention.map(|retention| json!({
            "age": seconds(retention.age),
            "events": retention.events,
            "bytes": retention.bytes,
        })),
    })
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body.to_string()).into_response()
}
