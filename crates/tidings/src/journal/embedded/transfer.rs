//! `tidings journal export` and `import`: a journal as lines of JSON, and back.
//!
//! The rule: a whole export, imported, is the same journal to everybody: offsets, epochs,
//! fingerprints, ids and times are as they were, so every cursor goes on. An export that had to
//! leave something out says so in its last line, and what is made of it begins new epochs.
//!
//! The lines, in this order: `journal`; `deletions`, one for each count; for each topic `topic`, then
//! by offset its `event`s and `mark`s, then its `seen` ids; `end`. An event's line carries its
//! fingerprint, which is the checksum of its stored record: an import makes the record anew and
//! compares.

use std::{
    collections::HashSet,
    io::{self, BufRead, Write},
    path::Path,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use fjall::{OwnedWriteBatch, PersistMode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    check::{Step, open_to_read, total},
    commit_log::CommitLog,
    damage::{REMEDY, unreadable},
    directory::Directory,
    layout::{
        DELETIONS, MEMTABLE_BYTES, META, Meta, Store, TopicRecord, named_key, offset_key,
        read_deletions, topic_key, write_deletions, write_due, write_mark, write_seen,
    },
    reclaim::Reclaimable,
    store::{draw_secret, draw_u32, lost, open_files, read_meta, refused, unopened},
    walk::{self, Held},
    writer::due_of,
};
use crate::{
    clock::{Clock as _, SystemClock},
    journal::{JournalError, JournalSettings, Properties, record},
    model::{
        Class, Data, Epoch, Event, EventId, EventType, Fingerprint, JsonText, NewEvent, Offset,
        Position, StateKey, Tenant, Timestamp, Topic, TopicKey, event::Attribute,
    },
};

/// The version of the lines.
const VERSION: u32 = 1;
/// Changes that are written at once.
const BATCH_CHANGES: usize = 1000;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Journal(JournalLine),
    Deletions(DeletionsLine),
    Topic(Box<TopicLine>),
    Event(Box<EventLine>),
    Mark(MarkLine),
    Seen(SeenLine),
    End(EndLine),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JournalLine {
    version: u32,
    exported_at: u64,
    store_epoch: u32,
    commits: u64,
}

/// How often topics of a slot were deleted: the key in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeletionsLine {
    key: String,
    count: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TopicLine {
    tenant: String,
    topic: String,
    incarnation: u32,
    closed: bool,
    tail: u64,
    tail_fingerprint: u32,
    floor: u64,
    floor_fingerprint: u32,
    written_at: u64,
    has_events: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    properties: Option<Properties>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventLine {
    offset: u64,
    fingerprint: u32,
    recorded_at: u64,
    id: String,
    #[serde(rename = "type")]
    event_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    delete: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due_at: Option<u64>,
    /// JSON, byte for byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    /// In the order in which they were published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    extensions: Vec<(String, Box<RawValue>)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MarkLine {
    offset: u64,
    fingerprint: u32,
    at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenLine {
    id: String,
    offset: u64,
    fingerprint: u32,
    at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndLine {
    topics: u64,
    events: u64,
    states: u64,
    /// Places that could not be read and were left out.
    damaged: u64,
}

/// What was exported or imported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Topics.
    pub topics: u64,
    /// Log events and tombstones.
    pub events: u64,
    /// Current states.
    pub states: u64,
    /// What could not be read and was left out, by place; the first thousand.
    pub left_out: Vec<String>,
    /// How much was left out.
    pub left_out_total: u64,
}

impl Transferred {
    /// Whether nothing was left out: cursors stay valid.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.left_out_total == 0
    }
}

/// What an export does about damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDamage {
    /// Fails, naming the place.
    Stop,
    /// Leaves it out and goes on.
    Salvage,
}

/// Writes everything that the journal in a directory holds as lines of JSON. The hub must be
/// stopped.
///
/// # Errors
/// As [`check`](super::check()); a place that cannot be read, unless it is to be left out; and
/// [`JournalError::Unavailable`] if the output cannot be written.
pub fn export(
    path: &Path,
    out: &mut dyn Write,
    on_damage: OnDamage,
    step: &mut dyn FnMut(Step),
) -> Result<Transferred, JournalError> {
    let directory = Directory::existing(path)?;
    let files = directory.store_files();
    let log = CommitLog::read(&files).map_err(refused)?;
    let store = open_to_read(&files)?;
    let meta = read_meta(&store, &files)?;
    let snapshot = store.db.snapshot();
    let (done, total) = (Transferred::default(), total(&store, &snapshot));
    let mut export = Export { out, on_damage, done, total, step };
    if let Some(known) = lost(meta, &directory, &log) {
        let found = log.last.or(meta).map_or(0, |meta| meta.commits);
        export.leave_out(if directory.is_mark_lost() {
            format!("commits after {known} may be lost: the file `commits` is missing")
        } else {
            format!("the commits {} to {known} were lost", found + 1)
        })?;
    }
    // Without its own record nothing of the store is certain: then its epoch is not kept.
    let (store_epoch, commits) = meta.map_or((0, 0), |meta| (meta.store_epoch, meta.commits));
    if meta.is_none() {
        export.leave_out("the store's own record is missing".to_owned())?;
    }
    let exported_at = SystemClock.now().as_millis();
    let version = VERSION;
    export.line(&Line::Journal(JournalLine { version, exported_at, store_epoch, commits }))?;
    export.deletions(&store, &snapshot)?;
    for topic in walk::topics(&store, &snapshot) {
        match topic {
            Ok(topic) => export.topic(&topic)?,
            Err(error) => export.leave_out(error)?,
        }
    }
    let Transferred { topics, events, states, left_out_total: damaged, .. } = export.done;
    export.line(&Line::End(EndLine { topics, events, states, damaged }))?;
    export.out.flush().map_err(|error| unwritten(&error))?;
    let done = export.done;
    drop(snapshot);
    drop(store);
    directory.release();
    Ok(done)
}

struct Export<'a> {
    out: &'a mut dyn Write,
    on_damage: OnDamage,
    done: Transferred,
    total: u64,
    step: &'a mut dyn FnMut(Step),
}

