//! Talking to a hub: which one, as whom, and what to make of its refusals.
//!
//! The rules: a credential goes to the address it was given for and nowhere else, and is never
//! printed; what may pass is tried again with full jitter, what will not is reported at once.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidings::auth::Secret;

use crate::{
    cli::HubArgs,
    exit::{Exit, Failure},
};

/// Where `tidings dev` keeps its events and keys, and where clients look for it.
pub(crate) const DEV_DIRECTORY: &str = ".tidings";
/// What `tidings dev` leaves there for clients.
const DEV_FILE: &str = "dev.json";
/// Where a hub listens unless it was told otherwise.
const URL_DEFAULT: &str = "http://127.0.0.1:8080";
/// How long a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// What is read of a refusal, bytes.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;

/// What a running `tidings dev` says about itself: its `--json` line, and `dev.json`.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct DevFile {
    /// Where clients connect.
    pub(crate) url: String,
    /// Health and metrics.
    pub(crate) admin_url: String,
    /// May write every topic.
    pub(crate) publisher_key: String,
    /// May read every topic.
    pub(crate) reader_token: String,
}

impl std::fmt::Debug for DevFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevFile").field("url", &self.url).finish_non_exhaustive()
    }
}

impl DevFile {
    /// The file in a data directory.
    pub(crate) fn path(directory: &Path) -> PathBuf {
        directory.join(DEV_FILE)
    }

    /// Reads what the hub of a data directory left; `None` if there is nothing of use.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(Self::path(directory)).ok()?;
        let file: Self = serde_json::from_str(&text).ok()?;
        // A directory from elsewhere must not lead the input away from this machine.
        let on_loopback = |text: &str| Url::parse(text).is_ok_and(|url| is_loopback(&url));
        (on_loopback(&file.url) && on_loopback(&file.admin_url)).then_some(file)
    }
}

/// What a command does at the hub: which of a `tidings dev`'s credentials it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Publish,
    Follow,
}

/// A hub to talk to.
#[derive(Debug)]
pub(crate) struct Remote {
    client: Client,
    place: Place,
    purpose: Purpose,
    /// Nobody named a hub: what is said of its address says so.
    is_guessed: bool,
}

#[derive(Debug)]
enum Place {
    Given {
        url: Url,
        credential: Option<Secret>,
    },
    /// Looked up for each request: a restarted hub may have another port.
    Dev {
        directory: PathBuf,
        credential: Option<Secret>,
    },
}

/// Why a request did not work.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It may work later.
    Passing {
        /// What happened.
        message: String,
        /// When the hub says to try again.
        retry_after: Option<Duration>,
    },
    /// It will not.
    Final(Failure),
}

impl Remote {
    /// Finds the hub: flags, environment, the `tidings dev` of the directory, the default address.
    pub(crate) fn new(args: &HubArgs, purpose: Purpose) -> Result<Self, Failure> {
        let credential = match (&args.api_key, &args.token) {
            (Some(text), _) | (None, Some(text)) => Some(Secret::new(text.clone())),
            (None, None) => credential_of_env(purpose)?,
        };
        let given = args.place.url.clone().or_else(|| variable("TIDINGS_URL"));
        let dev = DevFile::read(&args.place.data_dir);
        let is_guessed = given.is_none() && dev.is_none();
        let place = match (given, &dev) {
            (Some(text), dev) => {
                let url = parse_url(&text)?;
                let same =
                    dev.as_ref().filter(|dev| Url::parse(&dev.url).is_ok_and(|dev| dev == url));
                let credential = credential.or_else(|| same.map(|dev| dev.credential(purpose)));
                Place::Given { url, credential }
            }
            (None, Some(_)) => Place::Dev { directory: args.place.data_dir.clone(), credential },
            (None, None) => Place::Given { url: parse_url(URL_DEFAULT)?, credential },
        };
        let direct = match &place {
            Place::Given { url, .. } => is_loopback(url),
            Place::Dev { .. } => true,
        };
        let client = build_client(args.place.ca.as_deref(), direct)?;
        Ok(Self { client, place, purpose, is_guessed })
    }

