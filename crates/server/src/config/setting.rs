//! The list of settings, read out of the configuration's schema.
//!
//! The rule: path, variable and flag of a setting are all made from its place in the structs:
//! `tls.cert`, `TIDINGS_TLS_CERT`, `--tls-cert`.

use std::sync::LazyLock;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, error::ErrorKind};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::Config;

/// What every variable of the environment starts with.
pub(super) const ENV_PREFIX: &str = "TIDINGS_";

/// One value that can be set.
#[derive(Debug)]
pub(crate) struct Setting {
    /// From the top of the file down: `tls.cert`.
    pub(crate) path: String,
    /// What it means.
    pub(crate) doc: String,
    /// Its default as JSON; null if it has none.
    pub(crate) default: Value,
    /// What kind of value it takes.
    pub(super) kind: Kind,
    /// Its schema, everything inlined.
    pub(super) schema: Value,
    /// Its flag without the dashes; secrets and lists of tables, which may hold some, have none:
    /// the process list would show them.
    pub(crate) flag: Option<&'static str>,
}

/// What kind of value a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    /// A list of texts.
    Texts,
    /// A list of tables.
    Tables,
}

/// A part of the configuration: a section with its doc comment and parts, or a setting.
#[derive(Debug)]
pub(super) enum Node {
    Section { doc: String, parts: Vec<(String, Self)> },
    Setting(Setting),
}

static ROOT: LazyLock<Node> = LazyLock::new(|| {
    let schema = schema_inlined();
    let default = serde_json::to_value(Config::default()).unwrap_or_default();
    Node::read("", &schema, &default)
});

/// All settings, in the order of the reference page.
pub(crate) fn settings() -> Vec<&'static Setting> {
    fn collect(node: &'static Node, into: &mut Vec<&'static Setting>) {
        match node {
            Node::Section { parts, .. } => parts.iter().for_each(|(_, part)| collect(part, into)),
            Node::Setting(setting) => into.push(setting),
        }
    }
    let mut all = Vec::new();
    collect(&ROOT, &mut all);
    all
}

/// The configuration's tree.
pub(super) fn root() -> &'static Node {
    &ROOT
}

/// The schema of the file, with definitions.
pub(super) fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    generator.into_root_schema_for::<Config>().to_value()
}

fn schema_inlined() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Config>().to_value()
}

impl Node {
    fn read(path: &str, schema: &Value, default: &Value) -> Self {
        let doc = schema.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
            let kind = Kind::of(schema);
            // Leaked once, with the static tree: clap's flags borrow their names for ever.
            let is_secret = schema.get("writeOnly").is_some();
            let has_flag = kind != Kind::Tables && !is_secret;
            let flag = has_flag.then(|| &*path.replace(['.', '_'], "-").leak());
            let (default, schema) = (default.clone(), schema.clone());
            return Self::Setting(Setting {
                path: path.to_owned(),
                doc,
                default,
                kind,
                schema,
                flag,
            });
        };
        let parts = ordered(properties).into_iter().map(|name| {
            let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let part = Self::read(
                &inner,
                properties.get(&name).unwrap_or(&Value::Null),
                default.get(&name).unwrap_or(&Value::Null),
            );
            (name, part)
        });
        Self::Section { doc, parts: parts.collect() }
    }

    /// The part of that name.
    pub(super) fn part(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Section { parts, .. } => {
                parts.iter().find(|(part, _)| part == name).map(|(_, node)| node)
            }
            Self::Setting(_) => None,
        }
    }
}

/// Settings first and sections after them, as TOML wants it, each by name.
fn ordered(properties: &Map<String, Value>) -> Vec<String> {
    let is_section = |name: &&String| {
        properties.get(*name).is_some_and(|schema| {
            schema.get("properties").is_some() || Kind::of(schema) == Kind::Tables
        })
    };
    let (sections, settings): (Vec<_>, Vec<_>) = properties.keys().partition(is_section);
    settings.into_iter().chain(sections).cloned().collect()
}

