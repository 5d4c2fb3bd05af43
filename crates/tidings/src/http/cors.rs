//! Cross-origin requests: exactly the origins that were named, and no others.

use std::collections::HashSet;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use crate::error::{ErrorCode, Problem};

/// How long browsers may remember a preflight's answer, seconds: Chromium's own maximum.
const MAX_AGE: &str = "7200";

/// How many `ce-*` headers a preflight names: those of CloudEvents and of Tidings, and 16 extensions.
const ATTRIBUTES_MAX: usize = 32;

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

/// A request as another origin's page may have sent it.
pub(super) struct Crossed {
    /// The origin, if it is allowed.
    origin: Option<HeaderValue>,
    /// What a preflight is answered.
    pub(super) preflight: Option<Response>,
}

impl Crossed {
    pub(super) fn of(request: &Request, cors: &Cors) -> Self {
        let origin = cors.allows(request.headers()).cloned();
        let is_preflight = request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ORIGIN)
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let preflight = is_preflight.then(|| {
            if origin.is_some() {
                return preflight(request.headers());
            }
            let detail = "pages of this origin may not use the hub; the operator names origins";
            Problem::new(ErrorCode::ForbiddenOrigin, detail).into_response()
        });
        Self { origin, preflight }
    }

    /// Marks an answer for the origin whose pages may read it.
    pub(super) fn mark(self, response: &mut Response) {
        let headers = response.headers_mut();
        // Whether or not it is allowed: a cache must not give one origin another's answer.
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = self.origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            let exposed = HeaderValue::from_static("x-request-id, retry-after");
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
            let yes = HeaderValue::from_static("true");
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
    }
}

fn preflight(asked: &HeaderMap) -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE".to_owned()),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, allowed_headers(asked)),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE.to_owned()),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// The headers that a page may send. There is no wildcard for `ce-*` (WHATWG Fetch §3.2.5), so those
/// that it asks for are named back.
fn allowed_headers(asked: &HeaderMap) -> String {
    let mut allowed = "authorization, content-type, idempotency-key, last-event-id, traceparent, \
                       tracestate"
        .to_owned();
    let asked = asked.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS).iter();
    let names = asked.filter_map(|value| value.to_str().ok()).flat_map(|names| names.split(','));
    let is_attribute = |name: &&str| {
        let attribute = name.strip_prefix("ce-").unwrap_or_default();
        !attribute.is_empty() && attribute.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    for name in names.map(str::trim).filter(is_attribute).take(ATTRIBUTES_MAX) {
        allowed.push_str(", ");
        allowed.push_str(name);
    }
    allowed
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
