//! What the service manager is told and asks for: systemd's sd_notify(3) protocol.
//!
//! The rule: `READY=1` means that connections are accepted. The watchdog is fed by the runtime that
//! serves them, so a hub that hangs is not fed and is started anew. Without `NOTIFY_SOCKET` in the
//! environment nothing is told to anybody.

use sd_notify::NotifyState;
use tokio_util::task::AbortOnDropHandle;

/// Connections are accepted.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The hub ends.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Feeds the watchdog, if there is one (`WatchdogSec=`), until the handle is dropped.
pub(crate) fn feed_watchdog() -> Option<AbortOnDropHandle<()>> {
    let every = sd_notify::watchdog_enabled()? / 2;
    Some(AbortOnDropHandle::new(tokio::spawn(async move {
        let mut feeding = tokio::time::interval(every);
        loop {
            feeding.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    })))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager was not told");
    }
}
