//! File descriptors: each connection takes one, and the store must never be without.
//!
//! The rule: a hub accepts no more connections than the process may hold descriptors, less those
//! that are kept for the store, the log and the operators' listener.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept from clients: the store's files, some hundred, and operators.
const RESERVED: u64 = 512;

/// Takes as many descriptors as the process may have, and says how many connections that allows.
pub(crate) fn possible() -> usize {
    let Rlimit { mut current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    if current != maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        current = maximum;
    }
    // None is no limit.
    current.map_or(usize::MAX, left)
}

/// The connections that are wanted, or as many as are possible, which is logged.
pub(crate) fn connections_max(wanted: usize) -> usize {
    let possible = possible();
    if possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            "the limit of open files allows fewer connections than `limits.connections`; raise it \
             (systemd: LimitNOFILE)"
        );
    }
    wanted.min(possible)
}

/// What is left for connections; where even the reserve is not there, half of it.
fn left(limit: u64) -> usize {
    usize::try_from(limit.saturating_sub(RESERVED).max(limit / 2)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_store() {
        assert_eq!(left(65_536), 65_024);
        assert_eq!(left(1024), 512);
        assert_eq!(left(256), 128);
    }
}
