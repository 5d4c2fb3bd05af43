//! The admin listener: health and metrics for operators, and what they may look at and change.
//!
//! The rules: everything under `/admin/v1` asks for the operators' token, and every change is one
//! line of the log with the target `audit`, whatever came of it.

mod audit;
mod connections;
mod credentials;
mod resources;
mod token;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde_json::json;
use subtle::ConstantTimeEq as _;
use tidings::{
    Hub,
    auth::{Authenticator, Secret},
    error::{ErrorCode, Problem},
    http::{Peer, identify},
    source::amqp::AmqpSource,
};

pub(crate) use self::token::TOKEN_FILE;
use crate::{components::Components, config::Loaded, exit::Failure};

/// What operators' requests are answered from.
#[derive(Debug, Clone)]
pub(crate) struct Admin(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hub: Hub,
    authenticator: Arc<Authenticator>,
    /// What else brings events.
    sources: Vec<AmqpSource>,
    token: Secret,
    /// Every setting in effect, secrets redacted.
    settings: serde_json::Value,
    allow_cleartext: bool,
}

impl Admin {
    /// Finds the operators' token, or makes it, in the data directory. Takes the sources over.
    pub(crate) fn new(loaded: &Loaded, components: &mut Components) -> Result<Self, Failure> {
        let config = &loaded.config;
        let token = match &config.admin.token {
            Some(token) => token.clone(),
            None => token::load_or_create(&config.data)?,
        };
        Ok(Self(Arc::new(Inner {
            hub: components.hub.clone(),
            authenticator: Arc::clone(&components.authenticator),
            sources: std::mem::take(&mut components.sources),
            token,
            settings: crate::config::effective(loaded),
            allow_cleartext: config.admin.allow_cleartext,
        })))
    }

    /// Whether operators beyond loopback may speak cleartext.
    pub(crate) fn allow_cleartext(&self) -> bool {
        self.0.allow_cleartext
    }

    /// The listener's routes.
    pub(crate) fn router(&self) -> Router {
        let no_parameters = || middleware::from_fn(resources::no_parameters);
        let guarded = Router::new()
            .route("/admin/v1/nodes", get(resources::nodes).route_layer(no_parameters()))
            .route(
                "/admin/v1/connections",
                get(connections::list).delete(connections::end_of_subject),
            )
            .route(
                "/admin/v1/connections/{id}",
                delete(connections::end).route_layer(no_parameters()),
            )
            .route("/admin/v1/keys", get(credentials::keys).route_layer(no_parameters()))
            .route("/admin/v1/revocations", get(credentials::revocations).delete(credentials::lift))
            .route("/admin/v1/topics", get(resources::topics))
            .route("/admin/v1/trim", post(resources::trim))
            .route("/admin/v1/config", get(resources::config).route_layer(no_parameters()))
            .route_layer(middleware::from_fn_with_state(self.clone(), guard));
        Router::new()
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .route("/metrics", get(metrics))
            .merge(guarded)
            .fallback(async |uri: Uri| {
                Problem::new(ErrorCode::NotFound, format!("there is nothing at {}", uri.path()))
            })
            .method_not_allowed_fallback(async |method: Method| {
                let detail = format!("this resource does not have the method {method}");
                Problem::new(ErrorCode::MethodNotAllowed, detail)
            })
            .layer(middleware::from_fn(identify))
            .with_state(self.clone())
    }
}

/// Lets in who has the token.
async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    let given = request.headers().get(header::AUTHORIZATION);
    let bearer = given.and_then(|value| value.to_str().ok()?.split_once(' '));
    let token = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let Some((_, token)) = token else {
        let detail = "send `Authorization: Bearer` with the operators' token";
        return Problem::new(ErrorCode::CredentialMissing, detail).into_response();
    };
    let expected = admin.0.token.expose().as_bytes();
    if !bool::from(token.trim().as_bytes().ct_eq(expected)) {
        audit::refused(peer);
        let detail = "this is not the operators' token of this hub";
        return Problem::new(ErrorCode::CredentialInvalid, detail).into_response();
    }
    next.run(request).await
}

/// The process answers: that is all this says.
async fn live() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], "{\"status\":\"live\"}").into_response()
}

/// Whether the hub takes and serves events; unlike the public answer, with the reason.
async fn ready(State(admin): State<Admin>) -> Response {
    match admin.0.hub.unready() {
        None => {
            // What works only in part is nobody's reason to send readers elsewhere.
            let bus = admin.0.hub.bus_failure().map(|failure| format!("bus: {failure}"));
            let sources = admin.0.sources.iter().filter_map(AmqpSource::failure);
            let sources = sources.map(|failure| format!("source: {failure}"));
            let degraded: Vec<String> = bus.into_iter().chain(sources).collect();
            let body = if degraded.is_empty() {
                json!({ "status": "ready" })
            } else {
                json!({ "status": "ready", "degraded": degraded })
            };
            ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
        }
        Some(reason) => {
            let body = json!({
                "type": "urn:tidings:problem:unavailable", "title": "Unavailable", "status": 503,
                "code": "unavailable", "detail": reason, "retryable": true, "retry_after_ms": 1000,
            });
            let headers =
                [(header::CONTENT_TYPE, "application/problem+json"), (header::RETRY_AFTER, "1")];
            (StatusCode::SERVICE_UNAVAILABLE, headers, body.to_string()).into_response()
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.0.hub.metrics_text()).into_response()
}
