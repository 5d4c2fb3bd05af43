//! The configuration: these structs are the one definition that everything else is generated from.
//!
//! The rule: a field's name makes its TOML key, its `TIDINGS_*` variable and its flag; its doc
//! comment is its reference text. Nothing about a setting is written down a second time.

mod document;
mod load;
mod reference;
mod setting;
mod shared;
mod validate;
mod value;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings::{
    auth::{ApiKeySettings, AuthSettings, JwtSettings, KeySetTimes, Policy, Secret},
    http::{CookieSettings, HttpSettings, ServeSettings},
    journal::{JournalSettings, Retention},
    model::limits,
    settings::{Rate, Settings as HubSettings},
    source::amqp::AmqpSettings,
};

pub(crate) use load::{ConfigProblem, Layers, Loaded, load, read_secret_file};
pub(crate) use reference::{effective, reference_page, schema_text, show};
pub(crate) use setting::SettingFlags;
pub(crate) use shared::{
    BusKind, ClusterConfig, JournalRule, PostgresConfig, RabbitMqConfig, RedisConfig,
};
pub(crate) use validate::serving_problems;
pub(crate) use value::{ByteSize, Period};

/// Everything an operator can say about a hub.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Address and port that clients connect to. Port 0 takes a free one. Beyond loopback the hub
    /// asks for TLS or for the word that a proxy provides it (`behind_proxy`).
    #[schemars(with = "String")]
    pub(crate) listen: SocketAddr,
    /// Directory of the embedded journal. Created if absent; one hub at a time.
    #[schemars(with = "String")]
    pub(crate) data: PathBuf,
    /// Whether a reverse proxy in front terminates TLS. Says that cleartext on `listen` is meant.
    /// Name the proxy in `trusted_proxies` too.
    pub(crate) behind_proxy: bool,
    /// Networks or addresses of the reverse proxies in front: `["10.0.0.0/8", "192.0.2.7"]`. Only
    /// their `X-Forwarded-For` is believed: the client is its right-most address that is none of
    /// theirs. Their connections are not counted by address; those of clients behind them are. With
    /// `behind_proxy`, nobody else beyond loopback may speak cleartext.
    pub(crate) trusted_proxies: Vec<String>,
    /// Silence on a connection after which it is pinged, ± 20 %. Below the idle timeout of every
    /// proxy on the way (nginx: 60 s, AWS load balancers: 60 s).
    pub(crate) heartbeat: Period,
    /// What readers are told to wait before they reconnect by themselves.
    pub(crate) retry: Period,
    /// How long an orderly shutdown takes at most, after `drain_grace`: readers are sent away spread
    /// over it, and what has not ended at its end is ended. Keep both together below the time after
    /// which your supervisor kills (Kubernetes: 30 s, `docker stop`: 10 s).
    pub(crate) drain_window: Period,
    /// How long a hub that was told to end goes on as before, but is not ready (`/health/ready`):
    /// the time that balancers take to notice. Whom they still send is not refused.
    pub(crate) drain_grace: Period,
    /// Whether files with secrets may be readable by every user of the machine. Only where the
    /// platform decides their mode and nobody else is on the machine (a container).
    pub(crate) allow_readable_secrets: bool,
    /// The listener for operators.
    pub(crate) admin: AdminConfig,
    /// The hub's counters, `/metrics`.
    pub(crate) metrics: MetricsConfig,
    /// Encryption of the listener for clients.
    pub(crate) tls: TlsConfig,
    /// Browsers on other origins.
    pub(crate) cors: CorsConfig,
    /// Where events are kept.
    pub(crate) journal: JournalConfig,
    /// Redis, if events are kept there or nodes talk by it.
    pub(crate) redis: RedisConfig,
    /// PostgreSQL, if events are kept there, nodes talk by it, or applications enqueue events there.
    pub(crate) postgres: PostgresConfig,
    /// RabbitMQ, if nodes talk by it.
    pub(crate) rabbitmq: RabbitMqConfig,
    /// RabbitMQ queues whose messages become events, as a list of `[[sources]]` tables; see
    /// [the guide](guides/rabbitmq.md). Without any, the variables `RABBITMQ_URL`,
    /// `RABBITMQ_EVENTS_EXCHANGE`, `RABBITMQ_EVENTS_QUEUE`, `RABBITMQ_EVENTS_BINDING_KEY` and
    /// `RABBITMQ_PREFETCH_COUNT` make one.
    pub(crate) sources: Vec<AmqpSettings>,
    /// Nodes that share a journal.
    pub(crate) cluster: ClusterConfig,
    /// How much of a topic is kept, unless the topic says it itself: whichever bound is reached
    /// first. States stay until they are replaced, deleted or expire.
    pub(crate) retention: RetentionConfig,
    /// Bounds on what clients may ask of the hub. Over one, a client gets a typed answer (413, 429).
    pub(crate) limits: LimitsConfig,
    /// Times of the HTTP listener.
    pub(crate) http: HttpConfig,
    /// Which credentials are accepted.
    pub(crate) auth: AuthConfig,
    /// What the holders of tokens may do, by topic, as a list of `[[access]]` tables. What no rule
    /// allows is denied.
    pub(crate) access: Policy,
    /// What the hub says about itself.
    pub(crate) log: LogConfig,
    /// Traces of published events, for an OpenTelemetry collector.
    pub(crate) otlp: OtlpConfig,
}

