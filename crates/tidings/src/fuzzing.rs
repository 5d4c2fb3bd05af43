//! What hostile bytes are tried on, and what must hold whatever they are.
//!
//! The rule: a target asserts a property, not only that nothing panics. The tests below run each on
//! its corpus and a bounded number of seeded mutations of it; `cargo xtask fuzz` runs the same
//! functions under libFuzzer, for as long as somebody likes.
#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a target fails by panicking"
)]

use std::sync::{Arc, LazyLock};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;

pub use crate::http::fuzzing::{cloudevents, json_body, ndjson, query, request_head};
use crate::{
    auth::{
        Algorithm, ApiKey, ApiKeySettings, AuthSettings, Authenticator, JwtKeySettings, Secret,
        SigningKey, jwt,
    },
    journal::record,
    model::{
        Class, Cursor, Data, Epoch, Event, EventId, EventType, Fingerprint, JsonText, NewEvent,
        Offset, Pattern, StateKey, Tenant, Timestamp, Topic, TopicKey,
        event::Attribute,
        limits::{
            CONNECTION_TOPICS_MAX, CURSOR_BYTES_MAX, SEGMENT_BYTES_MAX, TOPIC_BYTES_MAX,
            TOPIC_SEGMENTS_MAX,
        },
    },
    sse::Frame,
};

/// A target: its name, also its corpus's folder, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("cloudevents", cloudevents),
    ("cursor", cursor),
    ("frame", frame),
    ("json_body", json_body),
    ("ndjson", ndjson),
    ("query", query),
    ("record", stored_record),
    ("request_head", request_head),
    ("token", token),
    ("topic", topic),
];

/// `Last-Event-ID`: what is accepted is spelled in one way only, and bounded.
pub fn cursor(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    // As text from outside, and as the bytes below base64, which mutations seldom get right.
    for text in [&*text, &BASE64.encode(input)] {
        let Ok(cursor) = Cursor::decode(text) else { continue };
        assert!(text.len() <= CURSOR_BYTES_MAX);
        assert_eq!(cursor.encode(), text);
        assert_eq!(Cursor::decode(&cursor.encode()), Ok(cursor.clone()));
        let bytes = BASE64.decode(text).unwrap();
        // A topic takes at least 17 bytes.
        assert!(bytes.len() < 7 + CONNECTION_TOPICS_MAX * 37);
    }
}

/// A pattern and a topic, on two lines: names keep their rules, and matching is what a naive
/// matcher says.
pub fn topic(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (pattern, name) = text.split_once('\n').unwrap_or((text, text));
    let Ok(topic) = Topic::parse(name) else { return };
    assert!(name.len() <= TOPIC_BYTES_MAX && name.split('/').count() <= TOPIC_SEGMENTS_MAX);
    for part in name.strip_prefix('$').unwrap_or(name).split('/') {
        assert!((1..=SEGMENT_BYTES_MAX).contains(&part.len()) && part != "." && part != "..");
        assert!(part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~:@-".contains(&b)));
    }
    assert!(Pattern::from(&topic).matches(&topic));
    let Ok(pattern) = Pattern::parse(pattern) else { return };
    let parts: Vec<&str> = pattern.as_str().split('/').collect();
    let names: Vec<&str> = topic.segments().collect();
    let may_be_reserved = !topic.is_reserved() || pattern.as_str().starts_with('$');
    assert_eq!(pattern.matches(&topic), may_be_reserved && matches(&parts, &names));
}

fn matches(parts: &[&str], names: &[&str]) -> bool {
    match (parts, names) {
        ([], []) => true,
        (["**"], [_, ..]) => true,
        (["*", parts @ ..], [_, names @ ..]) => matches(parts, names),
        ([part, parts @ ..], [name, names @ ..]) => part == name && matches(parts, names),
        _ => false,
    }
}

const KEY: &str = "tdk_abcdefgh12_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg3To7I2";
const KEY_SHA256: &str = "71d84b1859bad11abcb3dfd9353c8d1873aafd883ffaf6f2c9df7cbcfc3e1850";
const SECRET: &str = "a-secret-of-the-fuzz-targets-that-is-long-enough";

/// The two credentials that are good.
static GOOD: LazyLock<[String; 2]> = LazyLock::new(|| {
    let secret = Secret::new(SECRET.to_owned());
    let key = SigningKey::new(Algorithm::Hs256, None, &secret).unwrap();
    let claims = serde_json::json!({ "sub": "42", "exp": 4_000_000_000_u64 });
    [KEY.to_owned(), jwt::mint(&key, claims.as_object().unwrap()).unwrap()]
});

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let mut settings = AuthSettings::default();
    settings.jwt.keys.push(JwtKeySettings {
        algorithm: Algorithm::Hs256,
        kid: None,
        secret: Some(Secret::new(SECRET.to_owned())),
        public_key: None,
    });
    settings.api_keys.push(ApiKeySettings {
        id: "abcdefgh12".to_owned(),
        sha256: KEY_SHA256.to_owned(),
        tenant: None,
        subject: None,
        read: vec!["**".to_owned()],
        write: Vec::new(),
        expires_at: None,
        revoke: false,
    });
    Authenticator::new(&settings).unwrap()
});

