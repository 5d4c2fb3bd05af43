//! JSON Web Tokens (RFC 7519): verifying, minting, and looking into them.
//!
//! The rules: each key is bound to one algorithm, and the token's header only has to agree with it;
//! it never chooses an algorithm, nor a key by anything but `kid`. Before the signature is verified,
//! of the claims only `iss` is looked at, to choose among the issuers that are configured. Time is
//! what the caller says it is.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, crypto::rust_crypto::DEFAULT_PROVIDER as CRYPTO};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Algorithm, JwtKeySettings, KeySetTimes, Secret, SettingsError,
    grant::{KeyName, Scope},
    invalid, is_audit_name,
    issuer::{Connect, InForce, Issuer, IssuerSettings, Refused, Signed, issuers},
    key::check_secret,
    key_set::KeySet,
};
use crate::{
    error::{ErrorCode, Problem},
    model::{
        JsonText, Pattern, Tenant, Timestamp,
        limits::{
            GRANT_ELEMENTS_MAX, JWT_ISSUERS_MAX, TOKEN_BYTES_MAX, TOKEN_LEEWAY,
            TOKEN_NAME_BYTES_MAX, TOKEN_PATTERN_BYTES_MAX,
        },
    },
};

/// The last second that a timestamp can write, in the year 9999.
const SECONDS_MAX: f64 = 253_402_207_200.0;

/// How tokens are verified.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JwtSettings {
    /// The keys that tokens may be signed with; several while one replaces another. Without any,
    /// no token is accepted.
    pub keys: Vec<JwtKeySettings>,
    /// What the claim `iss` must be. Default: not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The claim `aud` must have one of these. Default: not checked.
    pub audience: Vec<String>,
    /// Identity providers and others who sign tokens, each with keys and an audience of its own: a
    /// token whose claim `iss` is one of theirs is tried with their keys and no others.
    pub issuers: Vec<IssuerSettings>,
}

/// What a verified token says.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) tenant: Tenant,
    pub(super) subject: Option<String>,
    pub(super) token_id: Option<String>,
    /// `jti`, else `sub`.
    pub(super) name: String,
    /// `exp` and the leeway.
    pub(super) expires_at: Timestamp,
    pub(super) issued_at: Option<Timestamp>,
    pub(super) teams: Vec<Box<str>>,
    pub(super) roles: Vec<String>,
    pub(super) permissions: Vec<String>,
    /// What the claim `tidings` grants.
    pub(super) scopes: Vec<Scope>,
    pub(super) all: Map<String, Value>,
    pub(super) key: KeyName,
}

/// Verifies tokens with the keys of their issuers.
#[derive(Debug)]
pub(super) struct TokenVerifier {
    default_tenant: Tenant,
    /// Whoever is not named among the issuers.
    other: Issuer,
    issuers: Vec<Issuer>,
}

impl TokenVerifier {
    pub(super) fn new(
        settings: &JwtSettings,
        default_tenant: &Tenant,
        times: KeySetTimes,
        connect: Connect<'_>,
    ) -> Result<Self, SettingsError> {
        if settings.issuers.len() > JWT_ISSUERS_MAX {
            let reason = format!("must be at most {JWT_ISSUERS_MAX} issuers");
            return Err(SettingsError::new("jwt.issuers", reason));
        }
        let (name, audience) = (settings.issuer.clone(), settings.audience.clone());
        let other = Issuer::of_keys(name, audience, &settings.keys)
            .map_err(|(field, reason)| SettingsError::new(format!("jwt.{field}"), reason))?;
        let issuers = issuers(&settings.issuers, times, connect)?;
        Ok(Self { default_tenant: default_tenant.clone(), other, issuers })
    }

    pub(super) fn key_sets(&self) -> impl Iterator<Item = &KeySet> {
        self.issuers.iter().filter_map(Issuer::key_set)
    }

    /// Whose keys the token is tried with. What it says is not believed here: another's keys did
    /// not sign it.
    fn issuer(&self, claims: Option<&Map<String, Value>>) -> &Issuer {
        let said = claims.and_then(|claims| claims.get("iss")).and_then(Value::as_str);
        let named = |one: &&Issuer| said.is_some() && one.name.as_deref() == said;
        self.issuers.iter().find(named).unwrap_or(&self.other)
    }

