//! Changing topics otherwise than by events: properties, trimming, deleting, and removing what is
//! left of deleted topics.
//!
//! The rule: each is judged under the lock of the topic's row, in the transaction that does it; and
//! what is large is done in steps, so that nobody waits long for that lock.

use futures_util::future::{join, join3, join4};
use tokio_postgres::{Row, types::ToSql};

use super::{
    commit::{self, Failed},
    connection::Connection,
    fault::Fault,
    head::{TopicRow, deletion_slot, fingerprint, fingerprint_of, offset, signed, slot_lock, time},
    stage::Staged,
};
use crate::{
    journal::{
        Change, DeleteIf, Head, JournalError, JournalSettings, Judged, Retention, TopicInfo,
    },
    model::{Fingerprint, Offset, Timestamp, TopicKey},
};

/// Rows that one step of trimming or removing takes.
const STEP_ROWS: i64 = 2000;

/// What a change gives: the server's trouble outside, what is wrong with the topic inside.
type Changed<T> = Result<Result<T, JournalError>, Failed>;

/// Begins a transaction with a topic's row locked, if there is one.
async fn lock(
    connection: &Connection,
    topic: &TopicKey,
) -> Result<(String, Option<Result<TopicRow, JournalError>>), Failed> {
    let (tenants, names) = ([topic.tenant.as_str()], [topic.topic.as_str()]);
    let (tenants, names) = (&tenants[..], &names[..]);
    let parameters: [&(dyn ToSql + Sync); 2] = [&tenants, &names];
    let statements = &connection.statements;
    let asked = async {
        let (begun, transaction, rows) = join3(
            connection.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED"),
            connection.query_one(&statements.transaction, &[]),
            connection.query(&statements.lock, &parameters),
        )
        .await;
        begun?;
        Ok((transaction?, rows?))
    };
    let (transaction, rows) = connection.session.answer(asked).await?;
    Ok((transaction.get(0), rows.first().map(|row| TopicRow::read(row, 1))))
}

pub(super) async fn set_properties(
    connection: &Connection,
    schema: &str,
    topic: &TopicKey,
    change: &Change,
    now: Timestamp,
) -> Changed<Judged<TopicInfo>> {
    let (transaction, locked) = lock(connection, topic).await?;
    let row = match locked {
        Some(Ok(row)) => row,
        Some(Err(error)) => return leave(connection, Err(error)).await,
        None => {
            let rows = commit::absent_rows(connection, schema, std::iter::once(topic)).await?;
            let row = rows.into_iter().next().ok_or_else(Fault::timeout)?;
            TopicRow { written_at: now, ..row }
        }
    };
    let mut staged = Staged::new(topic.clone(), row);
    let row = &mut staged.row;
    if let Err(refusal) = change.judge((!row.is_absent).then_some(&row.properties)) {
        return leave(connection, Ok(Err(refusal))).await;
    }
    row.is_absent = false;
    row.properties = change.properties.clone();
    row.closed |= change.close;
    let info = row.info(topic.clone(), connection.history.epoch);
    commit::write(connection, &transaction, &[staged]).await?;
    Ok(Ok(Ok(info)))
}

/// Ends a transaction that changed nothing.
async fn leave<T>(connection: &Connection, value: T) -> Result<T, Failed> {
    connection.session.answer(connection.batch_execute("ROLLBACK")).await?;
    Ok(value)
}

