//! Pages of a topic's history that many readers ask for at once: read once, and encoded once.
//!
//! The rule: what is shared is a reading that goes on, never one that is over, none from before a
//! change of the history that this node knows of, and never a judgement. Who joins may know more than
//! that page will: it is served by it only if the page has events that follow its very position, and
//! has a page read for itself otherwise.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures_util::FutureExt as _;
use tokio::sync::OnceCell;

use crate::{
    journal::{JournalError, Page, PageLimit},
    model::{
        Fingerprint, Offset, Position,
        resume::{Head, Restart, resume},
    },
    sse::{Frame, FrameTopic},
};

/// A page of the journal, its events as frames.
#[derive(Debug)]
pub(crate) struct Replay {
    /// As of [`Page::head`].
    pub(crate) head: Head,
    /// As of [`Page::after_fingerprint`].
    pub(crate) after_fingerprint: Option<Fingerprint>,
    /// By ascending offset.
    pub(crate) frames: Vec<Arc<Frame>>,
    /// As of [`Page::next`].
    pub(crate) next: Position,
}

impl Replay {
    pub(crate) fn of(topic: &FrameTopic, page: &Page) -> Self {
        let Page { head, after_fingerprint, ref events, next } = *page;
        let frame = |event| Arc::new(Frame::of(topic, head.epoch, event));
        Self { head, after_fingerprint, frames: events.iter().map(frame).collect(), next }
    }

    /// Whether a reader may go on by this page that asked after its reading had begun.
    fn serves(&self, at: Position) -> bool {
        let judged = resume(at.into(), &self.head, self.after_fingerprint, Restart::Earliest);
        judged.gap.is_none() && !self.frames.is_empty()
    }
}

/// The reading of one page, for all who wait for it: one of them reads, and if it leaves before it is
/// done, the next begins anew.
type Reading = OnceCell<Result<Arc<Replay>, JournalError>>;

/// The readings of one topic that go on.
#[derive(Debug, Default)]
pub(super) struct Replays {
    /// Abandoned by all who waited, a reading ends.
    going_on: Mutex<Vec<GoingOn>>,
}

/// What follows which offset, and how much.
type GoingOn = (Offset, PageLimit, Weak<Reading>);

impl Replays {
    /// The page behind a position: one that is being read, if it serves, or another one.
    pub(super) async fn page<R>(
        &self,
        at: Position,
        limit: PageLimit,
        read: impl FnOnce() -> R,
    ) -> Result<Arc<Replay>, JournalError>
    where
        R: Future<Output = Result<Arc<Replay>, JournalError>>,
    {
        let mut read = Some(read);
        if let Some(reading) = self.join(at.offset, limit) {
            let page = reading.get_or_init(|| whole(read.take())).await.clone()?;
            let is_own = read.is_none();
            if is_own || page.serves(at) {
                return Ok(page);
            }
        }
        let reading = Arc::new(Reading::new());
        self.begin(at.offset, limit, &reading);
        reading.get_or_init(|| whole(read.take())).await.clone()
    }

    /// Says that the history is not what it was: who asks from now on has it read anew.
    pub(super) fn separate(&self) {
        self.going_on().clear();
    }

    fn going_on(&self) -> MutexGuard<'_, Vec<GoingOn>> {
        self.going_on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, after: Offset, limit: PageLimit) -> Option<Arc<Reading>> {
        let same = |reading: &&GoingOn| (reading.0, reading.1) == (after, limit);
        self.going_on().iter().filter(same).find_map(|(.., reading)| is_going_on(reading))
    }

    fn begin(&self, after: Offset, limit: PageLimit, reading: &Arc<Reading>) {
        let mut going_on = self.going_on();
        going_on.retain(|(.., reading)| is_going_on(reading).is_some());
        going_on.push((after, limit, Arc::downgrade(reading)));
    }
}

fn is_going_on(reading: &Weak<Reading>) -> Option<Arc<Reading>> {
    reading.upgrade().filter(|reading| !reading.initialized())
}

