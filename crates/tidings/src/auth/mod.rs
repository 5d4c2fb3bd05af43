//! Who may do what: credentials in, grants out.
//!
//! The rules: every credential passes through [`Authenticator::authenticate`], and every question
//! about a topic through a [`Grant`]. A credential that is not valid is a problem, never a lesser
//! grant. No message, log line or `Debug` text holds any part of a secret or token.
//!
//! Revocation compares [`Grant::tenant`], [`Grant::subject`] and [`Grant::token_id`]. Cookies and
//! tickets are other ways to carry a token or a [`GrantClaims`], and end here too.

mod api_key;
mod grant;
mod issuer;
pub mod jwt;
mod key;
mod key_set;
mod known;
mod policy;
mod secret;
mod template;

#[cfg(test)]
mod hostile_tokens;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod key_set_tests;

use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use api_key::{ApiKey, ApiKeyError, ApiKeySettings, ApiKeyStatus, PREFIX as API_KEY_PREFIX};
pub use grant::{Access, Grant, GrantClaims};
pub use issuer::{Connect, IssuerSettings};
pub use jwt::{JwtSettings, SigningKey};
pub use key::{Algorithm, JwtKeySettings};
pub use key_set::{KeySetStatus, KeySetTimes, KeySource, KeySourceError};
pub use policy::{Condition, Policy, Rule, RuleError, RuleSettings};
pub use secret::Secret;

use crate::{
    clock::Clock,
    error::{ErrorCode, Problem},
    metrics::Metrics,
    model::{
        Tenant, Timestamp,
        limits::{KEY_SET_ASKED_EVERY, TOKEN_NAME_BYTES_MAX},
    },
};
use api_key::KeyRing;
use grant::Parts;
use issuer::{InForce, Refused};
use jwt::TokenVerifier;
use key_set::KeySet;
use policy::Caller;

/// Which credentials are accepted and what they allow.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSettings {
    /// The tenant of tokens without a `tenant` claim, and of API keys without a `tenant`.
    pub default_tenant: String,
    /// How tokens are verified.
    pub jwt: JwtSettings,
    /// How often the key sets of issuers are read, and how long they last.
    #[serde(skip)]
    pub key_sets: KeySetTimes,
    /// The API keys that are accepted.
    pub api_keys: Vec<ApiKeySettings>,
    /// The permission by which the holders of tokens may revoke credentials. Default: none may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocation_permission: Option<String>,
    /// What the holders of tokens may do, by topic. What no rule allows is denied.
    pub access: Policy,
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            default_tenant: "default".to_owned(),
            jwt: JwtSettings::default(),
            key_sets: KeySetTimes::default(),
            api_keys: Vec::new(),
            revocation_permission: None,
            access: Policy::default(),
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct SettingsError {
    /// Which one, by its path in the settings that were checked: `jwt.keys[0].secret`.
    pub path: String,
    /// What is wrong and what is possible; without the value.
    pub reason: String,
}

impl SettingsError {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }
}

/// Turns credentials into grants.
///
/// ```
/// use tidings::{
///     auth::{Access, ApiKey, AuthSettings, Authenticator},
///     model::{Timestamp, Topic},
/// };
///
/// let (key, mut entry) = ApiKey::generate();
/// entry.write = vec!["build/*".to_owned()];
/// let settings = AuthSettings { api_keys: vec![entry], ..AuthSettings::default() };
/// let authenticator = Authenticator::new(&settings)?;
///
/// let now = Timestamp::parse("2026-11-21T07:00:00Z").expect("is RFC 3339");
/// let grant = authenticator.authenticate(key.expose(), now)?;
/// assert_eq!(grant.write(&Topic::parse("build/1")?), Access::Allowed);
/// assert_eq!(grant.write(&Topic::parse("user/42")?), Access::Denied);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Authenticator {
    tokens: TokenVerifier,
    api_keys: KeyRing,
    policy: Policy,
    revocation_permission: Option<String>,
}

impl Authenticator {
    /// Checks the settings, keys included, so that a mistake shows at start and not at the first
    /// request.
    ///
    /// # Errors
    /// [`SettingsError`] names the first setting that cannot be. An issuer with an address needs
    /// [`Self::with_key_sources`].
    pub fn new(settings: &AuthSettings) -> Result<Self, SettingsError> {
        Self::with_key_sources(settings, &|_| {
            Err("needs an HTTP client, which this program does not have".to_owned())
        })
    }

    /// The same for issuers whose key sets have an address: `connect` makes the source of one.
    ///
    /// # Errors
    /// [`SettingsError`] names the first setting that cannot be; what `connect` says against an
    /// issuer is said of its `jwks_url`.
    pub fn with_key_sources(
        settings: &AuthSettings,
        connect: Connect<'_>,
    ) -> Result<Self, SettingsError> {
        let default_tenant = Tenant::parse(&settings.default_tenant)
            .map_err(|error| SettingsError::new("default_tenant", error.to_string()))?;
        if default_tenant.is_reserved() {
            return Err(SettingsError::new("default_tenant", "must not be the hub's own"));
        }
        let times = settings.key_sets;
        Ok(Self {
            tokens: TokenVerifier::new(&settings.jwt, &default_tenant, times, connect)?,
            api_keys: KeyRing::new(&settings.api_keys, &default_tenant)?,
            policy: settings.access.clone(),
            revocation_permission: settings.revocation_permission.clone(),
        })
    }

