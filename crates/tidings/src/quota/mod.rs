//! Quotas: how much of the hub one user, one tenant and all together may use.
//!
//! The rule: whatever can be refused is refused here, before it costs anything, with the limit's
//! name and the time after which it may work; and every refusal is counted by that name.

mod elsewhere;
mod holdings;
mod places;
mod rate;
mod spent;
mod waiting;

use std::{
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    auth::Grant,
    error::{ErrorCode, Problem},
    metrics::Metrics,
    model::Tenant,
    settings::Settings,
};
use elsewhere::Holder;
use holdings::{HoldingLimit, Holdings};
use spent::{Spending, told_above};
use waiting::{NoRoom, WaitingRoom};

pub(crate) use elsewhere::{Elsewhere, HOLD, Held};
pub(crate) use holdings::Room;
pub(crate) use places::{Place, Places};
pub(crate) use rate::Buckets;
pub(crate) use spent::{SAID_EVERY, Spent};
pub(crate) use waiting::Waiting;

/// The limits' names, where one is used more than once.
const USER_RATE: &str = "user_publish_rate";
const TENANT_RATE: &str = "tenant_publish_rate";
const WAITING_BYTES: &str = "publish_waiting_bytes";
/// When a reader or publisher that was refused a place may come back.
const PLACE_RETRY: Duration = Duration::from_secs(5);
/// When a publisher may come back that found no room for its body in time.
const WAIT_RETRY: Duration = Duration::from_secs(1);
/// When a tenant that holds too much may come back: after the next sweep, unless it deletes.
const HOLDING_RETRY: Duration = Duration::from_secs(60);
/// The least that a publish counts among the waiting ones, bytes: what it takes besides its body.
const WAITING_BYTES_MIN: usize = 1024;
/// Bodies that are known to be no longer have their room at once, bytes: about what one read brings.
const SHORT_BODY_BYTES: usize = 16 * 1024;

/// Whom a limit of each user counts: the subject, else the credential, of one tenant.
#[derive(Debug, Clone)]
pub(crate) struct User(Grant);

impl User {
    fn of(grant: &Grant) -> Self {
        Self(grant.clone())
    }

    fn tenant(&self) -> &Tenant {
        self.0.tenant()
    }

    /// All that tells one from another: what else their grants say, does not count.
    fn parts(&self) -> (&Tenant, bool, &str) {
        let subject = self.0.subject();
        (self.tenant(), subject.is_some(), subject.unwrap_or_else(|| self.0.credential()))
    }
}

impl PartialEq for User {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for User {}

impl Hash for User {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl Holder for User {
    fn name(&self) -> String {
        let (tenant, is_subject, name) = self.parts();
        format!("user {tenant} {}{name}", if is_subject { "sub:" } else { "" })
    }
}

impl Holder for Tenant {
    fn name(&self) -> String {
        format!("tenant {self}")
    }
}

impl Holder for IpAddr {
    fn name(&self) -> String {
        format!("address {self}")
    }
}

/// The limits that readers and publishers share, and how much of each is taken.
#[derive(Debug)]
pub(crate) struct Quotas {
    metrics: Arc<Metrics>,
    of_user: Arc<Places<User>>,
    of_tenant: Arc<Places<Tenant>>,
    of_address: Arc<Places<IpAddr>>,
    /// By the holder's number, as other nodes say it.
    user_rate: Buckets<u64>,
    tenant_rate: Buckets<u64>,
    /// `None` where there are no other nodes.
    spending: Option<Spending>,
    waiting: Arc<WaitingRoom>,
    publish_wait: Duration,
    pub(crate) elsewhere: Arc<Elsewhere>,
    pub(crate) holdings: Arc<Holdings>,
}

/// The places of one stream or long-poll; given back when dropped.
#[derive(Debug)]
pub(crate) struct StreamPlaces {
    _of_user: Place<User>,
    _of_tenant: Place<Tenant>,
    _of_address: Option<Place<IpAddr>>,
}

impl Quotas {
    /// `is_alone`: no other node's places count.
    pub(crate) fn new(settings: &Settings, metrics: Arc<Metrics>, is_alone: bool) -> Self {
        let places = |most: usize| if most == 0 { usize::MAX } else { most };
        let elsewhere = Arc::new(Elsewhere::new(is_alone));
        let buckets = if is_alone { Buckets::new } else { Buckets::of_all_nodes };
        Self {
            metrics,
            of_user: Places::of_all_nodes(places(settings.user_connections_max), &elsewhere),
            of_tenant: Places::of_all_nodes(places(settings.tenant_connections_max), &elsewhere),
            of_address: Places::of_all_nodes(places(settings.address_connections_max), &elsewhere),
            user_rate: buckets(settings.user_publish_rate),
            tenant_rate: buckets(settings.tenant_publish_rate),
            spending: (!is_alone).then(Spending::default),
            waiting: WaitingRoom::new(settings.publish_waiting_bytes_max),
            publish_wait: settings.publish_wait,
            elsewhere,
            holdings: Holdings::new(HoldingLimit {
                topics: settings.tenant_topics_max,
                bytes: settings.tenant_bytes_max,
            }),
        }
    }

