//! Issuers of tokens: whose keys, for which audience.
//!
//! The rules: a token is tried with the keys of one issuer only, the one that it says it is from, out
//! of those that the configuration names; so an issuer can sign for itself and for nobody else. What
//! the token says is believed after its signature was verified, and not before.

use std::{path::PathBuf, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    SettingsError, invalid,
    key::{Algorithm, JwtKeySettings, Key},
    key_set::{FileSource, KeySet, KeySetTimes, KeySource},
};
use crate::{
    error::{ErrorCode, Problem},
    model::{
        Tenant,
        limits::{JWT_KEYS_MAX, KEY_SET_ASKED_EVERY},
    },
};

/// Somebody who signs tokens, and with what.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuerSettings {
    /// What the claim `iss` of its tokens is, exactly: `https://id.example.com`.
    pub issuer: String,
    /// The claim `aud` must have one of these. Needed with a key set: an identity provider signs
    /// tokens for other applications with the same keys.
    #[serde(default)]
    pub audience: Vec<String>,
    /// The tenants that its tokens may be for. With exactly one, tokens without a claim `tenant` are
    /// for that one. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<String>,
    /// Address of its key set: `https://id.example.com/.well-known/jwks.json`. Read at start, every
    /// `auth.key_sets.refresh`, and when a token has a key that is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// File of its key set, in place of `jwks_url`; read as often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub jwks_file: Option<PathBuf>,
    /// Whether `jwks_url` may lead to loopback and private networks, and be `http` there. Addresses
    /// are looked at when they are connected to, not when the name is read.
    #[serde(default)]
    pub jwks_private_network: bool,
    /// File of certificates, PEM, that the address of `jwks_url` may be signed with, beside those
    /// that this machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub jwks_ca: Option<PathBuf>,
    /// What the keys of the set may be used with. A key that names its algorithm is used with that
    /// one, an RSA key that names none with the first RSA algorithm of this list. Shared secrets
    /// (`HS256`, …) cannot be in a key set.
    #[serde(default = "public_algorithms")]
    pub algorithms: Vec<Algorithm>,
    /// Keys that are written out, beside the key set or without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<JwtKeySettings>,
}

impl Default for IssuerSettings {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            audience: Vec::new(),
            tenants: Vec::new(),
            jwks_url: None,
            jwks_file: None,
            jwks_private_network: false,
            jwks_ca: None,
            algorithms: public_algorithms(),
            keys: Vec::new(),
        }
    }
}

fn public_algorithms() -> Vec<Algorithm> {
    Algorithm::ALL.iter().copied().filter(|one| !one.is_shared_secret()).collect()
}

/// Makes the source of an issuer that has an address.
pub type Connect<'a> = &'a dyn Fn(&IssuerSettings) -> Result<Arc<dyn KeySource>, String>;

/// An issuer's keys.
#[derive(Debug)]
pub(super) struct Issuer {
    /// What its tokens say; `None`: anything.
    pub(super) name: Option<String>,
    pub(super) audience: Vec<String>,
    /// Whom its tokens may be for; empty: anybody.
    tenants: Vec<Tenant>,
    keys: Vec<Key>,
    set: Option<KeySet>,
}

/// Whether a key is still in force.
#[derive(Debug)]
pub(super) enum InForce<'a> {
    Yes,
    /// It is not among the keys of its issuer, as far as they were read.
    No(Option<&'a KeySet>),
    /// Its issuer's keys were never read, or too long ago.
    Unknown(&'a KeySet),
}

/// Why a token was not accepted.
pub(super) enum Refused<'a> {
    /// For good.
    Problem(Problem),
    /// Its key is not among those that were read; reading them anew may help.
    UnknownKey(&'a KeySet, Problem),
}

impl From<Problem> for Refused<'_> {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// What of a token its signature is checked with.
#[derive(Debug)]
pub(super) struct Signed<'a> {
    pub(super) algorithm: &'a str,
    pub(super) kid: Option<&'a str>,
    pub(super) message: &'a [u8],
    pub(super) signature: Vec<u8>,
}

impl Issuer {
    /// One without a key set; an error says which field and why.
    pub(super) fn of_keys(
        name: Option<String>,
        audience: Vec<String>,
        keys: &[JwtKeySettings],
    ) -> Result<Self, (String, String)> {
        if keys.len() > JWT_KEYS_MAX {
            return Err(("keys".to_owned(), format!("must be at most {JWT_KEYS_MAX} keys")));
        }
        let mut read = Vec::with_capacity(keys.len());
        for (index, key) in keys.iter().enumerate() {
            let refused = |(field, reason)| (format!("keys[{index}].{field}"), reason);
            read.push(Key::new(key).map_err(refused)?);
        }
        Ok(Self { name, audience, tenants: Vec::new(), keys: read, set: None })
    }

