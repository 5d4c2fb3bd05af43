//! The link to a server: connections, their probe, and which server it is that answers.
//!
//! The rule: a server is looked at before anything is asked of it: whether it is a master that
//! keeps what it is given, and in every group of topics that it has whether it has the history that
//! was known.
//! Scripts refuse a server that nobody looked at, so one that was flushed or replaced behind an open
//! connection is noticed by the next call. Every wait has a limit, and a server that does not
//! answer its probe is one that is not there.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, Cmd, RedisError, Value, aio::MultiplexedConnection};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    answer::Answer,
    keys::{GROUPS, Keys},
    known::{Known, Said},
    options::{Endpoint, RedisOptions},
    script::Script,
    server::Server,
};
use crate::journal::{Durability, JournalError};

/// How often the server is asked whether it is there …
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// … and how long it may take to say so: a fork for a snapshot of some GB holds it up for less.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);
/// The first wait between two attempts to connect, doubled each time …
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// … up to this, well below the 5 s in which a hub recovers.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Commands that wait to be written to one connection; past it callers wait, within their limit.
const QUEUE_MAX: usize = 1024;

/// What became of a call whose answer did not come.
const NO_ANSWER: &str = "Redis did not answer in time; what was asked of it may yet be done";

#[derive(Debug)]
pub(super) struct Link {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    options: RedisOptions,
    endpoint: Endpoint,
    keys: Keys,
    state: Mutex<State>,
    /// Wakes the keeper when a connection was lost.
    lost: Notify,
    known: Arc<Known>,
    place: Place,
    /// How often the groups were looked at; one looks at a time, for all who wait.
    looks: AtomicU64,
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
enum State {
    Live(Arc<Live>),
    Down(String),
    Closed,
}

/// What a server is among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It has all groups.
    Alone,
    /// It is a master of a cluster, and says itself which groups it has.
    InCluster,
}

/// Why a server did not do what it was asked to.
#[derive(Debug)]
pub(super) enum Failed {
    /// It does not have the keys now, or not all of them. It did nothing.
    Elsewhere(JournalError),
    Error(JournalError),
}

impl From<JournalError> for Failed {
    fn from(error: JournalError) -> Self {
        Self::Error(error)
    }
}

/// Connections to one run of one server.
pub(super) struct Live {
    run: Arc<str>,
    /// Of the stream of its changes, of which it was the master when it was connected to, and when
    /// that was.
    replication: String,
    since: u64,
    durability: Durability,
    reads: MultiplexedConnection,
    lanes: Vec<Lane>,
    hashes: Vec<String>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("run", &self.run).finish_non_exhaustive()
    }
}

/// A connection that changes topics, and how many of its changes replicas are known to have.
struct Lane {
    connection: MultiplexedConnection,
    changed: AtomicU64,
    replicated: tokio::sync::Mutex<u64>,
}

/// Which connection a call takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum By {
    /// That of reads, of a group.
    Reading(u32),
    /// That of a group's changes.
    Changing(u32),
}

impl By {
    pub(super) fn group(self) -> u32 {
        match self {
            Self::Reading(group) | Self::Changing(group) => group,
        }
    }
}

impl Link {
    /// Connects to the only server for the first time.
    pub(super) async fn open(
        options: &RedisOptions,
        endpoint: Endpoint,
        known: Arc<Known>,
    ) -> Result<Self, JournalError> {
        let shared = Shared::new(options, endpoint, known, Place::Alone);
        let live = shared.connect().await?;
        live.durability.say(&shared.endpoint.to_string());
        *shared.state() = State::Live(live);
        Ok(Self::kept(shared))
    }

    /// Begins to connect to a master of a cluster: goes on by itself if that takes longer than a
    /// connection may, or fails now.
    pub(super) async fn start(
        options: &RedisOptions,
        endpoint: Endpoint,
        known: Arc<Known>,
    ) -> (Self, Result<(), JournalError>) {
        let shared = Shared::new(options, endpoint, known, Place::InCluster);
        let connecting = timeout(options.connect_timeout, shared.connect());
        let connected = connecting.await.unwrap_or_else(|_| Err(shared.no_answer()));
        let connected = match connected {
            Ok(live) => {
                live.durability.say(&shared.endpoint.to_string());
                *shared.state() = State::Live(live);
                Ok(())
            }
            Err(error) => {
                *shared.state() = State::Down(shared.named(&error));
                Err(error)
            }
        };
        (Self::kept(shared), connected)
    }

