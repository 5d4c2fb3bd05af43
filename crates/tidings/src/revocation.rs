//! Revocations: credentials that count no more, although nothing of themselves says so.
//!
//! The rule: a revocation is a keyed state in the hub's own topics. So it is durable before it is
//! answered, and every node learns of it as a reader of those topics, which it is from its start: a
//! node that has not read them yet lets nobody in. Credentials are compared when they are shown, and
//! whatever they opened is compared again with each revocation that arrives.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, Weak},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{Authenticator, Grant},
    error::{ErrorCode, Problem},
    hub::Hub,
    model::{
        EventType, JsonText, NewEvent, Offset, StateKey, Tenant, Timestamp, Topic, TopicKey,
        limits::{REVOCATION_LIFE_MAX, TOKEN_NAME_BYTES_MAX},
    },
    publish::Publish,
    sse::Frame,
    subscribe::{Follow, Item},
};

/// Topics that the revocations are spread over: a topic holds 10 000 states.
const SHARDS: u8 = 16;
/// How long a request waits for a hub that is still reading its revocations.
const LOADING_MAX: Duration = Duration::from_secs(5);
/// When reading them broke off, it begins anew this soon.
const RETRY: Duration = Duration::from_secs(1);

/// Whose credentials are meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revoked {
    /// Those of this subject (`sub`).
    Sub(String),
    /// The token of this name (`jti`).
    Jti(String),
    /// Those that name this team (`teams`).
    Team(String),
}

impl Revoked {
    /// Names whose credentials are meant.
    ///
    /// # Errors
    /// [`ErrorCode::Malformed`] if no credential can be so: 1 to 256 bytes without control
    /// characters.
    pub fn check(self) -> Result<Self, Problem> {
        let (Self::Sub(text) | Self::Jti(text) | Self::Team(text)) = &self;
        let fits = (1..=TOKEN_NAME_BYTES_MAX).contains(&text.len());
        if !fits || text.chars().any(char::is_control) {
            let detail = "must be 1 to 256 bytes without control characters";
            return Err(Problem::new(ErrorCode::Malformed, detail).at(format!("/{}", self.kind())));
        }
        Ok(self)
    }

    /// `sub`, `jti` or `team`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sub(_) => "sub",
            Self::Jti(_) => "jti",
            Self::Team(_) => "team",
        }
    }

    /// The subject, the token's name or the team.
    #[must_use]
    pub fn name(&self) -> &str {
        let (Self::Sub(text) | Self::Jti(text) | Self::Team(text)) = self;
        text
    }
}

/// Credentials of a tenant that do not count for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Whose.
    pub revoked: Revoked,
    /// Until when; `None`: as long as the settings say, which should be as long as any token lives.
    /// A time that has passed lifts a revocation.
    pub until: Option<Timestamp>,
    /// Only tokens that were issued (`iat`) before; `None`: all. What does not say when it was issued
    /// counts as issued before.
    pub issued_before: Option<Timestamp>,
}

/// A revocation as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationInfo {
    /// Of whose credentials.
    pub tenant: Tenant,
    /// Which of them.
    pub revoked: Revoked,
    /// Until when.
    pub until: Timestamp,
    /// Only tokens that were issued before; `None`: all.
    pub issued_before: Option<Timestamp>,
    /// The credential that asked for it.
    pub by: String,
}

/// What a revocation's state holds.
#[derive(Serialize, Deserialize)]
struct Stored {
    tenant: String,
    revoked: Revoked,
    until_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issued_before_ms: Option<u64>,
    /// The credential that asked for it.
    by: String,
}

/// What this node knows of revocations.
#[derive(Debug)]
pub(crate) struct Revocations {
    table: RwLock<Table>,
    /// Whose keys credentials are verified with: a key that was taken away revokes what it let in.
    trusted: RwLock<Vec<Weak<Authenticator>>>,
    /// Counts the revocations that arrived.
    arrived: watch::Sender<u64>,
    /// Cancelled once they were read: whoever waits for that goes on in the order in which they came,
    /// which a watch channel would not keep.
    loaded: CancellationToken,
}

#[derive(Debug, Default)]
struct Table {
    tenants: HashMap<Tenant, Names>,
    entries: usize,
    /// How many there may be before those that have ended are thrown away.
    full_at: usize,
}

#[derive(Debug, Default)]
struct Names {
    subs: HashMap<Box<str>, Entry>,
    jtis: HashMap<Box<str>, Entry>,
    teams: HashMap<Box<str>, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    until: Timestamp,
    issued_before: Option<Timestamp>,
    by: Box<str>,
    /// Where it stands in its topic: an older one does not replace it.
    offset: Offset,
}