    /// What the credential allows; `bearer` is what follows `Bearer ` in the header. Keys that are
    /// not at hand are not waited for; [`Self::authenticate_fresh`] does.
    ///
    /// # Errors
    /// `credential_missing`, `credential_invalid` or `credential_expired`, and `unavailable` while
    /// the keys of a token's issuer cannot be read. The detail says what is wrong without repeating
    /// any of the credential. Whether a token has expired is only told of tokens that were valid.
    pub fn authenticate(&self, bearer: &str, now: Timestamp) -> Result<Grant, Problem> {
        self.try_authenticate(bearer, now).map_err(|refused| match refused {
            Refused::Problem(problem) | Refused::UnknownKey(_, problem) => problem,
        })
    }

    /// What the credential allows. If its key is not known yet, its issuer's keys are read anew,
    /// which [`Self::keep_keys`] must be running for.
    ///
    /// # Errors
    /// As [`Self::authenticate`].
    pub async fn authenticate_fresh(
        &self,
        bearer: &str,
        clock: &dyn Clock,
    ) -> Result<Grant, Problem> {
        match self.try_authenticate(bearer, clock.now()) {
            Ok(grant) => Ok(grant),
            Err(Refused::Problem(problem)) => Err(problem),
            Err(Refused::UnknownKey(set, problem)) => {
                if set.renewed().await {
                    self.authenticate(bearer, clock.now())
                } else {
                    Err(problem)
                }
            }
        }
    }

    /// Whether the key that a credential was verified with was taken away since. Keys that cannot be
    /// read any more were not.
    #[must_use]
    pub fn has_lost_key(&self, grant: &Grant) -> bool {
        matches!(self.has_key(grant), InForce::No(_))
    }

    /// Asks whether the key that a credential was verified with, here or on another node, is in
    /// force. If it is not known here, its issuer's keys are read anew, as for a token.
    ///
    /// # Errors
    /// `credential_revoked`, and `unavailable` while the keys of its issuer cannot be read.
    pub async fn check_key(&self, grant: &Grant) -> Result<(), Problem> {
        if let InForce::No(Some(set)) | InForce::Unknown(set) = self.has_key(grant) {
            set.renewed().await;
        }
        match self.has_key(grant) {
            InForce::Yes => Ok(()),
            InForce::No(_) => {
                let detail =
                    "the key that the credential was verified with was taken away; sign in anew";
                Err(Problem::new(ErrorCode::CredentialRevoked, detail))
            }
            InForce::Unknown(_) => {
                let detail = "the keys of the credential's issuer could not be read; come back";
                Err(Problem::new(ErrorCode::Unavailable, detail).after(KEY_SET_ASKED_EVERY))
            }
        }
    }

    /// Keeps the key sets of issuers up to date, for ever. [`Hub::router`](crate::Hub::router) runs
    /// it; who uses the authenticator without the hub's router runs it himself.
    pub async fn keep_keys(&self, metrics: &Metrics) {
        self.keep_keys_telling(metrics, &|| {}).await;
    }

    /// The same; `lost` is called whenever keys are in force no more.
    pub(crate) async fn keep_keys_telling(&self, metrics: &Metrics, lost: &(dyn Fn() + Sync)) {
        join_all(self.tokens.key_sets().map(|set| set.keep(metrics, lost))).await;
    }

    /// How the key sets of issuers are doing.
    #[must_use]
    pub fn key_sets(&self) -> Vec<KeySetStatus> {
        self.tokens.key_sets().map(KeySet::status).collect()
    }

    /// The API keys, and when each was used last.
    #[must_use]
    pub fn api_keys(&self) -> Vec<ApiKeyStatus> {
        self.api_keys.status()
    }

    fn try_authenticate(&self, bearer: &str, now: Timestamp) -> Result<Grant, Refused<'_>> {
        if bearer.is_empty() {
            let detail = "send `Authorization: Bearer` with an API key or a token";
            return Err(Problem::new(ErrorCode::CredentialMissing, detail).into());
        }
        if bearer.starts_with(API_KEY_PREFIX) {
            return Ok(self.api_keys.authenticate(bearer, now)?);
        }
        let claims = self.tokens.verify(bearer, now)?;
        let (mut scopes, bindings) = self.policy.apply(&Caller {
            tenant: &claims.tenant,
            subject: claims.subject.as_deref(),
            roles: &claims.roles,
            permissions: &claims.permissions,
            claims: &claims.all,
        })?;
        scopes.extend(claims.scopes);
        Ok(Grant::new(Parts {
            tenant: claims.tenant,
            credential: format!("jwt:{}", claims.name).into(),
            subject: claims.subject.map(Into::into),
            token_id: claims.token_id.map(Into::into),
            expires_at: Some(claims.expires_at),
            issued_at: claims.issued_at,
            teams: claims.teams,
            revokes: self
                .revocation_permission
                .as_ref()
                .is_some_and(|permission| claims.permissions.contains(permission)),
            scopes,
            bindings,
            key: Some(claims.key),
        }))
    }

    fn has_key(&self, grant: &Grant) -> InForce<'_> {
        match (grant.key(), grant.credential().strip_prefix("key:")) {
            (None, _) => InForce::Yes,
            (Some(key), None) => self.tokens.has(key),
            (Some(key), Some(id)) if self.api_keys.has(id, key) => InForce::Yes,
            (Some(_), Some(_)) => InForce::No(None),
        }
    }
}

/// The credential is not valid, for this reason.
fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::CredentialInvalid, detail)
}

/// Whether the text can name somebody in a log line.
fn is_audit_name(text: &str) -> bool {
    (1..=TOKEN_NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}
