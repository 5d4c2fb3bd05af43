//! A publisher to RabbitMQ: what it was told to publish is in a queue, or it says why not.
//!
//! The rule: every message is persistent, mandatory and confirmed.

use std::time::Duration;

use bytes::Bytes;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ExchangeKind,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::sync::Mutex;

use super::{AmqpError, Broker, is_open, short};
use crate::auth::Secret;

/// How long the broker may take to confirm a message: quorum queues write it on most nodes first.
const CONFIRM_MAX: Duration = Duration::from_secs(10);
/// Survives a restart of the broker (AMQP 0-9-1 §1.8).
const PERSISTENT: u8 = 2;

/// A message to publish.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// Where to, by the exchange's bindings: `team.7.job.8f1c.status`.
    pub routing_key: String,
    /// Its name, by which repeats are recognised.
    pub id: Option<String>,
    /// What it is, e.g. `job.status`.
    pub message_type: Option<String>,
    /// The body's media type.
    pub content_type: Option<String>,
    /// Further headers; `traceparent` continues a trace.
    pub headers: Vec<(String, String)>,
    /// What it says.
    pub body: Bytes,
}

/// Publishes to one exchange. After a failure the next message connects anew.
#[derive(Debug)]
pub struct AmqpPublisher {
    broker: Broker,
    name: String,
    exchange: String,
    kind: ExchangeKind,
    link: Mutex<Option<Link>>,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    channel: Channel,
}

impl AmqpPublisher {
    /// A publisher to a topic exchange, which is declared as a durable one if it is not there.
    ///
    /// # Errors
    /// [`AmqpError::Address`] if the address is none. Nothing is connected yet.
    pub fn new(url: &Secret, exchange: &str) -> Result<Self, AmqpError> {
        let broker = Broker::parse(url)?;
        Ok(Self::to(broker, "tidings publisher", exchange, ExchangeKind::Topic))
    }

    pub(crate) fn to(broker: Broker, name: &str, exchange: &str, kind: ExchangeKind) -> Self {
        let (name, exchange) = (name.to_owned(), exchange.to_owned());
        Self { broker, name, exchange, kind, link: Mutex::new(None) }
    }

    /// Publishes a message and waits until it is in a queue, on disk if that is durable. Any number
    /// may be on their way at once.
    ///
    /// # Errors
    /// [`AmqpError::Unroutable`] if there is no queue for it, [`AmqpError::Refused`] if a queue did
    /// not take it. After any other the message may or may not be there: publish it again with the
    /// same id.
    pub async fn publish(&self, message: &Message) -> Result<(), AmqpError> {
        let mut headers = FieldTable::default();
        for (name, value) in &message.headers {
            let name = short("a header's name", name)?;
            headers.insert(name, AMQPValue::LongString(value.as_str().into()));
        }
        let mut properties = BasicProperties::default().with_headers(headers);
        if let Some(id) = &message.id {
            properties = properties.with_message_id(short("the message id", id)?);
        }
        if let Some(message_type) = &message.message_type {
            properties = properties.with_type(short("the message type", message_type)?);
        }
        if let Some(content_type) = &message.content_type {
            properties = properties.with_content_type(short("the content type", content_type)?);
        }
        self.publish_as(&message.routing_key, &message.body, properties).await
    }

    /// The same with any properties.
    pub(crate) async fn publish_as(
        &self,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), AmqpError> {
        let properties = properties.with_delivery_mode(PERSISTENT);
        let published = self.confirmed(routing_key, body, properties).await;
        if matches!(published, Err(AmqpError::Lost { .. } | AmqpError::Silent { .. })) {
            *self.link.lock().await = None;
        }
        published
    }

    /// Ends the connection; the next message makes another.
    pub async fn close(&self) {
        if let Some(link) = self.link.lock().await.take() {
            // It is over either way.
            let _ = self.broker.answer(link.connection.close(200, "bye".into())).await;
        }
    }

    async fn confirmed(
        &self,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), AmqpError> {
        let exchange = short("the exchange", &self.exchange)?;
        let key = short("the routing key", routing_key)?;
        let channel = self.channel().await?;
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmed = async {
            channel.basic_publish(exchange, key, mandatory, body, properties).await?.await
        };
        let Ok(confirmed) = tokio::time::timeout(CONFIRM_MAX, confirmed).await else {
            // The message waits in our own queue: give that up.
            let link = self.link.lock().await.take();
            let is_blocked = link.is_some_and(|link| link.connection.status().blocked());
            let at = self.broker.to_string();
            return Err(if is_blocked {
                AmqpError::Blocked { at }
            } else {
                AmqpError::Silent { at, waited: CONFIRM_MAX }
            });
        };
        match confirmed.map_err(|source| self.broker.lost(source))? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => {
                Err(AmqpError::Unroutable {
                    exchange: self.exchange.clone(),
                    routing_key: routing_key.to_owned(),
                })
            }
            Confirmation::Nack(None) => Err(AmqpError::Refused { at: self.broker.to_string() }),
            Confirmation::NotRequested => unreachable!("the channel confirms"),
        }
    }

    /// The open channel, or a new one.
    async fn channel(&self) -> Result<Channel, AmqpError> {
        let mut link = self.link.lock().await;
        if let Some(link) = link.as_ref().filter(|link| is_open(&link.channel)) {
            return Ok(link.channel.clone());
        }
        let connection = self.broker.connect(&self.name).await?;
        self.broker.declare_exchange(&connection, &self.exchange, self.kind.clone()).await?;
        let channel = self.broker.answer(connection.create_channel()).await?;
        let options = ConfirmSelectOptions::default();
        self.broker.answer(channel.confirm_select(options)).await?;
        *link = Some(Link { connection, channel: channel.clone() });
        Ok(channel)
    }
}
