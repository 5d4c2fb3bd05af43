//! The journal: the durable truth. This is the port; adapters are its files and folders.
//!
//! The rules every adapter keeps, and `contract` proves of each:
//! - Offsets of a topic are dense from 1, in commit order. What was refused takes none.
//! - `append` returns when its events are durable, and not before. A batch is stored in one commit.
//! - Nothing can be read before it is durable, and what was read can be read again until it is
//!   superseded (states), trimmed or deleted.
//! - `recorded_at` never goes back within a topic, whatever the clock does.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod embedded;
pub mod memory;
mod page;
#[cfg(feature = "postgres")]
pub mod postgres;
mod problem;
pub mod record;
#[cfg(feature = "redis")]
pub mod redis;
pub mod routed;
pub(crate) mod turns;

pub use crate::model::resume::Head;
use crate::model::{
    Epoch, Event, Fingerprint, NewEvent, Offset, Position, StateKey, Tenant, Timestamp, TopicKey,
    limits,
};

/// When what was acknowledged is on a disk. What Redis calls `appendfsync`; the other journals always
/// wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before it is acknowledged: `appendonly yes`, `appendfsync always`.
    Always,
    /// A second later, so a power cut loses that second: `appendfsync everysec`.
    EverySecond,
    /// When the operating system likes: `appendfsync no`.
    Sometime,
    /// With the next snapshot, or never: `appendonly no`.
    Never,
}

impl Durability {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Always, Self::EverySecond, Self::Sometime, Self::Never];

    /// As answers and logs name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::EverySecond => "everysec",
            Self::Sometime => "no",
            Self::Never => "off",
        }
    }
}

/// Ordered, durable histories of topics.
#[async_trait]
pub trait Journal: std::fmt::Debug + Send + Sync + 'static {
    /// Appends a batch to one topic in one commit, creating the topic if need be.
    ///
    /// Each event has its own outcome: one that is refused takes no offset and does not fail the
    /// others. Later events of the batch see earlier ones: their ids, and the states they set.
    /// Ephemeral events must not be handed in.
    ///
    /// Cancel-safe in this sense: once polled, the batch may be stored whole although the future
    /// was dropped, never in part.
    ///
    /// # Errors
    /// Nothing of the batch is readable then; it may be stored nevertheless if the store failed
    /// while it was committing, so the caller must not tell anybody that it was not.
    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError>;

    /// Reads what follows an offset: log events, current states and tombstones in offset order.
    ///
    /// Serves any `after`: what was trimmed is simply absent, and the caller compares `after` with
    /// `head.earliest`. A topic that was never written is empty, not an error.
    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError>;

    /// Reads current states by ascending offset, without tombstones.
    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError>;

    /// The topic's bounds and properties.
    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError>;

    /// Several topics' bounds and properties, or why there is no answer: one of each, in the order
    /// asked for. Each is as it was at some time after the call; not all of them at one time.
    async fn describe_all(&self, topics: &[TopicKey]) -> Vec<Result<TopicInfo, JournalError>> {
        let mut infos = Vec::with_capacity(topics.len());
        let mut down = None;
        for topic in topics {
            let info = match &down {
                // It is one store, which would be waited for once a topic.
                Some(error) => Err(JournalError::clone(error)),
                None => self.describe(topic).await,
            };
            if let Err(error @ JournalError::Unavailable(_)) = &info {
                down.get_or_insert_with(|| error.clone());
            }
            infos.push(info);
        }
        infos
    }

    /// The offset after which a reader finds what `from` asks for.
    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError>;

    /// Replaces the topic's properties, creating the topic if need be.
    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError>;

    /// Deletes the topic with all its events and states. Written again, it has another epoch.
    ///
    /// Returns whether there was such a topic. The condition is judged in the same commit.
    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError>;

    /// Removes log events and tombstones that exceed the retention, oldest first; states stay.
    /// Returns the head after it. `earliest` never goes back.
    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError>;

    /// States whose time of this kind is not after `now`, earliest first, of all tenants.
    ///
    /// They stay due until they are replaced or ended, so the caller acts before it asks again.
    /// At most `limit`; of each, where there are several journals.
    async fn due(&self, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due>;

    /// Topics by ascending name. No items: there are none after the one that was given, in the parts
    /// that answered.
    async fn topics(&self, query: TopicQuery) -> Found<TopicInfo>;

    /// Why the journal takes no appends now; `None` while it works.
    fn failure(&self) -> Option<String>;

    /// Why the journal takes no appends to this topic now; `None` while it does.
    fn failure_of(&self, _: &TopicKey) -> Option<String> {
        self.failure()
    }

    /// When what is acknowledged of this topic is on a disk.
    fn durability(&self, _: &TopicKey) -> Durability {
        Durability::Always
    }

    /// The same of all topics: the levels of the servers that they are on.
    fn durabilities(&self) -> Vec<Durability> {
        vec![Durability::Always]
    }

    /// Damaged places that were met since the start; each was logged, with its topic, once.
    fn damaged_places(&self) -> usize {
        0
    }

    /// Finishes what was accepted and releases the store.
    async fn close(&self);
}

