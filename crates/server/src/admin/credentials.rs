//! Credentials: which keys are in use, what is revoked, and how an operator lifts that.
//!
//! The rule: nothing of a secret is shown, and a revocation can always be lifted here: its own
//! author may be whom it shuts out.

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::Response,
};
use serde_json::{Value, json};
use tidings::{
    auth::{ApiKeyStatus, KeySetStatus},
    error::Problem,
    http::Peer,
    model::Timestamp,
    revocation::{RevocationInfo, Revoked},
};

use super::{
    Admin,
    audit::{Act, OPERATOR},
    resources::{Parameters, answer, malformed},
};

/// The API keys, when each was used last on this node, and the key sets of issuers.
pub(super) async fn keys(State(admin): State<Admin>) -> Response {
    let api_keys: Vec<Value> = admin.0.authenticator.api_keys().iter().map(api_key).collect();
    let key_sets: Vec<Value> = admin.0.authenticator.key_sets().iter().map(key_set).collect();
    answer(&json!({ "api_keys": api_keys, "key_sets": key_sets }))
}

fn api_key(key: &ApiKeyStatus) -> Value {
    let ApiKeyStatus { id, tenant, subject, expires_at, last_used } = key;
    let time = |time: &Option<Timestamp>| time.map(|time| time.to_string());
    json!({
        "id": id,
        "tenant": tenant.as_str(),
        "subject": subject,
        "expires_at": time(expires_at),
        "last_used": time(last_used),
    })
}

fn key_set(set: &KeySetStatus) -> Value {
    let KeySetStatus { issuer, keys, age, failure } = set;
    let age_ms = age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    json!({ "issuer": issuer, "keys": keys, "age_ms": age_ms, "failure": failure })
}

/// The revocations in force, of all tenants or of one.
pub(super) async fn revocations(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Parameters::read(query, &["tenant", "limit"])?;
    let (tenant, limit) = (query.tenant()?, query.limit()?);
    let found = admin.0.hub.revoked(tenant.as_ref());
    let revocations: Vec<Value> = found.iter().take(limit).map(revocation).collect();
    Ok(answer(&json!({ "revocations": revocations, "all": found.len() })))
}

fn revocation(known: &RevocationInfo) -> Value {
    let RevocationInfo { tenant, revoked, until, issued_before, by } = known;
    json!({
        "tenant": tenant.as_str(),
        revoked.kind(): revoked.name(),
        "until": until.to_string(),
        "issued_before": issued_before.map(|time| time.to_string()),
        "by": by,
    })
}

/// Lifts one.
pub(super) async fn lift(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Parameters::read(query, &["tenant", "sub", "jti", "team"])?;
    let tenant = query.tenant()?.ok_or_else(|| malformed("is missing").at("tenant"))?;
    let text = |name: &str| query.text(name).map(str::to_owned);
    let revoked = match (text("sub"), text("jti"), text("team")) {
        (Some(sub), None, None) => Revoked::Sub(sub),
        (None, Some(jti), None) => Revoked::Jti(jti),
        (None, None, Some(team)) => Revoked::Team(team),
        _ => return Err(malformed("name exactly one: sub, jti or team")),
    };
    let act = Act {
        action: "revocation.lift",
        tenant: tenant.to_string(),
        on: format!("{} {}", revoked.kind(), revoked.name()),
        detail: String::new(),
        peer: Some(peer),
    };
    act.done(admin.0.hub.lift(&tenant, &revoked, OPERATOR).await)?;
    Ok(answer(&json!({ "lifted": 1 })))
}
