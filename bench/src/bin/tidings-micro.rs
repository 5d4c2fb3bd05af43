//! The parts of the hub by themselves: encoding, cursors, rings, access checks.
//!
//! Without arguments they are timed (divan). `--count NAME N` does one of them N times and no more,
//! for callgrind: two counts differ by the instructions of their difference, whatever it takes to
//! start. `--names` lists them, `--pairs` those that must take the same. See `cargo xtask bench --micro` and `--instructions`.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a tool that prints, run by hand, which may end by a panic"
)]

use std::{env, hint::black_box, process::ExitCode, sync::Arc};

use serde_json::json;
use tidings::{
    Hub,
    auth::{Algorithm, AuthSettings, Authenticator, Secret, SigningKey, jwt::mint},
    connection::{Connection, ConnectionOptions, Envelope, Format},
    http::HttpSettings,
    journal::{Properties, record},
    model::{
        Cursor, Epoch, Event, EventType, Fingerprint, JsonText, NewEvent, Offset, Position, Tenant,
        Timestamp, Topic, TopicKey,
    },
    publish::Publish,
    sse::{Frame, FrameTopic},
    subscribe::{Follow, Since},
};
use tokio::runtime::Runtime;
use tower_service::Service as _;

/// Something that can be done again and again.
type Case = Box<dyn FnMut()>;
/// What it is called, and what prepares it.
type Named = (&'static str, fn() -> Case);

/// The cases, in the order of the committed counts.
const CASES: &[Named] = &[
    ("record-encode", record_encode),
    ("record-decode", record_decode),
    ("frame-encode", frame_encode),
    ("cursor-encode", cursor_encode),
    ("cursor-decode", cursor_decode),
    ("access-token", access_token),
    ("access-read", access_read),
    ("ring-follow", ring_follow),
    ("ring-replay-100", ring_replay),
    ("connection-follow", connection_follow),
];

/// What is forbidden, of a topic that is there and of one that is absent: nobody is to tell them apart
/// by the time that the refusal takes. `denied` by the rules, `owned` by the topic's properties.
const PAIRS: &[[Named; 2]] = &[
    [
        ("read-denied-there", || refused("denied/there", false)),
        ("read-denied-absent", || refused("denied/absen", false)),
    ],
    [
        ("read-owned-there", || refused("owned/there", false)),
        ("read-owned-absent", || refused("owned/absen", false)),
    ],
    [
        ("publish-denied-there", || refused("denied/there", true)),
        ("publish-denied-absent", || refused("denied/absen", true)),
    ],
    [
        ("publish-owned-there", || refused("owned/there", true)),
        ("publish-owned-absent", || refused("owned/absen", true)),
    ],
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["--names"] => CASES.iter().for_each(|(name, _)| println!("{name}")),
        ["--pairs"] => PAIRS.iter().for_each(|[(a, _), (b, _)]| println!("{a} {b}")),
        ["--count", name, times] => {
            let case = CASES.iter().chain(PAIRS.iter().flatten()).find(|(of, _)| of == name);
            let (Some((_, make)), Ok(times)) = (case, times.parse::<u32>()) else {
                println!("no such case or number: {name} {times}");
                return ExitCode::from(64);
            };
            let mut case = make();
            (0..times).for_each(|_| case());
        }
        _ => divan::Divan::from_args().run_benches(),
    }
    ExitCode::SUCCESS
}

#[divan::bench(args = CASES.iter().map(|(name, _)| *name))]
fn case(bencher: divan::Bencher<'_, '_>, name: &str) {
    let (_, make) = CASES.iter().find(|(of, _)| *of == name).unwrap();
    bencher.bench_local(make());
}

fn topic() -> Topic {
    Topic::parse("user/42").unwrap()
}

fn key() -> TopicKey {
    TopicKey::new(Tenant::parse("default").unwrap(), topic())
}

