//! One task per active topic and node: it alone appends, and tells readers how far the topic is.
//!
//! The rule: a frame enters the ring after the journal has its event, in offset order. What was
//! queued while the last append ran is appended together, so a busy topic needs few commits.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use futures_util::{FutureExt as _, task::AtomicWaker};
use tokio::{
    sync::{OnceCell, mpsc, oneshot},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::Clock,
    error::Problem,
    journal::{
        Append, Appended, Batch, Change, DeleteIf, Journal, JournalError, Judged, Outcome, Refusal,
        TopicInfo,
    },
    metrics::Metrics,
    model::{
        Epoch, Event, Fingerprint, NewEvent, Offset, TopicKey,
        limits::{COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX, TOPIC_IDLE, TOPIC_QUEUE_MAX},
        resume::Head,
    },
    ring::{Ring, RingLimit},
    sse::Frame,
};

/// Wakes one connection: a bit for each of its topics that advanced.
///
/// This is all that a topic knows of a reader. Waking a reader twice costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Waker {
    dirty: AtomicU32,
    task: AtomicWaker,
}

impl Waker {
    /// Says that the connection's topic with this number advanced.
    pub(crate) fn wake(&self, number: u32) {
        let bit = 1_u32.checked_shl(number).unwrap_or(0);
        // A connection with a bit already set was woken and has not looked yet.
        if self.dirty.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.task.wake();
        }
    }

    /// Takes the bits there are.
    pub(crate) fn take(&self) -> u32 {
        self.dirty.swap(0, Ordering::AcqRel)
    }

    /// Takes the bits, or registers the task to be woken by the next one.
    pub(crate) fn poll(&self, context: &std::task::Context<'_>) -> std::task::Poll<u32> {
        self.task.register(context.waker());
        match self.dirty.swap(0, Ordering::AcqRel) {
            0 => std::task::Poll::Pending,
            bits => std::task::Poll::Ready(bits),
        }
    }
}

/// What a topic's readers share: its ring and where it stands.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) topic: TopicKey,
    loaded: OnceCell<()>,
    /// How often the topic's properties changed: what they allowed must be asked again.
    changes: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// As the journal last told; `None` until it was asked or written.
    head: Option<Head>,
    ring: Ring,
    readers: Vec<Option<(Arc<Waker>, u32)>>,
    reader_count: usize,
}

/// What a reader finds when it looks into the ring.
pub(crate) enum Look {
    /// It has everything there is.
    End,
    /// It was given frames, or skipped what it does not need; so many offsets were ahead of it.
    Frames(u64),
    /// It must ask the journal.
    Behind,
}

