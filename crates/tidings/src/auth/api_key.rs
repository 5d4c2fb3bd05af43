//! API keys: `tdk_<id>_<secret><checksum>`, for publishers and other services.
//!
//! The rule: the hub keeps only the SHA-256 of a secret. That suffices without salt or stretching,
//! because a secret is 256 random bits; the checksum tells a typo from a wrong key, and a secret
//! scanner a key from noise.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Secret, SettingsError,
    grant::{Grant, KeyName, Parts, Scope},
    invalid,
    template::Bindings,
};
use crate::{
    error::{ErrorCode, Problem},
    model::{Pattern, Tenant, Timestamp},
};

/// How every API key starts.
pub const PREFIX: &str = "tdk_";
/// Characters of the secret: 62^43 > 2^256.
const SECRET_CHARS: usize = 43;
/// Characters of the checksum: 62^6 > 2^32.
const CHECKSUM_CHARS: usize = 6;
/// Characters of the ids that are generated: unique among keys without looking.
const ID_CHARS: usize = 10;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// An API key that the hub accepts. It allows exactly its patterns; access rules do not apply to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKeySettings {
    /// The public part of the key, 8 to 12 letters and digits: `tdk_<id>_…`.
    pub id: String,
    /// SHA-256 of the key's secret part, 64 hex digits. `tidings key create` prints it.
    pub sha256: String,
    /// Whose topics it is for. Default: `default_tenant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Who acts with it: what `sub` is in a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Patterns of the topics that it may read: `["user/*"]`.
    #[serde(default)]
    pub read: Vec<String>,
    /// Patterns of the topics that it may write.
    #[serde(default)]
    pub write: Vec<String>,
    /// Whether its holder may revoke credentials (`POST /v1/revocations`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoke: bool,
    /// When it ends, RFC 3339 in quotes: `"2027-01-01T00:00:00Z"`. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// An API key in hand, of the right shape and with the right checksum.
#[derive(Clone)]
pub struct ApiKey<'a> {
    id: &'a str,
    secret: &'a str,
}

/// Why a text is no API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiKeyError {
    /// It does not look like one.
    #[error("API key is not of the form tdk_<id>_<secret>; it may be cut off")]
    Malformed,
    /// It looks like one and has a wrong character somewhere.
    #[error("API key is mistyped: its checksum does not match")]
    Checksum,
}

impl<'a> ApiKey<'a> {
    /// Reads a key.
    ///
    /// # Errors
    /// [`ApiKeyError`] tells a foreign text from a mistyped key.
    pub fn parse(text: &'a str) -> Result<Self, ApiKeyError> {
        let malformed = ApiKeyError::Malformed;
        let (id, tail) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).ok_or(malformed)?;
        let alphanumeric = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_id(id) || tail.len() != SECRET_CHARS + CHECKSUM_CHARS || !alphanumeric(tail) {
            return Err(malformed);
        }
        let (secret, sum) = tail.split_at_checked(SECRET_CHARS).ok_or(malformed)?;
        if checksum(id, secret) != sum {
            Err(ApiKeyError::Checksum)
        } else {
            Ok(Self { id, secret })
        }
    }

    /// The public part.
    #[must_use]
    pub const fn id(&self) -> &'a str {
        self.id
    }

    /// What the settings keep of the secret, in hex.
    #[must_use]
    pub fn sha256(&self) -> String {
        digest(self.secret).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl ApiKey<'static> {
    /// Makes a new key: the text to be shown once, and the entry for the settings, to which the
    /// caller adds tenant and patterns.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    #[must_use]
    pub fn generate() -> (Secret, ApiKeySettings) {
        let (id, secret) = (random(ID_CHARS), random(SECRET_CHARS));
        let key = ApiKey { id: &id, secret: &secret };
        let settings = ApiKeySettings {
            id: id.clone(),
            sha256: key.sha256(),
            tenant: None,
            subject: None,
            read: Vec::new(),
            write: Vec::new(),
            revoke: false,
            expires_at: None,
        };
        (Secret::new(format!("{PREFIX}{id}_{secret}{}", checksum(&id, &secret))), settings)
    }
}

impl fmt::Debug for ApiKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}_[secret]", self.id)
    }
}

/// The API keys that are accepted.
#[derive(Default)]
pub(super) struct KeyRing {
    keys: HashMap<String, Entry>,
}