    /// Begins a request to a path of the hub.
    pub(crate) fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, Failure> {
        let (url, credential) = match &self.place {
            Place::Given { url, credential } => (url.clone(), credential.clone()),
            Place::Dev { directory, credential } => {
                let dev = DevFile::read(directory).ok_or_else(|| {
                    let file = DevFile::path(directory);
                    Failure::new(Exit::Unavailable, format!("{} is gone", file.display()))
                })?;
                let credential = credential.clone().unwrap_or_else(|| dev.credential(self.purpose));
                (parse_url(&dev.url)?, Some(credential))
            }
        };
        let url = url
            .join(path)
            .map_err(|error| Failure::new(Exit::Usage, format!("the hub's address: {error}")))?;
        let mut request = self.client.request(method, url);
        if let Some(credential) = credential {
            request = request.bearer_auth(credential.expose());
        }
        Ok(request)
    }

    /// The hub's address, for messages.
    pub(crate) fn address(&self) -> String {
        match &self.place {
            Place::Given { .. } if self.is_guessed => format!(
                "{URL_DEFAULT} (no hub was named, by --url or TIDINGS_URL, and none is known here: \
                 --data-dir names the directory of a `tidings dev`)"
            ),
            Place::Given { url, .. } => url.as_str().trim_end_matches('/').to_owned(),
            Place::Dev { directory, .. } => {
                DevFile::read(directory).map_or_else(|| URL_DEFAULT.to_owned(), |dev| dev.url)
            }
        }
    }
}

impl DevFile {
    fn credential(&self, purpose: Purpose) -> Secret {
        Secret::new(match purpose {
            Purpose::Publish => self.publisher_key.as_str(),
            Purpose::Follow => self.reader_token.as_str(),
        })
    }
}

