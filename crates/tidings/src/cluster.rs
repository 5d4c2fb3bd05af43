//! What nodes tell and ask each other besides topics: who is there, how many places holders have,
//! how much they publish, and orders for a connection that is on another node.
//!
//! The rule: who is there is a keyed state of the hub's own, which ends by itself with its node. All
//! else is said over the bus, which may lose it: counts are said again, and whoever asked something
//! learns that nobody answered and asks anew.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    auth::{Grant, GrantClaims},
    bus::Announcement,
    error::{ErrorCode, Problem},
    hub::Hub,
    journal::JournalError,
    model::{Class, EventType, JsonText, NewEvent, StateKey, Tenant, Topic, TopicKey},
    publish::Publish,
    quota::{HOLD, Held, SAID_EVERY as SPENT_EVERY, Spent},
    sse::GoAway,
};

/// How often a node says that it is there, and all of its counts.
const SAID_EVERY: Duration = Duration::from_secs(HOLD.as_secs() / 3);
/// Changes of counts are gathered for so long: a storm of readers is told in a few words.
const GATHERED: Duration = Duration::from_millis(100);
/// Counts in one announcement: keeps it below the 8 000 bytes of PostgreSQL's notifications.
const HELD_AT_ONCE: usize = 150;
/// How long other nodes have to answer an order.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Orders that wait for answers at once; more are refused.
const WAITING_MAX: usize = 1024;

/// A node as it last said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Another one after each start.
    pub id: String,
    /// What its operator calls it.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// When it started, milliseconds since 1970.
    pub started_at_ms: u64,
    /// Why it takes no readers or events; none while it does.
    pub reason: Option<String>,
    /// Open connections of readers.
    pub connections: i64,
    /// Topics that somebody reads or writes there.
    pub topics_active: i64,
}

/// What one node says to all others.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Word {
    Held { counts: Vec<Held> },
    Spent { spent: Spent },
    Order { id: u64, order: Box<Order> },
    Answer { id: u64, answer: Answer },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Order {
    EndConnection { id: String },
    EndSubject { tenant: String, subject: String },
    Renew { id: String, grant: GrantClaims },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// So many connections were ended.
    Ended(usize),
    /// It was renewed, and follows these topics.
    Renewed(Vec<String>),
    /// It is there, and goes on as before, because its new credential does not cover a topic.
    NotCovered(String),
    /// There is no such connection.
    NotHere,
}

/// Orders of this node that wait for answers.
#[derive(Debug, Default)]
pub(crate) struct Asked(Mutex<HashMap<u64, mpsc::Sender<Answer>>>);

impl Asked {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Answer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says what this node has to say until the hub is shut down.
pub(crate) async fn run(hub: Hub) {
    if let (Some(bus), Ok(words)) = (&hub.topics().shared().bus, words()) {
        bus.follow(&words);
    }
    let mut again = tokio::time::interval(SAID_EVERY);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let is_alone = hub.topics().shared().bus.is_none();
    let mut spent = tokio::time::interval(SPENT_EVERY);
    spent.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let counts = tokio::select! {
            _ = again.tick() => {
                if let Err(problem) = hub.say_alive().await {
                    tracing::warn!(%problem, "other nodes are not told that this one is there");
                }
                hub.quotas().elsewhere.everything()
            }
            () = hub.quotas().elsewhere.changed() => {
                tokio::time::sleep(GATHERED).await;
                hub.quotas().elsewhere.unsaid()
            }
            _ = spent.tick(), if !is_alone => {
                for spent in hub.quotas().say_spent() {
                    hub.say(&Word::Spent { spent });
                }
                continue;
            }
        };
        for counts in counts.chunks(HELD_AT_ONCE) {
            hub.say(&Word::Held { counts: counts.to_vec() });
        }
    }
}

fn words() -> Result<TopicKey, Problem> {
    Ok(TopicKey::new(Tenant::hub(), Topic::parse("$hub/words")?))
}

fn nodes() -> Result<TopicKey, Problem> {
    Ok(TopicKey::new(Tenant::hub(), Topic::parse("$hub/nodes")?))
}

