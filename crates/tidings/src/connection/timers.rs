//! Everything that happens to a connection by time, on one timer.
//!
//! The rule: what is due is asked for, not only waited for: a reader that is behind always has
//! events waiting, and would never let the timer have its turn.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use super::Happening;
use crate::{hub::Hub, model::Timestamp, sse::GoAway};

/// Before a credential ends, its reader is told so this early, to refresh it in time.
const EXPIRY_NOTICE: Duration = Duration::from_secs(60);

/// Moments of a heartbeat at which connections are pinged, the same for all of a hub: those that are
/// due in between are written together. Each by itself wakes the process and its peer: of 10 000
/// connections on loopback that took 6.6 % of a processor, and 1.6 with 64 moments (2026-11, quick
/// builds). There are more, so that what is written at one holds nobody up: with 15 s, 10 000
/// connections that were silent from one event on are pinged some hundred at a time.
const PING_MOMENTS: u32 = 256;

/// When a hub pings.
#[derive(Debug, Clone, Copy)]
struct Moments {
    first: Instant,
    apart: Duration,
}

impl Moments {
    fn of(hub: &Hub) -> Self {
        let apart = hub.settings().heartbeat / PING_MOMENTS;
        Self { first: hub.begun_at(), apart: apart.max(Duration::from_nanos(1)) }
    }

    /// The last one that is not after a time.
    fn before(&self, at: Instant) -> Instant {
        let past = at.saturating_duration_since(self.first).as_nanos() % self.apart.as_nanos();
        at - Duration::from_nanos(u64::try_from(past).unwrap_or(0))
    }
}

/// The times of one connection.
#[derive(Debug)]
pub(super) struct Timers {
    timer: Pin<Box<Sleep>>,
    /// How long it may be silent, at most.
    heartbeat: Duration,
    moments: Moments,
    pub(super) wrote_at: Instant,
    notice: Option<(Instant, Timestamp)>,
    ends: Vec<(Instant, GoAway)>,
    pub(super) is_draining: bool,
}

impl Timers {
    pub(super) fn new(
        hub: &Hub,
        heartbeat: Duration,
        age: Duration,
        expires_at: Option<Timestamp>,
    ) -> Self {
        let now = Instant::now();
        let ends = vec![(now + age, GoAway::MaxAge)];
        let timer = Box::pin(tokio::time::sleep_until(now));
        let mut timers = Self {
            timer,
            heartbeat,
            moments: Moments::of(hub),
            wrote_at: now,
            notice: None,
            ends,
            is_draining: false,
        };
        timers.expire(hub, expires_at);
        timers
    }

    /// Ends the connection then, and not when it was to end by its credential before.
    pub(super) fn expire(&mut self, hub: &Hub, expires_at: Option<Timestamp>) {
        let now = Instant::now();
        self.ends.retain(|(_, reason)| *reason != GoAway::Expired);
        self.notice = None;
        if let Some(at) = expires_at {
            let left = hub.clock().now().until(at);
            // Beyond a year a timer would overflow, and the connection's age ends it long before.
            if left < Duration::from_secs(366 * 24 * 60 * 60) {
                self.ends.push((now + left, GoAway::Expired));
                // At once, where less is left.
                self.notice = Some((now + left.saturating_sub(EXPIRY_NOTICE), at));
            }
        }
        self.timer.as_mut().reset(now);
    }

    pub(super) fn wrote(&mut self) -> Instant {
        // The timer is not touched: it looks when it fires, and fires later if it must.
        self.wrote_at = Instant::now();
        self.wrote_at
    }

    pub(super) fn drain(&mut self, after: Duration) {
        self.is_draining = true;
        self.ends.push((Instant::now() + after, GoAway::Drain));
        self.timer.as_mut().reset(Instant::now());
    }

    /// Why the connection is to end by now.
    pub(super) fn ended(&self, now: Instant) -> Option<GoAway> {
        let past = self.ends.iter().filter(|(at, _)| *at <= now);
        past.min_by_key(|(at, _)| *at).map(|(_, reason)| *reason)
    }

    /// The end of the credential, if the reader is to be told of it by now; once.
    pub(super) fn noticed(&mut self, now: Instant) -> Option<Timestamp> {
        self.notice.take_if(|(at, _)| *at <= now).map(|(_, expires_at)| expires_at)
    }

    /// Waits for the next thing that is due.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Happening> {
        loop {
            ready!(self.timer.as_mut().poll(context));
            let now = Instant::now();
            if let Some(reason) = self.ended(now) {
                return Poll::Ready(Happening::End(reason));
            }
            if let Some(expires_at) = self.noticed(now) {
                return Poll::Ready(Happening::Notice(expires_at));
            }
            let ping = self.moments.before(self.wrote_at + self.heartbeat);
            if ping <= now {
                return Poll::Ready(Happening::Ping);
            }
            let times = self.ends.iter().map(|(at, _)| *at).chain(self.notice.map(|(at, _)| at));
            self.timer.as_mut().reset(times.fold(ping, Instant::min));
        }
    }
}
