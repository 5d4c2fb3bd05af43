//! A group of appends as one transaction: two round trips, or three where a topic is created.
//!
//! The rule: rows are locked first and everything else is looked up after, so that what is judged
//! is what is; and whoever locks more than one row does so by ascending id.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::future::{join, join_all, join4};
use tokio_postgres::{Row, Statement, types::ToSql};

use super::{
    connection::Connection,
    fault::Fault,
    head::{TopicRow, deletion_slot, fingerprint, offset, signed, slot_lock, time},
    stage::{Change, Seen, Slot, Staged},
};
use crate::{
    journal::{Appended, Batch, Dedup, JournalError, JournalSettings, record},
    model::{EventId, Fingerprint, Offset, Position, StateKey, Timestamp, TopicKey},
};

/// How a transaction failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing of it is stored.
    NotStored(Fault),
    /// It may be stored whole.
    Unknown(Box<Lost>),
}

/// A commit whose answer was lost.
#[derive(Debug)]
pub(super) struct Lost {
    /// By which it can be told; `None`: doing it again changes nothing.
    pub(super) witness: Option<Witness>,
    /// What the answers are if it is stored.
    pub(super) answers: Answers,
    /// What happened.
    pub(super) fault: Fault,
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::NotStored(error.into())
    }
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self::NotStored(fault)
    }
}

/// One event of a transaction, by which is seen whether that was committed.
#[derive(Debug)]
pub(super) struct Witness {
    transaction: String,
    topic: TopicKey,
    /// Of which incarnation.
    id: i64,
    was_absent: bool,
    position: Position,
}

/// What became of a transaction whose answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Stored,
    NotStored,
    /// The server still works at it.
    Open,
    /// Its traces are gone: trimmed, deleted, or of another history.
    Unknown,
}

impl Witness {
    fn of(transaction: &str, staged: &[&Staged], epoch: u32) -> Option<Self> {
        let staged = staged.iter().find(|staged| staged.row.tail > staged.found.tail)?;
        Some(Self {
            transaction: transaction.to_owned(),
            topic: staged.topic.clone(),
            id: staged.row.id,
            was_absent: staged.found.is_absent,
            position: staged.row.head(epoch).end(),
        })
    }

    /// Asks a server of the same history what became of the transaction.
    ///
    /// Its number alone does not tell: a server that crashed gives numbers again that nothing
    /// durable had. That it runs no more, it does tell; then the event is there or will never be.
    pub(super) async fn fate(&self, connection: &Connection) -> Result<Fate, Fault> {
        let number: [&(dyn ToSql + Sync); 1] = [&self.transaction];
        let asked = connection.query_one(&connection.statements.outcome, &number);
        match connection.session.answer(asked).await {
            Ok(row) if row.get::<_, Option<&str>>(0) == Some("in progress") => {
                return Ok(Fate::Open);
            }
            Err(fault) if fault.is_lost() => return Err(fault),
            // Over, long ago, or a number that was not given yet.
            Ok(_) | Err(_) => {}
        }
        let (tenant, name) = (self.topic.tenant.as_str(), self.topic.topic.as_str());
        let row = super::reads::head(connection, &self.topic).await?;
        let Ok(row) = row else { return Ok(Fate::Unknown) };
        let offset = self.position.offset;
        if row.is_absent {
            return Ok(if self.was_absent { Fate::NotStored } else { Fate::Unknown });
        }
        if row.id != self.id {
            return Ok(if self.was_absent { Fate::NotStored } else { Fate::Unknown });
        }
        if row.tail <= offset {
            return Ok(Fate::NotStored);
        }
        let place = signed(offset.0);
        let parameters: [&(dyn ToSql + Sync); 4] = [&tenant, &name, &place, &place];
        let asked = connection.query(&connection.statements.fingerprints, &parameters);
        let rows = connection.session.answer(asked).await?;
        Ok(match rows.first().and_then(super::reads::known) {
            Some((_, fingerprint)) if fingerprint == self.position.fingerprint => Fate::Stored,
            Some(_) => Fate::NotStored,
            None if row.head(0).floor().offset == offset
                && row.floor_fingerprint == self.position.fingerprint =>
            {
                Fate::Stored
            }
            None => Fate::Unknown,
        })
    }
}

/// What became of each batch.
pub(super) type Answers = Vec<Result<Appended, JournalError>>;

