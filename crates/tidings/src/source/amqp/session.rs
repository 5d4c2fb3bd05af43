//! One connection to the broker: declare, consume, publish, acknowledge.
//!
//! The rule: what is delivered together is published together, in its order, and acknowledged
//! together. While the journal takes nothing, the same messages are tried again, and the broker sends
//! no others.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::join_all};
use lapin::{
    Channel, Connection, Consumer, ExchangeKind,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::time::MissedTickBehavior;

use super::{
    State,
    dead_letter::DeadLetters,
    mapping::{Mapped, Poison, With, age, map},
    settings::{Queue, QueueType},
};
use crate::{
    amqp::{AmqpError, Backoff, Broker, Declared, is_open, short},
    error::{ErrorCode, Problem},
    hub::Hub,
    metrics::{Metrics, ResultLabel},
    model::{
        EventId, Tenant,
        limits::{COMMIT_BYTES_MAX, PUBLISH_EVENTS_MAX},
    },
    publish::{Publish, Published},
};

/// Between two looks at how many messages wait in the queue.
const DEPTH_EVERY: Duration = Duration::from_secs(10);

/// One connection's work.
#[derive(Debug)]
pub(super) struct Session {
    hub: Hub,
    broker: Broker,
    queue: Arc<Queue>,
    state: Arc<State>,
    dead: DeadLetters,
}

impl Session {
    pub(super) fn new(hub: Hub, broker: Broker, queue: &Arc<Queue>, state: &Arc<State>) -> Self {
        let dead = DeadLetters::new(broker.clone(), queue);
        Self { hub, broker, queue: Arc::clone(queue), state: Arc::clone(state), dead }
    }

    /// Works until something fails.
    pub(super) async fn run(self) -> AmqpError {
        match self.start().await {
            Ok(started) => tokio::select! {
                error = self.consume(&started) => error,
                error = self.dead.run(self.hub.metrics(), started.moves) => error,
            },
            Err(error) => error,
        }
    }

    async fn start(&self) -> Result<Started, AmqpError> {
        let Self { broker, queue, .. } = self;
        let connection = broker.connect(&format!("tidings source {}", queue.name)).await?;
        let moves = self.declare(&connection).await?;
        let channel = broker.answer(connection.create_channel()).await?;
        broker.answer(channel.basic_qos(queue.prefetch, BasicQosOptions::default())).await?;
        let consumer = channel.basic_consume(
            short("the queue", &queue.name)?,
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = broker.answer(consumer).await?;
        self.state.works();
        Ok(Started { connection, channel, consumer, moves })
    }

    /// Makes sure that everything is there. Returns whether the broker moves to the dead-letter
    /// queue what is rejected.
    async fn declare(&self, connection: &Connection) -> Result<bool, AmqpError> {
        let Self { broker, queue, .. } = self;
        broker.declare_exchange(connection, &queue.exchange, ExchangeKind::Topic).await?;
        broker.declare_exchange(connection, &queue.dead_letters, ExchangeKind::Direct).await?;
        let text = |text: &str| AMQPValue::LongString(text.into());
        let kind = match queue.queue_type {
            QueueType::Quorum => "quorum",
            QueueType::Classic => "classic",
        };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text(kind));
        // One that is there with other properties does as well.
        broker.declare_queue(connection, &queue.dead_letters, arguments.clone()).await?;
        if queue.single_active_consumer {
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        }
        arguments.insert("x-dead-letter-exchange".into(), text(&queue.dead_letters));
        arguments.insert("x-dead-letter-routing-key".into(), text(&queue.name));
        let declared = broker.declare_queue(connection, &queue.name, arguments).await?;
        if let Declared::Otherwise(differs) = &declared {
            let queue = &queue.name;
            tracing::warn!(queue, differs, "the queue is taken as it is, not as it is configured");
        }
        let channel = broker.answer(connection.create_channel()).await?;
        let bind = async |name: &str, exchange: &str, key: &str| {
            let (name, exchange) = (short("the queue", name)?, short("the exchange", exchange)?);
            let key = short("the binding", key)?;
            let options = QueueBindOptions::default();
            broker
                .answer(channel.queue_bind(name, exchange, key, options, FieldTable::default()))
                .await
        };
        bind(&queue.dead_letters, &queue.dead_letters, &queue.name).await?;
        for binding in &queue.bindings {
            bind(&queue.name, &queue.exchange, binding).await?;
        }
        Ok(declared == Declared::AsAsked)
    }

    async fn consume(&self, started: &Started) -> AmqpError {
        let mut consumer = started.consumer.clone();
        let mut depth = tokio::time::interval(DEPTH_EVERY);
        depth.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                delivery = consumer.next() => delivery,
                _ = depth.tick() => match self.depth(&started.connection).await {
                    Ok(()) => continue,
                    Err(error) => return error,
                },
            };
            let (batch, ended) = self.gather(first, &mut consumer);
            if let Err(error) = self.publish(batch, &started.channel).await {
                return error;
            }
            if let Some(error) = ended {
                return error;
            }
        }
    }

    /// What has arrived, as much of it as one commit takes, and why no more will.
    fn gather(
        &self,
        first: Option<lapin::Result<Delivery>>,
        consumer: &mut Consumer,
    ) -> (Vec<Delivery>, Option<AmqpError>) {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut next = first;
        loop {
            match next {
                Some(Ok(delivery)) => {
                    bytes += delivery.data.len();
                    batch.push(delivery);
                }
                Some(Err(source)) => return (batch, Some(self.broker.lost(source))),
                None => return (batch, Some(self.canceled())),
            }
            if batch.len() >= PUBLISH_EVENTS_MAX || bytes >= COMMIT_BYTES_MAX {
                return (batch, None);
            }
            next = match consumer.next().now_or_never() {
                Some(next) => next,
                None => return (batch, None),
            };
        }
    }

    fn canceled(&self) -> AmqpError {
        AmqpError::Canceled { at: self.broker.to_string(), queue: self.queue.name.clone() }
    }

    /// Stores a batch and acknowledges it, however long that takes.
    async fn publish(&self, batch: Vec<Delivery>, channel: &Channel) -> Result<(), AmqpError> {
        let metrics = self.hub.metrics();
        let redelivered = batch.iter().filter(|delivery| delivery.redelivered).count();
        metrics.source_redelivered.inc_by(redelivered as u64);
        let now = self.hub.clock().now();
        if let Some(age) = batch.iter().filter_map(|delivery| age(delivery, now)).max() {
            metrics.source_lag.observe_duration(age);
        }
        let mut done: Vec<Delivery> = Vec::with_capacity(batch.len());
        let mut waiting: Vec<Message> = batch
            .into_iter()
            .map(|delivery| Message { delivery, minted: EventId::mint() })
            .collect();
        let mut backoff = Backoff::new();
        loop {
            let (stored, again) = self.attempt(waiting).await;
            done.extend(stored);
            let Some((_, problem)) = again.first() else { break };
            self.state.failed(format!("the journal takes nothing: {problem}"));
            waiting = again.into_iter().map(|(message, _)| message).collect();
            tokio::time::sleep(backoff.pause()).await;
            if !is_open(channel) {
                // They will be delivered again.
                return Err(self.canceled());
            }
        }
        self.state.works();
        self.acknowledge(&done).await.map_err(|source| self.broker.lost(source))
    }

    /// Tries to store messages: returns those that are, and those to try again.
    async fn attempt(&self, messages: Vec<Message>) -> (Vec<Delivery>, Vec<(Message, Problem)>) {
        let with = With {
            routes: &self.queue.routes,
            event_bytes_max: self.hub.settings().event_bytes_max,
            now: self.hub.clock().now(),
        };
        let mut batches: HashMap<Tenant, Batch> = HashMap::new();
        for message in messages {
            match map(&message.delivery, &message.minted, with) {
                Ok(Mapped { tenant, publish }) => {
                    let batch = batches.entry(tenant).or_default();
                    batch.messages.push(message);
                    batch.events.push(publish);
                }
                Err(poison) => self.bury(message, poison).await,
            }
        }
        let published = batches.into_iter().map(async |(tenant, batch)| {
            (batch.messages, self.hub.publish(&tenant, batch.events).await)
        });
        let (mut stored, mut again) = (Vec::new(), Vec::new());
        let mut counts: Vec<(&'static str, u64)> = Vec::new();
        let mut count = |result| match counts.iter_mut().find(|(known, _)| *known == result) {
            Some((_, count)) => *count += 1,
            None => counts.push((result, 1)),
        };
        for (messages, answers) in join_all(published).await {
            for (message, answer) in messages.into_iter().zip(answers) {
                match answer {
                    Ok(published) => {
                        count(result(&published));
                        stored.push(message.delivery);
                    }
                    // The hub's own failures are no reason to bury anything.
                    Err(problem)
                        if problem.code.retryable() || problem.code == ErrorCode::Internal =>
                    {
                        count("retried");
                        again.push((message, problem));
                    }
                    Err(problem) => self.bury(message, problem.into()).await,
                }
            }
        }
        for (result, count) in counts {
            let label = ResultLabel::from(result);
            self.hub.metrics().source_messages.get_or_create(&label).inc_by(count);
        }
        // Of several tenants they came in any order.
        again.sort_by_key(|(message, _)| message.delivery.delivery_tag);
        (stored, again)
    }

    async fn bury(&self, message: Message, poison: Poison) {
        Metrics::count(&self.hub.metrics().source_messages, "dead");
        self.dead.take(message.delivery, poison).await;
    }

    /// Acknowledges all at once where nothing before the last is left to be acknowledged otherwise.
    async fn acknowledge(&self, done: &[Delivery]) -> lapin::Result<()> {
        if self.dead.is_empty() {
            let last = done.iter().max_by_key(|delivery| delivery.delivery_tag);
            if let Some(last) = last {
                last.acker.ack(BasicAckOptions { multiple: true }).await?;
            }
            return Ok(());
        }
        let acks = done.iter().map(|delivery| delivery.acker.ack(BasicAckOptions::default()));
        join_all(acks).await.into_iter().collect::<lapin::Result<Vec<bool>>>().map(drop)
    }

    /// Asks how many messages wait.
    async fn depth(&self, connection: &Connection) -> Result<(), AmqpError> {
        let channel = self.broker.answer(connection.create_channel()).await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let name = short("the queue", &self.queue.name)?;
        let looked = channel.queue_declare(name, passive, FieldTable::default());
        let queue = self.broker.answer(looked).await?;
        self.state.has_depth(queue.message_count());
        self.broker.answer(channel.close(200, "bye".into())).await
    }
}

/// What a session has once it is connected. Dropping it closes the connection.
#[derive(Debug)]
struct Started {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    /// Whether the broker moves what is rejected.
    moves: bool,
}

/// A message on its way.
#[derive(Debug)]
struct Message {
    delivery: Delivery,
    /// Its id if it brings none.
    minted: EventId,
}

/// Messages of one tenant and their events, in their order.
#[derive(Debug, Default)]
struct Batch {
    messages: Vec<Message>,
    events: Vec<Publish>,
}

const fn result(published: &Published) -> &'static str {
    match published {
        Published { duplicate: true, .. } => "duplicate",
        Published { position: None, .. } => "ephemeral",
        Published { .. } => "stored",
    }
}
