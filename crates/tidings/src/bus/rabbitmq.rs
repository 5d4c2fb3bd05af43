//! A bus over RabbitMQ: a topic exchange, and for each node one queue that ends with it.
//!
//! The rule: queues are bound by shards of tenants, never by topic or user, so that a node has a
//! bounded number of bindings. Nothing is confirmed: what is lost is found by the comparison with the
//! journal. Whether the bus works is seen by probes that come back, not by what a connection says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Connection, Consumer, ExchangeKind,
    options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Announcement, Bus, Codec, Heard,
    ears::{Ears, PROBE_EVERY},
};
use crate::{
    amqp::{AmqpError, Backoff, Broker, short, told},
    auth::Secret,
    model::{Tenant, TopicKey},
};

/// Shards of tenants, which is the most bindings that a node has besides its own.
const SHARDS: u64 = 64;
/// Announcements that wait in a node's queue: beyond it the broker drops the oldest, so that a node
/// which hears nothing cannot fill the broker.
const QUEUE_MESSAGES_MAX: i32 = 10_000;
/// Bytes that wait in a node's queue.
const QUEUE_BYTES_MAX: i32 = 32 * 1024 * 1024;
/// Announcements that wait to be sent; more are dropped and counted.
const SENT_MAX: usize = 1024;
/// What was heard and not taken yet; of more, the node is told that it missed some.
const HEARD_MAX: usize = 1024;
/// Topics that were followed and not bound yet; of more, the node is told that it missed some.
const FOLLOWED_MAX: usize = 1024;
/// Without a probe for so long the connection is given up: within 10 s, the way to notice it
/// included.
const PROBE_MAX: Duration = Duration::from_secs(6);

/// Where the bus is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RabbitMqBusSettings {
    /// Where the broker is: `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS.
    pub url: Secret,
    /// The topic exchange of announcements, declared if it is not there. All nodes of a journal have
    /// the same one, and nobody else.
    #[serde(default = "exchange")]
    pub exchange: String,
}

fn exchange() -> String {
    "tidings.bus".to_owned()
}

/// A node's end of the bus.
#[derive(Debug)]
pub struct RabbitMqBus {
    shared: Arc<Shared>,
    sent: mpsc::Sender<(ShortString, Bytes)>,
    work: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    broker: Broker,
    exchange: ShortString,
    codec: Codec,
    ears: Ears,
    followed: Mutex<Followed>,
    /// Tells the work that `followed` changed.
    changed: Notify,
}

/// What readers follow here.
#[derive(Debug, Default)]
struct Followed {
    /// Topics of each shard.
    shards: BTreeMap<u64, usize>,
    /// Topics whose followers were not told yet from when on they are heard.
    new: Vec<TopicKey>,
    /// Whether there were more than fit into `new`.
    overflowed: bool,
}

impl RabbitMqBus {
    /// Starts to connect; what fails is tried again until the bus is closed. `secret` is what all
    /// nodes share. Needs a running Tokio runtime.
    ///
    /// # Errors
    /// [`AmqpError::Address`] and [`AmqpError::TooLong`]: correct the settings.
    pub fn start(settings: &RabbitMqBusSettings, secret: &Secret) -> Result<Arc<Self>, AmqpError> {
        let (sent, to_send) = mpsc::channel(SENT_MAX);
        let shared = Arc::new(Shared {
            broker: Broker::parse(&settings.url)?,
            exchange: short("the exchange", &settings.exchange)?,
            codec: Codec::new(secret),
            ears: Ears::new(HEARD_MAX, Some("the bus is not connected yet")),
            followed: Mutex::default(),
            changed: Notify::new(),
        });
        let work = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&shared).work(to_send)));
        let work = Mutex::new(Some(work));
        Ok(Arc::new(Self { shared, sent, work }))
    }

    /// Waits until the bus works for the first time.
    pub async fn connected(&self) {
        self.shared.ears.until_up().await;
    }
}

#[async_trait]
impl Bus for RabbitMqBus {
    fn announce(&self, announcement: Announcement) {
        let key = routing_key(shard(&announcement.topic().tenant));
        let bytes = self.shared.codec.encode(&announcement);
        if self.sent.try_send((key, bytes)).is_err() {
            self.shared.ears.drop_one();
        }
    }