/// The topics of a commit, as arrays: what the statements are asked with.
struct Names<'a> {
    tenants: Vec<&'a str>,
    names: Vec<&'a str>,
    /// Whose ids and keys are looked up, counted from 1 as SQL does.
    id_topics: Vec<i32>,
    ids: Vec<&'a str>,
    key_topics: Vec<i32>,
    keys: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn of(topics: &[&'a TopicKey], batches: &[(usize, &'a Batch)]) -> Self {
        let (mut ids, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for (topic, batch) in batches {
            let number = i32::try_from(topic + 1).unwrap_or(i32::MAX);
            for append in &batch.events {
                if append.dedup == Dedup::ById {
                    ids.insert((number, append.event.id.as_str()));
                }
                keys.extend(append.event.key.as_ref().map(|key| (number, key.as_str())));
            }
        }
        let (id_topics, ids) = ids.into_iter().unzip();
        let (key_topics, keys) = keys.into_iter().unzip();
        Self {
            tenants: topics.iter().map(|topic| topic.tenant.as_str()).collect(),
            names: topics.iter().map(|topic| topic.topic.as_str()).collect(),
            id_topics,
            ids,
            key_topics,
            keys,
        }
    }
}

/// Appends batches, each to its topic, in one commit.
pub(super) async fn append(
    connection: &Connection,
    schema: &str,
    settings: &JournalSettings,
    batches: &[(&TopicKey, &Batch)],
) -> Result<Answers, Failed> {
    let mut numbers: HashMap<&TopicKey, usize> = HashMap::new();
    let mut topics: Vec<&TopicKey> = Vec::new();
    let mut numbered = Vec::with_capacity(batches.len());
    for (topic, batch) in batches {
        let number = *numbers.entry(topic).or_insert_with(|| {
            topics.push(topic);
            topics.len() - 1
        });
        numbered.push((number, *batch));
    }
    let names = Names::of(&topics, &numbered);
    let (transaction, loaded) = load(connection, schema, &topics, &names).await?;
    let mut loaded = loaded;
    let epoch = connection.history.epoch;
    let mut answers = Vec::with_capacity(batches.len());
    for (number, batch) in &numbered {
        answers.push(match loaded.get_mut(*number) {
            Some(Ok(staged)) => Ok(staged.append(batch, settings, epoch)),
            Some(Err(error)) => Err(error.clone()),
            None => Err(JournalError::Unavailable("topic was not loaded".to_owned())),
        });
    }
    let staged: Vec<Staged> = loaded.into_iter().filter_map(Result::ok).collect();
    match write(connection, &transaction, &staged).await {
        Ok(()) => Ok(answers),
        Err(Failed::Unknown(mut lost)) => {
            lost.answers = answers;
            Err(Failed::Unknown(lost))
        }
        Err(failed) => Err(failed),
    }
}

/// Begins a transaction, locks the topics, and reads all that they are judged by. A damaged topic
/// has an error of its own.
async fn load(
    connection: &Connection,
    schema: &str,
    topics: &[&TopicKey],
    names: &Names<'_>,
) -> Result<(String, Vec<Result<Staged, JournalError>>), Failed> {
    let Names { tenants, names: texts, id_topics, ids, key_topics, keys } = names;
    let statements = &connection.statements;
    let begin = async {
        connection.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        Ok::<_, tokio_postgres::Error>(())
    };
    let number = async { connection.query_one(&statements.transaction, &[]).await };
    let lock = async { connection.query(&statements.lock, &[tenants, texts]).await };
    let looked_up = async {
        join_all([(&statements.seen, id_topics, ids), (&statements.current, key_topics, keys)].map(
            |(statement, numbers, wanted)| async move {
                if wanted.is_empty() {
                    return Ok(Vec::new());
                }
                let parameters: [&(dyn ToSql + Sync); 4] = [tenants, texts, numbers, wanted];
                connection.query(statement, &parameters).await
            },
        ))
        .await
    };
    // Sent in this order before the first answer is waited for.
    let asked = async {
        let (begun, number, locked, mut looked_up) = join4(begin, number, lock, looked_up).await;
        begun?;
        let (number, locked) = (number?, locked?);
        let states = looked_up.pop().unwrap_or(Ok(Vec::new()))?;
        let seen = looked_up.pop().unwrap_or(Ok(Vec::new()))?;
        Ok((number.get::<_, String>(0), locked, seen, states))
    };
    let (transaction, locked, seen, states) = connection.session.answer(asked).await?;
    let mut found: Vec<Option<Result<Staged, JournalError>>> = Vec::new();
    found.resize_with(topics.len(), || None);
    for row in &locked {
        let at = place(row);
        if let (Some(slot), Some(topic)) = (found.get_mut(at), topics.get(at)) {
            let read = TopicRow::read(row, 1);
            *slot = Some(read.map(|read| Staged::new((*topic).clone(), read)));
        }
    }
    if locked.len() < topics.len() {
        begin_absent(connection, schema, topics, &mut found).await?;
    }
    let mut found: Vec<_> = found
        .into_iter()
        .map(|found| found.unwrap_or_else(|| Err(JournalError::Unavailable(String::new()))))
        .collect();
    for row in &seen {
        note_seen(row, &mut found);
    }
    for row in &states {
        note_state(row, &mut found);
    }
    Ok((transaction, found))
}

