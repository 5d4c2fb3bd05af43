//! The live page of `tidings dev`, embedded in the binary.
//!
//! The rule: the page may load only what is listed here and talk only to this hub, whatever an
//! event's data makes of it.

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Nothing inline, nothing from elsewhere, no frames (CSP Level 3).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Names the files of the page: path, media type, content.
macro_rules! files {
    ($($kind:ident: $($name:literal)*;)*) => {
        const FILES: &[(&str, &str, &str)] =
            &[$($((concat!("/live/", $name), $kind, include_str!(concat!("live/", $name))),)*)*];
    };
}

files! {
    SCRIPT: "app.js" "connection.js" "continuity.js" "credentials.js" "hub.js" "page.js"
        "publish.js" "rows.js" "topics.js";
    STYLE: "style.css";
}

/// The page at `/` and its parts under `/live/`.
pub(crate) fn router() -> Router {
    let page = || async { file(HTML, include_str!("live/index.html")) };
    FILES.iter().fold(Router::new().route("/", get(page)), |router, (path, kind, text)| {
        router.route(path, get(move || async move { file(kind, text) }))
    })
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 5] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // A new version of the binary shows its own page at once.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_loads_is_embedded() {
        let known: Vec<&str> = FILES.iter().map(|(path, _, _)| *path).collect();
        let page = include_str!("live/index.html");
        for quoted in page.split('"').filter(|text| text.starts_with("live/")) {
            assert!(known.contains(&format!("/{quoted}").as_str()), "{quoted}");
        }
        for (path, kind, text) in FILES {
            let imports = text.split(" from \"./").skip(1).filter(|_| *kind == SCRIPT);
            for import in imports.filter_map(|rest| rest.split('"').next()) {
                assert!(known.contains(&format!("/live/{import}").as_str()), "{path}: {import}");
            }
        }
    }
}