/// The listener for operators.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AdminConfig {
    /// Address and port of `/health/live`, `/health/ready` and `/metrics`, which ask for no
    /// credential, and of `/admin/v1`, which asks for the operators' token. Beyond loopback it
    /// speaks TLS as `listen` does, or is told that it need not (`admin.allow_cleartext`).
    #[schemars(with = "String")]
    pub(crate) listen: SocketAddr,
    /// The operators' token, at least 32 characters. Without it one is made at the first start and
    /// kept in the file `admin-token` of `data`, readable for its owner only.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) token: Option<Secret>,
    /// Whether operators beyond loopback may speak cleartext: for networks that are private by
    /// other means only.
    pub(crate) allow_cleartext: bool,
}

/// Shortest token of operators: 128 bits in hex digits.
pub(crate) const ADMIN_TOKEN_CHARACTERS_MIN: usize = 32;

/// The hub's counters, `/metrics`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MetricsConfig {
    /// Whether clients may read `/metrics` too, on `listen` and without a credential. It is on the
    /// admin listener in any case.
    pub(crate) public: bool,
}

/// Encryption of the listener for clients.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TlsConfig {
    /// File of the certificate chain, PEM. Set together with `tls.key`.
    #[schemars(with = "Option<String>")]
    pub(crate) cert: Option<PathBuf>,
    /// File of the certificate's private key, PEM.
    #[schemars(with = "Option<String>")]
    pub(crate) key: Option<PathBuf>,
    /// Whether peers beyond loopback may speak cleartext, beside TLS or without any. Tokens then
    /// cross the network in the clear: for networks that are private by other means only.
    pub(crate) allow_cleartext: bool,
}

/// Browsers on other origins.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CorsConfig {
    /// Origins whose pages may talk to the hub: `["https://app.example.com"]`. Each is written
    /// out; there is no wildcard, because pages send credentials.
    pub(crate) origins: Vec<String>,
}

/// Where events are kept.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct JournalConfig {
    /// Which journal.
    pub(crate) kind: JournalKind,
    /// How long a repeated event id is recognised at least: the longest that a publisher may try
    /// again and be sure that its event is stored once.
    pub(crate) dedup_window: Period,
    /// Among how many last events of a topic a repeated id is recognised at least, however old.
    pub(crate) dedup_events: u64,
    /// Topics that are in another journal, as a list of `[[journal.rules]]` tables with `topics` and
    /// `journal`.
    pub(crate) rules: Vec<JournalRule>,
}

/// Which journal keeps the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JournalKind {
    /// Files in `data`, fsynced before a publish is answered.
    #[default]
    Embedded,
    /// This process's memory: gone when it ends. For tests.
    Memory,
    /// A Redis or Valkey server that nodes share, `redis.url`.
    Redis,
    /// A PostgreSQL database that nodes share, `postgres.url`.
    Postgres,
}

