//! A publisher's long stream: what it takes of the hub, and what ends it.
//!
//! The rule: what holds for a reader's connection holds for it. It has places of its user, its
//! tenant and the address behind a proxy, lives as long, is counted and listed, and can be sent away;
//! and whatever ends it is said in its last line.

use std::{
    future::poll_fn,
    net::IpAddr,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    auth::Grant,
    connection::{Carrier, jitter},
    connections::{Leave, Told},
    counted::Counted,
    error::{ErrorCode, Problem},
    hub::Hub,
    quota::StreamPlaces,
    revocation::revoked,
    sse::GoAway,
    topic_task::Waker,
};

/// What it is counted as.
const FORMAT: &str = "publish";
/// When a publisher whose stream ended may send the rest.
const RETRY: Duration = Duration::from_secs(1);

/// A stream that publishes, until it is dropped.
#[derive(Debug)]
pub(super) struct Publisher {
    hub: Hub,
    pub(super) grant: Grant,
    ends_at: Instant,
    /// By which it is told that something came for it.
    waker: Arc<Waker>,
    leave: Leave,
    counted: Counted,
    _places: StreamPlaces,
}

impl Publisher {
    /// Takes the places of a stream.
    pub(super) fn open(
        hub: &Hub,
        grant: Grant,
        carrier: Carrier,
        behind_proxy: Option<IpAddr>,
    ) -> Result<Self, Problem> {
        let places = hub.quotas().stream(&grant, behind_proxy)?;
        let mut counted = Counted::new(hub, FORMAT);
        counted.carry(carrier, FORMAT);
        let waker = Arc::<Waker>::default();
        let leave = Leave::publish(hub, &uuid::Uuid::now_v7().simple().to_string(), &grant, &waker);
        // To look once: it may have been revoked since it was asked.
        waker.call();
        let ends_at = Instant::now() + jitter(hub.settings().connection_age_max, 10);
        Ok(Self { hub: hub.clone(), grant, ends_at, waker, leave, counted, _places: places })
    }

    /// Waits until it may publish no more.
    ///
    /// Cancel-safe.
    pub(super) async fn ended(&self) -> GoAway {
        let Self { hub, grant, .. } = self;
        let expired = async {
            match grant.expires_at() {
                Some(end) => sleep(hub.clock().now().until(end)).await,
                None => std::future::pending().await,
            }
        };
        let told = poll_fn(|context| {
            loop {
                ready!(self.waker.listen(context));
                self.waker.answer();
                if let Some(Told::End(reason)) = self.leave.told() {
                    return Poll::Ready(reason);
                }
            }
        });
        tokio::select! {
            biased;
            () = hub.draining().cancelled() => GoAway::Drain,
            reason = told => reason,
            () = expired => GoAway::Expired,
            () = sleep_until(self.ends_at) => GoAway::MaxAge,
        }
    }

    /// Ends it for this reason. Returns what its last line says.
    pub(super) fn end(&mut self, reason: GoAway) -> Problem {
        self.counted.end(reason);
        let unavailable = |detail: &str| Problem::new(ErrorCode::Unavailable, detail).after(RETRY);
        match reason {
            GoAway::Revoked => revoked(),
            GoAway::Expired => {
                let detail = "the credential expired; send the rest with a new one";
                Problem::new(ErrorCode::CredentialExpired, detail)
            }
            GoAway::MaxAge => {
                unavailable("the stream is as old as one may be; send the rest in another")
            }
            GoAway::Slow => {
                let detail = "no line came for too long; send the rest in another stream, and an \
                              empty line now and then";
                Problem::new(ErrorCode::TooSlow, detail)
            }
            GoAway::Drain | GoAway::Closed | GoAway::Unavailable => {
                unavailable("the hub ends this stream; send the rest again")
            }
        }
    }
}
