//! Key sets that rotate, fail, lie and are attacked, and what becomes of the tokens meanwhile.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::{
    clock::SystemClock,
    model::limits::{KEY_SET_ASKED_EVERY, KEY_SET_BYTES_MAX, KEY_SET_READ_MAX},
};

const ISSUER: &str = "https://id.example";
const OTHER_ISSUER: &str = "https://other.example";
const KEYS: &str = include_str!("testdata/jwks.json");
const SECRET: &str = "an HS256 secret of the tests, 0123456789abcdef";

/// A source that a test writes to. `None`: it is down.
#[derive(Debug, Default)]
struct Shelf {
    text: Mutex<Option<Vec<u8>>>,
    takes: Mutex<Duration>,
    readings: AtomicU64,
}

impl Shelf {
    fn put(&self, text: impl Into<Vec<u8>>) {
        *self.text.lock().unwrap() = Some(text.into());
    }

    fn break_down(&self) {
        *self.text.lock().unwrap() = None;
    }

    fn readings(&self) -> u64 {
        self.readings.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl KeySource for Shelf {
    async fn read(&self) -> Result<Vec<u8>, KeySourceError> {
        self.readings.fetch_add(1, Ordering::SeqCst);
        let takes = *self.takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        self.text.lock().unwrap().clone().ok_or_else(|| KeySourceError("is down".to_owned()))
    }
}

/// The set of the test data with only these keys, each changed.
fn set_of(kids: &[&str], change: impl Fn(&mut Value)) -> String {
    let mut set: Value = serde_json::from_str(KEYS).unwrap();
    let keys = set["keys"].as_array_mut().unwrap();
    keys.retain(|key| kids.contains(&key["kid"].as_str().unwrap()));
    keys.iter_mut().for_each(change);
    set.to_string()
}

fn unchanged(_: &mut Value) {}

fn private(kid: &str) -> (Algorithm, &'static str) {
    match kid {
        "rsa" => (Algorithm::Rs256, include_str!("testdata/rsa.pem")),
        "ec256" => (Algorithm::Es256, include_str!("testdata/ec256.pem")),
        "ec384" => (Algorithm::Es384, include_str!("testdata/ec384.pem")),
        "ed" => (Algorithm::EdDsa, include_str!("testdata/ed.pem")),
        _ => (Algorithm::Hs256, SECRET),
    }
}

/// A token of this issuer that says it is signed with the key `said` and is with the key `with`.
fn token_of(issuer: &str, with: &str, said: Option<&str>, more: &Value) -> String {
    let (algorithm, key) = private(with);
    let key = SigningKey::new(algorithm, said, &Secret::new(key)).unwrap();
    let mut claims =
        json!({"sub": "42", "exp": 4_000_000_000_u64, "iss": issuer, "aud": "tidings"});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    jwt::mint(&key, claims.as_object().unwrap()).unwrap()
}

fn token(kid: &str) -> String {
    token_of(ISSUER, kid, Some(kid), &json!({}))
}

fn issuer_settings(name: &str) -> IssuerSettings {
    IssuerSettings {
        issuer: name.to_owned(),
        audience: vec!["tidings".to_owned()],
        jwks_url: Some(format!("{name}/jwks.json")),
        ..IssuerSettings::default()
    }
}

fn settings(issuers: Vec<IssuerSettings>) -> AuthSettings {
    AuthSettings {
        jwt: JwtSettings { issuers, ..JwtSettings::default() },
        ..AuthSettings::default()
    }
}

/// A hub with one issuer whose keys are kept, and its source.
struct World {
    hub: Arc<Authenticator>,
    shelf: Arc<Shelf>,
    metrics: Arc<Metrics>,
}

impl World {
    fn begin(text: Option<String>) -> Self {
        Self::with(text, issuer_settings(ISSUER))
    }

    fn with(text: Option<String>, issuer: IssuerSettings) -> Self {
        let shelf = Arc::new(Shelf::default());
        if let Some(text) = text {
            shelf.put(text);
        }
        let source = Arc::clone(&shelf);
        let connect = move |_: &IssuerSettings| Ok(Arc::clone(&source) as Arc<dyn KeySource>);
        let hub = Authenticator::with_key_sources(&settings(vec![issuer]), &connect).unwrap();
        let world = Self { hub: Arc::new(hub), shelf, metrics: Arc::new(Metrics::new()) };
        let (hub, metrics) = (Arc::clone(&world.hub), Arc::clone(&world.metrics));
        tokio::spawn(async move { hub.keep_keys(&metrics).await });
        world
    }

    async fn asks(&self, token: &str) -> Result<(), ErrorCode> {
        let answer = self.hub.authenticate_fresh(token, &SystemClock).await;
        answer.map(drop).map_err(|problem| problem.code)
    }
}

const INVALID: Result<(), ErrorCode> = Err(ErrorCode::CredentialInvalid);
const UNAVAILABLE: Result<(), ErrorCode> = Err(ErrorCode::Unavailable);

#[tokio::test(start_paused = true)]
async fn keys_of_every_kind_serve_under_their_name_and_no_other() {
    let world = World::begin(Some(KEYS.to_owned()));
    let kids = ["rsa", "ec256", "ec384", "ed"];
    for with in kids {
        assert_eq!(world.asks(&token(with)).await, Ok(()), "{with}");
        assert_eq!(world.asks(&token_of(ISSUER, with, None, &json!({}))).await, Ok(()), "{with}");
        for said in kids.into_iter().filter(|said| *said != with) {
            let wrong = token_of(ISSUER, with, Some(said), &json!({}));
            assert_eq!(world.asks(&wrong).await, INVALID, "{with} as {said}");
        }
    }
    assert_eq!(world.shelf.readings(), 1);
}

/// The first request waits for the keys instead of being refused.
#[tokio::test(start_paused = true)]
async fn a_hub_that_just_started_waits_for_its_first_keys() {
    let world = World::begin(Some(KEYS.to_owned()));
    *world.shelf.takes.lock().unwrap() = Duration::from_secs(3);
    assert_eq!(world.asks(&token("rsa")).await, Ok(()));
    assert_eq!(world.shelf.readings(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_found_with_its_first_token_and_both_serve_while_they_overlap() {
    let world = World::begin(Some(set_of(&["rsa"], unchanged)));
    assert_eq!(world.asks(&token("rsa")).await, Ok(()));
    tokio::time::sleep(KEY_SET_ASKED_EVERY).await;
    world.shelf.put(set_of(&["rsa", "ec256"], unchanged));
    assert_eq!(world.asks(&token("ec256")).await, Ok(()), "read for its sake");
    assert_eq!(world.asks(&token("rsa")).await, Ok(()));
    assert_eq!(world.shelf.readings(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_its_issuer_removed_is_refused_after_one_interval() {
    let world = World::begin(Some(KEYS.to_owned()));
    assert_eq!(world.asks(&token("rsa")).await, Ok(()));
    world.shelf.put(set_of(&["ec256"], unchanged));
    assert_eq!(world.asks(&token("rsa")).await, Ok(()), "not read yet");
    tokio::time::sleep(KeySetTimes::default().refresh.mul_f64(1.11)).await;
    assert_eq!(world.asks(&token("rsa")).await, INVALID);
    assert_eq!(world.asks(&token("ec256")).await, Ok(()));
}

/// An issuer that has no keys signs nothing: it is broken, and was not meant. Broken on purpose, it
/// failed: with an RSA key taken for good by the length of its modulus.
#[tokio::test(start_paused = true)]
async fn a_set_without_a_key_that_can_be_used_is_no_reading() {
    let world = World::begin(Some(set_of(&["rsa"], unchanged)));
    assert_eq!(world.asks(&token("rsa")).await, Ok(()));
    // 2048 bits, by their first byte, those between, and their last.
    let modulus = |first: u8, between: u8, last: u8| {
        let number = [&[first][..], &[between; 254], &[last]].concat();
        base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, number)
    };
    let mut sets = vec![(json!({"keys": []}).to_string(), 0)];
    for (member, value) in [
        ("use", json!("enc")),
        // 1, 65536, 2, 2^64 - 1, nothing.
        ("e", json!("AQ")),
        ("e", json!("AQAA")),
        ("e", json!("AAI")),
        ("e", json!("__________8")),
        ("e", json!("")),
        // 2^2047, 2^2048 - 1 and 3 * 2^2046 + 3.
        ("n", json!(modulus(0x80, 0, 0))),
        ("n", json!(modulus(0xff, 0xff, 0xff))),
        ("n", json!(modulus(0xc0, 0, 3))),
    ] {
        sets.push((set_of(&["rsa"], |key| key[member] = value.clone()), 1));
    }
    for (text, of) in sets {
        world.shelf.put(text);
        tokio::time::sleep(KeySetTimes::default().refresh.mul_f64(1.11)).await;
        let [status] = world.hub.key_sets().try_into().unwrap();
        let failure = format!("has no key that can be used, of {of}");
        assert_eq!((status.keys, status.failure), (1, Some(failure)));
        assert_eq!(world.metrics.key_sets_failing.get(), 1);
        assert_eq!(world.asks(&token("rsa")).await, Ok(()), "known keys serve on");
    }
    tokio::time::sleep(KeySetTimes::default().stale_max).await;
    assert_eq!(world.asks(&token("rsa")).await, UNAVAILABLE);
}

/// Broken on purpose: asking the task without looking at when it began last, or without looking
/// whether it was asked already, makes it fail.
#[tokio::test(start_paused = true)]
async fn ten_thousand_invented_key_names_cost_one_reading() {
    let world = World::begin(Some(set_of(&["rsa"], unchanged)));
    assert_eq!(world.asks(&token("rsa")).await, Ok(()));
    tokio::time::sleep(KEY_SET_ASKED_EVERY).await;
    *world.shelf.takes.lock().unwrap() = Duration::from_secs(1);
    let signed = token("ed");
    let asked = |number: usize| {
        let hub = Arc::clone(&world.hub);
        let (_, rest) = signed.split_once('.').unwrap();
        let header = json!({"alg": "RS256", "kid": format!("invented-{number}")}).to_string();
        let header = base64::Engine::encode(
            &base64::engine::general_purpose::URL_SAFE_NO_PAD,
            header.as_bytes(),
        );
        let token = format!("{header}.{rest}");
        tokio::spawn(async move {
            hub.authenticate_fresh(&token, &SystemClock).await.map(drop).map_err(|p| p.code)
        })
    };
    let all: Vec<_> = (0..10_000).map(asked).collect();
    for one in all {
        assert_eq!(one.await.unwrap(), INVALID);
    }
    assert_eq!(world.shelf.readings(), 2);
    // Those with a key that is known did not wait.
    assert_eq!(world.asks(&token("rsa")).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn keys_serve_on_while_their_source_is_down_and_not_for_ever() {
    let world = World::begin(Some(KEYS.to_owned()));
    assert_eq!(world.asks(&token("rsa")).await, Ok(()));
    world.shelf.break_down();
    let stale_max = KeySetTimes::default().stale_max;
    tokio::time::sleep(stale_max.mul_f64(0.9)).await;
    assert_eq!(world.asks(&token("rsa")).await, Ok(()));
    let status = world.hub.key_sets().remove(0);
    assert_eq!((status.keys, status.failure.as_deref()), (4, Some("is down")));
    let metrics = world.metrics.encode();
    assert!(metrics.contains("tidings_key_sets_failing 1"), "{metrics}");
    assert!(metrics.contains("tidings_key_sets_read_total{result=\"failed\"}"), "{metrics}");
    tokio::time::sleep(stale_max.mul_f64(0.2)).await;
    assert_eq!(world.asks(&token("rsa")).await, UNAVAILABLE);
    // It is tried again soon after a failure, and found.
    world.shelf.put(KEYS);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(world.asks(&token("rsa")).await, Ok(()));
    assert!(world.metrics.encode().contains("tidings_key_sets_failing 0"));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_given_up_and_its_tokens_may_come_back() {
    let world = World::begin(Some(KEYS.to_owned()));
    *world.shelf.takes.lock().unwrap() = Duration::from_secs(3600);
    let begun = Instant::now();
    assert_eq!(world.asks(&token("rsa")).await, UNAVAILABLE);
    assert_eq!(begun.elapsed(), KEY_SET_READ_MAX);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_key_set_leaves_the_keys_as_they_were() {
    let key = |text: String| text[1..text.len() - 1].to_owned();
    let many = vec!["{}"; 101].join(",");
    let large = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(KEY_SET_BYTES_MAX));
    for (wrong, reason) in [
        ("<html>".to_owned(), "no JSON"),
        (String::new(), "no JSON"),
        ("[]".to_owned(), "no list `keys`"),
        (json!({"keys": {}}).to_string(), "no list `keys`"),
        (format!("{{\"keys\":[],{}}}", key(KEYS.trim().to_owned())), "no JSON"),
        (format!("{{\"keys\":[{many}]}}"), "more than 100 keys"),
        (large, "larger than"),
    ] {
        let world = World::begin(Some(KEYS.to_owned()));
        assert_eq!(world.asks(&token("rsa")).await, Ok(()));
        world.shelf.put(wrong);
        tokio::time::sleep(KeySetTimes::default().refresh.mul_f64(1.11)).await;
        assert_eq!(world.asks(&token("rsa")).await, Ok(()));
        let failure = world.hub.key_sets().remove(0).failure.unwrap();
        assert!(failure.contains(reason), "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_for_this_use_is_left_out_and_the_others_serve() {
    let secret = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        SECRET.as_bytes(),
    );
    let with = |changes: Value| {
        move |key: &mut Value| {
            key.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        }
    };
    let small_rsa = "1jVjYXQdpjupMUAeJSummIe0aoxpeUpz09Bwf-c1lToYU3Wo4_EjIl7O5vPyIBTxnxVrNx-BBUWM-3CC4fYOGs0WFXCicCItQa20eOMjJ9nOGzWykSOjVbZZ7T1Z6ERsH4OiCbOXrsw-P42Bq6ClpDcxz1cOUPDWQM_2kNgppl0";
    for (kid, changes) in [
        ("ec256", json!({"use": "enc"})),
        ("ec256", json!({"key_ops": ["sign"]})),
        ("ec256", json!({"alg": "ES384"})),
        ("ec256", json!({"alg": "HS256"})),
        ("ec256", json!({"alg": "none"})),
        ("ec256", json!({"crv": "P-384"})),
        ("ec256", json!({"kty": "oct", "k": secret})),
        ("ec256", json!({"kty": "RSA"})),
        ("ec256", json!({"kty": 7})),
        ("ec256", json!({"d": "AQAB"})),
        ("ec256", json!({"x": "AQAB"})),
        ("ec256", json!({"x": null})),
        ("ec256", json!({"kid": "a\nb"})),
        ("ec256", json!({"kid": ""})),
        ("ed", json!({"crv": "X25519"})),
        ("ed", json!({"x": "AQAB"})),
        ("rsa", json!({"n": small_rsa})),
        ("rsa", json!({"alg": "ES256"})),
        ("rsa", json!({"e": null})),
    ] {
        let mut set: Value = serde_json::from_str(&set_of(&[kid], with(changes.clone()))).unwrap();
        let good: Value = serde_json::from_str(&set_of(&["ec384"], unchanged)).unwrap();
        set["keys"].as_array_mut().unwrap().push(good["keys"][0].clone());
        let world = World::begin(Some(set.to_string()));
        assert_eq!(world.asks(&token("ec384")).await, Ok(()), "{changes}");
        assert_eq!(world.asks(&token(kid)).await, INVALID, "{changes}");
        assert_eq!(world.hub.key_sets().remove(0).keys, 1, "{changes}");
    }
}

/// Broken on purpose: reading `oct` keys, or taking the algorithm from the token, makes it fail.
#[tokio::test(start_paused = true)]
async fn a_key_set_holds_no_shared_secrets_and_a_public_key_is_none() {
    let secret = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        SECRET.as_bytes(),
    );
    for alg in ["HS256", "RS256"] {
        let mut set: Value = serde_json::from_str(&set_of(&["rsa"], unchanged)).unwrap();
        let keys = set["keys"].as_array_mut().unwrap();
        keys.push(json!({"kty": "oct", "kid": "s", "alg": alg, "k": secret}));
        let world = World::begin(Some(set.to_string()));
        let forged = token_of(ISSUER, "secret", Some("s"), &json!({}));
        assert_eq!(world.asks(&forged).await, INVALID);
    }
    let mut issuer = issuer_settings(ISSUER);
    issuer.algorithms = vec![Algorithm::Rs256, Algorithm::Hs256];
    let connect = |_: &IssuerSettings| Ok(Arc::new(Shelf::default()) as Arc<dyn KeySource>);
    let refused = Authenticator::with_key_sources(&settings(vec![issuer]), &connect).unwrap_err();
    assert_eq!(refused.path, "jwt.issuers[0].algorithms");
}

/// An RSA key without `alg` fits six algorithms; the operator's list says which one it has.
#[tokio::test(start_paused = true)]
async fn a_key_without_an_algorithm_gets_one_from_the_operator_and_none_from_the_token() {
    let unnamed = || set_of(&["rsa"], |key| drop(key.as_object_mut().unwrap().remove("alg")));
    let signed = |algorithm: Algorithm| {
        let pem = Secret::new(include_str!("testdata/rsa.pem"));
        let key = SigningKey::new(algorithm, Some("rsa"), &pem).unwrap();
        let claims =
            json!({"sub": "42", "exp": 4_000_000_000_u64, "iss": ISSUER, "aud": "tidings"});
        jwt::mint(&key, claims.as_object().unwrap()).unwrap()
    };
    let world = World::begin(Some(unnamed()));
    assert_eq!(world.asks(&signed(Algorithm::Rs256)).await, Ok(()));
    assert_eq!(world.asks(&signed(Algorithm::Ps256)).await, INVALID);
    let mut issuer = issuer_settings(ISSUER);
    issuer.algorithms = vec![Algorithm::Ps256];
    let world = World::with(Some(unnamed()), issuer);
    assert_eq!(world.asks(&signed(Algorithm::Rs256)).await, INVALID);
    assert_eq!(world.asks(&signed(Algorithm::Ps256)).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn keys_without_a_name_are_tried_and_two_of_one_name_both() {
    let nameless =
        set_of(&["rsa", "ec256"], |key| drop(key.as_object_mut().unwrap().remove("kid")));
    let world = World::begin(Some(nameless));
    for kid in ["rsa", "ec256"] {
        assert_eq!(world.asks(&token(kid)).await, Ok(()), "{kid}");
        assert_eq!(world.asks(&token_of(ISSUER, kid, None, &json!({}))).await, Ok(()), "{kid}");
    }
    let one_name = set_of(&["rsa", "ec256"], |key| key["kid"] = json!("same"));
    let world = World::begin(Some(one_name));
    for kid in ["rsa", "ec256"] {
        assert_eq!(world.asks(&token_of(ISSUER, kid, Some("same"), &json!({}))).await, Ok(()));
    }
}

/// Broken on purpose: trying the keys of all issuers makes it fail.
#[tokio::test(start_paused = true)]
async fn an_issuer_signs_for_itself_and_for_nobody_else() {
    let shelves = Arc::new(Mutex::new(Vec::new()));
    let made = Arc::clone(&shelves);
    let connect = move |issuer: &IssuerSettings| {
        let shelf = Arc::new(Shelf::default());
        let kid = if issuer.issuer == ISSUER { "rsa" } else { "ec256" };
        // The same name in both: a name is nothing outside its set.
        shelf.put(set_of(&[kid], |key| key["kid"] = json!("1")));
        made.lock().unwrap().push(Arc::clone(&shelf));
        Ok(shelf as Arc<dyn KeySource>)
    };
    let mut other = issuer_settings(OTHER_ISSUER);
    other.audience = vec!["events".to_owned()];
    other.tenants = vec!["globex".to_owned()];
    let mut settings = settings(vec![issuer_settings(ISSUER), other]);
    settings.jwt.keys = vec![JwtKeySettings {
        algorithm: Algorithm::Hs256,
        kid: None,
        secret: Some(Secret::new(SECRET)),
        public_key: None,
    }];
    let hub = Arc::new(Authenticator::with_key_sources(&settings, &connect).unwrap());
    let keeper = Arc::clone(&hub);
    tokio::spawn(async move { keeper.keep_keys(&Metrics::new()).await });
    let asks = async |issuer: &str, with: &str, more: Value| {
        let token = token_of(issuer, with, Some("1"), &more);
        let answer = hub.authenticate_fresh(&token, &SystemClock).await;
        answer.map(|grant| grant.tenant().as_str().to_owned()).map_err(|problem| problem.detail)
    };
    let events = json!({"aud": "events"});
    let unsigned = Err("token is not signed with a key of this hub".to_owned());
    assert_eq!(asks(ISSUER, "rsa", json!({})).await, Ok("default".to_owned()));
    assert_eq!(asks(OTHER_ISSUER, "ec256", events.clone()).await, Ok("globex".to_owned()));
    assert_eq!(asks(ISSUER, "ec256", json!({})).await, unsigned);
    assert_eq!(asks(OTHER_ISSUER, "rsa", events.clone()).await, unsigned);
    // Nor do the keys that belong to no issuer sign for one of them, and the other way round.
    assert_eq!(asks("https://third.example", "secret", json!({})).await, Ok("default".to_owned()));
    assert_eq!(asks(ISSUER, "secret", json!({})).await, unsigned);
    assert_eq!(asks("https://third.example", "rsa", json!({})).await, unsigned);
    // Each has its own audience and tenants.
    let audience = Err("token's claim `aud` has none of the configured audiences".to_owned());
    assert_eq!(asks(OTHER_ISSUER, "ec256", json!({})).await, audience);
    assert_eq!(asks(ISSUER, "rsa", events).await, audience);
    let named = |tenant: &str| json!({"aud": "events", "tenant": tenant});
    assert_eq!(asks(OTHER_ISSUER, "ec256", named("globex")).await, Ok("globex".to_owned()));
    let tenant = Err("token's issuer may not speak for this tenant".to_owned());
    assert_eq!(asks(OTHER_ISSUER, "ec256", named("acme")).await, tenant);
    assert_eq!(asks(OTHER_ISSUER, "ec256", named("default")).await, tenant);
}

#[test]
fn issuers_that_cannot_be_name_their_setting() {
    let connect = |_: &IssuerSettings| Ok(Arc::new(Shelf::default()) as Arc<dyn KeySource>);
    let path = |change: fn(&mut IssuerSettings)| {
        let mut issuer = issuer_settings(ISSUER);
        change(&mut issuer);
        Authenticator::with_key_sources(&settings(vec![issuer]), &connect).unwrap_err().path
    };
    assert_eq!(path(|one| one.issuer.clear()), "jwt.issuers[0].issuer");
    assert_eq!(path(|one| one.audience.clear()), "jwt.issuers[0].audience");
    assert_eq!(path(|one| one.jwks_url = None), "jwt.issuers[0].keys");
    assert_eq!(path(|one| one.jwks_file = Some("x".into())), "jwt.issuers[0].jwks_file");
    assert_eq!(path(|one| one.algorithms.clear()), "jwt.issuers[0].algorithms");
    assert_eq!(path(|one| one.tenants = vec!["a/b".into()]), "jwt.issuers[0].tenants[0]");
    assert_eq!(path(|one| one.tenants = vec!["$hub".into()]), "jwt.issuers[0].tenants[0]");
    let twice = settings(vec![issuer_settings(ISSUER); 2]);
    let error = Authenticator::with_key_sources(&twice, &connect).unwrap_err();
    assert_eq!(error.path, "jwt.issuers[1].issuer");
    // A library without a client says so instead of never reading the keys.
    let error = Authenticator::new(&settings(vec![issuer_settings(ISSUER)])).unwrap_err();
    assert_eq!(error.path, "jwt.issuers[0].jwks_url");
}

#[tokio::test(start_paused = true)]
async fn a_key_set_in_a_file_is_there_at_start_and_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jwks.json");
    let issuer =
        IssuerSettings { jwks_url: None, jwks_file: Some(file.clone()), ..issuer_settings(ISSUER) };
    let settings = settings(vec![issuer]);
    let error = Authenticator::new(&settings).unwrap_err();
    assert_eq!(error.path, "jwt.issuers[0].jwks_file");
    std::fs::write(&file, set_of(&["rsa"], unchanged)).unwrap();
    let hub = Authenticator::new(&settings).unwrap();
    let now = SystemClock.now();
    assert!(hub.authenticate(&token("rsa"), now).is_ok());
    assert!(hub.authenticate(&token("ed"), now).is_err());
    std::fs::write(&file, set_of(&["ed"], unchanged)).unwrap();
    let (metrics, new) = (Metrics::new(), token("ed"));
    tokio::select! {
        () = hub.keep_keys(&metrics) => {}
        read = hub.authenticate_fresh(&new, &SystemClock) => assert!(read.is_ok()),
    }
    assert!(hub.authenticate(&token("rsa"), now).is_err());
}
