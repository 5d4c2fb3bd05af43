//! Dead letters: messages that cannot become events, kept in a queue with the reason.
//!
//! The rule: the message is acknowledged once its copy is confirmed. While the broker takes no copies,
//! as it does when it is short of memory, poison must not fill the window of what is on its way:
//! beyond half of it, it is handed back for the broker to move by itself, without our headers.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use lapin::{
    BasicProperties, ExchangeKind,
    message::Delivery,
    options::{BasicAckOptions, BasicRejectOptions},
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use tokio::sync::{Mutex, mpsc};

use super::{
    mapping::{Poison, attempts},
    settings::Queue,
};
use crate::{
    amqp::{AmqpError, AmqpPublisher, Backoff, Broker, told},
    metrics::{Metrics, ReasonLabel},
};

/// Copies that are made at once.
const AT_ONCE: usize = 100;
/// Bytes of the reason's text.
const DETAIL_BYTES_MAX: usize = 512;

/// Dead letters of one session.
#[derive(Debug)]
pub(super) struct DeadLetters {
    publisher: AmqpPublisher,
    queue: String,
    /// Half of the window.
    kept_max: usize,
    sender: mpsc::Sender<Dead>,
    receiver: Mutex<mpsc::Receiver<Dead>>,
    outstanding: AtomicUsize,
}

#[derive(Debug)]
struct Dead {
    delivery: Delivery,
    poison: Poison,
}

impl DeadLetters {
    pub(super) fn new(broker: Broker, queue: &Queue) -> Self {
        let name = format!("tidings dead letters {}", queue.name);
        // There are never more on their way than the broker sends.
        let (sender, receiver) = mpsc::channel(queue.prefetch.into());
        Self {
            publisher: AmqpPublisher::to(broker, &name, &queue.dead_letters, ExchangeKind::Direct),
            queue: queue.name.clone(),
            kept_max: usize::from(queue.prefetch) / 2,
            sender,
            receiver: Mutex::new(receiver),
            outstanding: AtomicUsize::new(0),
        }
    }

    /// Takes a message, to acknowledge it itself.
    pub(super) async fn take(&self, delivery: Delivery, poison: Poison) {
        tracing::debug!(
            queue = self.queue,
            reason = poison.reason,
            detail = poison.detail,
            "poison"
        );
        self.outstanding.fetch_add(1, Ordering::SeqCst);
        let taken = self.sender.send(Dead { delivery, poison }).await;
        taken.expect("the receiver lives as long");
    }

    /// Whether all that was taken is acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.outstanding.load(Ordering::SeqCst) == 0
    }

    /// Works until it is dropped, or the dead-letter queue is gone. `moves` says whether the broker
    /// moves by itself what is rejected.
    pub(super) async fn run(&self, metrics: &Metrics, moves: bool) -> AmqpError {
        let mut receiver = self.receiver.lock().await;
        let mut backoff = Backoff::new();
        let mut letters = Vec::new();
        let mut is_failing = false;
        loop {
            if letters.is_empty() {
                receiver.recv_many(&mut letters, AT_ONCE).await;
            }
            let is_full = self.outstanding.load(Ordering::SeqCst) > self.kept_max;
            if is_failing && is_full && moves {
                for dead in letters.drain(..) {
                    // Of a channel that is gone, the message comes again.
                    let _ = dead.delivery.acker.reject(BasicRejectOptions::default()).await;
                    self.done(&dead, metrics);
                }
                continue;
            }
            let published = join_all(letters.iter().map(|dead| self.publish(dead))).await;
            let mut failed = Vec::new();
            let mut acks = Vec::new();
            is_failing = false;
            for (dead, published) in letters.drain(..).zip(published) {
                match published {
                    Ok(()) => acks.push(dead),
                    Err(error @ AmqpError::Unroutable { .. }) => return error,
                    Err(error) => {
                        if !is_failing {
                            let error = told(&error);
                            tracing::warn!(queue = self.queue, error, "a dead letter waits");
                        }
                        is_failing = true;
                        failed.push(dead);
                    }
                }
            }
            let acked = |dead: &Dead| {
                let acker = dead.delivery.acker.clone();
                async move { acker.ack(BasicAckOptions::default()).await }
            };
            // Of a channel that is gone, the message comes again, and its copy is doubled.
            drop(join_all(acks.iter().map(acked)).await);
            for dead in &acks {
                self.done(dead, metrics);
            }
            letters = failed;
            if is_failing {
                tokio::time::sleep(backoff.pause()).await;
            } else {
                backoff = Backoff::new();
            }
        }
    }

    fn done(&self, dead: &Dead, metrics: &Metrics) {
        self.outstanding.fetch_sub(1, Ordering::SeqCst);
        let label = ReasonLabel::from(dead.poison.reason);
        metrics.source_dead_letters.get_or_create(&label).inc();
    }

    async fn publish(&self, dead: &Dead) -> Result<(), AmqpError> {
        let Dead { delivery, poison } = dead;
        let properties = properties(&delivery.properties, self.headers(delivery, poison));
        self.publisher.publish_as(&self.queue, &delivery.data, properties).await
    }

    fn headers(&self, delivery: &Delivery, poison: &Poison) -> FieldTable {
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let mut headers = FieldTable::default();
        for (name, value) in delivery.properties.headers().iter().flat_map(FieldTable::inner) {
            // The broker would send the copy there too.
            if name.as_str() != "CC" {
                headers.insert(name.clone(), value.clone());
            }
        }
        let mut put = |name: &str, value| {
            headers.insert(ShortString::from(name), value);
        };
        put("x-tidings-reason", text(poison.reason));
        put("x-tidings-detail", text(cut(&poison.detail)));
        put("x-tidings-attempts", AMQPValue::LongLongInt(attempts(delivery)));
        put("x-tidings-queue", text(&self.queue));
        put("x-tidings-exchange", text(delivery.exchange.as_str()));
        put("x-tidings-routing-key", text(delivery.routing_key.as_str()));
        // Only its own publisher may write it.
        if let Some(user) = delivery.properties.user_id() {
            put("x-tidings-user-id", text(user.as_str()));
        }
        // It would end the copy.
        if let Some(expiration) = delivery.properties.expiration() {
            put("x-tidings-expiration", text(expiration.as_str()));
        }
        headers
    }
}

/// The properties of a copy.
fn properties(of: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut copy = BasicProperties::default().with_headers(headers);
    if let Some(value) = of.content_type() {
        copy = copy.with_content_type(value.clone());
    }
    if let Some(value) = of.content_encoding() {
        copy = copy.with_content_encoding(value.clone());
    }
    if let Some(value) = of.correlation_id() {
        copy = copy.with_correlation_id(value.clone());
    }
    if let Some(value) = of.reply_to() {
        copy = copy.with_reply_to(value.clone());
    }
    if let Some(value) = of.message_id() {
        copy = copy.with_message_id(value.clone());
    }
    if let Some(value) = of.timestamp() {
        copy = copy.with_timestamp(*value);
    }
    if let Some(value) = of.kind() {
        copy = copy.with_type(value.clone());
    }
    if let Some(value) = of.app_id() {
        copy = copy.with_app_id(value.clone());
    }
    copy
}

fn cut(detail: &str) -> &str {
    let mut end = DETAIL_BYTES_MAX.min(detail.len());
    while !detail.is_char_boundary(end) {
        end -= 1;
    }
    detail.get(..end).unwrap_or_default()
}
