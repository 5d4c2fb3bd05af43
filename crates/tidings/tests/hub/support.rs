//! What the hub's tests share: short spellings, a reader that collects, a journal with seams.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tidings::{
    Hub,
    clock::ManualClock,
    journal::{
        Appended, Batch, Change, DeleteIf, Due, DueKind, Found, Head, Journal, JournalError,
        Judged, Locate, Page, PageLimit, Retention, StateQuery, TopicInfo, TopicQuery,
    },
    model::{EventType, JsonText, NewEvent, Offset, StateKey, Tenant, Timestamp, Topic, TopicKey},
    publish::{Publish, Published},
    subscribe::{Follow, Item, Subscription},
};

pub(crate) fn tenant() -> Tenant {
    Tenant::parse("acme").unwrap()
}

pub(crate) fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

pub(crate) fn key(name: &str) -> TopicKey {
    TopicKey::new(tenant(), topic(name))
}

pub(crate) fn log(number: u64) -> NewEvent {
    NewEvent::new(EventType::parse("test.log").unwrap())
        .data(JsonText::parse(&number.to_string()).unwrap())
}

pub(crate) fn state(name: &str, number: u64) -> NewEvent {
    let event = NewEvent::new(EventType::parse("test.state").unwrap());
    event.state(StateKey::parse(name).unwrap()).data(JsonText::parse(&number.to_string()).unwrap())
}

pub(crate) async fn publish(hub: &Hub, to: &str, event: NewEvent) -> Published {
    hub.publish_one(&tenant(), Publish::new(topic(to), event)).await.unwrap()
}

pub(crate) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::parse("2026-11-21T07:00:00Z").unwrap()))
}

/// What a reader got: offsets of events, and what it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Got {
    Event(&'static str, u64, String),
    Gap(&'static str, Option<u64>, Option<u64>),
    Closed,
}

/// An event with its data, of the class `log` or `state`.
pub(crate) fn event(class: &'static str, offset: u64, data: impl ToString) -> Got {
    Got::Event(class, offset, data.to_string())
}

/// Reads until everything there was has been handed out. Bounded: a reader that is not told so in
/// time is stuck.
pub(crate) async fn catch_up(subscription: &mut Subscription) -> Vec<Got> {
    collect(subscription, |item| matches!(item, Item::CaughtUp)).await
}

/// Reads until so many events or notices came.
pub(crate) async fn take(subscription: &mut Subscription, count: usize) -> Vec<Got> {
    let mut seen = 0;
    collect(subscription, |item| {
        seen += usize::from(got(item).is_some());
        seen >= count
    })
    .await
}

pub(crate) async fn collect(
    subscription: &mut Subscription,
    mut until: impl FnMut(&Item) -> bool,
) -> Vec<Got> {
    let mut all = Vec::new();
    let reading = async {
        loop {
            let items = subscription.next().await.unwrap();
            all.extend(items.iter().filter_map(got));
            if items.iter().any(&mut until) {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), reading).await;
    assert!(in_time.is_ok(), "the reader waits for ever, after {all:?}");
    all
}

pub(crate) fn got(item: &Item) -> Option<Got> {
    match item {
        Item::Event { frame, .. } => {
            let data = String::from_utf8(frame.data().to_vec()).unwrap();
            let offset = frame.position.map_or(0, |position| position.offset.0);
            Some(Got::Event(frame.class().as_str(), offset, data))
        }
        Item::Gap { gap, .. } => {
            let [from, to] = [gap.from, gap.to].map(|offset| offset.map(|offset| offset.0));
            Some(Got::Gap(gap.reason.as_str(), from, to))
        }
        Item::Closed { .. } => Some(Got::Closed),
        Item::CaughtUp | Item::Changed { .. } | Item::Checkpoint { .. } => None,
    }
}

pub(crate) async fn follow(hub: &Hub, follow: Follow) -> Subscription {
    hub.subscribe(follow).await.unwrap().0
}

/// Deletes a topic that is there.
pub(crate) async fn delete(hub: &Hub, name: &str) {
    assert_eq!(hub.delete(&key(name), DeleteIf::Always).await.unwrap(), Ok(true));
}

pub(crate) async fn trim(journal: &dyn Journal, name: &str, keep: u64) -> Head {
    let retention = Retention { events: Some(keep), ..Retention::UNLIMITED };
    journal.trim(&key(name), &retention, Timestamp::from_millis(0)).await.unwrap()
}

type Act = Box<dyn FnMut() -> BoxFuture<'static, ()> + Send>;

/// A journal that acts in the gap: just before or after it reads a page, once.
pub(crate) struct SeamJournal {
    inner: Arc<dyn Journal>,
    fails_describe: AtomicBool,
    stores_unsaid: Mutex<Option<Duration>>,
    before_append: Mutex<Option<Act>>,
    before_read: Mutex<Option<Act>>,
    after_read: Mutex<Option<Act>>,
    before_states: Mutex<Option<Act>>,
    after_states: Mutex<Option<Act>>,
    after_describe: Mutex<Option<Act>>,
}

/// Where a [`SeamJournal`] acts.
#[derive(Clone, Copy)]
pub(crate) enum Seam {
    BeforeAppend,
    BeforeRead,
    AfterRead,
    BeforeStates,
    AfterStates,
    AfterDescribe,
}

impl std::fmt::Debug for SeamJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SeamJournal")
    }
}

