//! What spans topics: listings, and states whose time has come.
//!
//! The rule: each group has its part of an index, which changes with its topics in one script; so
//! an entry is never lost, and what is found is looked up again before it is told.

use std::collections::VecDeque;

use super::{
    answer::{Answer, Looked, state, unexpected},
    keys::{GROUPS, deletions_field, group_of, name, name_prefix, read_name},
    link::By,
    links::Links,
    script::Script,
};
use crate::{
    journal::{Due, DueKind, JournalError, TopicInfo, TopicQuery},
    model::{Class, Timestamp, TopicKey},
};
use futures_util::future::try_join_all;

/// States that are fetched at once, 64 KiB each at most.
const STATES_AT_ONCE: usize = 64;
/// Topics that one call describes.
const TOPICS_AT_ONCE: usize = 128;
/// Names that are fetched of one group at once.
const NAMES_AT_ONCE: usize = 1000;

/// States whose time has come, earliest first; of the same time, by topic and key.
pub(super) async fn due(
    links: &Links,
    kind: DueKind,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Due>, JournalError> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let index = match kind {
        DueKind::Expired => "e",
        DueKind::Due => "d",
    };
    let count = i64::try_from(limit).unwrap_or(i64::MAX);
    let asks = (0..GROUPS).map(|group| {
        let key = format!("{}:{index}", links.keys().group(group));
        let mut ask = redis::cmd("ZRANGEBYSCORE");
        ask.arg(key).arg("-inf").arg(now.as_millis());
        ask.arg("WITHSCORES").arg("LIMIT").arg(0).arg(count);
        (group, ask)
    });
    let mut answer = links.read_many(asks.collect()).await?;
    let mut found = Vec::new();
    while answer.len() > 0 {
        let mut group = answer.list()?;
        while group.len() > 0 {
            let member = group.bytes()?.ok_or_else(unexpected)?;
            let score = group.bytes()?.ok_or_else(unexpected)?;
            found.push((time(&score)?, member));
        }
    }
    found.sort_unstable();
    found.truncate(limit);
    let mut due = Vec::with_capacity(found.len());
    for some in found.chunks(STATES_AT_ONCE) {
        let mut asks = Vec::with_capacity(some.len());
        let mut topics = Vec::with_capacity(some.len());
        for (_, member) in some {
            let (topic, key) = read_name(member).ok_or_else(unexpected)?;
            let mut ask = redis::cmd("HGET");
            ask.arg(format!("{}:s", links.keys().topic(&topic))).arg(key);
            asks.push((group_of(&topic), ask));
            topics.push(topic);
        }
        let mut answer = links.read_many(asks).await?;
        for topic in topics {
            // It may have been ended or replaced since the index was read.
            let Some(bytes) = answer.bytes()? else { continue };
            let event = state(&topic, &bytes)?;
            let at = match kind {
                DueKind::Expired => event.body.expires_at,
                DueKind::Due => event.body.due_at,
            };
            if event.body.class == Class::State && at.is_some_and(|at| at <= now) {
                due.push(Due { topic, event, why: kind });
            }
        }
    }
    Ok(due)
}

/// A time as Redis writes a score: `1700000000000`, or `1.7e+12`.
fn time(score: &[u8]) -> Result<u64, JournalError> {
    let text = std::str::from_utf8(score).map_err(|_| unexpected())?;
    let exact = text.parse::<u64>().ok();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time in milliseconds, far below 2^53; a cast of what is not saturates"
    )]
    let rounded = || text.parse::<f64>().ok().map(|score| score as u64);
    exact.or_else(rounded).ok_or_else(unexpected)
}

/// The names of a group's topics, in order, as far as they were fetched.
struct Names {
    waiting: VecDeque<Vec<u8>>,
    /// The last that was fetched.
    last: Option<Vec<u8>>,
    is_whole: bool,
}

