//! What a credential allows, and until when.
//!
//! The rules: a grant belongs to one tenant, which comes from the credential and never from a
//! topic, so whoever asks about a topic looks it up in [`Grant::tenant`]. What is not allowed is
//! denied. Replay, follow, snapshot and listing all ask the same two questions, `may_read` and
//! `may_write`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    invalid,
    template::{Bindings, Template, is_segment},
};
use crate::{
    error::Problem,
    journal::Properties,
    model::{Pattern, Tenant, Timestamp, Topic},
};

/// Whether something may be done to a topic. Of two answers the greater counts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// It may not.
    #[default]
    Denied,
    /// The topic's properties decide: [`Grant::may_read`] and [`Grant::may_write`] ask them.
    IfOwner,
    /// It may.
    Allowed,
}

/// What a credential allows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Grant(Arc<Parts>);

/// What a grant is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) tenant: Tenant,
    pub(super) subject: Option<Box<str>>,
    pub(super) credential: Box<str>,
    pub(super) token_id: Option<Box<str>>,
    pub(super) expires_at: Option<Timestamp>,
    /// The token's `iat`.
    pub(super) issued_at: Option<Timestamp>,
    /// The token's `teams`, whatever rules say of them.
    pub(super) teams: Vec<Box<str>>,
    /// Whether its holder may revoke credentials.
    pub(super) revokes: bool,
    pub(super) scopes: Vec<Scope>,
    pub(super) bindings: Bindings,
    /// What verified the credential, if anything did.
    pub(super) key: Option<KeyName>,
}

/// The key that a credential was verified with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyName {
    /// Whose, among the issuers that the settings name; `None`: the settings' own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) issuer: Option<Box<str>>,
    /// What tells it from every other key: one that replaces it under its `kid` is another.
    pub(super) fingerprint: Box<str>,
}

/// Topics, and what may be done there.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    pub(super) template: Arc<Template>,
    pub(super) read: Access,
    pub(super) write: Access,
    pub(super) answer: Access,
    pub(super) feed: bool,
}

impl Scope {
    pub(super) fn reads(pattern: &Pattern) -> Self {
        Self {
            template: Arc::new(pattern.into()),
            read: Access::Allowed,
            write: Access::Denied,
            answer: Access::Denied,
            feed: false,
        }
    }

    pub(super) fn writes(pattern: &Pattern) -> Self {
        Self { read: Access::Denied, write: Access::Allowed, ..Self::reads(pattern) }
    }

    pub(super) fn allows_something(&self) -> bool {
        self.read.max(self.write).max(self.answer) > Access::Denied
    }
}

impl Grant {
    pub(super) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// A grant of exactly these patterns, without end: for callers that have no credential because
    /// they are the hub's own process. `credential` names them in the audit log: `embedded`.
    #[must_use]
    pub fn of_patterns(
        tenant: Tenant,
        credential: &str,
        read: &[Pattern],
        write: &[Pattern],
    ) -> Self {
        Self::new(Parts {
            tenant,
            subject: None,
            credential: credential.into(),
            token_id: None,
            expires_at: None,
            issued_at: None,
            teams: Vec::new(),
            revokes: false,
            scopes: read.iter().map(Scope::reads).chain(write.iter().map(Scope::writes)).collect(),
            bindings: Bindings::new(),
            key: None,
        })
    }

