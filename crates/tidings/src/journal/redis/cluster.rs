//! The masters of a Redis Cluster: a link to each, and which of them has a group's slot.
//!
//! The rule: only the master that has all keys of a group is asked anything about it. Who that is is
//! looked at again whenever one says that it is another, or that the slot is on its way, and whoever
//! asked waits for that, within its limit; what was refused so was not done.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::{Cmd, RedisError, Value};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use super::{
    keys::GROUPS,
    known::{Known, Said},
    layout::{Address, Layout, slot_of},
    link::{By, Failed, Link, refused},
    options::{Endpoint, RedisOptions},
    script::Script,
    topology::Topology,
};
use crate::journal::{Durability, JournalError};

/// How often the masters are asked who has what though nobody complains: as often as a hub may be
/// late to say that one is missing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks that somebody asked for.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// The first wait of a call whose keys are on their way, doubled each time …
const AGAIN_FIRST: Duration = Duration::from_millis(10);
/// … up to this.
const AGAIN_MAX: Duration = Duration::from_millis(200);
/// Missing slots that are named; a cluster that lacks more lacks many.
const NAMED_MAX: usize = 4;

/// The masters that have groups.
#[derive(Debug)]
pub(super) struct Cluster {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
}

struct Shared {
    options: RedisOptions,
    topology: Topology,
    known: Arc<Known>,
    map: watch::Sender<Arc<Map>>,
    /// Wakes the keeper when somebody needs a newer map.
    wanted: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let map = self.map();
        let masters: Vec<String> = map.masters.keys().map(Address::to_string).collect();
        f.debug_struct("Shared").field("masters", &masters).finish_non_exhaustive()
    }
}

/// Who has what, as it was looked at so often.
struct Map {
    looks: u64,
    masters: BTreeMap<Address, Arc<Link>>,
    /// The master of each group.
    groups: Vec<Option<Arc<Link>>>,
    /// Why the cluster serves nobody.
    down: Option<String>,
    is_closed: bool,
}

impl Cluster {
    /// Finds all masters and connects to them.
    pub(super) async fn open(
        options: &RedisOptions,
        topology: Topology,
        known: Arc<Known>,
    ) -> Result<Self, JournalError> {
        let groups = vec![None; GROUPS as usize];
        let map = Map { looks: 0, masters: BTreeMap::new(), groups, down: None, is_closed: false };
        let shared = Shared {
            options: options.clone(),
            topology,
            known,
            map: watch::Sender::new(Arc::new(map)),
            wanted: Notify::new(),
        };
        let layout = shared.topology.look().await.map_err(|error| shared.unusable(&error))?;
        let failures = shared.take(&layout).await;
        if let Some(failure) = failures.into_iter().next() {
            return Err(failure);
        }
        if let Some(missing) = shared.map().missing() {
            return Err(shared.unavailable(missing));
        }
        let shared = Arc::new(shared);
        let keeper = tokio::spawn(keep(Arc::clone(&shared)));
        Ok(Self { shared, keeper })
    }

    /// As [`Link::durability`], of the master that has a group.
    pub(super) fn durability(&self, group: u32) -> Option<Durability> {
        self.shared.map().link(group)?.durability()
    }

    /// Which masters are missing, and why.
    pub(super) fn failure(&self) -> Option<String> {
        let map = match self.shared.open_map() {
            Ok(map) => map,
            Err(closed) => return Some(closed.to_string()),
        };
        let missing = map.missing().map(|missing| self.shared.unavailable(missing));
        missing.map(|error| error.to_string())
    }

    /// Why a group takes no changes.
    pub(super) fn failure_of(&self, group: u32) -> Option<String> {
        let map = match self.shared.open_map() {
            Ok(map) => map,
            Err(closed) => return Some(closed.to_string()),
        };
        let Some(link) = map.link(group) else {
            return Some(self.shared.unavailable(no_master([group])).to_string());
        };
        link.failure().or_else(|| Some(self.shared.unavailable(map.down.as_ref()?).to_string()))
    }

    pub(super) fn close(&self) {
        self.keeper.abort();
        self.shared.map.send_modify(|map| {
            let (masters, groups) = (map.masters.clone(), map.groups.clone());
            *map = Arc::new(Map { looks: map.looks, masters, groups, down: None, is_closed: true });
        });
        for link in self.shared.map().masters.values() {
            link.close();
        }
    }

    /// As [`Link::call`], at the master that has the group.
    pub(super) async fn call(
        &self,
        by: By,
        script: Script,
        keys: &[String],
        fill: &(impl Fn(&mut Cmd) + Send + Sync),
    ) -> Result<(Value, Said), JournalError> {
        let mut again = self.again();
        loop {
            let map = self.shared.open_map()?;
            let failed = match map.link(by.group()) {
                Some(link) => match link.call(by, script, keys, fill).await {
                    Ok(answer) => return Ok(answer),
                    Err(Failed::Error(error)) => return Err(error),
                    Err(Failed::Elsewhere(error)) => error,
                },
                None => self.shared.unavailable(no_master([by.group()])),
            };
            let newer = again.newer(&map).await;
            again.is_worth_it(newer.as_deref(), by.group(), failed)?;
        }
    }

