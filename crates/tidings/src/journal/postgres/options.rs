//! What an operator says about the server, and the TLS that the URL asks for.
//!
//! The rule: whatever waits for the server has an end, and a password is in no message.

use std::{fmt, sync::Arc, time::Duration};

use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

use crate::journal::JournalError;

/// The schema that the journal is in, unless another is named.
pub const SCHEMA: &str = "tidings";
/// Connections that append: while one waits for the disk, the next commit is made.
const WRITERS: usize = 4;
/// Connections that read: as many as pages are read at once, and half as many for what publishers
/// wait for.
const READERS: usize = 12;
/// Connecting within a network takes milliseconds; twice this and a probe still tells in time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Far above what a full commit or a page takes on a server that works.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);
/// Other nodes hold a topic for one commit.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an append is tried before its publisher is told to come back.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether an older schema is brought up to date when the journal is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Migrate {
    /// At once.
    #[default]
    Automatic,
    /// Never: opening fails and names the command that does it.
    ByCommand,
}

/// Which server, and how much of it.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`. `sslmode` is `disable`,
    /// `prefer` (the default), `require` (encrypted, whoever the server is) or `verify-full`;
    /// `sslrootcert` names a PEM file of authorities instead of the system's. Through PgBouncer:
    /// session pooling.
    pub url: String,
    /// Where to LISTEN, if `url` leads through a pool that cannot: the server itself.
    pub listen_url: Option<String>,
    /// The schema, which the journal has to itself: `a-z`, `0-9` and `_`, 1 to 63.
    pub schema: String,
    /// Connections that append; topics are spread over them. At least 1.
    pub writers: usize,
    /// Connections that read and change topics. At least 1.
    pub readers: usize,
    /// Whether the schema is brought up to date.
    pub migrate: Migrate,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long one statement may take.
    pub statement_timeout: Duration,
    /// How long to wait for a row that another node or a person has locked.
    pub lock_timeout: Duration,
    /// How long an append is tried.
    pub append_timeout: Duration,
}

impl PostgresOptions {
    /// A server, and the defaults.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            listen_url: None,
            schema: SCHEMA.to_owned(),
            writers: WRITERS,
            readers: READERS,
            migrate: Migrate::default(),
            connect_timeout: CONNECT_TIMEOUT,
            statement_timeout: STATEMENT_TIMEOUT,
            lock_timeout: LOCK_TIMEOUT,
            append_timeout: APPEND_TIMEOUT,
        }
    }

    /// In another schema.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// The options, checked.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) config: tokio_postgres::Config,
    pub(crate) tls: MakeRustlsConnect,
    pub(crate) schema: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) statement_timeout: Duration,
    pub(crate) lock_timeout: Duration,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Target {
    pub(crate) fn of(options: &PostgresOptions) -> Result<Self, JournalError> {
        let schema = options.schema.clone();
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if schema.is_empty() || schema.len() > 63 || !schema.bytes().all(is_name) {
            return Err(broken("the schema's name must be 1 to 63 of a-z 0-9 _"));
        }
        let (url, mode, root) = split_tls(&options.url)?;
        let mut config: tokio_postgres::Config = url.parse().map_err(|error| {
            broken(&format!("the URL is not one of a PostgreSQL server: {error}"))
        })?;
        config.ssl_mode(mode.sent());
        config.connect_timeout(options.connect_timeout);
        config.tcp_user_timeout(options.statement_timeout);
        config.keepalives_idle(Duration::from_secs(30));
        if config.get_application_name().is_none() {
            config.application_name("tidings");
        }
        Ok(Self {
            config,
            tls: MakeRustlsConnect::new(tls(mode, root.as_deref())?),
            schema,
            connect_timeout: options.connect_timeout,
            statement_timeout: options.statement_timeout,
            lock_timeout: options.lock_timeout,
        })
    }
}

fn broken(what: &str) -> JournalError {
    JournalError::Broken(format!("PostgreSQL: {what}"))
}

/// How much TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    Disable,
    Prefer,
    Require,
    VerifyFull,
}

impl Tls {
    const fn sent(self) -> SslMode {
        match self {
            Self::Disable => SslMode::Disable,
            Self::Prefer => SslMode::Prefer,
            Self::Require | Self::VerifyFull => SslMode::Require,
        }
    }
}

/// Takes what is about certificates out of a URL, which the client library does not know.
fn split_tls(url: &str) -> Result<(String, Tls, Option<String>), JournalError> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut root, mut rest) = (Tls::Prefer, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("sslmode", "disable") => mode = Tls::Disable,
            ("sslmode", "prefer") => mode = Tls::Prefer,
            ("sslmode", "require") => mode = Tls::Require,
            ("sslmode", "verify-full") => mode = Tls::VerifyFull,
            ("sslmode", other) => {
                return Err(broken(&format!(
                    "sslmode={other} is not known here: use disable, prefer, require or verify-full"
                )));
            }
            ("sslrootcert", path) => root = Some(path.replace("%2F", "/").replace("%2f", "/")),
            _ => rest.push(pair),
        }
    }
    let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    Ok((url, mode, root))
}

fn tls(mode: Tls, root: Option<&str>) -> Result<ClientConfig, JournalError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| broken(&format!("TLS: {error}")))?;
    if mode != Tls::VerifyFull {
        let verifier = Arc::new(Anybody(provider));
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    if let Some(path) = root {
        let unreadable = |error| broken(&format!("sslrootcert {path}: {error}"));
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            let certificate = certificate.map_err(unreadable)?;
            roots
                .add(certificate)
                .map_err(|error| broken(&format!("sslrootcert {path}: {error}")))?;
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
    }
    if roots.is_empty() {
        let advice = "install the system's certificates or name a file by sslrootcert";
        return Err(broken(&format!("sslmode=verify-full: no authorities are known: {advice}")));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Encrypts to whoever answers, as `sslmode=require` does everywhere: who listens learns nothing,
/// who is in between everything.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_certificates_is_taken_out_of_the_url() {
        let split = |url: &str| split_tls(url).unwrap();
        assert_eq!(split("postgres://a@h/d"), ("postgres://a@h/d".to_owned(), Tls::Prefer, None));
        let url = "postgres://a@h/d?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fca.pem";
        let left = "postgres://a@h/d?connect_timeout=3".to_owned();
        assert_eq!(split(url), (left, Tls::VerifyFull, Some("/ca.pem".to_owned())));
        let error = split_tls("postgres://a@h/d?sslmode=verify-ca").unwrap_err();
        assert!(error.to_string().contains("use disable, prefer"), "{error}");
    }

    #[test]
    fn wrong_options_are_told_and_a_password_is_not() {
        let wrong = |options: PostgresOptions| Target::of(&options).unwrap_err().to_string();
        let options = PostgresOptions::new("postgres://a:secret@h/d");
        assert!(wrong(options.clone().schema("a\"b")).contains("schema"));
        assert!(!format!("{options:?} {:?}", Target::of(&options).unwrap()).contains("secret"));
        let url = "postgres://a:secret@h:port/d";
        assert!(!wrong(PostgresOptions::new(url)).contains("secret"));
        let url = "postgres://a@h/d?sslmode=verify-full&sslrootcert=/nowhere.pem";
        assert!(wrong(PostgresOptions::new(url)).contains("/nowhere.pem"));
    }
}
