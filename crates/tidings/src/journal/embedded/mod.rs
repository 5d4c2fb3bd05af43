//! The embedded journal: files on this machine's disk, kept by `fjall`.
//!
//! The rule: one thread writes ([`writer`]); readers see snapshots, check every record's checksum,
//! and compare the floor before and after, so that a page is whole or is read again.

mod directory;
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
use fjall::Database;
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::{
    directory::Directory,
    layout::{META, Meta, Store, split_u64},
    reads::Reader,
    reclaim::Reclaimable,
    writer::{Progress, Request, Writer},
};
use super::{
    Appended, Batch, Due, DueKind, Head, Journal, JournalError, JournalSettings, Locate, Page,
    PageLimit, Properties, Retention, StateQuery, TopicInfo, TopicQuery,
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

/// A journal in a directory of this machine. One process at a time.
pub struct EmbeddedJournal {
    open: Mutex<Option<Open>>,
    progress: Arc<Progress>,
    directory: Directory,
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
            .field("directory", &self.directory)
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
        let filtered = Arc::clone(&reclaimable);
        let db = Database::builder(directory.store())
            .max_journaling_size(STORE_JOURNAL_BYTES)
            .cache_size(STORE_CACHE_BYTES)
            .manual_journal_persist(true)
            .with_compaction_filter_factories(Arc::new(move |keyspace: &str| {
                reclaim::filter(keyspace, &filtered, settings)
            }))
            .open()
            .map_err(|error| unopened(&directory, &error))?;
        let store = Store::open(db).map_err(|error| unopened(&directory, &error))?;
        for entry in store.floors.iter() {
            let (id, floor) = entry.into_inner().map_err(|error| unopened(&directory, &error))?;
            if let (Some((id, _)), Some((floor, _))) = (split_u64(&id), split_u64(&floor)) {
                reclaimable.set_floor(id, floor);
            }
        }
        let meta = meta(&store, &directory)?;
        let progress = Arc::new(Progress::default());
        progress.commits.store(meta.commits, Ordering::SeqCst);
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let started = tokio::time::Instant::now();
        let writer = Writer {
            store: store.clone(),
            settings,
            clock,
            reclaimable,
            progress: Arc::clone(&progress),
            meta,
            started,
            records: HashMap::new(),
        };
        let spawned = |error: std::io::Error| JournalError::Broken(format!("no thread: {error}"));
        thread::Builder::new()
            .name("journal-writer".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(spawned)?;
        let watched = Watch {
            directory: directory.clone(),
            started,
            noted: meta.commits,
            progress: Arc::downgrade(&progress),
        };
        thread::Builder::new()
            .name("journal-watch".to_owned())
            .spawn(move || watched.run())
            .map_err(spawned)?;
        let reader = Reader { store, store_epoch: meta.store_epoch };
        Ok(Arc::new(Self {
            open: Mutex::new(Some(Open { reader, requests })),
            progress,
            directory,
            reads: Arc::new(Semaphore::new(READS_MAX)),
            trimming: tokio::sync::Mutex::default(),
        }))
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
        properties: Properties,
    ) -> Result<TopicInfo, JournalError> {
        let topic = topic.clone();
        self.ask(|reply| Request::SetProperties { topic, properties, reply }).await
    }

    async fn delete(&self, topic: &TopicKey) -> Result<bool, JournalError> {
        let topic = topic.clone();
        self.ask(|reply| Request::Delete { topic, reply }).await
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
        closed.then(|| "the journal was closed".to_owned()).or_else(|| self.progress.failure())
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
        let commits = self.progress.commits.load(Ordering::SeqCst);
        if let Err(error) = self.directory.set_high_water(commits) {
            tracing::error!(%error, "the high-water mark was not written");
        }
        // Closing the store's files blocks.
        let _ = tokio::task::spawn_blocking(move || drop(open)).await;
    }
}

/// Reads what the store knows of itself, and whether it has lost its end.
fn meta(store: &Store, directory: &Directory) -> Result<Meta, JournalError> {
    let stored = store.meta.get(META).map_err(|error| unopened(directory, &error))?;
    let high_water = directory.high_water()?;
    let fresh_epoch = || {
        let failed = |error| JournalError::Broken(format!("no randomness: {error}"));
        getrandom::u32().map_err(failed)
    };
    let Some(bytes) = stored else {
        // Nothing was ever committed, or all of it was lost.
        return Ok(Meta { store_epoch: fresh_epoch()?, next_id: 1, commits: high_water });
    };
    let mut meta = Meta::read(&bytes).ok_or_else(|| {
        let at = directory.path().display();
        JournalError::Broken(format!("{at}: the store's own record is damaged; restore a backup"))
    })?;
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
    Ok(meta)
}

fn unopened(directory: &Directory, error: &fjall::Error) -> JournalError {
    let at = directory.path().display();
    JournalError::Broken(match error {
        fjall::Error::Locked => format!(
            "{at}: another process has this journal open; stop it, or choose another data directory"
        ),
        fjall::Error::Io(io) if io.kind() == std::io::ErrorKind::PermissionDenied => format!(
            "{at}: cannot be opened: {io}; give the hub's user read and write permission on it"
        ),
        fjall::Error::InvalidVersion(_) => {
            format!("{at}: the store has another version; run the version of Tidings that wrote it")
        }
        other => format!(
            "{at}: the store cannot be opened: {other}; nothing was changed: restore a backup, or \
             move the directory away to begin with an empty journal"
        ),
    })
}

/// Looks after the writer from outside.
struct Watch {
    directory: Directory,
    started: tokio::time::Instant,
    noted: u64,
    progress: Weak<Progress>,
}

impl Watch {
    /// Writes the high-water mark down now and then, and ends the process if a commit hangs.
    fn run(mut self) {
        let tick = Duration::from_secs(1);
        let ticks = HIGH_WATER_INTERVAL.as_secs().max(1);
        for count in 1.. {
            // Nothing is waited for here: this is the clock by which the writer is watched.
            thread::sleep(tick);
            let Some(progress) = self.progress.upgrade() else { return };
            let since = progress.committing_since.load(Ordering::SeqCst);
            let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let limit = u64::try_from(COMMIT_STALL_MAX.as_millis()).unwrap_or(u64::MAX);
            if since > 0 && now.saturating_sub(since) > limit {
                tracing::error!(
                    "a commit takes longer than {limit} ms: the store is stuck, and starting again \
                     mends it"
                );
                std::process::abort();
            }
            let commits = progress.commits.load(Ordering::SeqCst);
            if count % ticks == 0 && commits > self.noted {
                match self.directory.set_high_water(commits) {
                    Ok(()) => self.noted = commits,
                    Err(error) => tracing::warn!(%error, "the high-water mark was not written"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{journal::contract::Store as Tested, journal_contract};

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
}
