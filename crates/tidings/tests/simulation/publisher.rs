//! Publishers: each sends what it has until it is answered, with ids or keys that make that safe.
//!
//! The rule: what was acknowledged is stored, where it was said to be; what was not is sent again.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tidings::model::{Cursor, Topic};
use tokio::time::sleep;

use crate::{
    chance::Chance,
    client::{Frames, ask, send},
    history::COUNTER,
    world::{CLOSING, World},
};

/// How a publisher publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One event after the other, each with an id.
    Single,
    /// Arrays over several topics, each event with an id.
    Batch,
    /// Requests that are repeatable by their key, events without ids.
    Keyed,
    /// A stream of lines.
    Lines,
    /// Raises a counter by compare-and-set.
    Counter,
}

pub(crate) struct Publisher {
    world: Arc<World>,
    kind: Kind,
    name: String,
    topics: Vec<&'static str>,
    chance: Chance,
    /// Events begun.
    count: u64,
}

/// An event on its way: where to, its JSON, and its data as the store has it.
#[derive(Debug, Clone)]
struct Draft {
    topic: &'static str,
    event: Value,
    data: String,
}

/// What became of a request.
enum Outcome {
    /// Nobody knows.
    Unanswered,
    /// Whether each event is settled: stored, or refused for good.
    Settled(Vec<bool>),
}

