//! A connection: a subscription written as bytes, with heartbeats, and its end announced.
//!
//! The rule: whatever ends a connection, the last cursor sent is one from which nothing is lost.

mod encoder;
mod timers;
mod waiting;

use std::{
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::{
    auth::Grant,
    connections::{Leave, Told},
    counted::Counted,
    error::{ErrorCode, Problem},
    hub::Hub,
    journal::JournalError,
    model::{Class, Timestamp},
    sse::{Control, GoAway},
    subscribe::{Follow, Item, Subscription},
    ticket::{UsedTicket, first_cursor},
    topic_task::Waker,
};
use encoder::{Cursored, Encoder};
use timers::Timers;

pub use self::waiting::Waiting;
pub use crate::counted::Carrier;

/// How a connection writes events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `text/event-stream` (WHATWG HTML §9.2).
    Sse,
    /// `application/x-ndjson`: each line an object, its cursor a member.
    Ndjson,
}

impl Format {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
        }
    }
}

/// What of an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    /// The whole, as CloudEvents JSON.
    CloudEvents,
    /// Its data alone.
    None,
}

/// How a connection is to be served.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionOptions {
    /// How events are written.
    pub format: Format,
    /// What of them.
    pub envelope: Envelope,
    /// When the credential ends, and delivery with it.
    pub expires_at: Option<Timestamp>,
}

/// A reader's connection: a source of bytes until it ends.
#[derive(Debug)]
pub struct Connection {
    hub: Hub,
    id: String,
    phase: Phase,
    encoder: Encoder,
    timers: Timers,
    options: ConnectionOptions,
    /// By which it is told that something came for it.
    waker: Arc<Waker>,
    /// Whose leave it reads by; `None`: nobody need be asked.
    grant: Option<Grant>,
    leave: Option<Leave>,
    /// Whose leave it is to read by, once it is sure that it allows all of it.
    renewed: Option<Grant>,
    /// What was found and may not be delivered before the grant was asked again.
    found: Vec<Item>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When its bytes were asked for the first time, until it is up to date.
    asked_at: Option<Instant>,
    counted: Counted,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a connection is in its last variant nearly always")]
enum Phase {
    New(Follow),
    Start(Follow),
    Run(Subscription),
    Ended,
}

impl Connection {
    /// Opens a connection. Nothing is read before its bytes are asked for.
    #[must_use]
    pub fn open(hub: &Hub, follow: Follow, options: ConnectionOptions) -> Self {
        let settings = hub.settings();
        let age = jitter(settings.connection_age_max, 10);
        // Within 20 % of it, as the protocol has it: they are pinged up to 0.4 % early.
        let heartbeat = jitter(settings.heartbeat, 19);
        let timers = Timers::new(hub, heartbeat, age, options.expires_at);
        let counted = Counted::new(hub, options.format.as_str());
        Self {
            hub: hub.clone(),
            id: uuid::Uuid::now_v7().simple().to_string(),
            phase: Phase::New(follow),
            encoder: Encoder::new(options),
            timers,
            options,
            waker: Arc::default(),
            grant: None,
            leave: None,
            renewed: None,
            found: Vec::new(),
            draining: Box::pin(hub.draining().clone().cancelled_owned()),
            asked_at: None,
            counted,
        }
    }

    /// Has this grant asked again whenever the properties of a topic change by whose leave it reads,
    /// and lets it be revoked and renewed: the connection ends before it delivers what the grant does
    /// not allow any more. It is one of [`Hub::connections`] from here on.
    #[must_use]
    pub fn guarded_by(mut self, grant: Grant, ticket: Option<UsedTicket>) -> Self {
        let topics = match &self.phase {
            Phase::New(follow) | Phase::Start(follow) => follow.topics.as_slice(),
            Phase::Run(_) | Phase::Ended => &[],
        };
        self.leave =
            Some(Leave::take(&self.hub, &self.id, topics, ticket, grant.clone(), &self.waker));
        self.grant = Some(grant);
        self
    }

