//! The client commands: publishing and following.

mod amqp;
pub(crate) mod follow;
mod input;
pub(crate) mod publish;
mod sender;
mod sse_reader;

use std::io::Write as _;

use anstyle::{AnsiColor, Style};

const NOTE: Style = Style::new().dimmed();
const WARNING: Style = AnsiColor::Yellow.on_default();

/// Says something on stderr that is no result, dimmed on a terminal.
fn note(text: &str) {
    say(NOTE, text);
}

/// Warns on stderr.
fn warn(text: &str) {
    say(WARNING, text);
}

fn say(style: Style, text: &str) {
    // Nobody may be reading stderr; that must not end what stdout and the hub still get.
    drop(writeln!(anstream::stderr(), "{style}{text}{style:#}"));
}
