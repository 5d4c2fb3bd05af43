//! `tidings publish --amqp`: one message to RabbitMQ, for sources to make an event of.
//!
//! The rule: what is reported as published is in a queue.

use std::{io::Write as _, time::Duration};

use serde_json::json;
use tidings::{
    amqp::{AmqpError, AmqpPublisher, Message},
    auth::Secret,
    model::{EventId, JsonText},
};
use tokio::time::{Instant, sleep};

use super::warn;
use crate::{
    cli::PublishArgs,
    exit::{Exit, Failure},
    remote::Backoff,
};

/// How long the message is tried.
const RETRY: Duration = Duration::from_secs(10);

/// Publishes one message and prints its id as a line of JSON.
pub(super) async fn publish(
    args: &PublishArgs,
    url: &str,
    data: Option<JsonText>,
) -> Result<Exit, Failure> {
    let usage = |error: &AmqpError| Failure::new(Exit::Usage, format!("--amqp: {error}"));
    let publisher =
        AmqpPublisher::new(&Secret::new(url), &args.exchange).map_err(|error| usage(&error))?;
    let id = args.id.clone().unwrap_or_else(|| EventId::mint().to_string());
    let message = Message {
        routing_key: args.routing_key.clone().unwrap_or_default(),
        id: Some(id.clone()),
        message_type: args.event_type.clone(),
        content_type: data.is_some().then(|| "application/json".to_owned()),
        body: data.map(|data| data.as_str().to_owned().into()).unwrap_or_default(),
        headers: Vec::new(),
    };
    let retry_for = args.retry_for.map_or(RETRY, |period| period.0);
    let started = Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let error = match publisher.publish(&message).await {
            Ok(()) => break,
            Err(error @ AmqpError::TooLong { .. }) => return Err(usage(&error)),
            Err(error @ AmqpError::Unroutable { .. }) => {
                return Err(Failure::new(Exit::Data, error.to_string()));
            }
            Err(error) => error,
        };
        if started.elapsed() >= retry_for {
            return Err(Failure::new(Exit::Unavailable, error.to_string()));
        }
        if backoff.is_first() && !args.quiet {
            warn(&format!("{error}; trying again"));
        }
        // The same id: what was stored without an answer is recognised.
        sleep(backoff.next(None)).await;
    }
    publisher.close().await;
    let mut out = anstream::stdout();
    let result = json!({"id": id, "exchange": args.exchange, "routing_key": message.routing_key});
    match writeln!(out, "{result}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::output("stdout", &error))
        }
        _ => Ok(Exit::Ok),
    }
}
