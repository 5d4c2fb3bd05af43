//! The embedded journal: files on this machine's disk, kept by `fjall`.
//!
//! The rule: one thread writes (`writer.rs`); readers see snapshots, check every record's checksum,
//! and compare the floor before and after, so that a page is whole or is read again.

mod directory;
mod due_start;
mod layout;
mod reads;
mod reclaim;
mod writer;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use fjall::{Database, PersistMode};
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::{
    directory::Directory,
    due_start::DueStart,
    layout::{META, Meta, Store, split_u64},
    reads::Reader,
    reclaim::{Reclaimable, Reclaimer},
    writer::{Progress, Request, Writer, unreadable},
};
use super::{
    Appended, Batch, Change, DeleteIf, Due, DueKind, Head, Journal, JournalError, JournalSettings,
    Judged, Locate, Page, PageLimit, Retention, StateQuery, TopicInfo, TopicQuery,
};
use crate::{
    clock::{Clock, SystemClock},
    model::{Offset, Timestamp, TopicKey, limits::COMMIT_STALL_MAX},
};

/// fjall's own journal files: more would make opening after a crash slow (measured: 512 MiB take
/// above a second).
const STORE_JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
/// Blocks that are kept in memory for reads.
const STORE_CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Requests that wait for the writer; more wait at their sender.
const REQUESTS_MAX: usize = 4096;
/// Reads at once: each blocks a thread.
const READS_MAX: usize = 16;
/// How often the high-water mark is written down.
const HIGH_WATER_INTERVAL: Duration = Duration::from_secs(5);

/// How much was trimmed or deleted before the store is compacted, once it is idle …
const RECLAIM_IDLE_BYTES: u64 = 64 * 1024 * 1024;
/// … and before it is compacted although it is busy.
const RECLAIM_BUSY_BYTES: u64 = 1024 * 1024 * 1024;

