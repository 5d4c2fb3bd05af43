//! Publishing: from checked events to durable positions.
//!
//! The rule: an answer is given when the event is durable, and one event's refusal is its own.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::join_all;
use sha2::{Digest as _, Sha256};

use crate::{
    error::{ErrorCode, Problem},
    hub::Hub,
    journal::{Append, Dedup, Durability, Outcome, Properties, judge_owner},
    model::{
        Class, Cursor, EventId, EventType, JsonText, NewEvent, Offset, Position, StateKey, Tenant,
        Topic, TopicKey, limits::DEDUP_WINDOW,
    },
    spans::Commit,
    topic_task::problem,
};

/// An event on its way to a topic.
#[derive(Debug, Clone)]
pub struct Publish {
    /// Where to.
    pub topic: Topic,
    /// What.
    pub event: NewEvent,
    /// The offset that the key's current state must have; 0: there must be none.
    pub if_offset: Option<Offset>,
    /// Whether the publisher chose the event's id, so that it may be a repeat.
    pub dedup: Dedup,
    /// Properties of the topic, if this event creates it.
    pub properties: Option<Box<Properties>>,
    /// Whether the topic is closed after this event, in the same commit.
    pub close: bool,
    /// The subject that the topic must belong to, judged in the same commit.
    pub owner: Option<Arc<str>>,
}

impl Publish {
    /// An event with a minted id, without conditions.
    #[must_use]
    pub const fn new(topic: Topic, event: NewEvent) -> Self {
        Self {
            topic,
            event,
            if_offset: None,
            dedup: Dedup::Minted,
            properties: None,
            close: false,
            owner: None,
        }
    }
}

/// Where an event is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The event's id.
    pub id: EventId,
    /// Its topic.
    pub topic: Topic,
    /// Its place; `None` for ephemeral events.
    pub position: Option<Position>,
    /// Whether its id was stored before; the position is the first one's.
    pub duplicate: bool,
    /// When it is on a disk; ephemeral events never are.
    pub durability: Durability,
}

impl Published {
    /// A cursor behind the event, for a reader of its topic.
    #[must_use]
    pub fn cursor(&self) -> Option<String> {
        self.position.map(|position| Cursor::single(&self.topic, position.into()).encode())
    }
}

impl Hub {
    /// Publishes events, answering each in order once it is durable.
    ///
    /// Events of one topic are stored in their order, in one commit if they fit; topics are
    /// independent of each other.
    ///
    /// Cancel-safe in this sense: dropped, each topic's events may be stored or not.
    pub async fn publish(
        &self,
        tenant: &Tenant,
        events: Vec<Publish>,
    ) -> Vec<Result<Published, Problem>> {
        let mut groups: Vec<Group> = Vec::new();
        let mut by_topic: HashMap<Topic, usize> = HashMap::new();
        let mut last = 0;
        let mut results = Vec::with_capacity(events.len());
        for (number, publish) in events.into_iter().enumerate() {
            if publish.event.class == Class::Ephemeral {
                results.push(Some(Box::pin(self.publish_ephemeral(tenant, publish)).await));
                continue;
            }
            results.push(None);
            // Mostly it is the last one's topic again.
            if groups.get(last).is_none_or(|group| group.topic.topic != publish.topic) {
                last = *by_topic.entry(publish.topic.clone()).or_insert(groups.len());
            }
            if last == groups.len() {
                groups.push(Group::new(TopicKey::new(tenant.clone(), publish.topic.clone())));
            }
            if let Some(group) = groups.get_mut(last) {
                group.add(number, publish);
            }
        }
        let answers = match <[Group; 1]>::try_from(groups) {
            Ok([group]) => self.append(group).await,
            Err(groups) => {
                let all = groups.into_iter().map(|group| self.append(group));
                join_all(all).await.into_iter().flatten().collect()
            }
        };
        for (number, answer) in answers {
            if let Some(slot) = results.get_mut(number) {
                *slot = Some(answer);
            }
        }
        let results: Vec<_> =
            results.into_iter().map(|result| result.unwrap_or_else(unanswered)).collect();
        self.count_published(&results);
        results
    }

    /// Publishes one event.
    ///
    /// # Errors
    /// The problem says what to do.
    pub async fn publish_one(
        &self,
        tenant: &Tenant,
        publish: Publish,
    ) -> Result<Published, Problem> {
        let answer = self.publish(tenant, vec![publish]).await.pop();
        answer.unwrap_or_else(unanswered)
    }

    /// Hands an event to the readers there are.
    async fn publish_ephemeral(
        &self,
        tenant: &Tenant,
        publish: Publish,
    ) -> Result<Published, Problem> {
        let Publish { topic, event, owner, .. } = publish;
        let key = TopicKey::new(tenant.clone(), topic.clone());
        let id = event.id.clone();
        if let Some(owner) = owner {
            let info = self.describe(&key).await?;
            judge_owner(Some(&owner), Some(&info.properties)).map_err(|r| Problem::from(&r))?;
        }
        self.topics().ephemeral(&key, Arc::new(event)).map_err(|r| Problem::from(&r))?;
        Ok(Published { id, topic, position: None, duplicate: false, durability: Durability::Never })
    }