/// What is read. A defect is an error for all who wait: each of them would meet it.
async fn whole<R>(read: Option<impl FnOnce() -> R>) -> Result<Arc<Replay>, JournalError>
where
    R: Future<Output = Result<Arc<Replay>, JournalError>>,
{
    let failed = || Err(JournalError::Unavailable("reading a page failed".to_owned()));
    let Some(read) = read else { return failed() };
    AssertUnwindSafe(read()).catch_unwind().await.unwrap_or_else(|_| failed())
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{
            Barrier,
            atomic::{AtomicBool, Ordering},
        },
        task::{Context, Poll, Wake, Waker},
    };

    use futures_util::future::join;
    use tokio::sync::oneshot;

    use super::*;
    use crate::model::{Epoch, Event, EventType, NewEvent, Tenant, Timestamp, Topic, TopicKey};

    const EPOCH: Epoch = Epoch(1);
    const LIMIT: PageLimit = PageLimit { events: 10, bytes: 1 << 20 };

    fn at(offset: u64, fingerprint: u32) -> Position {
        Position { epoch: EPOCH, offset: Offset(offset), fingerprint: Fingerprint(fingerprint) }
    }

    /// What follows an offset in a topic that ends at another; events have their offset's number as
    /// fingerprint.
    fn page(epoch: Epoch, after: u32, end: u32) -> Result<Arc<Replay>, JournalError> {
        let topic = TopicKey::new(Tenant::parse("t").unwrap(), Topic::parse("a").unwrap());
        let event = |number: u32| Event {
            offset: Offset(number.into()),
            fingerprint: Fingerprint(number),
            recorded_at: Timestamp::from_millis(0),
            body: Arc::new(NewEvent::new(EventType::parse("x").unwrap())),
        };
        let head = Head {
            tail: Offset(u64::from(end) + 1),
            tail_fingerprint: Fingerprint(end),
            ..Head::empty(epoch)
        };
        let page = Page {
            head,
            after_fingerprint: Some(Fingerprint(after)),
            events: (after + 1..=end).map(event).collect(),
            next: head.end(),
        };
        Ok(Arc::new(Replay::of(&(&topic).into(), &page)))
    }

    async fn own() -> Result<Arc<Replay>, JournalError> {
        page(EPOCH, 2, 5)
    }

    /// What a reader at a position gets that asks while `read` goes on: where its page ends, and
    /// whether it was that one.
    async fn joined(read: Result<Arc<Replay>, JournalError>, position: Position) -> (u64, bool) {
        let replays = Replays::default();
        let (release, held) = oneshot::channel();
        let shared = read.as_ref().ok().cloned();
        let first = replays.page(at(2, 2), LIMIT, || {
            async move {
                held.await.unwrap();
                read
            }
            .boxed()
        });
        let second = async {
            let mut second = Box::pin(replays.page(position, LIMIT, own));
            assert!(second.as_mut().now_or_never().is_none(), "it does not wait for the other");
            release.send(()).unwrap();
            second.await
        };
        let (_, second) = join(first, second).await;
        let second = second.unwrap();
        (second.next.offset.0, shared.is_some_and(|shared| Arc::ptr_eq(&shared, &second)))
    }

    #[tokio::test]
    async fn who_asks_for_the_same_meanwhile_gets_the_same() {
        assert_eq!(joined(page(EPOCH, 2, 3), at(2, 2)).await, (3, true));
    }

    /// Broken on purpose, each failed: with an empty page for all, a reader that knows of an event
    /// behind it waits for ever; with another history's, it is told of a gap that is none.
    #[tokio::test]
    async fn who_knows_more_than_the_page_gets_its_own() {
        assert_eq!(joined(page(EPOCH, 2, 2), at(2, 2)).await, (5, false));
        assert_eq!(joined(page(Epoch(9), 2, 3), at(2, 2)).await, (5, false));
        assert_eq!(joined(page(EPOCH, 2, 3), at(2, 77)).await, (5, false));
    }

    #[tokio::test]
    async fn what_is_over_is_not_shared_and_leaves_nothing() {
        let replays = Replays::default();
        let first = replays.page(at(2, 2), LIMIT, || async { page(EPOCH, 2, 3) }.boxed()).await;
        let second = replays.page(at(2, 2), LIMIT, own).await;
        assert_eq!(first.unwrap().next.offset, Offset(3));
        assert_eq!(second.unwrap().next.offset, Offset(5));
        assert!(replays.join(Offset(2), LIMIT).is_none());
        assert!(replays.going_on.lock().unwrap().len() <= 1);
    }

    /// Broken on purpose, it failed: with the table not emptied.
    #[tokio::test]
    async fn a_reading_from_before_a_change_is_joined_by_nobody() {
        let replays = Replays::default();
        let (release, held) = oneshot::channel();
        let read = || held.then(|_| async { page(EPOCH, 2, 3) }).boxed();
        let mut first = Box::pin(replays.page(at(2, 2), LIMIT, read));
        assert!(first.as_mut().now_or_never().is_none());
        replays.separate();
        let second = replays.page(at(2, 2), LIMIT, own).now_or_never().unwrap();
        assert_eq!(second.unwrap().next.offset, Offset(5));
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap().next.offset, Offset(3));
    }

    /// Broken on purpose, it failed: with the panic not caught, who waits is gone with it.
    #[tokio::test]
    async fn a_defect_met_by_a_reading_is_an_error_for_all_and_ends_there() {
        let replays = Replays::default();
        let (release, held) = oneshot::channel::<()>();
        let read = || held.then(|_| async { panic!("a defect, on purpose") }).boxed();
        let first = replays.page(at(2, 2), LIMIT, read);
        let second = async {
            let mut second = Box::pin(replays.page(at(2, 2), LIMIT, own));
            assert!(second.as_mut().now_or_never().is_none());
            release.send(()).unwrap();
            second.await
        };
        let (first, second) = join(first, second).await;
        assert!(first.is_err() && second.is_err());
        assert!(replays.page(at(2, 2), LIMIT, own).await.is_ok());
    }

    /// Whether it was called since it was asked last.
    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// Broken on purpose, it failed: with the reading in a `Shared` of futures-util 0.3.34, which
    /// wakes nobody when the one leaves that it had woken (futures-rs #2706).
    #[test]
    fn who_waits_is_woken_although_the_one_left_who_was_to_go_on() {
        let replays = Replays::default();
        let (meeting, is_met) = (Arc::new(Barrier::new(2)), Arc::<AtomicBool>::default());
        let read = || {
            let (meeting, is_met) = (Arc::clone(&meeting), Arc::clone(&is_met));
            let polled = move |context: &mut Context<'_>| -> Poll<Result<_, _>> {
                if is_met.swap(false, Ordering::SeqCst) {
                    // It gets on, and the other one asks for it while it is polled.
                    context.waker().wake_by_ref();
                    meeting.wait();
                    meeting.wait();
                }
                Poll::Pending
            };
            poll_fn(polled)
        };
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let mut first = Box::pin(replays.page(at(2, 2), LIMIT, read));
        let mut second = Box::pin(replays.page(at(2, 2), LIMIT, own));
        let mut ask = || second.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
        let mut go_on =
            || first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
        assert!(go_on() && ask());
        is_met.store(true, Ordering::SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                meeting.wait();
                assert!(ask());
                woken.0.store(false, Ordering::SeqCst);
                meeting.wait();
            });
            assert!(go_on());
        });
        drop(first);
        assert!(woken.0.load(Ordering::SeqCst));
    }

    /// Broken on purpose, it failed: with the reading kept by the table as well.
    #[tokio::test]
    async fn a_reading_ends_with_who_reads_and_the_next_who_waits_begins_anew() {
        let replays = Replays::default();
        let (release, held) = oneshot::channel();
        let read = || held.then(|_| async { page(EPOCH, 2, 3) }).boxed();
        let mut first = Box::pin(replays.page(at(2, 2), LIMIT, read));
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(replays.page(at(2, 2), LIMIT, own));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(release.send(()).is_err());
        assert_eq!(second.await.unwrap().next.offset, Offset(5));

        let (release, held) = oneshot::channel::<()>();
        let read = || held.then(|_| async { page(EPOCH, 2, 3) }).boxed();
        let mut abandoned = Box::pin(replays.page(at(2, 2), LIMIT, read));
        assert!(abandoned.as_mut().now_or_never().is_none());
        drop(abandoned);
        assert!(release.is_closed());
    }
}