fn unwritten(error: &io::Error) -> JournalError {
    JournalError::Unavailable(format!("the export cannot be written: {error}"))
}

impl Export<'_> {
    fn line(&mut self, line: &Line) -> Result<(), JournalError> {
        let text = serde_json::to_string(line);
        let mut text = text.map_err(|error| JournalError::Broken(error.to_string()))?;
        text.push('\n');
        self.out.write_all(text.as_bytes()).map_err(|error| unwritten(&error))
    }

    fn leave_out(&mut self, what: String) -> Result<(), JournalError> {
        match self.on_damage {
            OnDamage::Stop => Err(JournalError::Broken(format!("{what}; {REMEDY}"))),
            OnDamage::Salvage => {
                self.done.leave_out(what);
                Ok(())
            }
        }
    }

    fn deletions(&mut self, store: &Store, snapshot: &fjall::Snapshot) -> Result<(), JournalError> {
        for entry in walk::entries(snapshot, &store.meta, DELETIONS.as_bytes().to_vec()) {
            let count = entry.and_then(|(key, value)| {
                if !key.starts_with(DELETIONS.as_bytes()) {
                    return Ok(None);
                }
                let wrong = || "a count of deletions is damaged".to_owned();
                let count = read_deletions(&key, &value).ok_or_else(wrong)?;
                Ok(Some(DeletionsLine { key: STANDARD.encode(&key), count }))
            });
            match count {
                Ok(Some(count)) => self.line(&Line::Deletions(count))?,
                Ok(None) => break,
                Err(error) => self.leave_out(error)?,
            }
        }
        Ok(())
    }

    fn topic(&mut self, topic: &walk::Topic<'_>) -> Result<(), JournalError> {
        let record = &topic.record;
        let properties = Some(record.properties.clone());
        self.line(&Line::Topic(Box::new(TopicLine {
            tenant: topic.key.tenant.as_str().to_owned(),
            topic: topic.key.topic.as_str().to_owned(),
            incarnation: record.incarnation,
            closed: record.closed,
            tail: record.tail.0,
            tail_fingerprint: record.tail_fingerprint.0,
            floor: record.floor.0,
            floor_fingerprint: record.floor_fingerprint.0,
            written_at: record.written_at.as_millis(),
            has_events: record.has_events,
            properties: properties.filter(|properties| *properties != Properties::default()),
        })))?;
        self.done.topics += 1;
        let (mut next, mut time) = (record.floor.next(), Timestamp::default());
        for (offset, held) in topic.held() {
            if offset >= record.tail || (offset < next && offset > record.floor) {
                let what = format!("offset {offset} is beyond the end, or there twice");
                self.leave_out(wrong_at(topic, &what))?;
                continue;
            }
            self.fill(topic, next, offset, time)?;
            next = next.max(offset.next());
            let line = match held {
                Ok(Held::Log(event, _)) => {
                    self.done.events += 1;
                    time = event.recorded_at;
                    event_line(&event)
                }
                Ok(Held::State(event)) => {
                    self.done.states += 1;
                    time = event.recorded_at;
                    event_line(&event)
                }
                Ok(Held::Mark(fingerprint, at)) => {
                    time = at;
                    mark_line(offset, fingerprint, at)
                }
                Err(error) => {
                    self.leave_out(wrong_at(topic, &format!("offset {offset}: {error}")))?;
                    // A state from below the floor leaves nothing behind.
                    if offset <= record.floor {
                        continue;
                    }
                    mark_line(offset, record.stand_in(offset), time)
                }
            };
            self.line(&line)?;
            let done = (self.done.events + self.done.states).min(self.total);
            (self.step)(Step { done, total: self.total });
        }
        self.fill(topic, next, record.tail, time)?;
        for seen in topic.seen() {
            match seen {
                Ok((id, offset, fingerprint, at)) => {
                    let (fingerprint, at) = (fingerprint.0, at.as_millis());
                    self.line(&Line::Seen(SeenLine { id, offset: offset.0, fingerprint, at }))?;
                }
                Err(error) => self.leave_out(wrong_at(topic, &error))?,
            }
        }
        Ok(())
    }

    /// Stands marks in for what is missing, so that offsets stay what they are.
    fn fill(
        &mut self,
        topic: &walk::Topic<'_>,
        from: Offset,
        to: Offset,
        time: Timestamp,
    ) -> Result<(), JournalError> {
        if from < to && to > topic.record.floor {
            let what = format!("what was at {from} to {} is missing", to.previous());
            self.leave_out(wrong_at(topic, &what))?;
            for offset in from.0..to.0 {
                let offset = Offset(offset);
                self.line(&mark_line(offset, topic.record.stand_in(offset), time))?;
            }
        }
        Ok(())
    }
}