    /// Whether the key of a token that was verified is still in force.
    pub(super) fn has(&self, key: &KeyName) -> InForce<'_> {
        let of = |name: &str| self.issuers.iter().find(|one| one.name.as_deref() == Some(name));
        let issuer = key.issuer.as_deref().map_or(Some(&self.other), of);
        issuer.map_or(InForce::No(None), |issuer| issuer.has(&key.fingerprint))
    }

    /// Checks signature, then time, then the other claims.
    pub(super) fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, Refused<'_>> {
        let parts = TokenParts::split(token)?;
        let header = object(parts.header, "header")?;
        let claims = object(parts.claims, "claims");
        let issuer = self.issuer(claims.as_ref().ok());
        let fingerprint = issuer.verify(&signed(&header, &parts)?)?;
        let is_other = std::ptr::eq(issuer, &raw const self.other);
        let named = issuer.name.as_deref().filter(|_| !is_other);
        let key = KeyName { issuer: named.map(Box::from), fingerprint };
        let all = claims?;
        let expires_at = check_time(&all, now)?;
        let issued_at = numeric_date(&all, "iat")?;
        check_addressees(issuer, &all)?;
        let (subject, token_id) = (name(&all, "sub")?, name(&all, "jti")?);
        let tenant = match text(&all, "tenant")? {
            Some(text) => Some(Tenant::parse(text).map_err(|_| {
                invalid("token's claim `tenant` is not one segment of A-Z a-z 0-9 . _ ~ : @ -")
            })?),
            None => None,
        };
        Ok(Claims {
            tenant: issuer.tenant(tenant, &self.default_tenant)?,
            name: token_id
                .or(subject)
                .ok_or_else(|| invalid("token has neither a claim `sub` nor a claim `jti`"))?
                .to_owned(),
            subject: subject.map(str::to_owned),
            token_id: token_id.map(str::to_owned),
            expires_at,
            issued_at,
            teams: teams(&all),
            roles: texts(&all, "roles")?,
            permissions: texts(&all, "permissions")?,
            scopes: explicit_scopes(&all)?,
            all,
            key,
        })
    }
}

/// What the signature is checked with, as far as the header is acceptable.
fn signed<'a>(
    header: &'a Map<String, Value>,
    parts: &TokenParts<'a>,
) -> Result<Signed<'a>, Problem> {
    if header.contains_key("crit") {
        // RFC 7515 §4.1.11: what is critical and not understood makes the token invalid, and
        // no extension is understood here. `jku`, `x5u`, `jwk` and all else is ignored.
        return Err(invalid("token's header has `crit`, which is not supported"));
    }
    let wrong = || invalid("token's header must have `alg`, and `kid` as text if at all");
    let algorithm = header.get("alg").and_then(Value::as_str).ok_or_else(wrong)?;
    let kid = match header.get("kid") {
        None => None,
        Some(kid) => Some(kid.as_str().filter(|kid| is_audit_name(kid)).ok_or_else(wrong)?),
    };
    Ok(Signed { algorithm, kid, message: parts.signed.as_bytes(), signature: parts.signature()? })
}

fn check_addressees(of: &Issuer, claims: &Map<String, Value>) -> Result<(), Problem> {
    let issuer = text(claims, "iss")?;
    if of.name.is_some() && issuer != of.name.as_deref() {
        return Err(invalid("token's claim `iss` is not the configured issuer"));
    }
    let audience = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        _ => texts(claims, "aud")?,
    };
    if !of.audience.is_empty() && !audience.iter().any(|one| of.audience.contains(one)) {
        return Err(invalid("token's claim `aud` has none of the configured audiences"));
    }
    Ok(())
}

/// A token in its three parts.
struct TokenParts<'a> {
    header: &'a str,
    claims: &'a str,
    signature: &'a str,
    /// Header, dot, claims: what the signature is of.
    signed: &'a str,
}

impl<'a> TokenParts<'a> {
    fn split(token: &'a str) -> Result<Self, Problem> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid(format!("token is longer than {TOKEN_BYTES_MAX} bytes")));
        }
        let shape = || invalid("credential is neither an API key nor a signed token (a.b.c)");
        let (signed, signature) = token.rsplit_once('.').ok_or_else(shape)?;
        let (header, claims) = signed.split_once('.').ok_or_else(shape)?;
        if claims.contains('.') || header.is_empty() || claims.is_empty() || signature.is_empty() {
            return Err(shape());
        }
        Ok(Self { header, claims, signature, signed })
    }

    fn signature(&self) -> Result<Vec<u8>, Problem> {
        URL_SAFE_NO_PAD
            .decode(self.signature)
            .map_err(|_| invalid("token's signature is no base64url"))
    }
}

