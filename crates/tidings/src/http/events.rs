//! `POST /v1/events`: publishing, one request or one long stream.

use std::{convert::Infallible, fmt::Write as _, pin::pin, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{
    admission::{self, Admission},
    caller::{Caller, Carried, may_write, read_publish},
    problem,
    proxy::BehindProxy,
    publisher::Publisher,
    query,
    rest::Linger,
    router::App,
};
use crate::{
    auth::Grant,
    error::{ErrorCode, Problem},
    hub::Hub,
    ingest::{self, Bounds, Draft, Drafts, Fields, Parameter, cloudevents, trace::TraceContext},
    journal::Durability,
    metrics::Metrics,
    model::{Topic, TopicHash, json::escape_into},
    publish::{Publish, Published, unanswered},
    quota::Waiting,
    request,
    settings::Settings,
    sse::GoAway,
};

/// What the result of an event that was stored takes, mostly, bytes.
const RESULT_BYTES: usize = 256;
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
/// Longest idempotency key, bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// What a line of NDJSON may have besides its data, bytes.
const LINE_OVERHEAD: usize = 16 * 1024;

pub(super) async fn publish(
    State(app): State<Arc<App>>,
    Caller(grant): Caller,
    Carried(carrier): Carried,
    BehindProxy(behind_proxy): BehindProxy,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let content_type = match once(&headers, "Content-Type")? {
        Some(value) => Some(value.to_str().map_err(|_| {
            let detail = "the content type is not ASCII";
            Problem::new(ErrorCode::UnsupportedMediaType, detail).at("Content-Type")
        })?),
        None => None,
    };
    if is_stream(content_type) {
        query::parameters(query.as_deref(), &[])?;
        if headers.contains_key(IDEMPOTENCY_KEY) {
            let detail = "a stream cannot be repeated as a whole; give its events ids";
            return Err(Problem::new(ErrorCode::Malformed, detail).at(IDEMPOTENCY_KEY));
        }
        let publisher = Publisher::open(&app.hub, grant, carrier, behind_proxy)?;
        return Ok(publish_stream(Arc::clone(&app), publisher, body));
    }
    let asked = Asked { content_type, query: query.as_deref(), headers: &headers };
    let body = async {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let length = length.and_then(|length| length.parse().ok());
        let mut room = admission::room_for_body(&app.hub, &grant, length).await?;
        let body = read_publish(&app.hub, body, &mut room).await;
        Ok((body.map_err(|problem| problem.at(""))?, room))
    };
    Ok(publish_body(&app, &grant, asked, body).await.into_response())
}

/// A request that publishes, but for its body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) content_type: Option<&'a str>,
    pub(super) query: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
}

/// Whether a body of this type is of this media type.
fn is_of(content_type: Option<&str>, kind: &str) -> bool {
    let essence = content_type.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case(kind)
}

/// Whether a body of this type is read line by line, each answered as it is stored.
pub(super) fn is_stream(content_type: Option<&str>) -> bool {
    is_of(content_type, "application/x-ndjson") || is_of(content_type, "application/jsonl")
}

fn bounds(hub: &Hub) -> Bounds {
    let Settings { event_bytes_max, publish_events_max, .. } = *hub.settings();
    Bounds { event_bytes_max, events_max: publish_events_max }
}

/// Publishes what a body holds. It is waited for, and its room held, once its publisher may publish.
pub(super) async fn publish_body(
    app: &App,
    grant: &Grant,
    asked: Asked<'_>,
    body: impl Future<Output = Result<(Bytes, Waiting), Problem>>,
) -> Answer {
    let trace = TraceContext::of(asked.headers);
    let work = pin!(async {
        let key = idempotency_key(asked.headers)?;
        app.hub.quotas().may_publish(grant)?;
        let (body, _room) = body.await?;
        let mut drafts = read(asked, body.clone(), bounds(&app.hub))?;
        if let Some(trace) = &trace {
            drafts.events.iter_mut().flatten().for_each(|draft| trace.give_to(&mut draft.publish));
        }
        let key = key.map(|key| (key, whole_request(asked, &body)));
        app.hub.quotas().publish(grant, drafts.events.len())?;
        let results = pin!(authorize_and_publish(app, grant, drafts.events, key)).await?;
        Ok(Answer::of(drafts.is_single, &results))
    });
    let work = work.map(|answer: Result<_, Problem>| answer.unwrap_or_else(Answer::from));
    match app.hub.spans().request(|| trace.as_ref().and_then(TraceContext::span)) {
        None => work.await,
        Some(span) => span.around(Box::pin(work), |answer| answer.status.as_u16()).await,
    }
}