    /// The places of a reader or of a publisher's long stream: of its user, of its tenant and, if it
    /// comes through a proxy, of the address behind that ([`counted_as`]).
    pub(crate) fn stream(
        &self,
        grant: &Grant,
        behind_proxy: Option<IpAddr>,
    ) -> Result<StreamPlaces, Problem> {
        let full = |limit, detail| self.refuse(limit, detail, PLACE_RETRY);
        let of_user = self.of_user.take(User::of(grant)).ok_or_else(|| {
            full("user_connections", "this user has too many connections; close others")
        })?;
        let of_tenant = self
            .of_tenant
            .take(grant.tenant().clone())
            .ok_or_else(|| full("tenant_connections", "this tenant has too many connections"))?;
        let of_address = match behind_proxy {
            Some(address) => Some(self.of_address.take(address).ok_or_else(|| {
                full("address_connections", "there are too many connections from this address")
            })?),
            None => None,
        };
        Ok(StreamPlaces { _of_user: of_user, _of_tenant: of_tenant, _of_address: of_address })
    }

    /// Counts so many events against the rates of the user and of the tenant, or against neither.
    pub(crate) fn publish(&self, grant: &Grant, events: usize) -> Result<(), Problem> {
        self.within_rates(grant, events).map_err(|reached| self.too_fast(reached))
    }

    /// Whether the rates leave anything, asked before a body is read.
    pub(crate) fn may_publish(&self, grant: &Grant) -> Result<(), Problem> {
        let now = Instant::now();
        let (user, tenant) = self.numbers(grant);
        let user = self.user_rate.look(&user, now);
        user.map_err(|after| self.too_fast((USER_RATE, after)))?;
        let tenant = self.tenant_rate.look(&tenant, now);
        tenant.map_err(|after| self.too_fast((TENANT_RATE, after)))
    }

    /// Waits until the rates allow so many events: a stream is read as fast as it may publish.
    pub(crate) async fn pace(&self, grant: &Grant, events: usize) {
        while let Err((_, after)) = self.within_rates(grant, events) {
            tokio::time::sleep(after).await;
        }
    }

    fn within_rates(&self, grant: &Grant, events: usize) -> Result<(), (&'static str, Duration)> {
        let ((user, tenant), events, now) = (self.numbers(grant), events as u64, Instant::now());
        self.user_rate.take(&user, events, now).map_err(|after| (USER_RATE, after))?;
        self.tenant_rate.take(&tenant, events, now).map_err(|after| {
            self.user_rate.give_back(&user, events);
            (TENANT_RATE, after)
        })
    }

    /// The numbers of a user and of its tenant.
    fn numbers(&self, grant: &Grant) -> (u64, u64) {
        (self.elsewhere.number(&User::of(grant)), self.elsewhere.number(grant.tenant()))
    }

