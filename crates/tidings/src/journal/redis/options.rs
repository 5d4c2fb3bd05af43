//! Where the server is, and how it is used.

use std::{fmt, time::Duration};

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisError, RedisResult,
    TlsCertificates,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

use crate::journal::JournalError;

/// Bytes of a key's prefix: it is part of every key.
const PREFIX_BYTES_MAX: usize = 64;

/// Where a Redis server is and how the journal uses it.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://[user:password@]host[:port][/database]`, `rediss://…` with TLS, or, to ask
    /// Sentinels where the server is, `redis+sentinel://[user:password@]host:port,host:port/name`
    /// `[/database]` (`rediss+sentinel://…` with TLS to the server and the Sentinels). User and
    /// password are the server's.
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
}

impl Endpoint {
    /// Reads the options' URL.
    pub(crate) fn read(options: &RedisOptions) -> Result<Self, JournalError> {
        let read = match options.url.split_once("+sentinel://") {
            Some((scheme @ ("redis" | "rediss"), rest)) => sentinels(options, scheme, rest),
            _ => server(options),
        };
        read.map_err(|error| {
            let text = "must be redis://[user:password@]host[:port][/database], rediss://… or \
                        redis+sentinel://[user:password@]host:port,host:port/name[/database]";
            JournalError::Broken(format!("the URL of Redis {text}: {}", without_secrets(&error)))
        })
    }

    /// The server that is to be connected to now.
    pub(crate) async fn client(&self) -> RedisResult<Client> {
        match self {
            Self::Server(client) => Ok(Client::clone(client)),
            Self::Sentinels { client, .. } => client.lock().await.async_get_client().await,
        }
    }
}

/// Names the server, without a password.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(client) => client.get_connection_info().addr().fmt(f),
            Self::Sentinels { named, .. } => write!(f, "{named} (by Sentinel)"),
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

fn server(options: &RedisOptions) -> RedisResult<Endpoint> {
    let client = match certificates(options) {
        Some(certificates) => Client::build_with_tls(options.url.as_str(), certificates)?,
        None => Client::open(options.url.as_str())?,
    };
    Ok(Endpoint::Server(Box::new(client)))
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
        ] {
            let options = RedisOptions::new(url);
            assert_eq!(Endpoint::read(&options).unwrap().to_string(), named, "{url}");
            assert!(!format!("{options:?}").contains("s3cret"));
        }
        for url in ["", "http://u:s3cret@host", "redis://", "redis+sentinel://u:s3cret@a:1", "x"] {
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