/// Reads the body by its media type.
fn read(asked: Asked<'_>, body: Bytes, bounds: Bounds) -> Result<Drafts, Problem> {
    let Asked { content_type, query, headers } = asked;
    let single = |event| Drafts { is_single: true, events: vec![event] };
    if is_of(content_type, "application/cloudevents+json") {
        let topic = topic_parameter(query)?;
        let text = ingest::json_text(&body, "")?;
        return Ok(single(cloudevents::structured(text, bounds, topic.into())));
    }
    if is_of(content_type, "application/cloudevents-batch+json") {
        let topic = topic_parameter(query)?;
        return ingest::cloudevents_batch(&body, bounds, topic.as_ref());
    }
    if cloudevents::is_binary(headers) {
        let topic = topic_parameter(query)?;
        return Ok(single(cloudevents::binary(headers, body, bounds, topic)));
    }
    let parameters = query::parameters(query, ingest::PARAMETERS)?;
    // With its type in the query, a body is data whatever its media type.
    if is_of(content_type, "application/json") && parameters.is_empty() {
        return ingest::json(&body, bounds);
    }
    if parameters.is_empty() {
        let detail = "send the event with `Content-Type: application/json`, or its topic and type \
                      in the query and its data as the body";
        return Err(Problem::new(ErrorCode::Malformed, detail).at("topic"));
    }
    Ok(single(ingest::raw(parameters, content_type, body, bounds)))
}

fn topic_parameter(query: Option<&str>) -> Result<Option<Topic>, Problem> {
    let mut topic = None;
    for Parameter { value, .. } in query::parameters(query, &["topic"])? {
        topic = Some(Topic::parse(&value).map_err(|error| Problem::from(error).at("topic"))?);
    }
    Ok(topic)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = once(headers, IDEMPOTENCY_KEY)? else { return Ok(None) };
    // A structured-fields string may come in quotes; both spellings are one key.
    let key = value.to_str().ok().map(|text| text.trim_matches('"'));
    let fits = |key: &&str| (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len());
    let key = key.filter(fits).ok_or_else(|| {
        let detail = "must be 1 to 256 bytes of ASCII";
        Problem::new(ErrorCode::Malformed, detail).at(IDEMPOTENCY_KEY)
    })?;
    Ok(Some(key.to_owned()))
}

/// A header of which two would be a question that nobody can answer.
fn once<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(Problem::new(ErrorCode::Malformed, "this header is there twice").at(name));
    }
    Ok(value)
}

/// Everything that a request publishes: an idempotency key stands for all of it, not for its body
/// alone, which the query or `ce-` headers may send elsewhere.
fn whole_request(asked: Asked<'_>, body: &[u8]) -> Bytes {
    let Asked { content_type, query, headers } = asked;
    let mut whole = BytesMut::new();
    let mut put = |part: &[u8]| {
        whole.extend_from_slice(&(part.len() as u64).to_be_bytes());
        whole.extend_from_slice(part);
    };
    put(content_type.unwrap_or_default().as_bytes());
    put(query.unwrap_or_default().as_bytes());
    put(body);
    let mut attributes: Vec<_> =
        headers.iter().filter(|(name, _)| name.as_str().starts_with("ce-")).collect();
    attributes.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in attributes {
        put(name.as_str().as_bytes());
        put(value.as_bytes());
    }
    whole.freeze()
}

