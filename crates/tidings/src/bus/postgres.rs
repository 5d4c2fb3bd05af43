//! The bus in PostgreSQL: NOTIFY, in a transaction of its own after the journal's.
//!
//! The rule: one channel for each schema, whatever the number of topics, and a node listens to what
//! is followed there; the connection that hears is believed as long as this node hears itself over
//! it. One that is silent is given up, and whoever follows is told that something may be missing.
//!
//! The server serialises commits that notify, over all databases: so announcements that queued up
//! share one, without waiting for the disk, and appends have none. A payload is text of 7 999 bytes
//! at most: a larger event that no journal keeps is dropped, knowingly.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use tokio::{sync::mpsc, task::JoinHandle, time::interval};

use super::{
    Announcement, Bus, Codec, Heard,
    ears::{Ears, PROBE_EVERY},
};
use crate::{
    journal::{
        JournalError,
        postgres::{Fault, PostgresOptions, Session, Target},
    },
    model::TopicKey,
};

/// Announcements that wait to be heard here, or to be said; of more, some are dropped.
const WAITING_MAX: usize = 4096;
/// Announcements that are said in one transaction.
const AT_ONCE: usize = 512;
/// Bytes of a payload: the server's bound.
const PAYLOAD_BYTES_MAX: usize = 7_999;
/// Begins a payload that is not text by itself.
const BINARY: &str = "b64 ";

/// A node's end of the bus.
#[derive(Debug)]
pub struct PostgresBus {
    shared: Arc<Shared>,
    said: mpsc::Sender<String>,
    keeper: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    says: Target,
    listens: Target,
    channel: String,
    codec: Codec,
    /// What this node says to itself.
    own: String,
    followed: Mutex<HashSet<TopicKey>>,
    ears: Ears,
}

impl PostgresBus {
    /// Connects to the server: to hear, by `listen_url` if there is one.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] if it does not answer, [`JournalError::Broken`] if the options
    /// are wrong.
    pub async fn open(options: &PostgresOptions, codec: Codec) -> Result<Arc<Self>, JournalError> {
        let node = getrandom::u64().map_err(|error| {
            JournalError::Unavailable(format!("the system has no randomness: {error}"))
        })?;
        let says_at = Target::of(options)?;
        let listens_at = match &options.listen_url {
            None => says_at.clone(),
            Some(url) => {
                let options = PostgresOptions { url: url.clone(), ..options.clone() };
                Target::of(&options).map_err(to_listen)?
            }
        };
        let (said, says) = mpsc::channel(WAITING_MAX);
        let shared = Arc::new(Shared {
            says: says_at,
            listens: listens_at,
            channel: format!("tidings_{:08x}", crc32c::crc32c(options.schema.as_bytes())),
            codec,
            own: format!("probe {node}"),
            followed: Mutex::default(),
            ears: Ears::new(WAITING_MAX, None),
        });
        let connected = shared.connect().await?;
        let keeper = tokio::spawn(keep(Arc::clone(&shared), connected, says));
        Ok(Arc::new(Self { shared, said, keeper }))
    }
}

#[async_trait]
impl Bus for PostgresBus {
    fn announce(&self, announcement: Announcement) {
        let payload = write(&self.shared.codec.encode(&announcement));
        let is_up = self.shared.ears.is_up();
        let fits = is_up && payload.len() <= PAYLOAD_BYTES_MAX;
        if !fits || self.said.try_send(payload).is_err() {
            self.shared.ears.drop_one();
        }
    }

    fn follow(&self, topic: &TopicKey) {
        self.shared.followed().insert(topic.clone());
        // Everything is listened to already, or will be told as missed once it is.
        self.shared.ears.hear(Heard::Missed(Some(topic.clone())));
    }

