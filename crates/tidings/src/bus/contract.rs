//! The suite that every bus adapter passes while its server works.
//!
//! The rule: an adapter is instantiated by one line, `bus_contract!(name, factory)`. What a broken
//! server does to it is shown by tests that break the server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]

use std::{any::Any, collections::HashSet, fmt, sync::Arc, time::Duration};

use super::{Announcement, Bus, Heard};
use crate::model::{
    Class, Epoch, EventType, Fingerprint, JsonText, NewEvent, Offset, Position, Tenant, Timestamp,
    Topic, TopicKey,
};

/// Longer than any working bus takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two nodes' ends of one bus, which nobody else uses.
pub struct Pair {
    one: Arc<dyn Bus>,
    other: Arc<dyn Bus>,
    _kept: Option<Box<dyn Any + Send>>,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("one", &self.one).field("other", &self.other).finish()
    }
}

impl Pair {
    /// Two ends.
    pub fn new(one: Arc<dyn Bus>, other: Arc<dyn Bus>) -> Self {
        Self { one, other, _kept: None }
    }

    /// Keeps something alive as long as the bus, such as its server.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send) -> Self {
        self._kept = Some(Box::new(kept));
        self
    }
}

/// Instantiates every case of the contract for one adapter.
///
/// `bus_contract!(local, pair)`, where `pair` is an `async fn() -> contract::Pair`, makes a module
/// `local` of tests.
#[macro_export]
macro_rules! bus_contract {
    ($adapter:ident, $factory:expr) => {
        $crate::bus_contract! { @each $adapter, $factory,
            what_one_says_of_a_followed_topic_the_other_hears,
            whoever_begins_to_follow_is_told_from_when_on,
            events_that_no_journal_keeps_arrive_whole,
            large_events_arrive_or_are_counted_as_dropped,
            topics_of_all_tenants_are_kept_apart,
            many_topics_are_followed_at_once,
            waiting_for_the_next_loses_nothing_when_it_is_dropped,
            a_topic_followed_again_is_heard_again,
            a_closed_bus_says_so_and_nobody_panics,
        }
    };
    (@each $adapter:ident, $factory:expr, $($case:ident,)*) => {
        mod $adapter {
            use super::*;

            $(
                #[tokio::test]
                async fn $case() {
                    $crate::bus::contract::$case($factory).await;
                }
            )*
        }
    };
}

fn topic(tenant: &str, name: &str) -> TopicKey {
    TopicKey::new(Tenant::parse(tenant).unwrap(), Topic::parse(name).unwrap())
}

fn advanced(topic: &TopicKey, offset: u64) -> Announcement {
    let end = Position {
        epoch: Epoch(u32::MAX),
        offset: Offset(offset),
        fingerprint: Fingerprint(u32::MAX - 1),
    };
    Announcement::Advanced { topic: topic.clone(), end }
}

fn ephemeral(topic: &TopicKey, text: &str) -> Announcement {
    let mut event = NewEvent::new(EventType::parse("user.typing").unwrap());
    event.class = Class::Ephemeral;
    let event = event.data(JsonText::string(text));
    let at = Timestamp::from_millis(1_700_000_000_000);
    Announcement::Ephemeral { topic: topic.clone(), event: Arc::new(event), at, node: u64::MAX }
}

async fn heard(bus: &dyn Bus) -> Heard {
    let heard = tokio::time::timeout(PATIENCE, bus.heard()).await;
    heard.expect("nothing was heard")
}

/// Follows a topic and waits until that has taken effect.
async fn follow(bus: &dyn Bus, topic: &TopicKey) {
    bus.follow(topic);
    while heard(bus).await != Heard::Missed(Some(topic.clone())) {}
}

/// Waits until something that was announced is heard, whatever else is.
async fn hears(bus: &dyn Bus, announcement: &Announcement) {
    while heard(bus).await != Heard::Announced(announcement.clone()) {}
}

/// Both ways.
pub async fn what_one_says_of_a_followed_topic_the_other_hears<F>(pair: impl Fn() -> F)
where
    F: Future<Output = Pair>,
{
    let pair = pair().await;
    let a = topic("t", "a");
    follow(&*pair.other, &a).await;
    follow(&*pair.one, &a).await;
    for offset in 1..=3 {
        pair.one.announce(advanced(&a, offset));
        hears(&*pair.other, &advanced(&a, offset)).await;
    }
    pair.other.announce(Announcement::Changed { topic: a.clone() });
    hears(&*pair.one, &Announcement::Changed { topic: a }).await;
}

/// What was said before is unknown, and the node is told to look.
pub async fn whoever_begins_to_follow_is_told_from_when_on<F>(pair: impl Fn() -> F)
where
    F: Future<Output = Pair>,
{
    let pair = pair().await;
    let a = topic("t", "a");
    pair.one.announce(advanced(&a, 1));
    follow(&*pair.other, &a).await;
    pair.one.announce(advanced(&a, 2));
    hears(&*pair.other, &advanced(&a, 2)).await;
}