struct Entry {
    sha256: [u8; 32],
    grant: Grant,
    /// Milliseconds since 1970; 0: not since this process began.
    last_used_ms: AtomicU64,
}

/// How an API key is being used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeyStatus {
    /// Its public part.
    pub id: String,
    /// Whose topics it is for.
    pub tenant: Tenant,
    /// Who acts with it.
    pub subject: Option<String>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was accepted last; `None`: not since this process began.
    pub last_used: Option<Timestamp>,
}

impl KeyRing {
    pub(super) fn new(
        settings: &[ApiKeySettings],
        default_tenant: &Tenant,
    ) -> Result<Self, SettingsError> {
        let mut ring = Self::default();
        for (index, key) in settings.iter().enumerate() {
            let entry = key.entry(default_tenant).map_err(|(field, reason)| {
                SettingsError::new(format!("api_keys[{index}].{field}"), reason)
            })?;
            if ring.keys.insert(key.id.clone(), entry).is_some() {
                let path = format!("api_keys[{index}].id");
                return Err(SettingsError::new(path, "is the id of an earlier key"));
            }
        }
        Ok(ring)
    }

    pub(super) fn authenticate(&self, text: &str, now: Timestamp) -> Result<Grant, Problem> {
        let key = ApiKey::parse(text).map_err(|error| invalid(error.to_string()))?;
        let entry = self.keys.get(key.id);
        // Also for an unknown id, so that both refusals take the same time.
        let expected = entry.map_or(&[0; 32], |entry| &entry.sha256);
        let equal = bool::from(digest(key.secret).ct_eq(expected));
        let Some(entry) = entry.filter(|_| equal) else {
            return Err(invalid("API key is not known here"));
        };
        if entry.grant.expires_at().is_some_and(|end| now >= end) {
            return Err(Problem::new(ErrorCode::CredentialExpired, "API key has expired"));
        }
        entry.last_used_ms.fetch_max(now.as_millis(), Ordering::Relaxed);
        Ok(entry.grant.clone())
    }

    /// Whether a key that was accepted earlier still is.
    pub(super) fn has(&self, id: &str, key: &KeyName) -> bool {
        self.keys.get(id).is_some_and(|entry| entry.grant.key() == Some(key))
    }