impl Kind {
    fn of(schema: &Value) -> Self {
        let is = |name: &str| match schema.get("type") {
            Some(Value::String(text)) => text == name,
            Some(Value::Array(list)) => list.iter().any(|each| each == name),
            _ => false,
        };
        if is("array") {
            let items = schema.get("items").and_then(|items| items.get("type"));
            if items.is_some_and(|items| items == "string") { Self::Texts } else { Self::Tables }
        } else if is("string") {
            Self::Text
        } else if is("integer") {
            Self::Integer
        } else if is("number") {
            Self::Number
        } else if is("boolean") {
            Self::Boolean
        } else {
            Self::Text
        }
    }
}

impl Setting {
    /// Its variable: `TIDINGS_TLS_CERT`.
    pub(crate) fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.path.replace('.', "_").to_uppercase())
    }

    /// What to write in place of the value in a flag's help.
    fn placeholder(&self) -> &'static str {
        match self.kind {
            Kind::Integer | Kind::Number => "NUMBER",
            Kind::Boolean => "BOOL",
            Kind::Texts | Kind::Tables => "LIST",
            Kind::Text => "VALUE",
        }
    }

    /// Reads the value as a variable or flag writes it: text as it is, a list of texts also with
    /// commas, and tables as TOML.
    pub(super) fn read_text(&self, text: &str) -> Result<Value, String> {
        let toml = |text: &str| {
            let value = toml::de::DeValue::parse(text)
                .map_err(|error| format!("is no TOML value: {}", error.message()))?;
            super::document::to_json(value.get_ref())
        };
        match self.kind {
            Kind::Text => Ok(text.into()),
            Kind::Integer => {
                text.trim().parse::<u64>().map(Value::from).map_err(|_| "must be a number".into())
            }
            Kind::Number => {
                text.trim().parse::<f64>().map(Value::from).map_err(|_| "must be a number".into())
            }
            Kind::Boolean => text
                .trim()
                .parse::<bool>()
                .map(Value::from)
                .map_err(|_| "must be true or false".into()),
            Kind::Texts if !text.trim_start().starts_with('[') => {
                Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect())
            }
            Kind::Texts | Kind::Tables => toml(text.trim()),
        }
    }
}

/// The settings as flags, for clap.
#[derive(Debug, Clone, Default)]
pub(crate) struct SettingFlags {
    /// Path and text of each flag that was given.
    pub(crate) given: Vec<(String, String)>,
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in settings() {
            let Some(flag) = setting.flag else { continue };
            let given = matches
                .try_get_one::<String>(flag)
                .map_err(|error| clap::Error::raw(ErrorKind::ArgumentConflict, error))?;
            if let Some(text) = given {
                self.given.push((setting.path.clone(), text.clone()));
            }
        }
        Ok(())
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        settings().into_iter().fold(command, |command, setting| match setting.flag {
            Some(flag) => {
                let summary = setting.doc.lines().collect::<Vec<_>>().join(" ");
                let summary = summary.split_once(". ").map_or(summary.as_str(), |(first, _)| first);
                let arg = Arg::new(flag)
                    .long(flag)
                    .value_name(setting.placeholder())
                    .help(summary.trim_end_matches('.').to_owned())
                    .help_heading("Settings")
                    .hide_short_help(!matches!(setting.path.as_str(), "listen" | "data"));
                command.arg(arg)
            }
            None => command,
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_has_one_path_variable_and_flag() {
        let all = settings();
        let cert = all.iter().find(|setting| setting.path == "tls.cert").unwrap();
        assert_eq!(cert.env(), "TIDINGS_TLS_CERT");
        assert_eq!(cert.flag, Some("tls-cert"));
        let mut names: Vec<_> = all.iter().map(|setting| setting.env()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len(), "two settings share a variable");
    }

    #[test]
    fn every_setting_has_its_text() {
        for setting in settings() {
            assert!(setting.doc.len() > 10, "{} has no doc comment", setting.path);
        }
    }

    #[test]
    fn secrets_have_no_flag_because_the_process_list_would_show_them() {
        let keys = settings().into_iter().find(|setting| setting.path == "auth.jwt.keys").unwrap();
        assert_eq!((keys.kind, keys.flag), (Kind::Tables, None));
        let token = settings().into_iter().find(|setting| setting.path == "admin.token").unwrap();
        assert_eq!((token.kind, token.flag), (Kind::Text, None));
    }
}