    /// Whose topics it is about.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.0.tenant
    }

    /// Who holds it: the token's `sub`, or what the API key's settings say.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }

    /// The credential's name for logs, `key:<id>` or `jwt:<jti, else sub>`. Not secret, and
    /// without control characters.
    #[must_use]
    pub fn credential(&self) -> &str {
        &self.0.credential
    }

    /// The key that the credential was verified with.
    pub(super) fn key(&self) -> Option<&KeyName> {
        self.0.key.as_ref()
    }

    /// The token's `jti`, by which one token can be revoked.
    #[must_use]
    pub fn token_id(&self) -> Option<&str> {
        self.0.token_id.as_deref()
    }

    /// When delivery must end; for a token its `exp` and the leeway.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.0.expires_at
    }

    /// When the token was issued, if it says so.
    #[must_use]
    pub fn issued_at(&self) -> Option<Timestamp> {
        self.0.issued_at
    }

    /// The teams that the token names.
    pub fn teams(&self) -> impl Iterator<Item = &str> {
        self.0.teams.iter().map(|team| &**team)
    }

    /// Whether its holder may revoke credentials of its tenant.
    #[must_use]
    pub fn may_revoke(&self) -> bool {
        self.0.revokes
    }

    /// Whether the topic may be read.
    #[must_use]
    pub fn read(&self, topic: &Topic) -> Access {
        self.greatest(topic, |scope| scope.read)
    }

    /// Whether the topic may be written. The hub's own never.
    #[must_use]
    pub fn write(&self, topic: &Topic) -> Access {
        if topic.is_reserved() { Access::Denied } else { self.greatest(topic, |scope| scope.write) }
    }

    /// Whether the topic's asks may be claimed and answered. In the hub's own never.
    #[must_use]
    pub fn answer(&self, topic: &Topic) -> Access {
        if topic.is_reserved() {
            Access::Denied
        } else {
            self.greatest(topic, |scope| scope.answer)
        }
    }

    /// Whether the topic with these properties may be read: by its owner or one of its readers, if
    /// that is what it depends on.
    #[must_use]
    pub fn may_read(&self, topic: &Topic, properties: &Properties) -> bool {
        match self.read(topic) {
            Access::Denied => false,
            Access::Allowed => true,
            Access::IfOwner => self.subject().is_some_and(|subject| {
                properties.owner.as_deref() == Some(subject)
                    || properties.readers.iter().any(|reader| reader == subject)
            }),
        }
    }

    /// Whether the topic with these properties may be written: by its owner, if that is what it
    /// depends on. A topic without an owner has none, so nobody creates it this way.
    #[must_use]
    pub fn may_write(&self, topic: &Topic, properties: &Properties) -> bool {
        match self.write(topic) {
            Access::Denied => false,
            Access::Allowed => true,
            Access::IfOwner => {
                self.subject().is_some_and(|subject| properties.owner.as_deref() == Some(subject))
            }
        }
    }

    /// The topics that are followed when the caller names none: in the order of the rules, each
    /// once. All of them may be read.
    #[must_use]
    pub fn feed(&self) -> Vec<Topic> {
        let mut seen = std::collections::HashSet::new();
        let feeds =
            self.0.scopes.iter().filter(|scope| scope.feed && scope.read == Access::Allowed);
        feeds
            .flat_map(|scope| scope.template.expand(&self.0.bindings))
            .filter(|topic| seen.insert(topic.clone()))
            .collect()
    }

    /// A snapshot that [`Self::from_claims`] turns into a grant with the same answers, for a
    /// ticket to carry. Whoever sends it out of the process must seal it.
    #[must_use]
    pub fn to_claims(&self) -> GrantClaims {
        let parts = &*self.0;
        let scopes = parts.scopes.iter().map(|scope| ScopeClaims {
            topic: scope.template.as_str().to_owned(),
            read: scope.read,
            write: scope.write,
            answer: scope.answer,
            feed: scope.feed,
        });
        let texts = |values: &[Box<str>]| values.iter().map(|value| value.to_string()).collect();
        GrantClaims {
            tenant: parts.tenant.as_str().to_owned(),
            subject: parts.subject.as_deref().map(str::to_owned),
            credential: parts.credential.to_string(),
            token_id: parts.token_id.as_deref().map(str::to_owned),
            expires_at_ms: parts.expires_at.map(Timestamp::as_millis),
            issued_at_ms: parts.issued_at.map(Timestamp::as_millis),
            teams: texts(&parts.teams),
            bindings: parts
                .bindings
                .iter()
                .map(|(name, of)| (name.to_string(), texts(of)))
                .collect(),
            scopes: scopes.collect(),
            key: parts.key.clone().map(Box::new),
        }
    }

    /// The grant that the snapshot was taken of. Its end is not looked at here.
    ///
    /// # Errors
    /// `credential_invalid` if the snapshot is not one of [`Self::to_claims`].
    pub fn from_claims(claims: &GrantClaims) -> Result<Self, Problem> {
        let damaged = || invalid("snapshot of a grant is damaged");
        let mut scopes = Vec::with_capacity(claims.scopes.len());
        for scope in &claims.scopes {
            scopes.push(Scope {
                template: Arc::new(Template::parse(&scope.topic).map_err(|_| damaged())?),
                read: scope.read,
                write: scope.write,
                answer: scope.answer,
                feed: scope.feed,
            });
        }
        if !claims.bindings.values().flatten().all(|value| is_segment(value)) {
            return Err(damaged());
        }
        let boxed =
            |values: &Vec<String>| values.iter().map(|value| value.as_str().into()).collect();
        Ok(Self::new(Parts {
            tenant: Tenant::parse(&claims.tenant).map_err(|_| damaged())?,
            subject: claims.subject.as_deref().map(Box::from),
            credential: claims.credential.as_str().into(),
            token_id: claims.token_id.as_deref().map(Box::from),
            expires_at: claims.expires_at_ms.map(Timestamp::from_millis),
            issued_at: claims.issued_at_ms.map(Timestamp::from_millis),
            teams: boxed(&claims.teams),
            // A ticket is for following.
            revokes: false,
            scopes,
            bindings: claims
                .bindings
                .iter()
                .map(|(name, of)| (name.as_str().into(), boxed(of)))
                .collect(),
            key: claims.key.as_deref().cloned(),
        }))
    }

    fn greatest(&self, topic: &Topic, access: impl Fn(&Scope) -> Access) -> Access {
        let mut greatest = Access::Denied;
        for scope in &self.0.scopes {
            // The cheap question first: most scopes of a large grant cannot add anything.
            if access(scope) > greatest && scope.template.matches(topic, &self.0.bindings) {
                greatest = access(scope);
            }
        }
        greatest
    }
}

/// A [`Grant`] as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantClaims {
    tenant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    credential: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issued_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    teams: Vec<String>,
    bindings: std::collections::BTreeMap<String, Vec<String>>,
    scopes: Vec<ScopeClaims>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Box<KeyName>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScopeClaims {
    topic: String,
    read: Access,
    write: Access,
    answer: Access,
    feed: bool,
}