/// The place of a topic that a row numbers from 1.
fn place(row: &Row) -> usize {
    usize::try_from(row.get::<_, i64>(0)).unwrap_or_default().wrapping_sub(1)
}

fn place_of_int(row: &Row) -> usize {
    usize::try_from(row.get::<_, i32>(0)).unwrap_or_default().wrapping_sub(1)
}

fn note_seen(row: &Row, found: &mut [Result<Staged, JournalError>]) {
    let Some(Ok(staged)) = found.get_mut(place_of_int(row)) else { return };
    // Ids of this commit only were asked for, so one that does not parse is none of them.
    let Ok(id) = EventId::parse(row.get::<_, &str>(1)) else { return };
    let seen = Seen {
        offset: offset(row.get(2)),
        fingerprint: fingerprint(row.get(3)),
        at: time(row.get(4)),
    };
    staged.seen.insert(id, seen);
}

fn note_state(row: &Row, found: &mut [Result<Staged, JournalError>]) {
    let Some(slot) = found.get_mut(place_of_int(row)) else { return };
    let Ok(staged) = slot else { return };
    let Ok(key) = StateKey::parse(row.get::<_, &str>(1)) else { return };
    match record::decode(row.get(4), offset(row.get(2))) {
        Ok(event) => drop(staged.states.insert(key, Slot { found: Some(event), change: None })),
        Err(error) => *slot = Err(super::damaged(&staged.topic, &error)),
    }
}

/// Fills in topics that are not there: nobody deletes one of their slots until the commit, and
/// whoever creates one meanwhile makes this fail.
async fn begin_absent(
    connection: &Connection,
    schema: &str,
    topics: &[&TopicKey],
    found: &mut [Option<Result<Staged, JournalError>>],
) -> Result<(), Failed> {
    let absent: Vec<(usize, &TopicKey)> = found
        .iter()
        .zip(topics)
        .enumerate()
        .filter(|(_, (found, _))| found.is_none())
        .map(|(at, (_, topic))| (at, *topic))
        .collect();
    let rows = absent_rows(connection, schema, absent.iter().map(|(_, topic)| *topic)).await?;
    for (row, (at, topic)) in rows.into_iter().zip(absent) {
        if let Some(slot) = found.get_mut(at) {
            *slot = Some(Ok(Staged::new(topic.clone(), row)));
        }
    }
    Ok(())
}

/// The rows that topics begin with which were not there when they were to be locked.
pub(super) async fn absent_rows<'a>(
    connection: &Connection,
    schema: &str,
    topics: impl Iterator<Item = &'a TopicKey>,
) -> Result<Vec<TopicRow>, Failed> {
    let topics: Vec<&TopicKey> = topics.collect();
    let statements = &connection.statements;
    let locks: BTreeSet<i32> = topics.iter().map(|topic| slot_lock(schema, topic).1).collect();
    let locks: Vec<i32> = locks.into_iter().collect();
    let space = topics.first().map_or(0, |topic| slot_lock(schema, topic).0);
    let tenants: Vec<&str> = topics.iter().map(|topic| topic.tenant.as_str()).collect();
    let names: Vec<&str> = topics.iter().map(|topic| topic.topic.as_str()).collect();
    let slots: Vec<i32> = topics.iter().map(|topic| deletion_slot(topic)).collect();
    let shared: [&(dyn ToSql + Sync); 2] = [&space, &locks];
    let wanted: [&(dyn ToSql + Sync); 3] = [&tenants, &names, &slots];
    let asked = async {
        let (shared, rows) = join(
            connection.query(&statements.share_slots, &shared),
            connection.query(&statements.absent, &wanted),
        )
        .await;
        shared?;
        rows
    };
    let rows = connection.session.answer(asked).await?;
    let mut absent: BTreeMap<i64, TopicRow> = BTreeMap::new();
    for row in &rows {
        if row.get(1) {
            // Created since it was looked for, and so not locked: from the beginning.
            return Err(created_meanwhile());
        }
        // The time of its creation is the first event's, or is set by who creates it without one.
        absent.insert(row.get(0), TopicRow::absent(row.get(3), row.get(2), Timestamp::default()));
    }
    Ok(absent.into_values().collect())
}

