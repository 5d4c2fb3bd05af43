//! Retention: busy topics are trimmed as they grow, all topics now and then for age and ttl.
//!
//! The rule: trimming only ever moves a topic's `earliest` up; readers learn of it from the journal.

use std::collections::HashMap;

use tokio::sync::mpsc;

use crate::{
    hub::Hub,
    journal::{DeleteIf, Head, JournalError, PageLimit, Retention, TopicInfo, TopicQuery},
    model::{Timestamp, TopicKey},
};

/// A topic is trimmed after this share of what it may keep was appended: bounds the excess.
const SLACK: u64 = 10;
/// Topics looked at before others get their turn.
const SWEEP_PAGE: usize = 500;
/// Busy topics remembered at once; one that does not fit waits for the sweep.
const BUSY_MAX: usize = 65_536;

/// Trims until the hub is shut down.
pub(crate) async fn run(hub: Hub, mut appended: mpsc::Receiver<(TopicKey, u64)>) {
    let mut counts: HashMap<TopicKey, u64> = HashMap::new();
    let mut sweep = tokio::time::interval(hub.settings().retention_sweep);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let result = tokio::select! {
            // Not by chance: a simulated run repeated is the same run.
            biased;
            _ = sweep.tick() => {
                counts.clear();
                hub.sweep().await
            }
            Some((topic, count)) = appended.recv() => {
                grown(&hub, &mut counts, topic, count).await
            }
        };
        if let Err(error) = result {
            tracing::warn!(%error, "retention did not run; trying again");
        }
    }
}

/// Counts what a topic got, and trims it when that is a share of what it may keep.
async fn grown(
    hub: &Hub,
    counts: &mut HashMap<TopicKey, u64>,
    topic: TopicKey,
    count: u64,
) -> Result<(), JournalError> {
    if counts.len() >= BUSY_MAX && !counts.contains_key(&topic) {
        return Ok(());
    }
    let grown = counts.entry(topic.clone()).or_default();
    *grown += count;
    // By default 1 000 events; a topic with bounds of its own is looked at as often.
    if *grown < (hub.settings().retention.events.unwrap_or(10_000) / SLACK).max(1) {
        return Ok(());
    }
    counts.remove(&topic);
    let info = hub.journal().describe(&topic).await?;
    hub.retain(&info).await
}

impl Hub {
    /// Applies every topic's retention and ttl.
    ///
    /// # Errors
    /// The journal's; the rest is done next time.
    pub async fn sweep(&self) -> Result<(), JournalError> {
        let mut after = None;
        let mut oldest = self.clock().now();
        let mut counted = self.quotas().holdings.begin_count();
        loop {
            let query =
                TopicQuery { tenant: None, prefix: String::new(), after, limit: SWEEP_PAGE };
            let page = self.journal().topics(query).await?;
            for info in &page {
                counted.add(info);
                match self.retain_and_date(info).await {
                    // What is wrong with one topic, which was logged, keeps no other from it.
                    Err(JournalError::Broken(_)) => {}
                    dated => oldest = oldest.min(dated?.unwrap_or(oldest)),
                }
            }
            match page.into_iter().next_back() {
                Some(last) => after = Some(last.topic),
                None => break,
            }
        }
        let age = oldest.until(self.clock().now()).as_secs();
        self.metrics().oldest_event_age.set(i64::try_from(age).unwrap_or(i64::MAX));
        self.quotas().holdings.end_count(counted);
        let damaged = i64::try_from(self.journal().damaged_places()).unwrap_or(i64::MAX);
        self.metrics().journal_damaged_places.set(damaged);
        Ok(())
    }

    /// When the first event of the topic's log was recorded that is still held.
    async fn oldest(&self, info: &TopicInfo) -> Result<Option<Timestamp>, JournalError> {
        let first = PageLimit { events: 1, bytes: 0 };
        let page = self.journal().read(&info.topic, info.head.floor().offset, first).await?;
        Ok(page.events.first().map(|event| event.recorded_at))
    }

    /// Trims a topic now, to what this retention allows; readers that come later learn of it.
    /// Returns where the topic stands then.
    ///
    /// # Errors
    /// The journal's.
    pub async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
    ) -> Result<Head, JournalError> {
        let head = self.journal().trim(topic, retention, self.clock().now()).await?;
        self.topics().trimmed(topic, head);
        Ok(head)
    }

    /// Applies a topic's retention and ttl, and returns when its oldest event was recorded.
    async fn retain_and_date(&self, info: &TopicInfo) -> Result<Option<Timestamp>, JournalError> {
        self.retain(info).await?;
        self.oldest(info).await
    }

    async fn retain(&self, info: &TopicInfo) -> Result<(), JournalError> {
        let now = self.clock().now();
        let ttl = info.properties.ttl.filter(|ttl| info.written_at.plus(*ttl) <= now);
        if ttl.is_some() {
            // Written or given other properties since: it is looked at anew next time.
            let unchanged = DeleteIf::Unchanged(Box::new(info.clone()));
            return self.topics().delete(&info.topic, unchanged).await.map(drop);
        }
        let retention = info.properties.retention.unwrap_or(self.settings().retention);
        if info.head.earliest == info.head.tail || !exceeds(info, &retention) {
            return Ok(());
        }
        self.trim(&info.topic, &retention).await.map(drop)
    }
}

/// Whether trimming may find something: age is not known without looking.
fn exceeds(info: &TopicInfo, retention: &Retention) -> bool {
    retention.age.is_some()
        || retention.events.is_some_and(|most| info.events > most)
        || retention.bytes.is_some_and(|most| info.bytes > most)
}