impl SeamJournal {
    pub(crate) fn new(inner: Arc<dyn Journal>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            fails_describe: AtomicBool::new(false),
            stores_unsaid: Mutex::default(),
            before_append: Mutex::default(),
            before_read: Mutex::default(),
            after_read: Mutex::default(),
            before_states: Mutex::default(),
            after_states: Mutex::default(),
            after_describe: Mutex::default(),
        })
    }

    fn slot(&self, seam: Seam) -> &Mutex<Option<Act>> {
        match seam {
            Seam::BeforeAppend => &self.before_append,
            Seam::BeforeRead => &self.before_read,
            Seam::AfterRead => &self.after_read,
            Seam::BeforeStates => &self.before_states,
            Seam::AfterStates => &self.after_states,
            Seam::AfterDescribe => &self.after_describe,
        }
    }

    /// Does this the next time that the seam is passed.
    pub(crate) fn at<F>(&self, seam: Seam, mut act: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        *self.slot(seam).lock().unwrap() = Some(Box::new(move || Box::pin(act())));
    }

    /// Does not say the next time where a topic stands.
    pub(crate) fn fail_describe(&self) {
        self.fails_describe.store(true, Ordering::SeqCst);
    }

    /// Appends the next time without saying so, and so much later, as a server does whose connection
    /// breaks.
    pub(crate) fn store_unsaid(&self, later: Duration) {
        *self.stores_unsaid.lock().unwrap() = Some(later);
    }

    pub(crate) fn is_done(&self, seam: Seam) -> bool {
        self.slot(seam).lock().unwrap().is_none()
    }

    /// Not for the topics of the hub itself, which it reads when it likes.
    async fn act(&self, seam: Seam, topic: &TopicKey) {
        if topic.tenant.is_reserved() {
            return;
        }
        let act = self.slot(seam).lock().unwrap().take();
        if let Some(mut act) = act {
            act().await;
        }
    }
}

#[async_trait]
impl Journal for SeamJournal {
    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError> {
        self.act(Seam::BeforeAppend, topic).await;
        let unsaid = self.stores_unsaid.lock().unwrap().take_if(|_| !topic.tenant.is_reserved());
        let Some(later) = unsaid else { return self.inner.append(topic, batch).await };
        let (inner, topic) = (Arc::clone(&self.inner), topic.clone());
        tokio::spawn(async move {
            tokio::time::sleep(later).await;
            inner.append(&topic, batch).await.unwrap();
        });
        down()
    }

    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        self.act(Seam::BeforeRead, topic).await;
        let page = self.inner.read(topic, after, limit).await;
        self.act(Seam::AfterRead, topic).await;
        page
    }

    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError> {
        self.act(Seam::BeforeStates, topic).await;
        let page = self.inner.states(topic, query).await;
        self.act(Seam::AfterStates, topic).await;
        page
    }

    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        if !topic.tenant.is_reserved() && self.fails_describe.swap(false, Ordering::SeqCst) {
            return down();
        }
        let info = self.inner.describe(topic).await;
        self.act(Seam::AfterDescribe, topic).await;
        info
    }

    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        self.inner.locate(topic, from).await
    }

    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        self.inner.set_properties(topic, change).await
    }

    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        self.inner.delete(topic, condition).await
    }

    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError> {
        self.inner.trim(topic, retention, now).await
    }

    async fn due(&self, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due> {
        self.inner.due(kind, now, limit).await
    }

    async fn topics(&self, query: TopicQuery) -> Found<TopicInfo> {
        self.inner.topics(query).await
    }

    fn failure(&self) -> Option<String> {
        self.inner.failure()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// A journal that is down.
#[derive(Debug)]
pub(crate) struct Down;

fn down<T>() -> Result<T, JournalError> {
    Err(JournalError::Unavailable("the disk is gone".to_owned()))
}

#[async_trait]
impl Journal for Down {
    async fn append(&self, _: &TopicKey, _: Batch) -> Result<Appended, JournalError> {
        down()
    }

    async fn read(&self, _: &TopicKey, _: Offset, _: PageLimit) -> Result<Page, JournalError> {
        down()
    }

    async fn states(&self, _: &TopicKey, _: StateQuery) -> Result<Page, JournalError> {
        down()
    }

    async fn describe(&self, _: &TopicKey) -> Result<TopicInfo, JournalError> {
        down()
    }

    async fn locate(&self, _: &TopicKey, _: Locate) -> Result<Offset, JournalError> {
        down()
    }

    async fn set_properties(
        &self,
        _: &TopicKey,
        _: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        down()
    }

    async fn delete(&self, _: &TopicKey, _: DeleteIf) -> Result<Judged<bool>, JournalError> {
        down()
    }

    async fn trim(&self, _: &TopicKey, _: &Retention, _: Timestamp) -> Result<Head, JournalError> {
        down()
    }

    async fn due(&self, _: DueKind, _: Timestamp, _: usize) -> Found<Due> {
        down().into()
    }

    async fn topics(&self, _: TopicQuery) -> Found<TopicInfo> {
        down().into()
    }

    fn failure(&self) -> Option<String> {
        Some("the disk is gone".to_owned())
    }

    async fn close(&self) {}
}
