//! Layers: flags over environment over file over defaults.
//!
//! The rules: nothing unknown is passed over in silence; all problems are reported at once, each
//! with its place; no message repeats a value, as it may be a secret.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{
    Config,
    document::{self, suggestion},
    setting::{ENV_PREFIX, Kind, Setting, settings},
    validate,
};

/// The file that is read if none is named and it is there.
const FILE_DEFAULT: &str = "tidings.toml";
/// Variables of the client commands, and the one that names the file.
const ENV_OTHER: [&str; 6] = [
    "TIDINGS_CONFIG",
    "TIDINGS_URL",
    "TIDINGS_KEY",
    "TIDINGS_KEY_FILE",
    "TIDINGS_TOKEN",
    "TIDINGS_TOKEN_FILE",
];

/// Where settings may come from.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// `--config`, else `TIDINGS_CONFIG`.
    pub(crate) file: Option<PathBuf>,
    /// Where `tidings.toml` is looked for.
    pub(crate) directory: PathBuf,
    /// Names and values of the environment.
    pub(crate) env: Vec<(String, String)>,
    /// Paths and texts of flags.
    pub(crate) flags: Vec<(String, String)>,
}

/// Variables of every program that speaks OpenTelemetry, and the settings that they are. The hub's own
/// variable counts before them.
const ENV_STANDARD: [(&str, &str); 4] = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp.endpoint"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "otlp.headers"),
    ("OTEL_SERVICE_NAME", "otlp.service_name"),
    ("OTEL_TRACES_SAMPLER_ARG", "otlp.sample_ratio"),
];

/// Something wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigProblem {
    /// `tidings.toml:7`, `TIDINGS_LISTEN` or `--listen`.
    pub(crate) place: String,
    /// What is wrong and what is possible.
    pub(crate) message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    /// `tidings dev` chose it.
    Dev,
    /// File and line.
    File(String),
    /// The variable, and the file that it names.
    Env(String, Option<String>),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Dev => f.write_str("tidings dev"),
            Self::File(place) => f.write_str(place),
            Self::Env(name, None) => f.write_str(name),
            Self::Env(name, Some(file)) => write!(f, "{name} ({file})"),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// A configuration without problems.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The values in effect.
    pub(crate) config: Config,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// Where each setting comes from, by path; absent: the default.
    pub(crate) origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// What this process was given.
    pub(crate) fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(ENV_PREFIX) || standard(name).is_some())
            .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
            .collect();
        Self { file, directory: PathBuf::from("."), env, flags }
    }
}

impl Loaded {
    /// What `tidings dev` runs with: everything that is not the default is its own choice.
    pub(crate) fn of_dev(config: Config) -> Self {
        let values = [&config, &Config::default()].map(|config| serde_json::to_value(config).ok());
        let is_own = |setting: &&&Setting| {
            let path = format!("/{}", setting.path.replace('.', "/"));
            let [own, default] = values.each_ref().map(|value| value.as_ref()?.pointer(&path));
            own != default
        };
        let own = settings();
        let own = own.iter().filter(is_own).map(|setting| (setting.path.clone(), Origin::Dev));
        let origins = own.collect();
        Self { config, file: None, origins }
    }
}