/// `Authorization: Bearer`: nothing opens but what was issued, to the letter, and no refusal repeats
/// the credential.
pub fn token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let now = Timestamp::from_millis(1_800_000_000_000);
    match AUTHENTICATOR.authenticate(text, now) {
        Ok(_) => assert!(GOOD.iter().any(|good| good == text), "{text:?} is accepted"),
        Err(problem) => {
            assert!(matches!(problem.code.status(), 401), "{problem:?}");
            let secret = text.len() >= 24 && problem.detail.contains(text);
            assert!(!secret, "the refusal repeats the credential");
        }
    }
    if let Ok(key) = ApiKey::parse(text) {
        assert!(text.starts_with(&format!("tdk_{}_", key.id())));
        assert_eq!(key.sha256().len(), 64);
    }
    let _ = jwt::inspect(text);
}

/// A stored record: what decodes is written back as the same event, and damage does not decode.
pub fn stored_record(input: &[u8]) {
    let offset = Offset(7);
    let mut whole = input.to_vec();
    if let Some(body) = input.get(4..) {
        // Mutations seldom get a checksum right.
        let sum = crc32c::crc32c_append(crc32c::crc32c(body), &offset.0.to_be_bytes());
        whole[..4].copy_from_slice(&sum.to_be_bytes());
    }
    if whole != input {
        assert!(record::decode(input, offset).is_err(), "a wrong checksum is accepted");
    }
    assert!(record::decode(&whole, Offset(8)).is_err(), "another offset's record is accepted");
    let Ok(event) = record::decode(&whole, offset) else { return };
    let (fingerprint, bytes) = record::encode(&event.body, offset, event.recorded_at);
    let again = record::decode(&bytes, offset).unwrap();
    assert_eq!((again.body, again.recorded_at), (event.body, event.recorded_at));
    assert_eq!(again.fingerprint, fingerprint);
}

/// An event of any fields, one a line: its frame is two lines that hold all of them.
pub fn frame(input: &[u8]) {
    let mut parts = input.split(|byte| *byte == b'\n');
    let mut bytes = || parts.next().unwrap_or_default();
    let mut text = || std::str::from_utf8(bytes()).unwrap_or_default();
    let Ok(event_type) = EventType::parse(text()) else { return };
    let mut event = NewEvent::new(event_type);
    if let Ok(id) = EventId::parse(text()) {
        event.id = id;
    }
    if let Ok(key) = StateKey::parse(text()) {
        event = event.state(key);
    }
    event.source = Attribute::parse(text()).ok();
    event.subject = Attribute::parse(text()).ok();
    event.delete = event.key.is_some() && text() == "delete";
    let rest: Vec<u8> = parts.collect::<Vec<_>>().join(&b'\n');
    event.data = match (std::str::from_utf8(&rest), event.subject.clone()) {
        _ if rest.is_empty() => Data::None,
        (Ok(text), None) => Data::Json(JsonText::string(text)),
        (Ok(text), Some(_)) => JsonText::parse(text).map_or(Data::None, Data::Json),
        (Err(_), _) => Data::Binary {
            content_type: Attribute::parse("image/png").unwrap(),
            bytes: Bytes::from(rest),
        },
    };
    check_event(&Topic::parse("user/42").unwrap(), event);
}

