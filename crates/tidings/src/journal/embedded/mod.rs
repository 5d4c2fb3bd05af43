//! The embedded journal: files on this machine's disk, kept by `fjall`.
//!
//! The rule: one thread writes (`writer.rs`); readers see snapshots, check every record's checksum,
//! and compare the floor before and after, so that a page is whole or is read again.

mod check;
mod commit_log;
mod damage;
mod directory;
mod due_start;
mod layout;
mod mend;
mod preallocation;
mod progress;
mod reads;
mod reclaim;
mod repair;
mod snapshot;
mod store;
mod tables;
mod transfer;
mod walk;
mod watch;
mod writer;

pub use check::{CheckReport, Finding, Step, check};
pub use repair::{Repaired, repair};
pub use transfer::{OnDamage, Transferred, export, import};

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};

use self::{
    damage::{Damage, describe},
    directory::Directory,
    due_start::DueStart,
    layout::MEMTABLE_BYTES,
    preallocation::Preallocation,
    progress::{Progress, Witness},
    reads::Reader,
    reclaim::{Reclaimable, Reclaimer},
    watch::{Shared, spawn},
    writer::{Request, Writer},
};
use super::{
    Appended, Batch, Change, DeleteIf, Due, DueKind, Found, Head, Journal, JournalError,
    JournalSettings, Judged, Locate, Page, PageLimit, Retention, StateQuery, TopicInfo, TopicQuery,
};
use crate::{
    clock::{Clock, SystemClock},
    metrics::Metrics,
    model::{Offset, Timestamp, TopicKey, limits::JOURNAL_CLOSE_MAX},
};

/// Requests that wait for the writer; more wait at their sender.
const REQUESTS_MAX: usize = 4096;
/// Reads at once: each blocks a thread.
const READS_MAX: usize = 16;

/// What a journal in a directory is opened with beside the deployment's settings.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Says when topics are created and deleted.
    pub clock: Arc<dyn Clock>,
    /// Bytes that a keyspace of a store that is new holds in memory before it writes them as a
    /// table: 16 MiB. Little makes for many tables, which tests want.
    pub memtable_bytes: u64,
    /// Where commits and the size on disk are counted.
    pub metrics: Arc<Metrics>,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            memtable_bytes: MEMTABLE_BYTES,
            metrics: Arc::default(),
        }
    }
}

/// A journal in a directory of this machine. One process at a time.
pub struct EmbeddedJournal {
    open: Mutex<Option<Open>>,
    shared: Arc<Shared>,
    damage: Arc<Damage>,
    reads: Arc<Semaphore>,
    /// Trims are found by reading and applied by the writer: one at a time, so that none counts
    /// what another removed.
    trimming: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Open {
    reader: Reader,
    requests: mpsc::Sender<Request>,
}

impl std::fmt::Debug for EmbeddedJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedJournal")
            .field("directory", &self.shared.directory)
            .finish_non_exhaustive()
    }
}

impl EmbeddedJournal {
    /// Opens the journal in a directory, or makes one if the directory is empty or not there.
    ///
    /// Blocks while it recovers: a second at most after a crash.
    ///
    /// # Errors
    /// [`JournalError::Broken`] names the file that is damaged and what to do,
    /// [`JournalError::Unusable`] that which is another program's, from a newer version or not
    /// permitted. [`JournalError::Unavailable`]: another process has it.
    pub fn open(path: &Path, settings: JournalSettings) -> Result<Arc<Self>, JournalError> {
        Self::open_with_clock(path, settings, Arc::new(SystemClock))
    }

    /// Opens it with a clock that says when topics are created and deleted.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_clock(
        path: &Path,
        settings: JournalSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, JournalError> {
        Self::open_with(path, settings, EmbeddedOptions { clock, ..EmbeddedOptions::default() })
    }

