//! Who is calling, and what they may touch.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::FromRequestParts,
    http::{HeaderMap, Method, Version, header, request::Parts},
};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::time::Instant;

use super::{router::App, serve::Peer};
use crate::{
    auth::{Access, Grant},
    connection::Carrier,
    error::{ErrorCode, Problem},
    hub::Hub,
    journal::Refusal,
    model::Topic,
    quota::{Quotas, Waiting},
    settings::Settings,
};

/// A caller with a credential in the `Authorization` header, or in the cookie.
pub(super) struct Caller(pub(super) Grant);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        authenticate(app, &parts.method, &parts.headers).await.map(Self)
    }
}

/// What carries the request, as far as this hub's own listener knows.
pub(super) struct Carried(pub(super) Carrier);

impl<S: Sync> FromRequestParts<S> for Carried {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let is_http2 = parts.version == Version::HTTP_2;
        let http = |peer: &Peer| Carrier::Http { is_http2, is_tls: peer.is_tls };
        Ok(Self(parts.extensions.get::<Peer>().map_or(Carrier::Unknown, http)))
    }
}

/// What the request's credential allows: that of `Authorization: Bearer` (RFC 6750 §2.1), and only
/// without that header the one in the cookie.
pub(super) async fn authenticate(
    app: &App,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Grant, Problem> {
    let bearer = match (&app.cookie, headers.contains_key(header::AUTHORIZATION)) {
        (Some(cookie), false) => cookie.token(method, headers)?.ok_or_else(missing)?,
        _ => bearer(headers)?,
    };
    authenticate_bearer(app, bearer).await
}

/// What a credential allows.
pub(super) async fn authenticate_bearer(app: &App, bearer: &str) -> Result<Grant, Problem> {
    let grant = app.authenticator.authenticate_fresh(bearer, app.hub.clock()).await?;
    app.hub.check_revoked(&grant).await?;
    Ok(grant)
}

fn missing() -> Problem {
    let detail = "send `Authorization: Bearer` with an API key or a token";
    Problem::new(ErrorCode::CredentialMissing, detail)
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(missing)?;
    if values.next().is_some() {
        let detail = "there are several `Authorization` headers; send one";
        return Err(Problem::new(ErrorCode::CredentialInvalid, detail));
    }
    value.to_str().ok().and_then(bearer_of).ok_or_else(missing)
}

/// The credential in an `Authorization` header of this scheme.
pub(super) fn bearer_of(authorization: &str) -> Option<&str> {
    let (scheme, bearer) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| bearer.trim())
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

/// How long a body may arrive at any speed before it must arrive at the least.
pub(super) const BODY_GRACE: Duration = Duration::from_secs(5);

/// Reads a body up to a limit in bytes, as fast as the settings ask.
pub(super) async fn read_body(
    settings: &Settings,
    body: Body,
    bytes_max: usize,
) -> Result<Bytes, Problem> {
    read(settings, body, bytes_max, None).await
}

/// Reads the body of a publish, and takes room for it as it arrives.
pub(super) async fn read_publish(
    hub: &Hub,
    body: Body,
    room: &mut Waiting,
) -> Result<Bytes, Problem> {
    let settings = hub.settings();
    read(settings, body, settings.publish_bytes_max, Some((hub.quotas(), room))).await
}

async fn read(
    settings: &Settings,
    body: Body,
    bytes_max: usize,
    mut room: Option<(&Quotas, &mut Waiting)>,
) -> Result<Bytes, Problem> {
    // By the length that it says, before a client that asks first is told to go on.
    fits(body.size_hint().lower(), bytes_max)?;
    let mut body = Limited::new(body, bytes_max);
    let mut bytes = BytesMut::new();
    let mut begun = Instant::now();
    loop {
        // What has come decides until when the next must come: nobody buys time by single bytes.
        let (left, rate) = (settings.body_read_max, settings.body_rate_min);
        let at_rate = (bytes.len() as u64).checked_div(rate).map(Duration::from_secs);
        let left = at_rate.map_or(left, |time| left.min(BODY_GRACE + time));
        let frame = tokio::time::timeout_at(begun + left, body.frame()).await;
        let frame = frame.map_err(|_| {
            let detail = "the body arrives too slowly; send it again at once";
            Problem::new(ErrorCode::TooSlow, detail)
        })?;
        match frame {
            None => return Ok(bytes.freeze()),
            Some(Ok(frame)) => {
                bytes.extend(frame.into_data());
                if let Some((quotas, room)) = &mut room {
                    let asked_at = Instant::now();
                    quotas.grow(room, bytes.len()).await?;
                    // Meanwhile nothing was read.
                    begun += asked_at.elapsed();
                }
            }
            Some(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
                return Err(too_large(bytes_max));
            }
            Some(Err(_)) => {
                let detail = "the body ended before its length";
                return Err(Problem::new(ErrorCode::Malformed, detail));
            }
        }
    }
}

/// Refuses a body by its length, before any of it is waited for.
pub(super) fn fits(length: u64, bytes_max: usize) -> Result<(), Problem> {
    if length > bytes_max as u64 { Err(too_large(bytes_max)) } else { Ok(()) }
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(ErrorCode::TooLarge, format!("the body is larger than {bytes_max} bytes"))
}

/// Refuses compressed bodies: a small one may unpack to anything.
pub(super) fn refuse_encoded(headers: &HeaderMap) -> Result<(), Problem> {
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let detail = "send the body without `Content-Encoding`";
        return Err(Problem::new(ErrorCode::UnsupportedMediaType, detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};

    use super::*;

    /// Reads a body whose pieces of so many bytes come so far apart; how it ended, and when.
    async fn read(pieces: usize, bytes: usize, apart: Duration) -> (Result<usize, u16>, Duration) {
        let pieces = stream::iter(0..pieces).then(move |_| async move {
            tokio::time::sleep(apart).await;
            Ok::<_, Infallible>(vec![b'x'; bytes])
        });
        let begun = Instant::now();
        let settings = Settings::default();
        let read = read_body(&settings, Body::from_stream(pieces), 1 << 20).await;
        let read = read.map(|bytes| bytes.len()).map_err(|problem| problem.code.status());
        (read, begun.elapsed())
    }

    /// Broken on purpose, it failed: with the time counted from the last piece.
    #[tokio::test(start_paused = true)]
    async fn a_body_has_its_time_by_what_has_come_of_it() {
        let [ms, s] = [Duration::from_millis(1), Duration::from_secs(1)];
        // A byte now and then buys no time.
        assert_eq!(read(1000, 1, 100 * ms).await, (Err(408), BODY_GRACE));
        assert_eq!(read(1, 1, 6 * s).await, (Err(408), BODY_GRACE));
        // At the least rate, until all of its time is over.
        assert_eq!(read(20, 1024, s).await, (Ok(20 * 1024), 20 * s));
        assert_eq!(read(60, 1024, s).await, (Err(408), 30 * s));
        assert_eq!(read(100, 10_000, ms).await, (Ok(1_000_000), 100 * ms));
        assert_eq!(read(200, 10_000, ms).await.0, Err(413));
    }
}
