//! `POST /v1/revocations`: credentials that are to count no more.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use super::{
    caller::{Caller, read_body},
    router::App,
};
use crate::{
    auth::Grant,
    error::{ErrorCode, Problem},
    model::{JsonText, Timestamp},
    revocation::{Revocation, Revoked},
};

/// Members of the body.
pub(super) const MEMBERS: &[&str] = &["sub", "jti", "team", "tenant", "until", "issued_before"];
/// A name of 256 bytes, escaped, and times.
const BODY_BYTES_MAX: usize = 8 * 1024;

pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Caller(grant): Caller,
    body: Body,
) -> Result<Response, Problem> {
    if !grant.may_revoke() {
        let detail = "this credential may not revoke others; the operator says which may";
        return Err(Problem::new(ErrorCode::Forbidden, detail));
    }
    let body = read_body(app.hub.settings(), body, BODY_BYTES_MAX).await?;
    let revocation = parse(&body, &grant)?;
    // Each is a write to the journal.
    app.hub.quotas().publish(&grant, 1)?;
    let until = app.hub.revoke(grant.tenant(), &revocation, grant.credential()).await?;
    let mut answer = json!({
        "tenant": grant.tenant().as_str(),
        "until": until.to_string(),
        "issued_before": revocation.issued_before.map(|at| at.to_string()),
    });
    if let Some(members) = answer.as_object_mut() {
        let (kind, name) = (revocation.revoked.kind(), revocation.revoked.name());
        members.insert(kind.to_owned(), name.into());
    }
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::OK, headers, answer.to_string()).into_response())
}

fn parse(body: &[u8], grant: &Grant) -> Result<Revocation, Problem> {
    let malformed = |detail: String| Problem::new(ErrorCode::Malformed, detail);
    let text = std::str::from_utf8(body).map_err(|_| malformed("the body is not UTF-8".into()))?;
    let json = JsonText::parse(text).map_err(|error| malformed(format!("the body {error}")))?;
    let body: Map<String, Value> = serde_json::from_str(json.as_str())
        .map_err(|_| malformed("the body is not a JSON object".into()))?;
    if let Some(unknown) = body.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
        let detail = format!("there is no such member; there are {}", MEMBERS.join(", "));
        return Err(malformed(detail).at(format!("/{unknown}")));
    }
    let text = |name: &str| match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(malformed("must be a string".into()).at(format!("/{name}"))),
    };
    let time = |name: &str| match text(name)? {
        None => Ok(None),
        Some(text) => match Timestamp::parse(&text) {
            Some(time) => Ok(Some(time)),
            None => Err(malformed("must be a time (RFC 3339)".into()).at(format!("/{name}"))),
        },
    };
    if text("tenant")?.is_some_and(|tenant| tenant != grant.tenant().as_str()) {
        let detail = "must be the tenant of this credential; leave it out";
        return Err(malformed(detail.into()).at("/tenant"));
    }
    let revoked = match (text("sub")?, text("jti")?, text("team")?) {
        (Some(sub), None, None) => Revoked::Sub(sub),
        (None, Some(jti), None) => Revoked::Jti(jti),
        (None, None, Some(team)) => Revoked::Team(team),
        _ => {
            let detail = "must have exactly one of `sub`, `jti` and `team`";
            return Err(malformed(detail.into()).at("/sub"));
        }
    };
    Ok(Revocation {
        revoked: revoked.check()?,
        until: time("until")?,
        issued_before: time("issued_before")?,
    })
}