pub(super) async fn delete(
    connection: &Connection,
    schema: &str,
    topic: &TopicKey,
    condition: &DeleteIf,
) -> Changed<Judged<bool>> {
    let (_, locked) = lock(connection, topic).await?;
    let epoch = connection.history.epoch;
    let row = match locked {
        Some(Ok(row)) => row,
        Some(Err(error)) => return leave(connection, Err(error)).await,
        None => {
            leave(connection, ()).await?;
            let absent = super::reads::head(connection, topic).await?;
            let judged = absent.map(|row| condition.judge(&row.info(topic.clone(), epoch)));
            return Ok(judged.map(|judged| judged.map(|()| false)));
        }
    };
    if let Err(refusal) = condition.judge(&row.info(topic.clone(), epoch)) {
        return leave(connection, Ok(Err(refusal))).await;
    }
    let (space, slot_key) = slot_lock(schema, topic);
    let (tenant, slot) = (topic.tenant.as_str(), deletion_slot(topic));
    let statements = &connection.statements;
    let locked: [&(dyn ToSql + Sync); 2] = [&space, &slot_key];
    let gone: [&(dyn ToSql + Sync); 3] = [&row.id, &tenant, &slot];
    let asked = async {
        let (locked, gone, committed) = join3(
            connection.execute(&statements.take_slot, &locked),
            connection.execute(&statements.delete_topic, &gone),
            connection.batch_execute("COMMIT"),
        )
        .await;
        locked?;
        gone?;
        committed
    };
    committed(connection.session.answer(asked).await)?;
    Ok(Ok(Ok(true)))
}

/// A COMMIT without an answer may have been done, and is not done again.
fn committed(answer: Result<(), Fault>) -> Result<(), Failed> {
    match answer {
        Err(fault) if fault.is_lost() => Err(Fault::Uncertain(fault.to_string()).into()),
        answer => Ok(answer?),
    }
}

/// What one step of trimming removes; nothing if the floor is where it was.
struct Excess {
    floor: Offset,
    floor_fingerprint: Fingerprint,
    events: u64,
    bytes: u64,
    /// Whether there may be more.
    is_partial: bool,
}

/// Takes one step of trimming; says whether there may be more to do.
pub(super) async fn trim(
    connection: &Connection,
    topic: &TopicKey,
    retention: &Retention,
    now: Timestamp,
) -> Changed<(Head, bool)> {
    let epoch = connection.history.epoch;
    let (_, locked) = lock(connection, topic).await?;
    let row = match locked {
        Some(Ok(row)) => row,
        Some(Err(error)) => return leave(connection, Err(error)).await,
        None => {
            leave(connection, ()).await?;
            let row = super::reads::head(connection, topic).await?;
            return Ok(row.map(|row| (row.head(epoch), false)));
        }
    };
    let floor = signed(row.floor.0);
    let oldest: [&(dyn ToSql + Sync); 3] = [&row.id, &floor, &STEP_ROWS];
    let asked = async {
        let (log, marks) = join(
            connection.query(&connection.statements.excess, &oldest),
            connection.query(&connection.statements.old_marks, &oldest),
        )
        .await;
        Ok((log?, marks?))
    };
    let (log, marks) = connection.session.answer(asked).await?;
    let excess = excess(&row, &log, &marks, retention, now);
    // A node of an earlier version raises the floor and leaves the time as it was.
    let is_above = |found: &&Row| offset(found.get(0)) == row.floor.next();
    let above = log.iter().chain(&marks).find(is_above);
    let is_other = above.is_some_and(|found| time(found.get(1)) != row.oldest_at);
    let is_unknown = row.oldest_at == Timestamp::default();
    if excess.floor == row.floor && !is_unknown && !is_other {
        return leave(connection, Ok((row.head(epoch), false))).await;
    }
    let (to, fingerprint) = (signed(excess.floor.0), excess.floor_fingerprint.0.cast_signed());
    let (events, bytes) = (signed(excess.events), signed(excess.bytes));
    let raised: [&(dyn ToSql + Sync); 5] = [&row.id, &to, &fingerprint, &events, &bytes];
    let removed: [&(dyn ToSql + Sync); 2] = [&row.id, &to];
    let statements = &connection.statements;
    let asked = async {
        let (raised, log, marks, committed) = join4(
            connection.execute(&statements.raise_floor, &raised),
            connection.execute(&statements.trim_log, &removed),
            connection.execute(&statements.trim_marks, &removed),
            connection.batch_execute("COMMIT"),
        )
        .await;
        raised?;
        log?;
        marks?;
        committed
    };
    committed(connection.session.answer(asked).await)?;
    let row = TopicRow { floor: excess.floor, floor_fingerprint: excess.floor_fingerprint, ..row };
    Ok(Ok((row.head(epoch), excess.is_partial)))
}

