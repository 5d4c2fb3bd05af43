//! What the hub says about itself: log lines on stderr.
//!
//! The rules: stdout belongs to results; log lines never hold a credential or an event's data; and
//! whatever a client sends, a line is one line without control characters.

use std::{
    fmt,
    io::{self, IsTerminal as _},
};

use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    EnvFilter,
    field::{MakeExt as _, RecordFields},
    fmt::{
        FormatFields, FormattedFields, MakeWriter, SubscriberBuilder,
        format::{Writer, debug_fn},
    },
    util::SubscriberInitExt as _,
};

use crate::config::{LogConfig, LogFormat};

/// What operators do is written down whatever the level is, unless the level says otherwise of it.
const AUDIT: &str = "audit";

/// Begins to log as configured.
pub(crate) fn start(config: &LogConfig) {
    let terminal = io::stderr().is_terminal();
    let colours = terminal && crate::remote::variable("NO_COLOR").is_none();
    // Already set only if a test runs two hubs in one process.
    let _ = subscriber(config, terminal, colours, io::stderr).try_init();
}

fn subscriber<W>(
    config: &LogConfig,
    terminal: bool,
    colours: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let as_text = match config.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // Without this, a log collector that goes away takes the hub with it: the complaint about it
    // panics on the same closed stderr.
    let lines = SubscriberBuilder::default()
        .with_env_filter(filter(&config.level))
        .log_internal_errors(false);
    if as_text {
        // The library's own text escapes colours, and not line breaks.
        let fields = debug_fn(escaped).delimited(" ");
        Box::new(
            lines
                .with_writer(writer)
                .fmt_fields(fields)
                .with_ansi(colours)
                .with_target(false)
                .finish(),
        )
    } else {
        let lines = lines.with_writer(Escaping(writer));
        Box::new(lines.json().flatten_event(true).fmt_fields(Members).with_ansi(false).finish())
    }
}

fn filter(level: &str) -> EnvFilter {
    // It was checked with the configuration.
    let mut filter = EnvFilter::builder().parse(level).unwrap_or_default();
    // What fails at a broker is told by who asked it, and is not always a failure.
    for (target, directive) in [(AUDIT, "audit=info"), ("lapin", "lapin=off")] {
        if let Ok(directive) = directive.parse()
            && !level.contains(target)
        {
            filter = filter.add_directive(directive);
        }
    }
    filter
}

/// Writes a field of a line, its control characters as Rust writes them.
fn escaped(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    let text = format!("{value:?}");
    for character in text.chars() {
        if is_control(character) {
            write!(writer, "{}", character.escape_default())?;
        } else {
            writer.write_char(character)?;
        }
    }
    Ok(())
}

/// Writes a span's fields as a JSON object, which the library's lines take in. Every request has a
/// span, whether a line is written or not, and the library's own way to write one took 6 % of a
/// publish (measured 2026-11).
struct Members;

impl<'w> FormatFields<'w> for Members {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut members = Object { writer, begin: '{', result: Ok(()) };
        fields.record(&mut members);
        members.end()
    }

    fn add_fields(
        &self,
        current: &'w mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        // Behind what is there: an object ends with its brace.
        current.fields.pop();
        let begin = if current.fields.len() > 1 { ',' } else { '{' };
        if begin == '{' {
            current.fields.clear();
        }
        let mut members = Object { writer: current.as_writer(), begin, result: Ok(()) };
        fields.record(&mut members);
        members.end()
    }
}

/// A JSON object that is being written.
struct Object<'w> {
    writer: Writer<'w>,
    /// What stands before the next member.
    begin: char,
    result: fmt::Result,
}

impl Object<'_> {
    fn member(&mut self, field: &Field, json: &str) {
        let begin = if std::mem::replace(&mut self.begin, ',') == '{' { "{\"" } else { ",\"" };
        let parts = [begin, field.name(), "\":", json];
        let written = parts.into_iter().try_for_each(|part| self.writer.write_str(part));
        self.result = self.result.and(written);
    }

    fn end(mut self) -> fmt::Result {
        self.result?;
        self.writer.write_str(if self.begin == '{' { "{}" } else { "}" })
    }
}

impl Visit for Object<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match serde_json::to_string(value) {
            Ok(json) => self.member(field, &json),
            Err(_) => self.result = Err(fmt::Error),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, &value.to_string());
    }
}

/// Escapes in JSON what its writer leaves as it is: it may do so above U+001F.
struct Escaping<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Escaping<W> {
    type Writer = Escaping<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Escaping(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for Escaping<W> {
    /// Takes a whole line, as the library writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) if text.bytes().any(|byte| byte >= 0x7f) => {
                let mut escaped = String::with_capacity(text.len() + 32);
                for character in text.chars() {
                    if is_control(character) && character != '\n' {
                        escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
                    } else {
                        escaped.push(character);
                    }
                }
                self.0.write_all(escaped.as_bytes())?;
            }
            _ => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Also what ends a line for some readers, and what turns its direction.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged by `work`.
    fn logged(format: LogFormat, level: &str, work: impl FnOnce()) -> String {
        let lines = Lines::default();
        let config = LogConfig { level: level.to_owned(), format };
        let writer = lines.clone();
        let subscriber = subscriber(&config, false, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, work);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const HOSTILE: &str =
        "a\n{\"level\":\"ERROR\"}\r\n\u{1b}[2J\u{7}\0\t\u{85}\u{9b}31m\u{2028}\u{202e}b";

    /// Broken on purpose, it failed: with the library's own way to write fields.
    #[test]
    fn whatever_a_client_sends_is_one_line_without_control_characters() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format, "info", || {
                let span = tracing::info_span!("request", path = %HOSTILE, request_id = "r1");
                let _entered = span.enter();
                tracing::info!(error = %HOSTILE, text = HOSTILE, debug = ?HOSTILE, "what is {HOSTILE}");
            });
            let line = text.strip_suffix('\n').unwrap();
            assert!(!line.contains(char::is_control), "{text:?}");
            assert!(line.contains("r1") && line.contains("what is a"), "{text}");
            if format == LogFormat::Json {
                let json: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!((&json["level"], &json["text"]), (&"INFO".into(), &HOSTILE.into()));
            }
            assert!(!line.contains(['\u{2028}', '\u{202e}']), "{text}");
        }
    }

    #[test]
    fn spans_are_objects_in_json_whatever_they_hold() {
        let text = logged(LogFormat::Json, "info", || {
            let span = tracing::info_span!("a", late = tracing::field::Empty);
            let _outer = span.enter();
            span.record("late", 7);
            let span =
                tracing::info_span!("b", text = "x\"y", is = true, late = tracing::field::Empty);
            let _inner = span.enter();
            span.record("late", -1_i64);
            tracing::info!("said");
        });
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let spans = serde_json::json!([
            { "name": "a", "late": 7 },
            { "name": "b", "text": "x\"y", "is": true, "late": -1 },
        ]);
        assert_eq!(json["spans"], spans);
    }

    #[test]
    fn what_operators_do_is_written_down_unless_the_level_says_otherwise_of_it() {
        let acts = || {
            tracing::info!(target: "audit", action = "trim", "operator");
            tracing::info!("else");
        };
        let text = logged(LogFormat::Text, "error", acts);
        assert!(text.contains("action=\"trim\"") && !text.contains("else"), "{text}");
        assert_eq!(logged(LogFormat::Text, "error,audit=off", acts), "");
    }
}
