//! The servers that a URL names, and which of them went on.
//!
//! The rule: the one that served last is asked first, each has its own time to answer, and a server
//! that another one was promoted over is not gone back to, by anything of this process.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::watch;
use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
};

use super::options::broken;
use crate::journal::JournalError;

/// Servers that a URL may name: whoever looks for the primary asks all of them.
const SERVERS_MAX: usize = 16;
/// Where PostgreSQL listens.
const PORT: u16 = 5432;

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) config: Config,
    /// For messages: `db1:5432`.
    pub(super) name: String,
}

/// All of a URL.
#[derive(Debug)]
pub(super) struct Servers {
    all: Vec<Server>,
    /// The place of the one that served last.
    last: AtomicUsize,
}

impl Servers {
    /// Takes apart what is said of several servers: the client library gives no time to each, and one
    /// that takes connections and answers nothing would keep the next from being asked.
    pub(super) fn of(config: &Config) -> Result<Self, JournalError> {
        let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
        let ports = config.get_ports();
        let count = hosts.len().max(addresses.len());
        if count == 0 || count > SERVERS_MAX {
            return Err(broken(&format!(
                "the URL names {count} hosts: 1 to {SERVERS_MAX} are read"
            )));
        }
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            return Err(broken("the URL has another number of `hostaddr` than of hosts"));
        }
        if ports.len() > 1 && ports.len() != count {
            return Err(broken("the URL has another number of ports than of hosts"));
        }
        if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
            return Err(broken("target_session_attrs=read-only: the journal is written too"));
        }
        let server = |place: usize| {
            let mut one = without_hosts(config);
            let port = ports.get(place).or_else(|| ports.first()).copied().unwrap_or(PORT);
            one.port(port);
            let mut name = String::new();
            match hosts.get(place) {
                Some(Host::Tcp(host)) => {
                    one.host(host);
                    name = format!("{host}:{port}");
                }
                Some(Host::Unix(path)) => {
                    // Nobody is in between, and the server has no TLS there.
                    one.host_path(path).ssl_mode(SslMode::Disable);
                    name = socket(path, port);
                }
                None => {}
            }
            if let Some(address) = addresses.get(place) {
                one.hostaddr(*address);
                if name.is_empty() {
                    one.host(address.to_string());
                    name = format!("{address}:{port}");
                }
            }
            Server { config: one, name }
        };
        Ok(Self { all: (0..count).map(server).collect(), last: AtomicUsize::new(0) })
    }

    /// All of them, the one that served last first.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (usize, &Server)> {
        let last = self.last.load(Ordering::Relaxed);
        self.all.iter().enumerate().cycle().skip(last).take(self.all.len())
    }

    /// Says that the one at a place serves.
    pub(super) fn serves(&self, place: usize) {
        self.last.store(place, Ordering::Relaxed);
    }
}

fn socket(path: &Path, port: u16) -> String {
    path.join(format!(".s.PGSQL.{port}")).display().to_string()
}

/// All that a configuration says besides its servers.
fn without_hosts(config: &Config) -> Config {
    let mut one = Config::new();
    if let Some(user) = config.get_user() {
        one.user(user);
    }
    if let Some(password) = config.get_password() {
        one.password(password);
    }
    if let Some(database) = config.get_dbname() {
        one.dbname(database);
    }
    if let Some(options) = config.get_options() {
        one.options(options);
    }
    if let Some(name) = config.get_application_name() {
        one.application_name(name);
    }
    if let Some(limit) = config.get_connect_timeout() {
        one.connect_timeout(*limit);
    }
    if let Some(limit) = config.get_tcp_user_timeout() {
        one.tcp_user_timeout(*limit);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        one.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        one.keepalives_retries(retries);
    }
    one.keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(config.get_target_session_attrs());
    one
}

/// Where a server is in what may have become several histories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Standing {
    pub(super) system_identifier: i64,
    /// One more with each promotion.
    pub(super) timeline: i32,
}

/// How far the servers of a URL were seen to have got. Clones share what is known: who of a process
/// connects to the same servers has one, or some of it would stay with a primary that the rest left.
#[derive(Debug, Clone)]
pub struct Lineage(Arc<watch::Sender<Option<Standing>>>);