/// How much of a topic is kept.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RetentionConfig {
    /// How long events are kept. `"0s"`: without bound.
    pub(crate) age: Period,
    /// How many events are kept. 0: without bound.
    pub(crate) events: u64,
    /// How many bytes of events are kept. `"0B"`: without bound.
    pub(crate) bytes: ByteSize,
}

/// Bounds on what clients may ask of the hub.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsConfig {
    /// Data of one event. 64 KiB is what every CloudEvents intermediary must forward.
    pub(crate) event_bytes: ByteSize,
    /// Body of one publish request; an NDJSON stream is not bounded by it.
    pub(crate) publish_bytes: ByteSize,
    /// Events of one publish request.
    pub(crate) publish_events: u64,
    /// Topics that one connection follows, at most 32.
    pub(crate) connection_topics: u64,
    /// States that one topic holds. Bounds what a new reader is sent first.
    pub(crate) topic_states: u64,
    /// Connections at once, of all clients. Each takes some 20 KB. Fewer where the process may open
    /// fewer files (`LimitNOFILE`), which is logged at start.
    pub(crate) connections: u64,
    /// Connections at once from one address (one /64 for IPv6), an office behind one router. Does
    /// not count loopback and `trusted_proxies`; of clients behind those it counts the streams.
    pub(crate) address_connections: u64,
    /// Connections a second that one address opens in the long run. 0: without bound. Counts whom
    /// `limits.address_connections` counts.
    pub(crate) address_connect_rate: u64,
    /// Connections that one address opens at once, after a pause: a page that many have open comes
    /// back after a restart.
    pub(crate) address_connect_burst: u64,
    /// Streams, of publishers too, and long-polls at once of one user: of a token's `sub`, or of an
    /// API key. 0: without bound.
    pub(crate) user_connections: u64,
    /// Streams, of publishers too, and long-polls at once of one tenant. Lower it where tenants share a hub, so that
    /// none takes all connections. 0: without bound.
    pub(crate) tenant_connections: u64,
    /// Events a second that one user (a token's `sub`, or an API key) publishes in the long run, at
    /// all nodes together. 0: without bound. Requests over it are refused; a stream of NDJSON is read
    /// as fast.
    pub(crate) user_publish_rate: u64,
    /// Events that one user publishes at once, after a pause.
    pub(crate) user_publish_burst: u64,
    /// Events a second that one tenant publishes in the long run, at all nodes together. 0: without
    /// bound. Lower it where tenants share a hub.
    pub(crate) tenant_publish_rate: u64,
    /// Events that one tenant publishes at once, after a pause.
    pub(crate) tenant_publish_burst: u64,
    /// Topics that one tenant holds. Bounds what a publisher who makes up names can cost.
    pub(crate) tenant_topics: u64,
    /// Bytes that the logs of one tenant's topics hold, looked at once a minute and counted in
    /// between. `"0B"`: without bound but those of `retention`.
    pub(crate) tenant_bytes: ByteSize,
    /// Bytes of publish requests that are being read or stored, of all publishers; more wait for
    /// `http.publish_wait`. Of this, a tenant may hold as much as is left free then, and a user as
    /// much as its tenant may still take: one user alone a third, one tenant alone half. Costs some
    /// four times as much memory.
    pub(crate) publish_waiting_bytes: ByteSize,
    /// Pages of the journal that readers read at once: half of the journal's 16, so that what
    /// publishers wait for finds the other half free.
    pub(crate) replay_reads: u64,
    /// Pages that one tenant's readers read at once, below `limits.replay_reads`, so that another's
    /// find a turn.
    pub(crate) tenant_replay_reads: u64,
    /// Frames that a topic keeps in memory for readers that are nearly up to date.
    pub(crate) ring_frames: u64,
    /// Bytes of the frames that a topic keeps in memory. Times the number of topics that are read,
    /// it bounds their memory.
    pub(crate) ring_bytes: ByteSize,
}

