//! Keys that are taken away: whatever they let in ends, and does not come back.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tidings::{
    auth::{Algorithm, KeySource, KeySourceError, Secret, SigningKey, jwt},
    journal::{JournalSettings, memory::MemoryJournal},
};

use super::support::{ISSUER, Options, Reader, Server, json_of, problem_of};

/// Source of a key set that a test writes to.
#[derive(Debug)]
struct Shelf(Mutex<String>);

#[async_trait::async_trait]
impl KeySource for Shelf {
    async fn read(&self) -> Result<Vec<u8>, KeySourceError> {
        Ok(self.0.lock().unwrap().clone().into_bytes())
    }
}

/// The set of these keys of the test data.
fn set_of(kids: &[&str]) -> String {
    let all = include_str!("../../src/auth/testdata/jwks.json");
    let mut set: Value = serde_json::from_str(all).unwrap();
    let keys = set["keys"].as_array_mut().unwrap();
    keys.retain(|key| kids.contains(&key["kid"].as_str().unwrap()));
    assert_eq!(keys.len(), kids.len());
    set.to_string()
}

/// A token of the issuer for the subject 42.
fn token(kid: &str) -> String {
    let (algorithm, private) = match kid {
        "ec256" => (Algorithm::Es256, include_str!("../../src/auth/testdata/ec256.pem")),
        _ => (Algorithm::EdDsa, include_str!("../../src/auth/testdata/ed.pem")),
    };
    let key = SigningKey::new(algorithm, Some(kid), &Secret::new(private)).unwrap();
    let claims = json!({
        "sub": "42", "exp": 4_000_000_000_u64, "iss": ISSUER, "aud": "tidings",
        "tidings": { "read": [], "write": ["build/*"] },
    });
    jwt::mint(&key, claims.as_object().unwrap()).unwrap()
}

async fn follow(server: &Server, bearer: &str) -> Reader {
    let request = server.anonymous(Method::GET, "/v1/events?topic=user/42").bearer_auth(bearer);
    let mut reader = Reader::of(request.send().await.unwrap());
    reader.control("tidings.caught_up").await;
    reader
}

async fn ticket(server: &Server, bearer: &str) -> String {
    let request = server.anonymous(Method::POST, "/v1/tickets").bearer_auth(bearer);
    let answer = json_of(request.send().await.unwrap()).await;
    answer["ticket"].as_str().unwrap().to_owned()
}

async fn with_ticket(server: &Server, ticket: &str, last_id: &str) -> Response {
    let path = format!("/v1/events?topic=user/42&ticket={ticket}");
    let request = server.anonymous(Method::GET, &path);
    let request = match last_id {
        "" => request,
        id => request.header("last-event-id", id),
    };
    request.send().await.unwrap()
}

async fn assert_revoked(answer: Response) {
    let (status, problem) = problem_of(answer).await;
    assert_eq!((status, &problem["code"]), (401, &json!("credential_revoked")), "{problem}");
}

#[tokio::test]
async fn a_key_that_its_issuer_removed_ends_the_streams_and_tickets_that_it_opened() {
    let shelf = Arc::new(Shelf(Mutex::new(set_of(&["ec256", "ed"]))));
    let refresh = Duration::from_millis(100);
    let source = Arc::clone(&shelf) as Arc<dyn KeySource>;
    let options = Options { key_set: Some((source, refresh)), ..Options::default() };
    let server = Server::with(options).await;
    let (gone, stays) = (token("ec256"), token("ed"));
    let (mut ends, mut goes_on) = (follow(&server, &gone).await, follow(&server, &stays).await);
    let (used, unused) = (ticket(&server, &gone).await, ticket(&server, &gone).await);
    let others = ticket(&server, &stays).await;
    let mut by_ticket = Reader::of(with_ticket(&server, &used, "").await);
    by_ticket.control("tidings.caught_up").await;
    let page = server.anonymous(Method::GET, "/v1/events?topic=user/42&wait=25s");
    let page = page.bearer_auth(&gone).header("accept", "application/json").send();
    let removes = async { *shelf.0.lock().unwrap() = set_of(&["ed"]) };
    let (page, ()) = tokio::join!(page, removes);
    assert_revoked(page.unwrap()).await;
    for reader in [&mut ends, &mut by_ticket] {
        assert_eq!(reader.control("tidings.goaway").await["reason"], "revoked");
        assert_eq!(reader.next().await, None);
    }
    assert_revoked(with_ticket(&server, &used, &by_ticket.last_id).await).await;
    assert_revoked(with_ticket(&server, &unused, "").await).await;
    // What another key let in is as before.
    server.publish_numbers("user/42", 1..2).await;
    assert_eq!(goes_on.data(1).await, [1]);
    let mut theirs = Reader::of(with_ticket(&server, &others, "").await);
    theirs.control("tidings.caught_up").await;
}

#[tokio::test]
async fn a_ticket_does_not_outlive_the_key_that_the_next_start_does_not_know() {
    let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let options = || Options { journal: Some(Arc::clone(&journal) as _), ..Options::default() };
    let server = Server::with(options()).await;
    let of_key = ticket(&server, &server.key).await;
    let bearer = super::support::token("42", 600, json!({}));
    let of_token = ticket(&server, &bearer).await;
    // Another start: the same shared secret, and API keys of its own.
    let next = Server::with(options()).await;
    assert_revoked(with_ticket(&next, &of_key, "").await).await;
    let mut reader = Reader::of(with_ticket(&next, &of_token, "").await);
    reader.control("tidings.caught_up").await;
}
