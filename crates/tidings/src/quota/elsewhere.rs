//! Places that holders have on other nodes.
//!
//! The rule: each node says how many each of its holders has, when that changes and again every few
//! seconds, and what was said is forgotten after a while. So nothing has to be given back by a node
//! that died, and a word that was lost is said again.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hash, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{sync::Notify, time::Instant};

/// How long a node's word counts: three times as long as until it is said again.
pub(crate) const HOLD: Duration = Duration::from_secs(15);

/// Somebody whose places are counted.
pub(crate) trait Holder {
    /// A name that no holder of another kind has.
    fn name(&self) -> String;
}

/// A holder and how many places it has on a node; 0: none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held(u64, u32);

/// What other nodes said, and what they are to be told.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    is_alone: bool,
    /// Numbers of holders that no other node has to know.
    own: RandomState,
    others: Mutex<HashMap<u64, Vec<Word>>>,
    mine: Mutex<Mine>,
    changed: Notify,
}

/// One node's word on one holder.
#[derive(Debug)]
struct Word {
    node: u64,
    count: u32,
    until: Instant,
}

#[derive(Debug, Default)]
struct Mine {
    counts: HashMap<u64, u32>,
    unsaid: HashMap<u64, u32>,
}

impl Elsewhere {
    pub(crate) fn new(is_alone: bool) -> Self {
        let (others, mine) = (Mutex::default(), Mutex::default());
        Self { is_alone, own: RandomState::new(), others, mine, changed: Notify::new() }
    }

    /// A number for a holder: the same on every node, unless this one is alone.
    pub(super) fn number(&self, holder: &(impl Holder + Hash)) -> u64 {
        if self.is_alone { self.own.hash_one(holder) } else { digest(holder) }
    }

    /// How many places the holder has on other nodes.
    pub(super) fn of(&self, holder: &impl Holder) -> usize {
        if self.is_alone {
            return 0;
        }
        let now = Instant::now();
        let others = self.others();
        let words = others.get(&digest(holder)).map_or(&[][..], Vec::as_slice);
        let counts = words.iter().filter(|word| now < word.until).map(|word| word.count as usize);
        counts.sum()
    }

    /// Says how many it has here.
    pub(super) fn tell(&self, holder: &impl Holder, count: usize) {
        if self.is_alone {
            return;
        }
        let (holder, count) = (digest(holder), u32::try_from(count).unwrap_or(u32::MAX));
        let mut mine = self.mine();
        match count {
            0 => mine.counts.remove(&holder),
            count => mine.counts.insert(holder, count),
        };
        mine.unsaid.insert(holder, count);
        drop(mine);
        self.changed.notify_one();
    }

    /// Waits until there is something to say.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What changed since it was asked for the last time.
    pub(crate) fn unsaid(&self) -> Vec<Held> {
        std::mem::take(&mut self.mine().unsaid)
            .into_iter()
            .map(|(h, count)| Held(h, count))
            .collect()
    }

    /// Everything there is here. Forgets what others said too long ago.
    pub(crate) fn everything(&self) -> Vec<Held> {
        let now = Instant::now();
        self.others().retain(|_, words| {
            words.retain(|word| now < word.until);
            !words.is_empty()
        });
        self.mine().counts.iter().map(|(holder, count)| Held(*holder, *count)).collect()
    }

    /// Takes in what another node says.
    pub(crate) fn hear(&self, node: u64, said: &[Held]) {
        let until = Instant::now() + HOLD;
        let mut others = self.others();
        for Held(holder, count) in said {
            let words = others.entry(*holder).or_default();
            words.retain(|word| word.node != node);
            if *count > 0 {
                words.push(Word { node, count: *count, until });
            }
            if words.is_empty() {
                others.remove(holder);
            }
        }
    }

    fn others(&self) -> MutexGuard<'_, HashMap<u64, Vec<Word>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mine(&self) -> MutexGuard<'_, Mine> {
        self.mine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number for a name: from a hash that nobody can aim at, so that nobody takes another's places.
fn digest(holder: &impl Holder) -> u64 {
    let hash = Sha256::digest(holder.name());
    hash.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::Places, *};

    #[tokio::test(start_paused = true)]
    async fn places_on_other_nodes_count_until_they_are_given_back_or_their_node_is_silent() {
        let (here, there) = (Arc::new(Elsewhere::new(false)), Arc::new(Elsewhere::new(false)));
        let at_home = Places::of_all_nodes(2, &here);
        let abroad = Places::of_all_nodes(2, &there);
        let away = abroad.take("a").unwrap();
        here.hear(7, &there.unsaid());
        let first = at_home.take("a").unwrap();
        assert!(at_home.take("a").is_none(), "one there and one here");
        assert!(at_home.take("b").is_some());
        // A word that was lost is said again.
        here.hear(7, &there.everything());
        drop(away);
        assert!(at_home.take("a").is_none(), "it has not been said yet");
        here.hear(7, &there.unsaid());
        let second = at_home.take("a").unwrap();
        drop((first, second));
        let _away = [abroad.take("a").unwrap(), abroad.take("a").unwrap()];
        here.hear(7, &there.unsaid());
        assert!(at_home.take("a").is_none());
        tokio::time::advance(HOLD).await;
        assert!(at_home.take("a").is_some(), "a node that says nothing any more is forgotten");
        here.everything();
        assert!(here.others().is_empty());
    }

    #[test]
    fn a_node_that_is_alone_remembers_nothing() {
        let alone = Arc::new(Elsewhere::new(true));
        let places = Places::of_all_nodes(2, &alone);
        let _taken = places.take("a").unwrap();
        assert_eq!((alone.unsaid(), alone.everything()), (Vec::new(), Vec::new()));
    }
}