    /// What other nodes are to be told of what was published here.
    pub(crate) fn say_spent(&self) -> Vec<Spent> {
        let Some(spending) = &self.spending else { return Vec::new() };
        let taken = |buckets: &Buckets<u64>| buckets.taken(told_above(buckets.rate()));
        spending.say(taken(&self.user_rate), taken(&self.tenant_rate))
    }

    /// Takes in what another node says was published there.
    pub(crate) fn hear_spent(&self, node: u64, word: &Spent) {
        let Some(spending) = &self.spending else { return };
        let [users, tenants] = spending.hear(node, word);
        let (others, now) = (spending.others(), Instant::now());
        for (holder, amount) in users {
            self.user_rate.charge(holder, amount, others, now);
        }
        for (holder, amount) in tenants {
            self.tenant_rate.charge(holder, amount, others, now);
        }
    }

    fn too_fast(&self, (limit, after): (&'static str, Duration)) -> Problem {
        self.refuse(limit, "events are published faster than this limit allows", after)
    }

    /// Waits for room for a publish of so many bytes, if they are known to be few; else there is room
    /// for its beginning, and for the rest as it arrives.
    pub(crate) async fn waiting(
        &self,
        grant: &Grant,
        bytes: Option<usize>,
    ) -> Result<Waiting, Problem> {
        let mut room = self.waiting.enter(&User::of(grant));
        let bytes = bytes.filter(|bytes| *bytes <= SHORT_BODY_BYTES).unwrap_or_default();
        self.grow(&mut room, bytes).await?;
        Ok(room)
    }

    /// Waits for room for so many bytes, however long that takes.
    pub(crate) async fn room(&self, grant: &Grant, bytes: usize) -> Waiting {
        let mut room = self.waiting.enter(&User::of(grant));
        // It cannot fail: nothing is that long.
        let _ = room.grow(bytes.max(WAITING_BYTES_MIN), Duration::MAX).await;
        room
    }

    /// Waits until the publish has room for so many bytes.
    pub(crate) async fn grow(&self, room: &mut Waiting, bytes: usize) -> Result<(), Problem> {
        let grown = room.grow(bytes.max(WAITING_BYTES_MIN), self.publish_wait).await;
        grown.map_err(|NoRoom| {
            self.metrics.count_limit(WAITING_BYTES);
            let detail = "more is published at once than the hub stores; a user and a tenant have \
                          a share of it each";
            Problem::new(ErrorCode::Unavailable, detail).after(WAIT_RETRY).limit(WAITING_BYTES)
        })
    }

    /// The problem of a tenant that may have no more topics.
    pub(crate) fn no_room(&self) -> Problem {
        let detail = "this tenant holds as many topics as it may; delete some, or let them end";
        self.refuse("tenant_topics", detail, HOLDING_RETRY)
    }

    /// Refuses to store more for a tenant that holds too much.
    pub(crate) fn may_store(&self, tenant: &Tenant) -> Result<(), Problem> {
        if self.holdings.may_store(tenant) {
            return Ok(());
        }
        let detail =
            "this tenant holds as many bytes as it may; delete topics, or keep less of them";
        Err(self.refuse("tenant_bytes", detail, HOLDING_RETRY))
    }

    fn refuse(&self, limit: &'static str, detail: &str, after: Duration) -> Problem {
        self.metrics.count_limit(limit);
        Problem::new(ErrorCode::LimitReached, detail).after(after).limit(limit)
    }
}

/// What stands for one peer: its address, or the /64 that an IPv6 site has to itself. None for
/// loopback, where proxies and sidecars are.
pub(crate) fn counted_as(peer: IpAddr) -> Option<IpAddr> {
    match peer.to_canonical() {
        ip if ip.is_loopback() => None,
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Some(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
        }
        ip => Some(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_site_is_one_peer_and_loopback_is_none() {
        let counted = |text: &str| counted_as(text.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(counted("2001:db8:1:2::1"), counted("2001:db8:1:2:ffff::9"));
        assert_ne!(counted("2001:db8:1:2::1"), counted("2001:db8:1:3::1"));
        assert_eq!(counted("::ffff:192.0.2.1").as_deref(), Some("192.0.2.1"));
        for local in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(counted(local), None, "{local}");
        }
    }
}