    fn kept(shared: Arc<Shared>) -> Self {
        let keeper = tokio::spawn(keep(Arc::clone(&shared)));
        Self { shared, keeper }
    }

    /// How durable what the server acknowledges is; `None` while there is none.
    pub(super) fn durability(&self) -> Option<Durability> {
        self.shared.live().ok().map(|live| live.durability)
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.shared.live().err().map(|error| error.to_string())
    }

    pub(super) fn close(&self) {
        *self.shared.state() = State::Closed;
        self.keeper.abort();
    }

    /// Runs a script: the keys, then the run of the server, then what `fill` adds. Says whose the
    /// answer is.
    pub(super) async fn call(
        &self,
        by: By,
        script: Script,
        keys: &[String],
        fill: &(impl Fn(&mut Cmd) + Send + Sync),
    ) -> Result<(Value, Said), Failed> {
        let mut second_try = false;
        loop {
            let live = self.shared.live().map_err(|error| self.shared.gone(error))?;
            let looks = self.shared.looks.load(Ordering::SeqCst);
            let asked = self.shared.known.now();
            let mut cmd = live.script(script)?;
            cmd.arg(keys.len()).arg(keys).arg(&*live.run);
            fill(&mut cmd);
            let mut connection = live.connection(by);
            let error = match self.shared.query(&live, &mut connection, &cmd).await? {
                Ok(value) => {
                    if let By::Changing(group) = by {
                        self.shared.replicated(&live, group).await?;
                    }
                    // What a server said that was given up since may be gone with it.
                    if !self.shared.is_current(&live) {
                        return Err(self.shared.no_answer().into());
                    }
                    return Ok((value, Said { run: Arc::clone(&live.run), asked }));
                }
                Err(error) => error,
            };
            match error.code() {
                // Nothing was done, so it can be asked again.
                Some("NOSCRIPT") if !second_try => {
                    self.shared.bounded(load_scripts(&mut live.reads.clone())).await?;
                }
                Some("ADOPT") if !second_try => self.shared.adopt(&live, looks).await?,
                Some("ADOPT") if self.shared.place == Place::InCluster => {
                    // The group came here after the look.
                    return Err(Failed::Elsewhere(self.shared.unavailable(&error)));
                }
                _ if is_elsewhere(&error) => {
                    return Err(Failed::Elsewhere(self.shared.unavailable(&error)));
                }
                _ => return Err(self.shared.failed(&live, &error).into()),
            }
            second_try = true;
        }
    }