    /// Sends commands that only read, each to the master that has its group, those of one together.
    /// One answer of each, in their order: a group without a master keeps nobody from the others.
    pub(super) async fn read_many(
        &self,
        commands: &[(u32, Cmd)],
    ) -> Vec<Result<Value, JournalError>> {
        let mut again = self.again();
        let mut answers: Answers = vec![None; commands.len()];
        loop {
            let map = match self.shared.open_map() {
                Ok(map) => map,
                Err(closed) => break fill(answers, &closed),
            };
            let mut elsewhere = Vec::new();
            let mut by_master: BTreeMap<usize, (&Link, Vec<usize>)> = BTreeMap::new();
            for (place, (group, _)) in commands.iter().enumerate() {
                if answers.get(place).is_some_and(Option::is_some) {
                    continue;
                }
                match map.link(*group) {
                    Some(link) => {
                        let of_link = by_master.entry(Arc::as_ptr(link).addr());
                        of_link.or_insert_with(|| (link, Vec::new())).1.push(place);
                    }
                    None => elsewhere.push((place, self.shared.unavailable(no_master([*group])))),
                }
            }
            let reads = by_master.into_values().map(async |(link, places)| {
                let mut pipe = redis::pipe();
                for (_, command) in places.iter().filter_map(|place| commands.get(*place)) {
                    pipe.add_command(command.clone());
                }
                (link.read_many(&pipe).await, places)
            });
            for (read, places) in join_all(reads).await {
                match read {
                    Ok(values) => {
                        for (place, value) in places.into_iter().zip(values) {
                            match value {
                                Ok(value) => put(&mut answers, place, Ok(value)),
                                Err(error) => elsewhere.push((place, error)),
                            }
                        }
                    }
                    Err(error) => {
                        for place in places {
                            put(&mut answers, place, Err(error.clone()));
                        }
                    }
                }
            }
            if elsewhere.is_empty() {
                break fill(answers, &super::answer::unexpected());
            }
            let newer = again.newer(&map).await;
            for (place, error) in elsewhere {
                let Some((group, _)) = commands.get(place) else { continue };
                if let Err(error) = again.is_worth_it(newer.as_deref(), *group, error) {
                    put(&mut answers, place, Err(error));
                }
            }
        }
    }

    fn again(&self) -> Again<'_> {
        let until = Instant::now() + self.shared.options.timeout;
        Again { shared: &self.shared, until, pause: AGAIN_FIRST }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// A call that asks again until its time is over.
struct Again<'a> {
    shared: &'a Shared,
    until: Instant,
    pause: Duration,
}

impl Again<'_> {
    /// Waits for a newer map than the one by which something failed; `None` if there is none in
    /// time.
    async fn newer(&mut self, map: &Map) -> Option<Arc<Map>> {
        let mut maps = self.shared.map.subscribe();
        self.shared.wanted.notify_one();
        let pause = self.pause;
        let newer = async {
            sleep(pause).await;
            // Its sender lives as long as this.
            maps.wait_for(|newer| newer.looks > map.looks)
                .await
                .ok()
                .map(|newer| Arc::clone(&newer))
        };
        self.pause = (self.pause * 2).min(AGAIN_MAX);
        timeout_at(self.until, newer).await.ok().flatten()
    }

    /// Whether a group is to be asked for again by the newer map. Fails with what failed if there is
    /// none, or if nobody has the group or serves it by that either: then waiting on is for who
    /// asked.
    fn is_worth_it(
        &self,
        newer: Option<&Map>,
        group: u32,
        failed: JournalError,
    ) -> Result<(), JournalError> {
        match newer {
            Some(newer) if newer.link(group).is_none() => {
                Err(self.shared.unavailable(no_master([group])))
            }
            Some(newer) if newer.down.is_none() => Ok(()),
            Some(_) | None => Err(failed),
        }
    }
}

type Answers = Vec<Option<Result<Value, JournalError>>>;

fn put(answers: &mut Answers, place: usize, answer: Result<Value, JournalError>) {
    if let Some(slot) = answers.get_mut(place) {
        *slot = Some(answer);
    }
}

/// The answers, and the same error where there is none.
fn fill(answers: Answers, error: &JournalError) -> Vec<Result<Value, JournalError>> {
    answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(error.clone()))).collect()
}

impl Map {
    fn link(&self, group: u32) -> Option<&Arc<Link>> {
        self.groups.get(group as usize)?.as_ref()
    }