impl Publisher {
    pub(crate) fn new(
        world: &Arc<World>,
        name: &str,
        kind: Kind,
        topics: &[&'static str],
        chance: Chance,
    ) -> Self {
        let (world, name, topics) = (Arc::clone(world), name.to_owned(), topics.to_vec());
        Self { world, kind, name, topics, chance, count: 0 }
    }

    pub(crate) async fn run(mut self) {
        while !self.world.is_calm() {
            sleep(self.chance.millis(0..1200)).await;
            let sent = match self.kind {
                Kind::Single => self.single().await,
                Kind::Batch => self.batch().await,
                Kind::Keyed => self.keyed().await,
                Kind::Lines => self.lines().await,
                Kind::Counter => self.counter().await,
            };
            if let Err(wrong) = sent {
                self.world.trace.fail(&self.name, &wrong);
                return;
            }
        }
    }

    /// An event, its id in a form that says whether the publisher's order must be the topic's.
    fn draft(&mut self, separator: &str) -> Draft {
        self.count += 1;
        let Self { count, name, .. } = self;
        let topic = *self.chance.pick(&self.topics);
        let data = json!({ "by": name, "n": count });
        let mut event = json!({
            "topic": topic, "type": "test", "id": format!("{name}{separator}{count}"),
        });
        if self.chance.one_in(3) {
            event["class"] = "state".into();
            event["key"] = format!("k{}", self.chance.within(0..4)).into();
            if self.chance.one_in(5) {
                event["delete"] = true.into();
                return Draft { topic, event, data: String::new() };
            }
            if self.chance.one_in(6) {
                let end = self.world.in_seconds(self.chance.within(1..20));
                event["expires_at"] = end.into();
            }
        }
        event["data"] = data.clone();
        Draft { topic, event, data: data.to_string() }
    }

    async fn single(&mut self) -> Result<(), String> {
        if self.chance.one_in(12) {
            let event = json!({ "topic": self.topics[0], "type": "test", "class": "ephemeral" });
            let _ = ask(&self.world.network, self.json(&event)).await;
            return Ok(());
        }
        let draft = self.draft(":");
        let request = draft.event.clone();
        self.until_settled(vec![draft], |publisher| publisher.json(&request)).await
    }

    async fn batch(&mut self) -> Result<(), String> {
        let drafts: Vec<Draft> = (0..self.chance.within(2..14)).map(|_| self.draft("/")).collect();
        let events: Vec<Value> = drafts.iter().map(|draft| draft.event.clone()).collect();
        let request = Value::from(events);
        self.until_settled(drafts, |publisher| publisher.json(&request)).await
    }

    async fn keyed(&mut self) -> Result<(), String> {
        let mut drafts: Vec<Draft> =
            (0..self.chance.within(1..4)).map(|_| self.draft("/")).collect();
        for draft in &mut drafts {
            draft.event.as_object_mut().unwrap().remove("id");
        }
        let events: Vec<Value> = drafts.iter().map(|draft| draft.event.clone()).collect();
        let (body, key) = (Value::from(events), format!("{}-{}", self.name, self.count));
        self.until_settled(drafts, |publisher| {
            let mut request = publisher.json(&body);
            request.headers_mut().insert("idempotency-key", key.parse().unwrap());
            request
        })
        .await
    }

    /// Sends a request until every event of it is stored or refused for good.
    async fn until_settled(
        &mut self,
        drafts: Vec<Draft>,
        request: impl Fn(&Self) -> Request<Full<Bytes>>,
    ) -> Result<(), String> {
        loop {
            match self.send(&drafts, request(self)).await? {
                Outcome::Settled(settled) if settled.iter().all(|settled| *settled) => {
                    return Ok(());
                }
                _ => sleep(self.chance.millis(10..900)).await,
            }
        }
    }

    async fn send(
        &self,
        drafts: &[Draft],
        request: Request<Full<Bytes>>,
    ) -> Result<Outcome, String> {
        let Ok((status, body)) = ask(&self.world.network, request).await else {
            self.world.trace.line(&self.name, format_args!("unanswered"));
            return Ok(Outcome::Unanswered);
        };
        self.world.trace.line(&self.name, format_args!("{status}"));
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let results = match answer["results"].as_array() {
            Some(results) => results.clone(),
            // A refusal of the request as a whole, or of its only event.
            None => vec![json!({ "error": answer }); drafts.len()],
        };
        if results.len() != drafts.len() {
            return Err(format!("{} results for {} events", results.len(), drafts.len()));
        }
        let settled = drafts.iter().zip(&results).map(|(draft, result)| self.settle(draft, result));
        Ok(Outcome::Settled(settled.collect::<Result<_, _>>()?))
    }

    /// Whether an event's result settles it. An error if it is not true.
    fn settle(&self, draft: &Draft, result: &Value) -> Result<bool, String> {
        if let Some(cursor) = result["cursor"].as_str() {
            let decoded = Cursor::decode(cursor).map_err(|error| error.to_string())?;
            let mark = decoded.mark(&Topic::parse(draft.topic).unwrap());
            let position = mark.ok_or("a cursor of another topic")?.position;
            if !self.world.store.tell(draft.topic, position, &draft.data) {
                return Err(format!("{draft:?} was acknowledged at {position} and is not there"));
            }
            return Ok(true);
        }
        match result["error"]["code"].as_str() {
            Some("unavailable") => Ok(false),
            Some("topic_closed") if draft.topic == CLOSING => Ok(true),
            _ => Err(format!("{draft:?} was answered {result}")),
        }
    }

    /// Sends lines until each has its result; those without are sent again.
    async fn lines(&mut self) -> Result<(), String> {
        let mut left: Vec<Draft> =
            (0..self.chance.within(1..25)).map(|_| self.draft("/")).collect();
        while !left.is_empty() {
            let body: String = left.iter().map(|draft| format!("{}\n", draft.event)).collect();
            let request = self.world.request(Method::POST, "/v1/events", body.into());
            let request = with_type(request, "application/x-ndjson");
            let mut settled = Vec::new();
            if let Ok(mut answer) = send(&self.world.network, request).await
                && answer.status == StatusCode::OK
            {
                let mut frames = Frames::default();
                let waiting = std::time::Duration::from_secs(30);
                while let Ok(Some(piece)) = tokio::time::timeout(waiting, answer.piece()).await {
                    frames.push(&piece);
                    while let Some(line) = frames.line() {
                        let (line, place) = (line?.data, settled.len());
                        // After the last result may come a word on why there are no more.
                        let Some(draft) = left.get(place) else { break };
                        settled.push(self.settle(draft, &line)?);
                    }
                }
            }
            self.world.trace.line(&self.name, format_args!("{} lines answered", settled.len()));
            let mut settled = settled.into_iter();
            left.retain(|_| !settled.next().unwrap_or(false));
            sleep(self.chance.millis(0..900)).await;
        }
        Ok(())
    }

    /// Reads the counter and raises it by one, unless somebody else did.
    async fn counter(&mut self) -> Result<(), String> {
        let topic = self.topics[0];
        let losses = self.world.store.losses();
        let path = format!("/v1/state?topic={topic}&prefix={COUNTER}");
        let request = self.world.request(Method::GET, &path, Bytes::new());
        let Ok((StatusCode::OK, body)) = ask(&self.world.network, request).await else {
            return Ok(());
        };
        let answer: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let current = &answer["states"][0];
        let offset = current["position"].as_str().and_then(|position| position.split_once('-'));
        let offset: u64 = offset.and_then(|(_, offset)| offset.parse().ok()).unwrap_or(0);
        self.count += 1;
        let count = current["data"]["count"].as_u64().unwrap_or(0) + 1;
        let data = json!({ "by": self.name, "count": count, "n": self.count });
        let event = json!({
            "topic": topic, "type": "test", "class": "state", "key": COUNTER,
            "id": format!("{}/{}", self.name, self.count), "if_offset": offset, "data": data,
        });
        let draft = Draft { topic, event, data: data.to_string() };
        // Once the store has lost events, the offset may be another event's.
        while self.world.store.losses() == losses {
            let request = self.json(&draft.event);
            if let Ok((_, body)) = ask(&self.world.network, request).await {
                let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
                self.world.trace.line(&self.name, format_args!("{count}: {}", answer["code"]));
                if answer["code"] == "conflict" {
                    return Ok(());
                }
                let refused = json!({ "error": answer });
                if self.settle(&draft, answer["results"].get(0).unwrap_or(&refused))? {
                    return Ok(());
                }
            }
            sleep(self.chance.millis(10..500)).await;
        }
        Ok(())
    }

    fn json(&self, body: &Value) -> Request<Full<Bytes>> {
        let request = self.world.request(Method::POST, "/v1/events", body.to_string().into());
        with_type(request, "application/json")
    }
}

pub(crate) fn with_type(
    mut request: Request<Full<Bytes>>,
    kind: &'static str,
) -> Request<Full<Bytes>> {
    request.headers_mut().insert("content-type", http::HeaderValue::from_static(kind));
    request
}
