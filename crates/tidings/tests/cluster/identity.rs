//! Credentials that end on one node, and places and rates that are counted over all of them.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use reqwest::{Client, Response};
use serde_json::json;
use tidings::{
    Hub,
    auth::{ApiKey, AuthSettings, Authenticator, Grant},
    connection::{Connection, ConnectionOptions, Envelope, Format},
    http::{HttpSettings, ServeSettings, serve},
    revocation::{Revocation, Revoked},
    settings::{Rate, Settings},
    subscribe::Follow,
};
use tidings_services::{Postgres, Redis};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    load::{key, publish_apart, tenant},
    nodes::{LOOK_AGAIN, NODES, Nodes, PATIENCE, until},
    postgres, redis,
};

fn grant(subject: &str) -> Grant {
    let scope = json!({ "topic": "t", "read": "allowed", "write": "denied", "answer": "denied",
        "feed": false });
    let claims = json!({ "tenant": "acme", "subject": subject, "bindings": {},
        "credential": format!("jwt:{subject}"), "scopes": [scope] });
    Grant::from_claims(&serde_json::from_value(claims).unwrap()).unwrap()
}

fn open(hub: &Hub, grant: &Grant) -> Connection {
    let (format, envelope) = (Format::Sse, Envelope::CloudEvents);
    let options = ConnectionOptions { format, envelope, expires_at: grant.expires_at() };
    let follow = Follow::new(vec![key("t")]);
    Connection::open(hub, follow, options).guarded_by(grant.clone(), None)
}

/// Reads until something with this text was written, or to the end.
async fn read(connection: &mut Connection, text: &str) -> String {
    let reading = async {
        let mut all = String::new();
        while !all.contains(text) {
            let Some(bytes) = connection.next().await else { break };
            all.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        all
    };
    timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("waited in vain for {text}"))
}

