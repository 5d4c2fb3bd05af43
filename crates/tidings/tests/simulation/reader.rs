//! A reader: follows topics, comes back with its last cursor, and checks all that it is told.
//!
//! The rule: it does what a good client does and no more. It counts a frame once that has come
//! whole, and after that it believes the cursor.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tidings::model::Cursor;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    chance::Chance,
    client::{self, Frame, Frames, Unanswered, ask, send},
    followed::{Asked, Followed, Gap, Since, Step, Told, Wants},
    world::World,
};

/// How a reader follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Sse,
    Ndjson,
    LongPoll,
}

/// How a reader says who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Key,
    /// A token that ends soon, and is replaced then.
    Token(String),
    /// As a browser: in the query, once.
    Ticket(String),
}

/// What a reader is made of.
#[derive(Debug, Clone)]
pub(crate) struct Habits {
    pub(crate) name: String,
    pub(crate) topics: Vec<String>,
    pub(crate) form: Form,
    pub(crate) since: Since,
    pub(crate) wants: Wants,
    pub(crate) credential: Credential,
}

/// What a reader knows; the world looks at it too.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    pub(crate) topics: BTreeMap<String, Followed>,
    /// It was told that nothing can follow.
    pub(crate) is_finished: bool,
}

pub(crate) struct Reader {
    world: Arc<World>,
    habits: Habits,
    chance: Chance,
    cursor: Option<String>,
    knowledge: Arc<Mutex<Knowledge>>,
}

impl Reader {
    pub(crate) fn new(world: &Arc<World>, habits: Habits, chance: Chance) -> Self {
        let topics = habits.topics.iter().map(|topic| (topic.clone(), Followed::default()));
        let knowledge = Knowledge { topics: topics.collect(), is_finished: false };
        let knowledge = Arc::new(Mutex::new(knowledge));
        Self { world: Arc::clone(world), habits, chance, cursor: None, knowledge }
    }

    pub(crate) fn knowledge(&self) -> Arc<Mutex<Knowledge>> {
        Arc::clone(&self.knowledge)
    }

    pub(crate) async fn run(mut self) {
        sleep(self.chance.millis(0..5000)).await;
        while !self.knowledge.lock().unwrap().is_finished {
            if let Err(wrong) = self.connect().await {
                self.world.trace.fail(&self.habits.name, &wrong);
                return;
            }
            sleep(self.chance.millis(0..1500)).await;
        }
    }

    /// One connection, from the request to its end.
    async fn connect(&mut self) -> Result<(), String> {
        for followed in self.knowledge.lock().unwrap().topics.values_mut() {
            // Told again on every connection that gets there.
            followed.is_closed = false;
        }
        if self.renew().await.is_err() {
            return Ok(());
        }
        let is_foreign = !self.world.is_calm() && self.chance.one_in(40);
        let request = self.request(is_foreign);
        let told = self.world.store.history(|history| {
            let told = |topic: &String| history.now(topic).told();
            self.habits.topics.iter().map(|topic| (topic.clone(), told(topic))).collect()
        });
        let Habits { since, wants, form, .. } = self.habits;
        let asked = Asked { at: Instant::now(), since, wants, is_foreign, told };
        self.world.trace.line(&self.habits.name, format_args!("asks, foreign {is_foreign}"));
        let Ok(mut answer) = send(&self.world.network, request).await else { return Ok(()) };
        match answer.status {
            StatusCode::OK if form == Form::LongPoll => {
                match answer.whole(Duration::from_secs(40)).await {
                    Ok((_, page)) => self.page(&page, &asked),
                    Err(Unanswered) => Ok(()),
                }
            }
            StatusCode::OK => self.stream(&mut answer, &asked).await,
            StatusCode::NO_CONTENT => self.finished(),
            StatusCode::UNAUTHORIZED => self.refused(answer).await,
            StatusCode::SERVICE_UNAVAILABLE => Ok(()),
            status => Err(format!("was answered {status}")),
        }
    }

    /// Whether only a new credential helps.
    async fn refused(&mut self, answer: client::Answer) -> Result<(), String> {
        let Ok((_, body)) = answer.whole(Duration::from_secs(10)).await else { return Ok(()) };
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        self.world.trace.line(&self.habits.name, format_args!("refused: {}", problem["code"]));
        match &mut self.habits.credential {
            Credential::Key => Err(format!("its key was refused: {problem}")),
            Credential::Token(text) | Credential::Ticket(text) => {
                text.clear();
                Ok(())
            }
        }
    }

