//! The store that survives crashes, and the journal of one hub over it, which fails at times.
//!
//! The rule: an append counts once it is applied to the memory journal inside, whole. What a crash
//! finds before that is lost, what it finds after that is kept and was answered to nobody.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tidings::{
    clock::Clock,
    journal::{
        Appended, Batch, Change, DeleteIf, Due, DueKind, Found, Head, Journal, JournalError,
        JournalSettings, Judged, Locate, Outcome, Page, PageLimit, Retention, StateQuery,
        TopicInfo, TopicQuery, memory::MemoryJournal,
    },
    model::{Epoch, Offset, Position, Timestamp, TopicKey},
};
use tokio_util::sync::CancellationToken;

use crate::{chance::Chance, history::History, trace::Trace, world::key};

/// The durable truth of a run.
#[derive(Debug)]
pub(crate) struct Store {
    seed: u64,
    clock: Arc<dyn Clock>,
    trace: Arc<Trace>,
    pub(crate) is_calm: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    memory: MemoryJournal,
    /// What leads from nothing to the memory journal as it is: a backup is a part of it.
    writes: Vec<Write>,
    /// Between the memory journal's epochs, which are random, and the run's, which are the seed's.
    mask: u32,
    store_epoch: u32,
    /// The latest time at which the hub asked what has expired.
    latest: Timestamp,
    history: History,
    losses: u64,
    chances: BTreeMap<String, Chance>,
}

#[derive(Debug, Clone)]
enum Write {
    Append(TopicKey, Batch),
    Change(TopicKey, Change),
    Delete(TopicKey, DeleteIf),
    Trim(TopicKey, Retention, Timestamp),
}

impl Write {
    const fn topic(&self) -> &TopicKey {
        match self {
            Self::Append(topic, _)
            | Self::Change(topic, _)
            | Self::Delete(topic, _)
            | Self::Trim(topic, ..) => topic,
        }
    }
}

/// Whether a store that lost events knows that it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It has another epoch.
    Known,
    /// It does not: the disk lied about what it had written. The fingerprints must show it.
    Silent,
}

/// A never-written topic: its epoch is the store's own.
const UNWRITTEN: &str = "unwritten";
/// Tickets are spread over topics by chance that is not the seed's: what happens to these topics
/// must not shift what happens to others.
const TICKETS: &str = "$hub/tickets";

impl Store {
    pub(crate) fn new(
        seed: u64,
        clock: Arc<dyn Clock>,
        trace: Arc<Trace>,
        topics: &[&str],
    ) -> Arc<Self> {
        let store_epoch = 1000;
        let (memory, mask) = empty(&clock, store_epoch);
        let mut history = History::default();
        for topic in topics {
            let epoch = now(memory.describe(&key(topic))).unwrap().head.epoch;
            history.begin(topic, Epoch(epoch.0 ^ mask));
        }
        let chances = BTreeMap::new();
        let writes = Vec::new();
        let latest = Timestamp::default();
        let inner =
            Inner { memory, writes, mask, store_epoch, latest, history, losses: 0, chances };
        let is_calm = AtomicBool::new(false);
        Arc::new(Self { seed, clock, trace, is_calm, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Looks at what was really stored.
    pub(crate) fn history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.inner().history)
    }

    /// A publisher was told that an event is stored.
    pub(crate) fn tell(&self, topic: &str, position: Position, data: &str) -> bool {
        self.inner().history.tell(topic, position, data)
    }

    /// How often the store lost events.
    pub(crate) fn losses(&self) -> u64 {
        self.inner().losses
    }

    /// The journal of one hub. Once `dead` is cancelled, none of its calls returns any more.
    pub(crate) fn open(self: &Arc<Self>, dead: CancellationToken) -> Arc<FaultyJournal> {
        Arc::new(FaultyJournal { store: Arc::clone(self), dead, closed: AtomicBool::new(false) })
    }

    /// Goes back to what it was before the last so many writes. No hub may be running.
    pub(crate) fn lose(&self, writes: usize, loss: Loss) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let told = |write: &&Write| !write.topic().topic.as_str().starts_with(TICKETS);
        let kept = inner.writes.iter().filter(told).count().saturating_sub(writes);
        let mut seen = 0;
        let mut is_kept = |write: &Write| {
            seen += usize::from(told(&write));
            seen <= kept
        };
        let writes: Vec<Write> =
            inner.writes.drain(..).take_while(|write| is_kept(write)).collect();
        inner.losses += 1;
        if loss == Loss::Known {
            inner.store_epoch += 1;
        }
        (inner.memory, inner.mask) = empty(&self.clock, inner.store_epoch);
        let topics: Vec<String> = inner.history.topics().map(str::to_owned).collect();
        for topic in topics {
            let epoch = now(inner.memory.describe(&key(&topic))).unwrap().head.epoch;
            inner.history.begin(&topic, Epoch(epoch.0 ^ inner.mask));
        }
        for write in writes {
            inner.apply(write, &self.trace).unwrap();
        }
    }

