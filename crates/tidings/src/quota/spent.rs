//! What holders publish on other nodes: rates are of all nodes together.
//!
//! The rule: nobody waits for another node. Each admits by its own buckets, says twice a second what
//! it admitted, and takes out of its buckets what others say, beyond their bottom if need be: who was
//! too fast on several nodes pays that off, as much of it as nodes can give before they hear of each
//! other. A word is about the last two seconds, so that three of
//! four may be lost, and is counted once however often it comes.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::HOLD;
use crate::settings::Rate;

/// How often a node says what it admitted. Other nodes act on it that much later.
pub(crate) const SAID_EVERY: Duration = Duration::from_millis(500);
/// Intervals that a word is about: this one, and those of the words before it.
const INTERVALS: usize = 4;
/// The time that a word is about.
pub(super) const TOLD_OF: Duration = Duration::from_secs(2);
/// Holders are told in parts by their number, so that a word and the ones before it are about the
/// same holders.
const PARTS: u64 = 16;
/// Holders in one word, which keeps it below the 8 000 bytes of PostgreSQL's notifications. Of more,
/// those are told that published most.
const HOLDERS_MAX: usize = 80;
/// What is below this part of the rate is not told: most holders are far from theirs.
const TOLD_PART: u64 = 32;
/// Parts of other nodes that are remembered: more nodes than any cluster has.
const HEARD_MAX: usize = 16 * 1024;

/// So much of an interval that it is told.
pub(super) fn told_above(rate: Rate) -> u64 {
    let interval = u64::try_from(SAID_EVERY.as_millis()).unwrap_or(u64::MAX);
    rate.per_second.saturating_mul(interval) / 1000 / TOLD_PART
}

/// A holder, and what it was given in each of the last intervals, the newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Amounts(u64, [u32; INTERVALS]);

/// What one node says of some holders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spent {
    interval: u64,
    part: u8,
    users: Vec<Amounts>,
    tenants: Vec<Amounts>,
}

/// What was admitted in one interval, by holder.
type Interval = HashMap<u64, u64>;

/// What this node says, and what it heard of others.
#[derive(Debug, Default)]
pub(super) struct Spending {
    mine: Mutex<Mine>,
    /// By node and part: the last interval, and until when that counts.
    heard: Mutex<HashMap<(u64, u8), (u64, Instant)>>,
    /// How many nodes those are, when this node spoke last.
    others: AtomicU32,
}

#[derive(Debug, Default)]
struct Mine {
    interval: u64,
    /// Users' and tenants', the newest interval first.
    last: VecDeque<[Interval; 2]>,
}

