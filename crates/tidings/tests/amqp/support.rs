//! What the tests share: a queue with a source on it, somebody who publishes, and the dead letters.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tidings::{
    Hub,
    amqp::{AmqpPublisher, Message},
    auth::Secret,
    journal::{
        Appended, Batch, Change, DeleteIf, Due, DueKind, Found, Head, Journal, JournalError,
        JournalSettings, Judged, Locate, Page, PageLimit, Retention, StateQuery, TopicInfo,
        TopicQuery, memory::MemoryJournal,
    },
    model::{Data, Event, Offset, Tenant, Timestamp, Topic, TopicKey},
    source::amqp::{AmqpSettings, AmqpSource},
};
use tidings_services::{RabbitMq, SharedRabbitMq};
use tokio::time::Instant;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Everything works again within 5 s of the broker's first answer.
const SOON: Duration = Duration::from_secs(5);
/// Between two looks whether something came.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Names in a broker, and how to reach it.
pub(crate) struct Site {
    pub(crate) url: String,
    pub(crate) name: String,
    _broker: Option<SharedRabbitMq>,
}

impl Site {
    /// In the broker that tests share.
    pub(crate) fn shared() -> Self {
        let broker = RabbitMq::shared().unwrap();
        Self { url: broker.url().to_owned(), _broker: Some(broker), ..Self::at("") }
    }

    pub(crate) fn at(url: &str) -> Self {
        let name = format!("test.{:x}", getrandom::u64().unwrap());
        Self { url: url.to_owned(), name, _broker: None }
    }

    pub(crate) fn secret(&self) -> Secret {
        Secret::new(&self.url)
    }

    /// The status of jobs, as a team's states.
    pub(crate) fn settings(&self) -> AmqpSettings {
        self.settings_with(serde_json::json!({
            "routing_key": "team.{team}.job.{job}.status",
            "topic": "team/{team}/jobs",
            "key": "job/{job}",
        }))
    }

    /// Logs, so that every event stays.
    pub(crate) fn log_settings(&self) -> AmqpSettings {
        self.settings_with(serde_json::json!({"routing_key": "log.{name}", "topic": "log/{name}"}))
    }

    pub(crate) fn settings_with(&self, route: serde_json::Value) -> AmqpSettings {
        let queue = serde_json::json!({
            "queue": self.name, "exchange": self.name, "prefetch": 200, "routes": [route],
        });
        let settings = serde_json::json!({"url": self.url, "queues": [queue]});
        serde_json::from_value(settings).unwrap()
    }

    pub(crate) fn publisher(&self) -> AmqpPublisher {
        AmqpPublisher::new(&self.secret(), &self.name).unwrap()
    }