    /// Counts it among those that are carried so.
    #[must_use]
    pub fn carried_by(mut self, carrier: Carrier) -> Self {
        self.counted.carry(carrier, self.options.format.as_str());
        self
    }

    /// The connection's id, as its first frame tells it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for the next bytes; `None` once the connection has ended.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            match poll_fn(|context| self.poll_next(context)).await {
                Next::Bytes(bytes) => return Some(bytes),
                Next::Ended => return None,
                Next::Work => {
                    if let Some(bytes) = self.work().await {
                        return Some(bytes);
                    }
                }
            }
        }
    }

    /// The next bytes, as far as memory goes.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        self.counted.handed_at = None;
        loop {
            match self.phase {
                Phase::New(_) | Phase::Start(_) => return Poll::Ready(Next::Work),
                Phase::Run(_) => {}
                Phase::Ended => return Poll::Ready(Next::Ended),
            }
            let bytes = if self.renewed.is_some() || self.may_have_changed() {
                return Poll::Ready(Next::Work);
            } else if self.found.is_empty() {
                match self.poll_happening(context) {
                    Poll::Ready(Happening::Journal) => return Poll::Ready(Next::Work),
                    Poll::Ready(happening) => self.answer(happening),
                    Poll::Pending => return Poll::Pending,
                }
            } else {
                self.deliver()
            };
            if let Some(bytes) = self.handed(bytes) {
                return Poll::Ready(Next::Bytes(bytes));
            }
        }
    }

    /// Notes that bytes are handed out, if there are any.
    fn handed(&mut self, bytes: Bytes) -> Option<Bytes> {
        if bytes.is_empty() {
            return None;
        }
        self.counted.handed_at = Some(self.timers.wrote_at);
        Some(bytes)
    }

    /// Does what has to be waited for: asks the journal.
    ///
    /// Cancel-safe: what was found is kept, and what was begun begins anew.
    async fn work(&mut self) -> Option<Bytes> {
        let bytes = match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::New(follow) => {
                self.asked_at = Some(Instant::now());
                // Before any storage access: the reader learns that the way is clear.
                let first = follow.tag.map(|tag| first_cursor(follow.cursor.as_deref(), tag));
                self.phase = Phase::Start(follow);
                match (self.options.format, first.flatten()) {
                    (Format::Ndjson, _) => Bytes::new(),
                    (Format::Sse, Some(cursor)) => {
                        format!(": ok\nid: {}\n\n", cursor.encode()).into()
                    }
                    (Format::Sse, None) => Bytes::from_static(b": ok\n\n"),
                }
            }
            Phase::Start(follow) => {
                // Put back first: dropped while it starts, this starts anew.
                self.phase = Phase::Start(follow.clone());
                self.start(follow).await
            }
            Phase::Run(subscription) => {
                self.phase = Phase::Run(subscription);
                self.work_on().await
            }
            Phase::Ended => Bytes::new(),
        };
        self.handed(bytes)
    }

    async fn start(&mut self, follow: Follow) -> Bytes {
        let (topics, waker) = (Arc::clone(self.hub.topics()), Arc::clone(&self.waker));
        let (subscription, started) = match Subscription::start(topics, follow, waker).await {
            Ok(started) => started,
            Err(problem) => return self.fail(&problem),
        };
        self.encoder.cursor = subscription.cursor().clone();
        self.encoder.gaps_untold = started.gaps;
        self.encoder.topics = subscription.topics().cloned().collect();
        // Asked before, but changes are told from here on only.
        if self.leave.as_ref().is_some_and(Leave::is_revoked) {
            return self.revoke();
        }
        match may_read(&self.hub, self.grant.as_ref(), &subscription).await {
            Ok(true) => {}
            Ok(false) => return self.revoke(),
            Err(error) => return self.fail(&Problem::from(error)),
        }
        let heads = started.heads.into_iter();
        let heartbeat = self.hub.settings().heartbeat.mul_f64(1.2);
        let hello = Control::Hello {
            connection: &self.id,
            heartbeat_ms: millis(heartbeat),
            resumed: started.resumed.as_str(),
            topics: subscription.topics().zip(heads).collect(),
        };
        let retry = self.hub.settings().retry;
        self.encoder.control(&hello, Cursored::Yes, Some(retry));
        self.phase = Phase::Run(subscription);
        self.encoder.take()
    }

    /// Whether something that was found may be from after a change of who may read it.
    fn may_have_changed(&self) -> bool {
        self.found.iter().any(|item| matches!(item, Item::Changed { .. }))
    }

    /// Asks the journal for what memory does not have.
    async fn work_on(&mut self) -> Bytes {
        if self.renewed.is_some() {
            return self.renew().await;
        }
        let is_judged = !self.may_have_changed();
        if is_judged {
            return self.read().await;
        }
        let Self { hub, phase: Phase::Run(subscription), grant, found, .. } = self else {
            return Bytes::new();
        };
        match may_read(hub, grant.as_ref(), subscription).await {
            Ok(true) => {
                found.retain(|item| !matches!(item, Item::Changed { .. }));
                self.deliver()
            }
            Ok(false) => self.revoke(),
            Err(error) => self.fail(&Problem::from(error)),
        }
    }

    /// Has the subscription read the journal, unless something else happens before.
    async fn read(&mut self) -> Bytes {
        let Self { phase: Phase::Run(subscription), timers, draining, waker, .. } = self else {
            return Bytes::new();
        };
        let happening = {
            let mut reading = pin!(subscription.read());
            let next = poll_fn(|context| {
                if waker.listen(context).is_ready() {
                    // What others want comes first, and this begins anew.
                    return Poll::Ready(None);
                }
                if !timers.is_draining && draining.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Some(Happening::Drain));
                }
                match reading.as_mut().poll(context) {
                    Poll::Ready(Ok(())) => Poll::Ready(None),
                    Poll::Ready(Err(error)) => Poll::Ready(Some(Happening::Failed(error))),
                    Poll::Pending => timers.poll_next(context).map(Some),
                }
            });
            next.await
        };
        happening.map_or_else(Bytes::new, |happening| self.answer(happening))
    }

    /// Waits for the next thing that happens to it.
    fn poll_happening(&mut self, context: &mut Context<'_>) -> Poll<Happening> {
        let Self { phase: Phase::Run(subscription), timers, draining, leave, waker, .. } = self
        else {
            return Poll::Pending;
        };
        loop {
            // Before the end by time: the credential may have been renewed in time.
            if waker.answer()
                && let Some(told) = leave.as_ref().and_then(Leave::told)
            {
                return Poll::Ready(Happening::Told(told));
            }
            // The end first, and its notice: a reader that is behind always has events waiting, and
            // a credential that has ended must not deliver them.
            let now = Instant::now();
            if let Some(reason) = timers.ended(now) {
                return Poll::Ready(Happening::End(reason));
            }
            if let Some(expires_at) = timers.noticed(now) {
                return Poll::Ready(Happening::Notice(expires_at));
            }
            if !timers.is_draining && draining.as_mut().poll(context).is_ready() {
                return Poll::Ready(Happening::Drain);
            }
            match subscription.poll_next(context) {
                Poll::Ready(Some(items)) => return Poll::Ready(Happening::Found(items)),
                Poll::Ready(None) => return Poll::Ready(Happening::Journal),
                Poll::Pending => {}
            }
            // A call before the waker was registered wakes nobody.
            if !waker.is_called() {
                return timers.poll_next(context);
            }
        }
    }

    /// What the reader is sent because of what happened.
    fn answer(&mut self, happening: Happening) -> Bytes {
        match happening {
            Happening::Found(items) => {
                self.found = items;
                // What it may be after a change of the topic's properties is asked first.
                return if self.may_have_changed() { Bytes::new() } else { self.deliver() };
            }
            Happening::Journal => {}
            Happening::Failed(error) => return self.fail(&Problem::from(error)),
            Happening::Ping => {
                let now = self.hub.clock().now();
                self.encoder.control(&Control::Ping(now), Cursored::No, None);
                self.timers.wrote();
            }
            Happening::Notice(expires_at) => {
                let expires_at = Some(expires_at);
                self.encoder.control(&Control::Auth { expires_at }, Cursored::No, None);
            }
            Happening::Told(Told::Renewed(grant)) => self.renewed = Some(grant),
            Happening::Told(Told::End(GoAway::Revoked)) => return self.revoke(),
            Happening::Told(Told::End(reason)) | Happening::End(reason) => {
                let window = self.hub.settings().retry;
                self.go_away(reason, window.mul_f64(0.5 + random()));
            }
            Happening::Drain => {
                // Readers are let go one after the other, in time for the last to be told.
                let window = self.hub.settings().drain_window;
                self.timers.drain(window.mul_f64(0.8 * random()));
            }
        }
        self.encoder.take()
    }

    /// Writes what was found, of which it is sure that the reader may have it.
    fn deliver(&mut self) -> Bytes {
        let Self { phase: Phase::Run(subscription), found, .. } = self else {
            return Bytes::new();
        };
        let delivered = self.encoder.items(std::mem::take(found), subscription);
        let now = self.timers.wrote();
        let metrics = self.hub.metrics();
        metrics.events_delivered.inc_by(delivered.events);
        metrics.delivered.inc_by(self.encoder.len() as u64);
        if let Some(taken_at) = delivered.oldest {
            metrics.delivery_latency.observe_duration(now.duration_since(taken_at));
        }
        if delivered.is_caught_up
            && let Some(asked_at) = self.asked_at.take()
        {
            metrics.catch_up_duration.observe_duration(now.duration_since(asked_at));
        }
        if subscription.is_finished() {
            self.go_away(GoAway::Closed, self.hub.settings().retry);
        }
        self.encoder.take()
    }

    /// Goes on by another grant, or ends if that does not allow everything.
    async fn renew(&mut self) -> Bytes {
        let Self { phase: Phase::Run(subscription), renewed: Some(grant), .. } = self else {
            return Bytes::new();
        };
        // It was asked before, but a topic may have changed since.
        match may_read(&self.hub, Some(grant), subscription).await {
            Ok(true) => {}
            Ok(false) => return self.revoke(),
            Err(error) => return self.fail(&Problem::from(error)),
        }
        let expires_at = grant.expires_at();
        self.grant = self.renewed.take();
        self.timers.expire(&self.hub, expires_at);
        // What it is told now is the notice too, where that is due already.
        self.timers.noticed(Instant::now());
        self.encoder.control(&Control::Auth { expires_at }, Cursored::No, None);
        self.encoder.take()
    }

    fn revoke(&mut self) -> Bytes {
        self.go_away(GoAway::Revoked, self.hub.settings().retry);
        self.encoder.take()
    }

    /// Tells why the connection ends and where the reader is, and ends it.
    fn go_away(&mut self, reason: GoAway, retry: Duration) {
        let control = Control::GoAway { reason, retry_ms: millis(retry) };
        self.encoder.control(&Control::Checkpoint, Cursored::Yes, None);
        self.encoder.control(&control, Cursored::No, Some(retry));
        self.counted.end(reason);
        self.phase = Phase::Ended;
    }

    /// Ends the connection after a failure. The cursor stays where it was.
    fn fail(&mut self, problem: &Problem) -> Bytes {
        self.encoder.control(&Control::Problem(problem), Cursored::No, None);
        let retry = self.hub.settings().retry.mul_f64(0.5 + random());
        let control = Control::GoAway { reason: GoAway::Unavailable, retry_ms: millis(retry) };
        self.encoder.control(&control, Cursored::No, Some(retry));
        self.counted.end(GoAway::Unavailable);
        self.phase = Phase::Ended;
        self.encoder.take()
    }
}

