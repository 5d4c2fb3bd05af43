//! The audit log: one line for each change that an operator made or was refused.
//!
//! The rule: a line says who, what, on what, and what came of it.

use tidings::{error::Problem, http::Peer};

/// Something that an operator changes.
#[derive(Debug)]
pub(super) struct Act {
    pub(super) action: &'static str,
    pub(super) tenant: String,
    /// The topic, subject or connection.
    pub(super) on: String,
    pub(super) peer: Option<Peer>,
}

impl Act {
    /// Writes down what came of it.
    pub(super) fn done<T>(self, result: Result<T, Problem>) -> Result<T, Problem> {
        let Self { action, tenant, on, peer } = self;
        let outcome = result.as_ref().map_or_else(|problem| problem.code.as_str(), |_| "ok");
        let (by, peer) = ("operator", address(peer));
        tracing::info!(target: "audit", by, peer, action, tenant, on, result = outcome, "changed");
        result
    }
}

/// Writes down that somebody came with a wrong token.
pub(super) fn refused(peer: Option<Peer>) {
    let peer = address(peer);
    tracing::warn!(target: "audit", peer, result = "credential_invalid", "operator refused");
}

fn address(peer: Option<Peer>) -> String {
    peer.map(|peer| peer.address.to_string()).unwrap_or_default()
}
