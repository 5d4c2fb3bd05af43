//! A Redis Cluster of one's own.

use std::{io, time::Duration};

use crate::{
    process::{free_port, until},
    redis::{Guard, Redis},
};

/// The environment variable with the URL of a cluster that all tests of a run share.
pub const REDIS_CLUSTER_URL: &str = "TESTS_REDIS_CLUSTER_URL";

/// Masters, of a third of the slots each.
const MASTERS: u16 = 3;
const SLOTS: u16 = 16_384;
/// How long nodes may take to know each other: they wait two seconds with the first word.
const START_MAX: Duration = Duration::from_secs(30);
/// A replica takes over two to four seconds after its master is gone, whatever it has missed.
const REPLACED: [&str; 4] =
    ["--cluster-node-timeout", "2000", "--cluster-replica-validity-factor", "0"];
/// Keys of a slot that are listed and moved at once.
const KEYS_AT_ONCE: &str = "1000";

/// Private `redis-server`s that are masters of a cluster, and a replica of each if that is asked for.
/// They end, with their files, when this is dropped.
#[derive(Debug)]
pub struct RedisCluster {
    /// Masters first, then the replica of each; none of one that belongs to somebody else.
    nodes: Vec<Redis>,
    url: String,
    guard: Option<Guard>,
}

/// A slot on its way from one master to another.
#[derive(Debug)]
pub struct Move {
    slot: String,
    from: usize,
    to: usize,
}

impl RedisCluster {
    /// Starts three masters on free ports of loopback.
    ///
    /// # Errors
    /// One did not start, or they did not find each other.
    pub fn start() -> io::Result<Self> {
        // Nobody takes over here, so nobody is to be given up because the machine has other work.
        Self::start_with(&["--cluster-node-timeout", "15000"])
    }