impl Hub {
    /// The nodes that share this one's journal, by name; a node that died is among them for 15 s.
    ///
    /// # Errors
    /// The journal's.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, JournalError> {
        let mine = self.node_info();
        let mut found = vec![mine.clone()];
        if self.topics().shared().bus.is_some() {
            let topic = nodes().map_err(|p| JournalError::Broken(p.to_string()))?;
            let (states, _) = self.states(&topic, "").await?;
            let others = states
                .iter()
                .filter_map(|frame| serde_json::from_slice::<NodeInfo>(&frame.data()).ok());
            found.extend(others.filter(|other| other.id != mine.id));
        }
        found.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
        Ok(found)
    }

    /// What this node says of itself.
    #[must_use]
    pub fn node_info(&self) -> NodeInfo {
        NodeInfo {
            id: format!("{:016x}", self.topics().shared().node),
            name: self.settings().node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_ms: self.started_at().as_millis(),
            reason: self.unready(),
            connections: self.metrics().connections.get(),
            topics_active: self.metrics().topics_active.get(),
        }
    }

    async fn say_alive(&self) -> Result<(), Problem> {
        let info = self.node_info();
        let alive = NewEvent {
            expires_at: Some(self.clock().now().plus(HOLD)),
            ..NewEvent::new(EventType::parse("node.alive")?)
                .state(StateKey::parse(&format!("node/{}", info.id))?)
                .data(json(&info)?)
        };
        let TopicKey { tenant, topic } = nodes()?;
        self.publish_one(&tenant, Publish::new(topic, alive)).await.map(drop)
    }

    /// Takes this node off the list of nodes, which [`Hub::shutdown`] does too. Otherwise it goes from
    /// there by itself.
    ///
    /// # Errors
    /// The journal's.
    pub async fn say_goodbye(&self) -> Result<(), Problem> {
        let gone = NewEvent {
            delete: true,
            ..NewEvent::new(EventType::parse("node.gone")?)
                .state(StateKey::parse(&format!("node/{}", self.node_info().id))?)
        };
        let TopicKey { tenant, topic } = nodes()?;
        let said = self.publish_one(&tenant, Publish::new(topic, gone));
        match timeout(ANSWERED_WITHIN, said).await {
            Ok(said) => said.map(drop),
            Err(_) => Err(Problem::new(ErrorCode::Unavailable, "the journal does not answer")),
        }
    }

    /// Ends a connection, on whichever node it is. Returns whether there is one.
    pub async fn end_connection_anywhere(&self, id: &str) -> bool {
        if self.end_connection(id, GoAway::Drain) {
            return true;
        }
        let order = Order::EndConnection { id: id.to_owned() };
        self.ask(order, |answer| matches!(answer, Answer::Ended(1..))).await.is_some()
    }

    /// Ends all connections of a subject, on all nodes that answer, and returns how many.
    pub async fn end_subject_anywhere(&self, tenant: &Tenant, subject: &str) -> usize {
        let mut ended = self.end_subject(tenant, subject);
        let order =
            Order::EndSubject { tenant: tenant.as_str().to_owned(), subject: subject.to_owned() };
        // All of them are waited for: none is the last.
        self.ask(order, |answer| {
            ended += if let Answer::Ended(count) = answer { *count } else { 0 };
            false
        })
        .await;
        ended
    }

    /// As [`Hub::renew_connection`], on whichever node the connection is.
    ///
    /// # Errors
    /// As there.
    pub async fn renew_connection_anywhere(
        &self,
        id: &str,
        grant: &Grant,
    ) -> Result<Vec<Topic>, Problem> {
        let here = match self.renew_connection(id, grant).await {
            Err(problem) if problem.code == ErrorCode::NotFound => problem,
            done => return done,
        };
        let order = Order::Renew { id: id.to_owned(), grant: grant.to_claims() };
        match self.ask(order, |answer| !matches!(answer, Answer::NotHere)).await {
            Some(Answer::Renewed(topics)) => {
                topics.iter().map(|topic| Ok(Topic::parse(topic)?)).collect()
            }
            Some(Answer::NotCovered(detail)) => {
                Err(Problem::new(ErrorCode::ForbiddenTopic, detail))
            }
            _ => Err(here),
        }
    }

    /// Asks all other nodes, until one says what is looked for, all have answered, or time is up.
    async fn ask(&self, order: Order, mut is_it: impl FnMut(&Answer) -> bool) -> Option<Answer> {
        let others = self.nodes().await.map_or(usize::MAX, |nodes| nodes.len() - 1);
        if self.topics().shared().bus.is_none() || others == 0 {
            return None;
        }
        let id = getrandom::u64().ok()?;
        let (sender, mut answers) = mpsc::channel(16);
        {
            let mut waiting = self.asked().waiting();
            if waiting.len() >= WAITING_MAX {
                return None;
            }
            waiting.insert(id, sender);
        }
        self.say(&Word::Order { id, order: Box::new(order) });
        let asked = async {
            for _ in 0..others {
                let answer = answers.recv().await?;
                if is_it(&answer) {
                    return Some(answer);
                }
            }
            None
        };
        let answer = timeout(ANSWERED_WITHIN, asked).await.unwrap_or_default();
        self.asked().waiting().remove(&id);
        answer
    }

    fn say(&self, word: &Word) {
        let shared = self.topics().shared();
        let Some(bus) = &shared.bus else { return };
        let said = words().and_then(|topic| {
            let event = NewEvent {
                class: Class::Ephemeral,
                ..NewEvent::new(EventType::parse("node.word")?).data(json(word)?)
            };
            let (at, node) = (self.clock().now(), shared.node);
            Ok(Announcement::Ephemeral { topic, event: Arc::new(event), at, node })
        });
        match said {
            Ok(announcement) => bus.announce(announcement),
            Err(problem) => tracing::error!(%problem, "a word to other nodes cannot be written"),
        }
    }

    /// Takes in what another node says; whoever speaks has the nodes' secret.
    pub(crate) fn hear(&self, node: u64, event: &NewEvent) {
        match parse(event) {
            Some(Word::Held { counts }) => self.quotas().elsewhere.hear(node, &counts),
            Some(Word::Spent { spent }) => self.quotas().hear_spent(node, &spent),
            Some(Word::Order { id, order }) => {
                let hub = self.clone();
                self.background(async move {
                    let answer = hub.obey(*order).await;
                    hub.say(&Word::Answer { id, answer });
                });
            }
            Some(Word::Answer { id, answer }) => {
                let asked = self.asked().waiting().get(&id).cloned();
                // Whoever asked may have gone, or has more answers than there are nodes.
                let _ = asked.map(|asked| asked.try_send(answer));
            }
            // A newer version says more.
            None => tracing::debug!("another node said something that this one does not know"),
        }
    }

    async fn obey(&self, order: Order) -> Answer {
        match order {
            Order::EndConnection { id } => {
                Answer::Ended(usize::from(self.end_connection(&id, GoAway::Drain)))
            }
            Order::EndSubject { tenant, subject } => {
                let tenant = Tenant::parse(&tenant).ok();
                Answer::Ended(tenant.map_or(0, |tenant| self.end_subject(&tenant, &subject)))
            }
            Order::Renew { id, grant } => {
                let Ok(grant) = Grant::from_claims(&grant) else { return Answer::NotHere };
                match self.renew_connection(&id, &grant).await {
                    Ok(topics) => Answer::Renewed(topics.iter().map(Topic::to_string).collect()),
                    Err(problem) if problem.code == ErrorCode::ForbiddenTopic => {
                        Answer::NotCovered(problem.detail)
                    }
                    Err(_) => Answer::NotHere,
                }
            }
        }
    }
}

