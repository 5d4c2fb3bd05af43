//! The TLS that a server's URL asks for.
//!
//! The rule: its words promise at least what they promise with libpq. Who names an authority has it
//! looked at, and what promises less than it seems to is refused before anything is connected.

use std::sync::Arc;

use tokio_postgres::config::SslMode;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};

use super::options::broken;
use crate::journal::JournalError;

/// What `sslrootcert` says where the system's authorities are meant.
const SYSTEM: &str = "system";
/// Servers since PostgreSQL 17 take TLS at once (`sslnegotiation=direct`) from whoever says this.
const PROTOCOL: &[u8] = b"postgresql";

/// How much TLS, from none to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    /// If the server has it.
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Who vouches for a server.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Authority {
    Unnamed,
    System,
    File(String),
}

/// What a URL asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    mode: Mode,
    authority: Authority,
    /// Files of the certificate that this side shows, and of its key.
    own: Option<(String, String)>,
}

impl Wanted {
    /// Takes what is about TLS out of a URL, and gives what is left of that. The client library knows
    /// other words.
    pub(super) fn take_from(url: &str) -> Result<(String, Self), JournalError> {
        // The client library takes what is before an `@` for user and password, whatever it holds: what
        // is asked of TLS must not end up there.
        if url.split_once('@').is_some_and(|(credentials, _)| credentials.contains('?')) {
            return Err(broken(
                "a `?` in the user's name or password, or an `@` in a parameter, is written as %3F or %40",
            ));
        }
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut authority) = (None, Authority::Unnamed);
        let (mut certificate, mut key, mut rest) = (None, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "sslmode" => mode = Some(parse_mode(value)?),
                "sslrootcert" if value == SYSTEM => authority = Authority::System,
                "sslrootcert" => authority = Authority::File(path(name, value)?),
                "sslcert" => certificate = Some(path(name, value)?),
                "sslkey" => key = Some(path(name, value)?),
                _ => rest.push(pair),
            }
        }
        let own = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => return Err(broken("sslcert and sslkey are given together or not at all")),
        };
        let mode = match (mode, &authority) {
            (None, Authority::System) => Mode::VerifyFull,
            (None, _) => Mode::Prefer,
            (Some(mode), _) => mode,
        };
        // Any name gets a certificate of theirs.
        if authority == Authority::System && !matches!(mode, Mode::Disable | Mode::VerifyFull) {
            return Err(broken("sslrootcert=system needs sslmode=verify-full"));
        }
        if authority == Authority::Unnamed && mode == Mode::VerifyCa {
            return Err(broken(
                "sslmode=verify-ca needs the file of an authority, sslrootcert; with the system's \
                 authorities use verify-full",
            ));
        }
        let url =
            if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        Ok((url, Self { mode, authority, own }))
    }

    /// What the client library is to do.
    pub(super) const fn mode(&self) -> SslMode {
        match self.mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        }
    }

    /// How it is to do it. Reads the files.
    pub(super) fn config(&self) -> Result<ClientConfig, JournalError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| broken(&format!("TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier {
                trust: self.trust()?,
                provider,
            }));
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("sslcert", certificate)?;
                let unusable = |error: &dyn std::fmt::Display| {
                    broken(&format!("sslkey {key} for sslcert {certificate}: {error}"))
                };
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(&error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| unusable(&error))?
            }
        };
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }

    fn trust(&self) -> Result<Trust, JournalError> {
        let is_checked =
            self.mode == Mode::VerifyFull || matches!(self.authority, Authority::File(_));
        if self.mode == Mode::Disable || !is_checked {
            return Ok(Trust::Anybody);
        }
        let mut roots = RootCertStore::empty();
        let mut named = Vec::new();
        if let Authority::File(path) = &self.authority {
            named = certificates("sslrootcert", path)?;
            for certificate in &named {
                let added = roots.add(certificate.clone());
                added.map_err(|error| broken(&format!("sslrootcert {path}: {error}")))?;
            }
        } else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if roots.is_empty() {
            let advice = "install the system's certificates or name a file by sslrootcert";
            return Err(broken(&format!("no authorities are known: {advice}")));
        }
        Ok(Trust::Known { roots, named, is_name_checked: self.mode == Mode::VerifyFull })
    }
}

fn parse_mode(word: &str) -> Result<Mode, JournalError> {
    Ok(match word {
        "disable" => Mode::Disable,
        "prefer" => Mode::Prefer,
        "require" => Mode::Require,
        "verify-ca" => Mode::VerifyCa,
        "verify-full" => Mode::VerifyFull,
        other => {
            return Err(broken(&format!(
                "sslmode={other} is not known here: use disable, prefer, require, verify-ca or \
                 verify-full"
            )));
        }
    })
}