/// Reads a part of a token: strict base64url, UTF-8, strict JSON without duplicate keys.
fn object(part: &str, what: &str) -> Result<Map<String, Value>, Problem> {
    let wrong = || invalid(format!("token's {what} part is not base64url of a strict JSON object"));
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| wrong())?;
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    let json = JsonText::parse(&text).map_err(|_| wrong())?;
    serde_json::from_str(json.as_str()).map_err(|_| wrong())
}

/// When the token ends, the leeway included, if it is valid now.
fn check_time(claims: &Map<String, Value>, now: Timestamp) -> Result<Timestamp, Problem> {
    let expires_at = numeric_date(claims, "exp")?
        .ok_or_else(|| invalid("token has no claim `exp`"))?
        .plus(TOKEN_LEEWAY);
    let not_before = numeric_date(claims, "nbf")?;
    numeric_date(claims, "iat")?;
    if now >= expires_at {
        return Err(Problem::new(ErrorCode::CredentialExpired, "token has expired"));
    }
    if not_before.is_some_and(|start| now.plus(TOKEN_LEEWAY) < start) {
        return Err(invalid("token is not valid yet"));
    }
    Ok(expires_at)
}

/// A NumericDate (RFC 7519 §2): seconds since 1970, fractions allowed.
fn numeric_date(claims: &Map<String, Value>, name: &str) -> Result<Option<Timestamp>, Problem> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = value.as_f64().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
    let since = seconds.and_then(|seconds| std::time::Duration::try_from_secs_f64(seconds).ok());
    match since {
        Some(since) => Ok(Some(Timestamp::default().plus(since))),
        None => {
            Err(invalid(format!("token's claim `{name}` is not a number of seconds since 1970")))
        }
    }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Problem> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(format!("token's claim `{name}` must be a string"))),
    }
}

/// A text that can stand in a log line.
fn name<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Problem> {
    let text = text(claims, name)?;
    if text.is_some_and(|text| !is_audit_name(text)) {
        return Err(invalid(format!(
            "token's claim `{name}` must be 1 to {TOKEN_NAME_BYTES_MAX} bytes without control characters"
        )));
    }
    Ok(text)
}

