//! The transactional outbox: an application enqueues an event in its own transaction in PostgreSQL,
//! and any node publishes it once that is committed.
//!
//! The rule: a row goes only after its event is durable in the journal, whichever journal that is;
//! what a node that died had published already is recognised by its id. Events of a topic are
//! published in the order of their commits (`0001_outbox.sql` says how), by one node at a time.

use std::time::Duration;

use futures_util::future::join;
use tokio::time::sleep;
use tokio_postgres::{Row, Statement, types::ToSql};

use crate::{
    error::{ErrorCode, Problem},
    hub::Hub,
    journal::{
        Dedup, JournalError,
        postgres::{Fault, Migrate, Migrations, PostgresOptions, Session, Target},
    },
    model::{
        Class, Data, EventId, EventType, JsonText, NewEvent, StateKey, Tenant, Timestamp, Topic,
        event::Attribute,
    },
    publish::Publish,
};

/// Events of one part that are published together.
const TAKEN_MAX: i64 = 500;
/// Between two looks into an outbox that was empty: what an event waits for at most.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two tries while the database or the journal does not work.
const TRY_AGAIN: Duration = Duration::from_secs(1);

const MIGRATIONS: Migrations =
    Migrations { part: "outbox", steps: &[include_str!("0001_outbox.sql")] };

/// An outbox in a schema.
#[derive(Debug)]
pub struct Outbox {
    target: Target,
}

/// Brings the outbox's schema up to date; returns how many steps that took.
///
/// # Errors
/// As [`postgres::migrate`](crate::journal::postgres::migrate).
pub async fn migrate(options: &PostgresOptions) -> Result<usize, JournalError> {
    MIGRATIONS.run(&Target::of(options)?).await
}

impl Outbox {
    /// Opens the outbox in a schema, bringing that up to date unless told otherwise.
    ///
    /// # Errors
    /// As [`PostgresJournal::open`](crate::journal::postgres::PostgresJournal::open).
    pub async fn open(options: &PostgresOptions) -> Result<Self, JournalError> {
        let target = Target::of(options)?;
        match options.migrate {
            Migrate::Automatic => drop(MIGRATIONS.run(&target).await?),
            Migrate::ByCommand => MIGRATIONS.check(&target).await?,
        }
        Ok(Self { target })
    }

    /// Publishes what is enqueued, until the hub stops.
    pub fn start(self, hub: &Hub) {
        let own = hub.clone();
        hub.background(async move { self.run(&own).await });
    }

    async fn run(&self, hub: &Hub) {
        loop {
            if let Err(fault) = self.drain(hub).await {
                tracing::warn!(%fault, "the outbox is not drained; trying again");
            }
            sleep(TRY_AGAIN).await;
        }
    }

    /// Publishes for as long as that works.
    async fn drain(&self, hub: &Hub) -> Result<(), Fault> {
        let session = Session::open(&self.target).await?;
        let drain = Drain {
            hub,
            statements: session.answer(Statements::prepare(&session)).await?,
            session,
        };
        loop {
            match drain.look().await? {
                Found::Nothing => sleep(LOOK_EVERY).await,
                Found::More => {}
                Found::Trouble => sleep(TRY_AGAIN).await,
            }
        }
    }
}

/// What one look into the outbox gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Nothing,
    More,
    /// The journal does not take events now.
    Trouble,
}

struct Statements {
    waiting: Statement,
    take: Statement,
    next: Statement,
    bury: Statement,
    remove: Statement,
}

impl Statements {
    async fn prepare(session: &Session) -> Result<Self, tokio_postgres::Error> {
        let client = &session.client;
        Ok(Self {
            waiting: client.prepare(include_str!("waiting.sql")).await?,
            take: client.prepare(include_str!("take.sql")).await?,
            next: client.prepare(include_str!("next.sql")).await?,
            bury: client.prepare(include_str!("bury.sql")).await?,
            remove: client.prepare(include_str!("remove.sql")).await?,
        })
    }
}

struct Drain<'a> {
    hub: &'a Hub,
    session: Session,
    statements: Statements,
}

/// Rows by what becomes of them.
#[derive(Default)]
struct Sorted {
    done: Vec<i64>,
    dead: Vec<(i64, Problem)>,
    is_in_trouble: bool,
}