    fn unfollow(&self, topic: &TopicKey) {
        self.shared.followed().remove(topic);
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

impl Drop for PostgresBus {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// An announcement as a payload, which takes no byte 0 and no other text than UTF-8.
fn write(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => text.to_owned(),
        _ => format!("{BINARY}{}", BASE64_STANDARD_NO_PAD.encode(bytes)),
    }
}

fn read(payload: &str) -> Option<Vec<u8>> {
    match payload.strip_prefix(BINARY) {
        Some(encoded) => BASE64_STANDARD_NO_PAD.decode(encoded).ok(),
        None => Some(payload.as_bytes().to_vec()),
    }
}

/// Says which of two servers it is about.
fn to_listen(error: impl Into<JournalError>) -> JournalError {
    match error.into() {
        JournalError::Unavailable(what) => JournalError::Unavailable(format!("to listen: {what}")),
        JournalError::Broken(what) => JournalError::Broken(format!("to listen: {what}")),
        other => other,
    }
}

/// Connections that hear and say.
struct Connected {
    ears: Session,
    mouth: Session,
}

impl Shared {
    fn followed(&self) -> MutexGuard<'_, HashSet<TopicKey>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn message(&self, payload: &str) {
        if payload == self.own {
            self.ears.heard_itself();
            return;
        }
        if payload.starts_with("probe ") {
            return;
        }
        match read(payload).and_then(|bytes| self.codec.decode(&bytes)) {
            Some(announcement) => {
                if self.followed().contains(announcement.topic()) {
                    self.ears.hear(Heard::Announced(announcement));
                }
            }
            None => tracing::debug!("a message in PostgreSQL is no announcement of this hub"),
        }
    }

    async fn connect(self: &Arc<Self>) -> Result<Connected, JournalError> {
        let own = Arc::clone(self);
        let hear = move |payload: &str| own.message(payload);
        let ears = Session::open_hearing(&self.listens, Arc::new(hear)).await.map_err(to_listen)?;
        let listen = format!("LISTEN {}", self.channel);
        ears.answer(ears.client.batch_execute(&listen)).await?;
        let mouth = Session::open(&self.says).await?;
        // What is said is a hint, and lost with the server's memory at worst.
        let loose = "SET synchronous_commit = off";
        mouth.answer(mouth.client.batch_execute(loose)).await?;
        self.ears.heard_itself();
        Ok(Connected { ears, mouth })
    }

    /// Says what is to be said, and now and then something to itself.
    async fn speak(&self, mouth: &Session, says: &mut mpsc::Receiver<String>) -> Result<(), Fault> {
        let notify = "SELECT pg_notify($1, said) FROM unnest($2::text[]) AS said";
        let notify = mouth.answer(mouth.client.prepare(notify)).await?;
        let mut probe = interval(PROBE_EVERY);
        let mut some = Vec::new();
        loop {
            tokio::select! {
                _ = probe.tick() => some.push(self.own.clone()),
                _ = says.recv_many(&mut some, AT_ONCE) => {}
            }
            let said = async { mouth.client.execute(&notify, &[&self.channel, &some]).await };
            mouth.answer(said).await?;
            some.clear();
        }
    }

    /// Waits until this node has not heard itself for too long, or a server is one to leave.
    async fn silence(&self, ears: &Session, mouth: &Session) -> Result<(), Fault> {
        self.ears.silence(|| ears.is_closed() || mouth.is_closed()).await;
        Err(Fault::Lost("it delivers nothing".to_owned()))
    }
}

/// Hears and says, and connects anew whenever that ends.
async fn keep(shared: Arc<Shared>, mut connected: Connected, mut says: mpsc::Receiver<String>) {
    loop {
        let Connected { ears, mouth } = connected;
        let ended = tokio::select! {
            ended = shared.speak(&mouth, &mut says) => ended,
            ended = shared.silence(&ears, &mouth) => ended,
        };
        drop((ears, mouth));
        let reason = ended.err().map(|fault| fault.to_string()).unwrap_or_default();
        tracing::warn!(reason, "the bus in PostgreSQL is lost");
        connected = shared.ears.again(reason, &mut says, || shared.connect()).await;
        tracing::info!("the bus in PostgreSQL is back");
        shared.ears.miss();
    }
}

#[cfg(test)]
mod tests {
    use tidings_services::Postgres;

    use super::*;
    use crate::{
        auth::Secret,
        bus::contract::Pair,
        bus_contract,
        model::{Tenant, Topic},
    };

    async fn bus(options: &PostgresOptions) -> Arc<PostgresBus> {
        PostgresBus::open(options, Codec::new(&Secret::new("a"))).await.unwrap()
    }

    async fn pair() -> Pair {
        let server = Postgres::shared().unwrap();
        let schema = format!("t{}", uuid::Uuid::new_v4().simple());
        let options = PostgresOptions::new(server.url()).schema(schema);
        Pair::new(bus(&options).await, bus(&options).await).keeping(server)
    }

    bus_contract!(postgres, pair);

    /// Broken on purpose: without `silence`, nobody notices, and this waits for ever.
    #[tokio::test]
    async fn a_connection_that_ended_is_noticed_and_replaced() {
        let server = Postgres::start().unwrap();
        let options = PostgresOptions::new(server.url());
        let (one, other) = (bus(&options).await, bus(&options).await);
        let topic = TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse("t").unwrap());
        other.follow(&topic);
        assert_eq!(other.heard().await, Heard::Missed(Some(topic.clone())));
        let session = Session::open(&Target::of(&options).unwrap()).await.unwrap();
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()";
        session.client.batch_execute(kill).await.unwrap();
        assert_eq!(other.heard().await, Heard::Missed(None));
        assert_eq!(one.heard().await, Heard::Missed(None));
        let changed = Announcement::Changed { topic };
        one.announce(changed.clone());
        assert_eq!(other.heard().await, Heard::Announced(changed));
    }
}
