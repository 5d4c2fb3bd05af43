//! Room for the bytes of publishes, from when they arrive until they are stored.
//!
//! The rule: there is always room for somebody else. A tenant may hold as much as it leaves free of
//! the whole, and a user as much as its tenant may yet take (dynamic thresholds, Choudhury and Hahne
//! 1998): one user alone gets a third, one tenant alone a half, `n` tenants `1 / (n + 1)` each.
//!
//! Room is taken as bytes arrive, so a body may hold some while it waits for more. That these do not
//! wait for each other for ever: one body of each user may go beyond its user's share, one of those
//! beyond its tenant's, and one of those beyond the whole, until it ends. So at most one body more is
//! held than there is room for.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use super::User;

/// A user or a tenant: a number that nobody can aim at. Two that were the same would share.
type Holder = u64;
type BodyId = u64;

/// The room, and who holds how much of it.
#[derive(Debug)]
pub(super) struct WaitingRoom {
    bytes_max: usize,
    hashes: RandomState,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    whole: Share,
    users: HashMap<Holder, Share>,
    tenants: HashMap<Holder, Share>,
    bodies: HashMap<BodyId, Body>,
    next: BodyId,
    /// In the order of asking; also those that have left meanwhile.
    waiting: VecDeque<BodyId>,
}

/// What the bodies of one holder hold.
#[derive(Debug, Default)]
struct Share {
    bytes: usize,
    bodies: usize,
    /// The one that may hold more than fits.
    beyond: Option<BodyId>,
}

impl Share {
    /// Whether this body may hold more than the share has room for.
    fn admits(&self, body: BodyId) -> bool {
        self.beyond.is_none_or(|beyond| beyond == body)
    }
}

#[derive(Debug)]
struct Body {
    user: Holder,
    tenant: Holder,
    bytes: usize,
    /// More that it waits for, and what to tell when it has it.
    wants: Option<(usize, Arc<Notify>)>,
}

/// Room of one publish, which grows as its bytes arrive. Dropped, it is free.
#[derive(Debug)]
pub(crate) struct Waiting {
    room: Arc<WaitingRoom>,
    body: BodyId,
    bytes: usize,
}

/// There was no room in time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl WaitingRoom {
    pub(super) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, hashes: RandomState::new(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A body that holds nothing yet.
    pub(super) fn enter(self: &Arc<Self>, user: &User) -> Waiting {
        let (tenant, user) = (self.hashes.hash_one(user.tenant()), self.hashes.hash_one(user));
        let mut state = self.state();
        let body = state.next;
        state.next += 1;
        state.users.entry(user).or_default().bodies += 1;
        state.tenants.entry(tenant).or_default().bodies += 1;
        state.bodies.insert(body, Body { user, tenant, bytes: 0, wants: None });
        drop(state);
        Waiting { room: Arc::clone(self), body, bytes: 0 }
    }
}

impl Waiting {
    /// Takes room until it holds so many bytes; waits for it, in the order of asking.
    pub(super) async fn grow(&mut self, bytes: usize, within: Duration) -> Result<(), NoRoom> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else {
            return Ok(());
        };
        let came = {
            let mut state = self.room.state();
            if state.take(self.body, more, self.room.bytes_max) {
                self.bytes = bytes;
                return Ok(());
            }
            let came = Arc::new(Notify::new());
            if let Some(body) = state.bodies.get_mut(&self.body) {
                body.wants = Some((more, Arc::clone(&came)));
            }
            state.waiting.push_back(self.body);
            came
        };
        let in_time = timeout(within, came.notified()).await;
        let mut state = self.room.state();
        let body = state.bodies.get_mut(&self.body);
        // It may have come while the time ran out.
        if in_time.is_err() && body.is_some_and(|body| body.wants.take().is_some()) {
            return Err(NoRoom);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.room.state().leave(self.body, self.room.bytes_max);
    }
}

impl State {
    /// Gives a body more, if it may have it.
    fn take(&mut self, id: BodyId, more: usize, bytes_max: usize) -> bool {
        let Self { whole, users, tenants, bodies, .. } = self;
        let Some(body) = bodies.get_mut(&id) else { return false };
        let Some(user) = users.get_mut(&body.user) else { return false };
        let Some(tenant) = tenants.get_mut(&body.tenant) else { return false };
        let free = bytes_max.checked_sub(whole.bytes + more);
        let left = free.and_then(|free| free.checked_sub(tenant.bytes + more));
        let is_in_share = left.is_some_and(|left| user.bytes + more <= left);
        // Who goes beyond a share does so in every share below: in this order nobody waits for one
        // that waits for him.
        if !is_in_share {
            if !user.admits(id) {
                return false;
            }
            user.beyond = Some(id);
            if left.is_none() {
                if !tenant.admits(id) {
                    return false;
                }
                tenant.beyond = Some(id);
                if free.is_none() {
                    if !whole.admits(id) {
                        return false;
                    }
                    whole.beyond = Some(id);
                }
            }
        }
        for share in [whole, user, tenant] {
            share.bytes += more;
        }
        body.bytes += more;
        true
    }

    fn leave(&mut self, id: BodyId, bytes_max: usize) {
        let Some(body) = self.bodies.remove(&id) else { return };
        self.whole.bytes -= body.bytes;
        self.whole.beyond = self.whole.beyond.filter(|beyond| *beyond != id);
        for (shares, holder) in [(&mut self.users, body.user), (&mut self.tenants, body.tenant)] {
            let Some(share) = shares.get_mut(&holder) else { continue };
            share.bytes -= body.bytes;
            share.bodies -= 1;
            share.beyond = share.beyond.filter(|beyond| *beyond != id);
            if share.bodies == 0 {
                shares.remove(&holder);
            }
        }
        self.serve(bytes_max);
    }