impl Drain<'_> {
    /// Publishes a batch of each part that has something and that nobody else has taken.
    async fn look(&self) -> Result<Found, Fault> {
        let waiting = self.session.client.query(&self.statements.waiting, &[]);
        let mut found = Found::Nothing;
        for row in self.session.answer(waiting).await? {
            found = found.max(self.part(row.get(0)).await?);
        }
        Ok(found)
    }

    async fn part(&self, shard: i32) -> Result<Found, Fault> {
        let (client, statements) = (&self.session.client, &self.statements);
        let part: [&(dyn ToSql + Sync); 1] = [&shard];
        let some: [&(dyn ToSql + Sync); 2] = [&shard, &TAKEN_MAX];
        let asked = async {
            client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
            // The second is asked in a snapshot of after the first.
            let (taken, rows) = join(
                client.query_one(&statements.take, &part),
                client.query(&statements.next, &some),
            )
            .await;
            Ok((taken?.get::<_, bool>(0), rows?))
        };
        let (is_taken, rows) = self.session.answer(asked).await?;
        if !is_taken || rows.is_empty() {
            self.session.answer(client.batch_execute("ROLLBACK")).await?;
            return Ok(Found::Nothing);
        }
        let sorted = self.publish(&rows).await;
        let (ids, problems): (Vec<i64>, Vec<&Problem>) =
            sorted.dead.iter().map(|(id, problem)| (*id, problem)).unzip();
        let codes: Vec<&str> = problems.iter().map(|problem| problem.code.as_str()).collect();
        let reasons: Vec<String> = problems.iter().map(|problem| reason(problem)).collect();
        for (id, reason) in ids.iter().zip(&reasons) {
            tracing::warn!(row = id, reason, "an event of the outbox cannot be published");
        }
        let gone: Vec<i64> = sorted.done.iter().chain(&ids).copied().collect();
        let asked = async {
            if !ids.is_empty() {
                client.execute(&statements.bury, &[&ids, &codes, &reasons]).await?;
            }
            client.execute(&statements.remove, &[&gone]).await?;
            client.batch_execute("COMMIT").await
        };
        self.session.answer(asked).await?;
        Ok(if sorted.is_in_trouble { Found::Trouble } else { Found::More })
    }

    /// Publishes rows in their order.
    async fn publish(&self, rows: &[Row]) -> Sorted {
        let mut sorted = Sorted::default();
        let data_max = self.hub.settings().event_bytes_max;
        let mut by_tenant: Vec<(Tenant, Vec<i64>, Vec<Publish>)> = Vec::new();
        for row in rows {
            let id = row.get(0);
            match read(row, data_max) {
                Ok((tenant, publish)) => {
                    let at = by_tenant.iter().position(|(of, ..)| *of == tenant);
                    let at = at.unwrap_or_else(|| {
                        by_tenant.push((tenant, Vec::new(), Vec::new()));
                        by_tenant.len() - 1
                    });
                    if let Some((_, ids, events)) = by_tenant.get_mut(at) {
                        ids.push(id);
                        events.push(publish);
                    }
                }
                Err(problem) => sorted.dead.push((id, problem)),
            }
        }
        for (tenant, ids, events) in by_tenant {
            let answers = self.hub.publish(&tenant, events).await;
            for (id, answer) in ids.into_iter().zip(answers) {
                match answer {
                    Ok(_) => sorted.done.push(id),
                    Err(problem) if problem.code.retryable() => sorted.is_in_trouble = true,
                    Err(problem) => sorted.dead.push((id, problem)),
                }
            }
        }
        sorted
    }
}

fn reason(problem: &Problem) -> String {
    match &problem.pointer {
        Some(pointer) => format!("{pointer}: {}", problem.detail),
        None => problem.detail.clone(),
    }
}

/// Reads a row, and checks it as a publisher's event is.
fn read(row: &Row, data_max: usize) -> Result<(Tenant, Publish), Problem> {
    let text = |at: usize| row.get::<_, Option<&str>>(at);
    let wrong =
        |field: &'static str, why: String| Problem::new(ErrorCode::Malformed, why).at(field);
    let required = |at: usize, field: &'static str| {
        text(at).ok_or_else(|| wrong(field, "is missing".to_owned()))
    };
    let tenant = Tenant::parse(required(1, "tenant")?)?;
    let topic = Topic::parse(required(2, "topic")?)?;
    if tenant.is_reserved() || topic.is_reserved() {
        let why = "this tenant and topic are the hub's own";
        return Err(Problem::new(ErrorCode::ForbiddenTopic, why).at("topic"));
    }
    let key = text(6).map(StateKey::parse).transpose()?;
    let class = match (text(5), &key) {
        (Some("log"), None) | (None, None) => Class::Log,
        (Some("state"), Some(_)) | (None, Some(_)) => Class::State,
        (Some("state"), None) => return Err(wrong("key", "a state needs a key".to_owned())),
        (Some("ephemeral"), None) => Class::Ephemeral,
        (Some(class), Some(_)) => {
            return Err(wrong("key", format!("an event of class {class:?} has no key")));
        }
        (Some(class), None) => {
            let why = format!("{class:?} is no class: use log, state or ephemeral");
            return Err(wrong("class", why));
        }
    };
    let data = match text(7) {
        None => Data::None,
        Some(json) if json.len() > data_max => {
            let why = format!("data has {} bytes, at most {data_max} are taken", json.len());
            return Err(Problem::new(ErrorCode::TooLarge, why).at("data"));
        }
        Some(json) => {
            Data::Json(JsonText::parse(json).map_err(|error| wrong("data", error.to_string()))?)
        }
    };
    let time = |at: usize| row.get::<_, Option<i64>>(at).map(millis);
    let delete = row.get(13);
    if delete && class != Class::State {
        return Err(wrong("ends", "only a state can end: it needs a key".to_owned()));
    }
    let event = NewEvent {
        id: EventId::parse(required(4, "id")?)?,
        event_type: EventType::parse(required(3, "type")?)?,
        class,
        key,
        source: text(8).map(Attribute::parse).transpose()?,
        subject: text(9).map(Attribute::parse).transpose()?,
        time: time(10),
        data,
        extensions: Vec::new(),
        expires_at: time(11),
        due_at: time(12),
        delete,
    };
    let publish = Publish { dedup: Dedup::ById, close: row.get(14), ..Publish::new(topic, event) };
    Ok((tenant, publish))
}

fn millis(ms: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(ms).unwrap_or_default())
}
