//! One task per active topic and node: it alone appends, and tells readers how far the topic is.
//!
//! The rule: a frame enters the ring after the journal has its event, in offset order. What was
//! queued while the last append ran is appended together, so a busy topic needs few commits.

mod doubt;
mod live;
mod replay;
mod waker;

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use futures_util::FutureExt as _;
use tokio::{
    runtime::Handle as Runtime,
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    bus::{Announcement, Bus},
    clock::Clock,
    error::Problem,
    journal::{
        Append, Batch, Change, DeleteIf, Journal, JournalError, Judged, Outcome, PageLimit,
        Refusal, TopicInfo,
    },
    metrics::Metrics,
    model::{
        Epoch, Event, Fingerprint, NewEvent, Offset, Timestamp, TopicKey,
        limits::{COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX, TOPIC_IDLE, TOPIC_QUEUE_MAX},
        resume::Head,
    },
    ring::RingLimit,
    spans::{Delivery, Spans},
    sse::{Frame, Taken},
};

pub(crate) use self::{
    live::{Live, Look, Registration},
    replay::Replay,
    waker::Waker,
};

/// A command in a topic's queue: so small that a queue that is empty costs little.
type Queued = Box<Command>;

/// What a topic's task is asked to do.
enum Command {
    Append {
        events: Vec<Append>,
        close: bool,
        taken: Taken,
        reply: Reply,
    },
    Ephemeral(Arc<NewEvent>, Timestamp, Instant),
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

/// The way to a topic's task. In boxes: a channel's first block has room for 32 commands, whatever
/// is queued.
type Commands = mpsc::Sender<Queued>;

#[derive(Debug)]
struct Handle {
    /// `None`: nothing is to be done. A topic that only has readers has no task.
    commands: Option<Commands>,
    live: Arc<Live>,
}

/// What the topic tasks of a hub share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) journal: Arc<dyn Journal>,
    /// What other nodes are told by, if there may be others.
    pub(crate) bus: Option<Arc<dyn Bus>>,
    /// This node, among those on the bus.
    pub(crate) node: u64,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) spans: Spans,
    pub(crate) ring: RingLimit,
    /// Told which topics grew, so that retention looks at the busy ones first.
    pub(crate) grown: mpsc::Sender<TopicKey>,
    /// By how many events each time.
    pub(crate) grown_by: u64,
}

impl Shared {
    fn announce(&self, announcement: impl FnOnce() -> Announcement) {
        if let Some(bus) = &self.bus {
            bus.announce(announcement());
        }
    }

    fn announce_change(&self, live: &Live) {
        self.announce(|| Announcement::Changed { topic: live.topic.clone() });
    }
}

/// The active topics of this node.
#[derive(Debug)]
pub(crate) struct Topics {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Where tasks are started: readers may be dropped anywhere.
    runtime: Runtime,
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
        let (runtime, hasher) = (Runtime::current(), RandomState::new());
        Arc::new(Self { shared, tasks, runtime, stopped, hasher, shards })
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn shard(&self, topic: &TopicKey) -> MutexGuard<'_, HashMap<TopicKey, Handle>> {
        let number = usize::try_from(self.hasher.hash_one(topic) % SHARDS as u64).unwrap_or(0);
        let shard = self.shards.get(number).expect("a number modulo the count is a place");
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a reader. Done under the table's lock, so that the topic cannot leave memory in
    /// between.
    pub(crate) fn attach(
        self: &Arc<Self>,
        topic: &TopicKey,
        waker: &Arc<Waker>,
        number: u32,
    ) -> Registration {
        let mut shard = self.shard(topic);
        let live = Arc::clone(&self.handle(&mut shard, topic).live);
        if let Some(bus) = &self.shared.bus
            && !live.followed.swap(true, Ordering::Relaxed)
        {
            bus.follow(topic);
        }
        Registration::new(Arc::clone(self), live, Arc::clone(waker), number)
    }