    /// Starts three masters with further arguments.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(arguments: &[&str]) -> io::Result<Self> {
        Self::start_of(None, arguments)
    }

    /// Starts three guarded masters, whose certificates are for `localhost`, and a replica of each as
    /// [`Self::start_with_replicas`] does.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_guarded(guard: Guard, arguments: &[&str]) -> io::Result<Self> {
        let arguments = [&["--tls-cluster", "yes"], &REPLACED[..], arguments].concat();
        let mut cluster = Self::start_of(Some(guard), &arguments)?;
        cluster.add_replicas(&arguments)?;
        Ok(cluster)
    }

    fn start_of(guard: Option<Guard>, arguments: &[&str]) -> io::Result<Self> {
        let mut cluster = Self { nodes: Vec::new(), url: String::new(), guard };
        let mut addresses = Vec::new();
        for number in 0..MASTERS {
            let node = cluster.start_node(arguments)?;
            let slots = [bound(number), bound(number + 1) - 1].map(|slot| slot.to_string());
            let [first, last] = &slots;
            node.command(&["CLUSTER", "ADDSLOTSRANGE", first, last])?;
            // Two that think alike of their age would have to find that out first.
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()])?;
            addresses.push(node.port()?);
            cluster.meet(&node)?;
            cluster.nodes.push(node);
        }
        let (scheme, host) = match &cluster.guard {
            Some(_) => (format!("rediss+cluster://hub:{}@", Guard::PASSWORD), "localhost"),
            None => ("redis+cluster://".to_owned(), "127.0.0.1"),
        };
        let addresses: Vec<String> =
            addresses.into_iter().map(|port| format!("{host}:{port}")).collect();
        cluster.url = scheme + &addresses.join(",");
        cluster.settled()?;
        Ok(cluster)
    }

    /// Starts three masters and a replica of each, which takes over two to four seconds after its
    /// master is gone, whatever it has missed.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_replicas() -> io::Result<Self> {
        let mut cluster = Self::start_with(&REPLACED)?;
        cluster.add_replicas(&REPLACED)?;
        Ok(cluster)
    }

    fn add_replicas(&mut self, arguments: &[&str]) -> io::Result<()> {
        for number in 0..usize::from(MASTERS) {
            let replica = self.start_node(arguments)?;
            self.meet(&replica)?;
            let master = self.id(number)?;
            until("a node that knows its master", START_MAX, || {
                replica.command(&["CLUSTER", "REPLICATE", &master]).is_ok()
            })?;
            self.nodes.push(replica);
        }
        for replica in self.nodes.iter().skip(usize::from(MASTERS)) {
            until("a replica in step", START_MAX, || {
                let info = replica.command(&["INFO", "replication"]);
                info.is_ok_and(|info| info.contains("master_link_status:up"))
            })?;
        }
        self.settled()
    }

    /// A node on its own. Its port for the others is a free one too: the one that it would take by
    /// itself may be taken.
    fn start_node(&self, arguments: &[&str]) -> io::Result<Redis> {
        let start = || {
            let bus = free_port()?.to_string();
            let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus];
            Redis::start_of(self.guard.as_ref(), &[&cluster[..], arguments].concat())
        };
        let is_taken = |error: &io::Error| error.to_string().contains("Address already in use");
        for _ in 1..STARTS_MAX {
            match start() {
                Err(error) if is_taken(&error) => {}
                started => return started,
            }
        }
        start()
    }

    /// The cluster that the run of tests shares, which [`REDIS_CLUSTER_URL`] names, or one of its
    /// own.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared() -> io::Result<Self> {
        match std::env::var(REDIS_CLUSTER_URL) {
            Ok(url) => Ok(Self { nodes: Vec::new(), url, guard: None }),
            Err(_) => Self::start(),
        }
    }

    /// Where it is: `redis+cluster://127.0.0.1:41234,127.0.0.1:41235,127.0.0.1:41236`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A node, masters first, of one that was started here.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, number: usize) -> io::Result<&Redis> {
        self.nodes.get(number).ok_or_else(no_node)
    }

    /// The same, to be killed or held up.
    ///
    /// # Errors
    /// There is none.
    pub fn node_mut(&mut self, number: usize) -> io::Result<&mut Redis> {
        self.nodes.get_mut(number).ok_or_else(no_node)
    }

    /// The replica that a master was given.
    #[must_use]
    pub fn replica_of(master: usize) -> usize {
        master + usize::from(MASTERS)
    }

    /// Begins to move a slot to another master, as `redis-cli --cluster reshard` does.
    ///
    /// # Errors
    /// A node does not answer, or with an error.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) -> io::Result<Move> {
        let moving = Move { slot: slot.to_string(), from, to };
        let (source, target) = (self.node(from)?, self.node(to)?);
        let (slot, from, to) = (&moving.slot, self.id(from)?, self.id(to)?);
        target.command(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &from])?;
        source.command(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &to])?;
        Ok(moving)
    }

    /// Moves half of the keys that are still where they were, the shortest first: those of the group
    /// before those of its topics.
    ///
    /// # Errors
    /// As [`Self::begin_move`].
    pub fn move_half(&self, moving: &Move) -> io::Result<()> {
        let keys = self.keys_of(moving)?;
        self.move_keys(moving, keys.iter().take(keys.len() / 2))
    }

    /// Moves what is left, and the slot with it.
    ///
    /// # Errors
    /// As [`Self::begin_move`].
    pub fn end_move(&self, moving: &Move) -> io::Result<()> {
        self.move_keys(moving, self.keys_of(moving)?.iter())?;
        let id = self.id(moving.to)?;
        let set = ["CLUSTER", "SETSLOT", &moving.slot, "NODE", &id];
        self.node(moving.to)?.command(&set)?;
        self.node(moving.from)?.command(&set).map(drop)
    }

    fn keys_of(&self, moving: &Move) -> io::Result<Vec<String>> {
        let list = ["CLUSTER", "GETKEYSINSLOT", &moving.slot, KEYS_AT_ONCE];
        let answer = self.node(moving.from)?.command(&list)?;
        let lines = answer.lines().filter(|line| !line.starts_with(['*', '$']));
        let mut keys: Vec<String> = lines.map(str::to_owned).collect();
        keys.sort_by_key(String::len);
        Ok(keys)
    }

    fn move_keys<'a>(
        &self,
        moving: &Move,
        keys: impl Iterator<Item = &'a String>,
    ) -> io::Result<()> {
        let port = self.node(moving.to)?.port()?.to_string();
        for key in keys {
            // A key that is there already is an error: it was written in two places.
            let migrate = ["MIGRATE", "127.0.0.1", &port, key, "0", "5000"];
            self.node(moving.from)?.command(&migrate)?;
        }
        Ok(())
    }

    /// Waits until a node is a master of slots.
    ///
    /// # Errors
    /// It did not become one in time.
    pub fn until_master(&self, number: usize) -> io::Result<()> {
        let node = self.node(number)?;
        until("a replica that takes over", START_MAX, || {
            let role = node.command(&["INFO", "replication"]);
            role.is_ok_and(|info| info.contains("role:master"))
        })
    }

    /// Waits until all nodes that answer serve.
    ///
    /// # Errors
    /// They did not in time.
    pub fn settled(&self) -> io::Result<()> {
        let count = format!("cluster_known_nodes:{}\r", self.nodes.len());
        for node in &self.nodes {
            until("a cluster that serves", START_MAX, || {
                let info = node.command(&["CLUSTER", "INFO"]).unwrap_or_default();
                info.contains("cluster_state:ok") && info.contains(&count)
            })?;
        }
        Ok(())
    }

    /// The slot of the first key like this that a master has, and that master.
    ///
    /// # Errors
    /// None has one.
    pub fn slot_like(&self, pattern: &str) -> io::Result<(u16, usize)> {
        for number in 0..usize::from(MASTERS) {
            let node = self.node(number)?;
            let keys = node.command(&["KEYS", pattern])?;
            let Some(key) = keys.lines().find(|line| !line.starts_with(['*', '$'])) else {
                continue;
            };
            let slot = node.command(&["CLUSTER", "KEYSLOT", key])?;
            let slot = slot.trim_start_matches(':').trim().parse().map_err(io::Error::other)?;
            return Ok((slot, number));
        }
        Err(io::Error::other(format!("no master has a key like {pattern}")))
    }

    fn id(&self, number: usize) -> io::Result<String> {
        let answer = self.node(number)?.command(&["CLUSTER", "MYID"])?;
        Ok(answer.lines().nth(1).unwrap_or_default().to_owned())
    }

    /// Lets all nodes and a new one know of each other.
    fn meet(&self, new: &Redis) -> io::Result<()> {
        for node in &self.nodes {
            let (port, bus) = (node.port()?.to_string(), bus_port(node)?);
            new.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])?;
        }
        Ok(())
    }
}

/// The first slot of a master.
fn bound(number: u16) -> u16 {
    u16::try_from(u32::from(SLOTS) * u32::from(number) / u32::from(MASTERS)).unwrap_or(SLOTS)
}

/// How often a node is started whose ports somebody else took, who also looked for free ones.
const STARTS_MAX: usize = 5;

/// The port that a node talks to the others by.
fn bus_port(node: &Redis) -> io::Result<String> {
    let answer = node.command(&["CONFIG", "GET", "cluster-port"])?;
    answer.lines().nth(4).map(str::to_owned).ok_or_else(no_node)
}

fn no_node() -> io::Error {
    io::Error::other("there is no such node: start a cluster with RedisCluster::start")
}