/// What must hold of every event that may be published: it is stored (unless it is ephemeral) and
/// delivered as it is, and no byte of it ends a line.
pub(crate) fn check_event(topic: &Topic, event: NewEvent) {
    let (offset, recorded_at) = (Offset(7), Timestamp::from_millis(1_800_000_000_000));
    let (fingerprint, bytes) = record::encode(&event, offset, recorded_at);
    if event.class != Class::Ephemeral {
        assert_eq!(*record::decode(&bytes, offset).unwrap().body, event);
        assert!(record::decode(&bytes, Offset(8)).is_err(), "another offset's record is accepted");
    }
    let key = TopicKey::new(Tenant::parse("t").unwrap(), topic.clone());
    let event = Event { offset, fingerprint, recorded_at, body: Arc::new(event) };
    let frame = Frame::of(&key, Epoch(1), &event);
    let text = std::str::from_utf8(frame.bytes()).unwrap();
    assert!(!text.contains('\r'));
    let lines: Vec<&str> = text.split('\n').collect();
    let [id, data, "", ""] = lines.as_slice() else { panic!("not a frame: {text:?}") };
    let cursor = Cursor::decode(id.strip_prefix("id: ").unwrap()).unwrap();
    assert_eq!(Some(cursor.mark(topic).unwrap().position), frame.position);
    let json: serde_json::Value = serde_json::from_str(data.strip_prefix("data: ").unwrap())
        .unwrap_or_else(|error| panic!("{error}: {data}"));
    let body = &event.body;
    assert_eq!(json["id"], body.id.as_str());
    assert_eq!(json["type"], body.event_type.as_str());
    assert_eq!(json["topic"], topic.as_str());
    assert_eq!(json["class"], body.class.as_str());
    assert_eq!(json["key"].as_str(), body.key.as_ref().map(StateKey::as_str));
    assert_eq!(json["subject"].as_str(), body.subject.as_ref().map(Attribute::as_str));
    assert_eq!(json["deleted"] == true, body.delete);
    assert_ne!(fingerprint, Fingerprint(0), "the last position of nothing");
    match &body.data {
        Data::None => assert_eq!(&frame.data()[..], b"null"),
        Data::Json(text) => assert_eq!(&frame.data()[..], text.as_str().as_bytes()),
        Data::Binary { .. } => assert!(json["data_base64"].is_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Mutations of each input of a corpus.
    const MUTATIONS: u64 = 400;

    /// SplitMix64: the same inputs in every run.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, count: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            usize::try_from((mixed ^ (mixed >> 31)) % count.max(1) as u64).unwrap()
        }
    }

    /// Bytes that mean something to one of the parsers.
    const WORDS: &[&[u8]] = &[
        b"\n",
        b"\r\n",
        b"\0",
        b"\"",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"{}",
        b"[]",
        b"[[[[",
        b",",
        b":",
        b"null",
        b"true",
        b"1e999",
        b"-0",
        b"NaN",
        b"data",
        b"\"topic\":",
        b"%00",
        b"%",
        b"&",
        b"=",
        b"/",
        b"..",
        b"*",
        b"**",
        b"$",
        b"\xff",
        b"\xc3\xa9",
        b"\xe2\x80\xa8",
        b"=",
        b".",
        b"id: ",
        b"data: ",
        b"\xff\xff\xff\xff",
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    ];

    fn mutate(chance: &mut Chance, corpus: &[Vec<u8>], input: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=chance.below(4) {
            let at = chance.below(bytes.len() + 1);
            let end = (at + 1 + chance.below(8)).min(bytes.len()).max(at);
            match chance.below(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
                1 if at < bytes.len() => bytes[at] = u8::try_from(chance.below(256)).unwrap(),
                2 => drop(bytes.drain(at..end)),
                3 => drop(bytes.splice(at..at, WORDS[chance.below(WORDS.len())].iter().copied())),
                4 => {
                    let copy = bytes[at..end].to_vec();
                    drop(bytes.splice(at..at, copy));
                }
                _ => {
                    let other = &corpus[chance.below(corpus.len())];
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[chance.below(other.len() + 1)..]);
                }
            }
        }
        bytes
    }

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    /// The first input near a target's corpus on which it does not hold.
    fn broken_by(name: &str, target: fn(&[u8])) -> Option<Vec<u8>> {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        let mut chance = Chance(1);
        let near = corpus.iter().flat_map(|input| {
            let mutations = (0..MUTATIONS).map(|_| mutate(&mut chance, &corpus, input));
            std::iter::once(input.clone()).chain(mutations.collect::<Vec<_>>())
        });
        near.collect::<Vec<_>>()
            .into_iter()
            .find(|input| std::panic::catch_unwind(|| target(input)).is_err())
    }

    /// Broken on purpose, the targets in brackets noticed: overlong numbers in cursors (cursor), line
    /// ends not escaped (frame), `*` for no segment (topic), checksums without their offset (frame),
    /// the rest of a line that was too long taken for a line (ndjson), keys with more behind them
    /// (token), letters decoded as others (query), data up to twice its limit (json_body).
    #[test]
    fn every_target_holds_on_its_corpus_and_what_is_near_it() {
        let broken: Vec<String> = TARGETS
            .iter()
            .filter_map(|(name, target)| {
                let input = broken_by(name, *target)?;
                Some(format!("{name}: {}", input.escape_ascii()))
            })
            .collect();
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }

    #[test]
    fn what_was_issued_is_in_the_corpus_and_opens() {
        let corpus = corpus("token");
        for good in &*GOOD {
            assert!(AUTHENTICATOR.authenticate(good, Timestamp::from_millis(0)).is_ok());
            assert!(corpus.iter().any(|input| input == good.as_bytes()), "{good} is not there");
        }
    }

    #[test]
    fn every_target_has_a_program_for_libfuzzer() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/Cargo.toml");
        let manifest = fs::read_to_string(manifest).unwrap();
        for (name, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        }
    }
}
