//! The hub: journal, active topics and background work, put together.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use opentelemetry::global::BoxedTracer;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::{Access, Grant},
    bus::Bus,
    clock::{Clock, SystemClock},
    cluster,
    connections::Connections,
    due,
    error::Problem,
    journal::{
        Change, DeleteIf, Durability, Journal, JournalError, Judged, StateQuery, TopicInfo,
        TopicQuery,
        memory::MemoryJournal,
        turns::{TurnLimit, Turns},
    },
    metrics::Metrics,
    model::{Cursor, Mark, Timestamp, Topic, TopicKey},
    quota::Quotas,
    relay, retention,
    revocation::{self, Revocations},
    ring::RingLimit,
    settings::Settings,
    spans::Spans,
    sse::{Frame, FrameTopic},
    subscribe::{Follow, Started, Subscription},
    topic_task::{Shared, Topics},
};

/// Hints to retention that may wait; more are dropped, and the sweep finds those topics.
const RETENTION_HINTS_MAX: usize = 1024;

/// A running hub. Cloning is cheap and gives the same hub.
///
/// ```
/// use tidings::{Hub, model::{EventType, NewEvent, Tenant, Topic}, publish::Publish};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let hub = Hub::builder().start();
/// let tenant = Tenant::parse("default")?;
/// let event = NewEvent::new(EventType::parse("job.done")?);
/// let published = hub.publish_one(&tenant, Publish::new(Topic::parse("user/42")?, event)).await?;
/// assert_eq!(published.position.map(|position| position.offset.0), Some(1));
/// hub.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    topics: Arc<Topics>,
    connections: Connections,
    revocations: Revocations,
    quotas: Quotas,
    asked: cluster::Asked,
    started_at: Timestamp,
    begun_at: Instant,
    tasks: TaskTracker,
    /// Nobody new is to be sent here; set before draining.
    withdrawn: AtomicBool,
    draining: CancellationToken,
    stopped: CancellationToken,
}

/// What a hub is made of.
#[derive(Debug)]
pub struct HubBuilder {
    settings: Settings,
    journal: Option<Arc<dyn Journal>>,
    bus: Option<Arc<dyn Bus>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    tracer: Option<BoxedTracer>,
}

impl HubBuilder {
    /// Replaces the settings.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Keeps events in this journal; without it they are kept in memory and end with the process.
    #[must_use]
    pub fn journal(mut self, journal: Arc<dyn Journal>) -> Self {
        self.journal = Some(journal);
        self
    }

    /// Shares its journal with other nodes, which announce by this bus what they append. Without it
    /// the hub takes itself for the only one.
    #[must_use]
    pub fn bus(mut self, bus: Arc<dyn Bus>) -> Self {
        self.bus = Some(bus);
        self
    }

    /// Tells time by this clock instead of the machine's.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Counts here what happens, beside others who do.
    #[must_use]
    pub fn metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Makes spans of what is published and delivered with this tracer; without one there are none.
    #[must_use]
    pub fn tracer(mut self, tracer: BoxedTracer) -> Self {
        self.tracer = Some(tracer);
        self
    }

    /// Starts the hub's background work. Needs a running Tokio runtime.
    #[must_use]
    pub fn start(self) -> Hub {
        let journal =
            self.journal.unwrap_or_else(|| Arc::new(MemoryJournal::new(Default::default())));
        let turns = TurnLimit {
            all: self.settings.replay_reads_max,
            of_tenant: self.settings.tenant_replay_reads_max,
        };
        let journal = Arc::new(Turns::new(journal, turns));
        let (grown, to_trim) = mpsc::channel(RETENTION_HINTS_MAX);
        let ring = RingLimit {
            frames: self.settings.ring_frames_max,
            bytes: self.settings.ring_bytes_max,
        };
        let (clock, metrics) = (self.clock, self.metrics);
        let quotas = Quotas::new(&self.settings, Arc::clone(&metrics), self.bus.is_none());
        let started_at = clock.now();
        let (bus, node) = (self.bus, getrandom::u64().unwrap_or_default());
        let spans = Spans::new(self.tracer);
        let grown_by = retention::grown_by(&self.settings.retention);
        let shared = Shared { journal, bus, node, clock, metrics, spans, ring, grown, grown_by };
        let tasks = TaskTracker::new();
        let stopped = CancellationToken::new();
        let hub = Hub(Arc::new(Inner {
            settings: self.settings,
            topics: Topics::new(Arc::new(shared), tasks.clone(), stopped.clone()),
            connections: Connections::default(),
            revocations: Revocations::new(),
            quotas,
            asked: cluster::Asked::default(),
            started_at,
            begun_at: Instant::now(),
            tasks,
            withdrawn: AtomicBool::new(false),
            draining: CancellationToken::new(),
            stopped,
        }));
        hub.background(retention::run(hub.clone(), to_trim));
        hub.background(due::run(hub.clone()));
        hub.background(revocation::run(hub.clone()));
        if let Some(bus) = &hub.topics().shared().bus {
            hub.background(relay::listen(hub.clone(), Arc::clone(bus)));
            hub.background(relay::compare(hub.clone()));
            hub.background(cluster::run(hub.clone()));
        }
        hub
    }
}

