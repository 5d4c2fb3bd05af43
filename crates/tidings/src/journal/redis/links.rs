//! Which server a call goes to: the only one, or the master that has the group.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::{
    cluster::Cluster,
    keys::Keys,
    known::{Known, Said},
    link::{By, Failed, Link},
    options::{Endpoint, RedisOptions},
    script::Script,
};
use crate::{
    journal::{Durability, JournalError},
    model::Epoch,
};

#[derive(Debug)]
pub(super) struct Links {
    keys: Keys,
    known: Arc<Known>,
    servers: Servers,
}

#[derive(Debug)]
enum Servers {
    One(Link),
    Cluster(Cluster),
}

impl Links {
    /// Connects for the first time.
    pub(super) async fn open(options: &RedisOptions) -> Result<Self, JournalError> {
        options.check()?;
        let known = Known::new();
        let servers = match Endpoint::read(options)? {
            Endpoint::Cluster(topology) => {
                Servers::Cluster(Cluster::open(options, *topology, Arc::clone(&known)).await?)
            }
            endpoint => Servers::One(Link::open(options, endpoint, Arc::clone(&known)).await?),
        };
        Ok(Self { keys: Keys::new(options.prefix.clone()), known, servers })
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// How durable what is acknowledged of a group is; `None` while nobody has it.
    pub(super) fn durability(&self, group: u32) -> Option<Durability> {
        match &self.servers {
            Servers::One(link) => link.durability(),
            Servers::Cluster(cluster) => cluster.durability(group),
        }
    }

    pub(super) fn failure(&self) -> Option<String> {
        match &self.servers {
            Servers::One(link) => link.failure(),
            Servers::Cluster(cluster) => cluster.failure(),
        }
    }

    /// Why a group takes no changes.
    pub(super) fn failure_of(&self, group: u32) -> Option<String> {
        match &self.servers {
            Servers::One(link) => link.failure(),
            Servers::Cluster(cluster) => cluster.failure_of(group),
        }
    }

    pub(super) fn close(&self) {
        match &self.servers {
            Servers::One(link) => link.close(),
            Servers::Cluster(cluster) => cluster.close(),
        }
    }

    /// Runs a script: the keys, all of one group, then the run of the server, then what `fill` adds.
    /// Says whose the answer is.
    pub(super) async fn call(
        &self,
        by: By,
        script: Script,
        keys: &[String],
        fill: impl Fn(&mut Cmd) + Send + Sync,
    ) -> Result<(Value, Said), JournalError> {
        match &self.servers {
            Servers::One(link) => link.call(by, script, keys, &fill).await.map_err(|failed| {
                let (Failed::Elsewhere(error) | Failed::Error(error)) = failed;
                error
            }),
            Servers::Cluster(cluster) => cluster.call(by, script, keys, &fill).await,
        }
    }

    /// Sends commands that only read, each of a group, together. One answer of each, in their order.
    pub(super) async fn read_many(
        &self,
        commands: &[(u32, Cmd)],
    ) -> Vec<Result<Value, JournalError>> {
        match &self.servers {
            Servers::One(link) => {
                let mut pipe = redis::pipe();
                for (_, command) in commands {
                    pipe.add_command(command.clone());
                }
                let answers = link.read_many(&pipe).await;
                answers.unwrap_or_else(|error| vec![Err(error); commands.len()])
            }
            Servers::Cluster(cluster) => cluster.read_many(commands).await,
        }
    }

    /// Notes what a script said of a group.
    pub(super) fn note(&self, group: u32, epoch: Epoch, count: u64, said: &Said) {
        self.known.note(group, epoch, count, said);
    }
}