impl Live {
    fn new(topic: TopicKey) -> Self {
        let state =
            State { head: None, ring: Ring::default(), readers: Vec::new(), reader_count: 0 };
        Self {
            topic,
            loaded: OnceCell::new(),
            changes: AtomicU64::default(),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the topic stands, asking the journal the first time.
    pub(crate) async fn head(&self, journal: &dyn Journal) -> Result<Head, JournalError> {
        if let Some(head) = self.state().head {
            return Ok(head);
        }
        let load = async || {
            let info = journal.describe(&self.topic).await?;
            let mut state = self.state();
            // An append may have been faster, and knows better.
            if state.head.is_none() {
                state.ring.restart(info.head.tail.previous());
                state.head = Some(info.head);
            }
            Ok(())
        };
        self.loaded.get_or_try_init(load).await?;
        let head = self.state().head;
        head.ok_or_else(|| JournalError::Unavailable("topic was not loaded".to_owned()))
    }

    /// Looks for what follows a reader's position, handing out frames until `take` says no.
    pub(crate) fn look(
        &self,
        epoch: Epoch,
        after: Offset,
        fingerprint: Fingerprint,
        take: impl FnMut(&Arc<Frame>) -> bool,
    ) -> Look {
        let state = self.state();
        let Some(head) = &state.head else { return Look::Behind };
        if head.epoch != epoch {
            return Look::Behind;
        }
        let end = head.tail.previous();
        if after == end {
            // The same place in another history: only the journal can tell.
            return if head.tail_fingerprint == fingerprint { Look::End } else { Look::Behind };
        }
        if after > end {
            // A page may be ahead of the ring: durable, and about to be pushed.
            return Look::End;
        }
        if state.ring.end() == end && state.ring.read(after, take) {
            return Look::Frames(end.0 - after.0);
        }
        Look::Behind
    }

    /// A number that is another one once the topic's properties may allow something else: before
    /// anything that was appended after the change can be found.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Whether the topic is closed, as far as this node knows.
    fn is_closed(&self) -> bool {
        self.state().head.is_some_and(|head| head.closed)
    }

    /// Whether the topic is closed and ends at this offset.
    pub(crate) fn is_finished(&self, at: Offset) -> bool {
        self.state().head.is_some_and(|head| head.closed && head.tail.previous() <= at)
    }

    /// Hands out the ephemeral frames since a place and returns the next place.
    pub(crate) fn look_ephemeral(&self, from: u64, mut take: impl FnMut(&Arc<Frame>)) -> u64 {
        let state = self.state();
        state.ring.ephemeral(from).for_each(&mut take);
        state.ring.ephemeral_end()
    }

    fn wake_all(state: &State) {
        for (waker, number) in state.readers.iter().flatten() {
            waker.wake(*number);
        }
    }

    /// Takes in what an append stored. `taken` says when the hub took each event, by offset.
    fn advance(&self, appended: &Appended, taken: &[(Offset, Instant)], limit: RingLimit) {
        let frame = |event: &Event| {
            let place = taken.binary_search_by_key(&event.offset, |(offset, _)| *offset).ok();
            let at = place.and_then(|place| taken.get(place)).map(|(_, at)| *at);
            let frame = Frame::of(&self.topic, appended.head.epoch, event).taken_at(at);
            (event.offset, Arc::new(frame))
        };
        let frames: Vec<(Offset, Arc<Frame>)> = appended.events.iter().map(frame).collect();
        let mut state = self.state();
        let moved = state.head != Some(appended.head);
        if state.head.is_none_or(|head| head.epoch != appended.head.epoch) {
            state.ring.restart(appended.head.tail.previous());
        }
        for (offset, frame) in frames {
            state.ring.push(offset, frame, limit);
        }
        state.head = Some(appended.head);
        if moved {
            Self::wake_all(&state);
        }
    }

    /// Takes in what the journal says of the topic after its properties changed or it was deleted.
    fn refresh(&self, head: Head) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        let mut state = self.state();
        if state.head.is_some_and(|old| old.epoch != head.epoch) {
            state.ring.restart(head.tail.previous());
        }
        state.head = Some(head);
        Self::wake_all(&state);
    }
}

/// A reader's place among those that a topic wakes. Dropped, it is not woken any more.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) live: Arc<Live>,
    place: usize,
    /// The next ephemeral frame that this reader has not seen.
    pub(crate) ephemeral_next: u64,
}

impl Registration {
    fn new(live: Arc<Live>, waker: Arc<Waker>, number: u32) -> Self {
        let mut state = live.state();
        let place = state.readers.iter().position(Option::is_none).unwrap_or_else(|| {
            state.readers.push(None);
            state.readers.len() - 1
        });
        if let Some(slot) = state.readers.get_mut(place) {
            *slot = Some((waker, number));
        }
        state.reader_count += 1;
        let ephemeral_next = state.ring.ephemeral_end();
        drop(state);
        Self { live, place, ephemeral_next }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.live.state();
        if let Some(slot) = state.readers.get_mut(self.place) {
            *slot = None;
        }
        state.reader_count -= 1;
        while matches!(state.readers.last(), Some(None)) {
            state.readers.pop();
        }
    }
}

/// What a topic's task is asked to do.
enum Command {
    Append {
        events: Vec<Append>,
        close: bool,
        taken_at: Instant,
        reply: Reply,
    },
    Ephemeral(Arc<NewEvent>, Instant),
    SetProperties {
        change: Change,
        reply: oneshot::Sender<Result<Judged<TopicInfo>, JournalError>>,
    },
    Delete {
        condition: DeleteIf,
        reply: oneshot::Sender<Result<Judged<bool>, JournalError>>,
    },
}

