//! The journal in Redis (7 or later) or Valkey: topics that any number of hubs share.
//!
//! The rule: one script does all of a change, in the order in which Redis runs scripts: judges it,
//! assigns offsets, stores, trims what has to go and announces. What hubs know beside is never
//! trusted: a server is looked at before it is used (`link.rs`), and a record by its checksum. See
//! `docs/adr/0009-redis-journal.md`, and for clusters `0015-redis-cluster.md`.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use self::{
    answer::{Answer, Looked},
    append::{Answered, Packed},
    keys::{GROUPS, deletions_field, group_of, name},
    known::Said,
    link::By,
    links::Links,
    script::Script,
};
use super::{
    Appended, Batch, Change, DeleteIf, Due, DueKind, Durability, Found, Head, Journal,
    JournalError, JournalSettings, Judged, Locate, Page, PageLimit, Refusal, Retention, StateQuery,
    TopicInfo, TopicQuery, page::Paging,
};
use crate::{
    clock::{Clock, SystemClock},
    model::{Offset, Timestamp, TopicKey},
};

mod answer;
mod append;
mod cluster;
mod indexes;
mod keys;
mod known;
mod layout;
mod link;
mod links;
mod options;
mod script;
mod server;
mod topology;

pub use self::options::RedisOptions;
pub(crate) use self::{keys::Keys, options::Endpoint};

/// How often a batch is made again because its topic's time had moved on. Only hubs whose clocks
/// differ make it happen at all.
const LATER_MAX: u32 = 8;
/// How often a trim goes on: so many thousand events, after which the next trim goes on.
const TRIMS_MAX: usize = 1000;
/// Events that a place is looked for among: far more than anybody reads back by count.
const LATEST_MAX: u64 = 1 << 40;

/// A journal in Redis.
#[derive(Debug)]
pub struct RedisJournal {
    links: Links,
    settings: JournalSettings,
    clock: Arc<dyn Clock>,
}

impl RedisJournal {
    /// Connects to the server, or to all masters of a cluster, and looks at what is there.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] if the server does not answer or is no master now,
    /// [`JournalError::Broken`] if it never will do: wrong URL or password, too old, or evicting.
    pub async fn open(
        options: RedisOptions,
        settings: JournalSettings,
    ) -> Result<Arc<Self>, JournalError> {
        Self::open_with_clock(options, settings, Arc::new(SystemClock)).await
    }

    /// Connects with a clock, which says when topics without events are created.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with_clock(
        options: RedisOptions,
        settings: JournalSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, JournalError> {
        Ok(Arc::new(Self { links: Links::open(&options).await?, settings, clock }))
    }

    async fn call(
        &self,
        topic: &TopicKey,
        by: By,
        script: Script,
        fill: impl Fn(&mut redis::Cmd) + Send + Sync,
    ) -> Result<(Answer, Said), JournalError> {
        let keys = [self.links.keys().topic(topic)];
        let field = deletions_field(topic);
        let answer = self.links.call(by, script, &keys, |cmd| {
            cmd.arg(&field);
            fill(cmd);
        });
        let (answer, said) = answer.await?;
        Ok((Answer::of(answer)?, said))
    }

    /// Reads the head of a topic, and notes what it says of the topic's group.
    fn looked(
        &self,
        topic: &TopicKey,
        answer: &mut Answer,
        said: &Said,
    ) -> Result<Looked, JournalError> {
        let looked = Looked::read(answer)?;
        self.links.note(group_of(topic), looked.group_epoch, looked.count, said);
        Ok(looked)
    }

    /// A topic as it is.
    async fn seen(&self, topic: &TopicKey) -> Result<Looked, JournalError> {
        let describe = |cmd: &mut redis::Cmd| _ = cmd.arg("describe").arg(deletions_field(topic));
        let by = By::Reading(group_of(topic));
        let (mut answer, said) = self.call(topic, by, Script::Look, describe).await?;
        self.looked(topic, &mut answer, &said)
    }

    async fn page(
        &self,
        topic: &TopicKey,
        what: &'static str,
        query: &StateQuery,
    ) -> Result<Page, JournalError> {
        let StateQuery { prefix, after, until, limit } = query;
        let answer = self.call(topic, By::Reading(group_of(topic)), Script::Read, |cmd| {
            cmd.arg(what).arg(after.0).arg(until.0).arg(prefix);
            cmd.arg(limit.events).arg(limit.bytes);
        });
        let (mut answer, said) = answer.await?;
        let head = self.looked(topic, &mut answer, &said)?.head;
        let (at_after, at_until) = (answer.print_if_known()?, answer.print_if_known()?);
        let mut paging = Paging::new(*limit);
        for event in append::events(topic, answer.list()?)? {
            if paging.take(event).is_break() {
                break;
            }
        }
        paging.until_fingerprint = at_until;
        Ok(paging.finish(head, *after, at_after, *until))
    }

    async fn change(
        &self,
        topic: &TopicKey,
        fill: impl Fn(&mut redis::Cmd) + Send + Sync,
    ) -> Result<(Looked, Changed), JournalError> {
        let group = group_of(topic);
        let (mut answer, said) =
            self.call(topic, By::Changing(group), Script::Change, fill).await?;
        let looked = self.looked(topic, &mut answer, &said)?;
        let changed = match answer.number()? {
            0 => Changed::Done,
            1 => Changed::Refused(Refusal::NotOwner),
            2 => Changed::Refused(Refusal::Changed),
            3 => Changed::NotThere,
            4 => Changed::More,
            _ => return Err(answer::unexpected()),
        };
        Ok((looked, changed))
    }
}