    /// Gets a new token or ticket where there is none.
    async fn renew(&mut self) -> Result<(), Unanswered> {
        let life = self.chance.within(5..90);
        match &mut self.habits.credential {
            Credential::Token(text) if text.is_empty() => *text = self.world.token(life),
            Credential::Ticket(text) if text.is_empty() => {
                let request = self.world.request(Method::POST, "/v1/tickets", Bytes::new());
                let (status, body) = ask(&self.world.network, request).await?;
                let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
                let ticket = answer["ticket"].as_str().filter(|_| status == StatusCode::CREATED);
                ticket.ok_or(Unanswered)?.clone_into(text);
            }
            _ => {}
        }
        Ok(())
    }

    fn request(&mut self, is_foreign: bool) -> Request<Full<Bytes>> {
        let Habits { topics, form, since, wants, credential, .. } = &self.habits;
        let mut query: Vec<String> = topics.iter().map(|topic| format!("topic={topic}")).collect();
        if self.chance.one_in(2) {
            query.reverse();
        }
        match since {
            Since::Earliest => query.push("since=earliest".to_owned()),
            // The default; said, it also holds after a reset.
            Since::Now => {}
        }
        match wants {
            Wants::Everything => {}
            Wants::Logs => query.push("class=log".to_owned()),
            Wants::States => query.push("class=state".to_owned()),
        }
        if *form == Form::LongPoll {
            query.push("wait=10s".to_owned());
        }
        let mut builder = Request::builder().header("host", "hub");
        let cursor = if is_foreign { Some("AQnotacursor".to_owned()) } else { self.cursor.clone() };
        match cursor {
            Some(cursor) if self.chance.one_in(2) => query.push(format!("last_event_id={cursor}")),
            Some(cursor) => builder = builder.header("last-event-id", cursor),
            None => {}
        }
        builder = match credential {
            Credential::Key => builder.header("authorization", self.world.bearer()),
            Credential::Token(text) => builder.header("authorization", format!("Bearer {text}")),
            Credential::Ticket(text) => {
                query.push(format!("ticket={text}"));
                builder
            }
        };
        let accept = match form {
            Form::Sse => "text/event-stream",
            Form::Ndjson => "application/x-ndjson",
            Form::LongPoll => "application/json",
        };
        builder = builder.header("accept", accept);
        builder.uri(format!("/v1/events?{}", query.join("&"))).body(Full::default()).unwrap()
    }

    async fn stream(&mut self, answer: &mut client::Answer, asked: &Asked) -> Result<(), String> {
        let mut frames = Frames::default();
        let mut step = Step::default();
        // A client that is sometimes slow, and leaves at times.
        let mut left = if self.chance.one_in(3) { self.chance.within(0..60) } else { u64::MAX };
        loop {
            let silence = if self.world.is_calm() { 3600 } else { 30 };
            let Ok(Some(piece)) = timeout(Duration::from_secs(silence), answer.piece()).await
            else {
                self.world.trace.line(&self.habits.name, format_args!("was cut off"));
                return Ok(());
            };
            frames.push(&piece);
            while let Some(frame) =
                if self.habits.form == Form::Sse { frames.sse() } else { frames.line() }
            {
                if self.hear(frame?, &mut step, asked)? {
                    return Ok(());
                }
                left = left.saturating_sub(1);
            }
            if self.world.is_calm() {
                continue;
            }
            if left == 0 {
                self.world.trace.line(&self.habits.name, format_args!("leaves"));
                return Ok(());
            }
            if self.chance.one_in(40) {
                sleep(self.chance.millis(1000..25_000)).await;
            }
        }
    }

    /// Takes in a frame; returns whether the hub says that the connection ends.
    fn hear(&mut self, frame: Frame, step: &mut Step, asked: &Asked) -> Result<bool, String> {
        let mut ends = false;
        let mut is_told = false;
        match frame.name.as_deref() {
            None => {
                is_told = Told::read(&frame.data)?.map(|told| step.events.push(told)).is_some();
            }
            Some("tidings.gap") => {
                let gap = Gap::read(&frame.data)?;
                self.world.trace.line(&self.habits.name, format_args!("gap {gap:?}"));
                step.gaps.push(gap);
            }
            Some("tidings.caught_up") => self.caught_up(&frame.data, asked)?,
            Some("tidings.closed") => self.closed(&frame.data)?,
            Some("tidings.goaway") => {
                ends = true;
                self.world
                    .trace
                    .line(&self.habits.name, format_args!("goaway {}", frame.data["reason"]));
            }
            Some(
                "tidings.hello" | "tidings.checkpoint" | "tidings.ping" | "tidings.auth"
                | "tidings.problem",
            ) => {}
            Some(name) => return Err(format!("the hub says {name}")),
        }
        match frame.cursor {
            Some(cursor) => self.advance(std::mem::take(step), cursor, asked)?,
            None if is_told => return Err("an event came without a cursor".to_owned()),
            None => {}
        }
        Ok(ends)
    }