    fn follow(&self, topic: &TopicKey) {
        let mut followed = self.shared.followed();
        *followed.shards.entry(shard(&topic.tenant)).or_default() += 1;
        if followed.new.len() < FOLLOWED_MAX {
            followed.new.push(topic.clone());
        } else {
            followed.overflowed = true;
        }
        self.shared.changed.notify_one();
    }

    fn unfollow(&self, topic: &TopicKey) {
        let mut followed = self.shared.followed();
        let shard = shard(&topic.tenant);
        if let Some(topics) = followed.shards.get_mut(&shard) {
            *topics -= 1;
            if *topics == 0 {
                followed.shards.remove(&shard);
                self.shared.changed.notify_one();
            }
        }
    }

    async fn heard(&self) -> Heard {
        self.shared.ears.next().await
    }

    fn failure(&self) -> Option<String> {
        self.shared.ears.failure()
    }

    fn dropped(&self) -> u64 {
        self.shared.ears.dropped()
    }

    async fn close(&self) {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(work) = work {
            work.abort();
            // It was told to end.
            let _ = work.await;
        }
        self.shared.ears.close();
    }
}

/// What a session has. Two connections, because the broker stops to read those that publish when it
/// is short of memory, and what is asked on them waits.
struct Session {
    ear: Connection,
    mouth: Connection,
    binding: Channel,
    publishing: Channel,
    consumer: Consumer,
    queue: ShortString,
    probe: ShortString,
}

impl Shared {
    fn followed(&self) -> std::sync::MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one session after the other.
    async fn work(self: Arc<Self>, mut to_send: mpsc::Receiver<(ShortString, Bytes)>) {
        let mut backoff = Backoff::new();
        loop {
            let ended = match self.connect().await {
                Ok(session) => {
                    backoff = Backoff::new();
                    tokio::select! {
                        error = self.listen(&session) => error,
                        error = self.send(&session, &mut to_send) => error,
                    }
                }
                Err(error) => error,
            };
            let failure = told(&ended);
            tracing::warn!(failure, "the bus does not work; trying again");
            self.ears.down(failure);
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn connect(&self) -> Result<Session, AmqpError> {
        let broker = &self.broker;
        let ear = broker.connect("tidings bus: hears").await?;
        let mouth = broker.connect("tidings bus: speaks").await?;
        broker.declare_exchange(&ear, self.exchange.as_str(), ExchangeKind::Topic).await?;
        let binding = broker.answer(ear.create_channel()).await?;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(QUEUE_MESSAGES_MAX));
        arguments.insert("x-max-length-bytes".into(), AMQPValue::LongInt(QUEUE_BYTES_MAX));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("drop-head".into()));
        let queue = broker.answer(binding.queue_declare("".into(), options, arguments)).await?;
        let queue = queue.name().clone();
        let node = getrandom::u64().unwrap_or_default();
        let session = Session {
            consumer: broker
                .answer(binding.basic_consume(
                    queue.clone(),
                    "".into(),
                    BasicConsumeOptions { no_ack: true, ..Default::default() },
                    FieldTable::default(),
                ))
                .await?,
            publishing: broker.answer(mouth.create_channel()).await?,
            probe: short("the probe", &format!("probe.{node:x}"))?,
            ear,
            mouth,
            binding,
            queue,
        };
        self.bind(&session, &session.probe).await?;
        Ok(session)
    }

    async fn bind(&self, session: &Session, key: &ShortString) -> Result<(), AmqpError> {
        let (queue, exchange) = (session.queue.clone(), self.exchange.clone());
        let options = QueueBindOptions::default();
        let bound = session.binding.queue_bind(
            queue,
            exchange,
            key.clone(),
            options,
            FieldTable::default(),
        );
        self.broker.answer(bound).await
    }

    async fn unbind(&self, session: &Session, key: ShortString) -> Result<(), AmqpError> {
        let (queue, exchange) = (session.queue.clone(), self.exchange.clone());
        let unbound = session.binding.queue_unbind(queue, exchange, key, FieldTable::default());
        self.broker.answer(unbound).await
    }

