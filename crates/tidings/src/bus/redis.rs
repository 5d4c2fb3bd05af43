//! The bus in Redis: a channel for each topic, in which the journal's scripts say what they did.
//!
//! The rule: nothing is heard but of topics that are followed here, over one connection, whatever
//! their number; and that connection is believed as long as this node hears itself over it. One that
//! is silent is given up, and whoever follows is told that something may be missing. A cluster hands
//! what is said at one of its nodes on to all, so one connection is enough there too
//! (`docs/adr/0015-redis-cluster.md`), for as long as its node is with the others.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, Msg, RedisError,
    aio::{MultiplexedConnection, PubSubSink, PubSubStream},
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{interval, timeout},
};

use super::{
    Announcement, Bus, Codec, Heard,
    ears::{Ears, PROBE_EVERY},
};
use crate::{
    journal::{
        JournalError,
        redis::{Endpoint, Keys, RedisOptions},
    },
    model::TopicKey,
};

/// Announcements that wait to be heard here, or to be said; of more, some are dropped.
const WAITING_MAX: usize = 4096;
/// Announcements that are said, and topics that are subscribed to, in one command.
const AT_ONCE: usize = 512;
/// Who says that a topic advanced or was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaidBy {
    /// The journal in the same Redis, with the same prefix, in the commit itself.
    Journal,
    /// The hub, through this bus: the journal is another one.
    Hub,
}

/// A node's end of the bus.
#[derive(Debug)]
pub struct RedisBus {
    shared: Arc<Shared>,
    said: mpsc::Sender<(String, Bytes)>,
    said_by: SaidBy,
    keeper: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    options: RedisOptions,
    keys: Keys,
    codec: Codec,
    /// The channel in which this node hears itself.
    own: String,
    topics: Mutex<Topics>,
    /// Wakes who subscribes.
    changed: Notify,
    ears: Ears,
}

/// What is followed here.
#[derive(Debug, Default)]
struct Topics {
    followed: HashSet<TopicKey>,
    /// Whether topics are to be subscribed to that are not as they were.
    changes: HashMap<TopicKey, bool>,
}

impl RedisBus {
    /// Connects to the server.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] if it does not answer, [`JournalError::Broken`] if the options
    /// are wrong.
    pub async fn open(
        options: RedisOptions,
        codec: Codec,
        said_by: SaidBy,
    ) -> Result<Arc<Self>, JournalError> {
        options.check()?;
        let node = getrandom::u64().map_err(|error| {
            JournalError::Unavailable(format!("the system has no randomness: {error}"))
        })?;
        let (said, says) = mpsc::channel(WAITING_MAX);
        let keys = Keys::new(options.prefix.clone());
        let shared = Arc::new(Shared {
            endpoint: Endpoint::read(&options)?,
            own: keys.own_channel(node),
            options,
            keys,
            codec,
            topics: Mutex::default(),
            changed: Notify::new(),
            ears: Ears::new(WAITING_MAX, None),
        });
        let connected = shared.connect().await.map_err(JournalError::Unavailable)?;
        let keeper = tokio::spawn(keep(Arc::clone(&shared), connected, says));
        Ok(Arc::new(Self { shared, said, said_by, keeper }))
    }
}

#[async_trait]
impl Bus for RedisBus {
    fn announce(&self, announcement: Announcement) {
        let is_ephemeral = matches!(announcement, Announcement::Ephemeral { .. });
        if self.said_by == SaidBy::Journal && !is_ephemeral {
            return;
        }
        let channel = self.shared.keys.channel(announcement.topic());
        let is_up = self.shared.ears.is_up();
        let message = || (channel, self.shared.codec.encode(&announcement));
        if !is_up || self.said.try_send(message()).is_err() {
            self.shared.ears.drop_one();
        }
    }

    fn follow(&self, topic: &TopicKey) {
        let mut topics = self.shared.topics();
        topics.followed.insert(topic.clone());
        topics.changes.insert(topic.clone(), true);
        self.shared.changed.notify_one();
    }