/// What became of a change.
enum Changed {
    Done,
    Refused(Refusal),
    /// There is no such topic.
    NotThere,
    /// As much as one call does was done.
    More,
}

#[async_trait]
impl Journal for RedisJournal {
    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError> {
        let group = group_of(topic);
        let keys = [self.links.keys().topic(topic)];
        let mut now = batch.now;
        for attempt in 0..LATER_MAX {
            let packed = Packed::new(topic, &batch, now)?;
            let fill = |cmd: &mut redis::Cmd| packed.fill(cmd, &self.settings);
            let by = By::Changing(group);
            let (answer, said) = self.links.call(by, Script::Append, &keys, fill).await?;
            match packed.read(answer, &self.settings)? {
                Answered::Done(looked, appended) => {
                    self.links.note(group, looked.group_epoch, looked.count, &said);
                    return Ok(appended);
                }
                // Others, whose clocks are ahead of ours, may go on meanwhile: some way ahead of them.
                Answered::Later(at) => {
                    let ahead = Duration::from_millis(u64::from(attempt * attempt));
                    now = at.plus(ahead);
                }
            }
        }
        let message = "the clocks of hubs differ by more than a second: have them set";
        Err(JournalError::Unavailable(message.to_owned()))
    }

    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        let query = StateQuery { after, limit, ..StateQuery::all() };
        self.page(topic, "all", &query).await
    }

    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError> {
        self.page(topic, "states", &query).await
    }

    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        self.seen(topic).await?.info(topic.clone())
    }

    async fn describe_all(&self, topics: &[TopicKey]) -> Vec<Result<TopicInfo, JournalError>> {
        indexes::describe(&self.links, topics).await
    }

    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        let (mut before, mut left) = (LATEST_MAX, 0);
        if let Locate::Latest(count) = from {
            left = count.min(LATEST_MAX);
        }
        loop {
            let answer = self.call(topic, By::Reading(group_of(topic)), Script::Look, |cmd| {
                _ = match from {
                    Locate::Since(at) => cmd.arg("since").arg(at.as_millis()),
                    Locate::Latest(_) => cmd.arg("latest").arg(before).arg(left),
                };
            });
            let (mut answer, said) = answer.await?;
            self.looked(topic, &mut answer, &said)?;
            let offset = answer.offset()?;
            left = answer.number()?;
            if left == 0 {
                return Ok(offset);
            }
            before = offset.next().0;
        }
    }

    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        let properties = append::properties(&change.properties)?;
        let owner = change.properties.owner.as_deref().unwrap_or_default();
        let now = self.clock.now().as_millis();
        let changed = self.change(topic, |cmd| {
            cmd.arg("set").arg(name(topic)).arg(now).arg(u8::from(change.close));
            cmd.arg(&properties).arg(owner);
            if let Some(must_be) = change.owner.as_deref() {
                cmd.arg(must_be);
            }
        });
        match changed.await? {
            (_, Changed::Refused(refusal)) => Ok(Err(refusal)),
            (looked, _) => looked.info(topic.clone()).map(Ok),
        }
    }

    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        let mut seen = None;
        if let DeleteIf::Unchanged(_) = &condition {
            let looked = self.seen(topic).await?;
            if let Err(refusal) = condition.judge(&looked.info(topic.clone())?) {
                return Ok(Err(refusal));
            }
            seen = Some(looked);
        }
        let changed = self.change(topic, |cmd| {
            cmd.arg("delete").arg(name(topic));
            match (&condition, &seen) {
                (DeleteIf::OwnedBy(subject), _) => _ = cmd.arg("owned").arg(&**subject),
                // The script compares with what was judged, so that it is judged in its commit.
                (DeleteIf::Unchanged(_), Some(seen)) => {
                    cmd.arg("unchanged").arg(seen.group_epoch.0).arg(seen.incarnation);
                    cmd.arg(seen.head.tail.0).arg(seen.head.tail_fingerprint.0);
                    cmd.arg(seen.properties.as_deref().unwrap_or_default());
                }
                (DeleteIf::Always | DeleteIf::Unchanged(_), _) => {}
            }
        });
        match changed.await?.1 {
            Changed::Refused(refusal) => Ok(Err(refusal)),
            changed => Ok(Ok(matches!(changed, Changed::Done))),
        }
    }

    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError> {
        let text = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
        let cutoff = retention.age.map(|age| now.minus(age).as_millis());
        let mut head = None;
        for _ in 0..TRIMS_MAX {
            let (looked, changed) = self
                .change(topic, |cmd| {
                    cmd.arg("trim").arg(text(cutoff));
                    cmd.arg(text(retention.events)).arg(text(retention.bytes));
                })
                .await?;
            head = Some(looked.head);
            if !matches!(changed, Changed::More) {
                break;
            }
        }
        head.ok_or_else(answer::unexpected)
    }

    async fn due(&self, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due> {
        indexes::due(&self.links, kind, now, limit).await
    }

    async fn topics(&self, query: TopicQuery) -> Found<TopicInfo> {
        indexes::topics(&self.links, query).await
    }

    fn failure(&self) -> Option<String> {
        self.links.failure()
    }

    fn failure_of(&self, topic: &TopicKey) -> Option<String> {
        self.links.failure_of(group_of(topic))
    }

    fn durability(&self, topic: &TopicKey) -> Durability {
        // What is not known is not promised.
        self.links.durability(group_of(topic)).unwrap_or(Durability::Never)
    }

    fn durabilities(&self) -> Vec<Durability> {
        let of = |group| self.links.durability(group).unwrap_or(Durability::Never);
        (0..GROUPS).map(of).collect()
    }

    async fn close(&self) {
        self.links.close();
    }
}
