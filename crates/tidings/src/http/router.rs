//! The routes, and what all of them share.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, Method, Uri, Version, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use ipnet::IpNet;

use super::{
    caller, connections,
    cookie::{Cookie, CookieSettings},
    cors::{Cors, Crossed},
    events, follow, health,
    observe::{Observed, is_stream},
    openapi,
    problem::Named,
    query,
    rest::Rest,
    revocations, state, tickets, topics,
};
use crate::{
    auth::Authenticator,
    error::{ErrorCode, Problem},
    hub::Hub,
};

/// What the HTTP interface needs to know besides the hub.
#[derive(Debug, Clone, Default)]
pub struct HttpSettings {
    /// Origins whose pages may read answers, exactly as browsers send them: `https://app.example`.
    pub cors_origins: Vec<String>,
    /// Networks of the reverse proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether `/metrics` is here too, for anybody who asks; operators have [`Hub::metrics`].
    pub metrics: bool,
    /// The cookie that may carry a token; without it, none counts.
    pub cookie: Option<CookieSettings>,
}

impl HttpSettings {
    /// Looks for what cannot be.
    ///
    /// # Errors
    /// A problem whose pointer names the setting.
    pub fn check(&self) -> Result<(), Problem> {
        Cors::new(&self.cors_origins)?;
        self.cookie.as_ref().map(Cookie::new).transpose().map(drop)
    }
}

/// What every handler gets.
#[derive(Debug)]
pub(super) struct App {
    pub(super) hub: Hub,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) cookie: Option<Cookie>,
    pub(super) trusted_proxies: Vec<IpNet>,
    pub(super) cors: Cors,
}

/// What is around every handler. One layer: each copies and boxes all that are within it, for every
/// request (measured 2026-11: five were half of what a publish takes).
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let App { hub, cors, .. } = &*app;
    let named = Named::of(&request);
    let is_http1 = request.version() <= Version::HTTP_11;
    let answer = async {
        let observed = Observed::of(&request);
        let mut crossed = Crossed::of(&request, cors);
        let mut response = match crossed.preflight.take() {
            Some(preflight) => preflight,
            None => {
                let (request, rest) = Rest::of(request);
                let mut response = match caller::refuse_encoded(request.headers()) {
                    Ok(()) => next.run(request).await,
                    Err(problem) => {
                        drop(request);
                        problem.into_response()
                    }
                };
                rest.read(&mut response, hub).await;
                response
            }
        };
        crossed.mark(&mut response);
        observed.answered(response.status(), is_stream(response.headers()), hub.metrics());
        if hub.is_leaving() && is_http1 {
            // Else the client's next request may be on its way when the connection is closed.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    };
    named.around(answer).await
}

/// What [`serve`](super::serve()) serves: an HTTP interface, and what of it needs no router.
///
/// Any router is one. [`Hub::service`] is that of a hub, with publishes on HTTP/1.1 answered without
/// it where they are plain.
#[derive(Debug, Clone)]
pub struct Service {
    pub(super) router: Router,
    /// Whose publishes are answered so.
    pub(super) app: Option<Arc<App>>,
}

impl Service {
    /// The same with the routes of another router too.
    ///
    /// # Panics
    /// If both have a route: that of [`Router::merge`].
    #[must_use]
    pub fn merge(self, other: Router) -> Self {
        Self { router: self.router.merge(other), ..self }
    }
}

impl From<Router> for Service {
    fn from(router: Router) -> Self {
        Self { router, app: None }
    }
}

impl Hub {
    /// The hub's HTTP interface, to nest into another application's router.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// use tidings::{Hub, auth::{AuthSettings, Authenticator}, http::HttpSettings};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::builder().start();
    /// let authenticator = Arc::new(Authenticator::new(&AuthSettings::default())?);
    /// let live = hub.router(authenticator, &HttpSettings::default())?;
    /// let app: axum::Router = axum::Router::new().nest("/live", live);
    /// # drop(app); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// That of [`HttpSettings::check`].
    pub fn router(
        &self,
        authenticator: Arc<Authenticator>,
        settings: &HttpSettings,
    ) -> Result<Router, Problem> {
        self.service(authenticator, settings).map(|service| service.router)
    }

    /// The hub's HTTP interface, to serve alone. What publishes is answered in less time than by
    /// [`Self::router`], and in no other way.
    ///
    /// # Errors
    /// That of [`HttpSettings::check`].
    pub fn service(
        &self,
        authenticator: Arc<Authenticator>,
        settings: &HttpSettings,
    ) -> Result<Service, Problem> {
        let cors = Cors::new(&settings.cors_origins)?;
        let cookie = settings.cookie.as_ref().map(Cookie::new).transpose()?;
        let (keeper, metrics) = (Arc::clone(&authenticator), self.shared_metrics());
        self.trust(&authenticator);
        let opened = self.clone();
        self.background(async move {
            keeper.keep_keys_telling(&metrics, &|| opened.look_again()).await;
        });
        let (hub, trusted_proxies) = (self.clone(), settings.trusted_proxies.clone());
        let app = Arc::new(App { hub, authenticator, cookie, trusted_proxies, cors });
        let metrics = if settings.metrics {
            Router::new().route("/metrics", get(health::metrics))
        } else {
            Router::new()
        };
        let no_parameters = || middleware::from_fn(query::refuse_all);
        let router = Router::new()
            .route("/v1/events", get(follow::follow).post(events::publish))
            .route("/v1/state", get(state::snapshot))
            .route("/v1/topics", get(topics::list))
            .route(
                "/v1/topics/{*topic}",
                get(topics::show)
                    .put(topics::put)
                    .delete(topics::delete)
                    .route_layer(no_parameters()),
            )
            .route("/v1/tickets", post(tickets::issue).route_layer(no_parameters()))
            .route("/v1/revocations", post(revocations::revoke).route_layer(no_parameters()))
            .route(
                "/v1/connections/{id}/auth",
                post(connections::renew).route_layer(no_parameters()),
            )
            // Probes and caches add parameters of their own to these.
            .route("/health/live", get(health::live))
            .route("/health/ready", get(health::ready))
            .route("/openapi.json", get(openapi::document))
            .merge(metrics)
            .fallback(async |uri: Uri| {
                Problem::new(ErrorCode::NotFound, format!("there is nothing at {}", uri.path()))
            })
            .method_not_allowed_fallback(async |method: Method| {
                let detail = format!("this resource does not have the method {method}");
                Problem::new(ErrorCode::MethodNotAllowed, detail)
            })
            .layer(middleware::from_fn_with_state(Arc::clone(&app), around))
            // Handlers bound their bodies themselves, each by its own limit.
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&app));
        Ok(Service { router, app: Some(app) })
    }
}