impl Transferred {
    fn leave_out(&mut self, what: String) {
        self.left_out_total += 1;
        if self.left_out.len() < BATCH_CHANGES {
            self.left_out.push(what);
        }
    }
}

fn wrong_at(topic: &walk::Topic<'_>, what: &str) -> String {
    let TopicKey { tenant, topic } = &topic.key;
    format!("topic {topic} of tenant {tenant}: {what}")
}

fn mark_line(offset: Offset, fingerprint: Fingerprint, at: Timestamp) -> Line {
    let (offset, fingerprint, at) = (offset.0, fingerprint.0, at.as_millis());
    Line::Mark(MarkLine { offset, fingerprint, at })
}

fn event_line(event: &Event) -> Line {
    let body = &event.body;
    let text = |attribute: &Option<Attribute>| {
        attribute.as_ref().map(|attribute| attribute.as_str().to_owned())
    };
    let raw = |json: &JsonText| RawValue::from_string(json.as_str().to_owned()).ok();
    let (mut data, mut data_base64, mut content_type) = (None, None, None);
    match &body.data {
        Data::None => {}
        Data::Json(json) => data = raw(json),
        Data::Binary { content_type: kind, bytes } => {
            data_base64 = Some(STANDARD.encode(bytes));
            content_type = Some(kind.as_str().to_owned());
        }
    }
    let extensions = body.extensions.iter();
    Line::Event(Box::new(EventLine {
        offset: event.offset.0,
        fingerprint: event.fingerprint.0,
        recorded_at: event.recorded_at.as_millis(),
        id: body.id.as_str().to_owned(),
        event_type: body.event_type.as_str().to_owned(),
        key: body.key.as_ref().map(|key| key.as_str().to_owned()),
        delete: body.delete,
        source: text(&body.source),
        subject: text(&body.subject),
        time: body.time.map(Timestamp::as_millis),
        expires_at: body.expires_at.map(Timestamp::as_millis),
        due_at: body.due_at.map(Timestamp::as_millis),
        data,
        data_base64,
        content_type,
        extensions: extensions
            .filter_map(|(name, value)| Some((name.to_string(), raw(value)?)))
            .collect(),
    }))
}