    /// Trims a topic behind the hub's back, as another node of it would.
    pub(crate) fn trim(&self, topic: &str, keep: u64) {
        let retention = Retention { events: Some(keep), ..Retention::UNLIMITED };
        let write = Write::Trim(key(topic), retention, self.clock.now());
        self.inner().apply(write, &self.trace).unwrap();
    }

    /// States of the run's topics whose end has come and was not written yet.
    pub(crate) fn has_due(&self) -> bool {
        let due =
            now(self.inner().memory.due(DueKind::Expired, self.clock.now(), 1000)).whole().unwrap();
        due.iter().any(|due| !due.topic.topic.is_reserved())
    }

    fn plan(&self, name: &str) -> Plan {
        if self.is_calm.load(Ordering::SeqCst) || name.starts_with(TICKETS) {
            return Plan::default();
        }
        let mut inner = self.inner();
        let chance =
            inner.chances.entry(name.to_owned()).or_insert_with(|| Chance::named(self.seed, name));
        Plan {
            before: delay(chance),
            after: delay(chance),
            fate: chance.within(0..100),
            page: usize::try_from(chance.within(1..60)).unwrap(),
        }
    }
}

/// How one call of the journal goes.
#[derive(Debug, Default)]
struct Plan {
    before: Duration,
    after: Duration,
    fate: u64,
    /// Events of a page, fewer than were asked for: each page's end is a seam. 0: as asked for.
    page: usize,
}

impl Plan {
    fn limit(&self, asked: PageLimit) -> PageLimit {
        let most = if self.page == 0 { usize::MAX } else { self.page };
        PageLimit { events: asked.events.min(most), ..asked }
    }

    const fn fails_before(&self) -> bool {
        matches!(self.fate, 1..=3)
    }

    const fn fails_after(&self) -> bool {
        matches!(self.fate, 4..=6)
    }
}

fn delay(chance: &mut Chance) -> Duration {
    match chance.within(0..100) {
        0..70 => Duration::ZERO,
        70..90 => chance.millis(1..20),
        90..98 => chance.millis(20..300),
        _ => chance.millis(300..3000),
    }
}

/// An empty journal, and what makes its store's epoch the given one.
fn empty(clock: &Arc<dyn Clock>, store_epoch: u32) -> (MemoryJournal, u32) {
    let memory = MemoryJournal::with_clock(JournalSettings::default(), Arc::clone(clock));
    let own = now(memory.describe(&key(UNWRITTEN))).unwrap().head.epoch;
    (memory, own.0 ^ store_epoch)
}

/// The memory journal never waits.
fn now<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("the memory journal never waits")
}

/// What a write is answered.
enum Written {
    Appended(Appended),
    Changed(Judged<TopicInfo>),
    Deleted(Judged<bool>),
    Head(Head),
}

impl Inner {
    fn apply(&mut self, write: Write, trace: &Trace) -> Result<Written, JournalError> {
        self.writes.push(write.clone());
        Ok(match write {
            Write::Append(topic, batch) => {
                let events = batch.events.clone();
                let early = self.ends_too_early(&topic, &batch);
                let mut appended = now(self.memory.append(&topic, batch))?;
                self.translate(&mut appended.head);
                for outcome in &mut appended.outcomes {
                    if let Outcome::Stored(position) | Outcome::Duplicate(position) = outcome {
                        position.epoch = self.epoch(position.epoch);
                    }
                }
                let name = topic.topic.as_str();
                let recorded = self.history.appended(name, &events, &appended);
                let ended = early.filter(|_| !appended.events.is_empty()).map_or(Ok(()), Err);
                if let Err(wrong) = recorded.and(ended) {
                    trace.fail("store", &wrong);
                }
                Written::Appended(appended)
            }
            Write::Change(topic, change) => {
                let changed = now(self.memory.set_properties(&topic, change))?;
                let changed = changed.map(|info| self.info(info));
                if let Ok(info) = &changed {
                    self.history.closed(topic.topic.as_str(), info.head.closed);
                }
                Written::Changed(changed)
            }
            Write::Delete(topic, condition) => {
                let condition = match condition {
                    DeleteIf::Unchanged(info) => DeleteIf::Unchanged(Box::new(self.info(*info))),
                    other => other,
                };
                let deleted = now(self.memory.delete(&topic, condition))?;
                if matches!(deleted, Ok(true)) && !topic.topic.is_reserved() {
                    let epoch = now(self.memory.describe(&topic))?.head.epoch;
                    let epoch = self.epoch(epoch);
                    self.history.begin(topic.topic.as_str(), epoch);
                }
                Written::Deleted(deleted)
            }
            Write::Trim(topic, retention, at) => {
                let mut head = now(self.memory.trim(&topic, &retention, at))?;
                self.translate(&mut head);
                self.history.trimmed(topic.topic.as_str(), head.floor().offset.0);
                Written::Head(head)
            }
        })
    }