impl Entry {
    fn covers(&self, grant: &Grant, now: Timestamp) -> bool {
        let issued = |before| grant.issued_at().is_none_or(|issued| issued < before);
        now < self.until && self.issued_before.is_none_or(issued)
    }
}

impl Names {
    fn of(&mut self, revoked: &Revoked) -> &mut HashMap<Box<str>, Entry> {
        match revoked {
            Revoked::Sub(_) => &mut self.subs,
            Revoked::Jti(_) => &mut self.jtis,
            Revoked::Team(_) => &mut self.teams,
        }
    }

    fn entries(&self) -> impl Iterator<Item = (Revoked, &Entry)> {
        let subs = entries(&self.subs, Revoked::Sub);
        let jtis = entries(&self.jtis, Revoked::Jti);
        subs.chain(jtis).chain(entries(&self.teams, Revoked::Team))
    }

    fn cover(&self, grant: &Grant, now: Timestamp) -> bool {
        let covers = |of: &HashMap<Box<str>, Entry>, name: &str| {
            of.get(name).is_some_and(|entry| entry.covers(grant, now))
        };
        grant.subject().is_some_and(|sub| covers(&self.subs, sub))
            || grant.token_id().is_some_and(|jti| covers(&self.jtis, jti))
            || (!self.teams.is_empty() && grant.teams().any(|team| covers(&self.teams, team)))
    }
}

fn entries(
    of: &HashMap<Box<str>, Entry>,
    kind: fn(String) -> Revoked,
) -> impl Iterator<Item = (Revoked, &Entry)> {
    of.iter().map(move |(name, entry)| (kind(name.to_string()), entry))
}

impl Table {
    /// Takes one in. Returns whether it revokes something.
    fn put(&mut self, stored: &Stored, offset: Offset, now: Timestamp) -> bool {
        let Ok(tenant) = Tenant::parse(&stored.tenant) else { return false };
        let until = Timestamp::from_millis(stored.until_ms);
        let issued_before = stored.issued_before_ms.map(Timestamp::from_millis);
        let names = self.tenants.entry(tenant).or_default().of(&stored.revoked);
        let name = stored.revoked.name();
        if names.get(name).is_some_and(|known| known.offset >= offset) {
            return false;
        }
        let entry = Entry { until, issued_before, by: stored.by.as_str().into(), offset };
        if names.insert(name.into(), entry).is_none() {
            self.entries += 1;
        }
        if self.entries >= self.full_at {
            self.sweep(now);
        }
        now < until
    }

    fn sweep(&mut self, now: Timestamp) {
        // One that ended stays for a while: an older one may still be on its way.
        let now = now.minus(Duration::from_secs(60));
        self.entries = 0;
        self.tenants.retain(|_, names| {
            let mut left = 0;
            for of in [&mut names.subs, &mut names.jtis, &mut names.teams] {
                of.retain(|_, entry| now < entry.until);
                left += of.len();
            }
            self.entries += left;
            left > 0
        });
        self.full_at = (2 * self.entries).max(1024);
    }
}

impl Revocations {
    pub(crate) fn new() -> Self {
        Self {
            table: RwLock::default(),
            trusted: RwLock::default(),
            arrived: watch::Sender::new(0),
            loaded: CancellationToken::new(),
        }
    }

    /// Takes one in. Returns whether it revokes something.
    fn put(&self, stored: &Stored, offset: Offset, now: Timestamp) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.put(stored, offset, now)
    }

    fn trusted(&self) -> Vec<Arc<Authenticator>> {
        let trusted = self.trusted.read().unwrap_or_else(PoisonError::into_inner);
        trusted.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether no authenticator has the key any more that the credential was verified with.
    fn has_lost_key(&self, grant: &Grant) -> bool {
        let trusted = self.trusted();
        !trusted.is_empty() && trusted.iter().all(|one| one.has_lost_key(grant))
    }

    /// Wakes with every revocation that arrives from here on.
    pub(crate) fn arrivals(&self) -> watch::Receiver<u64> {
        self.arrived.subscribe()
    }
}