/// Broken on purpose: when `revocation::take` passes over what other nodes revoked, the reader at
/// the other node stays.
async fn a_revocation_ends_a_reader_elsewhere(nodes: &Nodes) {
    let [revoked, other] = ["42", "43"].map(grant);
    let (here, there) = (nodes.hub(0), nodes.hub(1));
    there.check_revoked(&revoked).await.unwrap();
    let mut ending = open(there, &revoked);
    let mut going_on = open(there, &other);
    read(&mut ending, "caught_up").await;
    read(&mut going_on, "caught_up").await;
    let named = Revoked::Sub("42".to_owned());
    let revocation = Revocation { revoked: named, until: None, issued_before: None };
    here.revoke(&tenant(), &revocation, "key:test").await.unwrap();
    let rest = read(&mut ending, "tidings.goaway").await;
    assert!(rest.contains("\"reason\":\"revoked\""), "{rest}");
    assert_eq!(ending.next().await, None);
    assert!(there.is_revoked(&revoked) && !there.is_revoked(&other));
    publish_apart(here, "t").await;
    assert!(read(&mut going_on, "specversion").await.contains("a.b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_on_one_node_ends_a_reader_on_another() {
    let server = Redis::start().unwrap();
    a_revocation_ends_a_reader_elsewhere(&*redis::nodes(&server).await).await;
    let server = Postgres::shared().unwrap();
    let nodes = postgres::nodes(&postgres::options(server.url())).await;
    a_revocation_ends_a_reader_elsewhere(&nodes).await;
}

/// Serves a hub on a free port; the URL of its topic t.
async fn serve_at(nodes: &Nodes, number: usize, auth: &AuthSettings) -> String {
    let app = Arc::new(Authenticator::new(auth).unwrap());
    let app = nodes.hub(number).router(app, &HttpSettings::default()).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits_hit = nodes.hub(number).metrics().limits_hit.clone();
    let (settings, stop) = (ServeSettings::default(), CancellationToken::new());
    nodes.spawn(number, |_| serve(listener, app, settings, None, limits_hit, stop));
    format!("http://{address}/v1/events?topic=t")
}

/// Broken on purpose: without `cluster::run` each node lets a user have all of its places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_connections_are_limited_over_all_nodes() {
    let server = Redis::start().unwrap();
    let settings = Settings { user_connections_max: 2, ..Settings::default() };
    let options = tidings::journal::redis::RedisOptions::new(server.url());
    let nodes = Nodes::start_with(settings, || redis::parts(options.clone())).await;
    let (secret, mut entry) = ApiKey::generate();
    entry.tenant = Some("acme".to_owned());
    entry.read = vec!["t".to_owned()];
    let auth = AuthSettings { api_keys: vec![entry], ..AuthSettings::default() };
    let mut urls = Vec::new();
    for number in 0..3 {
        urls.push(serve_at(&nodes, number, &auth).await);
    }
    // Without TLS the crate's own provider is only there to be found.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(600)).build().unwrap();
    let follow = async |node: usize| -> Response {
        client.get(&urls[node]).bearer_auth(secret.expose()).send().await.unwrap()
    };
    let first = follow(0).await;
    let second = follow(1).await;
    assert_eq!((first.status(), second.status()), (200.try_into().unwrap(), second.status()));
    for node in 0..3 {
        // What others count is told a moment later; whoever is let in until then is let go.
        until("the limit", async || follow(node).await.status() == 429).await;
    }
    drop(first);
    until("a place", async || follow(2).await.status() == 200).await;
}

/// Of a user, far below what a node gets through.
const RATE: Rate = Rate { per_second: 20, burst: 20 };

/// What ADR 0016 says, with the bus of a real server: by each node a burst, and the rate until the
/// others' words are heard; then one rate for all of them. Each by itself would give three.
///
/// Broken on purpose: when nobody hears what others gave, each node gives all of the rate.
async fn a_users_rate_is_limited_over(nodes: &Nodes) {
    const PUBLISHED_FOR: Duration = Duration::from_secs(12);
    let (secret, mut entry) = ApiKey::generate();
    entry.tenant = Some("acme".to_owned());
    entry.write = vec!["t".to_owned()];
    let auth = AuthSettings { api_keys: vec![entry], ..AuthSettings::default() };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().no_proxy().build().unwrap();
    let started = Instant::now();
    let publishing = (0..NODES).map(async |number| {
        let url = serve_at(nodes, number, &auth).await;
        let url = url.split_once('?').unwrap().0;
        let mut admitted = 0;
        while started.elapsed() < PUBLISHED_FOR {
            let event = json!({ "topic": "t", "type": "a.b", "class": "ephemeral" });
            let asked = client.post(url).bearer_auth(secret.expose()).json(&event).send();
            match timeout(PATIENCE, asked).await.unwrap().unwrap().status().as_u16() {
                200 => admitted += 1,
                429 => sleep(LOOK_AGAIN).await,
                other => panic!("{other}"),
            }
        }
        admitted
    });
    let admitted: u64 = join_all(publishing).await.into_iter().sum();
    let seconds = started.elapsed().as_secs_f64();
    let (rate, burst) = (RATE.per_second as f64, RATE.burst as f64);
    // A second until words are heard, where half of one would do: this machine has other work.
    let most = burst + rate * seconds + 2.0 * (burst + rate);
    assert!((admitted as f64) < most, "{admitted} in {seconds} s, at most {most}");
    assert!(admitted as f64 > rate * seconds / 2.0, "{admitted} in {seconds} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_rate_is_limited_over_all_nodes() {
    let settings = Settings { user_publish_rate: RATE, ..Settings::default() };
    let server = Redis::start().unwrap();
    let options = tidings::journal::redis::RedisOptions::new(server.url());
    let on_redis = Nodes::start_with(settings.clone(), || redis::parts(options.clone())).await;
    let server = Postgres::shared().unwrap();
    let options = postgres::options(server.url());
    let on_postgres = Nodes::start_with(settings, || postgres::parts(options.clone())).await;
    tokio::join!(
        a_users_rate_is_limited_over(&on_redis),
        a_users_rate_is_limited_over(&on_postgres)
    );
}