/// What is appended together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The events, in order.
    pub events: Vec<Append>,
    /// Whether the topic takes no more events after these, whatever becomes of them. Closing twice
    /// is no error.
    pub close: bool,
    /// What `recorded_at` becomes, unless the topic's last event is later.
    pub now: Timestamp,
}

/// One event to be appended.
#[derive(Debug, Clone)]
pub struct Append {
    /// The event; not ephemeral.
    pub event: Arc<NewEvent>,
    /// The offset that the key's current state must have; 0: there must be none.
    pub if_offset: Option<Offset>,
    /// Whether the id may have been used before. Ids that the hub minted have not, and are not
    /// entered into the dedup window.
    pub dedup: Dedup,
    /// Whether the topic takes no more events after this one. A refused event closes nothing.
    pub close: bool,
    /// The subject that the topic must belong to: by its properties, or by the event's own if the
    /// event creates it.
    pub owner: Option<Arc<str>>,
    /// Properties that the topic gets if this event creates it.
    pub properties: Option<Box<Properties>>,
    /// The hub's own end of a state that expired, which a closed topic takes too.
    pub ends_expired: bool,
}

impl Append {
    /// An event with a minted id, without conditions.
    #[must_use]
    pub const fn new(event: Arc<NewEvent>) -> Self {
        Self {
            event,
            if_offset: None,
            dedup: Dedup::Minted,
            close: false,
            owner: None,
            properties: None,
            ends_expired: false,
        }
    }

    /// Why a topic refuses the event for what it is, whatever it holds: asked before anything
    /// else, so that nobody learns of what is not his. `of` are the properties of a topic that is
    /// there.
    pub(crate) fn not_owner(&self, of: Option<&Properties>) -> Option<Refusal> {
        let own = self.properties.as_deref();
        judge_owner(self.owner.as_deref(), of.or(own)).err()
    }
}

/// Whether the topic belongs to the subject that it must belong to.
pub(crate) fn judge_owner(must_be: Option<&str>, properties: Option<&Properties>) -> Judged<()> {
    let owner = properties.and_then(|properties| properties.owner.as_deref());
    if must_be.is_some() && must_be != owner { Err(Refusal::NotOwner) } else { Ok(()) }
}

/// What becomes of a topic by [`Journal::set_properties`].
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Its new properties.
    pub properties: Properties,
    /// Whether it takes no more events.
    pub close: bool,
    /// The subject that it must belong to: by its old properties, or by the new ones if there is
    /// no such topic.
    pub owner: Option<Arc<str>>,
}

impl Change {
    /// New properties, without conditions.
    #[must_use]
    pub const fn to(properties: Properties) -> Self {
        Self { properties, close: false, owner: None }
    }

    /// `of` are the properties of a topic that is there.
    pub(crate) fn judge(&self, of: Option<&Properties>) -> Judged<()> {
        judge_owner(self.owner.as_deref(), of.or(Some(&self.properties)))
    }
}

/// What must hold of a topic for it to be deleted.
#[derive(Debug, Clone)]
pub enum DeleteIf {
    /// Nothing.
    Always,
    /// It belongs to this subject.
    OwnedBy(Arc<str>),
    /// It still ends where it did, with the properties that it had.
    Unchanged(Box<TopicInfo>),
}

impl DeleteIf {
    pub(crate) fn judge(&self, found: &TopicInfo) -> Judged<()> {
        match self {
            Self::Always => Ok(()),
            Self::OwnedBy(subject) => judge_owner(Some(subject), Some(&found.properties)),
            Self::Unchanged(expected)
                if found.head.end() == expected.head.end()
                    && found.properties == expected.properties =>
            {
                Ok(())
            }
            Self::Unchanged(_) => Err(Refusal::Changed),
        }
    }
}

/// A change, or why the journal did not make it.
pub type Judged<T> = Result<T, Refusal>;

/// Whether an event's id is looked up in the dedup window, and entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dedup {
    /// The publisher chose the id.
    ById,
    /// The hub minted it.
    Minted,
}