/// Publishes what may be published; the rest keeps its problem. One result for each event, in
/// order.
async fn authorize_and_publish(
    app: &App,
    grant: &Grant,
    drafts: Vec<Result<Draft, Problem>>,
    key: Option<(String, Bytes)>,
) -> Result<Vec<Result<Published, Problem>>, Problem> {
    let mut asked = Last::default();
    let count = drafts.len();
    let mut results: Vec<Option<Result<Published, Problem>>> = Vec::with_capacity(count);
    let (mut events, mut drafted) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for (number, draft) in drafts.into_iter().enumerate() {
        let checked = draft.and_then(|Draft { publish, fields }| {
            let topic = &publish.topic;
            match asked.of(topic, || may_write(grant, topic)) {
                Ok(owner) => Ok((Publish { owner: owner.clone(), ..publish }, fields)),
                Err(problem) => Err(placed(problem.clone(), &fields)),
            }
        });
        match checked {
            Ok((publish, fields)) => {
                events.push(publish);
                drafted.push((number, fields));
                results.push(None);
            }
            Err(problem) => results.push(Some(Err(problem))),
        }
    }
    let mut admission = Admission::of(&app.hub, grant.tenant(), &events).await?;
    let mut allowed = Vec::with_capacity(count);
    let (mut numbers, mut places) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for ((number, fields), publish) in drafted.into_iter().zip(events) {
        match admission.take(&publish) {
            Ok(()) => {
                allowed.push(publish);
                numbers.push(number);
                places.push(fields);
            }
            Err(problem) => {
                if let Some(result) = results.get_mut(number) {
                    *result = Some(Err(placed(problem, &fields)));
                }
            }
        }
    }
    for problem in results.iter().flatten().filter_map(|result| result.as_ref().err()) {
        Metrics::count(&app.hub.metrics().events_published, problem.code.as_str());
    }
    let storing = async {
        if let Some((key, body)) = key
            && !allowed.is_empty()
        {
            let (tenant, scope) = (grant.tenant(), grant.credential());
            let numbered = numbers.into_iter().zip(&mut allowed);
            // Few have one; most publishes need not carry what it takes.
            let binding = app.hub.bind_idempotency_key(tenant, scope, &key, &body, numbered);
            Box::pin(binding).await?;
        }
        Ok::<_, Problem>(app.hub.publish(grant.tenant(), allowed).await)
    };
    let stored = tokio::time::timeout(app.hub.settings().publish_store_max, storing).await;
    let published = stored.map_err(|_| {
        let detail = "the events were not stored in time; send them again with the same ids";
        Problem::new(ErrorCode::Unavailable, detail).after(Duration::from_secs(1))
    })??;
    admission.settle(&published);
    let published = published.into_iter().zip(places);
    let mut published =
        published.map(|(result, fields)| result.map_err(|problem| placed(problem, &fields)));
    let fill = |result: Option<_>| result.or_else(|| published.next()).unwrap_or_else(unanswered);
    Ok(results.into_iter().map(fill).collect())
}

/// Says which field of its event a refusal is about, if it is about one.
fn placed(mut problem: Problem, fields: &Fields) -> Problem {
    let field = match problem.code {
        ErrorCode::Conflict => Some("if_offset"),
        ErrorCode::ForbiddenTopic | ErrorCode::TopicClosed => Some("topic"),
        ErrorCode::StatesFull => Some("key"),
        _ => None,
    };
    problem.pointer = problem.pointer.or(field.map(|field| fields.at(field)));
    problem
}

/// The result of a refused event.
fn refused_json(problem: &Problem) -> Value {
    json!({ "error": problem::to_json(problem) })
}

/// What was found for the last topic: mostly it is the next one's, too, and finding it is cheap.
struct Last<T>(Option<(Topic, T)>);

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Last<T> {
    fn of(&mut self, topic: &Topic, find: impl FnOnce() -> T) -> &T {
        let last = self.0.take().filter(|(of, _)| of == topic);
        &self.0.insert(last.unwrap_or_else(|| (topic.clone(), find()))).1
    }
}

/// Writes what became of events.
#[derive(Default)]
struct Results {
    /// A topic as cursors hold it.
    topic: Last<TopicHash>,
}

impl Results {
    /// Writes one; a refused one of a stream is found by its line's number.
    fn put(&mut self, out: &mut String, result: &Result<Published, Problem>, line: Option<u64>) {
        let published = match result {
            Ok(published) => published,
            Err(problem) => {
                let mut json = refused_json(problem);
                if let (Some(line), Some(members)) = (line, json.as_object_mut()) {
                    members.insert("line".to_owned(), line.into());
                }
                let _ = write!(out, "{json}");
                return;
            }
        };
        // Written out: most of what a request's answer takes.
        out.reserve(RESULT_BYTES);
        out.push_str("{\"id\":");
        escape_into(out, published.id.as_str());
        for part in [",\"topic\":\"", published.topic.as_str(), "\",\"offset\":"] {
            out.push_str(part);
        }
        match published.position {
            Some(position) => {
                let hash = *self.topic.of(&published.topic, || (&published.topic).into());
                let _ = write!(out, "{},\"cursor\":\"", position.offset.0);
                hash.cursor_into(position.into(), out);
                out.push('"');
            }
            None => out.push_str("null,\"cursor\":null"),
        }
        out.push_str(",\"duplicate\":");
        out.push_str(if published.duplicate { "true" } else { "false" });
        if published.position.is_some() && published.durability != Durability::Always {
            let _ = write!(out, ",\"durability\":\"{}\"", published.durability.as_str());
        }
        out.push('}');
    }
}

