//! Builds the hub and what serves it from the configuration.
//!
//! The rule: everything that can be wrong is found here, before the first connection is accepted.

use std::{sync::Arc, time::Duration};

use tidings::{
    Hub,
    auth::Authenticator,
    http::{ServeSettings, Service, Tls},
    metrics::Metrics,
    source::{
        amqp::{AmqpSettings, AmqpSource},
        outbox::Outbox,
    },
};

use crate::{
    config::Config,
    exit::{Exit, Failure},
    journals::{Journals, unusable_server},
    key_client::connect,
    otlp::Export,
};

/// A hub and what it is served with.
#[derive(Debug)]
pub(crate) struct Components {
    pub(crate) hub: Hub,
    /// Whose credentials are accepted.
    pub(crate) authenticator: Arc<Authenticator>,
    /// The HTTP interface.
    pub(crate) service: Service,
    /// Deadlines and limits of the listener.
    pub(crate) serve: ServeSettings,
    pub(crate) tls: Option<Arc<Tls>>,
    /// Between being told to end and beginning to drain.
    pub(crate) drain_grace: Duration,
    /// Sends spans, if there is a collector for them.
    pub(crate) traces: Option<Export>,
    /// What else brings events.
    pub(crate) sources: Vec<AmqpSource>,
}

impl Components {
    /// Opens the journal and starts the hub. Blocks while the journal recovers.
    pub(crate) async fn start(config: &Config) -> Result<Self, Failure> {
        let refused = |message: String| Failure::new(Exit::Config, message);
        let authenticator = Authenticator::with_key_sources(&config.auth_settings(), &connect)
            .map_err(|error| refused(error.to_string()))?;
        let authenticator = Arc::new(authenticator);
        let tls = match (&config.tls.cert, &config.tls.key) {
            (Some(cert), Some(key)) => {
                let tls = Tls::open(cert, key).map_err(|error| refused(error.to_string()))?;
                Some(Arc::new(tls))
            }
            _ => None,
        };
        let metrics = Arc::new(Metrics::new());
        // One for all that connect there: they leave a server together.
        let postgres = config.postgres.options();
        let Journals { journal, bus } = Journals::open(config, &postgres, &metrics).await?;
        let traces = Export::start(&config.otlp, &metrics).map_err(refused)?;
        let mut hub =
            Hub::builder().settings(config.hub_settings()).journal(journal).metrics(metrics);
        if let Some(bus) = bus {
            hub = hub.bus(bus);
        }
        if let Some(traces) = &traces {
            hub = hub.tracer(traces.tracer());
        }
        let hub = hub.start();
        let sources = start_sources(config, &hub).map_err(refused)?;
        if config.postgres.outbox {
            let opened = Outbox::open(&postgres).await;
            opened.map_err(|error| unusable_server("postgres.url", &error))?.start(&hub);
        }
        let service = hub
            .service(Arc::clone(&authenticator), &config.http_settings())
            .map_err(|p| refused(format!("{}: {p}", p.pointer.as_deref().unwrap_or_default())))?;
        let serve = config.serve_settings();
        let drain_grace = config.drain_grace.0;
        Ok(Self { hub, authenticator, service, serve, tls, drain_grace, traces, sources })
    }
}

/// Starts what the configuration names, or else what the variables of other programs ask for.
fn start_sources(config: &Config, hub: &Hub) -> Result<Vec<AmqpSource>, String> {
    let mut sources = config.sources.clone();
    if sources.is_empty() {
        let variable = |name: &str| std::env::var(name).ok();
        sources.extend(AmqpSettings::from_env(variable).map_err(|error| error.to_string())?);
    }
    let start = |(number, settings): (usize, &AmqpSettings)| {
        AmqpSource::start(hub, settings).map_err(|error| format!("sources[{number}].{error}"))
    };
    sources.iter().enumerate().map(start).collect()
}