/// What became of a batch.
#[derive(Debug, Clone)]
pub struct Appended {
    /// The topic after the batch.
    pub head: Head,
    /// One outcome for each event, in order.
    pub outcomes: Vec<Outcome>,
    /// The events that were stored, by ascending offset.
    pub events: Vec<Event>,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was stored here.
    Stored(Position),
    /// Its id was stored before, here.
    Duplicate(Position),
    /// It was not stored.
    Refused(Refusal),
}

/// Why the journal did not store an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// `if_offset` did not match.
    #[error("state is not at the expected offset")]
    Conflict {
        /// The key's current state.
        current: Option<Event>,
    },
    /// The topic was closed.
    #[error("topic is closed")]
    Closed,
    /// The topic belongs to somebody else, or to nobody.
    #[error("this credential may not write the topic")]
    NotOwner,
    /// The topic is not as it was expected to be any more.
    #[error("topic was changed meanwhile")]
    Changed,
    /// The topic holds as many states as it may.
    #[error("topic already holds {limit} states")]
    StatesFull {
        /// States per topic.
        limit: u64,
    },
}

/// How much of a topic is read at once. Always at least one event, whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    /// Events.
    pub events: usize,
    /// Bytes of their data.
    pub bytes: usize,
}

impl Default for PageLimit {
    fn default() -> Self {
        Self { events: limits::REPLAY_PAGE_EVENTS, bytes: limits::REPLAY_PAGE_BYTES }
    }
}

/// A part of a topic's history.
#[derive(Debug, Clone)]
pub struct Page {
    /// The topic as it was when the page was read; the page is consistent with it.
    pub head: Head,
    /// Fingerprint of the event at `after`, if the journal still knows it.
    pub after_fingerprint: Option<Fingerprint>,
    /// The events by ascending offset.
    pub events: Vec<Event>,
    /// The position up to which this page is complete: everything held in `(after, next]` is in
    /// it. The end of the topic (for states: of the query), once there is no more; never before
    /// `after`.
    pub next: Position,
}

/// Which states to read.
#[derive(Debug, Clone)]
pub struct StateQuery {
    /// Keys that start with this text.
    pub prefix: String,
    /// States after this offset …
    pub after: Offset,
    /// … and not after this one.
    pub until: Offset,
    /// How much at once.
    pub limit: PageLimit,
}

impl StateQuery {
    /// All states.
    #[must_use]
    pub fn all() -> Self {
        Self {
            prefix: String::new(),
            after: Offset::ZERO,
            until: Offset(u64::MAX),
            limit: PageLimit::default(),
        }
    }

    /// The state of one key and of keys that start with it.
    #[must_use]
    pub fn of(key: &StateKey) -> Self {
        Self { prefix: key.as_str().to_owned(), ..Self::all() }
    }
}

/// A place that a reader describes by something else than an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locate {
    /// Before the last so many events that are still held.
    Latest(u64),
    /// Before the first event that was recorded at or after this time.
    Since(Timestamp),
}

/// How much of a topic is kept: whichever bound is reached first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Retention {
    /// Events recorded longer ago than this go.
    pub age: Option<Duration>,
    /// Log events and tombstones kept.
    pub events: Option<u64>,
    /// Bytes kept, as stored.
    pub bytes: Option<u64>,
}

impl Retention {
    /// Keeps everything.
    pub const UNLIMITED: Self = Self { age: None, events: None, bytes: None };
}

/// What the writer that creates a topic says about it.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Properties {
    /// Subject (`sub`) that `owner` rules let in.
    pub owner: Option<String>,
    /// Further subjects that `owner` rules let read. At most 100.
    pub readers: Vec<String>,
    /// The topic is deleted when nothing was appended for so long.
    pub ttl: Option<Duration>,
    /// Instead of the hub's retention.
    pub retention: Option<Retention>,
}

/// What a deployment decides about its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalSettings {
    /// States that one topic may hold; the hub's own topics (`$…`) may hold any number.
    pub states_per_topic: u64,
    /// How long a repeated event id is recognised at least …
    pub dedup_window: Duration,
    /// … and among how many last events of the topic, however old.
    pub dedup_events: u64,
}

impl Default for JournalSettings {
    fn default() -> Self {
        Self {
            states_per_topic: limits::STATES_PER_TOPIC,
            dedup_window: limits::DEDUP_WINDOW,
            dedup_events: limits::DEDUP_EVENTS_MIN,
        }
    }
}

impl JournalSettings {
    /// States that this topic may hold.
    #[must_use]
    pub fn states_max(&self, topic: &TopicKey) -> u64 {
        if topic.topic.is_reserved() { u64::MAX } else { self.states_per_topic }
    }

