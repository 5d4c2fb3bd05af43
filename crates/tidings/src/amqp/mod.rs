//! RabbitMQ (AMQP 0-9-1): addresses, connections, and a publisher that waits for confirms.
//!
//! The rule: a connection that fails is given up and made anew by whoever needs it, with everything
//! that it had declared. Nothing recovers behind anybody's back.

mod publisher;

use std::{fmt, time::Duration};

use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{FieldTable, ShortString},
    uri::AMQPUri,
};

pub use publisher::{AmqpPublisher, Message};

use crate::auth::Secret;

/// How long connecting may take, the handshakes included: six ways there and back. Whoever began while
/// the broker was out of reach begins anew so soon after it is back.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long the broker may take to answer what is not a publish: it keeps a channel waiting while
/// it elects a leader of a quorum queue.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Heartbeat, seconds, where the address says none: a dead socket is noticed after twice as long.
const HEARTBEAT_S: u16 = 4;

/// Why something at the broker did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AmqpError {
    /// The address is none: correct it.
    #[error("the address of RabbitMQ {0}")]
    Address(String),
    /// A name or header that AMQP cannot carry: it takes 255 bytes.
    #[error("{what} is longer than 255 bytes")]
    TooLong {
        /// What is too long.
        what: &'static str,
    },
    /// The broker cannot be reached or refuses the credentials.
    #[error("cannot connect to RabbitMQ at {at}")]
    Connect {
        /// Where, without credentials.
        at: String,
        /// Why not.
        #[source]
        source: lapin::Error,
    },
    /// The broker or the way to it failed: try again.
    #[error("RabbitMQ at {at} did not do what it was asked")]
    Lost {
        /// Where, without credentials.
        at: String,
        /// What went wrong.
        #[source]
        source: lapin::Error,
    },
    /// The broker did not answer in time: whether it did what it was asked is unknown.
    #[error("RabbitMQ at {at} did not answer within {waited:?}")]
    Silent {
        /// Where, without credentials.
        at: String,
        /// For how long.
        waited: Duration,
    },
    /// The broker ended the consumer: its queue was deleted, or is led by another node now.
    #[error("RabbitMQ at {at} delivers no more messages of the queue {queue}")]
    Canceled {
        /// Where, without credentials.
        at: String,
        /// Of which queue.
        queue: String,
    },
    /// The broker takes no messages now, for want of memory or disk: try again later.
    #[error("RabbitMQ at {at} takes no messages now: it is short of memory or disk")]
    Blocked {
        /// Where, without credentials.
        at: String,
    },
    /// No queue is bound to the exchange for this routing key: bind one.
    #[error("no queue gets messages of the exchange {exchange} with the routing key {routing_key}")]
    Unroutable {
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// The broker did not take the message: a queue is full, or cannot be written.
    #[error("RabbitMQ at {at} refused the message")]
    Refused {
        /// Where, without credentials.
        at: String,
    },
}

/// A broker's address.
#[derive(Clone)]
pub(crate) struct Broker {
    uri: AMQPUri,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broker({self})")
    }
}

impl fmt::Display for Broker {
    /// Without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = &self.uri.authority;
        write!(f, "{}://{}:{}", self.uri.scheme, authority.host, authority.port)?;
        if self.uri.vhost == "/" { Ok(()) } else { write!(f, "/{}", self.uri.vhost) }
    }
}

impl Broker {
    /// Reads `amqp://user:password@host:5672/vhost`, or `amqps://`.
    pub(crate) fn parse(url: &Secret) -> Result<Self, AmqpError> {
        // The parser's messages may repeat parts of the address.
        let rule = "must be written as amqp://user:password@host:5672/vhost, or amqps://";
        let mut uri: AMQPUri =
            url.expose().parse().map_err(|_| AmqpError::Address(rule.to_owned()))?;
        // What other clients mean by `amqp://host/`; nobody has a virtual host without a name.
        if uri.vhost.is_empty() {
            "/".clone_into(&mut uri.vhost);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        Ok(Self { uri })
    }

    /// Connects, as `name` in the broker's list of connections.
    pub(crate) async fn connect(&self, name: &str) -> Result<Connection, AmqpError> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connecting = Connection::connect_uri(self.uri.clone(), properties);
        let connection = tokio::time::timeout(CONNECT_MAX, connecting).await;
        let connection = connection.map_err(|_| self.silent(CONNECT_MAX))?;
        connection.map_err(|source| AmqpError::Connect { at: self.to_string(), source })
    }

