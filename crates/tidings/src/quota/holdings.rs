//! What tenants hold: how many topics, and how many bytes in them.
//!
//! The rule: no topic is made for a tenant that has all of its own. The counts come from the sweep,
//! which sees every topic, and between two sweeps from what is made, stored and deleted; whatever
//! that misses is at most one sweep old, and errs towards too many.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{journal::TopicInfo, model::Tenant};

/// How much one tenant may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HoldingLimit {
    pub(crate) topics: u64,
    pub(crate) bytes: Option<u64>,
}

/// What all tenants hold. Remembers those that hold something.
#[derive(Debug)]
pub(crate) struct Holdings {
    limit: HoldingLimit,
    tenants: Mutex<HashMap<Tenant, Held>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Held {
    topics: u64,
    bytes: u64,
    /// Topics that requests which are under way may make.
    reserved: u64,
    /// Made and stored since the sweep began that will say how much there was.
    topics_since: u64,
    bytes_since: u64,
}

impl Held {
    const fn is_nothing(&self) -> bool {
        self.topics == 0 && self.bytes == 0 && self.reserved == 0
    }
}

/// Room for topics that a request may make; what it did not make is free again when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    holdings: Arc<Holdings>,
    tenant: Tenant,
    topics: u64,
}

/// A sweep's counts.
#[derive(Debug, Default)]
pub(crate) struct Counted(HashMap<Tenant, (u64, u64)>);

impl Holdings {
    pub(crate) fn new(limit: HoldingLimit) -> Arc<Self> {
        Arc::new(Self { limit, tenants: Mutex::default() })
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<Tenant, Held>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for so many topics more, or for as many as the tenant may have.
    pub(crate) fn room(self: &Arc<Self>, tenant: &Tenant, wanted: u64) -> Room {
        let mut tenants = self.tenants();
        let held = tenants.entry(tenant.clone()).or_default();
        let topics = wanted.min(self.limit.topics.saturating_sub(held.topics + held.reserved));
        held.reserved += topics;
        if held.is_nothing() {
            tenants.remove(tenant);
        }
        drop(tenants);
        Room { holdings: Arc::clone(self), tenant: tenant.clone(), topics }
    }

    /// Whether the tenant may store more.
    pub(crate) fn may_store(&self, tenant: &Tenant) -> bool {
        let Some(most) = self.limit.bytes else { return true };
        self.tenants().get(tenant).is_none_or(|held| held.bytes < most)
    }

    /// Counts bytes that were stored.
    pub(crate) fn stored(&self, tenant: &Tenant, bytes: u64) {
        let mut tenants = self.tenants();
        let held = tenants.entry(tenant.clone()).or_default();
        held.bytes += bytes;
        held.bytes_since += bytes;
    }

    /// Counts a topic that was deleted.
    pub(crate) fn deleted(&self, tenant: &Tenant) {
        if let Some(held) = self.tenants().get_mut(tenant) {
            held.topics = held.topics.saturating_sub(1);
        }
    }

    /// A sweep begins that will see every topic.
    pub(crate) fn begin_count(&self) -> Counted {
        for held in self.tenants().values_mut() {
            (held.topics_since, held.bytes_since) = (0, 0);
        }
        Counted::default()
    }

    /// The sweep has seen every topic.
    pub(crate) fn end_count(&self, counted: Counted) {
        let mut tenants = self.tenants();
        for held in tenants.values_mut() {
            (held.topics, held.bytes) = (held.topics_since, held.bytes_since);
        }
        for (tenant, (topics, bytes)) in counted.0 {
            let held = tenants.entry(tenant).or_default();
            held.topics += topics;
            held.bytes += bytes;
        }
        tenants.retain(|_, held| !held.is_nothing());
    }
}

impl Counted {
    /// Counts a topic that the sweep sees.
    pub(crate) fn add(&mut self, info: &TopicInfo) {
        if info.topic.tenant.is_reserved() {
            return;
        }
        let (topics, bytes) = self.0.entry(info.topic.tenant.clone()).or_default();
        *topics += 1;
        *bytes += info.bytes;
    }
}

impl Room {
    /// For how many topics it is.
    pub(crate) const fn topics(&self) -> u64 {
        self.topics
    }

    /// Counts a topic that was made.
    pub(crate) fn made_one(&mut self) {
        let Some(left) = self.topics.checked_sub(1) else { return };
        self.topics = left;
        let mut tenants = self.holdings.tenants();
        let held = tenants.entry(self.tenant.clone()).or_default();
        held.reserved = held.reserved.saturating_sub(1);
        held.topics += 1;
        held.topics_since += 1;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut tenants = self.holdings.tenants();
        if let Some(held) = tenants.get_mut(&self.tenant) {
            held.reserved = held.reserved.saturating_sub(self.topics);
            if held.is_nothing() {
                tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Epoch, Topic, TopicKey};

    fn holdings(topics: u64, bytes: Option<u64>) -> Arc<Holdings> {
        Holdings::new(HoldingLimit { topics, bytes })
    }

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    fn info(of: &str, name: &str, bytes: u64) -> TopicInfo {
        let key = TopicKey::new(tenant(of), Topic::parse(name).unwrap());
        TopicInfo { bytes, ..TopicInfo::absent(key, Epoch(1)) }
    }

    #[test]
    fn room_is_for_each_tenant_and_what_was_not_made_is_free_again() {
        let holdings = holdings(3, None);
        let (a, b) = (tenant("a"), tenant("b"));
        let mut first = holdings.room(&a, 2);
        assert_eq!(holdings.room(&a, 2).topics(), 1, "requests under way count");
        assert_eq!(holdings.room(&b, 9).topics(), 3);
        first.made_one();
        drop(first);
        let mut rest = holdings.room(&a, 3);
        assert_eq!(rest.topics(), 2);
        (0..3).for_each(|_| rest.made_one());
        drop(rest);
        assert_eq!(holdings.room(&a, 1).topics(), 0);
        holdings.deleted(&a);
        assert_eq!(holdings.room(&a, 2).topics(), 1);
    }

    #[test]
    fn bytes_are_counted_as_they_are_stored() {
        let holdings = holdings(3, Some(100));
        let a = tenant("a");
        holdings.stored(&a, 99);
        assert!(holdings.may_store(&a));
        holdings.stored(&a, 1);
        assert!(!holdings.may_store(&a) && holdings.may_store(&tenant("b")));
    }

    #[test]
    fn a_sweep_corrects_the_counts_and_keeps_what_was_made_meanwhile() {
        let holdings = holdings(3, Some(100));
        let (a, b) = (tenant("a"), tenant("b"));
        holdings.stored(&a, 90);
        holdings.room(&a, 3).made_one();
        let mut counted = holdings.begin_count();
        counted.add(&info("a", "x", 10));
        counted.add(&info("a", "y", 20));
        counted.add(&info("b", "x", 100));
        // Whether the sweep saw this one is not known: it counts.
        holdings.room(&a, 2).made_one();
        holdings.stored(&a, 5);
        holdings.end_count(counted);
        assert_eq!(holdings.room(&a, 1).topics(), 0);
        assert!(holdings.may_store(&a) && !holdings.may_store(&b));
        let counted = holdings.begin_count();
        holdings.end_count(counted);
        assert!(holdings.tenants().is_empty(), "a tenant that holds nothing is forgotten");
    }
}