    /// Binds what is followed and hears, until something fails.
    async fn listen(&self, session: &Session) -> AmqpError {
        let mut consumer = session.consumer.clone();
        let mut bound = BTreeSet::new();
        if let Err(error) = self.adapt(session, &mut bound).await {
            return error;
        }
        // Whatever was said meanwhile.
        self.ears.hear(Heard::Missed(None));
        self.ears.up();
        tracing::info!("the bus works");
        let mut probed = Instant::now();
        loop {
            let ended = tokio::select! {
                delivery = consumer.next() => match delivery {
                    Some(Ok(delivery)) if delivery.routing_key == session.probe => {
                        probed = Instant::now();
                        self.ears.up();
                        Ok(())
                    }
                    Some(Ok(delivery)) => {
                        if let Some(said) = self.codec.decode(&delivery.data) {
                            self.ears.hear(Heard::Announced(said));
                        }
                        Ok(())
                    }
                    Some(Err(source)) => Err(self.broker.lost(source)),
                    None => Err(AmqpError::Canceled {
                        at: self.broker.to_string(),
                        queue: session.queue.to_string(),
                    }),
                },
                () = self.changed.notified() => self.adapt(session, &mut bound).await,
                () = tokio::time::sleep_until(probed + PROBE_MAX) => {
                    // While it takes nothing, no probe comes back; a dead socket misses heartbeats.
                    if session.mouth.status().blocked() && session.ear.status().connected() {
                        let blocked = AmqpError::Blocked { at: self.broker.to_string() };
                        self.ears.down(told(&blocked));
                        probed = Instant::now() - PROBE_MAX + PROBE_EVERY;
                        Ok(())
                    } else {
                        Err(self.broker.silent(PROBE_MAX))
                    }
                }
            };
            if let Err(error) = ended {
                return error;
            }
        }
    }

    /// Binds the shards that are followed now and unbinds the others.
    async fn adapt(&self, session: &Session, bound: &mut BTreeSet<u64>) -> Result<(), AmqpError> {
        let (wanted, new, overflowed) = {
            let mut followed = self.followed();
            let wanted: BTreeSet<u64> = followed.shards.keys().copied().collect();
            let overflowed = std::mem::take(&mut followed.overflowed);
            (wanted, std::mem::take(&mut followed.new), overflowed)
        };
        for shard in wanted.difference(bound) {
            // What is lost with a session, its successor's first `Missed` makes good.
            self.bind(session, &routing_key(*shard)).await?;
        }
        for shard in bound.difference(&wanted) {
            self.unbind(session, routing_key(*shard)).await?;
        }
        *bound = wanted;
        for topic in new {
            self.ears.hear(Heard::Missed(Some(topic)));
        }
        if overflowed {
            self.ears.hear(Heard::Missed(None));
        }
        Ok(())
    }

    /// Sends announcements and probes, until something fails. While the broker takes nothing, it
    /// waits, and what does not fit into the queue behind it is dropped.
    async fn send(
        &self,
        session: &Session,
        to_send: &mut mpsc::Receiver<(ShortString, Bytes)>,
    ) -> AmqpError {
        let mut probes = tokio::time::interval(PROBE_EVERY);
        loop {
            let (key, body) = tokio::select! {
                _ = probes.tick() => (session.probe.clone(), Bytes::new()),
                Some(announcement) = to_send.recv() => announcement,
            };
            let published = session.publishing.basic_publish(
                self.exchange.clone(),
                key,
                BasicPublishOptions::default(),
                &body,
                BasicProperties::default(),
            );
            if let Err(source) = published.await {
                return self.broker.lost(source);
            }
        }
    }
}

fn shard(tenant: &Tenant) -> u64 {
    xxh3_64(tenant.as_str().as_bytes()) % SHARDS
}

fn routing_key(shard: u64) -> ShortString {
    format!("tenants.{shard}").into()
}

#[cfg(test)]
mod tests {
    use tidings_services::RabbitMq;

    use super::*;
    use crate::{bus::contract::Pair, bus_contract};

    /// On an exchange of its own, so that tests may share a broker.
    async fn pair() -> Pair {
        let broker = RabbitMq::shared().unwrap();
        let exchange = format!("test.bus.{:x}", getrandom::u64().unwrap());
        let settings = RabbitMqBusSettings { url: Secret::new(broker.url()), exchange };
        let start = || RabbitMqBus::start(&settings, &Secret::new("shared")).unwrap();
        let (one, other) = (start(), start());
        one.connected().await;
        other.connected().await;
        Pair::new(one, other).keeping(broker)
    }

    bus_contract!(rabbitmq, pair);
}