fn created_meanwhile() -> Failed {
    let state = tokio_postgres::error::SqlState::UNIQUE_VIOLATION;
    let message = "a topic was created by another node meanwhile".to_owned();
    Failed::NotStored(Fault::Refused { state, message })
}

/// Writes what was staged, and commits.
pub(super) async fn write(
    connection: &Connection,
    transaction: &str,
    staged: &[Staged],
) -> Result<(), Failed> {
    let changed: Vec<&Staged> = staged.iter().filter(|staged| staged.is_changed()).collect();
    if changed.is_empty() {
        connection.session.answer(connection.batch_execute("ROLLBACK")).await?;
        return Ok(());
    }
    let rows = Rows::of(&changed);
    let statements = &connection.statements;
    let written =
        join_all(rows.statements(statements).into_iter().map(|(statement, parameters)| {
            let parameters: Vec<&(dyn ToSql + Sync)> = parameters;
            async move { connection.execute(statement, &parameters).await }
        }));
    let commit = connection.batch_execute("COMMIT");
    let asked = async {
        let (written, committed) = join(written, commit).await;
        // A statement that failed has undone all, and COMMIT said ROLLBACK without an error.
        for written in written {
            written?;
        }
        committed
    };
    match connection.session.answer(asked).await {
        Ok(()) => Ok(()),
        Err(fault) if fault.is_lost() => {
            let witness = Witness::of(transaction, &changed, connection.history.epoch);
            Err(Failed::Unknown(Box::new(Lost { witness, answers: Vec::new(), fault })))
        }
        Err(fault) => Err(Failed::NotStored(fault)),
    }
}

/// Everything that a commit writes, by column.
#[derive(Default)]
struct Rows<'a> {
    new: TopicColumns<'a>,
    changed: TopicColumns<'a>,
    log: EventColumns<'a>,
    states: EventColumns<'a>,
    ended: (Vec<i64>, Vec<&'a str>),
    marks: PlaceColumns<'a>,
    seen: PlaceColumns<'a>,
}

#[derive(Default)]
struct TopicColumns<'a> {
    ids: Vec<i64>,
    tenants: Vec<&'a str>,
    names: Vec<&'a str>,
    incarnations: Vec<i32>,
    closed: Vec<bool>,
    tails: Vec<i64>,
    tail_fingerprints: Vec<i32>,
    floors: Vec<i64>,
    floor_fingerprints: Vec<i32>,
    events: Vec<i64>,
    bytes: Vec<i64>,
    states: Vec<i64>,
    written_at: Vec<i64>,
    has_events: Vec<bool>,
    /// `None`: as they were.
    properties: Vec<Option<String>>,
    oldest_at: Vec<i64>,
}

#[derive(Default)]
struct EventColumns<'a> {
    topics: Vec<i64>,
    keys: Vec<&'a str>,
    places: Vec<i64>,
    recorded_at: Vec<i64>,
    expires_at: Vec<Option<i64>>,
    due_at: Vec<Option<i64>>,
    data_bytes: Vec<i32>,
    records: Vec<&'a [u8]>,
}

/// Places without events: of marks, and of ids.
#[derive(Default)]
struct PlaceColumns<'a> {
    topics: Vec<i64>,
    ids: Vec<&'a str>,
    places: Vec<i64>,
    fingerprints: Vec<i32>,
    recorded_at: Vec<i64>,
}

type Parameters<'a> = Vec<&'a (dyn ToSql + Sync)>;