fn json<T: Serialize>(value: &T) -> Result<JsonText, Problem> {
    JsonText::of(value)
        .map_err(|_| Problem::new(ErrorCode::Internal, "a word to other nodes cannot be written"))
}

fn parse<T: DeserializeOwned>(event: &NewEvent) -> Option<T> {
    match &event.data {
        crate::model::Data::Json(text) => serde_json::from_str(text.as_str()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{
        bus::{Bus, Heard, local::LocalBus},
        journal::{JournalSettings, memory::MemoryJournal},
        model::Pattern,
        settings::{Rate, Settings},
    };

    /// Broken on purpose: without [`run`], each node lets a user have all of its places.
    #[tokio::test(start_paused = true)]
    async fn a_users_places_are_counted_over_all_nodes_and_come_back() {
        let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
        let bus = LocalBus::new();
        let [a, b, c] = [(); 3].map(|()| {
            let settings = Settings { user_connections_max: 2, ..Settings::default() };
            let builder = Hub::builder().journal(Arc::clone(&journal) as Arc<_>).bus(bus.join());
            builder.settings(settings).start()
        });
        let read = [Pattern::parse("a").unwrap()];
        let grant = Grant::of_patterns(Tenant::parse("t").unwrap(), "key:r", &read, &[]);
        let take = |hub: &Hub| hub.quotas().stream(&grant, None);
        let pass = || tokio::time::sleep(Duration::from_secs(1));
        pass().await;
        let first = take(&a).unwrap();
        let _second = take(&b).unwrap();
        pass().await;
        for hub in [&a, &b, &c] {
            assert_eq!(take(hub).unwrap_err().code, ErrorCode::LimitReached);
        }
        drop(first);
        pass().await;
        let _third = take(&c).unwrap();
        // A node that dies gives its places back by saying nothing any more.
        b.shutdown().await;
        pass().await;
        assert!(take(&a).is_err());
        tokio::time::sleep(HOLD).await;
        assert!(take(&a).is_ok());
    }

    const RATE: Rate = Rate { per_second: 40, burst: 80 };

    /// How many of the events were admitted that a user published at some nodes at once, as fast as
    /// each of them let it, in each of so many seconds.
    async fn admitted(hubs: &[Hub], seconds: usize) -> Vec<usize> {
        let write = [Pattern::parse("a").unwrap()];
        let grant = Grant::of_patterns(Tenant::parse("t").unwrap(), "key:w", &[], &write);
        let mut admitted = Vec::new();
        for _ in 0..seconds {
            let mut count = 0;
            for _ in 0..200 {
                for hub in hubs {
                    count += usize::from(hub.quotas().publish(&grant, 1).is_ok());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            admitted.push(count);
        }
        admitted
    }

    fn hubs_with_rates(bus: impl Fn(Arc<LocalBus>) -> Arc<dyn Bus>) -> [Hub; 3] {
        let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
        let local = LocalBus::new();
        [(); 3].map(|()| {
            let settings = Settings { user_publish_rate: RATE, ..Settings::default() };
            let builder = Hub::builder().journal(Arc::clone(&journal) as Arc<_>);
            builder.bus(bus(local.join())).settings(settings).start()
        })
    }

    /// What ADR 0016 says: three bursts, and what three nodes give in an interval, once; then the
    /// rate.
    ///
    /// Broken on purpose: when nobody hears what others gave, and when each word counts whole.
    #[tokio::test(start_paused = true)]
    async fn a_users_rate_is_of_all_nodes() {
        let hubs = hubs_with_rates(|bus| bus);
        let seconds = admitted(&hubs, 60).await;
        let all: usize = seconds.iter().sum();
        // By each node: a burst, and the rate until others' words are here.
        let once = 3 * 80 + 3 * 40;
        assert!(all <= 60 * 40 + once, "{all}: {seconds:?}");
        let late: usize = seconds.iter().skip(20).sum();
        assert!((1_480..=1_680).contains(&late), "{late} in 40 s: {seconds:?}");
        // A node alone has all of the rate again.
        hubs[1].shutdown().await;
        hubs[2].shutdown().await;
        let alone: usize = admitted(&hubs[..1], 10).await.iter().skip(5).sum();
        assert!((190..=205).contains(&alone), "{alone} in 5 s");
    }

    /// Of words that are lost two times of three, none is missed.
    #[tokio::test(start_paused = true)]
    async fn a_rate_holds_over_a_bus_that_loses_words() {
        let hubs = hubs_with_rates(|bus| Arc::new(Forgetful { bus, said: AtomicUsize::new(0) }));
        let late: usize = admitted(&hubs, 60).await.iter().skip(20).sum();
        assert!((1_480..=1_700).contains(&late), "{late} in 40 s");
    }

    /// Says one of three.
    #[derive(Debug)]
    struct Forgetful {
        bus: Arc<LocalBus>,
        said: AtomicUsize,
    }

    #[async_trait::async_trait]
    impl Bus for Forgetful {
        fn announce(&self, announcement: Announcement) {
            if self.said.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) {
                self.bus.announce(announcement);
            }
        }

        fn follow(&self, topic: &TopicKey) {
            self.bus.follow(topic);
        }

        fn unfollow(&self, topic: &TopicKey) {
            self.bus.unfollow(topic);
        }

        async fn heard(&self) -> Heard {
            self.bus.heard().await
        }

        fn failure(&self) -> Option<String> {
            self.bus.failure()
        }

        fn dropped(&self) -> u64 {
            self.bus.dropped()
        }

        async fn close(&self) {
            self.bus.close().await;
        }
    }
}
