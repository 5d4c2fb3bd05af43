//! Tidings inside somebody's axum application: its own routes beside the hub's, events published
//! from a handler, browsers following at `/live/v1/events`.
//!
//! ```sh
//! cargo run --package tidings --example axum_app
//! ```
//!
//! It prints what to try. Events are kept in memory here; give the builder an
//! `EmbeddedJournal` to keep them on disk.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::sync::Arc;

use axum::{Router, extract::State, routing::post};
use tidings::{
    Hub,
    auth::{ApiKey, AuthSettings, Authenticator},
    error::Problem,
    http::{HttpSettings, ServeSettings, serve},
    model::{EventType, JsonText, NewEvent, Tenant, Topic},
    publish::Publish,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hub = Hub::builder().start();
    // One key that may read every topic, for the readers of this example.
    let (secret, mut key) = ApiKey::generate();
    key.read = vec!["**".to_owned()];
    let settings = AuthSettings { api_keys: vec![key], ..AuthSettings::default() };
    let authenticator = Arc::new(Authenticator::new(&settings)?);
    let app = Router::new()
        .route("/orders/{id}/ship", post(ship))
        .with_state(hub.clone())
        .nest("/live", hub.router(authenticator, &HttpSettings::default())?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!(
        "follow:  curl -N '{url}/live/v1/events?topic=orders' -H 'Authorization: Bearer {}'",
        secret.expose()
    );
    println!("publish: curl -X POST {url}/orders/7/ship");
    let shutdown = CancellationToken::new();
    let (stop, draining) = (shutdown.clone(), hub.clone());
    tokio::spawn(async move {
        // Either way the process is to end.
        let _ = tokio::signal::ctrl_c().await;
        draining.drain();
        stop.cancel();
    });
    let limits_hit = hub.metrics().limits_hit.clone();
    serve(listener, app, ServeSettings::default(), None, limits_hit, shutdown).await;
    hub.shutdown().await;
    Ok(())
}

/// A handler of the application: does its work, and says so.
async fn ship(
    State(hub): State<Hub>,
    axum::extract::Path(id): axum::extract::Path<u64>,
) -> Result<String, Problem> {
    let event = NewEvent::new(EventType::parse("order.shipped")?)
        .data(JsonText::string(&format!("order {id} is on its way")));
    let publish = Publish::new(Topic::parse("orders")?, event);
    let published = hub.publish_one(&Tenant::parse("default")?, publish).await?;
    Ok(format!("told as event {}\n", published.id))
}