impl Hub {
    /// Begins to put a hub together.
    #[must_use]
    pub fn builder() -> HubBuilder {
        HubBuilder {
            settings: Settings::default(),
            journal: None,
            bus: None,
            clock: Arc::new(SystemClock),
            metrics: Arc::default(),
            tracer: None,
        }
    }

    /// Runs work until the hub stops.
    pub(crate) fn background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.0.stopped.clone();
        self.0.tasks.spawn(async move { stopped.run_until_cancelled(work).await });
    }

    /// Follows topics; see [`Connection`](crate::connection::Connection) for the same as bytes.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`](crate::error::ErrorCode) if the journal cannot say where the topics
    /// stand, and refusals of too many topics, or one twice.
    pub async fn subscribe(&self, follow: Follow) -> Result<(Subscription, Started), Problem> {
        Subscription::start(Arc::clone(self.topics()), follow, Arc::default()).await
    }

    /// The current states of a topic whose keys start with a text, and a cursor behind them.
    ///
    /// # Errors
    /// The journal's.
    pub async fn states(
        &self,
        topic: &TopicKey,
        prefix: &str,
    ) -> Result<(Vec<Frame>, Cursor), JournalError> {
        let head = self.journal().describe(topic).await?.head;
        let (mut frames, of) = (Vec::new(), FrameTopic::from(topic));
        let mut query =
            StateQuery { prefix: prefix.to_owned(), until: head.end().offset, ..StateQuery::all() };
        loop {
            let page = self.journal().states(topic, query.clone()).await?;
            let Some(last) = page.events.last() else { break };
            query.after = last.offset;
            frames.extend(page.events.iter().map(|event| Frame::of(&of, page.head.epoch, event)));
        }
        Ok((frames, Cursor::single(&topic.topic, Mark::from(head.end()))))
    }

    /// Where a topic stands, and its properties.
    ///
    /// # Errors
    /// The journal's.
    pub async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        self.journal().describe(topic).await
    }

    /// Whether a grant may read a topic now, asking the topic's properties where they decide.
    ///
    /// # Errors
    /// The journal's.
    pub async fn may_read(&self, grant: &Grant, topic: &Topic) -> Result<bool, JournalError> {
        match grant.read(topic) {
            Access::Allowed => Ok(true),
            Access::Denied => Ok(false),
            Access::IfOwner => {
                let key = TopicKey::new(grant.tenant().clone(), topic.clone());
                Ok(grant.may_read(topic, &self.describe(&key).await?.properties))
            }
        }
    }

    /// Topics by name.
    ///
    /// # Errors
    /// The journal's, also of a part of it: who lists topics takes what is missing for gone.
    pub async fn list(&self, query: TopicQuery) -> Result<Vec<TopicInfo>, JournalError> {
        self.journal().topics(query).await.whole()
    }

    /// Replaces a topic's properties, creating it if need be.
    ///
    /// # Errors
    /// The journal's; a [`Refusal`](crate::journal::Refusal) if the topic is not the subject's.
    pub async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        self.topics().set_properties(topic, change).await
    }

    /// Closes a topic: it takes no more events, and its readers are told at its end.
    ///
    /// # Errors
    /// The journal's.
    pub async fn close(&self, topic: &TopicKey) -> Result<(), JournalError> {
        self.topics().append(topic, Vec::new(), true, None).await.map(drop)
    }

    /// Deletes a topic; its readers are told that its history ended. Returns whether there was one.
    ///
    /// # Errors
    /// The journal's; a [`Refusal`](crate::journal::Refusal) if the condition does not hold.
    pub async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        self.topics().delete(topic, condition).await
    }

    /// Whether the topics are all closed and the cursor is at the end of each: nothing can follow.
    ///
    /// # Errors
    /// The journal's.
    pub async fn is_finished(
        &self,
        topics: &[TopicKey],
        cursor: &Cursor,
    ) -> Result<bool, JournalError> {
        for topic in topics {
            let Some(mark) = cursor.mark(&topic.topic) else { return Ok(false) };
            let head = self.journal().describe(topic).await?.head;
            if !head.closed || mark != Mark::from(head.end()) {
                return Ok(false);
            }
        }
        Ok(!topics.is_empty())
    }

    /// The hub's numbers.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What the hub counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.topics.shared().metrics
    }

    pub(crate) fn spans(&self) -> &Spans {
        &self.0.topics.shared().spans
    }

    pub(crate) fn shared_metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.0.topics.shared().metrics)
    }

    /// What the hub counts, as it is now, in OpenMetrics text.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        self.metrics().ready.set(self.unready().is_none().into());
        let promised = self.journal().durabilities();
        for level in Durability::ALL {
            let is_promised = promised.contains(&level);
            self.metrics().journal_durability.set(level.as_str(), is_promised);
        }
        self.metrics().encode()
    }

    /// The hub's clock.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        &*self.0.topics.shared().clock
    }

    /// Whether the hub is being shut down, from the first step on.
    pub(crate) fn is_leaving(&self) -> bool {
        self.0.withdrawn.load(Ordering::Relaxed) || self.0.draining.is_cancelled()
    }

    /// Why the hub takes no events now; `None` while it does.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if self.is_leaving() {
            return Some("draining".to_owned());
        }
        self.journal().failure()
    }

    /// Why this node does not hear the others now, whose events its readers get a second late.
    #[must_use]
    pub fn bus_failure(&self) -> Option<String> {
        self.topics().shared().bus.as_ref()?.failure()
    }

    /// Stops being ready, so that balancers send nobody new; everything else goes on. The first
    /// step of an orderly shutdown, some seconds before [`Hub::drain`].
    pub fn withdraw(&self) {
        self.0.withdrawn.store(true, Ordering::Relaxed);
    }

    /// Cancelled once the hub is draining: connections end by themselves within the window.
    #[must_use]
    pub fn draining(&self) -> &CancellationToken {
        &self.0.draining
    }

    /// Begins to let go of connections, spread over the drain window; publishing goes on.
    pub fn drain(&self) {
        self.0.draining.cancel();
    }

    /// Ends the hub: lets go of connections, finishes what was accepted and closes the journal.
    /// What is asked of it afterwards is refused as unavailable.
    ///
    /// Stop accepting requests before, and wait for those that run.
    pub async fn shutdown(&self) {
        self.0.draining.cancel();
        if self.topics().shared().bus.is_some()
            && let Err(problem) = self.say_goodbye().await
        {
            tracing::debug!(%problem, "other nodes will miss this one after a while");
        }
        self.0.stopped.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        if let Some(bus) = &self.0.topics.shared().bus {
            bus.close().await;
        }
        self.journal().close().await;
    }

    pub(crate) fn journal(&self) -> &dyn Journal {
        &*self.0.topics.shared().journal
    }

    pub(crate) fn open_connections(&self) -> &Connections {
        &self.0.connections
    }

    pub(crate) fn revocations(&self) -> &Revocations {
        &self.0.revocations
    }

    pub(crate) fn asked(&self) -> &cluster::Asked {
        &self.0.asked
    }

    pub(crate) fn started_at(&self) -> Timestamp {
        self.0.started_at
    }

    /// When it started, for what happens at intervals.
    pub(crate) fn begun_at(&self) -> Instant {
        self.0.begun_at
    }

    pub(crate) fn quotas(&self) -> &Quotas {
        &self.0.quotas
    }

    pub(crate) fn topics(&self) -> &Arc<Topics> {
        &self.0.topics
    }
}
