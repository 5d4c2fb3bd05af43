//! `GET /v1/events`: following topics as SSE, NDJSON or long-poll.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;

use super::{
    caller::{Carried, authenticate},
    chunks::LongAnswer,
    proxy::BehindProxy,
    query,
    router::App,
};
use crate::{
    auth::{Grant, Secret},
    connection::{Carrier, Connection, ConnectionOptions, Envelope, Format, Waiting},
    error::{ErrorCode, Problem},
    ingest::{Parameter, text::duration},
    model::{
        Class, Cursor, Timestamp, Topic,
        limits::{CONNECTION_FILTERS_MAX, LONG_POLL_WAIT_MAX},
    },
    subscribe::{Filter, Follow, Since, States, is_type_filter, keys},
    ticket::{FoundTicket, first_cursor},
};

/// Query parameters.
pub(super) const PARAMETERS: &[&str] = &[
    "topic",
    "type",
    "key",
    "class",
    "since",
    "last_event_id",
    "state",
    "envelope",
    "wait",
    "ticket",
];
/// Those of them that may be repeated.
const REPEATABLE: &[&str] = &["topic", "type", "key", "class"];

const SINCE_RULE: &str = "must be now, earliest, latest:N, a duration like 10m, or a time like \
                          2026-11-21T07:00:00Z (RFC 3339, from 1970 to 9999; `+` is `%2B` here)";

/// What a reader asks for.
#[derive(Debug)]
pub(super) struct Request {
    topics: Vec<Topic>,
    cursor: Option<String>,
    since: Option<Since>,
    filter: Filter,
    states: States,
    envelope: Envelope,
    wait: Duration,
    ticket: Option<Secret>,
    answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Stream(Format),
    Page,
}

pub(super) async fn follow(
    State(app): State<Arc<App>>,
    method: Method,
    Carried(carrier): Carried,
    behind_proxy: BehindProxy,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    match answer(&app, &method, carrier, &behind_proxy, query.as_deref(), &headers).await {
        Ok(response) => response,
        Err(problem) => refusal(&headers, &problem, None),
    }
}

/// The problem as an answer that its reader survives.
///
/// A native `EventSource` gives up for good on any status but 200 (WHATWG HTML §9.2.2): what may
/// pass is told to it in a stream that ends. It is known by asking for events without a credential
/// in a header, which it cannot send.
///
/// `first` is a cursor that such a reader must have to come back.
pub(super) fn refusal(headers: &HeaderMap, problem: &Problem, first: Option<Cursor>) -> Response {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let is_native = !headers.contains_key(header::AUTHORIZATION)
        && accepts.flat_map(|value| value.split(',')).any(|one| one.trim() == "text/event-stream");
    if problem.code.retryable() && is_native {
        return soft_refusal(problem, first);
    }
    problem.clone().into_response()
}

async fn answer(
    app: &App,
    method: &Method,
    carrier: Carrier,
    behind_proxy: &BehindProxy,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let request = parse(query, headers, app.hub.clock().now())?;
    if app.hub.draining().is_cancelled() {
        let detail = "the hub is draining; come back";
        return Err(Problem::new(ErrorCode::Unavailable, detail).after(Duration::from_secs(1)));
    }
    let (grant, ticket) = credential(app, method, headers, &request).await?;
    let topics = if request.topics.is_empty() { grant.feed() } else { request.topics.clone() };
    readable(app, &grant, &topics).await?;
    let follow = Follow {
        topics: keys(grant.tenant(), &topics),
        // One that covers nothing yet is only its ticket's.
        cursor: request
            .cursor
            .clone()
            .filter(|text| !Cursor::decode(text).is_ok_and(|c| c.is_empty())),
        since: request.since,
        filter: request.filter,
        states: request.states,
        tag: ticket.as_ref().map(|ticket| ticket.tag),
    };
    if request.answer != Answer::Page
        && let Some(Ok(cursor)) = follow.cursor.as_deref().map(Cursor::decode)
        && app.hub.is_finished(&follow.topics, &cursor).await?
    {
        // Tells a native EventSource to stay away: nothing can follow (WHATWG HTML §9.2.2).
        return Ok((StatusCode::NO_CONTENT, stream_headers(None)).into_response());
    }
    if method == Method::HEAD {
        return Ok(match request.answer {
            Answer::Page => (PAGE_HEADERS, unsent()).into_response(),
            Answer::Stream(format) => (stream_headers(Some(format)), unsent()).into_response(),
        });
    }
    let places = app.hub.quotas().stream(&grant, behind_proxy.0)?;
    match request.answer {
        Answer::Page => {
            // A page that is waited for is not delivered after the credential's end either.
            let left = grant.expires_at().map(|end| app.hub.clock().now().until(end));
            let wait = left.map_or(request.wait, |left| request.wait.min(left));
            let open = app.hub.metrics().connections.open(carrier.label("long_poll"));
            let page = page(app, &grant, follow, request.envelope, wait).await?;
            drop((places, open));
            use_up(app, ticket.as_ref()).await?;
            Ok(page)
        }
        Answer::Stream(format) => {
            // Last: a ticket whose request is refused serves its reader again.
            if let Err(problem) = use_up(app, ticket.as_ref()).await {
                // It may be used up all the same.
                let first = follow.tag.map(|tag| first_cursor(follow.cursor.as_deref(), tag));
                return Ok(refusal(headers, &problem, first.flatten()));
            }
            let options = ConnectionOptions {
                format,
                envelope: request.envelope,
                expires_at: grant.expires_at(),
            };
            let ticket = ticket.map(FoundTicket::into_used);
            let connection = Connection::open(&app.hub, follow, options)
                .carried_by(carrier)
                .guarded_by(grant, ticket);
            let body = Body::new(Events { connection: connection.into(), _places: places });
            Ok((stream_headers(Some(format)), Extension(LongAnswer), body).into_response())
        }
    }
}