/// Times of the HTTP listener.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HttpConfig {
    /// How long a peer may take for its first byte.
    pub(crate) first_byte: Period,
    /// How long a peer may take for a TLS handshake.
    pub(crate) handshake: Period,
    /// How long a peer may take for a request's head, from its first byte.
    pub(crate) header_read: Period,
    /// How long a connection may be without a request. Above the 60 s of most proxies, who send a
    /// request into the end of their connection otherwise.
    pub(crate) idle: Period,
    /// How long the body of a request may take to arrive. Of a stream of NDJSON, see
    /// `http.publish_idle`.
    pub(crate) body_read: Period,
    /// Bytes a second that must arrive of a request's body, after 5 s. `"0B"`: without bound. Nobody
    /// holds a place by a byte now and then.
    pub(crate) body_rate: ByteSize,
    /// How long a publish waits for room among `limits.publish_waiting_bytes`, before it is refused.
    pub(crate) publish_wait: Period,
    /// How long a publisher's stream of NDJSON may be without a line; an empty one will do. All of it
    /// lives for `http.connection_age`.
    pub(crate) publish_idle: Period,
    /// How long a publish may take to be stored, before its publisher is told to repeat it. Above the
    /// 10 s after which a store that hangs ends the hub.
    pub(crate) publish_store: Period,
    /// How often a quiet HTTP/2 connection is asked whether it is still there.
    pub(crate) h2_ping: Period,
    /// How long a quiet HTTP/2 connection has to answer that.
    pub(crate) h2_pong: Period,
    /// How long a write may wait for a reader that takes nothing, before its connection is closed.
    /// The reader loses nothing: it resumes.
    pub(crate) write_stall: Period,
    /// How long a connection lives, ± 10 %, so that load spreads over nodes and grants are looked
    /// at anew.
    pub(crate) connection_age: Period,
}

/// Which credentials are accepted.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AuthConfig {
    /// The tenant of tokens without a `tenant` claim, and of API keys without a `tenant`.
    pub(crate) default_tenant: String,
    /// How tokens are verified.
    pub(crate) jwt: JwtSettings,
    /// The API keys that are accepted. `tidings key create` makes one and prints its entry.
    pub(crate) api_keys: Vec<ApiKeySettings>,
    /// The permission by which the holders of tokens may revoke credentials
    /// (`POST /v1/revocations`). Default: none may, only API keys that say `revoke`.
    pub(crate) revocation_permission: Option<String>,
    /// How long a revocation lasts that names no end. Keep it as long as your tokens live: one that
    /// lives longer counts again afterwards.
    pub(crate) revocation_life: Period,
    /// A token in a cookie, for pages of the hub's own site.
    pub(crate) cookie: CookieConfig,
    /// Key sets (JWKS) of the issuers in `auth.jwt.issuers`.
    pub(crate) key_sets: KeySetsConfig,
}

/// A token in a cookie, for pages of the hub's own site.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CookieConfig {
    /// Name of the cookie that carries the token, such as `__Host-tidings`. Default: no cookie
    /// counts.
    pub(crate) name: Option<String>,
    /// Origins of the pages that may use it: `["https://app.example.com"]`. Each is written out; the
    /// hub's own origin too, if its pages publish. Pages of another origin also need to be in
    /// `cors.origins`.
    pub(crate) origins: Vec<String>,
}

/// Key sets (JWKS) of the issuers in `auth.jwt.issuers`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KeySetsConfig {
    /// How often they are read: a key that its issuer removed is refused this much later. One that
    /// was added is found with its first token, at most every 30 s.
    pub(crate) refresh: Period,
    /// How long keys serve that were read, while their source is down. After it the issuer's tokens
    /// are answered with 503.
    pub(crate) stale_max: Period,
}

/// What the hub says about itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or by module:
    /// `"info,tidings::http=debug"`.
    pub(crate) level: String,
    /// How it is written to stderr.
    pub(crate) format: LogFormat,
}

