//! A TOML file as a tree that remembers its lines.
//!
//! The rule: every problem of the file is found in one reading, each with the line it is on; of what
//! is no TOML, those of its syntax alone.

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    ConfigProblem,
    setting::{ENV_PREFIX, Kind, Node, Setting, root, settings},
};

/// A setting as the file writes it.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) setting: &'static Setting,
    pub(super) value: Value,
    pub(super) line: usize,
    /// Lines of a list's elements.
    pub(super) lines: Vec<usize>,
}

/// Reads the settings of a file; what it does not know or understand goes to `problems`.
pub(super) fn read(name: &str, text: &str, problems: &mut Vec<ConfigProblem>) -> Vec<Written> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { name, text, problems, written: Vec::new() };
    let is_whole = errors.is_empty();
    for error in errors {
        reader.problem(error.span().map_or(0, |span| span.start), error.message());
    }
    // Behind what is no TOML, keys and values are guesses.
    if is_whole {
        reader.section("", table.get_ref(), root());
    }
    reader.written
}

/// A TOML value as JSON.
pub(super) fn to_json(value: &DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(number) => {
            i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
                .map_err(|_| format!("{number} is too large a number"))?
                .into()
        }
        DeValue::Float(number) => number
            .as_str()
            .replace('_', "")
            .parse::<f64>()
            .map_err(|_| format!("{number} is no number"))?
            .into(),
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Array(list) => list
            .iter()
            .map(|element| to_json(element.get_ref()))
            .collect::<Result<Vec<_>, _>>()?
            .into(),
        DeValue::Table(table) => Value::Object(
            table
                .iter()
                .map(|(key, value)| Ok((key.get_ref().to_string(), to_json(value.get_ref())?)))
                .collect::<Result<_, String>>()?,
        ),
    })
}

/// `; did you mean …?`, if something known is a slip of the fingers away: a letter, and one more
/// for every five. A key in the wrong section is found by its last word.
pub(super) fn suggestion<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> String {
    let word = last_word(unknown);
    let is_slip = |name: &&str| {
        let letters = word.len().max(last_word(name).len());
        strsim::osa_distance(word, last_word(name)) <= 1 + letters / 5
    };
    let near = known.filter(is_slip).min_by_key(|name| strsim::osa_distance(unknown, name));
    near.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

fn last_word(path: &str) -> &str {
    let path = path.strip_prefix(ENV_PREFIX).unwrap_or(path);
    path.rsplit('.').next().unwrap_or_default()
}

/// A setting's path and the sections that it is in.
fn with_sections(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').filter_map(|(end, _)| path.get(..end)).chain([path])
}

struct Reader<'a> {
    name: &'a str,
    text: &'a str,
    problems: &'a mut Vec<ConfigProblem>,
    written: Vec<Written>,
}

impl Reader<'_> {
    fn section(&mut self, path: &str, table: &DeTable<'_>, node: &'static Node) {
        for (key, value) in table {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            let inner = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            match (node.part(name), value.get_ref()) {
                (Some(section @ Node::Section { .. }), DeValue::Table(table)) => {
                    self.section(&inner, table, section);
                }
                (Some(Node::Section { .. }), _) => {
                    self.problem(at, &format!("`{inner}` is a section: write `[{inner}]`"));
                }
                (Some(Node::Setting(setting)), _) => self.setting(setting, at, value),
                (None, _) => {
                    let known = settings();
                    let near = suggestion(
                        &inner,
                        known.iter().flat_map(|known| with_sections(&known.path)),
                    );
                    self.problem(at, &format!("unknown key `{inner}`{near}"));
                }
            }
        }
    }

    fn setting(&mut self, setting: &'static Setting, at: usize, value: &Spanned<DeValue<'_>>) {
        if setting.kind == Kind::Tables {
            let known = setting.schema.pointer("/items/properties").and_then(Value::as_object);
            let elements = value.get_ref().as_array().into_iter().flatten();
            let mut unknown = false;
            for table in elements.filter_map(|element| element.get_ref().as_table()) {
                for key in table.keys() {
                    let name = key.get_ref().as_ref();
                    if let Some(known) = known.filter(|known| !known.contains_key(name)) {
                        let near = suggestion(name, known.keys().map(String::as_str));
                        let path = &setting.path;
                        let text = format!("unknown key `{name}` in `[[{path}]]`{near}");
                        self.problem(key.span().start, &text);
                        unknown = true;
                    }
                }
            }
            if unknown {
                return;
            }
        }
        match to_json(value.get_ref()) {
            Ok(json) => {
                let lines = value.get_ref().as_array().map(|elements| {
                    elements.iter().map(|element| self.line(element.span().start)).collect()
                });
                self.written.push(Written {
                    setting,
                    value: json,
                    line: self.line(at),
                    lines: lines.unwrap_or_default(),
                });
            }
            Err(reason) => self.problem(at, &format!("`{}`: {reason}", setting.path)),
        }
    }

    fn problem(&mut self, at: usize, message: &str) {
        let place = format!("{}:{}", self.name, self.line(at));
        self.problems.push(ConfigProblem { place, message: message.to_owned() });
    }

    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}
