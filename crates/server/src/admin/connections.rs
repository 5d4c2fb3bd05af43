//! Open connections: who reads what or publishes a stream, and how an operator sends one away.
//!
//! The rule: who is sent away loses nothing, a reader comes back with its cursor, a publisher with
//! the lines that were not answered; who is not to
//! come back is revoked (`POST /v1/revocations`).

use axum::{
    Extension,
    extract::{Path, RawQuery, State},
    response::Response,
};
use serde_json::{Value, json};
use tidings::{
    auth::Grant,
    connections::ConnectionInfo,
    error::{ErrorCode, Problem},
    http::Peer,
    model::{Tenant, Topic},
};

use super::{
    Admin,
    audit::Act,
    resources::{Parameters, answer, malformed},
};

/// Which connections are meant: all that fit everything that is given.
struct Wanted {
    tenant: Option<Tenant>,
    subject: Option<String>,
    topic: Option<Topic>,
}

impl Wanted {
    fn read(query: &Parameters) -> Result<Self, Problem> {
        let topic = query.text("topic").map(Topic::parse).transpose();
        Ok(Self {
            tenant: query.tenant()?,
            subject: query.text("subject").map(str::to_owned),
            topic: topic.map_err(|error| Problem::from(error).at("topic"))?,
        })
    }

    fn fits(&self, connection: &ConnectionInfo) -> bool {
        let Self { tenant, subject, topic } = self;
        let grant: &Grant = &connection.grant;
        tenant.as_ref().is_none_or(|tenant| tenant == grant.tenant())
            && subject.as_deref().is_none_or(|subject| grant.subject() == Some(subject))
            && topic.as_ref().is_none_or(|topic| connection.topics.contains(topic))
    }
}

/// The connections that fit, oldest first: ids begin with the time.
pub(super) async fn list(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Parameters::read(query, &["tenant", "subject", "topic", "limit"])?;
    let (wanted, limit) = (Wanted::read(&query)?, query.limit()?);
    let mut found = admin.0.hub.connections();
    found.retain(|connection| wanted.fits(connection));
    found.sort_by(|one, other| one.id.cmp(&other.id));
    let connections: Vec<Value> = found.iter().take(limit).map(json_of).collect();
    Ok(answer(&json!({ "connections": connections, "all": found.len() })))
}

/// Sends one connection away.
pub(super) async fn end(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let found = admin.0.hub.connections().into_iter().find(|connection| connection.id == id);
    let tenant = found.map(|found| found.grant.tenant().to_string()).unwrap_or_default();
    let act = Act {
        action: "connection.end",
        tenant,
        on: id.clone(),
        detail: String::new(),
        peer: Some(peer),
    };
    let ended = if admin.0.hub.end_connection_anywhere(&id).await {
        Ok(())
    } else {
        Err(Problem::new(ErrorCode::NotFound, "there is no such connection on any node"))
    };
    act.done(ended)?;
    Ok(answer(&json!({ "ended": 1 })))
}

/// Sends all connections of a subject away.
pub(super) async fn end_of_subject(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Parameters::read(query, &["tenant", "subject"])?;
    let wanted = Wanted::read(&query)?;
    let (Some(tenant), Some(subject)) = (&wanted.tenant, &wanted.subject) else {
        let missing = if wanted.tenant.is_none() { "tenant" } else { "subject" };
        return Err(malformed("is missing").at(missing));
    };
    let act = Act {
        action: "connections.end",
        tenant: tenant.to_string(),
        on: subject.clone(),
        detail: String::new(),
        peer: Some(peer),
    };
    let ended = admin.0.hub.end_subject_anywhere(tenant, subject).await;
    act.done(Ok(()))?;
    Ok(answer(&json!({ "ended": ended })))
}

fn json_of(connection: &ConnectionInfo) -> Value {
    let ConnectionInfo { id, role, grant, topics, opened_at } = connection;
    let topics: Vec<&str> = topics.iter().map(Topic::as_str).collect();
    json!({
        "id": id,
        "role": role.as_str(),
        "tenant": grant.tenant().as_str(),
        "subject": grant.subject(),
        "topics": topics,
        "opened_at": opened_at.to_string(),
        "expires_at": grant.expires_at().map(|end| end.to_string()),
    })
}