/// 200 bytes of data, as the scenarios have them.
fn new_event() -> NewEvent {
    let data = format!(r#"{{"sent":1000000000000000,"pad":"{}"}}"#, "x".repeat(166));
    NewEvent::new(EventType::parse("job.done").unwrap()).data(JsonText::parse(&data).unwrap())
}

fn event() -> Event {
    Event {
        offset: Offset(123_456),
        fingerprint: Fingerprint(0x1234_5678),
        recorded_at: Timestamp::from_millis(1_790_000_000_000),
        body: Arc::new(new_event()),
    }
}

fn cursor() -> Cursor {
    let event = event();
    let position =
        Position { epoch: Epoch(77), offset: event.offset, fingerprint: event.fingerprint };
    Cursor::single(&topic(), position.into())
}

fn record_encode() -> Case {
    let event = event();
    Box::new(move || {
        let recorded_at = event.recorded_at;
        black_box(record::encode(black_box(&event.body), event.offset, recorded_at));
    })
}

fn record_decode() -> Case {
    let event = event();
    let (_, record) = record::encode(&event.body, event.offset, event.recorded_at);
    Box::new(move || {
        black_box(record::decode(black_box(&record), event.offset).unwrap());
    })
}

fn frame_encode() -> Case {
    let (topic, event) = (FrameTopic::from(&key()), event());
    Box::new(move || {
        black_box(Frame::of(black_box(&topic), Epoch(77), black_box(&event)).bytes());
    })
}

fn cursor_encode() -> Case {
    let (cursor, mut text) = (cursor(), String::new());
    Box::new(move || {
        text.clear();
        black_box(&cursor).encode_into(&mut text);
        black_box(&text);
    })
}

fn cursor_decode() -> Case {
    let (text, topic) = (cursor().encode(), topic());
    Box::new(move || {
        black_box(Cursor::decode(black_box(&text)).unwrap().mark(&topic).unwrap());
    })
}

/// A hub's rules, and a token for them.
fn access() -> (Authenticator, String, Timestamp) {
    let secret = "0123456789abcdef0123456789abcdef";
    let settings = json!({
        "jwt": { "keys": [{ "algorithm": "HS256", "secret": secret }] },
        "access": [
            { "topic": "user/{sub}", "read": true, "feed": true },
            { "topic": "team/{teams}/jobs", "read": { "permission": "events:read" } },
            { "topic": "message/*", "read": "owner" },
        ],
    });
    let settings: AuthSettings = serde_json::from_value(settings).unwrap();
    let now = Timestamp::from_millis(1_790_000_000_000);
    let claims = json!({
        "sub": "42", "exp": now.as_secs() + 3600, "teams": ["a", "b"],
        "permissions": ["events:read"],
    });
    let signer = SigningKey::new(Algorithm::Hs256, None, &Secret::new(secret)).unwrap();
    let token = mint(&signer, claims.as_object().unwrap()).unwrap();
    (Authenticator::new(&settings).unwrap(), token, now)
}

fn access_token() -> Case {
    let (authenticator, token, now) = access();
    Box::new(move || {
        black_box(authenticator.authenticate(black_box(&token), now).unwrap());
    })
}

fn access_read() -> Case {
    let (authenticator, token, now) = access();
    let grant = authenticator.authenticate(&token, now).unwrap();
    let (topic, properties) = (topic(), Properties::default());
    Box::new(move || assert!(grant.may_read(black_box(&topic), &properties)))
}

/// A request for a topic that the caller may not use, through the whole HTTP interface.
fn refused(name: &'static str, publishes: bool) -> Case {
    let secret = "0123456789abcdef0123456789abcdef";
    let settings = json!({
        "jwt": { "keys": [{ "algorithm": "HS256", "secret": secret }] },
        "access": [{ "topic": "owned/*", "read": "owner", "write": "owner" }],
    });
    let settings: AuthSettings = serde_json::from_value(settings).unwrap();
    let (runtime, hub) = hub();
    let claims = json!({ "sub": "42", "exp": hub.clock().now().as_secs() + 3600 });
    let signer = SigningKey::new(Algorithm::Hs256, None, &Secret::new(secret)).unwrap();
    let bearer = format!("Bearer {}", mint(&signer, claims.as_object().unwrap()).unwrap());
    let authenticator = Arc::new(Authenticator::new(&settings).unwrap());
    let mut router = runtime.block_on(async {
        for name in ["denied/there", "owned/there"] {
            let tenant = Tenant::parse("default").unwrap();
            let publish = Publish {
                properties: Some(Box::new(Properties {
                    owner: Some("7".into()),
                    ..Properties::default()
                })),
                ..Publish::new(Topic::parse(name).unwrap(), new_event())
            };
            hub.publish_one(&tenant, publish).await.unwrap();
        }
        hub.router(authenticator, &HttpSettings::default()).unwrap()
    });
    let request = move || {
        let request = http::Request::builder().header("authorization", &bearer);
        if publishes {
            let request = request.method("POST").uri("/v1/events");
            let body = format!("{{\"topic\":\"{name}\",\"type\":\"x\"}}");
            request.header("content-type", "application/json").body(body).unwrap()
        } else {
            request.uri(format!("/v1/events?topic={name}")).body(String::new()).unwrap()
        }
    };
    Box::new(move || {
        let answer = runtime.block_on(router.call(request())).unwrap();
        assert_eq!(answer.status(), 403);
    })
}

/// A hub in memory, on the thread that drives it.
fn hub() -> (Runtime, Hub) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let hub = runtime.block_on(async { Hub::builder().start() });
    (runtime, hub)
}

async fn publish(hub: &Hub) {
    let tenant = Tenant::parse("default").unwrap();
    hub.publish_one(&tenant, Publish::new(topic(), new_event())).await.unwrap();
}

/// One event published and read from the ring.
fn ring_follow() -> Case {
    let (runtime, hub) = hub();
    let mut subscription = runtime.block_on(async {
        let (mut subscription, _) = hub.subscribe(Follow::new(vec![key()])).await.unwrap();
        subscription.next().await.unwrap();
        subscription
    });
    Box::new(move || {
        runtime.block_on(async {
            publish(&hub).await;
            black_box(subscription.next().await.unwrap());
        });
    })
}

/// A reader that comes a hundred events behind, all of them in the ring.
fn ring_replay() -> Case {
    let (runtime, hub) = hub();
    let keeper = runtime.block_on(async {
        let (keeper, _) = hub.subscribe(Follow::new(vec![key()])).await.unwrap();
        for _ in 0..100 {
            publish(&hub).await;
        }
        keeper
    });
    Box::new(move || {
        runtime.block_on(async {
            let follow = Follow { since: Some(Since::Earliest), ..Follow::new(vec![key()]) };
            let (mut subscription, _) = hub.subscribe(follow).await.unwrap();
            black_box(subscription.next().await.unwrap());
        });
        black_box(&keeper);
    })
}

/// One event published and written as a connection's bytes.
fn connection_follow() -> Case {
    let (runtime, hub) = hub();
    let options = ConnectionOptions {
        format: Format::Sse,
        envelope: Envelope::CloudEvents,
        expires_at: None,
    };
    let mut connection = runtime.block_on(async {
        let mut connection = Connection::open(&hub, Follow::new(vec![key()]), options);
        // `: ok`, hello and caught up.
        for _ in 0..3 {
            connection.next().await.unwrap();
        }
        connection
    });
    Box::new(move || {
        runtime.block_on(async {
            publish(&hub).await;
            black_box(connection.next().await.unwrap());
        });
    })
}
