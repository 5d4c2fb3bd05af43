//! Cross-origin requests: exactly the origins that were named, and no others.

use std::{collections::HashSet, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::error::{ErrorCode, Problem};

/// How long browsers may remember a preflight's answer, seconds: Chromium's own maximum.
const MAX_AGE: &str = "7200";

/// The origins whose pages may read answers.
#[derive(Debug)]
pub(super) struct Cors {
    origins: HashSet<String>,
}

impl Cors {
    /// # Errors
    /// A problem names the origin that is not one.
    pub(super) fn new(origins: &[String]) -> Result<Self, Problem> {
        for origin in origins {
            if !is_origin(origin) {
                let detail = format!(
                    "`{origin}` is no origin; write it as browsers send it, like \
                     `https://app.example` or `http://localhost:5173`"
                );
                return Err(Problem::new(ErrorCode::Malformed, detail).at("cors.origins"));
            }
        }
        Ok(Self { origins: origins.iter().cloned().collect() })
    }

    fn allows<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        origin.to_str().is_ok_and(|origin| self.origins.contains(origin)).then_some(origin)
    }
}

/// Scheme, host and port as browsers serialise an origin (WHATWG HTML §7.1.1): nothing else fits.
pub(super) fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let default_port =
        matches!((scheme, authority.port_u16()), ("http", Some(80)) | ("https", Some(443)));
    matches!(scheme, "http" | "https")
        && !authority.as_str().contains('@')
        && !default_port
        && !text.contains('*')
        && text == format!("{scheme}://{}", authority.as_str().to_ascii_lowercase())
}

/// Answers preflights and marks the answers that pages of a named origin may read.
pub(super) async fn apply(State(cors): State<Arc<Cors>>, request: Request, next: Next) -> Response {
    let origin = cors.allows(request.headers()).cloned();
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match (is_preflight, &origin) {
        (true, Some(_)) => preflight(),
        (true, None) => {
            let detail = "pages of this origin may not use the hub; the operator names origins";
            Problem::new(ErrorCode::ForbiddenOrigin, detail).into_response()
        }
        (false, _) => next.run(request).await,
    };
    let headers = response.headers_mut();
    // Whether or not it is allowed: a cache must not give one origin another's answer.
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = HeaderValue::from_static("x-request-id, retry-after");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        let yes = HeaderValue::from_static("true");
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
    }
    response
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, idempotency-key, last-event-id",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_origins_can_be_named() {
        for good in ["https://app.example", "http://localhost:5173", "http://127.0.0.1:1"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "*",
            "null",
            "app.example",
            "https://app.example/",
            "https://App.example",
            "https://u@app.example",
            "https://app.example:443",
            "ftp://app.example",
            "https://*",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }

    #[test]
    fn only_the_named_origin_is_allowed() {
        let cors = Cors::new(&["https://app.example".to_owned()]).unwrap();
        let allows = |origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            cors.allows(&headers).is_some()
        };
        assert!(allows("https://app.example"));
        for bad in [
            "null",
            "https://evil-app.example",
            "https://app.example.evil",
            "http://app.example",
            "https://app.example:8443",
            "https://app.example/",
            "",
        ] {
            assert!(!allows(bad), "{bad}");
        }
    }
}