impl Spending {
    /// Takes in what users and tenants were given since the last time, and gives the words to say.
    pub(super) fn say(&self, users: Interval, tenants: Interval) -> Vec<Spent> {
        let now = Instant::now();
        {
            let mut heard = self.heard();
            heard.retain(|_, (_, until)| now < *until);
            let others: HashSet<u64> = heard.keys().map(|(node, _)| *node).collect();
            self.others.store(u32::try_from(others.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        let mut mine = self.mine.lock().unwrap_or_else(PoisonError::into_inner);
        mine.interval += 1;
        mine.last.push_front([users, tenants]);
        mine.last.truncate(INTERVALS);
        let mut parts: BTreeMap<u8, [Vec<Amounts>; 2]> = BTreeMap::new();
        for kind in [0, 1] {
            for amounts in amounts(&mine.last, kind) {
                let part = u8::try_from(amounts.0 % PARTS).unwrap_or_default();
                let told = parts.entry(part).or_default();
                told.get_mut(kind).map(|told| told.push(amounts)).unwrap_or_default();
            }
        }
        let word = |(part, told): (u8, [Vec<Amounts>; 2])| {
            let [users, tenants] = told.map(most);
            Spent { interval: mine.interval, part, users, tenants }
        };
        parts.into_iter().map(word).collect()
    }

    /// Takes note of a word; returns how many of its intervals are new.
    fn news(&self, node: u64, word: &Spent) -> usize {
        let mut heard = self.heard();
        let of = (node, word.part);
        if heard.len() >= HEARD_MAX && !heard.contains_key(&of) {
            return 0;
        }
        let known = heard.get(&of).map(|(interval, _)| *interval);
        let new = known.map_or(u64::MAX, |known| word.interval.saturating_sub(known));
        if new > 0 {
            heard.insert(of, (word.interval, Instant::now() + HOLD));
        }
        usize::try_from(new).unwrap_or(INTERVALS).min(INTERVALS)
    }

    /// What a word says that was not known: users and tenants, and how much they were given.
    pub(super) fn hear(&self, node: u64, word: &Spent) -> [Vec<(u64, u64)>; 2] {
        let new = self.news(node, word);
        [&word.users, &word.tenants].map(|holders| {
            let spent = holders.iter().take(HOLDERS_MAX).map(|Amounts(holder, amounts)| {
                (*holder, amounts.iter().take(new).map(|amount| u64::from(*amount)).sum())
            });
            spent.filter(|(_, amount)| *amount > 0).collect()
        })
    }

    /// How many other nodes said lately what they gave.
    pub(super) fn others(&self) -> u32 {
        self.others.load(Ordering::Relaxed)
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<(u64, u8), (u64, Instant)>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everybody of a kind who was given something in the last intervals.
fn amounts(last: &VecDeque<[Interval; 2]>, kind: usize) -> Vec<Amounts> {
    let mut all: HashMap<u64, [u32; INTERVALS]> = HashMap::new();
    for (age, intervals) in last.iter().enumerate() {
        for (holder, amount) in intervals.get(kind).into_iter().flatten() {
            if let Some(at) = all.entry(*holder).or_default().get_mut(age) {
                *at = u32::try_from(*amount).unwrap_or(u32::MAX);
            }
        }
    }
    all.into_iter().map(|(holder, amounts)| Amounts(holder, amounts)).collect()
}

/// Those who were given most, as many as fit into half a word.
fn most(mut holders: Vec<Amounts>) -> Vec<Amounts> {
    let total = |amounts: &Amounts| amounts.1.iter().map(|amount| u64::from(*amount)).sum::<u64>();
    holders.sort_by_key(|amounts| (std::cmp::Reverse(total(amounts)), amounts.0));
    holders.truncate(HOLDERS_MAX / 2);
    holders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(amount: u64) -> Interval {
        Interval::from([(16, amount)])
    }

    fn none() -> Interval {
        Interval::new()
    }

    fn users(there: &Spending, word: &Spent) -> Vec<(u64, u64)> {
        let [users, tenants] = there.hear(7, word);
        assert_eq!(tenants, []);
        users
    }

    /// Broken on purpose: with all intervals of each word taken in, and with the newest alone.
    #[tokio::test(start_paused = true)]
    async fn a_word_that_is_lost_doubled_or_late_counts_once() {
        let (here, there) = (Spending::default(), Spending::default());
        let words: Vec<Spent> = (1..=6).flat_map(|n| here.say(some(n), none())).collect();
        assert_eq!(users(&there, &words[0]), [(16, 1)]);
        assert_eq!(users(&there, &words[0]), []);
        // Three were lost.
        assert_eq!(users(&there, &words[4]), [(16, 2 + 3 + 4 + 5)]);
        assert_eq!(users(&there, &words[2]), []);
        assert_eq!(users(&there, &words[5]), [(16, 6)]);
        // It goes on to be told while it may have been lost, and no longer.
        let after: Vec<Spent> = (0..5).flat_map(|_| here.say(none(), none())).collect();
        assert_eq!(after.len(), INTERVALS - 1);
        assert_eq!(users(&there, &after[2]), []);
        // Another node's are another's.
        assert_eq!(there.hear(8, &words[0]), [vec![(16, 1)], vec![]]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_said_and_remembered_is_bounded() {
        let here = Spending::default();
        let crowd =
            |amount: u64| -> Interval { (0..10_000).map(|n| (u64::MAX - n, amount - n)).collect() };
        let mut words = Vec::new();
        for _ in 0..INTERVALS {
            words = here.say(crowd(u64::from(u32::MAX)), crowd(u64::from(u32::MAX)));
        }
        assert_eq!(words.len() as u64, PARTS);
        for word in &words {
            assert_eq!((word.users.len(), word.tenants.len()), (HOLDERS_MAX / 2, HOLDERS_MAX / 2));
            let is_most = |Amounts(holder, _): &Amounts| u64::MAX - holder < 1_000;
            assert!(word.users.iter().all(is_most), "{word:?}");
            // Base64 makes a third more of it.
            assert!(serde_json::to_string(word).unwrap().len() < 5_900);
        }
        for node in 0..HEARD_MAX as u64 * 2 {
            here.hear(node, &words[0]);
        }
        assert_eq!(here.heard().len(), HEARD_MAX);
        tokio::time::advance(HOLD).await;
        here.say(none(), none());
        assert_eq!(here.heard().len(), 0);
    }
}
