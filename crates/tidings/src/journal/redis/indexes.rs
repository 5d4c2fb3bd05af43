//! What spans topics: listings, and states whose time has come.
//!
//! The rule: each group has its part of an index, which changes with its topics in one script; so
//! an entry is never lost, and what is found is looked up again before it is told.

use std::collections::VecDeque;

use futures_util::future::join_all;
use redis::{Cmd, Value};

use super::{
    answer::{Answer, Looked, state, unexpected},
    keys::{GROUPS, deletions_field, group_of, name, name_prefix, read_name},
    link::By,
    links::Links,
    script::Script,
};
use crate::{
    journal::{Due, DueKind, Found, JournalError, TopicInfo, TopicQuery},
    model::{Class, Event, Timestamp, TopicKey},
};

/// States that are fetched at once, 64 KiB each at most.
const STATES_AT_ONCE: usize = 64;
/// Topics that one call describes.
const TOPICS_AT_ONCE: usize = 128;
/// Names that are fetched of one group at once.
const NAMES_AT_ONCE: usize = 1000;

/// States whose time has come, earliest first; of the same time, by topic and key.
pub(super) async fn due(links: &Links, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due> {
    let mut due = Found::nothing();
    if limit == 0 {
        return due;
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
    let asks: Vec<(u32, Cmd)> = asks.collect();
    let mut entries = Vec::new();
    for group in links.read_many(&asks).await {
        match group.and_then(read_entries) {
            Ok(group) => entries.extend(group),
            Err(error) => due.lacks(error),
        }
    }
    entries.sort_unstable();
    entries.truncate(limit);
    for some in entries.chunks(STATES_AT_ONCE) {
        let asks = some.iter().map(|(_, topic, key)| {
            let mut ask = redis::cmd("HGET");
            ask.arg(format!("{}:s", links.keys().topic(topic))).arg(key);
            (group_of(topic), ask)
        });
        let asks: Vec<(u32, Cmd)> = asks.collect();
        for ((_, topic, _), answer) in some.iter().zip(links.read_many(&asks).await) {
            match answer.and_then(|answer| read_state(topic, answer)) {
                // It may have been ended or replaced since the index was read.
                Ok(None) => {}
                Ok(Some(event)) => {
                    let at = match kind {
                        DueKind::Expired => event.body.expires_at,
                        DueKind::Due => event.body.due_at,
                    };
                    if event.body.class == Class::State && at.is_some_and(|at| at <= now) {
                        due.items.push(Due { topic: topic.clone(), event, why: kind });
                    }
                }
                // What is wrong with one topic keeps no other from what is due.
                Err(error) => due.lacks(error),
            }
        }
    }
    due
}

/// Reads a part of a due index: times, topics and keys of states.
fn read_entries(group: Value) -> Result<Vec<(u64, TopicKey, String)>, JournalError> {
    let mut group = Answer::of(group)?;
    let mut entries = Vec::new();
    while group.len() > 0 {
        let member = group.bytes()?.ok_or_else(unexpected)?;
        let score = group.bytes()?.ok_or_else(unexpected)?;
        let (topic, key) = read_name(&member).ok_or_else(unexpected)?;
        entries.push((time(&score)?, topic, key.to_owned()));
    }
    Ok(entries)
}

/// Reads a state, unless there is none.
fn read_state(topic: &TopicKey, answer: Value) -> Result<Option<Event>, JournalError> {
    let bytes = Answer::of(Value::Array(vec![answer]))?.bytes()?;
    bytes.map(|bytes| state(topic, &bytes)).transpose()
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
    waiting: VecDeque<TopicKey>,
    /// The last that was fetched.
    last: Option<Vec<u8>>,
    is_whole: bool,
}

/// Topics by ascending name.
pub(super) async fn topics(links: &Links, query: TopicQuery) -> Found<TopicInfo> {
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
    let mut topics = Found::nothing();
    let mut is_end = false;
    while !is_end && topics.items.len() < limit {
        let mut names = Vec::new();
        while names.len() < limit - topics.items.len() {
            if let Err(error) = fetch(links, &mut groups, &least, &most, at_once).await {
                topics.lacks(error);
            }
            let next = groups.iter_mut().filter(|group| !group.waiting.is_empty());
            let next = next.min_by(|a, b| a.waiting.front().cmp(&b.waiting.front()));
            let Some(topic) = next.and_then(|group| group.waiting.pop_front()) else {
                is_end = true;
                break;
            };
            if topic.topic.as_str().starts_with(&prefix) {
                names.push(topic);
            }
        }
        for info in describe(links, &names).await {
            match info {
                Ok(info) if info.exists => topics.items.push(info),
                // It was deleted meanwhile.
                Ok(_) => {}
                Err(error) => topics.lacks(error),
            }
        }
    }
    topics
}

/// Fetches names of all groups that have none waiting and may have more. A group that does not
/// answer has none from then on; fails with why the last one did not.
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
    let mut all = Ok(());
    for (group, answer) in asked.into_iter().zip(links.read_many(&asks).await) {
        match answer.and_then(read_names) {
            Ok(names) => {
                group.is_whole = names.len() < at_once;
                group.last = names.last().map(name).or(group.last.take());
                group.waiting.extend(names);
            }
            Err(error) => {
                group.is_whole = true;
                all = Err(error);
            }
        }
    }
    all
}

fn read_names(answer: Value) -> Result<Vec<TopicKey>, JournalError> {
    let mut answer = Answer::of(answer)?;
    let mut names = Vec::with_capacity(answer.len());
    while answer.len() > 0 {
        let name = answer.bytes()?.ok_or_else(unexpected)?;
        names.push(read_name(&name).ok_or_else(unexpected)?.0);
    }
    Ok(names)
}

/// Describes topics: one answer of each, in the order asked for.
pub(super) async fn describe(
    links: &Links,
    topics: &[TopicKey],
) -> Vec<Result<TopicInfo, JournalError>> {
    let mut by_group: Vec<Vec<(usize, &TopicKey)>> = vec![Vec::new(); GROUPS as usize];
    for (place, topic) in topics.iter().enumerate() {
        if let Some(group) = by_group.get_mut(group_of(topic) as usize) {
            group.push((place, topic));
        }
    }
    let all = (0..GROUPS).zip(&by_group);
    let chunks =
        all.flat_map(|(group, all)| all.chunks(TOPICS_AT_ONCE).map(move |some| (group, some)));
    let calls = chunks.map(async |(group, some)| match look_at(links, group, some).await {
        Ok(infos) => infos,
        Err(error) => some.iter().map(|(place, _)| (*place, Err(error.clone()))).collect(),
    });
    let mut infos: Vec<_> = join_all(calls).await.into_iter().flatten().collect();
    infos.sort_unstable_by_key(|(place, _)| *place);
    infos.into_iter().map(|(_, info)| info).collect()
}

/// Describes topics of one group, each with its place.
async fn look_at(
    links: &Links,
    group: u32,
    topics: &[(usize, &TopicKey)],
) -> Result<Vec<(usize, Result<TopicInfo, JournalError>)>, JournalError> {
    let keys: Vec<String> = topics.iter().map(|(_, topic)| links.keys().topic(topic)).collect();
    let describe = |cmd: &mut Cmd| {
        cmd.arg("").arg("describe");
        for (_, topic) in topics {
            cmd.arg(deletions_field(topic));
        }
    };
    let (answer, said) = links.call(By::Reading(group), Script::Look, &keys, describe).await?;
    let mut answer = Answer::of(answer)?;
    let mut infos = Vec::with_capacity(topics.len());
    for (place, topic) in topics {
        let looked = Looked::read(&mut answer)?;
        links.note(group, looked.group_epoch, looked.count, &said);
        infos.push((*place, looked.info((*topic).clone())));
    }
    Ok(infos)
}