/// Any text, with the node that took it.
pub async fn events_that_no_journal_keeps_arrive_whole<F>(pair: impl Fn() -> F)
where
    F: Future<Output = Pair>,
{
    let pair = pair().await;
    let a = topic("t", "$a/b~c:d@e.f-g_h");
    follow(&*pair.other, &a).await;
    let event = ephemeral(&a, "line\nfeed \0 nul ' quote \" \u{1f980} end");
    pair.one.announce(event.clone());
    hears(&*pair.other, &event).await;
}

/// 64 KiB is the largest event by default. What a bus cannot carry it drops, knowingly, and goes on.
pub async fn large_events_arrive_or_are_counted_as_dropped<F>(pair: impl Fn() -> F)
where
    F: Future<Output = Pair>,
{
    let pair = pair().await;
    let a = topic("t", "a");
    follow(&*pair.other, &a).await;
    let large = ephemeral(&a, &"x".repeat(65_000));
    pair.one.announce(large.clone());
    pair.one.announce(advanced(&a, 1));
    let mut arrived = false;
    loop {
        let heard = heard(&*pair.other).await;
        arrived |= heard == Heard::Announced(large.clone());
        if heard == Heard::Announced(advanced(&a, 1)) {
            break;
        }
    }
    assert!(arrived || pair.one.dropped() == 1, "dropped {}", pair.one.dropped());
}

/// A name says nothing about its tenant.
pub async fn topics_of_all_tenants_are_kept_apart<F>(pair: impl Fn() -> F)
where
    F: Future<Output = Pair>,
{
    let pair = pair().await;
    let (mine, hubs) = (topic("t", "a/b"), topic("~hub", "a/b"));
    follow(&*pair.other, &mine).await;
    follow(&*pair.other, &hubs).await;
    pair.one.announce(advanced(&hubs, 1));
    pair.one.announce(advanced(&mine, 2));
    hears(&*pair.other, &advanced(&hubs, 1)).await;
    hears(&*pair.other, &advanced(&mine, 2)).await;
}

/// Some hundred.
pub async fn many_topics_are_followed_at_once<F>(pair: impl Fn() -> F)
where
    F: Future<Output = Pair>,
{
    let pair = pair().await;
    let topics: Vec<TopicKey> = (0..300).map(|n| topic("t", &format!("user/{n}"))).collect();
    for topic in &topics {
        pair.other.follow(topic);
    }
    let mut left: HashSet<&TopicKey> = topics.iter().collect();
    while !left.is_empty() {
        if let Heard::Missed(Some(topic)) = heard(&*pair.other).await {
            left.remove(&topic);
        }
    }
    for topic in &topics {
        pair.one.announce(advanced(topic, 1));
    }
    let mut left: HashSet<&TopicKey> = topics.iter().collect();
    while !left.is_empty() {
        if let Heard::Announced(announcement) = heard(&*pair.other).await {
            left.remove(announcement.topic());
        }
    }
}

/// As one branch of a `select!` it is dropped all the time.
pub async fn waiting_for_the_next_loses_nothing_when_it_is_dropped<F>(pair: impl Fn() -> F)
where
    F: Future<Output = Pair>,
{
    let pair = pair().await;
    let a = topic("t", "a");
    follow(&*pair.other, &a).await;
    let mut left: HashSet<u64> = (1..=20).collect();
    for offset in 1..=20 {
        // Polled once and dropped.
        let polled = futures_util::FutureExt::now_or_never(pair.other.heard());
        if let Some(Heard::Announced(Announcement::Advanced { end, .. })) = polled {
            left.remove(&end.offset.0);
        }
        pair.one.announce(advanced(&a, offset));
    }
    while !left.is_empty() {
        if let Heard::Announced(Announcement::Advanced { end, .. }) = heard(&*pair.other).await {
            left.remove(&end.offset.0);
        }
    }
}

/// Readers go and come.
pub async fn a_topic_followed_again_is_heard_again<F>(pair: impl Fn() -> F)
where
    F: Future<Output = Pair>,
{
    let pair = pair().await;
    let a = topic("t", "a");
    for round in 1..=3 {
        follow(&*pair.other, &a).await;
        pair.one.announce(advanced(&a, round));
        hears(&*pair.other, &advanced(&a, round)).await;
        pair.other.unfollow(&a);
    }
}

/// Shutting down is in any order.
pub async fn a_closed_bus_says_so_and_nobody_panics<F>(pair: impl Fn() -> F)
where
    F: Future<Output = Pair>,
{
    let pair = pair().await;
    assert_eq!(pair.one.failure(), None);
    pair.one.close().await;
    assert!(pair.one.failure().is_some());
    pair.one.follow(&topic("t", "a"));
    pair.one.unfollow(&topic("t", "a"));
    pair.one.announce(advanced(&topic("t", "a"), 1));
    pair.one.close().await;
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_macro_names_every_case() {
        let text = include_str!("contract.rs");
        for line in text.lines() {
            if let Some(case) = line.strip_prefix("pub async fn ") {
                let name = case.split(['(', '<']).next().unwrap();
                assert!(
                    text.contains(&format!("            {name},")),
                    "{name} is not in the list"
                );
            }
        }
    }
}