/// Reads and checks all layers.
///
/// # Errors
/// Every problem there is.
pub(crate) fn load(layers: &Layers) -> Result<Loaded, Vec<ConfigProblem>> {
    let mut loading = Loading::default();
    let file = loading.read_file(layers);
    loading.read_env(&layers.env);
    loading.read_flags(&layers.flags);
    let Loading { tree, origins, lines, mut problems } = loading;
    if !problems.is_empty() {
        return Err(problems);
    }
    let config: Config = match serde_json::from_value(Value::Object(tree)) {
        Ok(config) => config,
        Err(error) => {
            // Each value was tried alone before, so this is about several together.
            problems
                .push(ConfigProblem { place: "configuration".into(), message: error.to_string() });
            return Err(problems);
        }
    };
    let found = validate::problems(&config);
    if !found.is_empty() {
        let place = |path: &str| match origins.get(path) {
            Some(origin) => origin.to_string(),
            None => "configuration".to_owned(),
        };
        return Err(found
            .into_iter()
            .map(|(path, reason)| {
                // `auth.jwt.keys[2].secret` is placed at the third entry of `auth.jwt.keys`, or
                // where the list is set.
                let (setting, rest) = path.split_once('[').unwrap_or((&path, ""));
                let index = rest.split(']').next().and_then(|index| index.parse::<usize>().ok());
                let line = index.and_then(|index| lines.get(setting)?.get(index)).cloned();
                let place = line.unwrap_or_else(|| place(setting));
                ConfigProblem { place, message: format!("`{path}` {reason}") }
            })
            .collect());
    }
    Ok(Loaded { config, file, origins })
}

#[derive(Default)]
struct Loading {
    tree: Map<String, Value>,
    origins: BTreeMap<String, Origin>,
    /// Where the elements of lists that the file sets are.
    lines: BTreeMap<String, Vec<String>>,
    problems: Vec<ConfigProblem>,
}

impl Loading {
    fn read_file(&mut self, layers: &Layers) -> Option<PathBuf> {
        let named = layers.file.clone().or_else(|| {
            let of_env = layers.env.iter().find(|(name, _)| name == "TIDINGS_CONFIG");
            of_env.map(|(_, value)| PathBuf::from(value))
        });
        let file = match named {
            Some(file) => file,
            None => Some(layers.directory.join(FILE_DEFAULT)).filter(|file| file.exists())?,
        };
        let name = file.strip_prefix(".").unwrap_or(&file).display().to_string();
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) => {
                self.problem(name, format!("cannot be read: {error}"));
                return None;
            }
        };
        for written in document::read(&name, &text, &mut self.problems) {
            let origin = Origin::File(format!("{name}:{}", written.line));
            let lines: Vec<String> =
                written.lines.iter().map(|line| format!("{name}:{line}")).collect();
            self.set(written.setting, written.value, origin, &lines);
        }
        // As the file has them, not by kind.
        self.problems.sort_by_key(|problem| {
            let line = problem.place.rsplit(':').next().and_then(|line| line.parse::<usize>().ok());
            line.unwrap_or_default()
        });
        Some(file)
    }

    fn read_env(&mut self, env: &[(String, String)]) {
        let known = settings();
        for (name, value) in env {
            let Some(path) = standard(name) else { continue };
            // Elsewhere an empty variable is one that is not set (OpenTelemetry's rule).
            if let Some(setting) = known.iter().find(|setting| setting.path == path)
                && !value.is_empty()
            {
                self.set_text(setting, value, Origin::Env(name.clone(), None));
            }
        }
        for (name, value) in env.iter().filter(|(name, _)| standard(name).is_none()) {
            if ENV_OTHER.contains(&name.as_str()) || is_kubernetes_link(name) {
                continue;
            }
            let by_name = |name: &str| known.iter().find(|setting| setting.env() == name).copied();
            if let Some(setting) = by_name(name) {
                self.set_text(setting, value, Origin::Env(name.clone(), None));
            } else if let Some(setting) = name.strip_suffix("_FILE").and_then(by_name) {
                if env.iter().any(|(other, _)| *other == setting.env()) {
                    let message = format!("and `{}` are both set: keep one", setting.env());
                    self.problem(name.clone(), message);
                    continue;
                }
                match std::fs::read_to_string(value) {
                    // Editors and `echo` end a file with a line break that is no part of a secret.
                    Ok(text) => self.set_text(
                        setting,
                        text.trim_end_matches(['\r', '\n']),
                        Origin::Env(name.clone(), Some(value.clone())),
                    ),
                    Err(error) => {
                        self.problem(name.clone(), format!("{value} cannot be read: {error}"))
                    }
                }
            } else {
                let names: Vec<String> = known.iter().map(|setting| setting.env()).collect();
                let names = names.iter().map(String::as_str).chain(ENV_OTHER);
                self.problem(name.clone(), format!("unknown variable{}", suggestion(name, names)));
            }
        }
    }

    fn read_flags(&mut self, flags: &[(String, String)]) {
        for (path, text) in flags {
            if let Some(setting) = settings().into_iter().find(|setting| setting.path == *path) {
                let flag = setting.flag.unwrap_or_default().to_owned();
                self.set_text(setting, text, Origin::Flag(flag));
            }
        }
    }

    fn set_text(&mut self, setting: &Setting, text: &str, origin: Origin) {
        match setting.read_text(text) {
            Ok(value) => self.set(setting, value, origin, &[]),
            Err(reason) => self.problem(origin.to_string(), reason),
        }
    }

    /// Tries the value alone, so that a problem can be placed, and takes it over.
    fn set(&mut self, setting: &Setting, value: Value, origin: Origin, lines: &[String]) {
        let alone = |value: Value| {
            let mut tree = Map::new();
            put(&mut tree, &setting.path, value);
            serde_json::from_value::<Config>(Value::Object(tree)).map(drop)
        };
        let tried = alone(value.clone());
        let elements = value.as_array().filter(|_| tried.is_err() && setting.kind == Kind::Tables);
        let mut placed = false;
        for (index, element) in elements.into_iter().flatten().enumerate() {
            if let Err(error) = alone(vec![element.clone()].into()) {
                let place = lines.get(index).cloned().unwrap_or_else(|| origin.to_string());
                self.problem(place, format!("`{}[{index}]`: {}", setting.path, plain(&error)));
                placed = true;
            }
        }
        match tried {
            Ok(()) => {
                put(&mut self.tree, &setting.path, value);
                self.origins.insert(setting.path.clone(), origin);
                self.lines.insert(setting.path.clone(), lines.to_vec());
            }
            Err(error) if !placed => {
                self.problem(origin.to_string(), format!("`{}`: {}", setting.path, plain(&error)));
            }
            Err(_) => {}
        }
    }

    fn problem(&mut self, place: String, message: String) {
        self.problems.push(ConfigProblem { place, message });
    }
}