/// A journal in a directory of this machine. One process at a time.
pub struct EmbeddedJournal {
    open: Mutex<Option<Open>>,
    shared: Arc<Shared>,
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

/// What the journal and its watch both use.
struct Shared {
    directory: Directory,
    progress: Arc<Progress>,
    reclaimer: Arc<Reclaimer>,
    started: tokio::time::Instant,
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
    /// [`JournalError::Broken`] names the file and what to do: it is another program's, locked by
    /// another process, from a newer version, damaged or not permitted.
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
        let directory = Directory::open(path)?;
        let reclaimable = Arc::new(Reclaimable::default());
        let files = directory.store(|new| {
            let store = open_store(new, &reclaimable, settings)?;
            store.mark_keyspaces().map_err(|error| unopened(new, &error))
        })?;
        let store = open_store(&files, &reclaimable, settings)?;
        if let Some(lost) = store.lost_keyspace().map_err(|error| unopened(&files, &error))? {
            return Err(JournalError::Broken(format!(
                "{}: files of `{}` are missing; restore a backup, or choose an empty directory to \
                 begin with an empty journal",
                files.display(),
                lost.name(),
            )));
        }
        for entry in store.floors.iter() {
            let (id, floor) = entry.into_inner().map_err(|error| unopened(&files, &error))?;
            if let (Some((id, _)), Some((floor, _))) = (split_u64(&id), split_u64(&floor)) {
                reclaimable.set_floor(id, floor);
            }
        }
        let meta = meta(&store, &directory, &files)?;
        let progress = Arc::new(Progress::default());
        progress.commits.store(meta.commits, Ordering::SeqCst);
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let started = tokio::time::Instant::now();
        let due_start = Arc::new(DueStart::default());
        let writer = Writer {
            store: store.clone(),
            due_start: Arc::clone(&due_start),
            settings,
            clock,
            reclaimable: Arc::clone(&reclaimable),
            progress: Arc::clone(&progress),
            meta,
            started,
            records: HashMap::new(),
        };
        spawn("journal-writer", move || writer.run(receiver))?;
        let reclaimer = Reclaimer::new(store.clone(), reclaimable, requests.clone());
        let reclaimer = Arc::new(reclaimer);
        let shared = Arc::new(Shared { directory, progress, reclaimer, started });
        let watched = Arc::downgrade(&shared);
        spawn("journal-watch", move || watch(&watched))?;
        let reader = Reader { store, store_epoch: meta.store_epoch, due_start };
        Ok(Arc::new(Self {
            open: Mutex::new(Some(Open { reader, requests })),
            shared,
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
        let reclaimer = Arc::clone(&self.shared.reclaimer);
        let run = tokio::task::spawn_blocking(move || reclaimer.run());
        match run.await {
            Ok(result) => result.map_err(|error| unreadable(&error)),
            Err(error) => Err(JournalError::Unavailable(error.to_string())),
        }
    }

    fn opened(&self) -> Result<Open, JournalError> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).clone();
        open.ok_or_else(|| JournalError::Unavailable("the journal was closed".to_owned()))
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, JournalError>>) -> Request,
    ) -> Result<T, JournalError> {
        let closed = || JournalError::Unavailable("the journal was closed".to_owned());
        let (reply, answer) = oneshot::channel();
        let requests = self.opened()?.requests;
        requests.send(request(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Reads on a thread that may block.
    async fn read_blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let reader = self.opened()?.reader;
        let stopped = || JournalError::Unavailable("the journal was closed".to_owned());
        let permit = Arc::clone(&self.reads).acquire_owned().await.map_err(|_| stopped())?;
        let read = tokio::task::spawn_blocking(move || {
            let result = read(&reader);
            drop(permit);
            result
        });
        read.await.map_err(|_| stopped())?
    }
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

    async fn due(
        &self,
        kind: DueKind,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Due>, JournalError> {
        self.read_blocking(move |reader| reader.due(kind, now, limit)).await
    }

    async fn topics(&self, query: TopicQuery) -> Result<Vec<TopicInfo>, JournalError> {
        self.read_blocking(move |reader| reader.topics(&query)).await
    }

    fn failure(&self) -> Option<String> {
        let closed = self.open.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        closed
            .then(|| "the journal was closed".to_owned())
            .or_else(|| self.shared.progress.failure())
    }

    async fn close(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(open) = open else { return };
        let (reply, closed) = oneshot::channel();
        if open.requests.send(Request::Close { reply }).await.is_ok() {
            // An error means that the writer is gone, which is what was asked for.
            let _ = closed.await;
        }
        // Reads that run hold the store open: wait for them.
        let reads = u32::try_from(READS_MAX).unwrap_or(u32::MAX);
        let _ = self.reads.acquire_many(reads).await;
        self.reads.close();
        let shared = Arc::clone(&self.shared);
        // Closing the store's files blocks.
        let closed = tokio::task::spawn_blocking(move || {
            shared.reclaimer.close();
            drop(open);
            let commits = shared.progress.commits.load(Ordering::SeqCst);
            if let Err(error) = shared.directory.set_high_water(commits) {
                tracing::error!(%error, "the high-water mark was not written");
            }
            shared.directory.release();
        });
        let _ = closed.await;
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), JournalError> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map(drop).map_err(|error| {
        JournalError::Broken(format!("cannot start the thread {name}: {error}; raise its limit"))
    })
}

fn open_store(
    files: &Path,
    reclaimable: &Arc<Reclaimable>,
    settings: JournalSettings,
) -> Result<Store, JournalError> {
    let filtered = Arc::clone(reclaimable);
    let filters = move |keyspace: &str| reclaim::filter(keyspace, &filtered, settings);
    let open = || {
        let db = Database::builder(files)
            .max_journaling_size(STORE_JOURNAL_BYTES)
            .cache_size(STORE_CACHE_BYTES)
            .manual_journal_persist(true)
            .with_compaction_filter_factories(Arc::new(filters))
            .open();
        db.and_then(Store::open)
    };
    // Some damage is met by an assertion of the store instead of an error.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(|error| unopened(files, &error)),
        Err(_) => Err(unopened(files, &fjall::Error::Unrecoverable)),
    }
}

/// Reads what the store knows of itself, and whether it has lost its end.
fn meta(store: &Store, directory: &Directory, files: &Path) -> Result<Meta, JournalError> {
    let stored = store.meta.get(META).map_err(|error| unopened(files, &error))?;
    let high_water = directory.high_water();
    let fresh_epoch = || {
        let failed = |error| JournalError::Broken(format!("no randomness: {error}"));
        getrandom::u32().map_err(failed)
    };
    let is_new = stored.is_none();
    let mut meta = match stored {
        // Nothing was ever committed, or all of it was lost.
        None => Meta { store_epoch: fresh_epoch()?, next_id: 1, commits: high_water },
        Some(bytes) => Meta::read(&bytes).ok_or_else(|| {
            let at = files.display();
            JournalError::Broken(format!(
                "{at}: the store's own record is damaged; restore a backup"
            ))
        })?,
    };
    if !is_new && meta.commits >= high_water {
        return Ok(meta);
    }
    if meta.commits < high_water {
        tracing::error!(
            stored = meta.commits,
            known = high_water,
            "the journal has lost its newest commits: every topic begins a new epoch"
        );
        meta.store_epoch = fresh_epoch()?;
        meta.commits = high_water;
        // Ids of topics that were lost must not be used again.
        meta.next_id = meta.next_id.saturating_add(1 << 32);
    }
    // Before anybody is told of an epoch, it is the one that the next start finds.
    let mut batch = store.db.batch().durability(Some(PersistMode::SyncAll));
    batch.insert(&store.meta, META, meta.write());
    batch.commit().map_err(|error| unopened(files, &error))?;
    Ok(meta)
}

fn unopened(files: &Path, error: &fjall::Error) -> JournalError {
    let at = files.display();
    JournalError::Broken(match error {
        fjall::Error::Locked => return directory::locked(files),
        fjall::Error::Io(io) if io.kind() == std::io::ErrorKind::PermissionDenied => format!(
            "{at}: cannot be opened: {io}; give the hub's user read and write permission on it"
        ),
        fjall::Error::InvalidVersion(_) => {
            format!("{at}: the store has another version; run the version of Tidings that wrote it")
        }
        other => format!(
            "{at}: the store cannot be opened: {other}; restore a backup, or choose an empty \
             directory to begin with an empty journal"
        ),
    })
}

/// Looks after the journal from outside: writes the high-water mark down now and then, ends the
/// process if a commit hangs, and has the store compacted when that is worth it.
fn watch(shared: &Weak<Shared>) {
    let mut commits_before = 0;
    for seconds in 1.. {
        // Nothing is waited for here: this is the clock by which the writer is watched.
        thread::sleep(Duration::from_secs(1));
        let Some(shared) = shared.upgrade() else { return };
        abort_if_stuck(&shared);
        let commits = shared.progress.commits.load(Ordering::SeqCst);
        if seconds % HIGH_WATER_INTERVAL.as_secs() == 0
            && let Err(error) = shared.directory.set_high_water(commits)
        {
            tracing::warn!(%error, "the high-water mark was not written");
        }
        let is_idle = commits == commits_before;
        commits_before = commits;
        let worthwhile = if is_idle { RECLAIM_IDLE_BYTES } else { RECLAIM_BUSY_BYTES };
        if shared.reclaimer.is_idle() && shared.reclaimer.bytes() >= worthwhile {
            let reclaimer = Arc::clone(&shared.reclaimer);
            let reclaim = move || {
                if let Err(error) = reclaimer.run() {
                    tracing::error!(%error, "the store was not compacted, and keeps growing");
                }
            };
            // On its own thread: it takes long, and the writer is to be watched meanwhile.
            if let Err(error) = spawn("journal-reclaim", reclaim) {
                tracing::warn!(%error, "the store was not compacted");
            }
        }
    }
}

/// Ends the process if a commit hangs: the store is stuck, and starting again mends it.
fn abort_if_stuck(shared: &Shared) {
    let since = shared.progress.committing_since.load(Ordering::SeqCst);
    let now = u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let limit = u64::try_from(COMMIT_STALL_MAX.as_millis()).unwrap_or(u64::MAX);
    if since > 0 && now.saturating_sub(since) > limit {
        tracing::error!("a commit takes longer than {limit} ms: the process ends to start anew");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{Append, Dedup, contract::Store as Tested},
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
        // The floors of what is wholly gone need not be remembered.
        let floors = journal.opened().unwrap().reader.store.floors.len().unwrap();
        assert_eq!(floors, 2, "the floor of `kept`, and the keyspace's own key");
        journal.close().await;
    }
}