/// Makes a journal in an empty directory from the lines of an export.
///
/// `step` is told the bytes that were read.
///
/// # Errors
/// [`JournalError::Broken`] names the line and what is wrong with it: the directory holds no journal
/// then. [`JournalError::Unusable`] names the directory, if it is not empty or not permitted.
pub fn import(
    path: &Path,
    input: &mut dyn BufRead,
    step: &mut dyn FnMut(u64),
) -> Result<Transferred, JournalError> {
    let directory = Directory::open(path)?;
    if directory.has_store() {
        return Err(JournalError::Unusable(format!(
            "{}: there is a journal already; choose an empty directory",
            path.display()
        )));
    }
    directory.begin_import()?;
    let mut done = Transferred::default();
    let mut commits = 0;
    directory.store(|new| {
        let nothing = Arc::new(Reclaimable::default());
        let store = open_files(new, &nothing, JournalSettings::default(), MEMTABLE_BYTES)?;
        store.mark_keyspaces().map_err(|error| unopened(new, &error))?;
        let mut import = Import {
            store: &store,
            batch: store.db.batch(),
            ids: HashSet::new(),
            open: None,
            done: Transferred::default(),
        };
        let meta = import.lines(input, step)?;
        commits = meta.commits;
        import.batch.insert(&store.meta, META, meta.write());
        import.commit(PersistMode::SyncAll)?;
        done = import.done;
        Ok(())
    })?;
    directory.reach(commits);
    directory.sync();
    directory.end_import()?;
    directory.release();
    Ok(done)
}

struct Import<'a> {
    store: &'a Store,
    batch: OwnedWriteBatch,
    ids: HashSet<TopicKey>,
    /// The topic whose lines come, and the offset that may come next.
    open: Option<(TopicKey, TopicRecord, Offset)>,
    done: Transferred,
}