    /// Whether an id that was stored at `offset` and `at` is still recognised by an event that
    /// would be stored at `tail` and `now`. Once it is not, it never is again.
    #[must_use]
    pub fn recognises(&self, offset: Offset, at: Timestamp, tail: Offset, now: Timestamp) -> bool {
        at.until(now) < self.dedup_window || tail.0.saturating_sub(offset.0) <= self.dedup_events
    }
}

/// The epoch of a topic that was deleted so many times: known before it is ever written, another
/// one after each deletion, and another one in another store.
pub(crate) const fn topic_epoch(store_epoch: u32, incarnation: u32) -> Epoch {
    // A product with an odd number takes each value once, so no two incarnations share an epoch.
    Epoch(store_epoch ^ incarnation.wrapping_mul(0x9e37_79b1))
}

/// A topic in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Which topic.
    pub topic: TopicKey,
    /// Whether it was ever written (or given properties) and not deleted since.
    pub exists: bool,
    /// Its bounds.
    pub head: Head,
    /// Log events and tombstones held.
    pub events: u64,
    /// Bytes held in the log, as stored.
    pub bytes: u64,
    /// Current states held.
    pub states: u64,
    /// When the last event was recorded, or the topic created.
    pub written_at: Timestamp,
    /// When what is at `head.earliest` was recorded, so that nothing that is held is older; the
    /// default where the journal has to look, or there is nothing.
    pub oldest_at: Timestamp,
    /// What its creator said.
    pub properties: Properties,
}

impl TopicInfo {
    /// A topic that was never written, in the given history.
    #[must_use]
    pub fn absent(topic: TopicKey, epoch: Epoch) -> Self {
        Self {
            topic,
            exists: false,
            head: Head::empty(epoch),
            events: 0,
            bytes: 0,
            states: 0,
            written_at: Timestamp::default(),
            oldest_at: Timestamp::default(),
            properties: Properties::default(),
        }
    }
}

/// What was found in all of a journal: in the groups of a Redis Cluster, in journals side by side.
///
/// The rule: what one part does not answer keeps nobody from what the others hold, and what is not
/// among the items is not gone unless they are whole.
#[derive(Debug, Clone)]
#[must_use]
pub struct Found<T> {
    /// What the parts hold that answered.
    pub items: Vec<T>,
    /// Why a part did not answer; `None`: all did.
    pub missing: Option<JournalError>,
}

impl<T> Found<T> {
    /// Nothing yet, and nothing missing.
    pub(crate) const fn nothing() -> Self {
        Self { items: Vec::new(), missing: None }
    }

    /// Notes that a part did not answer.
    pub(crate) fn lacks(&mut self, why: JournalError) {
        self.missing.get_or_insert(why);
    }

    /// All there is.
    ///
    /// # Errors
    /// Why a part did not answer.
    pub fn whole(self) -> Result<Vec<T>, JournalError> {
        self.missing.map_or(Ok(self.items), Err)
    }
}

/// Of a journal that answers whole or not at all.
impl<T> From<Result<Vec<T>, JournalError>> for Found<T> {
    fn from(answer: Result<Vec<T>, JournalError>) -> Self {
        match answer {
            Ok(items) => Self { items, missing: None },
            Err(error) => Self { items: Vec::new(), missing: Some(error) },
        }
    }
}

/// Which topics to list.
#[derive(Debug, Clone)]
pub struct TopicQuery {
    /// Of one tenant; `None`: of all, by tenant and name.
    pub tenant: Option<Tenant>,
    /// Names that start with this text.
    pub prefix: String,
    /// After this topic.
    pub after: Option<TopicKey>,
    /// How many at most.
    pub limit: usize,
}

/// A state whose time has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// In which topic.
    pub topic: TopicKey,
    /// The state.
    pub event: Event,
    /// Which of its times.
    pub why: DueKind,
}

/// Which of a state's times has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DueKind {
    /// `expires_at`: it is to be ended by a tombstone.
    Expired,
    /// `due_at`: something is to be done about it.
    Due,
}

/// Why the journal could not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// It may work later: ask again after a moment, nothing needs mending here. Another process may
    /// have it open.
    #[error("journal is unavailable: {0}")]
    Unavailable(String),
    /// It will not work until a person acts: what is stored is damaged. The message names the file
    /// and the remedy.
    #[error("{0}")]
    Broken(String),
    /// The data directory is not one that can be used: it holds no journal or another one, is foreign,
    /// from another version or not permitted. Nothing of it was read; the message names the file and
    /// the remedy.
    #[error("{0}")]
    Unusable(String),
}