    pub(crate) async fn channel(&self) -> (Connection, Channel) {
        let connection =
            Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    /// How many messages wait in a queue.
    pub(crate) async fn depth(&self, queue: &str) -> u32 {
        let (_connection, channel) = self.channel().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asked = channel.queue_declare(queue.into(), passive, FieldTable::default());
        asked.await.unwrap().message_count()
    }

    /// Takes so many dead letters, with their headers and bodies.
    pub(crate) async fn dead_letters(&self, count: usize) -> Vec<(BasicProperties, Vec<u8>)> {
        let (_connection, channel) = self.channel().await;
        let queue = format!("{}.dead", self.name);
        let mut letters = Vec::new();
        let taking = async {
            while letters.len() < count {
                let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default());
                match got.await.unwrap() {
                    Some(got) => {
                        got.delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
                        letters.push((got.delivery.properties, got.delivery.data));
                    }
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, taking).await;
        assert!(in_time.is_ok(), "{} dead letters of {count}", letters.len());
        letters
    }
}

/// A header of a dead letter as text.
pub(crate) fn header(properties: &BasicProperties, name: &str) -> String {
    match properties.headers().as_ref().and_then(|headers| headers.inner().get(name)) {
        Some(AMQPValue::LongString(text)) => String::from_utf8(text.as_bytes().to_vec()).unwrap(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

pub(crate) fn message(routing_key: &str, id: &str, body: &str) -> Message {
    Message {
        routing_key: routing_key.to_owned(),
        id: Some(id.to_owned()),
        content_type: Some("application/json".to_owned()),
        body: body.to_owned().into(),
        ..Message::default()
    }
}

/// A hub with a source whose queue is there.
pub(crate) async fn hub(journal: Arc<dyn Journal>, settings: &AmqpSettings) -> (Hub, AmqpSource) {
    let hub = Hub::builder().journal(journal).start();
    let source = AmqpSource::start(&hub, settings).unwrap();
    working(&source).await;
    (hub, source)
}

pub(crate) fn memory() -> Arc<MemoryJournal> {
    Arc::new(MemoryJournal::new(JournalSettings::default()))
}

/// Waits until a source works.
pub(crate) async fn working(source: &AmqpSource) {
    let mut last = None;
    let waiting = async {
        while let Some(failure) = source.failure() {
            last = Some(failure);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(in_time.is_ok(), "{last:?}");
}

/// Waits for something that is to come soon after the broker answers again. It is counted in looks: on
/// a machine that has other work they come late, as everything does.
pub(crate) async fn soon(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    for _ in 0..SOON.as_millis() / LOOK_AGAIN.as_millis() {
        if holds().await {
            return;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    panic!("waited too long for {what}: {:?}", began.elapsed());
}

/// Waits for something outside of this process, looking again and again.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(in_time.is_ok(), "waited in vain for {what}");
}

pub(crate) fn key(topic: &str) -> TopicKey {
    TopicKey::new(Tenant::parse("default").unwrap(), Topic::parse(topic).unwrap())
}

/// All events of a topic.
pub(crate) async fn events(journal: &dyn Journal, topic: &str) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let after = events.last().map_or(Offset::ZERO, |event: &Event| event.offset);
        let page = journal.read(&key(topic), after, PageLimit::default()).await.unwrap();
        if page.events.is_empty() {
            return events;
        }
        events.extend(page.events.iter().cloned());
    }
}

/// Waits until a topic has so many events, and returns them.
pub(crate) async fn events_of(journal: &dyn Journal, topic: &str, count: usize) -> Vec<Event> {
    until("events", async || {
        journal.describe(&key(topic)).await.unwrap().head.end().offset.0 >= count as u64
    })
    .await;
    events(journal, topic).await
}

pub(crate) fn json(event: &Event) -> String {
    match &event.body.data {
        Data::Json(text) => text.as_str().to_owned(),
        other => panic!("{other:?}"),
    }
}

/// A journal that can be out of order.
#[derive(Debug)]
pub(crate) struct Switched {
    inner: Arc<MemoryJournal>,
    is_off: AtomicBool,
}

impl Switched {
    pub(crate) fn new(inner: Arc<MemoryJournal>) -> Arc<Self> {
        Arc::new(Self { inner, is_off: AtomicBool::new(false) })
    }

    pub(crate) fn turn(&self, is_off: bool) {
        self.is_off.store(is_off, Ordering::SeqCst);
    }
}

#[async_trait]
impl Journal for Switched {
    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError> {
        if self.is_off.load(Ordering::SeqCst) {
            return Err(JournalError::Unavailable("it is switched off".to_owned()));
        }
        self.inner.append(topic, batch).await
    }

    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        self.inner.read(topic, after, limit).await
    }

    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError> {
        self.inner.states(topic, query).await
    }

    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        self.inner.describe(topic).await
    }

    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        self.inner.locate(topic, from).await
    }

    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        self.inner.set_properties(topic, change).await
    }

    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        self.inner.delete(topic, condition).await
    }

    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError> {
        self.inner.trim(topic, retention, now).await
    }

    async fn due(&self, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due> {
        self.inner.due(kind, now, limit).await
    }

    async fn topics(&self, query: TopicQuery) -> Found<TopicInfo> {
        self.inner.topics(query).await
    }

    fn failure(&self) -> Option<String> {
        self.inner.failure()
    }

    /// Another hub goes on with it.
    async fn close(&self) {}
}