impl Import<'_> {
    /// Reads all lines, and returns what the store is to know of itself.
    fn lines(
        &mut self,
        input: &mut dyn BufRead,
        step: &mut dyn FnMut(u64),
    ) -> Result<Meta, JournalError> {
        let (mut text, mut number, mut read) = (String::new(), 0_u64, 0);
        let mut journal = None;
        loop {
            text.clear();
            number += 1;
            let length = input.read_line(&mut text).map_err(|error| {
                JournalError::Broken(format!("line {number} cannot be read: {error}"))
            })?;
            let at = |what: String| JournalError::Broken(format!("line {number}: {what}"));
            if length == 0 {
                let what = "the export ends without its last line: it was cut short";
                return Err(at(what.to_owned()));
            }
            read += length as u64;
            let line = serde_json::from_str(&text).map_err(|error| at(error.to_string()))?;
            match (line, &journal) {
                (Line::Journal(line), None) if line.version == VERSION => journal = Some(line),
                (Line::Journal(line), None) => {
                    let known = "run the version of Tidings that wrote it, or a newer one";
                    return Err(at(format!("the export has version {}; {known}", line.version)));
                }
                (Line::End(end), Some(journal)) => {
                    self.end_topic()?;
                    let meta = self.meta(journal, &end).map_err(at)?;
                    return nothing_follows(input, number + 1).map(|()| meta);
                }
                (_, None) | (Line::Journal(_), Some(_)) => {
                    return Err(at("an export begins with one line `journal`".to_owned()));
                }
                (line, Some(_)) => self.line(line).map_err(at)?,
            }
            step(read);
            if self.batch.len() >= BATCH_CHANGES {
                self.commit(PersistMode::Buffer)?;
            }
        }
    }

    fn meta(&self, journal: &JournalLine, end: &EndLine) -> Result<Meta, String> {
        let Transferred { topics, events, states, .. } = self.done;
        if (topics, events, states) != (end.topics, end.events, end.states) {
            return Err(format!(
                "{topics} topics, {events} events and {states} states came, but {}, {} and {} were \
                 exported: the file is not whole",
                end.topics, end.events, end.states
            ));
        }
        let drawn = |error: JournalError| error.to_string();
        let epoch =
            if end.damaged == 0 { journal.store_epoch } else { draw_u32().map_err(drawn)? };
        Ok(Meta {
            secret: draw_secret().map_err(drawn)?,
            store_epoch: epoch,
            next_id: topics + 1,
            commits: journal.commits,
        })
    }

    fn line(&mut self, line: Line) -> Result<(), String> {
        match line {
            Line::Deletions(line) => {
                let key = STANDARD.decode(&line.key).map_err(|error| error.to_string())?;
                if !key.starts_with(DELETIONS.as_bytes()) {
                    return Err("it is no count of deletions".to_owned());
                }
                let value = write_deletions(&key, line.count);
                self.batch.insert(&self.store.meta, key, value);
                Ok(())
            }
            Line::Topic(line) => self.topic(*line),
            Line::Event(line) => self.event(*line),
            Line::Mark(line) => self.mark(&line),
            Line::Seen(line) => self.seen(&line),
            Line::Journal(_) | Line::End(_) => Err("it does not belong here".to_owned()),
        }
    }

    fn topic(&mut self, line: TopicLine) -> Result<(), String> {
        self.end_topic().map_err(|error| error.to_string())?;
        let tenant = Tenant::parse(&line.tenant).map_err(|error| error.to_string())?;
        let topic = Topic::parse(&line.topic).map_err(|error| error.to_string())?;
        let key = TopicKey::new(tenant, topic);
        if !self.ids.insert(key.clone()) {
            return Err("the topic is there twice".to_owned());
        }
        self.done.topics += 1;
        let properties = line.properties.unwrap_or_default();
        let written_at = Timestamp::from_millis(line.written_at);
        let record = TopicRecord {
            closed: line.closed,
            tail: Offset(line.tail),
            tail_fingerprint: Fingerprint(line.tail_fingerprint),
            floor: Offset(line.floor),
            floor_fingerprint: Fingerprint(line.floor_fingerprint),
            has_events: line.has_events,
            ..TopicRecord::new(self.done.topics, line.incarnation, written_at, properties)
        };
        if record.floor >= record.tail {
            return Err("the topic ends before it begins".to_owned());
        }
        self.open = Some((key, record, Offset(1)));
        Ok(())
    }

    /// The topic whose lines come, after taking an offset that must be the next or later.
    fn take(
        &mut self,
        offset: u64,
        recorded_at: Timestamp,
    ) -> Result<(&TopicKey, &mut TopicRecord), String> {
        let (key, record, next) = self.open.as_mut().ok_or("it belongs to no topic")?;
        let offset = Offset(offset);
        let is_next = offset > record.floor && offset == (*next).max(record.floor.next());
        let is_old_state = offset <= record.floor && offset >= *next;
        if offset >= record.tail || !(is_next || is_old_state) {
            return Err(format!("offset {offset} is not the next one"));
        }
        *next = offset.next();
        if offset == record.floor.next() {
            record.oldest_at = recorded_at;
        }
        Ok((key, record))
    }

    fn event(&mut self, line: EventLine) -> Result<(), String> {
        let (offset, expected) = (Offset(line.offset), Fingerprint(line.fingerprint));
        let recorded_at = Timestamp::from_millis(line.recorded_at);
        let body = new_event(line)?;
        let (fingerprint, bytes) = record::encode(&body, offset, recorded_at);
        if fingerprint != expected {
            return Err("the event does not have its fingerprint: the line was changed".to_owned());
        }
        let store = self.store;
        let (topic, record) = self.take(offset.0, recorded_at)?;
        let (topic, id, is_old) = (topic.clone(), record.id, offset <= record.floor);
        let state_key = body.key.clone().filter(|_| !body.delete);
        if let Some(key) = state_key {
            record.states += 1;
            self.done.states += 1;
            let event = Event { offset, fingerprint, recorded_at, body: Arc::new(body) };
            let value = [&offset.0.to_be_bytes()[..], &bytes].concat();
            self.batch.insert(&store.states, named_key(id, key.as_str()), value);
            self.batch.insert(&store.places, offset_key(id, offset), key.as_str());
            for entry in due_of(id, &event) {
                self.batch.insert(&store.due, entry, write_due(&topic, offset));
            }
            return Ok(());
        }
        if is_old {
            return Err("only a state can be older than what was trimmed".to_owned());
        }
        record.events += 1;
        record.bytes += bytes.len() as u64;
        self.done.events += 1;
        self.batch.insert(&store.log, offset_key(id, offset), bytes);
        Ok(())
    }

    fn mark(&mut self, line: &MarkLine) -> Result<(), String> {
        let store = self.store;
        let at = Timestamp::from_millis(line.at);
        let (_, record) = self.take(line.offset, at)?;
        if line.offset <= record.floor.0 {
            return Err("a mark cannot be older than what was trimmed".to_owned());
        }
        let key = offset_key(record.id, Offset(line.offset));
        let mark = write_mark(Fingerprint(line.fingerprint), at);
        self.batch.insert(&store.marks, key, mark);
        Ok(())
    }

    fn seen(&mut self, line: &SeenLine) -> Result<(), String> {
        let (_, record, _) = self.open.as_ref().ok_or("it belongs to no topic")?;
        let id = EventId::parse(&line.id).map_err(|error| error.to_string())?;
        if line.offset >= record.tail.0 {
            return Err(format!("offset {} is beyond the topic's end", line.offset));
        }
        let position = Position {
            epoch: Epoch(0),
            offset: Offset(line.offset),
            fingerprint: Fingerprint(line.fingerprint),
        };
        let value = write_seen(position, Timestamp::from_millis(line.at));
        self.batch.insert(&self.store.dedup, named_key(record.id, id.as_str()), value);
        Ok(())
    }

    fn end_topic(&mut self) -> Result<(), JournalError> {
        let Some((key, record, next)) = self.open.take() else { return Ok(()) };
        if next.max(record.floor.next()) != record.tail {
            let TopicKey { tenant, topic } = key;
            return Err(JournalError::Broken(format!(
                "topic {topic} of tenant {tenant}: what was at {next} to {} is missing",
                record.tail.previous()
            )));
        }
        if record.floor > Offset::ZERO {
            let floor = record.floor.0.to_be_bytes();
            self.batch.insert(&self.store.floors, record.id.to_be_bytes(), floor);
        }
        self.batch.insert(&self.store.topics, topic_key(&key), record.write()?);
        Ok(())
    }

    fn commit(&mut self, mode: PersistMode) -> Result<(), JournalError> {
        let batch = std::mem::replace(&mut self.batch, self.store.db.batch());
        let committed = batch.durability(Some(mode)).commit();
        committed.map_err(|error| unreadable(&self.store.meta, &error))
    }
}