/// A file's path as a URL has it.
fn path(name: &str, value: &str) -> Result<String, JournalError> {
    let wrong = || broken(&format!("{name}={value} is not a path as URLs have it"));
    let mut decoded = Vec::new();
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next(), bytes.next()]
                    .map(|digit| digit.and_then(|digit| char::from(digit).to_digit(16)));
                let [Some(high), Some(low)] = digits else { return Err(wrong()) };
                u8::try_from(high * 16 + low).map_err(|_| wrong())?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).map_err(|_| wrong())
}

fn certificates(name: &str, path: &str) -> Result<Vec<CertificateDer<'static>>, JournalError> {
    let unreadable = |error| broken(&format!("{name} {path}: {error}"));
    let found = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if found.is_empty() {
        return Err(broken(&format!("{name} {path}: there is no certificate in it")));
    }
    Ok(found)
}

/// What to do about a certificate that is refused.
pub(super) fn advice(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "name the file of its authority by sslrootcert"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "connect by a name that it has, or give the server one for this name"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "renew it",
        _ => "give the server another one",
    }
}

/// Looks at a server's certificate.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

/// Who is taken for the server.
#[derive(Debug)]
enum Trust {
    /// Whoever answers: who listens learns nothing, who is in between everything.
    Anybody,
    Known {
        roots: RootCertStore,
        /// The certificates of the file: one of them may be the server's own, as libpq allows, which
        /// is trusted as long as it is there.
        named: Vec<CertificateDer<'static>>,
        is_name_checked: bool,
    },
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Known { roots, named, is_name_checked } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !named.contains(end_entity) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        if *is_name_checked {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str) -> (String, Wanted) {
        Wanted::take_from(&format!("postgres://a@h/d{query}")).unwrap()
    }

    fn wrong(query: &str) -> String {
        Wanted::take_from(&format!("postgres://a@h/d{query}")).unwrap_err().to_string()
    }

    #[test]
    fn what_is_about_tls_is_taken_out_of_the_url() {
        let nothing = Wanted { mode: Mode::Prefer, authority: Authority::Unnamed, own: None };
        assert_eq!(wanted(""), ("postgres://a@h/d".to_owned(), nothing));
        let query =
            "?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fa%20b.pem&sslcert=c&sslkey=k";
        let all = Wanted {
            mode: Mode::VerifyFull,
            authority: Authority::File("/a b.pem".to_owned()),
            own: Some(("c".to_owned(), "k".to_owned())),
        };
        assert_eq!(wanted(query), ("postgres://a@h/d?connect_timeout=3".to_owned(), all));
        assert_eq!(wanted("?sslrootcert=system").1.mode, Mode::VerifyFull);
    }

    #[test]
    fn what_promises_less_than_it_seems_to_is_refused() {
        assert!(wrong("?sslmode=allow").contains("use disable, prefer"));
        assert!(wrong("?sslmode=verify-ca").contains("needs the file of an authority"));
        assert!(wrong("?sslmode=require&sslrootcert=system").contains("verify-full"));
        assert!(wrong("?sslcert=c").contains("together"));
        for url in
            ["postgres://u:a?b@h/d?sslmode=require", "postgres://h/d?sslmode=require&options=a@b"]
        {
            let error = Wanted::take_from(url).unwrap_err().to_string();
            assert!(error.contains("%3F"), "{error}");
        }
        for path in ["%", "%2", "%zz", "%ff"] {
            assert!(wrong(&format!("?sslrootcert={path}")).contains("not a path"), "{path}");
        }
    }

    /// As with libpq: `require` with an authority is `verify-ca`.
    #[test]
    fn an_authority_that_is_named_is_looked_at() {
        let files = tempfile::tempdir().unwrap();
        let ca = files.path().join("ca.pem");
        let made = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        std::fs::write(&ca, made.cert.pem()).unwrap();
        let trust = |mode: &str| {
            let query = format!("?sslmode={mode}&sslrootcert={}", ca.display());
            match wanted(&query).1.trust().unwrap() {
                Trust::Anybody => None,
                Trust::Known { is_name_checked, .. } => Some(is_name_checked),
            }
        };
        assert_eq!(trust("disable"), None);
        assert_eq!(trust("prefer"), Some(false));
        assert_eq!(trust("require"), Some(false));
        assert_eq!(trust("verify-ca"), Some(false));
        assert_eq!(trust("verify-full"), Some(true));
        assert!(matches!(wanted("?sslmode=require").1.trust(), Ok(Trust::Anybody)));
    }
}