    /// Sends commands that only read, together. The inner errors are of commands whose keys are not
    /// here.
    pub(super) async fn read_many(
        &self,
        pipe: &redis::Pipeline,
    ) -> Result<Vec<Result<Value, JournalError>>, JournalError> {
        let live = self.shared.live()?;
        let mut connection = live.reads.clone();
        let count = pipe.len();
        let query = connection.send_packed_commands(pipe, 0, count);
        let values = match timeout(self.shared.options.timeout, query).await {
            Ok(Ok(values)) => values,
            Ok(Err(error)) => return Err(self.shared.failed(&live, &error)),
            Err(_) => return Err(self.shared.no_answer()),
        };
        let read = |value| match value {
            Value::ServerError(error) => {
                let error = RedisError::from(error);
                if is_elsewhere(&error) {
                    return Ok(Err(self.shared.unavailable(&error)));
                }
                Err(self.shared.failed(&live, &error))
            }
            value => Ok(Ok(value)),
        };
        values.into_iter().map(read).collect()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Live {
    fn lane(&self, group: u32) -> Option<&Lane> {
        self.lanes.get(group as usize % self.lanes.len().max(1))
    }

    fn connection(&self, by: By) -> MultiplexedConnection {
        match by {
            By::Reading(_) => self.reads.clone(),
            By::Changing(group) => {
                self.lane(group).map_or_else(|| self.reads.clone(), |lane| lane.connection.clone())
            }
        }
    }

    fn script(&self, script: Script) -> Result<Cmd, JournalError> {
        let at = Script::ALL.iter().position(|known| *known == script);
        let hash = at.and_then(|at| self.hashes.get(at));
        let hash = hash.ok_or_else(super::answer::unexpected)?;
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(hash);
        Ok(cmd)
    }
}

impl Shared {
    fn new(
        options: &RedisOptions,
        endpoint: Endpoint,
        known: Arc<Known>,
        place: Place,
    ) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            keys: Keys::new(options.prefix.clone()),
            options: options.clone(),
            state: Mutex::new(State::Down("Redis was not connected to yet".to_owned())),
            lost: Notify::new(),
            known,
            place,
            looks: AtomicU64::new(0),
            looking: tokio::sync::Mutex::new(()),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> Result<Arc<Live>, JournalError> {
        match &*self.state() {
            State::Live(live) => Ok(Arc::clone(live)),
            State::Down(reason) => Err(JournalError::Unavailable(reason.clone())),
            State::Closed => Err(JournalError::Unavailable("the journal was closed".to_owned())),
        }
    }

    /// Why nothing was sent: the cluster's masters are others now, or this one is not there.
    fn gone(&self, error: JournalError) -> Failed {
        let is_closed = matches!(*self.state(), State::Closed);
        if is_closed && self.place == Place::InCluster {
            return Failed::Elsewhere(error);
        }
        Failed::Error(error)
    }

    /// Sends one command; the outer error is that no answer came.
    async fn query(
        &self,
        live: &Arc<Live>,
        connection: &mut MultiplexedConnection,
        cmd: &Cmd,
    ) -> Result<Result<Value, RedisError>, JournalError> {
        match timeout(self.options.timeout, connection.send_packed_command(cmd)).await {
            Ok(Err(error)) if error.is_io_error() => Err(self.failed(live, &error)),
            Ok(Ok(Value::ServerError(error))) => Ok(Err(error.into())),
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.no_answer()),
        }
    }

    /// Waits until replicas have what was changed over a connection, if that is asked for. Those who
    /// wait together wait once.
    async fn replicated(&self, live: &Arc<Live>, group: u32) -> Result<(), JournalError> {
        let wanted = self.options.wait_replicas;
        let Some(lane) = live.lane(group).filter(|_| wanted > 0) else { return Ok(()) };
        let own = lane.changed.fetch_add(1, Ordering::SeqCst) + 1;
        let limit = self.options.timeout / 2;
        let Ok(mut replicated) = timeout(limit, lane.replicated.lock()).await else {
            return Err(self.no_answer());
        };
        if *replicated >= own {
            return Ok(());
        }
        let upto = lane.changed.load(Ordering::SeqCst);
        let mut cmd = redis::cmd("WAIT");
        cmd.arg(wanted).arg(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let answer = self.query(live, &mut lane.connection.clone(), &cmd).await?;
        match answer.map_err(|error| self.failed(live, &error))? {
            Value::Int(replicas) if replicas >= i64::from(wanted) => {
                *replicated = upto;
                Ok(())
            }
            Value::Int(replicas) => Err(JournalError::Unavailable(format!(
                "{replicas} of {wanted} replicas have what was changed; it is stored all the same"
            ))),
            _ => Err(super::answer::unexpected()),
        }
    }

    async fn bounded<T>(
        &self,
        query: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, JournalError> {
        match timeout(self.options.connect_timeout, query).await {
            Ok(result) => result.map_err(|error| self.unavailable(&error)),
            Err(_) => Err(self.no_answer()),
        }
    }

    fn unavailable(&self, error: &RedisError) -> JournalError {
        JournalError::Unavailable(format!("Redis at {}: {error}", self.endpoint))
    }

    /// Why a server is not used, which the URL may be to blame for.
    fn refusal(&self, error: &RedisError) -> JournalError {
        match error.code() {
            Some("MOVED" | "ASK") => JournalError::Broken(format!(
                "Redis at {} is one master of a Redis Cluster and has some of the keys only: give \
                 its URL as redis+cluster://host:port,host:port or rediss+cluster://…",
                self.endpoint
            )),
            _ => self.unavailable(error),
        }
    }

    /// An error with the server's name, once.
    fn named(&self, error: &JournalError) -> String {
        let (text, server) = (error.to_string(), self.endpoint.to_string());
        if text.contains(&server) { text } else { format!("Redis at {server}: {text}") }
    }

    fn no_answer(&self) -> JournalError {
        JournalError::Unavailable(NO_ANSWER.to_owned())
    }

    /// Tells of an error, and lets the keeper connect anew if the server is not what it was.
    fn failed(&self, live: &Arc<Live>, error: &RedisError) -> JournalError {
        let failed = self.unavailable(error);
        let is_replica = matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "LOADING"));
        if error.is_io_error() || error.is_unrecoverable_error() || is_replica {
            self.lose(live, failed.to_string());
        }
        failed
    }

    fn lose(&self, live: &Arc<Live>, reason: String) {
        let mut state = self.state();
        if matches!(&*state, State::Live(now) if Arc::ptr_eq(now, live)) {
            tracing::warn!(reason, "the connection to Redis is lost");
            *state = State::Down(reason);
            self.lost.notify_one();
        }
    }

    fn is_current(&self, live: &Arc<Live>) -> bool {
        matches!(&*self.state(), State::Live(now) if Arc::ptr_eq(now, live))
    }

    async fn connect(&self) -> Result<Arc<Live>, JournalError> {
        let options = &self.options;
        let client = self.bounded(self.endpoint.client()).await.map_err(|e| refused(&e))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE_MAX);
        let connect = || self.bounded(client.get_multiplexed_async_connection_with_config(&config));
        let mut reads = connect().await.map_err(|error| refused(&error))?;
        let server =
            self.bounded(Server::ask(&mut reads)).await.map_err(|error| refused(&error))?;
        server.check(options)?;
        let mut lanes = Vec::with_capacity(options.connections);
        for _ in 0..options.connections {
            let connection = connect().await?;
            let (changed, replicated) = (AtomicU64::new(0), tokio::sync::Mutex::new(0));
            lanes.push(Lane { connection, changed, replicated });
        }
        let hashes = self.bounded(load_scripts(&mut reads)).await?;
        let live = Live {
            run: server.run.as_str().into(),
            replication: server.replication.clone(),
            since: self.known.now(),
            durability: server.durability,
            reads,
            lanes,
            hashes,
        };
        self.look_at_groups(&live, &server).await?;
        Ok(Arc::new(live))
    }

