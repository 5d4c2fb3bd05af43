//! Who is calling, and what they may touch.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequestParts, Request},
    http::{HeaderMap, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::router::App;
use crate::{
    auth::{Access, Grant},
    error::{ErrorCode, Problem},
    journal::Refusal,
    model::Topic,
};

/// A caller with a credential in the `Authorization` header.
pub(super) struct Caller(pub(super) Grant);

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        authenticate(app, &parts.headers).map(Self)
    }
}

/// What the request's `Authorization: Bearer` allows (RFC 6750 §2.1).
pub(super) fn authenticate(app: &App, headers: &HeaderMap) -> Result<Grant, Problem> {
    let missing = || {
        let detail = "send `Authorization: Bearer` with an API key or a token";
        Problem::new(ErrorCode::CredentialMissing, detail)
    };
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(missing)?;
    if values.next().is_some() {
        let detail = "there are several `Authorization` headers; send one";
        return Err(Problem::new(ErrorCode::CredentialInvalid, detail));
    }
    let text = value.to_str().map_err(|_| missing())?;
    let (scheme, bearer) = text.split_once(' ').ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    app.authenticator.authenticate(bearer.trim(), app.hub.clock().now())
}

/// Whether the caller may write a topic: yes, or if it belongs to the subject that is returned,
/// which the journal judges in the commit that writes.
pub(super) fn may_write(grant: &Grant, topic: &Topic) -> Result<Option<Arc<str>>, Problem> {
    match (grant.write(topic), grant.subject()) {
        (Access::Allowed, _) => Ok(None),
        (Access::IfOwner, Some(subject)) => Ok(Some(subject.into())),
        // Not another answer than the journal's, which would tell that the topic is there.
        (Access::IfOwner | Access::Denied, _) => Err(Problem::from(&Refusal::NotOwner)),
    }
}

/// Nothing that this grant covers is here, and whether anything else is, is not said.
pub(super) fn not_found() -> Problem {
    Problem::new(ErrorCode::NotFound, "there is no such topic for this credential")
}

/// How long a body may take to arrive: 1 MiB at 35 kB/s.
const BODY_READ_MAX: Duration = Duration::from_secs(30);

/// Reads a body up to a limit in bytes.
pub(super) async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let reading = tokio::time::timeout(BODY_READ_MAX, Limited::new(body, bytes_max).collect());
    let Ok(read) = reading.await else {
        let detail = "the body did not arrive within 30 s";
        return Err(Problem::new(ErrorCode::Malformed, detail));
    };
    match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let detail = format!("the body is larger than {bytes_max} bytes");
            Err(Problem::new(ErrorCode::TooLarge, detail))
        }
        Err(_) => Err(Problem::new(ErrorCode::Malformed, "the body ended before its length")),
    }
}

/// Refuses compressed bodies: a small one may unpack to anything.
pub(super) async fn refuse_encoded_bodies(request: Request, next: Next) -> Response {
    let encoding = request.headers().get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let detail = "send the body without `Content-Encoding`";
        return Problem::new(ErrorCode::UnsupportedMediaType, detail).into_response();
    }
    next.run(request).await
}