    pub(super) fn new(
        settings: &IssuerSettings,
        times: KeySetTimes,
        connect: Connect<'_>,
    ) -> Result<Self, (String, String)> {
        let at = |field: &str, reason: &str| (field.to_owned(), reason.to_owned());
        if settings.issuer.is_empty() {
            return Err(at("issuer", "must not be empty"));
        }
        let name = Some(settings.issuer.clone());
        let mut issuer = Self::of_keys(name, settings.audience.clone(), &settings.keys)?;
        for (index, text) in settings.tenants.iter().enumerate() {
            let tenant = Tenant::parse(text).ok().filter(|tenant| !tenant.is_reserved());
            let refused = || at(&format!("tenants[{index}]"), "must be one segment");
            issuer.tenants.push(tenant.ok_or_else(refused)?);
        }
        let source: Arc<dyn KeySource> = match (&settings.jwks_url, &settings.jwks_file) {
            (Some(_), Some(_)) => return Err(at("jwks_file", "and `jwks_url` exclude each other")),
            (None, None) if settings.keys.is_empty() => {
                return Err(at("keys", "or `jwks_url` or `jwks_file` is needed"));
            }
            (None, None) => return Ok(issuer),
            (Some(_), None) => {
                connect(settings).map_err(|reason| ("jwks_url".to_owned(), reason))?
            }
            (None, Some(path)) => Arc::new(FileSource(path.clone())),
        };
        if settings.audience.is_empty() {
            let reason = "must name at least one: with the same keys the issuer signs tokens for \
                          other applications";
            return Err(at("audience", reason));
        }
        if settings.algorithms.iter().any(|one| one.is_shared_secret()) {
            return Err(at("algorithms", "must not have shared secrets (HS256, HS384, HS512)"));
        }
        if settings.algorithms.is_empty() {
            return Err(at("algorithms", "must not be empty"));
        }
        let set = KeySet::new(&settings.issuer, &settings.algorithms, source, times);
        if let Some(path) = &settings.jwks_file {
            // A file is there or it is not: that shows at start.
            let read = FileSource(path.clone()).read_now().and_then(|text| set.put(&text));
            read.map_err(|error| ("jwks_file".to_owned(), error.to_string()))?;
        }
        Ok(Self { set: Some(set), ..issuer })
    }

    pub(super) fn key_set(&self) -> Option<&KeySet> {
        self.set.as_ref()
    }

    /// Whom a token is for that names this tenant.
    pub(super) fn tenant(&self, said: Option<Tenant>, default: &Tenant) -> Result<Tenant, Problem> {
        let only = || match self.tenants.as_slice() {
            [one] => one.clone(),
            _ => default.clone(),
        };
        let tenant = said.unwrap_or_else(only);
        if tenant.is_reserved() {
            return Err(invalid("token's tenant is the hub's own"));
        }
        if !self.tenants.is_empty() && !self.tenants.contains(&tenant) {
            return Err(invalid("token's issuer may not speak for this tenant"));
        }
        Ok(tenant)
    }

    /// The fingerprint of the key that signed it.
    pub(super) fn verify(&self, signed: &Signed<'_>) -> Result<Box<str>, Refused<'_>> {
        let unsigned = || invalid("token is not signed with a key of this hub");
        if let Some(key) = signer(&self.keys, signed) {
            return Ok(key.fingerprint().into());
        }
        let Some(set) = &self.set else { return Err(unsigned().into()) };
        let Some(keys) = set.keys() else {
            let detail = "the keys of the token's issuer could not be read; come back";
            let problem = Problem::new(ErrorCode::Unavailable, detail).after(KEY_SET_ASKED_EVERY);
            return Err(Refused::UnknownKey(set, problem));
        };
        if let Some(key) = signer(&keys, signed) {
            return Ok(key.fingerprint().into());
        }
        // A token that names a key which is known has a wrong signature, and reading does not help.
        let known = |kid| self.keys.iter().chain(keys.iter()).any(|key| key.kid() == Some(kid));
        if signed.kid.is_some_and(known) {
            return Err(unsigned().into());
        }
        Err(Refused::UnknownKey(set, unsigned()))
    }

    /// Whether a key that verified something is still one of this issuer.
    pub(super) fn has(&self, fingerprint: &str) -> InForce<'_> {
        let among = |keys: &[Key]| keys.iter().any(|key| key.fingerprint() == fingerprint);
        match (among(&self.keys), &self.set) {
            (true, _) => InForce::Yes,
            (false, None) => InForce::No(None),
            (false, Some(set)) => match set.keys() {
                Some(keys) if among(&keys) => InForce::Yes,
                Some(_) => InForce::No(Some(set)),
                None => InForce::Unknown(set),
            },
        }
    }
}

/// At most so many signatures are checked: a key set is larger, and its issuer names its keys.
fn signer<'a>(keys: &'a [Key], signed: &Signed<'_>) -> Option<&'a Key> {
    keys.iter()
        .filter(|key| key.suits(signed.algorithm, signed.kid))
        .take(JWT_KEYS_MAX)
        .find(|key| key.verifies(signed.message, &signed.signature))
}

/// Reads all issuers of the settings; an error says which setting and why.
pub(super) fn issuers(
    settings: &[IssuerSettings],
    times: KeySetTimes,
    connect: Connect<'_>,
) -> Result<Vec<Issuer>, SettingsError> {
    let mut issuers: Vec<Issuer> = Vec::with_capacity(settings.len());
    for (index, one) in settings.iter().enumerate() {
        let path = |field: &str| format!("jwt.issuers[{index}].{field}");
        if settings.iter().take(index).any(|earlier| earlier.issuer == one.issuer) {
            return Err(SettingsError::new(path("issuer"), "is that of an earlier issuer"));
        }
        let issuer = Issuer::new(one, times, connect)
            .map_err(|(field, reason)| SettingsError::new(path(&field), reason))?;
        issuers.push(issuer);
    }
    Ok(issuers)
}