    async fn append(&self, group: Group) -> Vec<(usize, Result<Published, Problem>)> {
        let Group { topic, numbers, appends } = group;
        let ids: Vec<EventId> = appends.iter().map(|append| append.event.id.clone()).collect();
        let mut commit = self.spans().commit(&topic, appends.len());
        let delivery = commit.as_ref().map(Commit::delivery);
        let outcomes = self.topics().append(&topic, appends, false, delivery).await;
        if let (Some(commit), Err(_)) = (&mut commit, &outcomes) {
            commit.failed();
        }
        drop(commit);
        let (epoch, outcomes) = match outcomes {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let failed = |number: usize| (number, Err(Problem::from(error.clone())));
                return numbers.into_iter().map(failed).collect();
            }
        };
        let durability = self.journal().durability(&topic);
        let answer = |((number, id), outcome): ((usize, EventId), Outcome)| {
            let published = |position, duplicate| Published {
                id,
                topic: topic.topic.clone(),
                position: Some(position),
                duplicate,
                durability,
            };
            let answer = match outcome {
                Outcome::Stored(position) => Ok(published(position, false)),
                Outcome::Duplicate(position) => Ok(published(position, true)),
                Outcome::Refused(refusal) => Err(problem(&refusal, &topic, epoch)),
            };
            (number, answer)
        };
        numbers.into_iter().zip(ids).zip(outcomes).map(answer).collect()
    }

    /// Counts what became of events, each result once: a request may hold thousands.
    fn count_published(&self, results: &[Result<Published, Problem>]) {
        let mut counts: Vec<(&'static str, u64)> = Vec::new();
        for result in results {
            let result = match result {
                Ok(Published { duplicate: true, .. }) => "duplicate",
                Ok(Published { position: None, .. }) => "ephemeral",
                Ok(_) => "stored",
                Err(problem) => problem.code.as_str(),
            };
            match counts.iter_mut().find(|(counted, _)| *counted == result) {
                Some((_, count)) => *count += 1,
                None => counts.push((result, 1)),
            }
        }
        for (result, count) in counts {
            self.metrics().events_published.get_or_create(&result.into()).inc_by(count);
        }
    }

    /// Makes a request repeatable as a whole: its events get ids that follow from the key, and the
    /// key is bound to the request's hash for as long as ids are recognised.
    ///
    /// `scope` separates the keys of different credentials. Each event comes with its place in the
    /// request, which a repeat must have too although other events of it may be refused then. Call
    /// it before [`Hub::publish`], which then answers a repeat with the first positions.
    ///
    /// # Errors
    /// [`ErrorCode::IdempotencyKeyReused`] if the key was used with another body.
    pub async fn bind_idempotency_key<'a>(
        &self,
        tenant: &Tenant,
        scope: &str,
        key: &str,
        body: &[u8],
        events: impl IntoIterator<Item = (usize, &'a mut Publish)>,
    ) -> Result<(), Problem> {
        // Lengths are fixed by hashing each part, so no two triples have one name.
        let name = [tenant.as_str(), scope, key].map(Sha256::digest).concat();
        let name = hex(&Sha256::new().chain_update(name));
        let hash = hex(&Sha256::new().chain_update(body));
        let shard = name.get(..2).unwrap_or_default();
        let topic = Topic::parse(&format!("$hub/idempotency/{shard}"))?;
        let state = NewEvent {
            expires_at: Some(self.clock().now().plus(DEDUP_WINDOW)),
            ..NewEvent::new(EventType::parse("idempotency_key")?)
                .state(StateKey::parse(&name)?)
                .data(JsonText::string(&hash))
        };
        let bind = Publish { if_offset: Some(Offset::ZERO), ..Publish::new(topic, state) };
        if let Err(problem) = self.publish_one(&Tenant::hub(), bind).await {
            let current = problem.current.as_ref().filter(|_| problem.code == ErrorCode::Conflict);
            let Some(current) = current else { return Err(problem) };
            let first: serde_json::Value =
                serde_json::from_str(current.as_str()).unwrap_or_default();
            if first.get("data").and_then(serde_json::Value::as_str) != Some(&hash) {
                let detail = "this idempotency key was used with another body; use a new key";
                let problem = Problem::new(ErrorCode::IdempotencyKeyReused, detail);
                return Err(problem.at("Idempotency-Key"));
            }
        }
        // Of the key and the body: a key that is used anew after its window must not find the events
        // of another body, which ids by count may keep longer.
        let request = hex(&Sha256::new().chain_update(&name).chain_update(&hash));
        for (place, publish) in events {
            if publish.dedup == Dedup::Minted {
                publish.event.id = EventId::parse(&format!("idempotent:{request}:{place}"))?;
                publish.dedup = Dedup::ById;
            }
        }
        Ok(())
    }
}

/// What an event is told that was forgotten on the way, which would be a defect.
pub(crate) fn unanswered() -> Result<Published, Problem> {
    Err(Problem::new(ErrorCode::Internal, "event was not answered"))
}

fn hex(digest: &Sha256) -> String {
    use std::fmt::Write as _;
    digest.clone().finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Events of one request that go to one topic.
#[derive(Debug)]
struct Group {
    topic: TopicKey,
    numbers: Vec<usize>,
    appends: Vec<Append>,
}

impl Group {
    const fn new(topic: TopicKey) -> Self {
        Self { topic, numbers: Vec::new(), appends: Vec::new() }
    }

    fn add(&mut self, number: usize, publish: Publish) {
        self.numbers.push(number);
        self.appends.push(Append {
            if_offset: publish.if_offset,
            dedup: publish.dedup,
            close: publish.close,
            owner: publish.owner,
            properties: publish.properties,
            ..Append::new(Arc::new(publish.event))
        });
    }
}
