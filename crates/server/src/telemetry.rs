//! What the hub says about itself: log lines on stderr.
//!
//! The rule: stdout belongs to results; log lines never hold a credential or an event's data.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogConfig, LogFormat};

/// Begins to log as configured.
pub(crate) fn start(config: &LogConfig) {
    let terminal = std::io::stderr().is_terminal();
    // The level was checked with the configuration.
    let filter = EnvFilter::builder().parse(&config.level).unwrap_or_default();
    let colours = terminal && crate::remote::variable("NO_COLOR").is_none();
    // Without this, a log collector that goes away takes the hub with it: the complaint about it
    // panics on the same closed stderr.
    let lines =
        fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let as_text = match config.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // Already set only if a test runs two hubs in one process.
    let _ = if as_text {
        lines.with_ansi(colours).with_target(false).try_init()
    } else {
        lines.json().flatten_event(true).with_ansi(false).try_init()
    };
}