/// Sets the value at a path, making the objects on the way.
fn put(tree: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        Some((section, rest)) => {
            let section = tree.entry(section).or_insert_with(|| Value::Object(Map::new()));
            if let Some(section) = section.as_object_mut() {
                put(section, rest, value);
            }
        }
        None => {
            tree.insert(path.to_owned(), value);
        }
    }
}

/// The message without serde's place in a JSON text that nobody wrote.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// The setting that a variable of OpenTelemetry is.
fn standard(name: &str) -> Option<&'static str> {
    ENV_STANDARD.iter().find(|(variable, _)| *variable == name).map(|(_, path)| *path)
}

/// Kubernetes puts such variables into every pod of a namespace that has a service `tidings`; they
/// are nobody's mistake.
fn is_kubernetes_link(name: &str) -> bool {
    let rest = name.strip_prefix(ENV_PREFIX).unwrap_or_default();
    rest == "PORT"
        || rest == "SERVICE_HOST"
        || rest.starts_with("SERVICE_PORT")
        || (rest.starts_with("PORT_") && (rest.contains("_TCP") || rest.contains("_UDP")))
}

/// Reads a secret file as `…_FILE` variables do.
pub(crate) fn read_secret_file(file: &Path) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(file)?.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn layers(
        toml: &str,
        env: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> (tempfile::TempDir, Layers) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tidings.toml"), toml).unwrap();
        let own = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        let layers = Layers {
            file: None,
            directory: directory.path().to_owned(),
            env: own(env),
            flags: own(flags),
        };
        (directory, layers)
    }

    /// Problems of these layers, with the directory's name cut from their places.
    fn problems(toml: &str, env: &[(&str, &str)]) -> Vec<String> {
        let (directory, layers) = layers(toml, env, &[]);
        let cut = format!("{}/", directory.path().display());
        let problems = load(&layers).map(drop).unwrap_err();
        problems.iter().map(|problem| problem.to_string().replace(&cut, "")).collect()
    }

    #[test]
    fn the_variables_of_opentelemetry_count_below_the_hubs_own() {
        let env = [
            ("TIDINGS_OTLP_SERVICE_NAME", "ours"),
            ("OTEL_SERVICE_NAME", "theirs"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", ""),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let (_directory, layers) = layers("otlp.sample_ratio = 1", &env, &[]);
        let loaded = load(&layers).unwrap();
        let otlp = &loaded.config.otlp;
        assert_eq!((&*otlp.service_name, otlp.sample_ratio), ("ours", 0.25));
        assert_eq!(otlp.endpoint.as_deref(), Some("http://127.0.0.1:4318"));
        assert!(otlp.headers.is_none());
        let origin = &loaded.origins["otlp.endpoint"];
        assert_eq!(origin.to_string(), "OTEL_EXPORTER_OTLP_ENDPOINT");
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let toml = "heartbeat = \"5s\"\n[limits]\nevent_bytes = \"1KiB\"\npublish_events = 7\n";
        let env = [("TIDINGS_LIMITS_EVENT_BYTES", "2KiB"), ("TIDINGS_RETRY", "1s")];
        let (_directory, layers) = layers(toml, &env, &[("retry", "3s")]);
        let Loaded { config, origins, .. } = load(&layers).unwrap();
        assert_eq!(config.heartbeat.0, Duration::from_secs(5));
        assert_eq!(config.limits.event_bytes.0, 2048);
        assert_eq!(config.limits.publish_events, 7);
        assert_eq!(config.retry.0, Duration::from_secs(3));
        assert_eq!(config.drain_window.0, Duration::from_secs(20));
        assert_eq!(origins["retry"].to_string(), "--retry");
        assert_eq!(origins["limits.event_bytes"].to_string(), "TIDINGS_LIMITS_EVENT_BYTES");
        assert!(origins["heartbeat"].to_string().ends_with("tidings.toml:1"));
        assert!(!origins.contains_key("drain_window"));
    }

    #[test]
    fn every_problem_is_reported_with_its_line_and_the_nearest_known_name() {
        let toml = "listn = \"127.0.0.1:1\"\ncert = \"x\"\n\n[limits]\nevent_byte = 1\nring_frames = \"many\"\n\
                    [[access]]\ntopic = \"a\"\n[[access]]\ntopic = \"b\"\nraed = true\n";
        assert_eq!(
            problems(toml, &[("TIDINGS_LISTN", "x"), ("TIDINGS_HEARTBEAT", "10")]),
            [
                "tidings.toml:1: unknown key `listn`; did you mean `listen`?",
                "tidings.toml:2: unknown key `cert`; did you mean `tls.cert`?",
                "tidings.toml:5: unknown key `limits.event_byte`; did you mean `limits.event_bytes`?",
                "tidings.toml:6: `limits.ring_frames`: invalid type: string \"many\", expected u64",
                "tidings.toml:11: unknown key `raed` in `[[access]]`; did you mean `read`?",
                "TIDINGS_LISTN: unknown variable; did you mean `TIDINGS_LISTEN`?",
                "TIDINGS_HEARTBEAT: `heartbeat`: `10` is no duration: write it like 250ms, 10s, 1h30m or 7d",
            ]
        );
    }

    #[test]
    fn what_is_like_no_known_name_is_said_without_a_suggestion() {
        let toml =
            "colour = 1\n[limts]\nevent_bytes = 1\n[journal]\npassword = 1\n[[access]]\nfoo = 1\n";
        assert_eq!(
            problems(toml, &[("TIDINGS_FOO", "x"), ("TIDINGS_LIMITS_CPU", "1")]),
            [
                "tidings.toml:1: unknown key `colour`",
                "tidings.toml:2: unknown key `limts`; did you mean `limits`?",
                "tidings.toml:5: unknown key `journal.password`",
                "tidings.toml:7: unknown key `foo` in `[[access]]`",
                "TIDINGS_FOO: unknown variable",
                "TIDINGS_LIMITS_CPU: unknown variable",
            ]
        );
    }

    #[test]
    fn broken_toml_is_a_problem_with_its_line() {
        let found = problems("listen = \"127.0.0.1:1\"\nheartbeat = \n", &[]);
        assert!(found[0].starts_with("tidings.toml:2: "), "{found:?}");
        // What can be made out of the rest is nothing that was written.
        let found = problems("broken = [\nlisten = \"x\"\n", &[]);
        assert!(found.iter().all(|problem| !problem.contains("unknown key")), "{found:?}");
    }

    /// Broken on purpose, it failed: with the line of the list's first entry.
    #[test]
    fn a_problem_of_a_lists_entry_has_the_entrys_line() {
        let key = |id: &str| format!("[[auth.api_keys]]\nid = \"{id}\"\nsha256 = \"{:064}\"\n", 0);
        let keys = ["aaaaaaaa", "bbbbbbbb", "no id"].map(key).concat();
        let toml = format!("trusted_proxies = [\n  \"10.0.0.1\",\n  \"proxy\",\n]\n{keys}");
        let found = problems(&toml, &[]);
        assert!(found[0].starts_with("tidings.toml:3: `trusted_proxies[1]`"), "{found:?}");
        assert!(found[1].starts_with("tidings.toml:11: `auth.api_keys[2].id`"), "{found:?}");
        // A variable has no lines.
        let found = problems(&toml, &[("TIDINGS_TRUSTED_PROXIES", "10.0.0.1,proxy")]);
        assert!(found[0].starts_with("TIDINGS_TRUSTED_PROXIES: `trusted_proxies[1]`"), "{found:?}");
    }

    #[test]
    fn a_secret_may_come_from_a_file_but_not_twice() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let key = "[{ algorithm = \"HS256\", secret = \"0123456789abcdef0123456789abcdef\" }]\n";
        std::fs::write(file.path(), key).unwrap();
        let name = file.path().to_str().unwrap();
        let (_directory, layers) = layers("", &[("TIDINGS_AUTH_JWT_KEYS_FILE", name)], &[]);
        let loaded = load(&layers).unwrap();
        assert_eq!(loaded.config.auth.jwt.keys.len(), 1);
        let shown =
            format!("{:?}{}", loaded.config, serde_json::to_string(&loaded.config).unwrap());
        assert!(!shown.contains("0123456789abcdef"), "{shown}");
        let twice = [("TIDINGS_AUTH_JWT_KEYS", key), ("TIDINGS_AUTH_JWT_KEYS_FILE", name)];
        assert_eq!(
            problems("", &twice),
            ["TIDINGS_AUTH_JWT_KEYS_FILE: and `TIDINGS_AUTH_JWT_KEYS` are both set: keep one"]
        );
    }

    #[test]
    fn variables_that_kubernetes_adds_for_a_service_named_tidings_are_no_mistake() {
        let env = [
            ("TIDINGS_SERVICE_HOST", "10.0.0.1"),
            ("TIDINGS_SERVICE_PORT_HTTP", "80"),
            ("TIDINGS_PORT", "tcp://10.0.0.1:80"),
            ("TIDINGS_PORT_80_TCP_ADDR", "10.0.0.1"),
        ];
        assert!(load(&layers("", &env, &[]).1).is_ok());
    }

    #[test]
    fn lists_of_texts_may_be_written_with_commas_in_the_environment() {
        let env = [("TIDINGS_CORS_ORIGINS", "https://a.example, https://b.example")];
        let (_directory, layers) = layers("", &env, &[]);
        let origins = load(&layers).unwrap().config.cors.origins;
        assert_eq!(origins, ["https://a.example", "https://b.example"]);
    }
}