impl Default for Lineage {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Lineage {
    /// Whether none was seen yet.
    pub(super) fn is_unknown(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// Takes in where a server is; `false` if another one was promoted over it.
    pub(super) fn admits(&self, standing: Standing) -> bool {
        let mut is_admitted = true;
        self.0.send_if_modified(|seen| {
            is_admitted = !seen.is_some_and(|seen| supersedes(seen, standing));
            is_admitted && seen.replace(standing) != Some(standing)
        });
        is_admitted
    }

    /// Whether another server was promoted since over the one that is there.
    pub(super) fn has_left(&self, standing: Standing) -> bool {
        self.0.borrow().is_some_and(|seen| supersedes(seen, standing))
    }

    /// Waits for that.
    pub(super) async fn until_left(&self, standing: Standing) {
        let mut seen = self.0.subscribe();
        let left = seen.wait_for(|seen| seen.is_some_and(|seen| supersedes(seen, standing)));
        // Its sender lives as long as this.
        let _ = left.await;
    }
}

const fn supersedes(seen: Standing, other: Standing) -> bool {
    seen.system_identifier == other.system_identifier && seen.timeline > other.timeline
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(url: &str) -> Result<Servers, JournalError> {
        Servers::of(&url.parse().unwrap())
    }

    fn names(servers: &Servers) -> Vec<&str> {
        servers.in_order().map(|(_, server)| server.name.as_str()).collect()
    }

    #[test]
    fn each_server_of_a_url_is_one_and_the_last_that_served_is_asked_first() {
        let found = servers("postgres://a:b@one,two:7,three/d?target_session_attrs=read-write");
        let found = found.unwrap();
        assert_eq!(names(&found), ["one:5432", "two:7", "three:5432"]);
        found.serves(1);
        assert_eq!(names(&found), ["two:7", "three:5432", "one:5432"]);
        let (place, server) = found.in_order().next().unwrap();
        assert_eq!(
            (place, server.config.get_hosts().len(), server.config.get_ports()),
            (1, 1, &[7][..])
        );
        assert_eq!(server.config.get_password(), Some(&b"b"[..]));
        assert_eq!(server.config.get_dbname(), Some("d"));
        let attributes = server.config.get_target_session_attrs();
        assert_eq!(attributes, TargetSessionAttrs::ReadWrite);
    }

    #[test]
    fn sockets_have_no_tls_and_addresses_have_their_host_s_name() {
        let found = servers("postgres://%2Frun%2Fpg/d?sslmode=require").unwrap();
        assert_eq!(names(&found), ["/run/pg/.s.PGSQL.5432"]);
        let (_, server) = found.in_order().next().unwrap();
        assert_eq!(server.config.get_ssl_mode(), SslMode::Disable);
        let found = servers("postgres://db/d?sslmode=require&hostaddr=192.0.2.1").unwrap();
        assert_eq!(names(&found), ["db:5432"]);
        let (_, server) = found.in_order().next().unwrap();
        assert_eq!(server.config.get_hostaddrs().len(), 1);
        assert_eq!(server.config.get_ssl_mode(), SslMode::Require);
    }

    #[test]
    fn what_names_no_primary_is_refused() {
        let many = vec!["h"; SERVERS_MAX + 1].join(",");
        for url in [
            "postgres:///d",
            "postgres://a,b/d?hostaddr=192.0.2.1",
            "postgres://a/d?target_session_attrs=read-only",
            &format!("postgres://{many}/d"),
        ] {
            assert!(matches!(servers(url), Err(JournalError::Broken(_))), "{url}");
        }
    }

    #[test]
    fn a_server_that_another_was_promoted_over_is_not_gone_back_to() {
        let lineage = Lineage::default();
        let at = |system_identifier, timeline| Standing { system_identifier, timeline };
        let shared = lineage.clone();
        assert!(lineage.admits(at(7, 1)) && shared.admits(at(7, 2)));
        assert!(lineage.has_left(at(7, 1)) && !lineage.has_left(at(7, 2)));
        assert!(!lineage.admits(at(7, 1)));
        // A database that was restored elsewhere: its numbers say nothing of these.
        assert!(!lineage.has_left(at(8, 1)) && lineage.admits(at(8, 1)));
    }
}
