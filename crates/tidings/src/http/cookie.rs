//! A token in a cookie, for pages of the hub's own site.
//!
//! The rule: browsers attach a cookie to whatever any page asks for, so it counts only where the
//! browser says which page asks. A request that changes something must come from an origin that the
//! operator named, one that reads may also come from the hub's own. Where nothing is said, nothing
//! counts: a program has `Authorization`.

use std::collections::HashSet;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::cors::is_origin;
use crate::{
    auth::API_KEY_PREFIX,
    error::{ErrorCode, Problem},
};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Which cookie carries a token, and whose pages may use it.
#[derive(Debug, Clone)]
pub struct CookieSettings {
    /// The cookie's name. One that begins with `__Host-` cannot be set by a neighbouring host.
    pub name: String,
    /// The origins of the pages that may use it, exactly as browsers send them; for pages of the
    /// hub's own origin that change something, that one too.
    pub origins: Vec<String>,
}

/// The cookie that counts.
#[derive(Debug)]
pub(super) struct Cookie {
    name: String,
    origins: HashSet<String>,
}

impl Cookie {
    /// # Errors
    /// A problem names the setting that cannot be.
    pub(super) fn new(settings: &CookieSettings) -> Result<Self, Problem> {
        let CookieSettings { name, origins } = settings;
        // RFC 6265 §4.1.1: a token.
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) {
            let detail = "is no name of a cookie";
            return Err(Problem::new(ErrorCode::Malformed, detail).at("auth.cookie.name"));
        }
        if origins.is_empty() || !origins.iter().all(|origin| is_origin(origin)) {
            let detail = "must name the origins of the pages that may use the cookie, each as \
                          browsers send it, like `https://app.example`";
            return Err(Problem::new(ErrorCode::Malformed, detail).at("auth.cookie.origins"));
        }
        Ok(Self { name: name.clone(), origins: origins.iter().cloned().collect() })
    }

    /// The token in the request's cookie; `None` if it has none.
    ///
    /// # Errors
    /// [`ErrorCode::ForbiddenOrigin`] if the page that asks may not use it, and
    /// [`ErrorCode::CredentialInvalid`] if it is ambiguous or no token.
    pub(super) fn token<'a>(
        &self,
        method: &Method,
        headers: &'a HeaderMap,
    ) -> Result<Option<&'a str>, Problem> {
        let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = texts.flat_map(|text| text.split(';')).filter_map(|one| one.split_once('='));
        let mut values =
            pairs.filter(|(name, _)| name.trim() == self.name).map(|(_, value)| value.trim());
        let Some(value) = values.next() else { return Ok(None) };
        self.check_page(method, headers)?;
        if values.next().is_some() {
            // A neighbouring host may have set the other, and which comes first is its choice.
            let detail = "the cookie is there more than once; delete one";
            return Err(Problem::new(ErrorCode::CredentialInvalid, detail));
        }
        if value.starts_with(API_KEY_PREFIX) {
            let detail = "a cookie carries a token, never an API key";
            return Err(Problem::new(ErrorCode::CredentialInvalid, detail));
        }
        Ok(Some(value))
    }

    /// Whether the page that asks may use the cookie.
    fn check_page(&self, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
        let one = |name: &HeaderName| {
            let mut values = headers.get_all(name).iter();
            let value = values.next().map(HeaderValue::as_bytes);
            // Said twice is not said.
            if values.next().is_some() { Some(&b""[..]) } else { value }
        };
        let named = one(&header::ORIGIN).map(|origin| {
            std::str::from_utf8(origin).is_ok_and(|origin| self.origins.contains(origin))
        });
        let site = one(&FETCH_SITE);
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let may = match (named, site) {
            // A cookie that goes along to another site was made so by mistake.
            (Some(named), site) => {
                named && matches!(site, None | Some(b"same-origin" | b"same-site"))
            }
            // Browsers name the origin of a page that reads from its own only here.
            (None, site) => reads && site == Some(b"same-origin"),
        };
        if may {
            return Ok(());
        }
        let detail =
            "pages of this origin may not use the hub by cookie; the operator names origins";
        Err(Problem::new(ErrorCode::ForbiddenOrigin, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie() -> Cookie {
        let settings = CookieSettings {
            name: "__Host-t".to_owned(),
            origins: vec!["https://app.example".to_owned()],
        };
        Cookie::new(&settings).unwrap()
    }

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    /// Broken on purpose: matching an origin by its end, taking `null`, or letting a request that
    /// changes something through without an origin each makes it fail.
    #[test]
    fn a_cookie_counts_only_for_pages_that_the_operator_named() {
        const GOOD: &str = "https://app.example";
        let (yes, no) = (true, false);
        #[rustfmt::skip]
        let cases: &[(&[&'static str], Option<&'static str>, bool, bool)] = &[
            // Origins, site, whether it may read, whether it may change.
            (&[GOOD], None, yes, yes),
            (&[GOOD], Some("same-origin"), yes, yes),
            (&[GOOD], Some("same-site"), yes, yes),
            (&[GOOD], Some("cross-site"), no, no),
            (&[GOOD], Some("none"), no, no),
            (&[GOOD, GOOD], None, no, no),
            (&[GOOD, "https://evil.example"], Some("same-origin"), no, no),
            (&[], Some("same-origin"), yes, no),
            (&[], Some("same-site"), no, no),
            (&[], Some("cross-site"), no, no),
            (&[], Some("none"), no, no),
            (&[], Some("Same-Origin"), no, no),
            (&[], None, no, no),
            (&["null"], None, no, no),
            (&["null"], Some("same-origin"), no, no),
            (&[""], Some("same-origin"), no, no),
            (&["https://evil-app.example"], None, no, no),
            (&["https://app.example.evil"], None, no, no),
            (&["https://evil.app.example"], Some("same-site"), no, no),
            (&["http://app.example"], None, no, no),
            (&["https://app.example:8443"], None, no, no),
            (&["https://app.example/"], None, no, no),
            (&["HTTPS://APP.EXAMPLE"], None, no, no),
            (&["https://app.example, https://evil.example"], None, no, no),
        ];
        for (origins, site, reads, changes) in cases {
            let mut all = vec![("cookie", "__Host-t=a.b.c")];
            all.extend(origins.iter().map(|origin| ("origin", *origin)));
            all.extend(site.map(|site| ("sec-fetch-site", site)));
            let headers = headers(&all);
            for (method, may) in [
                (Method::GET, reads),
                (Method::HEAD, reads),
                (Method::POST, changes),
                (Method::PUT, changes),
                (Method::DELETE, changes),
                (Method::PATCH, changes),
            ] {
                let token = cookie().token(&method, &headers);
                assert_eq!(token.is_ok(), *may, "{method} {origins:?} {site:?}");
                if let Err(problem) = token {
                    assert_eq!(problem.code, ErrorCode::ForbiddenOrigin);
                }
            }
        }
    }

    #[test]
    fn the_cookie_is_found_among_others_and_only_once() {
        let token = |cookies: &[&'static str]| {
            let mut all: Vec<_> = cookies.iter().map(|cookie| ("cookie", *cookie)).collect();
            all.push(("sec-fetch-site", "same-origin"));
            let headers = headers(&all);
            let token = cookie().token(&Method::GET, &headers);
            token.map(|token| token.map(str::to_owned)).map_err(|problem| problem.code)
        };
        let found = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(token(&["__Host-t=a.b.c"]), found("a.b.c"));
        assert_eq!(token(&["x=1; __Host-t=a.b.c; y=2"]), found("a.b.c"));
        // HTTP/2 may send each in a field of its own (RFC 9113 §8.2.3).
        assert_eq!(token(&["x=1", "__Host-t=a.b.c"]), found("a.b.c"));
        for none in [&[][..], &["x=1"], &["__host-t=a"], &["x__Host-t=a"], &["__Host-t"]] {
            assert_eq!(token(none), Ok(None), "{none:?}");
        }
        let invalid = Err(ErrorCode::CredentialInvalid);
        assert_eq!(token(&["__Host-t=a.b.c; __Host-t=d.e.f"]), invalid);
        assert_eq!(token(&["__Host-t=a.b.c", "__Host-t=a.b.c"]), invalid);
        assert_eq!(token(&["__Host-t=tdk_x"]), invalid);
    }

    #[test]
    fn a_cookie_needs_a_name_and_exact_origins() {
        let pointer = |name: &str, origins: &[&str]| {
            let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
            let settings = CookieSettings { name: name.to_owned(), origins };
            Cookie::new(&settings).map(drop).map_err(|problem| problem.pointer.unwrap())
        };
        let (name, origins) = ("auth.cookie.name".to_owned(), "auth.cookie.origins".to_owned());
        assert_eq!(pointer("t", &["https://app.example"]), Ok(()));
        for bad in ["", "a b", "a=b", "a;b", "é"] {
            assert_eq!(pointer(bad, &["https://app.example"]), Err(name.clone()), "{bad}");
        }
        assert_eq!(pointer("t", &[]), Err(origins.clone()));
        for bad in ["*", "null", "https://*.example", "https://app.example/", "app.example"] {
            assert_eq!(pointer("t", &["https://app.example", bad]), Err(origins.clone()), "{bad}");
        }
    }
}