/// Traces of published events, for an OpenTelemetry collector.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OtlpConfig {
    /// Address of a collector that takes OTLP over HTTP as protobuf: `"http://127.0.0.1:4318"`, to
    /// which `/v1/traces` is added. Default: no traces. `OTEL_EXPORTER_OTLP_ENDPOINT` sets it too.
    pub(crate) endpoint: Option<String>,
    /// Headers of what is sent there, such as the collector's credential: `"name=value"`, several
    /// with commas between them, values percent-encoded. `OTEL_EXPORTER_OTLP_HEADERS` sets it too.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) headers: Option<Secret>,
    /// What traces call the hub. `OTEL_SERVICE_NAME` sets it too; further attributes of the process
    /// are those of `OTEL_RESOURCE_ATTRIBUTES`.
    pub(crate) service_name: String,
    /// Which share of publish requests is traced, from 0 to 1, of those whose publisher does not say
    /// by a `traceparent` whether it is. `OTEL_TRACES_SAMPLER_ARG` sets it too.
    pub(crate) sample_ratio: f64,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One object a line, for collectors.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        let hub = HubSettings::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            data: PathBuf::from("tidings-data"),
            behind_proxy: false,
            trusted_proxies: Vec::new(),
            heartbeat: Period(hub.heartbeat),
            retry: Period(hub.retry),
            drain_window: Period(hub.drain_window),
            drain_grace: Period(Duration::from_secs(2)),
            allow_readable_secrets: false,
            admin: AdminConfig::default(),
            metrics: MetricsConfig::default(),
            tls: TlsConfig::default(),
            cors: CorsConfig::default(),
            journal: JournalConfig::default(),
            redis: RedisConfig::default(),
            postgres: PostgresConfig::default(),
            rabbitmq: RabbitMqConfig::default(),
            sources: Vec::new(),
            cluster: ClusterConfig::default(),
            retention: RetentionConfig::default(),
            limits: LimitsConfig::default(),
            http: HttpConfig::default(),
            auth: AuthConfig::default(),
            access: Policy::default(),
            log: LogConfig::default(),
            otlp: OtlpConfig::default(),
        }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            token: None,
            allow_cleartext: false,
        }
    }
}

