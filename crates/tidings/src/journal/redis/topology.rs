//! A Redis Cluster as a client finds it: from the nodes in its URL to all that they know of.
//!
//! The rule: every master is asked, together, and nobody is waited for longer than the others once
//! one answered. A node that left is forgotten with the first answer that does not name it; those
//! in the URL are asked again when nobody else answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError,
    RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::time::{Instant, timeout, timeout_at};

use super::layout::{Address, Layout, View};

/// How much longer than the first node the others may take to answer.
const BEHIND_MAX: Duration = Duration::from_millis(300);

/// The nodes of a cluster, and connections to ask them over.
pub(crate) struct Topology {
    /// How any node is connected to: user, password and certificates.
    info: ConnectionInfo,
    seeds: Vec<Address>,
    connect_timeout: Duration,
    nodes: Mutex<Nodes>,
}

#[derive(Default)]
struct Nodes {
    /// Masters, as the last answers had them.
    known: BTreeSet<Address>,
    connections: BTreeMap<Address, MultiplexedConnection>,
}

impl Topology {
    /// A cluster whose nodes are connected to as this one of the seeds.
    pub(crate) fn new(
        info: ConnectionInfo,
        seeds: Vec<Address>,
        connect_timeout: Duration,
    ) -> Self {
        Self { info, seeds, connect_timeout, nodes: Mutex::default() }
    }

    /// How a node is connected to.
    pub(super) fn client(&self, node: &Address) -> RedisResult<Client> {
        let (host, port) = (node.host.clone(), node.port);
        let address = match self.info.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                let tls_params = tls_params.clone();
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        Client::open(self.info.clone().set_addr(address))
    }

    /// Asks all nodes who has which slot.
    pub(super) async fn look(&self) -> RedisResult<Layout> {
        let known = self.nodes().known.clone();
        let mut answers = self.ask_all(&known).await;
        if answers.0.is_empty() {
            let told = self.ask_all(&self.seeds.iter().cloned().collect()).await;
            let masters = Layout::of(&told.0).map(|layout| layout.masters).unwrap_or_default();
            answers = if masters.is_empty() { told } else { self.ask_all(&masters).await };
        }
        let (views, failure) = answers;
        let Some(layout) = Layout::of(&views) else {
            let nobody = (ErrorKind::Io, "no node of the cluster answers");
            return Err(failure.unwrap_or_else(|| RedisError::from(nobody)));
        };
        let mut nodes = self.nodes();
        nodes.known.clone_from(&layout.masters);
        nodes.connections.retain(|node, _| layout.masters.contains(node));
        drop(nodes);
        Ok(layout)
    }

    /// A node that serves, one or another by `chance`.
    pub(super) async fn any(&self, chance: u64) -> RedisResult<Client> {
        let layout = self.look().await?;
        let count = u64::try_from(layout.well.len()).unwrap_or(u64::MAX);
        let place = usize::try_from(chance.checked_rem(count).unwrap_or_default());
        let node = layout.well.iter().nth(place.unwrap_or_default());
        let down = || RedisError::from((ErrorKind::Io, "no node of the cluster serves now"));
        self.client(node.ok_or_else(down)?)
    }

    /// Why a node of the cluster is not to be listened to any more.
    pub(super) async fn doubt(&self, node: &ConnectionAddr) -> Option<String> {
        let (ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }) = node
        else {
            return None;
        };
        match self.look().await {
            Ok(layout) => {
                let is_it = |well: &&Address| well.host == *host && well.port == *port;
                let is_well = layout.well.iter().any(|well| is_it(&well));
                (!is_well).then(|| format!("Redis at {host}:{port} serves no cluster now"))
            }
            Err(error) => Some(error.to_string()),
        }
    }

    /// What nodes say, and why one of them said nothing.
    async fn ask_all(&self, nodes: &BTreeSet<Address>) -> (Vec<View>, Option<RedisError>) {
        let mut asking: FuturesUnordered<_> = nodes.iter().map(|node| self.ask(node)).collect();
        let (mut views, mut failure) = (Vec::new(), None);
        // Each ends by itself.
        let mut until = Instant::now() + 4 * self.connect_timeout;
        while let Ok(Some(answer)) = timeout_at(until, asking.next()).await {
            match answer {
                Ok(view) => {
                    views.push(view);
                    until = until.min(Instant::now() + BEHIND_MAX);
                }
                Err(error) => failure = Some(error),
            }
        }
        (views, failure)
    }

    async fn ask(&self, node: &Address) -> RedisResult<View> {
        let known = self.nodes().connections.get(node).cloned();
        let mut connection = match known {
            Some(connection) => connection,
            None => self.connect(node).await?,
        };
        let mut pipe = redis::pipe();
        for what in ["INFO", "MYID", "SLOTS"] {
            pipe.cmd("CLUSTER").arg(what);
        }
        let asked = pipe.query_async::<(String, String, Value)>(&mut connection);
        let asked = timeout(self.connect_timeout, asked).await;
        let answer = asked.unwrap_or_else(|_| Err(silent()));
        if answer.is_err() {
            self.nodes().connections.remove(node);
        }
        let (info, id, slots) = answer?;
        let shapeless = || {
            let what = "the node tells of its cluster in an unknown shape";
            RedisError::from((ErrorKind::UnexpectedReturnType, what))
        };
        View::read(node, &info, id, slots).ok_or_else(shapeless)
    }

    async fn connect(&self, node: &Address) -> RedisResult<MultiplexedConnection> {
        let client = self.client(node)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(None);
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let connected = timeout(self.connect_timeout, connecting).await;
        let connection = connected.unwrap_or_else(|_| Err(silent()))?;
        self.nodes().connections.insert(node.clone(), connection.clone());
        Ok(connection)
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silent() -> RedisError {
    RedisError::from((ErrorKind::Io, "a node of the cluster does not answer"))
}

/// Names the nodes in the URL, without a password.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds: Vec<String> = self.seeds.iter().map(Address::to_string).collect();
        write!(f, "{} (a cluster)", seeds.join(","))
    }
}