/// A connection as a body. Its places are given back with it, however it ends.
struct Events<P> {
    connection: Waiting,
    _places: P,
}

impl<P: Unpin> http_body::Body for Events<P> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.connection.poll_next(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The body of an answer to HEAD: of no length that could be told, and never read.
fn unsent() -> Body {
    Body::from_stream(stream::empty::<Result<Bytes, Infallible>>())
}

/// Who follows: by a credential of their own, else by a ticket, which is not used up yet.
async fn credential(
    app: &App,
    method: &Method,
    headers: &HeaderMap,
    request: &Request,
) -> Result<(Grant, Option<FoundTicket>), Problem> {
    match &request.ticket {
        Some(_) if method == Method::HEAD && !headers.contains_key(header::AUTHORIZATION) => {
            let detail = "HEAD would use up the ticket; send `Authorization: Bearer`";
            Err(Problem::new(ErrorCode::CredentialMissing, detail))
        }
        Some(ticket) if !headers.contains_key(header::AUTHORIZATION) => {
            let cursor = request.cursor.as_deref();
            let ticket = app.hub.find_ticket(ticket.expose(), cursor).await?;
            Ok((ticket.grant.clone(), Some(ticket)))
        }
        _ => Ok((authenticate(app, method, headers).await?, None)),
    }
}

async fn use_up(app: &App, ticket: Option<&FoundTicket>) -> Result<(), Problem> {
    match ticket {
        Some(ticket) => app.hub.use_ticket(ticket).await,
        None => Ok(()),
    }
}

/// The first topic that the grant does not cover refuses the request, whether it exists or not.
async fn readable(app: &App, grant: &Grant, topics: &[Topic]) -> Result<(), Problem> {
    if topics.is_empty() {
        let detail = "name at least one topic; this credential has no feed";
        return Err(Problem::new(ErrorCode::Malformed, detail).at("topic"));
    }
    let topics_max = app.hub.settings().connection_topics_max;
    if topics.len() > topics_max {
        let detail = format!("there are more than {topics_max} topics");
        return Err(Problem::new(ErrorCode::TooLarge, detail).at("topic"));
    }
    for topic in topics {
        if !app.hub.may_read(grant, topic).await? {
            let detail = format!("this credential may not read the topic {topic}");
            return Err(Problem::new(ErrorCode::ForbiddenTopic, detail).at("topic"));
        }
    }
    Ok(())
}

async fn page(
    app: &App,
    grant: &Grant,
    follow: Follow,
    envelope: Envelope,
    wait: Duration,
) -> Result<Response, Problem> {
    let page = app.hub.poll(Some(grant), follow, envelope, wait).await?;
    let mut body = b"{\"events\":[".to_vec();
    for (number, event) in page.events.iter().enumerate() {
        if number > 0 {
            body.push(b',');
        }
        body.extend_from_slice(event);
    }
    let rest = format!(
        "],\"gaps\":{},\"cursor\":\"{}\",\"closed\":{}}}",
        serde_json::Value::Array(page.gaps),
        page.cursor,
        page.closed,
    );
    body.extend_from_slice(rest.as_bytes());
    Ok((PAGE_HEADERS, body).into_response())
}

const PAGE_HEADERS: [(HeaderName, &str); 2] =
    [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];

fn stream_headers(format: Option<Format>) -> HeaderMap {
    let mut headers = HeaderMap::from_iter([
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
        // nginx buffers answers unless it is told not to.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        (header::VARY, HeaderValue::from_static("Accept, Authorization, Cookie")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ]);
    let kind = match format {
        Some(Format::Sse) => Some("text/event-stream"),
        Some(Format::Ndjson) => Some("application/x-ndjson"),
        None => None,
    };
    headers.extend(kind.map(|kind| (header::CONTENT_TYPE, HeaderValue::from_static(kind))));
    headers
}

fn soft_refusal(problem: &Problem, first: Option<Cursor>) -> Response {
    let retry_ms = problem.retry_after.unwrap_or(Duration::from_secs(5)).as_millis().max(1000);
    let first = first.map(|cursor| format!("id: {}\n\n", cursor.encode())).unwrap_or_default();
    let body = format!(
        "{first}retry: {retry_ms}\nevent: tidings.problem\ndata: {}\n\n\
         event: tidings.goaway\ndata: {{\"reason\":\"unavailable\",\"retry_ms\":{retry_ms}}}\n\n",
        super::problem::to_json(problem),
    );
    (stream_headers(Some(Format::Sse)), body).into_response()
}

/// Reads the query and headers.
pub(super) fn parse(
    query: Option<&str>,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<Request, Problem> {
    let mut request = Request {
        topics: Vec::new(),
        cursor: None,
        since: None,
        filter: Filter::default(),
        states: States::First,
        envelope: Envelope::CloudEvents,
        wait: LONG_POLL_WAIT_MAX,
        ticket: None,
        answer: accepted(headers)?,
    };
    for Parameter { name, value } in query::repeatable(query, PARAMETERS, REPEATABLE)? {
        let wrong = |rule: &str| Problem::new(ErrorCode::Malformed, rule).at(&*name);
        match &*name {
            "topic" => {
                let topic = Topic::parse(&value).map_err(|e| Problem::from(e).at("topic"))?;
                if !request.topics.contains(&topic) {
                    request.topics.push(topic);
                }
            }
            "type" if is_type_filter(&value) => request.filter.types.push(value),
            "type" => return Err(wrong("must be an event type, or one that ends in `.*`")),
            "key" if !value.is_empty() => request.filter.keys.push(value),
            "key" => return Err(wrong("must be a key, or the beginning of one and `*`")),
            "class" => {
                let class = Class::parse(&value);
                let class = class.ok_or_else(|| wrong("must be log, state or ephemeral"))?;
                request.filter.classes.push(class);
            }
            "since" => {
                request.since = Some(since(&value, now).ok_or_else(|| wrong(SINCE_RULE))?);
            }
            "last_event_id" => request.cursor = Some(value),
            "state" => {
                request.states = match &*value {
                    "1" => States::First,
                    "0" => States::Skip,
                    _ => return Err(wrong("must be 0 or 1")),
                }
            }
            "envelope" if value == "none" => request.envelope = Envelope::None,
            "envelope" => return Err(wrong("must be none")),
            "wait" => {
                let wait = duration(&value).filter(|wait| *wait <= LONG_POLL_WAIT_MAX);
                request.wait = wait.ok_or_else(|| wrong("must be a duration of at most 25s"))?;
            }
            _ => request.ticket = Some(Secret::new(value)),
        }
    }
    let filters = &request.filter;
    if filters.types.len() + filters.keys.len() + filters.classes.len() > CONNECTION_FILTERS_MAX {
        let detail = format!("there are more than {CONNECTION_FILTERS_MAX} filters");
        return Err(Problem::new(ErrorCode::TooLarge, detail).at("type"));
    }
    // The header wins: an EventSource sends its newest position there, the query is its first.
    let mut ids = headers.get_all("last-event-id").iter();
    if let Some(id) = ids.next() {
        // Two of them, longer than any cursor, or not text: still answered in the stream, as a gap.
        let id = id.to_str().ok().filter(|_| ids.next().is_none());
        request.cursor = Some(id.unwrap_or("?").to_owned());
    }
    request.cursor = request.cursor.filter(|cursor| !cursor.is_empty());
    Ok(request)
}

fn since(text: &str, now: Timestamp) -> Option<Since> {
    match text {
        "now" => Some(Since::Now),
        "earliest" => Some(Since::Earliest),
        _ => {
            if let Some(count) = text.strip_prefix("latest:") {
                return count.parse().ok().map(Since::Latest);
            }
            let at = || duration(text).map(|ago| now.minus(ago));
            Timestamp::parse(text).or_else(at).map(Since::At)
        }
    }
}

/// Chooses the best of what the reader accepts (RFC 9110 §12.5.1); SSE where it does not mind.
fn accepted(headers: &HeaderMap) -> Result<Answer, Problem> {
    let offers = [
        ("text/event-stream", Answer::Stream(Format::Sse)),
        ("application/x-ndjson", Answer::Stream(Format::Ndjson)),
        ("application/jsonl", Answer::Stream(Format::Ndjson)),
        ("application/json", Answer::Page),
    ];
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<(String, f32)> =
        accepts.flat_map(|value| value.split(',')).filter_map(range).collect();
    if ranges.is_empty() {
        return Ok(Answer::Stream(Format::Sse));
    }
    let quality = |kind: &str| {
        let family = kind.split('/').next().unwrap_or_default();
        let exact = ranges.iter().find(|(range, _)| range == kind);
        let family = || ranges.iter().find(|(range, _)| *range == format!("{family}/*"));
        let any = || ranges.iter().find(|(range, _)| range == "*/*");
        exact.or_else(family).or_else(any).map_or(0.0, |(_, quality)| *quality)
    };
    let mut best = None;
    for (kind, answer) in offers {
        let quality = quality(kind);
        if quality > best.map_or(0.0, |(_, best)| best) {
            best = Some((answer, quality));
        }
    }
    best.map(|(answer, _)| answer).ok_or_else(|| {
        let detail = "events are served as text/event-stream, application/x-ndjson or \
                      application/json";
        Problem::new(ErrorCode::NotAcceptable, detail).at("Accept")
    })
}

fn range(text: &str) -> Option<(String, f32)> {
    let mut parts = text.split(';');
    let kind = parts.next()?.trim().to_ascii_lowercase();
    let quality = parts.find_map(|part| part.trim().strip_prefix("q=")?.parse().ok());
    // An empty header, or an empty element of a list, says nothing (RFC 9110 §5.6.1).
    (!kind.is_empty()).then(|| (kind, quality.unwrap_or(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Request, Problem> {
        parse(Some(query), &HeaderMap::new(), Timestamp::from_millis(1_000_000_000))
    }

    #[test]
    fn a_query_says_what_is_followed() {
        let request = read(
            "topic=user%2F42&topic=user/42&topic=b&type=job.*&key=run/*&class=state\
             &since=latest:5&state=0&envelope=none&wait=5s&ticket=t&last_event_id=x",
        )
        .unwrap();
        assert_eq!(request.topics.len(), 2);
        assert_eq!(request.since, Some(Since::Latest(5)));
        assert_eq!((request.states, request.envelope), (States::Skip, Envelope::None));
        assert_eq!(request.wait, Duration::from_secs(5));
        assert_eq!(request.cursor.as_deref(), Some("x"));
        let at = Since::At(Timestamp::from_millis(1_000_000_000 - 600_000));
        assert_eq!(read("since=10m").unwrap().since, Some(at));
        for (bad, pointer) in [
            ("topic=a//b", "topic"),
            ("type=A", "type"),
            ("type=a*", "type"),
            ("class=x", "class"),
            ("since=soon", "since"),
            ("since=latest:x", "since"),
            ("state=2", "state"),
            ("envelope=some", "envelope"),
            ("wait=26s", "wait"),
            ("tpic=a", "tpic"),
        ] {
            assert_eq!(read(bad).unwrap_err().pointer.as_deref(), Some(pointer), "{bad}");
        }
    }

    #[test]
    fn the_accept_header_chooses_the_form() {
        let chosen = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            accepted(&headers).ok()
        };
        let sse = Some(Answer::Stream(Format::Sse));
        let ndjson = Some(Answer::Stream(Format::Ndjson));
        assert_eq!(accepted(&HeaderMap::new()).ok(), sse);
        for (accept, want) in [
            ("", sse),
            (" , ", sse),
            (", application/json", Some(Answer::Page)),
            ("*/*", sse),
            ("text/event-stream", sse),
            ("text/*", sse),
            ("application/x-ndjson", ndjson),
            ("application/json", Some(Answer::Page)),
            ("application/json, text/event-stream;q=0.5", Some(Answer::Page)),
            ("application/json;q=0.5, text/event-stream", sse),
            ("text/html", None),
            ("text/event-stream;q=0", None),
        ] {
            assert_eq!(chosen(accept), want, "{accept}");
        }
    }

    #[test]
    fn the_header_wins_over_the_query() {
        let mut headers = HeaderMap::new();
        headers.insert("last-event-id", HeaderValue::from_static("new"));
        let request = parse(Some("last_event_id=old"), &headers, Timestamp::default()).unwrap();
        assert_eq!(request.cursor.as_deref(), Some("new"));
        headers.append("last-event-id", HeaderValue::from_static("newer"));
        let request = parse(None, &headers, Timestamp::default()).unwrap();
        assert!(request.cursor.is_some_and(|cursor| Cursor::decode(&cursor).is_err()));
    }
}