    /// What of the cluster is not there; `None` if everything is.
    fn missing(&self) -> Option<String> {
        let mut missing = Vec::new();
        for (master, link) in &self.masters {
            if let Some(reason) = link.failure() {
                missing.push(format!("its master {master} is missing: {reason}"));
            }
        }
        let orphans = (0..GROUPS).filter(|group| self.link(*group).is_none());
        let orphans: Vec<u32> = orphans.collect();
        if !orphans.is_empty() {
            missing.push(no_master(orphans));
        }
        // A cluster that lacks a master says so itself some time after.
        missing.extend(self.down.clone().filter(|_| missing.is_empty()));
        (!missing.is_empty()).then(|| missing.join("; "))
    }
}

impl Shared {
    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.borrow())
    }

    /// The map, unless nobody is to be asked any more.
    fn open_map(&self) -> Result<Arc<Map>, JournalError> {
        let map = self.map();
        if map.is_closed {
            return Err(JournalError::Unavailable("the journal was closed".to_owned()));
        }
        Ok(map)
    }

    fn unavailable(&self, what: impl std::fmt::Display) -> JournalError {
        JournalError::Unavailable(format!("Redis at {}: {what}", self.topology))
    }

    /// Why the cluster cannot be opened.
    fn unusable(&self, error: &RedisError) -> JournalError {
        if error.to_string().contains("cluster support disabled") {
            return JournalError::Broken(format!(
                "Redis at {} is no Redis Cluster: give its URL as redis://host:port or rediss://…",
                self.topology
            ));
        }
        refused(&self.unavailable(error))
    }

    /// Looks who has what, and connects to masters that are new.
    async fn look(&self) {
        match self.topology.look().await {
            Ok(layout) => _ = self.take(&layout).await,
            // Links notice by themselves, so the last map is as good as any.
            Err(error) => {
                let before = self.map();
                self.put(before.masters.clone(), before.groups.clone(), Some(error.to_string()));
            }
        }
    }

    /// Makes a map of what nodes said. Returns why masters that are new cannot be used.
    async fn take(&self, layout: &Layout) -> Vec<JournalError> {
        let before = self.map();
        let owners: Vec<Option<&Address>> =
            (0..GROUPS).map(|group| layout.owner(slot_of(&group.to_string()))).collect();
        let mut masters = BTreeMap::new();
        let mut new = Vec::new();
        for owner in owners.iter().copied().flatten() {
            match before.masters.get(owner) {
                Some(link) => _ = masters.insert(owner.clone(), Arc::clone(link)),
                None if new.contains(&owner) => {}
                None => new.push(owner),
            }
        }
        let mut failures = Vec::new();
        for (owner, link) in join_all(new.into_iter().map(|owner| self.connect(owner))).await {
            match link {
                Ok((link, connected)) => {
                    failures.extend(connected.err());
                    masters.insert(owner.clone(), Arc::new(link));
                }
                Err(error) => failures.push(error),
            }
        }
        let gone = before.masters.iter().filter(|(address, _)| !masters.contains_key(*address));
        let gone: Vec<(&Address, &Arc<Link>)> = gone.collect();
        let link = |owner: &Option<&Address>| masters.get((*owner)?).cloned();
        let groups = owners.iter().map(link).collect();
        self.put(masters, groups, layout.down.clone());
        for (address, link) in gone {
            tracing::info!(server = %address, "this master of Redis Cluster has no topics any more");
            link.close();
        }
        failures
    }

    async fn connect<'a>(
        &self,
        master: &'a Address,
    ) -> (&'a Address, Result<(Link, Result<(), JournalError>), JournalError>) {
        let client = self.topology.client(master).map_err(|error| self.unavailable(error));
        let link = match client {
            Ok(client) => {
                let endpoint = Endpoint::Server(Box::new(client));
                Ok(Link::start(&self.options, endpoint, Arc::clone(&self.known)).await)
            }
            Err(error) => Err(error),
        };
        (master, link)
    }

    fn put(
        &self,
        masters: BTreeMap<Address, Arc<Link>>,
        groups: Vec<Option<Arc<Link>>>,
        down: Option<String>,
    ) {
        self.map.send_if_modified(|map| {
            let looks = map.looks + 1;
            let is_open = !map.is_closed;
            if is_open {
                *map = Arc::new(Map { looks, masters, groups, down, is_closed: false });
            }
            is_open
        });
    }
}

/// Says which slots nobody has.
fn no_master(groups: impl IntoIterator<Item = u32>) -> String {
    let mut slots: Vec<u16> = groups.into_iter().map(|g| slot_of(&g.to_string())).collect();
    slots.sort_unstable();
    let more = if slots.len() > NAMED_MAX { ", …" } else { "" };
    let named: Vec<String> = slots.iter().take(NAMED_MAX).map(u16::to_string).collect();
    format!("no master has slot {}{more}", named.join(", "))
}

/// Looks again now and then, and when somebody asks for it.
async fn keep(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.wanted.notified() => sleep(LOOK_PAUSE).await,
            () = sleep(LOOK_EVERY) => {}
        }
        shared.look().await;
    }
}