    /// Opens it with options.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        path: &Path,
        settings: JournalSettings,
        options: EmbeddedOptions,
    ) -> Result<Arc<Self>, JournalError> {
        let EmbeddedOptions { clock, memtable_bytes, metrics } = options;
        let directory = Arc::new(Directory::open(path)?);
        directory.refuse_half_import()?;
        let reclaimable = Arc::new(Reclaimable::default());
        let (store, meta) = store::open(&directory, &reclaimable, settings, memtable_bytes)?;
        let progress = Arc::new(Progress::after(meta.commits, metrics));
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let due_start = Arc::new(DueStart::default());
        let writer = Writer {
            store: store.clone(),
            due_start: Arc::clone(&due_start),
            settings,
            clock,
            reclaimable: Arc::clone(&reclaimable),
            directory: Arc::clone(&directory),
            progress: Arc::clone(&progress),
            preallocation: Preallocation::of(directory.store_files()),
            meta,
            records: HashMap::new(),
            deletions: HashMap::new(),
        };
        let witness = Witness(Arc::clone(&progress));
        spawn("journal-writer", move || {
            let _witness = witness;
            writer.run(receiver);
        })?;
        let files = directory.store_files();
        let reclaimer = Reclaimer::new(store.clone(), reclaimable, requests.clone(), files);
        let shared = Arc::new(Shared::new(directory, progress, reclaimer, store.clone()));
        Shared::watch(&shared)?;
        let damage = Arc::new(Damage::default());
        let found = Arc::clone(&damage);
        let reader = Reader { store, store_epoch: meta.store_epoch, due_start, damage: found };
        Ok(Arc::new(Self {
            open: Mutex::new(Some(Open { reader, requests })),
            shared,
            damage,
            reads: Arc::new(Semaphore::new(READS_MAX)),
            trimming: tokio::sync::Mutex::default(),
        }))
    }

    /// Gives the space of what was trimmed and deleted back to the disk now. It happens by itself
    /// when there is much of it and the journal is idle.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] if the store cannot be compacted; nothing is lost.
    pub async fn reclaim(&self) -> Result<(), JournalError> {
        let shared = Arc::clone(&self.shared);
        let run = tokio::task::spawn_blocking(move || shared.reclaimer.run());
        match run.await {
            Ok(result) => result.map_err(|error| {
                let directory = self.shared.directory.path().display();
                let error = describe(&error);
                JournalError::Unavailable(format!("{directory}: was not compacted: {error}"))
            }),
            Err(error) => Err(JournalError::Unavailable(error.to_string())),
        }
    }

    fn opened(&self) -> Result<Open, JournalError> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).clone();
        open.ok_or_else(|| JournalError::Unavailable(closed()))
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, JournalError>>) -> Request,
    ) -> Result<T, JournalError> {
        // Nobody waits behind a disk that does not get on.
        if let Some(reason) = self.failure() {
            return Err(JournalError::Unavailable(reason));
        }
        let ended = || JournalError::Unavailable(self.failure().unwrap_or_else(closed));
        let (reply, answer) = oneshot::channel();
        let requests = self.opened()?.requests;
        requests.send(request(reply)).await.map_err(|_| ended())?;
        let answer = answer.await.map_err(|_| {
            // Closing answers all that was accepted; and who is not answered comes before whoever
            // sees the writer's end.
            self.shared.progress.panicked();
            ended()
        })?;
        answer.inspect_err(|error| self.damage.met(error))
    }

    /// Reads on a thread that may block.
    async fn read_blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let reader = self.opened()?.reader;
        let stopped = || JournalError::Unavailable(closed());
        let permit = Arc::clone(&self.reads).acquire_owned().await.map_err(|_| stopped())?;
        let lease = Lease { reader, _permit: permit };
        let read = tokio::task::spawn_blocking(move || read(&lease.reader));
        let result = read.await.map_err(|_| stopped())?;
        result.inspect_err(|error| self.damage.met(error))
    }
}

/// A reader for as long as it is permitted: closing waits for the permits, so the reader, which
/// holds the store open, goes first. Fields are dropped in this order.
struct Lease {
    reader: Reader,
    _permit: OwnedSemaphorePermit,
}

fn closed() -> String {
    "the journal was closed".to_owned()
}