/// The topic's epoch, and what became of each event.
type Reply = oneshot::Sender<Result<(Epoch, Vec<Outcome>), JournalError>>;

#[derive(Debug, Clone)]
struct Handle {
    commands: mpsc::Sender<Command>,
    live: Arc<Live>,
}

/// What the topic tasks of a hub share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ring: RingLimit,
    /// Told which topic got how many events, so that retention looks at the busy ones first.
    pub(crate) appended: mpsc::Sender<(TopicKey, u64)>,
}

/// The active topics of this node.
#[derive(Debug)]
pub(crate) struct Topics {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stopped: CancellationToken,
    hasher: RandomState,
    shards: Box<[Mutex<HashMap<TopicKey, Handle>>]>,
}

/// Locks of the table of active topics: few publishers meet in one.
const SHARDS: usize = 64;

impl Topics {
    pub(crate) fn new(
        shared: Arc<Shared>,
        tasks: TaskTracker,
        stopped: CancellationToken,
    ) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Arc::new(Self { shared, tasks, stopped, hasher: RandomState::new(), shards })
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn shard(&self, topic: &TopicKey) -> MutexGuard<'_, HashMap<TopicKey, Handle>> {
        let number = usize::try_from(self.hasher.hash_one(topic) % SHARDS as u64).unwrap_or(0);
        let shard = self.shards.get(number).expect("a number modulo the count is a place");
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a reader, starting the topic's task if it sleeps. Done under the table's lock, so
    /// that the task cannot retire in between.
    pub(crate) fn attach(
        self: &Arc<Self>,
        topic: &TopicKey,
        waker: &Arc<Waker>,
        number: u32,
    ) -> Registration {
        let mut shard = self.shard(topic);
        let handle = self.activate(&mut shard, topic);
        Registration::new(Arc::clone(&handle.live), Arc::clone(waker), number)
    }

    fn activate(
        self: &Arc<Self>,
        shard: &mut HashMap<TopicKey, Handle>,
        topic: &TopicKey,
    ) -> Handle {
        if let Some(handle) = shard.get(topic) {
            return handle.clone();
        }
        let (sender, receiver) = mpsc::channel(TOPIC_QUEUE_MAX);
        let handle = Handle { commands: sender, live: Arc::new(Live::new(topic.clone())) };
        shard.insert(topic.clone(), handle.clone());
        self.shared.metrics.topics_active.inc();
        self.tasks.spawn(run(Arc::clone(self), Arc::clone(&handle.live), receiver));
        handle
    }

    /// Sends a command, again to a fresh task if the topic's retired meanwhile. Once the hub has
    /// stopped the command is dropped, and whoever waits for its answer is told.
    async fn send(self: &Arc<Self>, topic: &TopicKey, mut command: Command) {
        while !self.stopped.is_cancelled() {
            let handle = {
                let mut shard = self.shard(topic);
                self.activate(&mut shard, topic)
            };
            match handle.commands.send(command).await {
                Ok(()) => return,
                Err(mpsc::error::SendError(back)) => command = back,
            }
        }
    }