/// What follows the last line is of another export, or none: it would be lost without a word.
fn nothing_follows(input: &mut dyn BufRead, number: u64) -> Result<(), JournalError> {
    let rest = input
        .fill_buf()
        .map_err(|error| JournalError::Broken(format!("line {number} cannot be read: {error}")))?;
    if rest.is_empty() {
        return Ok(());
    }
    Err(JournalError::Broken(format!(
        "line {number}: something follows the export's last line; import one export, and nothing \
         else"
    )))
}

fn new_event(line: EventLine) -> Result<NewEvent, String> {
    fn parsed<T, E: ToString>(
        text: Option<&str>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, String> {
        text.map(|text| parse(text).map_err(|error| error.to_string())).transpose()
    }
    let json = |raw: &RawValue| JsonText::parse(raw.get()).map_err(|error| error.to_string());
    let data = match (line.data, line.data_base64, line.content_type) {
        (None, None, None) => Data::None,
        (Some(raw), None, None) => Data::Json(json(&raw)?),
        (None, Some(text), Some(kind)) => {
            let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
            let content_type = Attribute::parse(&kind).map_err(|error| error.to_string())?;
            Data::Binary { content_type, bytes: Bytes::from(bytes) }
        }
        _ => return Err("data is JSON, or base64 with a content type".to_owned()),
    };
    let mut extensions = Vec::with_capacity(line.extensions.len());
    for (name, value) in line.extensions {
        extensions.push((name.into(), json(&value)?));
    }
    let key = parsed(line.key.as_deref(), StateKey::parse)?;
    Ok(NewEvent {
        id: EventId::parse(&line.id).map_err(|error| error.to_string())?,
        event_type: EventType::parse(&line.event_type).map_err(|error| error.to_string())?,
        class: if key.is_some() { Class::State } else { Class::Log },
        key,
        source: parsed(line.source.as_deref(), Attribute::parse)?,
        subject: parsed(line.subject.as_deref(), Attribute::parse)?,
        time: line.time.map(Timestamp::from_millis),
        data,
        extensions,
        expires_at: line.expires_at.map(Timestamp::from_millis),
        due_at: line.due_at.map(Timestamp::from_millis),
        delete: line.delete,
    })
}
