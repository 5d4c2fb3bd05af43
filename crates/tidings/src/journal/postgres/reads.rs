//! Reading: each answer from one snapshot, each record checked.
//!
//! The rule: a page and its head are of the same moment.

use futures_util::future::join5;
use tokio_postgres::{Row, types::ToSql};

use super::{
    connection::Connection,
    damaged,
    fault::Fault,
    head::{self, TopicRow, deletion_slot, fingerprint_of, offset, signed},
};
use crate::{
    journal::{
        Due, DueKind, JournalError, Locate, Page, PageLimit, StateQuery, TopicInfo, TopicQuery,
        page::Paging, record,
    },
    model::{Event, Fingerprint, Offset, Timestamp, TopicKey, limits::STATE_KEY_BYTES_MAX},
};

/// What a reader gets: the server's trouble outside, what is wrong with a topic inside.
pub(super) type Read<T> = Result<Result<T, JournalError>, Fault>;

/// One moment of everything. A writer cannot be in it, so nothing waits for it.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";

/// A topic's row as it is now.
pub(super) async fn head(connection: &Connection, topic: &TopicKey) -> Read<TopicRow> {
    let row = connection.session.answer(ask_head(connection, topic)).await?;
    Ok(TopicRow::read_one(&row))
}

async fn ask_head(connection: &Connection, topic: &TopicKey) -> Result<Row, tokio_postgres::Error> {
    let (tenant, name) = (topic.tenant.as_str(), topic.topic.as_str());
    let slot = deletion_slot(topic);
    connection.query_one(&connection.statements.head, &[&tenant, &name, &slot]).await
}

pub(super) async fn describe(connection: &Connection, topic: &TopicKey) -> Read<TopicInfo> {
    let row = head(connection, topic).await?;
    Ok(row.map(|row| row.info(topic.clone(), connection.history.epoch)))
}

pub(super) async fn read(
    connection: &Connection,
    topic: &TopicKey,
    after: Offset,
    limit: PageLimit,
) -> Read<Page> {
    let (tenant, name) = (topic.tenant.as_str(), topic.topic.as_str());
    let (from, events, bytes) = (signed(after.0), events_of(limit), bytes_of(limit));
    let parameters: [&(dyn ToSql + Sync); 5] = [&tenant, &name, &from, &events, &bytes];
    let page = connection.query(&connection.statements.page, &parameters);
    let snapshot = Snapshot { connection, topic, after, until: Offset(u64::MAX) };
    snapshot.page(page, limit).await
}

pub(super) async fn states(
    connection: &Connection,
    topic: &TopicKey,
    query: &StateQuery,
) -> Read<Page> {
    let statements = &connection.statements;
    let (tenant, name) = (topic.tenant.as_str(), topic.topic.as_str());
    let (from, until) = (signed(query.after.0), signed(query.until.0));
    let (events, bytes) = (events_of(query.limit), bytes_of(query.limit));
    let last = last_of(&query.prefix);
    let all: [&(dyn ToSql + Sync); 8] =
        [&tenant, &name, &from, &until, &events, &bytes, &query.prefix, &last];
    let snapshot = Snapshot { connection, topic, after: query.after, until: query.until };
    if query.prefix.is_empty() {
        let (some, _) = all.split_at(6);
        snapshot.page(connection.query(&statements.states, some), query.limit).await
    } else {
        snapshot.page(connection.query(&statements.states_of, &all), query.limit).await
    }
}

/// Rows that are asked for: one more than fit, by which is seen that there are more.
fn events_of(limit: PageLimit) -> i64 {
    i64::try_from(limit.events.max(1)).unwrap_or(i64::MAX).saturating_add(1)
}

fn bytes_of(limit: PageLimit) -> i64 {
    i64::try_from(limit.bytes).unwrap_or(i64::MAX)
}

/// No key or name that starts with a text comes after this: it goes on with the last character that
/// there is, for as many bytes as a name has.
fn last_of(prefix: &str) -> String {
    let mut last = prefix.to_owned();
    last.extend(std::iter::repeat_n(char::MAX, STATE_KEY_BYTES_MAX / char::MAX.len_utf8()));
    last
}

/// A topic at one moment.
struct Snapshot<'a> {
    connection: &'a Connection,
    topic: &'a TopicKey,
    after: Offset,
    until: Offset,
}