    /// Looks at a server again that is not as it was when it was connected to, unless somebody did
    /// since it had been looked at so often.
    async fn adopt(&self, live: &Arc<Live>, looks: u64) -> Result<(), JournalError> {
        let _looking = self.looking.lock().await;
        // Whoever had the lock may have found that it does not answer: nobody waits for that again.
        if !self.is_current(live) {
            return Err(self.no_answer());
        }
        if self.looks.load(Ordering::SeqCst) != looks {
            return Ok(());
        }
        let server = self.bounded(Server::ask(&mut live.reads.clone())).await?;
        server.check(&self.options)?;
        self.look_at_groups(live, &server).await
    }

    async fn look_at_groups(&self, live: &Live, server: &Server) -> Result<(), JournalError> {
        let mut pipe = redis::pipe();
        for (group, seen) in (0..GROUPS).zip(self.known.groups()) {
            let mut cmd = live.script(Script::Adopt)?;
            cmd.arg(1).arg(self.keys.group(group));
            cmd.arg(&server.run).arg(&server.replication).arg(&server.replication_before);
            cmd.arg(new_epoch()?);
            cmd.arg(seen.epoch.map_or_else(String::new, |epoch| epoch.0.to_string()));
            cmd.arg(seen.count).arg(&*seen.run);
            // Whether it has been master since before the group was seen where it was then.
            let is_known = live.replication == server.replication && live.since < seen.moment;
            cmd.arg(u8::from(is_known));
            pipe.add_command(cmd);
        }
        let mut connection = live.reads.clone();
        let asking = connection.send_packed_commands(&pipe, 0, GROUPS as usize);
        let answers = self.bounded(asking).await?;
        let mut others = 0;
        for (group, answer) in (0..GROUPS).zip(answers) {
            if let Value::ServerError(error) = answer {
                let error = RedisError::from(error);
                if is_elsewhere(&error) && self.place == Place::InCluster {
                    // Another master is asked for it. If it comes here, scripts will refuse it first.
                    continue;
                }
                return Err(self.refusal(&error));
            }
            let mut answer = Answer::of(answer)?;
            let (epoch, count) = (answer.epoch()?, answer.number()?);
            others += answer.number()?;
            self.known.found(group, epoch, count, &live.run);
        }
        self.looks.fetch_add(1, Ordering::SeqCst);
        if others > 0 {
            let server = &self.endpoint;
            tracing::warn!(%server, "Redis does not have the history that was known: it was flushed, \
                restored or a replica was promoted; topics begin another epoch");
        }
        Ok(())
    }

