//! The audit log: one line for each change that an operator made or was refused.
//!
//! The rule: a line says who, what, on what, how, and what came of it.

use tidings::{error::Problem, http::Peer};

/// Who changes things here.
pub(super) const OPERATOR: &str = "operator";

/// Something that an operator changes.
#[derive(Debug)]
pub(super) struct Act {
    pub(super) action: &'static str,
    pub(super) tenant: String,
    /// The topic, subject or connection.
    pub(super) on: String,
    /// How, in the words of the request: `keep_events=2`. Empty if there is one way only.
    pub(super) detail: String,
    pub(super) peer: Option<Peer>,
}

impl Act {
    /// Writes down what came of it.
    pub(super) fn done<T>(self, result: Result<T, Problem>) -> Result<T, Problem> {
        let Self { action, tenant, on, detail, peer } = self;
        let (by, peer) = (OPERATOR, address(peer));
        match &result {
            Ok(_) => tracing::info!(
                target: "audit",
                by, peer, action, tenant, on, detail, result = "ok",
                "changed"
            ),
            Err(problem) => tracing::info!(
                target: "audit",
                by, peer, action, tenant, on, detail, result = problem.code.as_str(),
                "not changed"
            ),
        }
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