#[async_trait]
impl Journal for EmbeddedJournal {
    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError> {
        let topic = topic.clone();
        self.ask(|reply| Request::Append { topic, batch, reply }).await
    }

    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        let topic = topic.clone();
        self.read_blocking(move |reader| reader.read(&topic, after, limit)).await
    }

    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError> {
        let topic = topic.clone();
        self.read_blocking(move |reader| reader.states(&topic, &query)).await
    }

    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        let topic = topic.clone();
        self.read_blocking(move |reader| reader.describe(&topic)).await
    }

    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        let topic = topic.clone();
        self.read_blocking(move |reader| reader.locate(&topic, from)).await
    }

    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        let topic = topic.clone();
        self.ask(|reply| Request::SetProperties { topic, change, reply }).await
    }

    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        let topic = topic.clone();
        self.ask(|reply| Request::Delete { topic, condition, reply }).await
    }

    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError> {
        let _one = self.trimming.lock().await;
        let (name, retention) = (topic.clone(), *retention);
        let found = self.read_blocking(move |reader| reader.excess(&name, &retention, now)).await?;
        match found {
            Ok(trim) => {
                let topic = topic.clone();
                self.ask(|reply| Request::Trim { topic, trim, reply }).await
            }
            Err(head) => Ok(head),
        }
    }

    async fn due(&self, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due> {
        self.read_blocking(move |reader| reader.due(kind, now, limit)).await.into()
    }

    async fn topics(&self, query: TopicQuery) -> Found<TopicInfo> {
        self.read_blocking(move |reader| reader.topics(&query)).await.into()
    }

    fn failure(&self) -> Option<String> {
        let failure = self.shared.progress.failure();
        failure.or_else(|| match &*self.open.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Some(closed()),
            Some(open) if open.requests.is_closed() => {
                Some("the writer has ended; start the hub anew".to_owned())
            }
            Some(_) => None,
        })
    }

    fn damaged_places(&self) -> usize {
        self.damage.count()
    }

    async fn close(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Open { reader, requests }) = open else { return };
        let (shared, reads) = (Arc::clone(&self.shared), Arc::clone(&self.reads));
        let closing = async move {
            let ended = tokio::task::spawn_blocking(move || {
                let (reply, closed) = oneshot::channel();
                // An error means that the writer is gone, which is what is asked for.
                if requests.blocking_send(Request::Close { reply }).is_ok() {
                    let _ = closed.blocking_recv();
                }
            });
            let _ = ended.await;
            // Reads that run hold the store open.
            let running = u32::try_from(READS_MAX).unwrap_or(u32::MAX);
            let _ = reads.acquire_many(running).await;
            reads.close();
            drop(reader);
            let _ = tokio::task::spawn_blocking(move || shared.close()).await;
        };
        if timeout(JOURNAL_CLOSE_MAX, closing).await.is_err() {
            tracing::error!(
                directory = %self.shared.directory.path().display(),
                "the disk does not get on: the journal was not closed in order; what was \
                 acknowledged is in it"
            );
        }
    }
}

