//! What a server says of itself: which run of which it is, and what it promises.

use redis::{RedisError, aio::MultiplexedConnection};

use super::options::RedisOptions;
use crate::journal::{Durability, JournalError};

/// Earlier ones have no flags on scripts.
const MAJOR_MIN: u32 = 7;

/// A server, as `INFO` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    version: String,
    role: String,
    policy: String,
    /// Another one each time the process starts.
    pub(super) run: String,
    /// Of the stream of changes that replicas follow, and of the one before a promotion.
    pub(super) replication: String,
    pub(super) replication_before: String,
    pub(super) durability: Durability,
}

impl Durability {
    /// Warns of less than the best.
    pub(super) fn say(self, server: &str) {
        let level = self.as_str();
        match self {
            Self::Always => {}
            Self::EverySecond | Self::Sometime => tracing::warn!(
                server,
                level,
                "Redis acknowledges before its disk has it: a crash loses what came last; set \
                 appendfsync always"
            ),
            Self::Never => tracing::warn!(
                server,
                level,
                "Redis keeps no append-only file: a restart loses events; set appendonly yes and \
                 appendfsync always"
            ),
        }
    }
}

impl Server {
    pub(super) async fn ask(connection: &mut MultiplexedConnection) -> Result<Self, RedisError> {
        let info: String = redis::cmd("INFO").query_async(connection).await?;
        // Managed servers forbid CONFIG: then the file may be as slow as it likes.
        let asked =
            redis::cmd("CONFIG").arg("GET").arg("appendfsync").query_async(connection).await;
        let fsync = match asked {
            Ok(pair) => <Vec<String>>::pop(&mut { pair }),
            Err(error) if error.is_io_error() => return Err(error),
            Err(_) => None,
        };
        Ok(Self::read(&info, fsync.as_deref()))
    }

    fn read(info: &str, fsync: Option<&str>) -> Self {
        let field = |name: &str| {
            let values = info.lines().filter_map(|line| line.trim_end().split_once(':'));
            let mut values = values.filter(|(key, _)| *key == name).map(|(_, value)| value);
            values.next().unwrap_or_default().to_owned()
        };
        let durability = match (field("aof_enabled").as_str(), fsync) {
            ("1", Some("always")) => Durability::Always,
            ("1", Some("everysec")) => Durability::EverySecond,
            ("1", _) => Durability::Sometime,
            _ => Durability::Never,
        };
        // Zeros say that there was none before.
        let before = field("master_replid2");
        let replication_before =
            if before.bytes().all(|b| b == b'0') { "-".into() } else { before };
        Self {
            version: field("redis_version"),
            role: field("role"),
            policy: field("maxmemory_policy"),
            run: field("run_id"),
            replication: field("master_replid"),
            replication_before,
            durability,
        }
    }

    /// Refuses a server that does not keep what it is given, or is not to be written.
    pub(super) fn check(&self, options: &RedisOptions) -> Result<(), JournalError> {
        let major = self.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < MAJOR_MIN) {
            return Err(JournalError::Broken(format!(
                "Redis {} is too old: the journal needs Redis {MAJOR_MIN} or Valkey",
                self.version
            )));
        }
        if self.run.is_empty() || self.replication.is_empty() {
            return Err(JournalError::Broken(
                "Redis does not tell its run_id and master_replid: permit INFO to its user".into(),
            ));
        }
        if self.role != "master" {
            let role = &self.role;
            let message = format!("Redis is a {role} here, and only a master takes appends");
            return Err(JournalError::Unavailable(message));
        }
        // Others take only what expires, and nothing of ours does.
        if self.policy.starts_with("allkeys") && !options.allow_evicting {
            return Err(JournalError::Broken(format!(
                "Redis has maxmemory-policy {}, which throws topics away when its memory is full: \
                 set maxmemory-policy noeviction, or allow evicting if nobody misses events",
                self.policy
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:r1\r\n# Memory\r\n\
        maxmemory_policy:noeviction\r\n# Persistence\r\naof_enabled:1\r\n# Replication\r\n\
        role:master\r\nmaster_replid:p1\r\n\
        master_replid2:0000000000000000000000000000000000000000\r\n";

    fn check(info: &str, options: &RedisOptions) -> Result<(), JournalError> {
        Server::read(info, None).check(options)
    }

    #[test]
    fn what_a_server_promises_is_read() {
        let server = Server::read(INFO, Some("always"));
        assert_eq!((server.run.as_str(), server.replication.as_str()), ("r1", "p1"));
        assert_eq!(server.replication_before, "-");
        assert_eq!(server.durability, Durability::Always);
        assert_eq!(Server::read(INFO, Some("everysec")).durability, Durability::EverySecond);
        assert_eq!(Server::read(INFO, None).durability, Durability::Sometime);
        let off = INFO.replace("aof_enabled:1", "aof_enabled:0");
        assert_eq!(Server::read(&off, Some("always")).durability, Durability::Never);
    }

    #[test]
    fn servers_that_lose_what_they_are_given_are_refused_with_the_remedy() {
        let options = RedisOptions::new("redis://host");
        assert!(check(INFO, &options).is_ok());
        assert!(check(&INFO.replace("noeviction", "volatile-lru"), &options).is_ok());
        let evicting = INFO.replace("noeviction", "allkeys-lru");
        let Err(JournalError::Broken(message)) = check(&evicting, &options) else {
            panic!("an evicting server was taken")
        };
        assert!(message.contains("set maxmemory-policy noeviction"), "{message}");
        assert!(
            check(&evicting, &RedisOptions { allow_evicting: true, ..options.clone() }).is_ok()
        );
        let old = check(&INFO.replace("7.0.15", "6.2.1"), &options);
        assert!(matches!(old, Err(JournalError::Broken(_))), "{old:?}");
        let replica = check(&INFO.replace("role:master", "role:slave"), &options);
        assert!(matches!(replica, Err(JournalError::Unavailable(_))), "{replica:?}");
    }
}