/// A client for HTTP/1.1; `direct`: whatever proxies the environment names.
pub(crate) fn build_client(ca: Option<&Path>, direct: bool) -> Result<Client, Failure> {
    let mut builder = Client::builder()
        .http1_only()
        .connect_timeout(CONNECT_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")));
    if direct {
        builder = builder.no_proxy();
    }
    if let Some(file) = ca {
        let pem = std::fs::read(file).map_err(|error| Failure::input(file.display(), &error))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| {
            Failure::new(Exit::NoInput, format!("{}: no PEM certificates: {error}", file.display()))
        })?;
        for certificate in certificates {
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|error| Failure::new(Exit::Software, causes(&error)))
}

/// Reads an address, with or without a path under which the hub is mounted.
pub(crate) fn parse_url(text: &str) -> Result<Url, Failure> {
    let wrong =
        |reason: &str| Failure::new(Exit::Usage, format!("the hub's address {text}: {reason}"));
    let mut url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("must start with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Failure::new(Exit::Usage, "the hub's address must not hold a credential"));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

/// With both set, publishing takes the key and following the token: what each is for.
fn credential_of_env(purpose: Purpose) -> Result<Option<Secret>, Failure> {
    let names = match purpose {
        Purpose::Publish => ["TIDINGS_KEY", "TIDINGS_TOKEN"],
        Purpose::Follow => ["TIDINGS_TOKEN", "TIDINGS_KEY"],
    };
    for name in names {
        let file = format!("{name}_FILE");
        if let Some(text) = variable(name) {
            return Ok(Some(Secret::new(text)));
        }
        if let Some(path) = variable(&file) {
            let text = crate::config::read_secret_file(Path::new(&path))
                .map_err(|error| Failure::input(format!("{file} {path}"), &error))?;
            return Ok(Some(Secret::new(text)));
        }
    }
    Ok(None)
}

/// A variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

impl From<reqwest::Error> for Trouble {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if error.is_builder() {
            // Nothing was sent: a header or address that cannot be.
            return Self::Final(Failure::new(Exit::Usage, causes(&error)));
        }
        if is_about_certificate(&error) {
            let causes = causes(&error);
            // What rustls says of a self-signed certificate that `openssl req -x509` made.
            let remedy = if causes.contains("CaUsedAsEndEntity") {
                "the hub's certificate is an authority's own (CA:TRUE): make it anew with \
                 `-addext basicConstraints=critical,CA:FALSE`, or sign one with that authority"
            } else {
                "if the hub has its own certificate authority, name its file with --ca"
            };
            let message = format!("{causes}; {remedy}");
            return Self::Final(Failure::new(Exit::Unavailable, message));
        }
        Self::Passing { message: causes(&error), retry_after: None }
    }
}

/// Whether the hub's certificate is not trusted: no wait mends that.
fn is_about_certificate(error: &reqwest::Error) -> bool {
    /// An I/O error may be a box around the error of TLS, or around another such box.
    fn unboxed<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
        match error.downcast_ref::<std::io::Error>() {
            Some(io) => unboxed(io.get_ref()?),
            None => error.downcast_ref(),
        }
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if matches!(unboxed(inner), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// The hub's answer if it is a success, else what its refusal means.
pub(crate) async fn accept(response: Response) -> Result<Response, Trouble> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response
        .headers()
        .get(reqwest::header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let problem = read_problem(response).await;
    Err(refusal(status, problem.as_ref(), retry_after))
}

/// What a refusal means: problem+json (RFC 9457), or only a status.
pub(crate) fn refusal(
    status: StatusCode,
    problem: Option<&Value>,
    retry_after: Option<Duration>,
) -> Trouble {
    let member = |name: &str| problem.and_then(|problem| problem.get(name));
    let text = |name: &str| member(name).and_then(Value::as_str).unwrap_or_default();
    let retry_after =
        member("retry_after_ms").and_then(Value::as_u64).map(Duration::from_millis).or(retry_after);
    let message = describe(status, problem);
    let retryable = member("retryable").and_then(Value::as_bool).unwrap_or(false);
    let exit = match status.as_u16() {
        429 | 500..=599 => return Trouble::Passing { message, retry_after },
        _ if retryable => return Trouble::Passing { message, retry_after },
        401 | 403 | 404 => Exit::Refused,
        300..=399 => Exit::Usage,
        _ => Exit::Data,
    };
    let hint = match text("code") {
        "credential_missing" => {
            "; set TIDINGS_KEY or TIDINGS_TOKEN, or run this where `tidings dev` was started"
        }
        _ => "",
    };
    Trouble::Final(Failure::new(exit, format!("{message}{hint}")))
}

/// `forbidden_topic: the grant does not cover writing user/42 (/topic)`.
pub(crate) fn describe(status: StatusCode, problem: Option<&Value>) -> String {
    let text = |name: &str| {
        let member = problem.and_then(|problem| problem.get(name));
        member.and_then(Value::as_str).filter(|text| !text.is_empty())
    };
    let (Some(code), Some(detail)) = (text("code"), text("detail")) else {
        return format!("the hub answered {status}");
    };
    match text("pointer") {
        Some(pointer) => format!("{code}: {detail} ({pointer})"),
        None => format!("{code}: {detail}"),
    }
}

async fn read_problem(mut response: Response) -> Option<Value> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > PROBLEM_BYTES_MAX {
            return None;
        }
    }
    serde_json::from_slice(&body).ok()
}

/// An error and its causes on one line, without repeating what a cause says already.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// How long to wait between attempts: full jitter, so that clients that were cut off together do
/// not come back together.
#[derive(Debug)]
pub(crate) struct Backoff {
    base: Duration,
    cap: Duration,
    attempts: u32,
}

impl Backoff {
    /// Waits up to `base` first, then up to twice as long each time, up to `cap`.
    pub(crate) const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempts: 0 }
    }

    /// The next wait: at least as long as the hub said.
    pub(crate) fn next(&mut self, at_least: Option<Duration>) -> Duration {
        let ceiling = self.base.saturating_mul(1 << self.attempts.min(16)).min(self.cap);
        self.attempts = self.attempts.saturating_add(1);
        ceiling.mul_f64(random()) + at_least.unwrap_or_default()
    }

    /// Something worked: begin anew.
    pub(crate) const fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Whether the last attempt failed too.
    pub(crate) const fn is_first(&self) -> bool {
        self.attempts == 0
    }
}

