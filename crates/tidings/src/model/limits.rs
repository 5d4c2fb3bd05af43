//! Every bound of the hub that does not depend on a deployment, with its unit and its reason.
//!
//! Bounds that operators may change live in [`crate::settings`]; their defaults are here.

use std::time::Duration;

/// Segments of a topic: deep enough for `account/1/team/2/project/3/…`, and bounds pattern matching.
pub const TOPIC_SEGMENTS_MAX: usize = 16;
/// Bytes of one topic segment: a UUID, an e-mail address or a SHA-256 in hex fits.
pub const SEGMENT_BYTES_MAX: usize = 128;
/// Bytes of a whole topic name: it is part of every stored key of the topic's head.
pub const TOPIC_BYTES_MAX: usize = 512;
/// Bytes of a pattern in a rule or grant.
pub const PATTERN_BYTES_MAX: usize = 512;
/// Bytes of a JWT: one with 200 team names fits, and it fits a request's head four times over.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a token's `sub`, `jti` and `kid`: OpenID Connect allows a `sub` of 255.
pub const TOKEN_NAME_BYTES_MAX: usize = 256;
/// Elements of a token's list claim that a rule uses, patterns that a token carries, and topics
/// that one rule adds to a feed: each is compared with every topic that the caller touches.
pub const GRANT_ELEMENTS_MAX: usize = 200;
/// Bytes of a pattern that a token carries.
pub const TOKEN_PATTERN_BYTES_MAX: usize = 256;
/// Access rules: every one is looked at for every topic that a caller touches.
pub const ACCESS_RULES_MAX: usize = 256;
/// Keys that verify tokens: an unsigned token costs at most so many signature checks.
pub const JWT_KEYS_MAX: usize = 16;
/// Issuers of tokens: each may have a key set to read.
pub const JWT_ISSUERS_MAX: usize = 16;
/// Bytes of a key set: a hundred RSA keys with their certificates.
pub const KEY_SET_BYTES_MAX: usize = 256 * 1024;
/// Keys of a key set.
pub const KEY_SET_KEYS_MAX: usize = 100;
/// How long reading a key set may take: a token with a new key waits for it.
pub const KEY_SET_READ_MAX: Duration = Duration::from_secs(5);
/// How often tokens with unknown keys make a key set be read: whoever invents key names cannot
/// make the hub attack its identity provider.
pub const KEY_SET_ASKED_EVERY: Duration = Duration::from_secs(30);
/// Bytes of an event type.
pub const EVENT_TYPE_BYTES_MAX: usize = 128;
/// Bytes of an event id: it is stored once more in the dedup window.
pub const EVENT_ID_BYTES_MAX: usize = 128;
/// Bytes of a state key.
pub const STATE_KEY_BYTES_MAX: usize = 256;
/// Bytes of `source` and `subject`.
pub const ATTRIBUTE_BYTES_MAX: usize = 512;
/// CloudEvents extension attributes of one event.
pub const EXTENSIONS_MAX: usize = 16;
/// Nesting of JSON data: far above real payloads, far below what overflows a stack.
pub const JSON_DEPTH_MAX: usize = 64;
/// Data of one event, bytes. CloudEvents guarantees forwarding up to 64 KiB.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;
/// Body of one publish request, bytes.
pub const PUBLISH_BYTES_MAX: usize = 1024 * 1024;
/// Events of one publish request.
pub const PUBLISH_EVENTS_MAX: usize = 500;
/// Connections that one user follows over: a browser's tabs on a few devices.
pub const USER_CONNECTIONS_MAX: usize = 20;
/// Connections at once, of all clients: some 20 KB each.
pub const CONNECTIONS_MAX: usize = 50_000;
/// Connections of one address: an office behind one router.
pub const ADDRESS_CONNECTIONS_MAX: usize = 200;
/// Topics that one tenant holds: some 200 bytes each in the store's index.
pub const TENANT_TOPICS_MAX: u64 = 1_000_000;
/// Bytes of publish requests that are being read or stored: with what is made of them, some four
/// times as much memory.
pub const PUBLISH_WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Pages that readers read at once: half of what the journal does, so that what publishers wait
/// for finds the other half free.
pub const REPLAY_READS_MAX: usize = 8;
/// Pages that one tenant's readers read at once: another tenant's always find a turn.
pub const TENANT_REPLAY_READS_MAX: usize = 6;
/// Topics that one connection follows: one bit each in its wake word, and bounds the cursor.
pub const CONNECTION_TOPICS_MAX: usize = 32;
/// Longest `Last-Event-ID` that is looked at: 32 topics take below 1.5 KiB.
pub const CURSOR_BYTES_MAX: usize = 2048;
/// Filters of one connection.
pub const CONNECTION_FILTERS_MAX: usize = 32;
/// Events of one journal page: a page is what a slow reader holds at most.
pub const REPLAY_PAGE_EVENTS: usize = 500;
/// Bytes of one journal page, so that 500 events of 64 KiB do not become 32 MiB.
pub const REPLAY_PAGE_BYTES: usize = 256 * 1024;
/// Bytes of the ephemeral frames that a topic keeps for readers that are being woken.
pub const RING_EPHEMERAL_BYTES_MAX: usize = 256 * 1024;
/// Frames that a topic keeps in memory for its readers.
pub const RING_FRAMES_MAX: usize = 256;
/// Bytes of the frames that a topic keeps in memory.
pub const RING_BYTES_MAX: usize = 1024 * 1024;
/// Publishes that wait for one topic's task: beyond it publishers wait, which is their back-pressure.
pub const TOPIC_QUEUE_MAX: usize = 1024;
/// Events that one journal commit takes: bounds its duration (measured 2026-11: 1.8 ms p50).
pub const COMMIT_EVENTS_MAX: usize = 1024;
/// Bytes that one journal commit takes.
pub const COMMIT_BYTES_MAX: usize = 1024 * 1024;
/// A commit that takes longer aborts the process: the store is stuck and a restart heals it
/// (fjall issue 257), while a hub that hangs helps nobody.
pub const COMMIT_STALL_MAX: Duration = Duration::from_secs(10);
/// A commit that takes longer makes the hub not ready, and publishers are refused, until it is done:
/// flushes of a healthy store take 110 ms at most (measured 2026-11).
pub const COMMIT_SLOW: Duration = Duration::from_secs(1);
/// How often the high-water mark of commits is synced: a power cut may leave it so far behind.
pub const HIGH_WATER_SYNC: Duration = Duration::from_secs(1);
/// How long closing the journal waits for the disk, well within any grace period.
pub const JOURNAL_CLOSE_MAX: Duration = Duration::from_secs(3);
/// How long closing the journal waits for a compaction to end; one that is cut short is begun anew.
pub const COMPACTION_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a repeated event id is recognised at least.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);
/// How many of a topic's last events are recognised by id at least, however old.
pub const DEDUP_EVENTS_MIN: u64 = 10_000;
/// States that one topic may hold: a snapshot of them is 20 pages.
pub const STATES_PER_TOPIC: u64 = 10_000;
/// Longest wait of a long-poll.
pub const LONG_POLL_WAIT_MAX: Duration = Duration::from_secs(25);
/// A topic without readers and publishers leaves memory after this long.
pub const TOPIC_IDLE: Duration = Duration::from_secs(10);
/// A ticket is to be used within this time.
pub const TICKET_LIFE: Duration = Duration::from_secs(30);
/// The furthest end of a revocation: longer than any credential should live.
pub const REVOCATION_LIFE_MAX: Duration = Duration::from_secs(400 * 24 * 60 * 60);
/// Clock difference that token checks forgive.
pub const TOKEN_LEEWAY: Duration = Duration::from_secs(60);
/// Bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