impl Default for JournalConfig {
    fn default() -> Self {
        let journal = JournalSettings::default();
        Self {
            kind: JournalKind::default(),
            dedup_window: Period(journal.dedup_window),
            dedup_events: journal.dedup_events,
            rules: Vec::new(),
        }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        let Retention { age, events, bytes } = HubSettings::default().retention;
        Self {
            age: Period(age.unwrap_or_default()),
            events: events.unwrap_or_default(),
            bytes: ByteSize(bytes.unwrap_or_default()),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let hub = HubSettings::default();
        let serve = ServeSettings::default();
        Self {
            event_bytes: ByteSize(hub.event_bytes_max as u64),
            publish_bytes: ByteSize(hub.publish_bytes_max as u64),
            publish_events: hub.publish_events_max as u64,
            connection_topics: hub.connection_topics_max as u64,
            topic_states: JournalSettings::default().states_per_topic,
            connections: serve.connections_max as u64,
            address_connections: serve.connections_per_address_max as u64,
            address_connect_rate: serve.connect_rate.per_second,
            address_connect_burst: serve.connect_rate.burst,
            user_connections: hub.user_connections_max as u64,
            tenant_connections: hub.tenant_connections_max as u64,
            user_publish_rate: hub.user_publish_rate.per_second,
            user_publish_burst: hub.user_publish_rate.burst,
            tenant_publish_rate: hub.tenant_publish_rate.per_second,
            tenant_publish_burst: hub.tenant_publish_rate.burst,
            tenant_topics: hub.tenant_topics_max,
            tenant_bytes: ByteSize(hub.tenant_bytes_max.unwrap_or_default()),
            publish_waiting_bytes: ByteSize(hub.publish_waiting_bytes_max as u64),
            replay_reads: hub.replay_reads_max as u64,
            tenant_replay_reads: hub.tenant_replay_reads_max as u64,
            ring_frames: hub.ring_frames_max as u64,
            ring_bytes: ByteSize(hub.ring_bytes_max as u64),
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        let (serve, hub) = (ServeSettings::default(), HubSettings::default());
        Self {
            first_byte: Period(serve.first_byte),
            handshake: Period(serve.handshake),
            header_read: Period(serve.head),
            idle: Period(serve.idle),
            body_read: Period(hub.body_read_max),
            body_rate: ByteSize(hub.body_rate_min),
            publish_wait: Period(hub.publish_wait),
            publish_idle: Period(hub.publish_idle_max),
            publish_store: Period(hub.publish_store_max),
            h2_ping: Period(serve.h2_ping),
            h2_pong: Period(serve.h2_pong),
            write_stall: Period(serve.write_stall),
            connection_age: Period(hub.connection_age_max),
        }
    }
}

impl Default for AuthConfig {
    fn default() -> Self {
        let auth = AuthSettings::default();
        Self {
            default_tenant: auth.default_tenant,
            jwt: auth.jwt,
            api_keys: auth.api_keys,
            revocation_permission: auth.revocation_permission,
            revocation_life: Period(HubSettings::default().revocation_life),
            cookie: CookieConfig::default(),
            key_sets: KeySetsConfig::default(),
        }
    }
}

impl Default for KeySetsConfig {
    fn default() -> Self {
        let times = KeySetTimes::default();
        Self { refresh: Period(times.refresh), stale_max: Period(times.stale_max) }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

impl Default for OtlpConfig {
    fn default() -> Self {
        let service_name = "tidings".to_owned();
        Self { endpoint: None, headers: None, service_name, sample_ratio: 1.0 }
    }
}

impl Config {
    /// The journal's numbers.
    pub(crate) const fn journal_settings(&self) -> JournalSettings {
        JournalSettings {
            states_per_topic: self.limits.topic_states,
            dedup_window: self.journal.dedup_window.0,
            dedup_events: self.journal.dedup_events,
        }
    }

    /// The networks of the proxies in front; the configuration was checked.
    pub(crate) fn proxies(&self) -> Vec<IpNet> {
        self.trusted_proxies.iter().filter_map(|text| network(text)).collect()
    }

    /// Whether all connections come from a proxy that has no name: by address, they cannot be told
    /// apart.
    pub(crate) fn has_nameless_proxy(&self) -> bool {
        self.behind_proxy && self.trusted_proxies.is_empty()
    }

    /// The client listener's numbers.
    pub(crate) fn serve_settings(&self) -> ServeSettings {
        let (limits, http) = (&self.limits, &self.http);
        let is_nameless = self.has_nameless_proxy();
        let of_address = if is_nameless { limits.connections } else { limits.address_connections };
        let connect_rate = rate(limits.address_connect_rate, limits.address_connect_burst);
        ServeSettings {
            first_byte: http.first_byte.0,
            handshake: http.handshake.0,
            head: http.header_read.0,
            idle: http.idle.0,
            write_stall: http.write_stall.0,
            h2_ping: http.h2_ping.0,
            h2_pong: http.h2_pong.0,
            connections_max: size(limits.connections),
            connections_per_address_max: size(of_address),
            connect_rate: if is_nameless { Rate::UNLIMITED } else { connect_rate },
            trusted_proxies: self.proxies(),
            drain_window: self.drain_window.0,
            allow_cleartext: self.tls.allow_cleartext,
        }
    }

    /// The hub's numbers.
    pub(crate) fn hub_settings(&self) -> HubSettings {
        let (limits, http) = (&self.limits, &self.http);
        HubSettings {
            event_bytes_max: size(limits.event_bytes.0),
            publish_bytes_max: size(limits.publish_bytes.0),
            publish_events_max: size(limits.publish_events),
            connection_topics_max: size(limits.connection_topics),
            ring_frames_max: size(limits.ring_frames),
            ring_bytes_max: size(limits.ring_bytes.0),
            retention: self.retention.bounds(),
            heartbeat: self.heartbeat.0,
            retry: self.retry.0,
            connection_age_max: http.connection_age.0,
            drain_window: self.drain_window.0,
            revocation_life: self.auth.revocation_life.0,
            user_connections_max: size(limits.user_connections),
            tenant_connections_max: size(limits.tenant_connections),
            address_connections_max: size(limits.address_connections),
            user_publish_rate: rate(limits.user_publish_rate, limits.user_publish_burst),
            tenant_publish_rate: rate(limits.tenant_publish_rate, limits.tenant_publish_burst),
            tenant_topics_max: limits.tenant_topics,
            tenant_bytes_max: Some(limits.tenant_bytes.0).filter(|bytes| *bytes > 0),
            publish_waiting_bytes_max: size(limits.publish_waiting_bytes.0),
            publish_wait: http.publish_wait.0,
            publish_idle_max: http.publish_idle.0,
            publish_store_max: http.publish_store.0,
            body_read_max: http.body_read.0,
            body_rate_min: http.body_rate.0,
            replay_reads_max: size(limits.replay_reads),
            tenant_replay_reads_max: size(limits.tenant_replay_reads),
            node_name: self.node_name(),
            ..HubSettings::default()
        }
    }

    /// What the HTTP interface is built from.
    pub(crate) fn http_settings(&self) -> HttpSettings {
        let CookieConfig { name, origins } = &self.auth.cookie;
        let cookie = name.clone().map(|name| CookieSettings { name, origins: origins.clone() });
        HttpSettings {
            cors_origins: self.cors.origins.clone(),
            trusted_proxies: self.proxies(),
            metrics: self.metrics.public,
            cookie,
        }
    }

    /// What the authenticator is built from.
    pub(crate) fn auth_settings(&self) -> AuthSettings {
        AuthSettings {
            default_tenant: self.auth.default_tenant.clone(),
            jwt: self.auth.jwt.clone(),
            key_sets: KeySetTimes {
                refresh: self.auth.key_sets.refresh.0,
                stale_max: self.auth.key_sets.stale_max.0,
            },
            api_keys: self.auth.api_keys.clone(),
            revocation_permission: self.auth.revocation_permission.clone(),
            access: self.access.clone(),
        }
    }
}

impl RetentionConfig {
    fn bounds(&self) -> Retention {
        let bound = |number: u64| (number > 0).then_some(number);
        Retention {
            age: (!self.age.0.is_zero()).then_some(self.age.0),
            events: bound(self.events),
            bytes: bound(self.bytes.0),
        }
    }
}

/// A network, or one address.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

const fn rate(per_second: u64, burst: u64) -> Rate {
    Rate { per_second, burst }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Largest event that may be configured: four of them still fit a connection's buffers.
const EVENT_BYTES_CEILING: u64 = 4 * limits::EVENT_BYTES_MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> Config {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn behind_a_proxy_its_one_address_may_open_all_connections() {
        let alone = config("limits.connections = 1000").serve_settings();
        assert_eq!((alone.connections_max, alone.connections_per_address_max), (1000, 200));
        let behind = config("behind_proxy = true\nlimits.connections = 1000").serve_settings();
        assert_eq!((behind.connections_max, behind.connections_per_address_max), (1000, 1000));
        assert_eq!(behind.connect_rate, Rate::UNLIMITED);
        // A proxy that is named is told apart from others.
        let named = config("behind_proxy = true\ntrusted_proxies = [\"10.0.0.1\", \"fd00::/8\"]");
        let named = named.serve_settings();
        assert_eq!(named.connections_per_address_max, 200);
        assert_eq!(named.trusted_proxies, ["10.0.0.1/32", "fd00::/8"].map(|n| n.parse().unwrap()));
    }

    #[test]
    fn retention_of_zero_is_no_bound() {
        let text = "retention = { age = \"0s\", events = 0, bytes = \"0B\" }";
        assert_eq!(config(text).hub_settings().retention, Retention::UNLIMITED);
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let config = Config::default();
        let node_name = config.node_name();
        assert_eq!(config.hub_settings(), HubSettings { node_name, ..HubSettings::default() });
        let (ours, theirs) = (config.serve_settings(), ServeSettings::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        let (ours, theirs) = (config.journal_settings(), JournalSettings::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }
}
