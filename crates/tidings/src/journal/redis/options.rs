//! Where the server is, and how it is used.

use std::{fmt, time::Duration};

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisError, RedisResult,
    TlsCertificates,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

use super::{layout::Address, topology::Topology};
use crate::journal::JournalError;

/// Bytes of a key's prefix: it is part of every key.
const PREFIX_BYTES_MAX: usize = 64;

/// Where a Redis server is and how the journal uses it.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://[user:password@]host[:port][/database]`, `rediss://…` with TLS; to ask Sentinels
    /// where the server is, `redis+sentinel://[user:password@]host:port,host:port/name`
    /// `[/database]` (`rediss+sentinel://…` with TLS to the server and the Sentinels); for a Redis
    /// Cluster, `redis+cluster://[user:password@]host:port,host:port` (`rediss+cluster://…`) with
    /// some of its nodes. User and password are the servers'.
    pub url: String,
    /// What the names of all keys and channels begin with: `tidings:`. Two hubs with the same one
    /// are one hub. At most 64 bytes of `A-Z a-z 0-9 . _ : -`.
    pub prefix: String,
    /// Certificates (PEM) that a server with TLS is trusted by, instead of the machine's.
    pub root_certificates: Option<Vec<u8>>,
    /// How long an answer may take: 3 s. Past it, the caller is told that Redis is unavailable.
    pub timeout: Duration,
    /// How long connecting may take: 2 s.
    pub connect_timeout: Duration,
    /// Connections that appends are spread over: 2. Reading has one of its own.
    pub connections: usize,
    /// Whether to start although the server may evict any key when its memory is full, which
    /// loses topics without a word. For a cache of events that nobody misses.
    pub allow_evicting: bool,
    /// Replicas that have to receive an append before it is acknowledged, by `WAIT`: 0. Best effort:
    /// a replica that received it may still not be the one that is promoted.
    pub wait_replicas: u32,
}

impl RedisOptions {
    /// The server at a URL, with everything else as it is by default.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            prefix: "tidings:".to_owned(),
            root_certificates: None,
            timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(2),
            connections: 2,
            allow_evicting: false,
            wait_replicas: 0,
        }
    }

    /// Refuses what cannot be meant.
    pub(crate) fn check(&self) -> Result<(), JournalError> {
        let wrong = |message: &str| Err(JournalError::Broken(message.to_owned()));
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
        if self.prefix.len() > PREFIX_BYTES_MAX || !self.prefix.chars().all(allowed) {
            return wrong("the prefix of keys must be at most 64 bytes of A-Z a-z 0-9 . _ : -");
        }
        if self.connections == 0 {
            return wrong("there must be one connection to Redis at least");
        }
        Ok(())
    }
}

/// Passwords are not printed.
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.rsplit_once('@').map_or(self.url.as_str(), |(_, host)| host);
        f.debug_struct("RedisOptions")
            .field("url", &url)
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("connections", &self.connections)
            .field("allow_evicting", &self.allow_evicting)
            .field("wait_replicas", &self.wait_replicas)
            .finish_non_exhaustive()
    }
}

/// How the server is found.
pub(crate) enum Endpoint {
    Server(Box<Client>),
    Sentinels { client: Box<tokio::sync::Mutex<SentinelClient>>, named: String },
    Cluster(Box<Topology>),
}

impl Endpoint {
    /// Reads the options' URL.
    pub(crate) fn read(options: &RedisOptions) -> Result<Self, JournalError> {
        let read = match options.url.split_once("://") {
            Some(("redis+sentinel", rest)) => sentinels(options, "redis", rest),
            Some(("rediss+sentinel", rest)) => sentinels(options, "rediss", rest),
            Some(("redis+cluster", rest)) => cluster(options, "redis", rest),
            Some(("rediss+cluster", rest)) => cluster(options, "rediss", rest),
            _ => server(options, &options.url),
        };
        read.map_err(|error| {
            let text = "must be redis://[user:password@]host[:port][/database], rediss://…, \
                        redis+sentinel://[user:password@]host:port,host:port/name[/database] or \
                        redis+cluster://[user:password@]host:port,host:port";
            JournalError::Broken(format!("the URL of Redis {text}: {}", without_secrets(&error)))
        })
    }

    /// The server that is to be connected to now; of a cluster's one that serves, by chance.
    pub(crate) async fn client(&self) -> RedisResult<Client> {
        match self {
            Self::Cluster(topology) => topology.any(getrandom::u64().unwrap_or_default()).await,
            Self::Server(client) => Ok(Client::clone(client)),
            Self::Sentinels { client, .. } => client.lock().await.async_get_client().await,
        }
    }
}

impl Endpoint {
    /// Why a server is not to be listened to any more though it answers.
    pub(crate) async fn doubt(&self, server: &ConnectionAddr) -> Option<String> {
        match self {
            Self::Cluster(topology) => topology.doubt(server).await,
            // It is alone, or whoever is to follow it says so by closing its connections.
            Self::Server(_) | Self::Sentinels { .. } => None,
        }
    }
}