#[cfg(test)]
mod failures;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        journal::{Append, Dedup, Outcome, contract::Store as Tested},
        journal_contract,
        model::{EventType, JsonText, NewEvent, StateKey, Tenant, Topic},
    };

    async fn store(settings: JournalSettings) -> Tested {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let journal = EmbeddedJournal::open(&path, settings).unwrap();
        let reopen = move || {
            let path = path.clone();
            async move { EmbeddedJournal::open(&path, settings).unwrap() as Arc<dyn Journal> }
        };
        Tested::new(journal).reopened_by(reopen).keeping(directory)
    }

    journal_contract!(embedded, store);

    fn bytes_below(path: &Path) -> u64 {
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| match path.is_dir() {
                true => bytes_below(&path),
                false => path.metadata().unwrap().len(),
            })
            .sum()
    }

    #[tokio::test]
    async fn reclaiming_gives_back_what_was_trimmed_and_deleted_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let journal = EmbeddedJournal::open(directory.path(), JournalSettings::default()).unwrap();
        let topic = |name| TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse(name).unwrap());
        let (kept, gone) = (topic("kept"), topic("gone"));
        // Random letters, or compression makes the sizes say nothing.
        let letters = |n: u64| {
            let hash = |k: u64| crc32c::crc32c(&(n * 1000 + k).to_be_bytes());
            (0..250).map(|k| format!("{:08x}", hash(k))).collect::<String>()
        };
        for n in 0..100 {
            for topic in [&kept, &gone] {
                let events = (0..10).map(|k| {
                    let event = NewEvent::new(EventType::parse("a.b").unwrap());
                    let event = event.data(JsonText::string(&letters(n * 10 + k)));
                    let key = StateKey::parse(&format!("k{}", n % 7)).unwrap();
                    let event = if k == 0 { event.state(key) } else { event };
                    Append { dedup: Dedup::ById, ..Append::new(Arc::new(event)) }
                });
                let batch = Batch { events: events.collect(), ..Batch::default() };
                journal.append(topic, batch).await.unwrap();
            }
        }
        let ten = Retention { events: Some(10), ..Retention::UNLIMITED };
        journal.trim(&kept, &ten, Timestamp::default()).await.unwrap();
        assert!(journal.delete(&gone, DeleteIf::Always).await.unwrap().unwrap());
        let everything = PageLimit { events: usize::MAX, bytes: usize::MAX };
        let before = journal.read(&kept, Offset::ZERO, everything).await.unwrap();
        assert_eq!(before.events.len(), 17);
        let store = directory.path().join("store/keyspaces");
        journal.reclaim().await.unwrap();
        assert!(bytes_below(&store) < 300_000, "{} bytes are left of 4 MB", bytes_below(&store));
        let after = journal.read(&kept, Offset::ZERO, everything).await.unwrap();
        assert_eq!((after.head, after.events), (before.head, before.events.clone()));
        journal.close().await;
        let journal = EmbeddedJournal::open(directory.path(), JournalSettings::default()).unwrap();
        let after = journal.read(&kept, Offset::ZERO, everything).await.unwrap();
        assert_eq!((after.head, after.events), (before.head, before.events));
        assert!(!journal.describe(&gone).await.unwrap().exists);
        // What is gone is told by the log, and may be in memory again; its floor lets it go anew.
        let floors = journal.opened().unwrap().reader.store.floors.len().unwrap();
        assert_eq!(floors, 3, "the floors of both, and the keyspace's own key");
        journal.close().await;
    }

    #[tokio::test]
    async fn a_topic_says_when_what_it_holds_first_was_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let open = || EmbeddedJournal::open(directory.path(), JournalSettings::default()).unwrap();
        let topic = TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse("t").unwrap());
        let at = Timestamp::from_millis;
        let mut journal = open();
        for (now, kept, oldest) in [(1_000, 9, 1_000), (2_000, 9, 1_000), (3_000, 2, 2_000)] {
            let event = Arc::new(NewEvent::new(EventType::parse("a.b").unwrap()));
            let batch =
                Batch { events: vec![Append::new(event)], now: at(now), ..Batch::default() };
            journal.append(&topic, batch).await.unwrap();
            let keep = Retention { events: Some(kept), ..Retention::UNLIMITED };
            journal.trim(&topic, &keep, at(now)).await.unwrap();
            assert_eq!(journal.describe(&topic).await.unwrap().oldest_at, at(oldest));
            journal.close().await;
            journal = open();
            assert_eq!(journal.describe(&topic).await.unwrap().oldest_at, at(oldest));
        }
        journal.close().await;
    }

    #[tokio::test]
    async fn a_damaged_state_keeps_nothing_from_being_trimmed() {
        let directory = tempfile::tempdir().unwrap();
        let journal = EmbeddedJournal::open(directory.path(), JournalSettings::default()).unwrap();
        let topic = TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse("t").unwrap());
        let event = || NewEvent::new(EventType::parse("a.b").unwrap());
        let state = event().state(StateKey::parse("k").unwrap());
        let events = [event(), state, event()].map(|event| Append::new(Arc::new(event)));
        let batch = Batch { events: events.to_vec(), ..Batch::default() };
        journal.append(&topic, batch).await.unwrap();
        let reader = journal.opened().unwrap().reader;
        let key = layout::named_key(reader.id_of(&topic).unwrap(), "k");
        reader.store.states.insert(key, "damaged").unwrap();
        let one = Retention { events: Some(1), ..Retention::UNLIMITED };
        let head = journal.trim(&topic, &one, Timestamp::default()).await.unwrap();
        assert_eq!(head.earliest, Offset(2));
        assert_eq!(journal.describe(&topic).await.unwrap().oldest_at, Timestamp::default());
        drop(reader);
        journal.close().await;
    }

    #[tokio::test]
    async fn reclaiming_forgets_the_ids_that_are_not_recognised_any_more_and_no_others() {
        let settings = JournalSettings {
            dedup_window: Duration::ZERO,
            dedup_events: 4,
            ..JournalSettings::default()
        };
        let directory = tempfile::tempdir().unwrap();
        let journal = EmbeddedJournal::open(directory.path(), settings).unwrap();
        let topic = TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse("t").unwrap());
        let events = (0..10).map(|_| Arc::new(NewEvent::new(EventType::parse("a.b").unwrap())));
        let events: Vec<_> = events.collect();
        let append = |event: &Arc<NewEvent>| {
            let append = Append { dedup: Dedup::ById, ..Append::new(Arc::clone(event)) };
            journal.append(&topic, Batch { events: vec![append], ..Batch::default() })
        };
        for event in &events {
            append(event).await.unwrap();
        }
        journal.reclaim().await.unwrap();
        let ids = journal.opened().unwrap().reader.store.dedup.len().unwrap();
        assert_eq!(ids, 1 + 4, "the keyspace's own key, and those of the window");
        let repeated = append(&events[6]).await.unwrap().outcomes;
        assert!(matches!(repeated[..], [Outcome::Duplicate(_)]), "{repeated:?}");
        journal.close().await;
    }
}
