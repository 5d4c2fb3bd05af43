//! `GET /v1/state`: the current states of a topic, and a cursor to follow from.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{RawQuery, State},
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::{
    caller::{Caller, not_found},
    query,
    router::App,
};
use crate::{
    error::Problem,
    hub::Hub,
    ingest::Parameter,
    journal::{JournalError, Page, StateQuery},
    model::{Cursor, Mark, Offset, Topic, TopicKey},
    sse::{Frame, FrameTopic},
};

/// Query parameters.
pub(super) const PARAMETERS: &[&str] = &["topic", "prefix"];

pub(super) async fn snapshot(
    State(app): State<Arc<App>>,
    Caller(grant): Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut topic = None;
    let mut prefix = String::new();
    for Parameter { name, value } in query::parameters(query.as_deref(), PARAMETERS)? {
        match &*name {
            "topic" => {
                topic = Some(Topic::parse(&value).map_err(|e| Problem::from(e).at("topic"))?)
            }
            _ => prefix = value,
        }
    }
    let topic = topic.ok_or_else(|| query::missing("topic"))?;
    if !app.hub.may_read(&grant, &topic).await? {
        return Err(not_found());
    }
    let key = TopicKey::new(grant.tenant().clone(), topic);
    let head = app.hub.describe(&key).await?.head;
    let query = StateQuery { prefix, until: head.end().offset, ..StateQuery::all() };
    let cursor = Cursor::single(&key.topic, Mark::from(head.end()));
    // The first page before the answer begins: a journal that is down is a problem, not half a body.
    let mut pages = Pages { hub: app.hub.clone(), key, query, page: None };
    pages.read().await?;
    let begin = Bytes::from(format!("{{\"topic\":\"{}\",\"states\":[", pages.key.topic));
    let end = Bytes::from(format!("],\"cursor\":\"{}\"}}", cursor.encode()));
    let states = stream::try_unfold(pages, Pages::next);
    let body = stream::iter([Ok(begin)]).chain(states).chain(stream::iter([Ok(end)]));
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// The states, read a page at a time: a topic may hold 10 000 of 64 KiB each. One that is replaced
/// meanwhile is not among them; it is after the cursor.
struct Pages {
    hub: Hub,
    key: TopicKey,
    query: StateQuery,
    /// What was read and not yet written.
    page: Option<Page>,
}

impl Pages {
    async fn read(&mut self) -> Result<(), JournalError> {
        self.page = Some(self.hub.journal().states(&self.key, self.query.clone()).await?);
        Ok(())
    }

    /// The next page as JSON. An error breaks the answer off, which no client takes for its end.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, JournalError> {
        if self.page.is_none() {
            self.read().await?;
        }
        let Some(page) = self.page.take() else { return Ok(None) };
        let Some(last) = page.events.last() else { return Ok(None) };
        let mut json = Vec::new();
        let topic = FrameTopic::from(&self.key);
        for event in &page.events {
            if self.query.after > Offset::ZERO || !json.is_empty() {
                json.push(b',');
            }
            json.extend_from_slice(&Frame::of(&topic, page.head.epoch, event).json());
        }
        self.query.after = last.offset;
        Ok(Some((json.into(), self)))
    }
}