    fn handle<'a>(
        &self,
        shard: &'a mut HashMap<TopicKey, Handle>,
        topic: &TopicKey,
    ) -> &'a mut Handle {
        shard.entry(topic.clone()).or_insert_with(|| {
            self.shared.metrics.topics_active.inc();
            Handle { commands: None, live: Arc::new(Live::new(topic.clone())) }
        })
    }

    /// The way to the topic's task, which is started if it sleeps.
    fn commands<'a>(self: &Arc<Self>, handle: &'a mut Handle) -> &'a Commands {
        let Handle { commands, live } = handle;
        commands.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(TOPIC_QUEUE_MAX);
            let task = run(Arc::clone(self), Arc::clone(live), receiver);
            self.tasks.spawn_on(task, &self.runtime);
            sender
        })
    }

    /// The last reader of a topic left: its task, which may have to be started for that, lets it
    /// leave memory after a while, unless somebody comes.
    fn left(self: &Arc<Self>, live: &Live) {
        let mut shard = self.shard(&live.topic);
        if self.stopped.is_cancelled() || live.state().reader_count > 0 {
            return;
        }
        if let Some(handle) = shard.get_mut(&live.topic) {
            self.commands(handle);
        }
    }

    /// Sends a command, again to a fresh task if the topic's retired meanwhile. Once the hub has
    /// stopped the command is dropped, and whoever waits for its answer is told.
    async fn send(self: &Arc<Self>, topic: &TopicKey, mut command: Box<Command>) {
        while !self.stopped.is_cancelled() {
            let commands = {
                let mut shard = self.shard(topic);
                self.commands(self.handle(&mut shard, topic)).clone()
            };
            match commands.send(command).await {
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
        delivery: Option<Arc<Delivery>>,
    ) -> Result<(Epoch, Vec<Outcome>), JournalError> {
        // Nobody is to wait behind a disk that does not get on.
        if let Some(reason) = self.shared.journal.failure_of(topic) {
            return Err(JournalError::Unavailable(reason));
        }
        let (reply, answer) = oneshot::channel();
        let taken = Taken { at: Instant::now(), delivery };
        self.send(topic, Box::new(Command::Append { events, close, taken, reply })).await;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Hands an ephemeral event to the readers there are now, on all nodes; a topic that is known to
    /// be closed has none.
    pub(crate) fn ephemeral(
        self: &Arc<Self>,
        topic: &TopicKey,
        event: Arc<NewEvent>,
    ) -> Judged<()> {
        let at = self.shared.clock.now();
        self.hand_out(topic, Arc::clone(&event), at)?;
        self.shared.announce(|| {
            let (topic, node) = (topic.clone(), self.shared.node);
            Announcement::Ephemeral { topic, event, at, node }
        });
        Ok(())
    }

    /// Hands an ephemeral event to the readers here.
    pub(crate) fn hand_out(
        self: &Arc<Self>,
        topic: &TopicKey,
        event: Arc<NewEvent>,
        at: Timestamp,
    ) -> Judged<()> {
        let commands = {
            let mut shard = self.shard(topic);
            let Some(handle) = shard.get_mut(topic) else { return Ok(()) };
            if handle.live.is_closed() {
                return Err(Refusal::Closed);
            }
            self.commands(handle).clone()
        };
        let command = Box::new(Command::Ephemeral(event, at, Instant::now()));
        // A full queue drops it: that is what its class allows.
        if commands.try_send(command).is_err() {
            self.shared.metrics.ephemeral_dropped.inc();
        }
        Ok(())
    }

    /// A topic, if it is active here.
    pub(crate) fn live(&self, topic: &TopicKey) -> Option<Arc<Live>> {
        self.shard(topic).get(topic).map(|handle| Arc::clone(&handle.live))
    }

    /// The topics that have readers here.
    pub(crate) fn followed(&self) -> Vec<Arc<Live>> {
        let mut followed = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let read = shard.values().filter(|handle| handle.live.state().reader_count > 0);
            followed.extend(read.map(|handle| Arc::clone(&handle.live)));
        }
        followed
    }

    /// Replaces a topic's properties.
    pub(crate) async fn set_properties(
        self: &Arc<Self>,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.send(topic, Box::new(Command::SetProperties { change, reply })).await;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Deletes a topic; its readers are told that its history ended.
    pub(crate) async fn delete(
        self: &Arc<Self>,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.send(topic, Box::new(Command::Delete { condition, reply })).await;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Takes in how far a topic was trimmed, if it is active here.
    pub(crate) fn trimmed(&self, topic: &TopicKey, trimmed: Head) {
        if let Some(live) = self.live(topic) {
            live.trimmed(trimmed);
        }
    }

    /// Asks a topic's task to look into the journal; `change` if its properties may be others.
    pub(crate) fn hint(self: &Arc<Self>, live: &Live, change: bool) {
        // Before the table's lock, so that a task that retires finds it.
        live.hint(change);
        if let Some(handle) = self.shard(&live.topic).get_mut(&live.topic) {
            self.commands(handle);
        }
    }

    /// Takes a task out of the table unless somebody still needs it, and its topic with it unless
    /// that has readers.
    fn retire(&self, live: &Live, commands: &mut mpsc::Receiver<Queued>) -> bool {
        let mut shard = self.shard(&live.topic);
        if !commands.is_empty() || live.is_to_look() {
            return false;
        }
        commands.close();
        if live.state().reader_count > 0 {
            if let Some(handle) = shard.get_mut(&live.topic) {
                handle.commands = None;
            }
            return true;
        }
        shard.remove(&live.topic);
        // Under the table's lock: whoever attaches now follows it again.
        if let Some(bus) = &self.shared.bus
            && live.followed.load(Ordering::Relaxed)
        {
            bus.unfollow(&live.topic);
        }
        self.shared.metrics.topics_active.dec();
        true
    }
}

fn stopped() -> JournalError {
    JournalError::Unavailable("the topic's task was stopped".to_owned())
}

/// A topic's task: runs until it has had nothing to do for a while.
async fn run(topics: Arc<Topics>, live: Arc<Live>, mut commands: mpsc::Receiver<Queued>) {
    let shared = Arc::clone(&topics.shared);
    let mut queue = Vec::new();
    let mut stopped = pin!(topics.stopped.cancelled());
    let mut is_stopping = false;
    // Left running while there is work: setting it anew for each commit costs more than asking when
    // it rings.
    let mut idle = pin!(tokio::time::sleep(TOPIC_IDLE));
    let mut was_idle = true;
    loop {
        tokio::select! {
            biased;
            count = commands.recv_many(&mut queue, COMMIT_EVENTS_MAX) => {
                if count == 0 {
                    return;
                }
                was_idle = false;
                guarded(&shared, &live, serve(&shared, &live, &mut queue)).await;
            }
            () = live.hinted.notified() => {
                was_idle = false;
                guarded(&shared, &live, look(&shared, &live)).await;
            }
            // After closing, what was sent before is still received: the loop ends at 0.
            () = &mut stopped, if !is_stopping => {
                is_stopping = true;
                commands.close();
            }
            () = &mut idle => {
                if live.doubt.is_left() {
                    guarded(&shared, &live, look_in_doubt(&shared, &live)).await;
                }
                if was_idle && topics.retire(&live, &mut commands) {
                    // Sent in the last moment: another task has the topic's readers by now.
                    while let Some(command) = commands.recv().await {
                        topics.send(&live.topic, command).await;
                    }
                    return;
                }
                was_idle = true;
                live.release();
                idle.as_mut().reset(Instant::now() + TOPIC_IDLE);
            }
        }
    }
}

/// Works for a topic, and goes on with the next although this met a defect: the topic's readers are
/// here, and nobody else would wake them.
async fn guarded(shared: &Shared, live: &Arc<Live>, work: impl Future<Output = ()>) {
    if AssertUnwindSafe(work).catch_unwind().await.is_err() {
        tracing::error!("a topic's task panicked; it goes on from what the journal holds");
        live.ask_anew(&*shared.journal).await;
    }
}

/// Does what is queued, joining neighbouring appends into one commit.
async fn serve(shared: &Shared, live: &Arc<Live>, queue: &mut Vec<Queued>) {
    let mut pending = Pending::default();
    for command in queue.drain(..) {
        match *command {
            Command::Append { events, close, taken, reply } => {
                if pending.is_full_with(&events) {
                    pending.commit(shared, live).await;
                }
                pending.add(events, close, taken, reply);
                if close {
                    // What is queued behind it must find the topic closed.
                    pending.commit(shared, live).await;
                }
            }
            Command::Ephemeral(event, at, taken_at) => {
                if live.state().reader_count == 0 {
                    // Who comes now begins behind it.
                    continue;
                }
                let taken = Taken { at: taken_at, delivery: None };
                let event = Event {
                    offset: Offset::ZERO,
                    fingerprint: Fingerprint(0),
                    recorded_at: at,
                    body: event,
                };
                let frame = Frame::ephemeral(&live.frames, &event).taken(Some(taken));
                let mut state = live.state();
                state.ring.push_ephemeral(Arc::new(frame));
                live.wake_all(&mut state);
            }
            Command::SetProperties { change, reply } => {
                pending.commit(shared, live).await;
                let set = shared.journal.set_properties(&live.topic, change).await;
                match &set {
                    Ok(Ok(info)) => {
                        live.refresh(info.clone());
                        shared.announce_change(live);
                    }
                    Ok(Err(_)) => {}
                    Err(_) => live.doubt.begin(),
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
    live: &Arc<Live>,
    condition: DeleteIf,
) -> Result<Judged<bool>, JournalError> {
    let deleted = shared.journal.delete(&live.topic, condition).await;
    let deleted = deleted.inspect_err(|_| live.doubt.begin())?;
    live.ask_anew(&*shared.journal).await;
    shared.announce_change(live);
    Ok(deleted)
}

/// Looks whether more was stored or changed than the journal said.
async fn look_in_doubt(shared: &Shared, live: &Arc<Live>) {
    // Taken back if it is not known after all.
    live.doubt.look();
    match shared.journal.describe(&live.topic).await {
        // Mostly so, and not in the line of those who wait for pages.
        Ok(info) if live.agrees(&info) == (true, true) => {}
        _ => {
            live.hinted_change.store(true, Ordering::Release);
            look(shared, live).await;
        }
    }
}

/// Looks what other nodes did to the topic.
async fn look(shared: &Shared, live: &Arc<Live>) {
    let looked = async {
        catch_up(shared, live).await?;
        if live.hinted_change.swap(false, Ordering::AcqRel) {
            let info = shared.journal.describe(&live.topic).await?;
            if live.agrees(&info) != (true, true) {
                live.refresh(info);
            }
        }
        Ok::<(), JournalError>(())
    };
    if let Err(error) = looked.await {
        // The relay, if there is one, compares all topics now and then, and hints again.
        tracing::debug!(%error, "a topic could not be looked at");
        live.doubt.begin();
    }
}

/// Reads what other nodes appended, once for all readers here.
async fn catch_up(shared: &Shared, live: &Arc<Live>) -> Result<(), JournalError> {
    loop {
        let head = live.state().head;
        let Some(head) = head else {
            // Its readers, if there are any, wait for who finds out. The next one would, too.
            if live.is_read() {
                live.head(&*shared.journal).await?;
            }
            return Ok(());
        };
        let after = head.end().offset;
        let page = shared.journal.read(&live.topic, after, PageLimit::default()).await?;
        if !live.extend(head, &page, shared.ring) {
            return Ok(());
        }
    }
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
    taken: Taken,
    reply: Reply,
}

impl Pending {
    fn is_full_with(&self, events: &[Append]) -> bool {
        !self.batch.events.is_empty()
            && (self.batch.events.len() + events.len() > COMMIT_EVENTS_MAX
                || self.bytes + bytes(events) > COMMIT_BYTES_MAX)
    }

    fn add(&mut self, events: Vec<Append>, close: bool, taken: Taken, reply: Reply) {
        self.bytes += bytes(&events);
        self.asked.push(Asked { count: events.len(), taken, reply });
        self.batch.events.extend(events);
        self.batch.close |= close;
    }

    async fn commit(&mut self, shared: &Shared, live: &Arc<Live>) {
        let Self { mut batch, asked, .. } = std::mem::take(self);
        if asked.is_empty() {
            return;
        }
        batch.now = shared.clock.now();
        let closes = batch.close || batch.events.iter().any(|append| append.close);
        match shared.journal.append(&live.topic, batch).await {
            Ok(appended) => {
                for delivery in asked.iter().filter_map(|asked| asked.taken.delivery.as_ref()) {
                    delivery.committed();
                }
                // Behind what another node appended, this comes by the journal, in order.
                let is_behind = !live.is_next(&appended) && live.is_read();
                let read = is_behind && catch_up(shared, live).await.is_ok();
                if !read {
                    live.advance(&appended, &taken(&appended.outcomes, &asked), shared.ring);
                }
                if appended.events.is_empty() {
                    if closes {
                        shared.announce_change(live);
                    }
                } else {
                    let (topic, end) = (live.topic.clone(), appended.head.end());
                    shared.announce(|| Announcement::Advanced { topic, end });
                }
                if live.grow(appended.events.len() as u64, shared.grown_by)
                    && shared.grown.try_send(live.topic.clone()).is_err()
                {
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
                // Said by a server whose answer was lost, it may be stored all the same.
                live.doubt.begin();
                for Asked { reply, .. } in asked {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// When each event that was stored was taken, by ascending offset.
fn taken(outcomes: &[Outcome], asked: &[Asked]) -> Vec<(Offset, Taken)> {
    let times = asked.iter().flat_map(|asked| std::iter::repeat_n(&asked.taken, asked.count));
    let stored = outcomes.iter().zip(times).filter_map(|(outcome, taken)| match outcome {
        Outcome::Stored(position) => Some((position.offset, taken.clone())),
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
