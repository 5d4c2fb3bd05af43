//! The request that is being answered: its id, for its answer and for what is logged of it.
//!
//! The rule: every line that is logged of a request has its id. It is that of the span around it;
//! publishes are not within one, which would take a tenth of what they do, so what is logged of them
//! is logged by [`logged`].

use tracing::Span;

/// The request that is being answered.
#[derive(Debug, Clone)]
struct Request {
    id: String,
    /// Whether its span is around what is done for it.
    has_span: bool,
}

tokio::task_local! {
    static REQUEST: Request;
}

/// A new request's id.
pub(crate) fn new_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// The id of the request that is being answered; empty where there is none.
pub(crate) fn id() -> String {
    REQUEST.try_with(|request| request.id.clone()).unwrap_or_default()
}

/// What is logged of a request is within this.
pub(crate) fn span(id: &str, method: &str, path: &str) -> Span {
    tracing::info_span!("request", request_id = id, method, path)
}

/// That of a request that publishes.
pub(crate) fn publish_span(id: &str) -> Span {
    span(id, "POST", "/v1/events")
}

/// Does a request's work under its id; its span is around this.
pub(crate) fn within<T>(id: String, work: impl Future<Output = T>) -> impl Future<Output = T> {
    REQUEST.scope(Request { id, has_span: true }, work)
}

/// Does a publish's work under its id, without a span.
pub(crate) fn within_publish<T>(
    id: String,
    work: impl Future<Output = T>,
) -> impl Future<Output = T> {
    REQUEST.scope(Request { id, has_span: false }, work)
}

/// Logs something that may be about a request.
pub(crate) fn logged(log: impl FnOnce()) {
    let id = REQUEST.try_with(|request| (!request.has_span).then(|| request.id.clone()));
    match id {
        Ok(Some(id)) => publish_span(&id).in_scope(log),
        _ => log(),
    }
}