/// What a request that publishes is answered, JSON.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Answer {
    /// 200 if anything was taken, else the first refusal's status.
    fn of(is_single: bool, results: &[Result<Published, Problem>]) -> Self {
        let refused = results.iter().all(Result::is_err);
        let first = results.iter().find_map(|result| result.as_ref().err());
        if let (true, Some(problem)) = (refused, first) {
            let mut body = problem::to_json(problem);
            if !is_single && let Some(members) = body.as_object_mut() {
                let errors = results.iter().filter_map(|result| result.as_ref().err());
                members.insert("results".to_owned(), errors.map(refused_json).collect());
            }
            return Self::refused(problem, body.to_string());
        }
        let mut body = String::with_capacity(RESULT_BYTES * (1 + results.len()));
        body.push_str("{\"results\":[");
        let mut written = Results::default();
        for (number, result) in results.iter().enumerate() {
            body.push_str(if number > 0 { "," } else { "" });
            written.put(&mut body, result, None);
        }
        body.push_str("]}");
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Self { status: StatusCode::OK, headers, body }
    }

    fn refused(problem: &Problem, body: String) -> Self {
        let (status, headers) = problem::head(problem);
        Self { status, headers, body }
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Self {
        Self::refused(&problem, problem::to_json(&problem).to_string())
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (self.status, self.headers, self.body).into_response()
    }
}

/// A stream of events in, a stream of results out, a line each. Whatever but its client ends it is
/// said in its last line; lines after the last result were not read.
fn publish_stream(app: Arc<App>, publisher: Publisher, body: Body) -> Response {
    let (request_id, bounds) = (request::id(), bounds(&app.hub));
    let lines = Lines::new(body, bounds.event_bytes_max + LINE_OVERHEAD);
    let stream = stream::unfold(Some((lines, app, publisher)), move |state| {
        let request_id = request_id.clone();
        // After its handler has returned, and its span with it.
        request::within_publish(request_id, async move {
            let (mut lines, app, mut publisher) = state?;
            let admitted = async {
                let idle_max = app.hub.settings().publish_idle_max;
                let (numbers, drafts) = match lines.next(bounds, Some(idle_max)).await {
                    Ok(read) => read?,
                    Err(Silent) => return Some(Err(GoAway::Slow)),
                };
                let room = admission::room_for_lines(&app.hub, &publisher.grant, &drafts).await;
                Some(Ok((numbers, drafts, room)))
            };
            let read = tokio::select! {
                // The end first: lines may go on for ever.
                biased;
                reason = publisher.ended() => Err(reason),
                admitted = admitted => admitted?,
            };
            let (mut out, mut written) = (String::new(), Results::default());
            let mut put = |result: &Result<Published, Problem>, line| {
                written.put(&mut out, result, line);
                out.push('\n');
            };
            let state = match read {
                Ok((numbers, drafts, _room)) => {
                    let work = authorize_and_publish(&app, &publisher.grant, drafts, None);
                    let status = |answer: &Result<_, Problem>| {
                        answer.as_ref().map_or_else(|problem| problem.code.status(), |_| 200)
                    };
                    // What was read together is a request: a stream may go on for ever.
                    let results = match app.hub.spans().request(|| None) {
                        None => work.await,
                        Some(span) => span.around(Box::pin(work), status).await,
                    };
                    // One result for each line, also where all are refused together.
                    let refused = |problem| vec![Err(problem); numbers.len()];
                    let results = results.unwrap_or_else(refused);
                    for (number, result) in numbers.into_iter().zip(results) {
                        put(&result, Some(number));
                    }
                    Some((lines, app, publisher))
                }
                Err(reason) => {
                    put(&Err(publisher.end(reason)), None);
                    None
                }
            };
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(out))), state))
        })
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
    ];
    // It may end while lines are still on their way.
    (headers, Extension(Linger), Body::new(StreamBody::new(stream))).into_response()
}

/// Lines' numbers, and their events.
type Read = (Vec<u64>, Vec<Result<Draft, Problem>>);