/// Names the server, without a password.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(client) => client.get_connection_info().addr().fmt(f),
            Self::Sentinels { named, .. } => write!(f, "{named} (by Sentinel)"),
            Self::Cluster(topology) => topology.fmt(f),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn certificates(options: &RedisOptions) -> Option<TlsCertificates> {
    let root_cert = options.root_certificates.clone()?;
    Some(TlsCertificates { client_tls: None, root_cert: Some(root_cert) })
}

fn server(options: &RedisOptions, url: &str) -> RedisResult<Endpoint> {
    Ok(Endpoint::Server(Box::new(client(options, url)?)))
}

fn client(options: &RedisOptions, url: &str) -> RedisResult<Client> {
    match certificates(options) {
        Some(certificates) => Client::build_with_tls(url, certificates),
        None => Client::open(url),
    }
}

fn cluster(options: &RedisOptions, scheme: &str, rest: &str) -> RedisResult<Endpoint> {
    let wrong = |what| RedisError::from((redis::ErrorKind::InvalidClientConfig, what));
    let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
    let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
    if !matches!(database, "" | "0") {
        return Err(wrong("a cluster has no databases"));
    }
    let at = if user.is_empty() { "" } else { "@" };
    let read = |host| client(options, &format!("{scheme}://{user}{at}{host}"));
    let clients = hosts.split(',').map(read).collect::<RedisResult<Vec<Client>>>()?;
    let seeds = clients.iter().map(|client| match client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Ok(Address { host: host.clone(), port: *port })
        }
        _ => Err(wrong("a node of a cluster has a host and a port")),
    });
    let seeds = seeds.collect::<RedisResult<Vec<Address>>>()?;
    let first = clients.first().ok_or_else(|| wrong("no node of the cluster"))?;
    let info = first.get_connection_info().clone();
    let topology = Topology::new(info, seeds, options.connect_timeout);
    Ok(Endpoint::Cluster(Box::new(topology)))
}

fn sentinels(options: &RedisOptions, scheme: &str, rest: &str) -> RedisResult<Endpoint> {
    let wrong = || RedisError::from((redis::ErrorKind::InvalidClientConfig, "no name of a master"));
    let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
    let (hosts, path) = rest.split_once('/').ok_or_else(wrong)?;
    let (name, database) = path.split_once('/').unwrap_or((path, "0"));
    if name.is_empty() || hosts.is_empty() {
        return Err(wrong());
    }
    // Each host is read as a server's URL is, which says the user and the database too.
    let at = if user.is_empty() { "" } else { "@" };
    let read = |host| format!("{scheme}://{user}{at}{host}/{database}").into_connection_info();
    let infos = hosts.split(',').map(read).collect::<RedisResult<Vec<ConnectionInfo>>>()?;
    let info = infos.first().ok_or_else(wrong)?.redis_settings().clone();
    let addresses: Vec<ConnectionAddr> = infos.iter().map(|info| info.addr().clone()).collect();
    let mut builder = SentinelClientBuilder::new(addresses, name, SentinelServerType::Master)?
        .set_client_to_redis_db(info.db());
    if let Some(user) = info.username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = info.password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if scheme == "rediss" {
        builder = builder.set_client_to_redis_tls_mode(redis::TlsMode::Secure);
        if let Some(certificates) = certificates(options) {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates);
        }
    }
    let client = Box::new(tokio::sync::Mutex::new(builder.build()?));
    Ok(Endpoint::Sentinels { client, named: name.to_owned() })
}

/// What is wrong with a URL, without what stands in it.
fn without_secrets(error: &RedisError) -> String {
    error.category().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_passwords_stay_in_them() {
        for (url, named) in [
            ("redis://host", "host:6379"),
            ("redis://user:s3cret@host:7000/3", "host:7000"),
            ("rediss://:s3cret@host", "host:6379"),
            ("redis+sentinel://u:s3cret@a:1,b:2/hub/3", "hub (by Sentinel)"),
            ("rediss+sentinel://a:1,b:2/hub", "hub (by Sentinel)"),
            ("redis+cluster://u:s3cret@a:1,b", "a:1,b:6379 (a cluster)"),
            ("rediss+cluster://[::1]:7000/0", "[::1]:7000 (a cluster)"),
        ] {
            let options = RedisOptions::new(url);
            assert_eq!(Endpoint::read(&options).unwrap().to_string(), named, "{url}");
            assert!(!format!("{options:?}").contains("s3cret"));
        }
        for url in [
            "",
            "http://u:s3cret@host",
            "redis://",
            "redis+sentinel://u:s3cret@a:1",
            "redis+cluster://",
            "redis+cluster://u:s3cret@",
            "redis+cluster://u:s3cret@a:1,,b:2",
            "redis+cluster://u:s3cret@a:1/3",
            "rediss+cluster://u:s3cret@a:x",
            "x",
        ] {
            let Err(JournalError::Broken(message)) = Endpoint::read(&RedisOptions::new(url)) else {
                panic!("{url} was taken for a server's")
            };
            assert!(
                message.contains("must be redis://") && !message.contains("s3cret"),
                "{message}"
            );
        }
    }
}