/// What a connection has for its reader.
enum Next {
    Bytes(Bytes),
    Ended,
    /// Something has to be waited for first, by [`Connection::work`].
    Work,
}

enum Happening {
    Found(Vec<Item>),
    /// What follows is in the journal.
    Journal,
    Failed(JournalError),
    Ping,
    Notice(Timestamp),
    Told(Told),
    Drain,
    End(GoAway),
}

/// A page of events for a reader that asks again and again (long-poll).
#[derive(Debug)]
pub struct LongPoll {
    /// The events as CloudEvents JSON, or their data.
    pub events: Vec<Bytes>,
    /// Gaps among them, as the stream's frames write them.
    pub gaps: Vec<serde_json::Value>,
    /// Where to go on.
    pub cursor: String,
    /// Whether nothing can follow.
    pub closed: bool,
}

impl Hub {
    /// Reads what follows a cursor, waiting for it at most so long. Ephemeral events are left out.
    /// The grant, if there is one, is asked again when the properties of a topic change.
    ///
    /// # Errors
    /// The journal's, [`ErrorCode::ForbiddenTopic`] and [`ErrorCode::CredentialRevoked`]; the
    /// reader's cursor is still good.
    pub async fn poll(
        &self,
        grant: Option<&Grant>,
        follow: Follow,
        envelope: Envelope,
        wait: Duration,
    ) -> Result<LongPoll, Problem> {
        let deadline = Instant::now() + wait;
        let (mut subscription, _) = self.subscribe(follow).await?;
        let mut page =
            LongPoll { events: Vec::new(), gaps: Vec::new(), cursor: String::new(), closed: false };
        let (mut is_judged, mut is_caught_up) = (false, false);
        let revoked = async {
            match grant {
                Some(grant) => self.until_revoked(grant).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(revoked);
        loop {
            let items = tokio::select! {
                biased;
                problem = &mut revoked => return Err(problem),
                items = subscription.next() => items?,
                // The time is for what is to come: what is there already is read first.
                () = tokio::time::sleep_until(deadline), if is_caught_up => break,
                () = self.draining().cancelled() => break,
            };
            is_judged &= !items.iter().any(|item| matches!(item, Item::Changed { .. }));
            if !is_judged && !may_read(self, grant, &subscription).await? {
                let detail = "this credential may not read the topics any more";
                return Err(Problem::new(ErrorCode::ForbiddenTopic, detail).at("topic"));
            }
            is_judged = true;
            for item in &items {
                match item {
                    Item::Event { frame, .. } if frame.class() != Class::Ephemeral => {
                        page.events.push(match envelope {
                            Envelope::CloudEvents => frame.json(),
                            Envelope::None => frame.data(),
                        });
                    }
                    Item::CaughtUp => is_caught_up = true,
                    Item::Gap { place, gap, .. } => {
                        if let Some(topic) = subscription.topics().nth(*place) {
                            page.gaps.push(Control::Gap(topic, *gap).data());
                        }
                    }
                    _ => {}
                }
            }
            if !page.events.is_empty() || !page.gaps.is_empty() || subscription.is_finished() {
                break;
            }
        }
        page.cursor = subscription.cursor().encode();
        page.closed = subscription.is_finished();
        self.metrics().events_delivered.inc_by(page.events.len() as u64);
        Ok(page)
    }
}

/// Whether the grant, if there is one, may read all topics now.
async fn may_read(
    hub: &Hub,
    grant: Option<&Grant>,
    subscription: &Subscription,
) -> Result<bool, JournalError> {
    let Some(grant) = grant else { return Ok(true) };
    for key in subscription.topics() {
        if !hub.may_read(grant, &key.topic).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A number in [0, 1): spreads what would otherwise happen at once.
fn random() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / (f64::from(u32::MAX) + 1.0)
}

/// The duration, up to so many percent shorter or longer.
pub(crate) fn jitter(duration: Duration, percent: u32) -> Duration {
    let spread = f64::from(percent) / 100.0;
    duration.mul_f64(1.0 - spread + 2.0 * spread * random())
}