/// Keeps this node's knowledge of revocations until the hub is shut down.
pub(crate) async fn run(hub: Hub) {
    loop {
        if let Err(problem) = read(&hub).await {
            tracing::error!(%problem, "revocations are not read; those known count on");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads the revocations there are, and those that come.
async fn read(hub: &Hub) -> Result<(), Problem> {
    let topics = (0..SHARDS).map(topic).collect::<Result<_, _>>()?;
    let (mut subscription, _) = hub.subscribe(Follow::new(topics)).await?;
    loop {
        for item in subscription.next().await? {
            match item {
                Item::Event { frame, .. } => take(hub, &frame),
                Item::CaughtUp => hub.revocations().loaded.cancel(),
                // What was forgotten here is sent once more as a state; nothing is forgotten before.
                _ => {}
            }
        }
    }
}

fn take(hub: &Hub, frame: &Frame) {
    // A tombstone says that its time is over, which its state said already.
    if let (Some(position), false) = (frame.position, frame.is_tombstone()) {
        match serde_json::from_slice(&frame.data()) {
            Ok(stored) => hub.learn(&stored, position.offset, hub.clock().now()),
            Err(error) => tracing::error!(%error, "a revocation cannot be read"),
        }
    }
}

impl Hub {
    /// Revokes credentials of a tenant, and returns until when. They are refused from now on, and
    /// what they opened ends within a second, on every node.
    ///
    /// `by` names who asked, for the journal and the log.
    ///
    /// # Errors
    /// A time too far off, and the journal's, as problems: nothing is revoked then.
    pub async fn revoke(
        &self,
        tenant: &Tenant,
        revocation: &Revocation,
        by: &str,
    ) -> Result<Timestamp, Problem> {
        let now = self.clock().now();
        let until = revocation.until.unwrap_or_else(|| now.plus(self.settings().revocation_life));
        if until > now.plus(REVOCATION_LIFE_MAX) {
            let detail = "must be within 400 days: no credential should live longer";
            return Err(Problem::new(ErrorCode::Malformed, detail).at("/until"));
        }
        let stored = Stored {
            tenant: tenant.as_str().to_owned(),
            revoked: revocation.revoked.clone().check()?,
            until_ms: until.as_millis(),
            issued_before_ms: revocation.issued_before.map(Timestamp::as_millis),
            by: by.to_owned(),
        };
        let (topic, key) = place(&stored)?;
        let data = JsonText::of(&stored)
            .map_err(|_| Problem::new(ErrorCode::Internal, "revocation could not be written"))?;
        let event = NewEvent {
            expires_at: Some(until),
            ..NewEvent::new(EventType::parse("revocation")?).state(key).data(data)
        };
        let published = self.publish_one(&topic.tenant, Publish::new(topic.topic, event)).await?;
        // At once: whoever got the answer may rely on it, on this node.
        let offset = published.position.map_or(Offset::ZERO, |position| position.offset);
        self.learn(&stored, offset, now);
        let (kind, name) = (stored.revoked.kind(), stored.revoked.name());
        if now < until {
            tracing::info!(%tenant, kind, name, %until, by, "credentials were revoked");
        } else {
            tracing::info!(%tenant, kind, name, by, "a revocation was lifted");
        }
        Ok(until)
    }

    /// Lifts a revocation: what it revoked counts again, on every node.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if there is none in force, and the journal's, as problems.
    pub async fn lift(&self, tenant: &Tenant, revoked: &Revoked, by: &str) -> Result<(), Problem> {
        let is_it = |known: &RevocationInfo| known.revoked == *revoked;
        if !self.revoked(Some(tenant)).iter().any(is_it) {
            let detail = "there is no such revocation in force";
            return Err(Problem::new(ErrorCode::NotFound, detail));
        }
        let until = Some(self.clock().now());
        let lifted = Revocation { revoked: revoked.clone(), until, issued_before: None };
        self.revoke(tenant, &lifted, by).await.map(drop)
    }

    /// The revocations in force, of all tenants or of one, by tenant, kind and name.
    #[must_use]
    pub fn revoked(&self, tenant: Option<&Tenant>) -> Vec<RevocationInfo> {
        let now = self.clock().now();
        let table = self.revocations().table.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for (of, names) in &table.tenants {
            if tenant.is_some_and(|tenant| tenant != of) {
                continue;
            }
            let in_force = names.entries().filter(|(_, entry)| now < entry.until);
            found.extend(in_force.map(|(revoked, entry)| RevocationInfo {
                tenant: of.clone(),
                revoked,
                until: entry.until,
                issued_before: entry.issued_before,
                by: entry.by.to_string(),
            }));
        }
        let place = |one: &RevocationInfo| {
            (one.tenant.as_str().to_owned(), one.revoked.kind(), one.revoked.name().to_owned())
        };
        found.sort_by_cached_key(place);
        found
    }

    /// Takes a revocation in, and has everything that is open look whether it is meant.
    fn learn(&self, stored: &Stored, offset: Offset, now: Timestamp) {
        if self.revocations().put(stored, offset, now) {
            self.look_again();
        }
    }

    /// Has everything that is open look whether its credential still counts.
    pub(crate) fn look_again(&self) {
        self.revocations().arrived.send_modify(|count| *count += 1);
        self.open_connections().call();
    }

    /// Has what credentials opened depend on the keys of an authenticator, as long as that is used.
    pub(crate) fn trust(&self, authenticator: &Arc<Authenticator>) {
        let mut trusted =
            self.revocations().trusted.write().unwrap_or_else(PoisonError::into_inner);
        trusted.retain(|one| one.strong_count() > 0);
        trusted.push(Arc::downgrade(authenticator));
    }

    /// Refuses a credential that was verified earlier or on another node, if its key is in force no
    /// more.
    ///
    /// # Errors
    /// [`ErrorCode::CredentialRevoked`]; [`ErrorCode::Unavailable`] while its issuer's keys cannot be
    /// read.
    pub(crate) async fn check_key(&self, grant: &Grant) -> Result<(), Problem> {
        let mut refused = Ok(());
        for authenticator in self.revocations().trusted() {
            refused = authenticator.check_key(grant).await;
            if refused.is_ok() {
                break;
            }
        }
        refused
    }

    /// Refuses a credential that was revoked.
    ///
    /// # Errors
    /// [`ErrorCode::CredentialRevoked`]; [`ErrorCode::Unavailable`] while this node does not know
    /// what is revoked.
    pub async fn check_revoked(&self, grant: &Grant) -> Result<(), Problem> {
        let loaded = &self.revocations().loaded;
        if !loaded.is_cancelled() {
            let loading = tokio::time::timeout(LOADING_MAX, loaded.cancelled());
            if loading.await.is_err() {
                let detail = "the hub has not read its revocations yet; come back";
                return Err(Problem::new(ErrorCode::Unavailable, detail).after(RETRY));
            }
        }
        if self.is_revoked(grant) { Err(revoked()) } else { Ok(()) }
    }

    /// Whether the credential was revoked, or the key taken away that it was verified with, as far as
    /// this node knows.
    #[must_use]
    pub fn is_revoked(&self, grant: &Grant) -> bool {
        if self.revocations().has_lost_key(grant) {
            return true;
        }
        let table = self.revocations().table.read().unwrap_or_else(PoisonError::into_inner);
        let names = table.tenants.get(grant.tenant());
        names.is_some_and(|names| names.cover(grant, self.clock().now()))
    }

    /// Waits until the credential is revoked.
    ///
    /// Cancel-safe.
    pub async fn until_revoked(&self, grant: &Grant) -> Problem {
        let mut arrivals = self.revocations().arrivals();
        while !self.is_revoked(grant) {
            if arrivals.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
        revoked()
    }
}

pub(crate) fn revoked() -> Problem {
    Problem::new(ErrorCode::CredentialRevoked, "credential was revoked; sign in anew")
}

/// The topic and key of a revocation. The key is a hash, because names may be longer than keys.
fn place(stored: &Stored) -> Result<(TopicKey, StateKey), Problem> {
    let mut hash = Sha256::new();
    for part in [&*stored.tenant, stored.revoked.kind(), stored.revoked.name()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let hash = hash.finalize();
    let key: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((topic(hash.first().map_or(0, |byte| byte % SHARDS))?, StateKey::parse(&key)?))
}

fn topic(shard: u8) -> Result<TopicKey, Problem> {
    let topic = Topic::parse(&format!("$hub/revocations/{shard}"))?;
    Ok(TopicKey::new(Tenant::hub(), topic))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn stored(name: String, until: Timestamp) -> Stored {
        Stored {
            tenant: "acme".to_owned(),
            revoked: Revoked::Sub(name),
            until_ms: until.as_millis(),
            issued_before_ms: None,
            by: "test".to_owned(),
        }
    }

    #[test]
    fn what_has_ended_is_thrown_away_and_the_rest_stays() {
        let mut table = Table::default();
        for number in 0..5000 {
            let until = NOW.plus(Duration::from_secs(if number % 10 == 0 { 3600 } else { 1 }));
            let at = NOW.plus(Duration::from_secs(number / 10));
            table.put(&stored(number.to_string(), until), Offset(number + 1), at);
        }
        assert!(table.entries < 2500, "{}", table.entries);
        table.sweep(NOW.plus(Duration::from_secs(600)));
        assert_eq!(table.entries, 500);
        table.sweep(NOW.plus(Duration::from_secs(3700)));
        assert_eq!((table.entries, table.tenants.len()), (0, 0));
    }

    #[test]
    fn an_older_revocation_does_not_replace_a_newer_one() {
        let mut table = Table::default();
        let (soon, later) = (NOW.plus(Duration::from_secs(60)), NOW.plus(Duration::from_secs(600)));
        assert!(table.put(&stored("42".to_owned(), later), Offset(7), NOW));
        assert!(!table.put(&stored("42".to_owned(), soon), Offset(6), NOW));
        let until = |table: &Table| table.tenants.values().next().unwrap().subs["42"].until;
        assert_eq!(until(&table), later);
        // One that lifts it.
        assert!(!table.put(&stored("42".to_owned(), NOW), Offset(8), NOW));
        assert_eq!(until(&table), NOW);
    }
}
