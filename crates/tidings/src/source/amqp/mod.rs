//! RabbitMQ as a source: messages of queues become events, and are acknowledged once they are
//! durable.
//!
//! The rule: no message is lost and none stops the rest. It is stored and then acknowledged, or it is
//! in the dead-letter queue with the reason and then acknowledged, or it is not acknowledged. What is
//! delivered again is recognised by its id.

mod dead_letter;
mod mapping;
mod session;
mod settings;
mod template;

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::task::AbortOnDropHandle;

pub use settings::{AmqpSettings, QueueSettings, QueueType, RouteClass, RouteSettings};

use crate::{
    amqp::{Backoff, Broker, told},
    auth::SettingsError,
    hub::Hub,
    metrics::Metrics,
};
use session::Session;
use settings::Queue;

/// A RabbitMQ broker whose messages a hub publishes, until the hub is shut down.
#[derive(Debug)]
pub struct AmqpSource {
    states: Vec<Arc<State>>,
}

impl AmqpSource {
    /// Starts to consume. What fails is tried again for as long as the hub runs.
    ///
    /// # Errors
    /// [`SettingsError`] names the first setting that cannot be.
    pub fn start(hub: &Hub, settings: &AmqpSettings) -> Result<Self, SettingsError> {
        let (broker, queues) = settings.check()?;
        let states = queues.into_iter().map(|queue| {
            let state = Arc::new(State::new(&queue.name, hub.shared_metrics()));
            hub.background(supervise(hub.clone(), broker.clone(), queue, Arc::clone(&state)));
            state
        });
        Ok(Self { states: states.collect() })
    }

    /// Why messages of a queue are not consumed now; `None` while those of all are.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let failures: Vec<String> =
            self.states.iter().filter_map(|state| state.failure()).collect();
        (!failures.is_empty()).then(|| failures.join("; "))
    }
}

/// Runs one session after the other.
async fn supervise(hub: Hub, broker: Broker, queue: Queue, state: Arc<State>) {
    let queue = Arc::new(queue);
    let mut backoff = Backoff::new();
    loop {
        let session = Session::new(hub.clone(), broker.clone(), &queue, &state);
        // In a task of its own: a panic in it is a failure like others.
        let running = AbortOnDropHandle::new(tokio::spawn(session.run()));
        let failure = match running.await {
            Ok(error) => told(&error),
            Err(panic) => format!("the source stopped where it should not: {panic}"),
        };
        if state.failed(failure) {
            backoff = Backoff::new();
        }
        hub.metrics().source_reconnects.inc();
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// How a queue is doing.
#[derive(Debug)]
struct State {
    queue: String,
    metrics: Arc<Metrics>,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    failure: Option<String>,
    /// What this queue adds to the metric.
    depth: i64,
}

impl State {
    fn new(queue: &str, metrics: Arc<Metrics>) -> Self {
        metrics.source_queues_failing.inc();
        let failure = Some("is not connected yet".to_owned());
        Self { queue: queue.to_owned(), metrics, now: Mutex::new(Now { failure, depth: 0 }) }
    }

    fn failure(&self) -> Option<String> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.failure.as_ref().map(|failure| format!("queue {}: {failure}", self.queue))
    }

    fn works(&self) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.failure.take().is_some() {
            self.metrics.source_queues_failing.dec();
            tracing::info!(queue = self.queue, "messages are consumed");
        }
    }

    /// Returns whether it had been working.
    fn failed(&self, failure: String) -> bool {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let worked = now.failure.is_none();
        if worked {
            self.metrics.source_queues_failing.inc();
        }
        if now.failure.as_ref() != Some(&failure) {
            tracing::warn!(queue = self.queue, failure, "messages are not consumed; trying again");
        }
        now.failure = Some(failure);
        worked
    }

    fn has_depth(&self, depth: u32) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.metrics.source_queue_depth.inc_by(i64::from(depth) - now.depth);
        now.depth = depth.into();
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let now = self.now.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.metrics.source_queue_depth.dec_by(now.depth);
        if now.failure.is_some() {
            self.metrics.source_queues_failing.dec();
        }
    }
}