fn texts(claims: &Map<String, Value>, name: &str) -> Result<Vec<String>, Problem> {
    let Some(value) = claims.get(name) else { return Ok(Vec::new()) };
    let list = value.as_array().and_then(|list| {
        list.iter().map(|element| element.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    list.ok_or_else(|| invalid(format!("token's claim `{name}` must be a list of strings")))
}

/// The teams that it names, to be compared with revocations. What access rules make of the claim is
/// their affair, so another type of it is no reason to refuse the token.
fn teams(claims: &Map<String, Value>) -> Vec<Box<str>> {
    match claims.get("teams") {
        Some(Value::String(one)) => vec![one.as_str().into()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(Box::from).collect(),
        _ => Vec::new(),
    }
}

/// What `tidings: {read: […], write: […]}` grants.
fn explicit_scopes(claims: &Map<String, Value>) -> Result<Vec<Scope>, Problem> {
    let Some(value) = claims.get("tidings") else { return Ok(Vec::new()) };
    let wrong = || {
        invalid(format!(
            "token's claim `tidings` must have lists `read` and `write` of patterns, at most \
             {GRANT_ELEMENTS_MAX} of at most {TOKEN_PATTERN_BYTES_MAX} bytes"
        ))
    };
    let lists = value.as_object().ok_or_else(wrong)?;
    // A misspelled member would otherwise be an empty grant.
    if lists.keys().any(|name| name != "read" && name != "write") {
        return Err(wrong());
    }
    let (read, write) = (texts(lists, "read"), texts(lists, "write"));
    let (read, write) = (read.map_err(|_| wrong())?, write.map_err(|_| wrong())?);
    let texts = read.iter().chain(&write);
    if read.len() + write.len() > GRANT_ELEMENTS_MAX
        || texts.clone().any(|text| text.len() > TOKEN_PATTERN_BYTES_MAX)
    {
        return Err(wrong());
    }
    let patterns: Result<Vec<Pattern>, _> = texts.map(|text| Pattern::parse(text)).collect();
    let patterns = patterns.map_err(|_| wrong())?;
    let (read, write) = patterns.split_at(read.len());
    Ok(read.iter().map(Scope::reads).chain(write.iter().map(Scope::writes)).collect())
}

/// A key to sign tokens with.
#[derive(Debug, Clone)]
pub struct SigningKey {
    algorithm: Algorithm,
    kid: Option<String>,
    /// Its `Debug` shows no secret.
    encoding: EncodingKey,
}

/// Why a token was not minted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MintError {
    /// The key is no key for the algorithm, or too short.
    #[error("signing key {0}")]
    Key(String),
    /// The token would be larger than the hub accepts.
    #[error("token would be {0} bytes, at most {TOKEN_BYTES_MAX} are accepted")]
    TooLarge(usize),
}

impl SigningKey {
    /// Reads a key: for HS256, HS384 and HS512 the shared secret, else a private key as PEM
    /// (PKCS #8).
    ///
    /// # Errors
    /// [`MintError::Key`] says what is wrong with it.
    pub fn new(algorithm: Algorithm, kid: Option<&str>, key: &Secret) -> Result<Self, MintError> {
        let pem = key.expose().as_bytes();
        let read = match algorithm {
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => {
                let secret =
                    check_secret(key.expose()).map_err(|(_, reason)| MintError::Key(reason))?;
                Ok(EncodingKey::from_secret(secret))
            }
            Algorithm::Es256 | Algorithm::Es384 => EncodingKey::from_ec_pem(pem),
            Algorithm::EdDsa => EncodingKey::from_ed_pem(pem),
            _ => EncodingKey::from_rsa_pem(pem),
        };
        let encoding = read.map_err(|_| unusable_signer(algorithm))?;
        let key = Self { algorithm, kid: kid.map(str::to_owned), encoding };
        // Some libraries notice a wrong key only when it signs.
        key.sign("")?;
        Ok(key)
    }

    pub(super) fn sign(&self, message: &str) -> Result<String, MintError> {
        let unusable = || unusable_signer(self.algorithm);
        let signer = (CRYPTO.signer_factory)(&self.algorithm.theirs(), &self.encoding)
            .map_err(|_| unusable())?;
        let signature = signer.try_sign(message.as_bytes()).map_err(|_| unusable())?;
        Ok(URL_SAFE_NO_PAD.encode(signature))
    }
}

fn unusable_signer(algorithm: Algorithm) -> MintError {
    MintError::Key(format!("is not a private key for {algorithm} in PEM (PKCS #8)"))
}

/// Signs the claims as they are: the caller sets `exp`, `sub` and what else is needed.
///
/// # Errors
/// [`MintError`]: the token would be too large, or the key does not work.
pub fn mint(key: &SigningKey, claims: &Map<String, Value>) -> Result<String, MintError> {
    let mut header = Map::new();
    header.insert("alg".to_owned(), key.algorithm.as_str().into());
    header.insert("typ".to_owned(), "JWT".into());
    if let Some(kid) = &key.kid {
        header.insert("kid".to_owned(), kid.as_str().into());
    }
    let encode =
        |part: &Map<String, Value>| URL_SAFE_NO_PAD.encode(Value::Object(part.clone()).to_string());
    let signed = format!("{}.{}", encode(&header), encode(claims));
    let token = format!("{signed}.{}", key.sign(&signed)?);
    if token.len() > TOKEN_BYTES_MAX { Err(MintError::TooLarge(token.len())) } else { Ok(token) }
}

/// What a token claims, believed by nobody: its signature was not looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Unverified {
    /// The header: `alg`, `kid`, …
    pub header: Map<String, Value>,
    /// The claims: `sub`, `exp`, …
    pub claims: Map<String, Value>,
}

/// Shows what is in a token, without verifying it.
///
/// # Errors
/// `credential_invalid` if it is no token.
pub fn inspect(token: &str) -> Result<Unverified, Problem> {
    let parts = TokenParts::split(token)?;
    Ok(Unverified {
        header: object(parts.header, "header")?,
        claims: object(parts.claims, "claims")?,
    })
}
