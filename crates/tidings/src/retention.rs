//! Retention: busy topics are trimmed as they grow, all topics now and then for age and ttl.
//!
//! The rule: trimming only ever moves a topic's `earliest` up; readers learn of it from the journal.

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
/// Trims until the hub is shut down.
pub(crate) async fn run(hub: Hub, mut grown: mpsc::Receiver<TopicKey>) {
    let mut sweep = tokio::time::interval(hub.settings().retention_sweep);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let result = tokio::select! {
            // Not by chance: a simulated run repeated is the same run.
            biased;
            _ = sweep.tick() => hub.sweep().await,
            Some(topic) = grown.recv() => hub.retain_now(&topic).await,
        };
        if let Err(error) = result {
            tracing::warn!(%error, "retention did not run for all topics; trying again");
        }
    }
}

/// How many events a topic grows by until it is looked at. By default 1 000; a topic with bounds of
/// its own is looked at as often.
pub(crate) fn grown_by(retention: &Retention) -> u64 {
    (retention.events.unwrap_or(10_000) / SLACK).max(1)
}

impl Hub {
    /// Applies every topic's retention and ttl.
    ///
    /// # Errors
    /// The journal's, also if only a part of it failed: the topics of the others are done, the rest
    /// next time.
    pub async fn sweep(&self) -> Result<(), JournalError> {
        let (mut after, mut failed) = (None, None);
        let mut oldest = self.clock().now();
        let mut counted = self.quotas().holdings.begin_count();
        loop {
            let query =
                TopicQuery { tenant: None, prefix: String::new(), after, limit: SWEEP_PAGE };
            let page = self.journal().topics(query).await;
            failed = failed.or(page.missing);
            for info in &page.items {
                counted.add(info);
                match self.retain_and_date(info).await {
                    Ok(dated) => oldest = oldest.min(dated.unwrap_or(oldest)),
                    // What is wrong with one topic, which was logged, keeps no other from it.
                    Err(JournalError::Broken(_)) => {}
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            match page.items.into_iter().next_back() {
                Some(last) => after = Some(last.topic),
                None => break,
            }
        }
        let damaged = i64::try_from(self.journal().damaged_places()).unwrap_or(i64::MAX);
        self.metrics().journal_damaged_places.set(damaged);
        if let Some(error) = failed {
            // What is counted here is of all topics: without some, it stays as it was.
            return Err(error);
        }
        let age = oldest.until(self.clock().now()).as_secs();
        self.metrics().oldest_event_age.set(i64::try_from(age).unwrap_or(i64::MAX));
        self.quotas().holdings.end_count(counted);
        Ok(())
    }

    /// When the first event was recorded that the topic still holds.
    async fn oldest(&self, info: &TopicInfo) -> Result<Option<Timestamp>, JournalError> {
        if info.head.earliest == info.head.tail {
            return Ok(None);
        }
        if info.oldest_at != Timestamp::default() {
            return Ok(Some(info.oldest_at));
        }
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
        if self.retain(info).await? {
            return self.oldest(&self.journal().describe(&info.topic).await?).await;
        }
        self.oldest(info).await
    }

    async fn retain_now(&self, topic: &TopicKey) -> Result<(), JournalError> {
        let info = self.journal().describe(topic).await?;
        self.retain(&info).await.map(drop)
    }

    /// Returns whether the topic has changed since.
    async fn retain(&self, info: &TopicInfo) -> Result<bool, JournalError> {
        let now = self.clock().now();
        let ttl = info.properties.ttl.filter(|ttl| info.written_at.plus(*ttl) <= now);
        if ttl.is_some() {
            // Written or given other properties since: it is looked at anew next time.
            let unchanged = DeleteIf::Unchanged(Box::new(info.clone()));
            return self.topics().delete(&info.topic, unchanged).await.map(|_| true);
        }
        let retention = info.properties.retention.unwrap_or(self.settings().retention);
        if info.head.earliest == info.head.tail || !exceeds(info, &retention, now) {
            return Ok(false);
        }
        self.trim(&info.topic, &retention).await.map(|head| head != info.head)
    }
}

/// Whether trimming may find something.
fn exceeds(info: &TopicInfo, retention: &Retention, now: Timestamp) -> bool {
    retention.age.is_some_and(|age| info.oldest_at.plus(age) <= now)
        || retention.events.is_some_and(|most| info.events > most)
        || retention.bytes.is_some_and(|most| info.bytes > most)
}