    fn unfollow(&self, topic: &TopicKey) {
        let mut topics = self.shared.topics();
        topics.followed.remove(topic);
        topics.changes.insert(topic.clone(), false);
        self.shared.changed.notify_one();
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
        self.shared.ears.close();
        self.keeper.abort();
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Connections that hear and say.
struct Connected {
    sink: PubSubSink,
    stream: PubSubStream,
    says: MultiplexedConnection,
    /// Where they lead to.
    server: ConnectionAddr,
}

impl Shared {
    fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why something failed, with the server's name.
    fn reason(&self, error: &RedisError) -> String {
        format!("Redis at {}: {error}", self.endpoint)
    }

    async fn bounded<T>(
        &self,
        query: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, String> {
        match timeout(self.options.timeout, query).await {
            Ok(result) => result.map_err(|error| self.reason(&error)),
            Err(_) => Err(format!("Redis at {} does not answer", self.endpoint)),
        }
    }

    /// Connects, and subscribes to everything that is followed.
    async fn connect(&self) -> Result<Connected, String> {
        let client = self.bounded(self.endpoint.client()).await?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.options.connect_timeout))
            .set_response_timeout(None);
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let says = self.bounded(connecting).await?;
        let (mut sink, stream) = self.bounded(client.get_async_pubsub()).await?.split();
        self.bounded(sink.subscribe(&self.own)).await?;
        let all: Vec<String> = {
            let mut topics = self.topics();
            // What is not followed any more is not subscribed to on this connection.
            topics.changes.retain(|_, follows| *follows);
            topics.followed.iter().map(|topic| self.keys.channel(topic)).collect()
        };
        for some in all.chunks(AT_ONCE) {
            self.bounded(sink.subscribe(some)).await?;
        }
        let server = client.get_connection_info().addr().clone();
        Ok(Connected { sink, stream, says, server })
    }

    /// Hears until the connection ends.
    async fn listen(&self, mut stream: PubSubStream) -> String {
        while let Some(message) = stream.next().await {
            self.message(&message);
        }
        format!("Redis at {} closed the connection", self.endpoint)
    }

    fn message(&self, message: &Msg) {
        if message.get_channel_name() == self.own {
            self.ears.heard_itself();
            return;
        }
        match self.codec.decode(message.get_payload_bytes()) {
            Some(announcement) => self.ears.hear(Heard::Announced(announcement)),
            None => tracing::debug!("a message in Redis is no announcement of this hub"),
        }
    }

    /// Subscribes as topics are followed and left.
    async fn subscribe(&self, mut sink: PubSubSink) -> String {
        loop {
            let changed = self.changed.notified();
            let changes = mem::take(&mut self.topics().changes);
            if changes.is_empty() {
                changed.await;
                continue;
            }
            let (follow, leave): (Vec<_>, Vec<_>) =
                changes.into_iter().partition(|(_, follows)| *follows);
            for some in leave.chunks(AT_ONCE) {
                if let Err(reason) = self.bounded(sink.unsubscribe(self.channels(some))).await {
                    return reason;
                }
            }
            for some in follow.chunks(AT_ONCE) {
                if let Err(reason) = self.bounded(sink.subscribe(self.channels(some))).await {
                    return reason;
                }
                for (topic, _) in some {
                    self.ears.hear(Heard::Missed(Some(topic.clone())));
                }
            }
        }
    }

    fn channels(&self, topics: &[(TopicKey, bool)]) -> Vec<String> {
        topics.iter().map(|(topic, _)| self.keys.channel(topic)).collect()
    }

    /// Says what is to be said, and now and then something to itself.
    async fn speak(
        &self,
        mut connection: MultiplexedConnection,
        says: &mut mpsc::Receiver<(String, Bytes)>,
    ) -> String {
        let mut probe = interval(PROBE_EVERY);
        let mut some = Vec::new();
        loop {
            tokio::select! {
                _ = probe.tick() => some.push((self.own.clone(), Bytes::new())),
                _ = says.recv_many(&mut some, AT_ONCE) => {}
            }
            let mut pipe = redis::pipe();
            for (channel, message) in some.drain(..) {
                pipe.cmd("PUBLISH").arg(channel).arg(&*message).ignore();
            }
            if let Err(reason) = self.bounded(pipe.query_async::<()>(&mut connection)).await {
                return reason;
            }
        }
    }

    /// Waits until this node has not heard itself for too long.
    async fn silence(&self) -> String {
        self.ears.silence(|| false).await;
        format!("Redis at {} delivers nothing", self.endpoint)
    }
}

/// Waits until a node is none of the cluster's any more, or is cut off from the others: it would go
/// on to let this node hear itself.
async fn cut_off(endpoint: &Endpoint, server: &ConnectionAddr) -> String {
    let mut look = interval(PROBE_EVERY);
    // It was looked at when it was connected to.
    look.tick().await;
    loop {
        look.tick().await;
        if let Some(reason) = endpoint.doubt(server).await {
            return reason;
        }
    }
}

/// Hears and says, and connects anew whenever that ends.
async fn keep(
    shared: Arc<Shared>,
    mut connected: Connected,
    mut says: mpsc::Receiver<(String, Bytes)>,
) {
    loop {
        let Connected { sink, stream, says: connection, server } = connected;
        shared.ears.heard_itself();
        let reason = tokio::select! {
            reason = shared.listen(stream) => reason,
            reason = shared.subscribe(sink) => reason,
            reason = shared.speak(connection, &mut says) => reason,
            reason = shared.silence() => reason,
            reason = cut_off(&shared.endpoint, &server) => reason,
        };
        tracing::warn!(reason, "the bus in Redis is lost");
        connected = shared.ears.again(reason, &mut says, || shared.connect()).await;
        tracing::info!(server = %shared.endpoint, "the bus in Redis is back");
        shared.ears.miss();
    }
}