impl<'a> Rows<'a> {
    fn of(staged: &[&'a Staged]) -> Self {
        let mut rows = Self::default();
        for staged in staged {
            let id = staged.row.id;
            let of = if staged.found.is_absent { &mut rows.new } else { &mut rows.changed };
            of.add(staged);
            for stored in &staged.log {
                rows.log.add(id, "", stored);
            }
            for (key, slot) in &staged.states {
                match &slot.change {
                    Some(Change::Set(stored)) => rows.states.add(id, key.as_str(), stored),
                    Some(Change::End) if slot.found.is_some() => {
                        rows.ended.0.push(id);
                        rows.ended.1.push(key.as_str());
                    }
                    _ => {}
                }
            }
            for mark in &staged.marks {
                rows.marks.add(id, "", *mark);
            }
            for event_id in &staged.entered {
                if let Some(Seen { offset, fingerprint, at }) = staged.seen.get(event_id) {
                    rows.seen.add(id, event_id.as_str(), (*offset, *fingerprint, *at));
                }
            }
        }
        rows
    }

    /// The statements that have something to write, with their parameters.
    fn statements<'s>(
        &'s self,
        all: &'s super::connection::Statements,
    ) -> Vec<(&'s Statement, Parameters<'s>)> {
        let Self { new, changed, log, states, ended, marks, seen } = self;
        let mut statements: Vec<(&Statement, Parameters<'s>)> = Vec::new();
        if !new.ids.is_empty() {
            statements.push((
                &all.insert_topics,
                vec![
                    &new.ids,
                    &new.tenants,
                    &new.names,
                    &new.incarnations,
                    &new.closed,
                    &new.tails,
                    &new.tail_fingerprints,
                    &new.floors,
                    &new.floor_fingerprints,
                    &new.events,
                    &new.bytes,
                    &new.states,
                    &new.written_at,
                    &new.has_events,
                    &new.properties,
                    &new.oldest_at,
                ],
            ));
        }
        if !changed.ids.is_empty() {
            statements.push((
                &all.update_topics,
                vec![
                    &changed.ids,
                    &changed.closed,
                    &changed.tails,
                    &changed.tail_fingerprints,
                    &changed.events,
                    &changed.bytes,
                    &changed.states,
                    &changed.written_at,
                    &changed.has_events,
                    &changed.properties,
                    &changed.oldest_at,
                ],
            ));
        }
        if !log.topics.is_empty() {
            statements.push((
                &all.insert_log,
                vec![&log.topics, &log.places, &log.recorded_at, &log.data_bytes, &log.records],
            ));
        }
        if !states.topics.is_empty() {
            statements.push((
                &all.put_states,
                vec![
                    &states.topics,
                    &states.keys,
                    &states.places,
                    &states.recorded_at,
                    &states.expires_at,
                    &states.due_at,
                    &states.data_bytes,
                    &states.records,
                ],
            ));
        }
        if !ended.0.is_empty() {
            statements.push((&all.end_states, vec![&ended.0, &ended.1]));
        }
        if !marks.topics.is_empty() {
            let parameters: Parameters<'s> =
                vec![&marks.topics, &marks.places, &marks.fingerprints, &marks.recorded_at];
            statements.push((&all.insert_marks, parameters));
        }
        if !seen.topics.is_empty() {
            let PlaceColumns { topics, ids, places, fingerprints, recorded_at } = seen;
            statements.push((&all.put_seen, vec![topics, ids, places, fingerprints, recorded_at]));
        }
        statements
    }
}

impl<'a> TopicColumns<'a> {
    fn add(&mut self, staged: &'a Staged) {
        let Staged { topic, row, found, .. } = staged;
        self.ids.push(row.id);
        self.tenants.push(topic.tenant.as_str());
        self.names.push(topic.topic.as_str());
        self.incarnations.push(row.incarnation.cast_signed());
        self.closed.push(row.closed);
        self.tails.push(signed(row.tail.0));
        self.tail_fingerprints.push(row.tail_fingerprint.0.cast_signed());
        self.floors.push(signed(row.floor.0));
        self.floor_fingerprints.push(row.floor_fingerprint.0.cast_signed());
        self.events.push(signed(row.events));
        self.bytes.push(signed(row.bytes));
        self.states.push(signed(row.states));
        self.written_at.push(signed(row.written_at.as_millis()));
        self.has_events.push(row.has_events);
        let is_same = !found.is_absent && row.properties == found.properties;
        let text = || serde_json::to_string(&row.properties).unwrap_or_else(|_| "null".to_owned());
        self.properties.push((!is_same).then(text));
        self.oldest_at.push(signed(row.oldest_at.as_millis()));
    }
}

impl<'a> PlaceColumns<'a> {
    fn add(&mut self, topic: i64, id: &'a str, place: (Offset, Fingerprint, Timestamp)) {
        let (offset, fingerprint, at) = place;
        self.topics.push(topic);
        self.ids.push(id);
        self.places.push(signed(offset.0));
        self.fingerprints.push(fingerprint.0.cast_signed());
        self.recorded_at.push(signed(at.as_millis()));
    }
}

impl<'a> EventColumns<'a> {
    fn add(&mut self, id: i64, key: &'a str, stored: &'a super::stage::Stored) {
        let event = &stored.event;
        let millis = |at: Timestamp| signed(at.as_millis());
        self.topics.push(id);
        self.keys.push(key);
        self.places.push(signed(event.offset.0));
        self.recorded_at.push(millis(event.recorded_at));
        self.expires_at.push(event.body.expires_at.map(millis));
        self.due_at.push(event.body.due_at.map(millis));
        self.data_bytes.push(i32::try_from(event.body.data.len()).unwrap_or(i32::MAX));
        self.records.push(&stored.record);
    }
}