    fn advance(&mut self, step: Step, cursor: String, asked: &Asked) -> Result<(), String> {
        let decoded = Cursor::decode(&cursor).map_err(|error| error.to_string())?;
        let mut knowledge = self.knowledge.lock().unwrap();
        self.world.store.history(|history| {
            for (topic, followed) in &mut knowledge.topics {
                let advanced = followed.advance(topic, &step, &decoded, asked, history);
                advanced.map_err(|wrong| format!("{topic}: {wrong}"))?;
            }
            Ok::<_, String>(())
        })?;
        self.cursor = Some(cursor);
        let offsets: Vec<u64> = step.events.iter().map(|told| told.offset).collect();
        let marks = knowledge.topics.values().filter_map(|followed| followed.mark);
        let marks: Vec<u64> = marks.map(|mark| mark.position.offset.0).collect();
        self.world.trace.line(&self.habits.name, format_args!("{offsets:?} {marks:?}"));
        Ok(())
    }

    fn caught_up(&self, data: &Value, asked: &Asked) -> Result<(), String> {
        let mut knowledge = self.knowledge.lock().unwrap();
        let offsets = data["topics"].as_object().ok_or("caught up nowhere")?;
        self.world.store.history(|history| {
            for (topic, offset) in offsets {
                let followed = knowledge.topics.get_mut(topic).ok_or("a topic not asked for")?;
                let offset = offset.as_u64().ok_or("an offset that is none")?;
                let caught_up = followed.caught_up(topic, offset, asked, history);
                caught_up.map_err(|wrong| format!("{topic}: {wrong}"))?;
            }
            Ok(())
        })
    }

    fn closed(&self, data: &Value) -> Result<(), String> {
        let topic = data["topic"].as_str().ok_or("closed without a topic")?;
        let mut knowledge = self.knowledge.lock().unwrap();
        let followed = knowledge.topics.get_mut(topic).ok_or("a topic not asked for")?;
        let mark = followed.mark.ok_or("closed without a cursor")?;
        self.world.store.history(|history| {
            let line = history.line(topic, mark.position, None).ok_or("closed nowhere")?;
            if history.was_closed_at(topic, mark.position) {
                return Ok(());
            }
            let (position, end, closed) = (mark.position, line.end(), line.closed);
            Err(format!("{topic} is closed at {position}, its end is {end}, closed {closed}"))
        })?;
        followed.is_closed = true;
        Ok(())
    }

    /// A page of a long-poll: many events, one cursor.
    fn page(&mut self, page: &[u8], asked: &Asked) -> Result<(), String> {
        let page: Value = serde_json::from_slice(page).map_err(|error| error.to_string())?;
        let list = |name: &str| page[name].as_array().cloned().unwrap_or_default();
        let mut step = Step::default();
        for event in list("events") {
            step.events.extend(Told::read(&event)?);
        }
        for gap in list("gaps") {
            step.gaps.push(Gap::read(&gap)?);
        }
        let cursor = page["cursor"].as_str().ok_or("a page without a cursor")?;
        self.advance(step, cursor.to_owned(), asked)?;
        if page["closed"] == true {
            let topics = self.habits.topics.clone();
            for topic in topics {
                self.closed(&serde_json::json!({ "topic": topic }))?;
            }
            self.finished()?;
        }
        Ok(())
    }

    /// The hub says that nothing can follow.
    fn finished(&self) -> Result<(), String> {
        let mut knowledge = self.knowledge.lock().unwrap();
        self.world.trace.line(&self.habits.name, format_args!("finished"));
        knowledge.is_finished = true;
        for (topic, followed) in &mut knowledge.topics {
            let mark = followed.mark.ok_or("finished before it began")?;
            self.world.store.history(|history| {
                let is_end = history.was_closed_at(topic, mark.position);
                if is_end { Ok(()) } else { Err(format!("{topic} was not at its end")) }
            })?;
        }
        Ok(())
    }
}