impl Snapshot<'_> {
    /// Reads the head, the fingerprints at the bounds and the events, all in one round trip.
    async fn page(
        &self,
        events: impl Future<Output = Result<Vec<Row>, tokio_postgres::Error>>,
        limit: PageLimit,
    ) -> Read<Page> {
        let Self { connection, topic, after, until } = *self;
        let (tenant, name) = (topic.tenant.as_str(), topic.topic.as_str());
        let (from, to) = (signed(after.0), signed(until.0));
        let bounds: [&(dyn ToSql + Sync); 4] = [&tenant, &name, &from, &to];
        let asked = async {
            // Sent in this order before the first answer is waited for.
            let (begun, head, known, events, ended) = join5(
                connection.batch_execute(BEGIN),
                ask_head(connection, topic),
                connection.query(&connection.statements.fingerprints, &bounds),
                events,
                connection.batch_execute("COMMIT"),
            )
            .await;
            begun?;
            ended?;
            Ok((head?, known?, events?))
        };
        let (head, known, events) = connection.session.answer(asked).await?;
        Ok(self.fill(&head, &known, &events, limit))
    }

    fn fill(
        &self,
        row: &Row,
        bounds: &[Row],
        events: &[Row],
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        let head = TopicRow::read_one(row)?.head(self.connection.history.epoch);
        let mut paging = Paging::new(limit);
        for row in events {
            if paging.take(read_event(self.topic, row.get(0), row.get(1))?).is_break() {
                break;
            }
        }
        let at = |offset: Offset| {
            let position =
                [head.floor(), head.end()].into_iter().find(|position| position.offset == offset);
            let found = || bounds.iter().filter_map(known).find(|(at, _)| *at == offset);
            position
                .map(|position| position.fingerprint)
                .or_else(|| found().map(|(_, fingerprint)| fingerprint))
        };
        paging.until_fingerprint = at(self.until);
        Ok(paging.finish(head, self.after, at(self.after), self.until))
    }
}

/// A row of `fingerprints.sql`.
pub(super) fn known(row: &Row) -> Option<(Offset, Fingerprint)> {
    let of_record = row.get::<_, Option<&[u8]>>(1).and_then(fingerprint_of);
    let of_mark = row.get::<_, Option<i32>>(2).map(head::fingerprint);
    Some((offset(row.get(0)), of_record.or(of_mark)?))
}

fn read_event(topic: &TopicKey, place: i64, bytes: &[u8]) -> Result<Event, JournalError> {
    record::decode(bytes, offset(place)).map_err(|error| damaged(topic, &error))
}

pub(super) async fn locate(
    connection: &Connection,
    topic: &TopicKey,
    from: Locate,
) -> Read<Offset> {
    let (tenant, name) = (topic.tenant.as_str(), topic.topic.as_str());
    let (statement, bound) = match from {
        Locate::Latest(0) => {
            let row = head(connection, topic).await?;
            return Ok(row.map(|row| row.tail.previous()));
        }
        Locate::Latest(count) => (&connection.statements.latest, signed(count)),
        Locate::Since(at) => (&connection.statements.since, signed(at.as_millis())),
    };
    let parameters: [&(dyn ToSql + Sync); 3] = [&tenant, &name, &bound];
    let asked = connection.query_one(statement, &parameters);
    let row = connection.session.answer(asked).await?;
    Ok(Ok(offset(row.get(0))))
}

/// Damage of one topic keeps no other from what is due: it is handed to `met`.
pub(super) async fn due(
    connection: &Connection,
    kind: DueKind,
    now: Timestamp,
    limit: usize,
    met: impl Fn(&JournalError),
) -> Result<Vec<Due>, Fault> {
    let statement = match kind {
        DueKind::Expired => &connection.statements.expired,
        DueKind::Due => &connection.statements.due,
    };
    let (now, limit) = (signed(now.as_millis()), i64::try_from(limit).unwrap_or(i64::MAX));
    let parameters: [&(dyn ToSql + Sync); 2] = [&now, &limit];
    let rows = connection.session.answer(connection.query(statement, &parameters)).await?;
    let read = rows.iter().filter_map(|row| {
        let due = head::read_topic(row, 0).and_then(|topic| {
            let event = read_event(&topic, row.get(2), row.get(3))?;
            Ok(Due { topic, event, why: kind })
        });
        due.inspect_err(&met).ok()
    });
    Ok(read.collect())
}

pub(super) async fn topics(
    connection: &Connection,
    query: &TopicQuery,
    met: impl Fn(&JournalError),
) -> Result<Vec<TopicInfo>, Fault> {
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let last = last_of(&query.prefix);
    let after = query.after.as_ref();
    let after_tenant = after.map_or("", |after| after.tenant.as_str());
    let after_name = after.map_or("", |after| after.topic.as_str());
    let rows = match &query.tenant {
        Some(tenant) => {
            // All of another tenant's are before or after all of this one's.
            let after_name = match after_tenant.cmp(tenant.as_str()) {
                std::cmp::Ordering::Less => "",
                std::cmp::Ordering::Equal => after_name,
                std::cmp::Ordering::Greater => return Ok(Vec::new()),
            };
            let tenant = tenant.as_str();
            let parameters: [&(dyn ToSql + Sync); 5] =
                [&tenant, &after_name, &query.prefix, &last, &limit];
            let asked = connection.query(&connection.statements.topics_of, &parameters);
            connection.session.answer(asked).await?
        }
        None => {
            let parameters: [&(dyn ToSql + Sync); 5] =
                [&after_tenant, &after_name, &query.prefix, &last, &limit];
            let asked = connection.query(&connection.statements.topics, &parameters);
            connection.session.answer(asked).await?
        }
    };
    let read = rows.iter().filter_map(|row| {
        let info = head::read_topic(row, 0)
            .and_then(|topic| Ok(TopicRow::read(row, 2)?.info(topic, connection.history.epoch)));
        info.inspect_err(&met).ok()
    });
    Ok(read.collect())
}