    /// Gives those that wait what there is for them now.
    fn serve(&mut self, bytes_max: usize) {
        let mut left = VecDeque::new();
        while let Some(id) = self.waiting.pop_front() {
            let wants = self.bodies.get_mut(&id).and_then(|body| body.wants.take());
            let Some((more, came)) = wants else { continue };
            if self.take(id, more, bytes_max) {
                came.notify_one();
                continue;
            }
            if let Some(body) = self.bodies.get_mut(&id) {
                body.wants = Some((more, came));
            }
            left.push_back(id);
            // Nobody behind it can have what is not there.
            if self.whole.bytes >= bytes_max && self.whole.beyond.is_some() {
                break;
            }
        }
        left.append(&mut self.waiting);
        self.waiting = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{auth::Grant, model::Tenant};

    const NOW: Duration = Duration::ZERO;
    const WAIT: Duration = Duration::from_secs(5);

    fn user(tenant: &str, name: &str) -> User {
        User::of(&Grant::of_patterns(Tenant::parse(tenant).unwrap(), name, &[], &[]))
    }

    /// Bodies of a user, as many as find room for so much each.
    async fn fill(room: &Arc<WaitingRoom>, user: &User, bytes: usize) -> Vec<Waiting> {
        let mut bodies = Vec::new();
        loop {
            let mut body = room.enter(user);
            if body.grow(bytes, NOW).await.is_err() {
                return bodies;
            }
            bodies.push(body);
        }
    }

    /// Broken on purpose, it failed: with the whole as every user's share, and as every tenant's.
    #[tokio::test(start_paused = true)]
    async fn whatever_one_holds_there_is_room_for_another() {
        let room = WaitingRoom::new(3000);
        let greedy = fill(&room, &user("evil", "a"), 1).await;
        // One of them is beyond the share.
        assert_eq!(greedy.len(), 1001);
        let second = fill(&room, &user("evil", "b"), 1).await;
        assert!(second.len() > 100, "{}", second.len());
        let mut others = Vec::new();
        for name in 0..50 {
            others.extend(fill(&room, &user("evil", &name.to_string()), 1).await);
        }
        assert!(room.state().whole.bytes <= 1551, "{}", room.state().whole.bytes);
        let other = fill(&room, &user("good", "a"), 1).await;
        assert!(other.len() > 400, "{}", other.len());
        drop((greedy, second, others, other));
        let state = room.state();
        assert_eq!((state.whole.bytes, state.users.len(), state.tenants.len()), (0, 0, 0));
        assert!(state.bodies.is_empty() && state.waiting.is_empty());
    }

    /// Broken on purpose, it failed: with nobody beyond his share.
    #[tokio::test(start_paused = true)]
    async fn bodies_that_grow_together_do_not_wait_for_each_other_for_ever() {
        let room = WaitingRoom::new(4000);
        let (ended, mut ends) = tokio::sync::mpsc::channel(64);
        for number in 0..60 {
            let mut body =
                room.enter(&user(&format!("t{}", number % 3), &format!("u{}", number % 6)));
            let ended = ended.clone();
            tokio::spawn(async move {
                for bytes in (100..=1000).step_by(100) {
                    // Longer than any test: only progress ends the wait.
                    body.grow(bytes, Duration::from_secs(3600)).await.unwrap();
                    tokio::task::yield_now().await;
                    assert!(body.room.state().whole.bytes <= 4000 + 1000);
                }
                drop(body);
                ended.send(()).await.unwrap();
            });
        }
        drop(ended);
        let mut count = 0;
        while ends.recv().await.is_some() {
            count += 1;
        }
        assert_eq!(count, 60);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_what_is_given_back_in_the_order_of_asking() {
        let room = WaitingRoom::new(300);
        let [a, b] = [user("t", "a"), user("t", "b")];
        let mut held = room.enter(&a);
        held.grow(300, NOW).await.unwrap();
        assert_eq!(room.enter(&b).grow(10, NOW).await, Err(NoRoom));
        let (mut first, mut second) = (room.enter(&b), room.enter(&b));
        let waiting = async { tokio::join!(first.grow(300, WAIT), second.grow(10, WAIT)) };
        let given_back = async {
            tokio::task::yield_now().await;
            drop(held);
        };
        let (waited, ()) = tokio::join!(waiting, given_back);
        // The first has all of it, so that the second waits in vain.
        assert_eq!(waited, (Ok(()), Err(NoRoom)));
        assert_eq!((first.bytes, second.bytes), (300, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_while_waiting_holds_nothing() {
        let room = WaitingRoom::new(300);
        let mut held = room.enter(&user("t", "a"));
        held.grow(300, NOW).await.unwrap();
        let mut gone = room.enter(&user("t", "b"));
        let growing = gone.grow(100, WAIT);
        assert!(timeout(Duration::from_secs(1), growing).await.is_err());
        // What came for it after it stopped waiting is free when it leaves.
        drop(held);
        drop(gone);
        let mut other = room.enter(&user("t", "c"));
        other.grow(300, NOW).await.unwrap();
    }

    /// A tenant alone, with a room that is no larger than a body.
    #[tokio::test(start_paused = true)]
    async fn one_body_fits_however_small_the_room() {
        let room = WaitingRoom::new(64);
        let mut body = room.enter(&user("t", "a"));
        body.grow(40, NOW).await.unwrap();
        body.grow(70, NOW).await.unwrap();
        assert_eq!(room.enter(&user("t", "a")).grow(1, NOW).await, Err(NoRoom));
        drop(body);
        assert_eq!(room.enter(&user("t", "a")).grow(1, NOW).await, Ok(()));
    }
}