/// No line came for as long as may be.
#[derive(Debug)]
pub(super) struct Silent;

/// The lines of a body, as many at once as have arrived and one request may hold.
pub(super) struct Lines {
    body: Body,
    line_bytes_max: usize,
    buffer: BytesMut,
    /// Up to here the buffer is known to have no line end.
    searched: usize,
    /// Lines that were taken out so far, empty ones too.
    number: u64,
    /// The rest of a line that was too long is being passed over.
    skipping: bool,
    ended: bool,
}

impl Lines {
    pub(super) fn new(body: Body, line_bytes_max: usize) -> Self {
        let buffer = BytesMut::new();
        Self { body, line_bytes_max, buffer, searched: 0, number: 0, skipping: false, ended: false }
    }

    /// Waits for lines, and returns their numbers and events; `None` after the last.
    ///
    /// # Errors
    /// [`Silent`] if for so long none came, not even an empty one.
    pub(super) async fn next(
        &mut self,
        bounds: Bounds,
        idle_max: Option<Duration>,
    ) -> Result<Option<Read>, Silent> {
        let mut last = (self.number, Instant::now());
        loop {
            let mut numbers = Vec::new();
            let mut drafts = Vec::new();
            while drafts.len() < bounds.events_max
                && let Some(draft) = self.line(bounds)
            {
                numbers.push(self.number);
                drafts.push(draft);
            }
            if !drafts.is_empty() {
                return Ok(Some((numbers, drafts)));
            }
            if self.ended {
                return Ok(None);
            }
            if self.number != last.0 {
                last = (self.number, Instant::now());
            }
            let frame = match idle_max {
                Some(idle_max) => timeout_at(last.1 + idle_max, self.body.frame()).await,
                None => Ok(self.body.frame().await),
            };
            match frame.map_err(|_| Silent)? {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                // A body that breaks off: what came whole is stored, the broken line is not.
                Some(Err(_)) => {
                    self.buffer.clear();
                    self.ended = true;
                }
                None => self.ended = true,
            }
        }
    }

    /// Takes one line out of the buffer; empty ones are passed over.
    fn line(&mut self, bounds: Bounds) -> Option<Result<Draft, Problem>> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            let end = unsearched.iter().position(|byte| *byte == b'\n');
            let line = match end.map(|end| self.searched + end) {
                Some(end) => {
                    let mut line = self.buffer.split_to(end + 1);
                    line.truncate(end);
                    self.searched = 0;
                    line
                }
                None if self.ended && !self.buffer.is_empty() => {
                    self.searched = 0;
                    self.buffer.split()
                }
                None => {
                    self.searched = self.buffer.len();
                    if self.searched <= self.line_bytes_max {
                        return None;
                    }
                    self.buffer.clear();
                    self.searched = 0;
                    if std::mem::replace(&mut self.skipping, true) {
                        return None;
                    }
                    self.number += 1;
                    return Some(Err(self.too_long()));
                }
            };
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            self.number += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            if line.len() > self.line_bytes_max {
                return Some(Err(self.too_long()));
            }
            return Some(ingest::line(&line, bounds));
        }
    }

    fn too_long(&self) -> Problem {
        let detail = format!("the line is longer than {} bytes", self.line_bytes_max);
        Problem::new(ErrorCode::TooLarge, detail).at("")
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::StreamExt as _;

    use super::*;

    /// How a stream ends whose pieces come so many seconds apart, with 5 s without a line.
    async fn read(piece: &'static str, pieces: usize) -> Result<u64, Silent> {
        let pieces = stream::iter(0..pieces).then(move |_| async move {
            tokio::time::sleep(Duration::from_secs(4)).await;
            Ok::<_, Infallible>(piece)
        });
        let mut lines = Lines::new(Body::from_stream(pieces), 1000);
        let bounds = Bounds { event_bytes_max: 1000, events_max: 10 };
        while lines.next(bounds, Some(Duration::from_secs(5))).await?.is_some() {}
        Ok(lines.number)
    }

    /// Broken on purpose, it failed: with the time counted from the last piece.
    #[tokio::test(start_paused = true)]
    async fn a_stream_stays_open_by_lines_and_not_by_bytes() {
        assert!(matches!(read("\n", 10).await, Ok(10)));
        assert!(matches!(read("{}\n", 10).await, Ok(10)));
        let begun = Instant::now();
        assert!(matches!(read("x", 10).await, Err(Silent)));
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
    }
}