    async fn probe(&self, live: &Live) -> Result<(), String> {
        let mut connection = live.reads.clone();
        let ping = redis::cmd("PING");
        match timeout(PROBE_TIMEOUT, connection.send_packed_command(&ping)).await {
            Ok(Ok(Value::ServerError(error))) => Err(RedisError::from(error).to_string()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer to PING within {PROBE_TIMEOUT:?}")),
        }
    }
}

/// Keeps the connection: probes it, and connects anew once it is lost.
async fn keep(shared: Arc<Shared>) {
    let mut retry_after = RETRY_FIRST;
    loop {
        if let Ok(live) = shared.live() {
            retry_after = RETRY_FIRST;
            tokio::select! {
                () = shared.lost.notified() => {}
                () = sleep(PROBE_EVERY) => {
                    if let Err(reason) = shared.probe(&live).await {
                        shared.lose(&live, format!("Redis at {}: {reason}", shared.endpoint));
                    }
                }
            }
            continue;
        }
        match shared.connect().await {
            Ok(live) => {
                tracing::info!(server = %shared.endpoint, "connected to Redis again");
                let mut state = shared.state();
                if matches!(*state, State::Down(_)) {
                    *state = State::Live(live);
                }
            }
            Err(error) => {
                {
                    let mut state = shared.state();
                    if matches!(*state, State::Closed) {
                        return;
                    }
                    *state = State::Down(shared.named(&error));
                }
                sleep(retry_after).await;
                retry_after = (retry_after * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Whether a server says that another has the keys, or that nobody has, or that they are on their way:
/// then it has done nothing. `ASK` too: a script touches many keys, and while a slot moves they are
/// in two places, so nobody is asked before it has moved.
fn is_elsewhere(error: &RedisError) -> bool {
    matches!(error.code(), Some("MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN"))
}

/// A server that refuses our credentials will go on to, and so will one that cannot prove who it is.
pub(super) fn refused(error: &JournalError) -> JournalError {
    let message = error.to_string();
    let says = |code: &str| message.contains(code);
    if says("NOAUTH") || says("WRONGPASS") || says("NOPERM") || says("uthentication failed") {
        return JournalError::Broken(format!("{message}: set user and password in its URL"));
    }
    if says("invalid peer certificate") {
        return JournalError::Broken(format!(
            "{message}: it must have a certificate for the name or address that it is found by (in \
             the URL; as Sentinel calls it; as a node of a cluster announces itself, see \
             cluster-announce-hostname), of an authority that is trusted"
        ));
    }
    error.clone()
}

async fn load_scripts(connection: &mut MultiplexedConnection) -> Result<Vec<String>, RedisError> {
    let mut pipe = redis::pipe();
    for script in Script::ALL {
        pipe.cmd("SCRIPT").arg("LOAD").arg(script.text());
    }
    pipe.query_async(connection).await
}

fn new_epoch() -> Result<u32, JournalError> {
    getrandom::u32().map_err(|error| JournalError::Unavailable(format!("no randomness: {error}")))
}