    /// Waits for an answer of the broker.
    pub(crate) async fn answer<T>(
        &self,
        asked: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, AmqpError> {
        let answer = tokio::time::timeout(ANSWER_MAX, asked).await;
        answer.map_err(|_| self.silent(ANSWER_MAX))?.map_err(|source| self.lost(source))
    }

    pub(crate) fn lost(&self, source: lapin::Error) -> AmqpError {
        AmqpError::Lost { at: self.to_string(), source }
    }

    pub(crate) fn silent(&self, waited: Duration) -> AmqpError {
        AmqpError::Silent { at: self.to_string(), waited }
    }

    /// Makes sure that there is such a durable exchange. One that is there is taken as it is: its
    /// other users may have declared it otherwise.
    pub(crate) async fn declare_exchange(
        &self,
        connection: &Connection,
        name: &str,
        kind: ExchangeKind,
    ) -> Result<(), AmqpError> {
        if name.is_empty() {
            // The broker's own, which leads to queues by their names.
            return Ok(());
        }
        let exchange = short("the exchange", name)?;
        // A refusal closes the channel.
        let channel = self.answer(connection.create_channel()).await?;
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let looked = self
            .answer(channel.exchange_declare(
                exchange.clone(),
                kind.clone(),
                passive,
                FieldTable::default(),
            ))
            .await;
        match looked {
            Err(AmqpError::Lost { source, .. }) if refused(&source, &AMQPSoftError::NOTFOUND) => {}
            looked => return looked,
        }
        let channel = self.answer(connection.create_channel()).await?;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        self.answer(channel.exchange_declare(exchange, kind, durable, FieldTable::default())).await
    }

    /// Makes sure that there is such a queue. One that is there with other properties is taken as it
    /// is, and what differs is returned.
    pub(crate) async fn declare_queue(
        &self,
        connection: &Connection,
        name: &str,
        arguments: FieldTable,
    ) -> Result<Declared, AmqpError> {
        let channel = self.answer(connection.create_channel()).await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let name = short("the queue", name)?;
        let declared = self.answer(channel.queue_declare(name, durable, arguments)).await;
        match declared {
            Ok(_) => Ok(Declared::AsAsked),
            Err(AmqpError::Lost { source, .. })
                if refused(&source, &AMQPSoftError::PRECONDITIONFAILED) =>
            {
                Ok(Declared::Otherwise(source.to_string()))
            }
            Err(error) => Err(error),
        }
    }
}

/// A queue that is there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Declared {
    /// With the properties that were asked for.
    AsAsked,
    /// With others; the broker's words.
    Otherwise(String),
}

/// A text of at most 255 bytes, as AMQP has names and properties.
pub(crate) fn short(what: &'static str, text: &str) -> Result<ShortString, AmqpError> {
    ShortString::try_new(text).map_err(|_| AmqpError::TooLong { what })
}

/// Whether the broker closed the channel for this reason.
pub(crate) fn refused(error: &lapin::Error, reason: &AMQPSoftError) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error)
        if matches!(error.kind(), AMQPErrorKind::Soft(soft) if soft == reason))
}

/// An error with its causes, for logs and `failure()`.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // lapin repeats its causes.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Whether a channel still works.
pub(crate) fn is_open(channel: &Channel) -> bool {
    channel.status().connected()
}

/// Pauses between attempts that fail: twice as long each time, between half and all of it by chance,
/// so that nodes do not come all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The first pause: a restarted broker is back within seconds.
    const FIRST: Duration = Duration::from_millis(100);
    /// The longest pause. With the longest attempt to connect it is less than the 5 s in which
    /// everything goes on after the broker is back; one that takes connections and answers nothing
    /// is not.
    const LONGEST: Duration = Duration::from_secs(1);

    pub(crate) const fn new() -> Self {
        Self { next: Self::FIRST }
    }

    /// How long to wait now.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(Self::LONGEST);
        let chance = getrandom::u32().unwrap_or(u32::MAX);
        pause / 2 + (pause / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_told_without_its_credentials() {
        for (url, told) in [
            ("amqp://guest:secret@host", "amqp://host:5672"),
            ("amqp://guest:secret@host/", "amqp://host:5672"),
            ("amqp://guest:secret@host/%2f", "amqp://host:5672"),
            ("amqps://guest:secret@host:1/events", "amqps://host:1/events"),
        ] {
            let broker = Broker::parse(&Secret::new(url)).unwrap();
            assert_eq!((broker.to_string().as_str(), broker.uri.query.heartbeat), (told, Some(4)));
            assert_eq!(format!("{broker:?}"), format!("Broker({told})"));
        }
        let slower = Broker::parse(&Secret::new("amqp://host?heartbeat=30")).unwrap();
        assert_eq!(slower.uri.query.heartbeat, Some(30));
        for bad in ["", "host", "http://guest:secret@host", "amqp://guest:secret@host:port"] {
            let told = Broker::parse(&Secret::new(bad)).unwrap_err().to_string();
            assert!(!told.contains("secret"), "{told}");
        }
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let mut backoff = Backoff::new();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.pause()).collect();
        assert!(pauses[0] <= Backoff::FIRST && pauses[0] >= Backoff::FIRST / 2);
        assert!(pauses.iter().all(|pause| *pause <= Backoff::LONGEST));
        assert!(pauses[11] >= Backoff::LONGEST / 2);
    }
}