    /// Appends events of one topic in one commit, after those that were asked for before.
    pub(crate) async fn append(
        self: &Arc<Self>,
        topic: &TopicKey,
        events: Vec<Append>,
        close: bool,
    ) -> Result<(Epoch, Vec<Outcome>), JournalError> {
        // Nobody is to wait behind a disk that does not get on.
        if let Some(reason) = self.shared.journal.failure() {
            return Err(JournalError::Unavailable(reason));
        }
        let (reply, answer) = oneshot::channel();
        let taken_at = Instant::now();
        self.send(topic, Command::Append { events, close, taken_at, reply }).await;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Hands an ephemeral event to the readers there are now; a topic that is known to be closed
    /// has none.
    pub(crate) fn announce(&self, topic: &TopicKey, event: Arc<NewEvent>) -> Judged<()> {
        let handle = self.shard(topic).get(topic).cloned();
        let Some(handle) = handle else { return Ok(()) };
        if handle.live.is_closed() {
            return Err(Refusal::Closed);
        }
        // A full queue drops it: that is what its class allows.
        if handle.commands.try_send(Command::Ephemeral(event, Instant::now())).is_err() {
            self.shared.metrics.ephemeral_dropped.inc();
        }
        Ok(())
    }

    /// Replaces a topic's properties.
    pub(crate) async fn set_properties(
        self: &Arc<Self>,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.send(topic, Command::SetProperties { change, reply }).await;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Deletes a topic; its readers are told that its history ended.
    pub(crate) async fn delete(
        self: &Arc<Self>,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.send(topic, Command::Delete { condition, reply }).await;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Takes in how far a topic was trimmed, if it is active here.
    pub(crate) fn trimmed(&self, topic: &TopicKey, trimmed: Head) {
        let handle = self.shard(topic).get(topic).cloned();
        if let Some(handle) = handle {
            let mut state = handle.live.state();
            if let Some(head) = state.head.as_mut().filter(|head| head.epoch == trimmed.epoch) {
                head.earliest = trimmed.earliest;
                head.floor_fingerprint = trimmed.floor_fingerprint;
            }
        }
    }

    /// Takes a task out of the table unless somebody still needs it.
    fn retire(&self, live: &Live, commands: &mut mpsc::Receiver<Command>) -> bool {
        let mut shard = self.shard(&live.topic);
        if live.state().reader_count > 0 || !commands.is_empty() {
            return false;
        }
        shard.remove(&live.topic);
        commands.close();
        self.shared.metrics.topics_active.dec();
        true
    }
}

fn stopped() -> JournalError {
    JournalError::Unavailable("the topic's task was stopped".to_owned())
}

/// A topic's task: runs until it has had nothing to do for a while.
async fn run(topics: Arc<Topics>, live: Arc<Live>, mut commands: mpsc::Receiver<Command>) {
    let shared = Arc::clone(&topics.shared);
    let mut queue = Vec::new();
    let mut stopped = pin!(topics.stopped.cancelled());
    let mut is_stopping = false;
    loop {
        tokio::select! {
            biased;
            count = commands.recv_many(&mut queue, COMMIT_EVENTS_MAX) => {
                if count == 0 {
                    return;
                }
                serve_all(&shared, &live, &mut queue).await;
            }
            // After closing, what was sent before is still received: the loop ends at 0.
            () = &mut stopped, if !is_stopping => {
                is_stopping = true;
                commands.close();
            }
            () = tokio::time::sleep(TOPIC_IDLE) => {
                if topics.retire(&live, &mut commands) {
                    // Sent in the last moment: another task has the topic's readers by now.
                    while let Some(command) = commands.recv().await {
                        topics.send(&live.topic, command).await;
                    }
                    return;
                }
            }
        }
    }
}

/// Serves the queue, and goes on with the next although this one met a defect: the topic's readers
/// are here, and nobody else would wake them.
async fn serve_all(shared: &Shared, live: &Live, queue: &mut Vec<Command>) {
    let served = AssertUnwindSafe(serve(shared, live, queue)).catch_unwind().await;
    if served.is_ok() {
        return;
    }
    // Who waited for an answer was told that there is none when the commands were dropped.
    queue.clear();
    tracing::error!("a topic's task panicked; it goes on from what the journal holds");
    match shared.journal.describe(&live.topic).await {
        Ok(info) => live.refresh(info.head),
        Err(error) => tracing::error!(%error, "the topic's readers learn of it by the next event"),
    }
}

/// Does what is queued, joining neighbouring appends into one commit.
async fn serve(shared: &Shared, live: &Live, queue: &mut Vec<Command>) {
    let mut pending = Pending::default();
    for command in queue.drain(..) {
        match command {
            Command::Append { events, close, taken_at, reply } => {
                if pending.is_full_with(&events) {
                    pending.commit(shared, live).await;
                }
                pending.add(events, close, taken_at, reply);
                if close {
                    // What is queued behind it must find the topic closed.
                    pending.commit(shared, live).await;
                }
            }
            Command::Ephemeral(event, taken_at) => {
                let event = Event {
                    offset: Offset::ZERO,
                    fingerprint: Fingerprint(0),
                    recorded_at: shared.clock.now(),
                    body: event,
                };
                let frame = Frame::ephemeral(&live.topic, &event).taken_at(Some(taken_at));
                let mut state = live.state();
                state.ring.push_ephemeral(Arc::new(frame));
                Live::wake_all(&state);
            }
            Command::SetProperties { change, reply } => {
                pending.commit(shared, live).await;
                let set = shared.journal.set_properties(&live.topic, change).await;
                if let Ok(Ok(info)) = &set {
                    live.refresh(info.head);
                }
                // A caller that went away does not need the answer.
                let _ = reply.send(set);
            }
            Command::Delete { condition, reply } => {
                pending.commit(shared, live).await;
                let _ = reply.send(delete(shared, live, condition).await);
            }
        }
    }
    pending.commit(shared, live).await;
}

async fn delete(
    shared: &Shared,
    live: &Live,
    condition: DeleteIf,
) -> Result<Judged<bool>, JournalError> {
    let deleted = shared.journal.delete(&live.topic, condition).await?;
    live.refresh(shared.journal.describe(&live.topic).await?.head);
    Ok(deleted)
}

/// Appends that will be committed together.
#[derive(Default)]
struct Pending {
    batch: Batch,
    bytes: usize,
    asked: Vec<Asked>,
}

/// Who waits for the outcomes of how many of the appends, and since when.
struct Asked {
    count: usize,
    taken_at: Instant,
    reply: Reply,
}

impl Pending {
    fn is_full_with(&self, events: &[Append]) -> bool {
        !self.batch.events.is_empty()
            && (self.batch.events.len() + events.len() > COMMIT_EVENTS_MAX
                || self.bytes + bytes(events) > COMMIT_BYTES_MAX)
    }

    fn add(&mut self, events: Vec<Append>, close: bool, taken_at: Instant, reply: Reply) {
        self.bytes += bytes(&events);
        self.asked.push(Asked { count: events.len(), taken_at, reply });
        self.batch.events.extend(events);
        self.batch.close |= close;
    }

    async fn commit(&mut self, shared: &Shared, live: &Live) {
        let Self { mut batch, asked, .. } = std::mem::take(self);
        if asked.is_empty() {
            return;
        }
        batch.now = shared.clock.now();
        match shared.journal.append(&live.topic, batch).await {
            Ok(appended) => {
                live.advance(&appended, &taken(&appended.outcomes, &asked), shared.ring);
                let count = appended.events.len() as u64;
                if count > 0 && shared.appended.try_send((live.topic.clone(), count)).is_err() {
                    // The sweep finds the topic later.
                    shared.metrics.retention_hints_dropped.inc();
                }
                let epoch = appended.head.epoch;
                let mut outcomes = appended.outcomes.into_iter();
                for Asked { count, reply, .. } in asked {
                    let _ = reply.send(Ok((epoch, outcomes.by_ref().take(count).collect())));
                }
            }
            Err(error) => {
                tracing::error!(%error, "append failed");
                for Asked { reply, .. } in asked {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// When each event that was stored was taken, by ascending offset.
fn taken(outcomes: &[Outcome], asked: &[Asked]) -> Vec<(Offset, Instant)> {
    let times = asked.iter().flat_map(|asked| std::iter::repeat_n(asked.taken_at, asked.count));
    let stored = outcomes.iter().zip(times).filter_map(|(outcome, at)| match outcome {
        Outcome::Stored(position) => Some((position.offset, at)),
        Outcome::Duplicate(_) | Outcome::Refused(_) => None,
    });
    stored.collect()
}

fn bytes(events: &[Append]) -> usize {
    events.iter().map(|append| append.event.data.len()).sum()
}

/// What the journal refused, as the wire tells it, with the current state of a conflict.
pub(crate) fn problem(refusal: &Refusal, topic: &TopicKey, epoch: Epoch) -> Problem {
    let mut problem = Problem::from(refusal);
    if let Refusal::Conflict { current: Some(event) } = refusal {
        let frame = Frame::of(topic, epoch, event);
        let json = frame.json();
        problem.current = std::str::from_utf8(&json).ok().map(crate::model::JsonText::trusted);
    }
    problem
}