/// From 0 to 1. Hash keys are random, which is all that jitter needs.
pub(crate) fn random() -> f64 {
    let bits = u32::try_from(RandomState::new().hash_one(0_u8) >> 32).unwrap_or_default();
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::PlaceArgs;

    #[test]
    fn waits_stay_between_zero_and_a_ceiling_that_doubles_up_to_the_cap() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(base, cap);
        for ceiling_ms in [100, 200, 400, 800, 1000, 1000] {
            assert!(backoff.next(None) <= Duration::from_millis(ceiling_ms));
        }
        assert!(backoff.next(Some(Duration::from_secs(9))) >= Duration::from_secs(9));
        backoff.reset();
        assert!(backoff.next(None) <= base);
    }

    #[test]
    fn refusals_say_whether_to_try_again_and_how_to_end() {
        let problem = serde_json::json!({"code": "limit_reached", "detail": "slow down",
            "retryable": true, "retry_after_ms": 250});
        let trouble = refusal(StatusCode::TOO_MANY_REQUESTS, Some(&problem), None);
        assert!(matches!(trouble, Trouble::Passing { message, retry_after }
            if message == "limit_reached: slow down" && retry_after == Some(Duration::from_millis(250))));
        for (status, exit) in [(401, Exit::Refused), (403, Exit::Refused), (413, Exit::Data)] {
            let trouble = refusal(StatusCode::from_u16(status).unwrap(), None, None);
            assert!(matches!(trouble, Trouble::Final(failure) if failure.exit == exit));
        }
    }

    #[test]
    fn who_names_no_hub_is_told_which_one_is_asked_and_how_to_name_one() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let address = |url: Option<&str>| {
            let url = url.map(str::to_owned);
            let place = PlaceArgs { url, data_dir: directory.path().to_owned(), ca: None };
            let args = HubArgs { place, api_key: Some("k".to_owned()), token: None };
            Remote::new(&args, Purpose::Publish).unwrap().address()
        };
        assert!(address(None).starts_with("http://127.0.0.1:8080 (no hub was named, by --url"));
        assert_eq!(address(Some("http://127.0.0.1:8080")), "http://127.0.0.1:8080");
    }

    #[test]
    fn a_dev_file_that_points_elsewhere_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let write = |url: &str| {
            let file = serde_json::json!({"url": url, "admin_url": "http://127.0.0.1:1",
                "publisher_key": "k", "reader_token": "t"});
            std::fs::write(DevFile::path(directory.path()), file.to_string()).unwrap();
        };
        write("http://127.0.0.1:8080");
        assert!(DevFile::read(directory.path()).is_some());
        write("http://[::1]:8080");
        assert!(DevFile::read(directory.path()).is_some());
        for elsewhere in ["http://example.com", "http://127.0.0.1.example.com", "http://10.0.0.1"] {
            write(elsewhere);
            assert!(DevFile::read(directory.path()).is_none(), "{elsewhere}");
        }
    }

    #[test]
    fn an_address_with_a_credential_is_refused_without_repeating_it() {
        let failure = parse_url("http://user:hunter2@host/").unwrap_err();
        assert!(!failure.message.contains("hunter2"));
        assert_eq!(parse_url("https://host/hub").unwrap().as_str(), "https://host/hub/");
    }
}