/// How far a topic is to be trimmed, by its oldest rows.
fn excess(
    row: &TopicRow,
    log: &[Row],
    marks: &[Row],
    retention: &Retention,
    now: Timestamp,
) -> Excess {
    let cutoff = retention.age.map(|age| now.minus(age));
    let is_old = |at: Timestamp| cutoff.is_some_and(|cutoff| at < cutoff);
    let (mut events, mut bytes) = (row.events, row.bytes);
    let (mut floor, mut floor_fingerprint) = (row.floor, row.floor_fingerprint);
    let full = usize::try_from(STEP_ROWS).unwrap_or_default();
    let mut is_partial = log.len() == full;
    for found in log {
        let too_many = retention.events.is_some_and(|max| events > max);
        let too_big = retention.bytes.is_some_and(|max| bytes > max);
        if !(is_old(time(found.get(1))) || too_many || too_big) {
            is_partial = false;
            break;
        }
        floor = offset(found.get(0));
        floor_fingerprint = fingerprint_of(found.get(3)).unwrap_or_default();
        events = events.saturating_sub(1);
        bytes = bytes.saturating_sub(found.get::<_, i64>(2).cast_unsigned());
    }
    // Times ascend with offsets, so no older log event is left before an old mark; unless there
    // are more of them than were looked at.
    if !is_partial {
        is_partial = marks.len() == full;
        for found in marks {
            if !is_old(time(found.get(1))) {
                is_partial = false;
                break;
            }
            if offset(found.get(0)) > floor {
                floor = offset(found.get(0));
                floor_fingerprint = fingerprint(found.get(2));
            }
        }
    }
    Excess {
        floor,
        floor_fingerprint,
        events: row.events - events,
        bytes: row.bytes - bytes,
        is_partial: is_partial && floor > row.floor,
    }
}

/// Forgets ids of a topic that are recognised no more; says whether there may be more of them.
pub(super) async fn forget_ids(
    connection: &Connection,
    topic: &TopicKey,
    settings: &JournalSettings,
    now: Timestamp,
) -> Result<bool, Fault> {
    let Ok(row) = super::reads::head(connection, topic).await? else { return Ok(false) };
    // An append may come with an earlier time than this one, but is judged by the last one's.
    let now = if row.has_events { row.written_at.min(now) } else { return Ok(false) };
    let before = signed(row.tail.0.saturating_sub(settings.dedup_events));
    let at = signed(now.minus(settings.dedup_window).as_millis());
    if row.is_absent || before <= 1 {
        return Ok(false);
    }
    let parameters: [&(dyn ToSql + Sync); 4] = [&row.id, &before, &at, &STEP_ROWS];
    let asked = connection.execute(&connection.statements.forget_seen, &parameters);
    Ok(connection.session.answer(asked).await? == STEP_ROWS.cast_unsigned())
}

/// Removes some rows of one deleted topic; says whether there may be more to do.
pub(super) async fn remove_deleted(connection: &Connection) -> Result<bool, Failed> {
    let statements = &connection.statements;
    let asked = async {
        let (begun, rows) = join(
            connection.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED"),
            connection.query(&statements.deleted, &[]),
        )
        .await;
        begun?;
        rows
    };
    let rows = connection.session.answer(asked).await?;
    let Some(id) = rows.first().map(|row| row.get::<_, i64>(0)) else {
        return leave(connection, false).await;
    };
    let some: [&(dyn ToSql + Sync); 2] = [&id, &STEP_ROWS];
    let asked = async {
        let (log, states, marks, ids) = join4(
            connection.execute(&statements.remove_log, &some),
            connection.execute(&statements.remove_states, &some),
            connection.execute(&statements.remove_marks, &some),
            connection.execute(&statements.remove_dedup, &some),
        )
        .await;
        Ok([log?, states?, marks?, ids?])
    };
    let counts = connection.session.answer(asked).await?;
    let is_done = counts.iter().all(|count| *count < STEP_ROWS.cast_unsigned());
    if is_done {
        connection.session.answer(connection.execute(&statements.removed, &[&id])).await?;
    }
    connection.session.answer(connection.batch_execute("COMMIT")).await?;
    Ok(true)
}