    /// The hub ends states only when their time has come.
    fn ends_too_early(&self, topic: &TopicKey, batch: &Batch) -> Option<String> {
        let append = batch.events.iter().find(|append| append.ends_expired)?;
        let query = StateQuery::of(append.event.key.as_ref()?);
        let page = now(self.memory.states(topic, query)).ok()?;
        let current = page.events.iter().find(|event| event.body.key == append.event.key)?;
        let at_offset = append.if_offset == Some(current.offset);
        let is_over = current.body.expires_at.is_some_and(|end| end <= self.latest);
        (at_offset && !is_over)
            .then(|| format!("{} ended a state that had not expired", topic.topic))
    }

    const fn epoch(&self, epoch: Epoch) -> Epoch {
        Epoch(epoch.0 ^ self.mask)
    }

    fn translate(&self, head: &mut Head) {
        head.epoch = self.epoch(head.epoch);
    }

    fn info(&self, mut info: TopicInfo) -> TopicInfo {
        self.translate(&mut info.head);
        info
    }

    fn page(&self, mut page: Page) -> Page {
        self.translate(&mut page.head);
        page.next = Position { epoch: self.epoch(page.next.epoch), ..page.next };
        page
    }
}

/// One hub's way to the store.
#[derive(Debug)]
pub(crate) struct FaultyJournal {
    store: Arc<Store>,
    dead: CancellationToken,
    closed: AtomicBool,
}

impl FaultyJournal {
    async fn living(&self) -> Result<(), JournalError> {
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
        if self.closed.load(Ordering::SeqCst) {
            return Err(JournalError::Unavailable("the journal was closed".to_owned()));
        }
        Ok(())
    }

    async fn wait(&self, delay: Duration) -> Result<(), JournalError> {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.living().await
    }

    async fn call<T>(
        &self,
        name: &str,
        work: impl FnOnce(&mut Inner, &Plan) -> Result<T, JournalError> + Send,
    ) -> Result<T, JournalError> {
        self.living().await?;
        let failed = |what: &str| Err(JournalError::Unavailable(what.to_owned()));
        let plan = self.store.plan(name);
        if !name.starts_with(TICKETS) {
            self.store.trace.line("store", format_args!("{name} {plan:?}"));
        }
        self.wait(plan.before).await?;
        if plan.fails_before() {
            return failed("the disk does not answer");
        }
        let done = work(&mut self.store.inner(), &plan)?;
        self.wait(plan.after).await?;
        if plan.fails_after() { failed("the disk's answer was lost") } else { Ok(done) }
    }

    async fn write(&self, topic: &TopicKey, write: Write) -> Result<Written, JournalError> {
        let trace = &self.store.trace;
        self.call(topic.topic.as_str(), |inner, _| inner.apply(write, trace)).await
    }

    async fn look<T>(
        &self,
        topic: &TopicKey,
        look: impl FnOnce(&Inner, &Plan) -> Result<T, JournalError> + Send,
    ) -> Result<T, JournalError> {
        let name = format!("read {}", topic.topic);
        let name = if topic.topic.is_reserved() { topic.topic.as_str() } else { &name };
        self.call(name, |inner, plan| look(inner, plan)).await
    }
}

#[async_trait]
impl Journal for FaultyJournal {
    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError> {
        match self.write(topic, Write::Append(topic.clone(), batch)).await? {
            Written::Appended(appended) => Ok(appended),
            _ => unreachable!("an append is answered as one"),
        }
    }

    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        self.look(topic, |inner, plan| {
            Ok(inner.page(now(inner.memory.read(topic, after, plan.limit(limit)))?))
        })
        .await
    }

    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError> {
        self.look(topic, |inner, plan| {
            let limit = plan.limit(query.limit);
            let query = StateQuery { limit, ..query };
            Ok(inner.page(now(inner.memory.states(topic, query))?))
        })
        .await
    }

    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        self.look(topic, |inner, _| Ok(inner.info(now(inner.memory.describe(topic))?))).await
    }

    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        self.look(topic, |inner, _| now(inner.memory.locate(topic, from))).await
    }

    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        match self.write(topic, Write::Change(topic.clone(), change)).await? {
            Written::Changed(changed) => Ok(changed),
            _ => unreachable!("a change is answered as one"),
        }
    }

    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        match self.write(topic, Write::Delete(topic.clone(), condition)).await? {
            Written::Deleted(deleted) => Ok(deleted),
            _ => unreachable!("a deletion is answered as one"),
        }
    }

    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError> {
        match self.write(topic, Write::Trim(topic.clone(), *retention, now)).await? {
            Written::Head(head) => Ok(head),
            _ => unreachable!("a trim is answered as one"),
        }
    }

    async fn due(&self, kind: DueKind, at: Timestamp, limit: usize) -> Found<Due> {
        self.call("due", |inner, _| {
            inner.latest = inner.latest.max(at);
            now(inner.memory.due(kind, at, limit)).whole()
        })
        .await
        .into()
    }

    async fn topics(&self, query: TopicQuery) -> Found<TopicInfo> {
        self.call("topics", |inner, _| {
            let infos = now(inner.memory.topics(query)).whole()?;
            Ok(infos.into_iter().map(|info| inner.info(info)).collect())
        })
        .await
        .into()
    }

    fn failure(&self) -> Option<String> {
        None
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}