/// Topics by ascending name.
pub(super) async fn topics(
    links: &Links,
    query: TopicQuery,
) -> Result<Vec<TopicInfo>, JournalError> {
    let TopicQuery { tenant, prefix, after, limit } = query;
    let (mut least, mut most) = (b"-".to_vec(), b"+".to_vec());
    if let Some(tenant) = &tenant {
        let prefix = name_prefix(tenant, &prefix);
        least = [b"[", prefix.as_slice()].concat();
        most = [b"(", prefix.as_slice(), b"\xff"].concat();
    }
    if let Some(after) = &after {
        let after = name(after);
        if least.get(1..).unwrap_or_default() <= after.as_slice() {
            least = [b"(", after.as_slice()].concat();
        }
    }
    let new = || Names { waiting: VecDeque::new(), last: None, is_whole: false };
    let mut groups: Vec<Names> = (0..GROUPS).map(|_| new()).collect();
    // A little more than each group's share, so that few have to be asked twice.
    let at_once = (limit / GROUPS as usize * 2 + 8).min(NAMES_AT_ONCE);
    let mut found = Vec::new();
    while found.len() < limit {
        fetch(links, &mut groups, &least, &most, at_once).await?;
        let next = groups.iter_mut().filter(|group| !group.waiting.is_empty());
        let Some(group) = next.min_by(|a, b| a.waiting.front().cmp(&b.waiting.front())) else {
            break;
        };
        let Some(name) = group.waiting.pop_front() else { break };
        let (topic, _) = read_name(&name).ok_or_else(unexpected)?;
        if topic.topic.as_str().starts_with(&prefix) {
            found.push(topic);
        }
    }
    let mut infos = describe(links, &found).await?;
    // One that was deleted meanwhile.
    infos.retain(|info| info.exists);
    Ok(infos)
}

/// Fetches names of all groups that have none waiting and may have more.
async fn fetch(
    links: &Links,
    groups: &mut [Names],
    least: &[u8],
    most: &[u8],
    at_once: usize,
) -> Result<(), JournalError> {
    let mut asks = Vec::new();
    let mut asked = Vec::new();
    for (number, group) in (0..GROUPS).zip(groups) {
        if group.is_whole || !group.waiting.is_empty() {
            continue;
        }
        let after = group.last.as_ref().map(|last| [b"(", last.as_slice()].concat());
        let mut ask = redis::cmd("ZRANGEBYLEX");
        ask.arg(format!("{}:t", links.keys().group(number)));
        ask.arg(after.as_deref().unwrap_or(least)).arg(most);
        ask.arg("LIMIT").arg(0).arg(at_once);
        asks.push((number, ask));
        asked.push(group);
    }
    if asked.is_empty() {
        return Ok(());
    }
    let mut answer = links.read_many(asks).await?;
    for group in asked {
        let mut names = answer.list()?;
        group.is_whole = names.len() < at_once;
        while names.len() > 0 {
            group.waiting.push_back(names.bytes()?.ok_or_else(unexpected)?);
        }
        group.last = group.waiting.back().cloned().or(group.last.take());
    }
    Ok(())
}

/// Describes topics, in the order asked for.
pub(super) async fn describe(
    links: &Links,
    topics: &[TopicKey],
) -> Result<Vec<TopicInfo>, JournalError> {
    let mut by_group: Vec<Vec<(usize, &TopicKey)>> = vec![Vec::new(); GROUPS as usize];
    for (place, topic) in topics.iter().enumerate() {
        if let Some(group) = by_group.get_mut(group_of(topic) as usize) {
            group.push((place, topic));
        }
    }
    let all = (0..GROUPS).zip(&by_group);
    let chunks =
        all.flat_map(|(group, all)| all.chunks(TOPICS_AT_ONCE).map(move |some| (group, some)));
    let calls = chunks.map(async |(group, some)| {
        let keys: Vec<String> = some.iter().map(|(_, topic)| links.keys().topic(topic)).collect();
        let describe = |cmd: &mut redis::Cmd| {
            cmd.arg("").arg("describe");
            for (_, topic) in some {
                cmd.arg(deletions_field(topic));
            }
        };
        let (answer, run) = links.call(By::Reading(group), Script::Look, &keys, describe).await?;
        let mut answer = Answer::of(answer)?;
        let mut infos = Vec::with_capacity(some.len());
        for (place, topic) in some {
            let looked = Looked::read(&mut answer)?;
            links.note(group, looked.group_epoch, looked.count, &run);
            infos.push((*place, looked.info((*topic).clone())?));
        }
        Ok::<_, JournalError>(infos)
    });
    let mut infos: Vec<_> = try_join_all(calls).await?.into_iter().flatten().collect();
    infos.sort_unstable_by_key(|(place, _)| *place);
    Ok(infos.into_iter().map(|(_, info)| info).collect())
}