    /// The keys by id.
    pub(super) fn status(&self) -> Vec<ApiKeyStatus> {
        let status = |(id, entry): (&String, &Entry)| {
            let last_used_ms = entry.last_used_ms.load(Ordering::Relaxed);
            ApiKeyStatus {
                id: id.clone(),
                tenant: entry.grant.tenant().clone(),
                subject: entry.grant.subject().map(str::to_owned),
                expires_at: entry.grant.expires_at(),
                last_used: (last_used_ms > 0).then(|| Timestamp::from_millis(last_used_ms)),
            }
        };
        let mut all: Vec<ApiKeyStatus> = self.keys.iter().map(status).collect();
        all.sort_by(|one, other| one.id.cmp(&other.id));
        all
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

impl ApiKeySettings {
    /// Checks the entry; an error says which field and why.
    fn entry(&self, default_tenant: &Tenant) -> Result<Entry, (String, String)> {
        let at = |field: &str, reason: &str| (field.to_owned(), reason.to_owned());
        if !is_id(&self.id) {
            return Err(at("id", "must be 8 to 12 letters and digits"));
        }
        let sha256 =
            parse_hex(&self.sha256).ok_or_else(|| at("sha256", "must be 64 hex digits"))?;
        let tenant = match &self.tenant {
            Some(text) => Tenant::parse(text)
                .ok()
                .filter(|tenant| !tenant.is_reserved())
                .ok_or_else(|| at("tenant", "must be one segment and not the hub's own"))?,
            None => default_tenant.clone(),
        };
        if self.subject.as_deref().is_some_and(|text| !super::is_audit_name(text)) {
            return Err(at("subject", "must be 1 to 256 bytes without control characters"));
        }
        let expires_at = match &self.expires_at {
            Some(text) => Some(
                Timestamp::parse(text)
                    .ok_or_else(|| at("expires_at", "must be a time like 2027-01-01T00:00:00Z"))?,
            ),
            None => None,
        };
        let mut scopes = Vec::new();
        for (field, texts, scope) in [
            ("read", &self.read, Scope::reads as fn(&Pattern) -> Scope),
            ("write", &self.write, Scope::writes),
        ] {
            for (index, text) in texts.iter().enumerate() {
                let pattern = Pattern::parse(text)
                    .map_err(|error| at(&format!("{field}[{index}]"), &error.to_string()))?;
                scopes.push(scope(&pattern));
            }
        }
        let grant = Grant::new(Parts {
            tenant,
            subject: self.subject.as_deref().map(Box::from),
            credential: format!("key:{}", self.id).into(),
            token_id: None,
            expires_at,
            issued_at: None,
            teams: Vec::new(),
            revokes: self.revoke,
            scopes,
            bindings: Bindings::new(),
            key: Some(KeyName {
                issuer: None,
                fingerprint: self.sha256.to_ascii_lowercase().into(),
            }),
        });
        Ok(Entry { sha256, grant, last_used_ms: AtomicU64::new(0) })
    }
}

fn is_id(text: &str) -> bool {
    (8..=12).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn checksum(id: &str, secret: &str) -> String {
    let parts = [PREFIX, id, "_", secret];
    let mut rest = parts.iter().fold(0, |sum, part| crc32c::crc32c_append(sum, part.as_bytes()));
    let mut text = [b'0'; CHECKSUM_CHARS];
    for place in text.iter_mut().rev() {
        *place = digit(rest % 62);
        rest /= 62;
    }
    text.iter().map(|byte| char::from(*byte)).collect()
}

fn digit(value: u32) -> u8 {
    let index = usize::try_from(value).unwrap_or(usize::MAX);
    *DIGITS.get(index).expect("callers reduce modulo 62")
}

/// Letters and digits, each equally likely.
fn random(chars: usize) -> String {
    let mut text = String::with_capacity(chars);
    let mut bytes = [0; 64];
    while text.len() < chars {
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        // The last 256 mod 62 values would favour the first digits.
        let fair = bytes.iter().filter(|byte| **byte < 248).take(chars - text.len());
        text.extend(fair.map(|byte| char::from(digit(u32::from(*byte % 62)))));
    }
    text
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn ring(settings: &[ApiKeySettings]) -> Result<KeyRing, SettingsError> {
        KeyRing::new(settings, &Tenant::parse("default").unwrap())
    }

    #[test]
    fn a_generated_key_opens_what_its_entry_says_and_nothing_else() {
        let (text, mut settings) = ApiKey::generate();
        settings.tenant = Some("acme".to_owned());
        settings.subject = Some("worker".to_owned());
        settings.write = vec!["user/*".to_owned()];
        settings.expires_at = Some("2027-01-15T08:00:00.001Z".to_owned());
        let ring = ring(&[settings.clone()]).unwrap();
        let grant = ring.authenticate(text.expose(), NOW).unwrap();
        assert_eq!(grant.tenant().as_str(), "acme");
        assert_eq!(grant.subject(), Some("worker"));
        assert_eq!(grant.credential(), format!("key:{}", settings.id));
        let topic = |text| crate::model::Topic::parse(text).unwrap();
        assert_eq!(grant.write(&topic("user/1")), crate::auth::Access::Allowed);
        assert_eq!(grant.write(&topic("team/1")), crate::auth::Access::Denied);
        assert_eq!(grant.read(&topic("user/1")), crate::auth::Access::Denied);
        let later = NOW.plus(std::time::Duration::from_millis(1));
        assert_eq!(
            ring.authenticate(text.expose(), later).unwrap_err().code,
            ErrorCode::CredentialExpired
        );
        let (other, _) = ApiKey::generate();
        let refusal = ring.authenticate(other.expose(), NOW).unwrap_err();
        assert_eq!(refusal, invalid("API key is not known here"));
        // Same id, other secret: the same answer as for an unknown id.
        let secret = random(SECRET_CHARS);
        let forged = format!("tdk_{}_{secret}{}", settings.id, checksum(&settings.id, &secret));
        assert_eq!(ring.authenticate(&forged, NOW).unwrap_err(), refusal);
    }

    #[test]
    fn two_keys_of_one_subject_serve_while_one_replaces_the_other() {
        let entry = |keys: &mut Vec<ApiKeySettings>| {
            let (text, mut settings) = ApiKey::generate();
            settings.subject = Some("worker".to_owned());
            keys.push(settings);
            text
        };
        let mut keys = Vec::new();
        let (old, new) = (entry(&mut keys), entry(&mut keys));
        let both = ring(&keys).unwrap();
        let last_used = |ring: &KeyRing| {
            keys.iter()
                .map(|key| {
                    let status = ring.status();
                    status.iter().find(|status| status.id == key.id).unwrap().last_used
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(last_used(&both), [None, None]);
        let later = NOW.plus(std::time::Duration::from_secs(60));
        for (key, at) in [(&old, NOW), (&new, later), (&new, NOW)] {
            let grant = both.authenticate(key.expose(), at).unwrap();
            assert_eq!(grant.subject(), Some("worker"));
        }
        // Which of them is not used any more, and so can go.
        assert_eq!(last_used(&both), [Some(NOW), Some(later)]);
        // What is refused is no use.
        let forged = old.expose().replace(ApiKey::parse(old.expose()).unwrap().secret, &random(43));
        assert!(both.authenticate(&forged, later).is_err());
        assert_eq!(last_used(&both)[0], Some(NOW));
        let after = ring(&keys[1..]).unwrap();
        assert!(after.authenticate(old.expose(), later).is_err());
        assert!(after.authenticate(new.expose(), later).is_ok());
    }

    /// Checksum and digest come from another implementation (Python).
    #[test]
    fn the_form_of_a_key_is_fixed() {
        let secret = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg";
        let text = format!("tdk_abcdefgh12_{secret}{}", checksum("abcdefgh12", secret));
        assert_eq!(text, "tdk_abcdefgh12_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg3To7I2");
        let key = ApiKey::parse(&text).unwrap();
        assert_eq!(key.id(), "abcdefgh12");
        assert_eq!(
            key.sha256(),
            "71d84b1859bad11abcb3dfd9353c8d1873aafd883ffaf6f2c9df7cbcfc3e1850",
        );
    }

    #[test]
    fn one_wrong_character_anywhere_is_recognised() {
        let (text, _) = ApiKey::generate();
        let text = text.expose();
        for place in 0..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[place] = if bytes[place] == b'x' { b'y' } else { b'x' };
            let typo = String::from_utf8(bytes).unwrap();
            assert!(ApiKey::parse(&typo).is_err(), "{typo}");
            assert!(ApiKey::parse(&text[..place]).is_err());
        }
        assert_eq!(ApiKey::parse(&format!("{text}0")).unwrap_err(), ApiKeyError::Malformed);
        assert_eq!(ApiKey::parse(&text.replace('_', "-")).unwrap_err(), ApiKeyError::Malformed);
        assert_eq!(ApiKey::parse("tdk_é").unwrap_err(), ApiKeyError::Malformed);
    }

    #[test]
    fn settings_that_cannot_be_name_their_field() {
        let (_, good) = ApiKey::generate();
        let with = |change: fn(&mut ApiKeySettings)| {
            let mut settings = good.clone();
            change(&mut settings);
            ring(&[settings]).unwrap_err().path
        };
        assert_eq!(with(|key| key.id = "short".to_owned()), "api_keys[0].id");
        assert_eq!(with(|key| key.sha256 = "zz".repeat(32)), "api_keys[0].sha256");
        assert_eq!(with(|key| key.sha256.truncate(62)), "api_keys[0].sha256");
        assert_eq!(with(|key| key.tenant = Some("a/b".to_owned())), "api_keys[0].tenant");
        assert_eq!(with(|key| key.subject = Some("a\nb".to_owned())), "api_keys[0].subject");
        assert_eq!(with(|key| key.expires_at = Some("soon".to_owned())), "api_keys[0].expires_at");
        assert_eq!(with(|key| key.read = vec!["**/a".to_owned()]), "api_keys[0].read[0]");
        assert_eq!(
            with(|key| key.write = vec!["a".into(), "{sub}".into()]),
            "api_keys[0].write[1]"
        );
        assert_eq!(ring(&[good.clone(), good]).unwrap_err().path, "api_keys[1].id");
    }

    #[test]
    fn neither_a_key_nor_what_holds_keys_shows_a_secret() {
        let (text, settings) = ApiKey::generate();
        let key = ApiKey::parse(text.expose()).unwrap();
        let ring = ring(&[settings]).unwrap();
        let shown = format!("{text:?} {key:?} {ring:?} {}", serde_json::to_string(&text).unwrap());
        assert!(!shown.contains(key.secret), "{shown}");
        assert!(shown.contains(key.id), "{shown}");
    }
}
