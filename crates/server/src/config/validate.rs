//! What values mean together, and what `serve` asks of them.
//!
//! The rule: a hub that starts is one whose operator said how it is reached and by whom.

use std::{fmt, time::Duration};

use tidings::{
    auth::{AuthSettings, Authenticator, SettingsError},
    model::limits,
};
use tracing_subscriber::EnvFilter;

use super::{Config, EVENT_BYTES_CEILING, Period};
use crate::key_client::connect;

/// Why `serve` does not start with a configuration that is otherwise without problems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServeProblem(String);

impl fmt::Display for ServeProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Paths of settings that cannot be, and why.
pub(super) fn problems(config: &Config) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut wrong = |path: &str, reason: String| found.push((path.to_owned(), reason));
    let second = Duration::from_secs(1);
    for (path, value, least, most) in [
        ("heartbeat", config.heartbeat.0, second, 300 * second),
        ("retry", config.retry.0, second / 10, 300 * second),
        ("drain_window", config.drain_window.0, Duration::ZERO, 600 * second),
        (
            "journal.dedup_window",
            config.journal.dedup_window.0,
            Duration::ZERO,
            30 * 86_400 * second,
        ),
        (
            "auth.revocation_life",
            config.auth.revocation_life.0,
            60 * second,
            limits::REVOCATION_LIFE_MAX,
        ),
        ("auth.key_sets.refresh", config.auth.key_sets.refresh.0, 10 * second, 86_400 * second),
        (
            "auth.key_sets.stale_max",
            config.auth.key_sets.stale_max.0,
            config.auth.key_sets.refresh.0,
            30 * 86_400 * second,
        ),
        ("http.handshake", config.http.handshake.0, second, 300 * second),
        ("http.header_read", config.http.header_read.0, second, 300 * second),
        ("http.write_stall", config.http.write_stall.0, second, 300 * second),
        ("http.connection_age", config.http.connection_age.0, second, 7 * 86_400 * second),
    ] {
        if value < least || value > most {
            wrong(path, format!("must be from {} to {}", Period(least), Period(most)));
        }
    }
    let topics_max = limits::CONNECTION_TOPICS_MAX as u64;
    for (path, value, most) in [
        ("limits.event_bytes", config.limits.event_bytes.0, EVENT_BYTES_CEILING),
        ("limits.publish_bytes", config.limits.publish_bytes.0, 64 << 20),
        ("limits.publish_events", config.limits.publish_events, 10_000),
        ("limits.connection_topics", config.limits.connection_topics, topics_max),
        ("limits.topic_states", config.limits.topic_states, 1_000_000),
        ("limits.connections", config.limits.connections, 1 << 20),
        ("limits.address_connections", config.limits.address_connections, 1 << 20),
        ("limits.ring_frames", config.limits.ring_frames, 1 << 16),
        ("limits.ring_bytes", config.limits.ring_bytes.0, 1 << 30),
    ] {
        if value == 0 || value > most {
            wrong(path, format!("must be from 1 to {most}"));
        }
    }
    if config.limits.publish_bytes < config.limits.event_bytes {
        wrong("limits.publish_bytes", "must not be below `limits.event_bytes`".into());
    }
    match (&config.tls.cert, &config.tls.key) {
        (Some(_), None) => wrong("tls.cert", "needs `tls.key` beside it".into()),
        (None, Some(_)) => wrong("tls.key", "needs `tls.cert` beside it".into()),
        _ => {}
    }
    for (path, file) in [("tls.cert", &config.tls.cert), ("tls.key", &config.tls.key)] {
        if let Some(Err(error)) = file.as_ref().map(std::fs::metadata) {
            wrong(path, format!("cannot be read: {error}"));
        }
    }
    for (index, origin) in config.cors.origins.iter().enumerate() {
        if !is_origin(origin) {
            let reason = "must be an origin as browsers send it, like https://app.example.com";
            wrong(&format!("cors.origins[{index}]"), reason.into());
        }
    }
    if let Err(problem) = config.http_settings().check()
        && let Some(pointer) = problem.pointer.filter(|pointer| pointer.starts_with("auth."))
    {
        wrong(&pointer, problem.detail);
    }
    if config.auth.cookie.name.is_none() && !config.auth.cookie.origins.is_empty() {
        wrong("auth.cookie.origins", "needs `auth.cookie.name` beside it".into());
    }
    if let Err(error) = EnvFilter::builder().parse(&config.log.level) {
        wrong("log.level", format!("is no level or list of levels: {error}"));
    }
    for (path, reason) in auth_problems(config.auth_settings()) {
        wrong(&format!("auth.{path}"), reason);
    }
    found
}

/// Every key that cannot be. One that was found is left out, and the rest is tried again.
fn auth_problems(mut settings: AuthSettings) -> Vec<(String, String)> {
    let mut found = Vec::new();
    // Where those that are left stand in the configuration.
    let mut tokens: Vec<usize> = (0..settings.jwt.keys.len()).collect();
    let mut issuers: Vec<usize> = (0..settings.jwt.issuers.len()).collect();
    let mut api_keys: Vec<usize> = (0..settings.api_keys.len()).collect();
    while let Err(SettingsError { path, reason }) =
        Authenticator::with_key_sources(&settings, &connect)
    {
        let (place, is_last) = match element(&path) {
            Some(("jwt.keys", index, field)) if index < tokens.len() => {
                settings.jwt.keys.remove(index);
                (format!("jwt.keys[{}]{field}", tokens.remove(index)), false)
            }
            Some(("jwt.issuers", index, field)) if index < issuers.len() => {
                settings.jwt.issuers.remove(index);
                (format!("jwt.issuers[{}]{field}", issuers.remove(index)), false)
            }
            Some(("api_keys", index, field)) if index < api_keys.len() => {
                settings.api_keys.remove(index);
                (format!("api_keys[{}]{field}", api_keys.remove(index)), false)
            }
            _ if path == "default_tenant" && found.is_empty() => {
                settings.default_tenant = AuthSettings::default().default_tenant;
                (path, false)
            }
            _ => (path, true),
        };
        found.push((place, reason));
        if is_last {
            break;
        }
    }
    found
}

/// `jwt.keys[3].secret` as its list, index and rest.
fn element(path: &str) -> Option<(&str, usize, &str)> {
    let (list, rest) = path.split_once('[')?;
    let (index, field) = rest.split_once(']')?;
    Some((list, index.parse().ok()?, field))
}

/// What `serve` refuses to start with. Each says what to do.
pub(crate) fn serving_problems(config: &Config) -> Vec<ServeProblem> {
    let mut found = Vec::new();
    let jwt = &config.auth.jwt;
    if jwt.keys.is_empty() && jwt.issuers.is_empty() && config.auth.api_keys.is_empty() {
        found.push(ServeProblem(
            "nobody could use this hub: there are no keys. Add an `[[auth.jwt.keys]]` entry to \
             verify your application's tokens, an `[[auth.jwt.issuers]]` entry for those of an \
             identity provider, and an `[[auth.api_keys]]` entry for publishers \
             (`tidings key create` prints one). To try things out, run `tidings dev`"
                .into(),
        ));
    }
    let tls = config.tls.cert.is_some();
    let meant = tls || config.behind_proxy || config.tls.allow_cleartext;
    if !config.listen.ip().is_loopback() && !meant {
        found.push(ServeProblem(format!(
            "tokens would cross the network in the clear: `listen` is {}, which is not loopback. \
             Set `tls.cert` and `tls.key`, or `behind_proxy = true` if a proxy in front \
             terminates TLS, or `tls.allow_cleartext = true` on a network that is private",
            config.listen
        )));
    }
    found
}

/// Scheme, host and perhaps a port, nothing behind them (RFC 6454 §6.2).
fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|host| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:[]".contains(c);
        !host.is_empty() && host.chars().all(allowed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> Config {
        toml::from_str(toml).unwrap()
    }

    fn paths(toml: &str) -> Vec<String> {
        problems(&config(toml)).into_iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn defaults_have_no_problems_but_serve_nobody() {
        assert_eq!(problems(&Config::default()), []);
        assert_eq!(serving_problems(&Config::default()).len(), 1);
    }

    #[test]
    fn values_that_cannot_be_are_named_by_their_path() {
        assert_eq!(paths("heartbeat = \"0s\""), ["heartbeat"]);
        assert_eq!(paths("limits.connection_topics = 33"), ["limits.connection_topics"]);
        assert_eq!(paths("tls.cert = \"/\""), ["tls.cert"]);
        assert_eq!(paths("cors.origins = [\"*\"]"), ["cors.origins[0]"]);
        assert_eq!(paths("cors.origins = [\"https://a.example/\"]"), ["cors.origins[0]"]);
        assert_eq!(paths("auth.cookie.name = \"t\""), ["auth.cookie.origins"]);
        assert_eq!(
            paths("auth.cookie = { name = \"t\", origins = [\"*\"] }"),
            ["auth.cookie.origins"]
        );
        assert_eq!(paths("auth.cookie.origins = [\"https://a.example\"]"), ["auth.cookie.origins"]);
        assert_eq!(
            paths("auth.cookie = { name = \"a=b\", origins = [\"https://a.example\"] }"),
            ["auth.cookie.name"]
        );
        assert_eq!(paths("log.level = \"a=b=c\""), ["log.level"]);
        assert_eq!(
            paths("[[auth.jwt.keys]]\nalgorithm = \"HS256\"\nsecret = \"short\""),
            ["auth.jwt.keys[0].secret"]
        );
    }

    #[test]
    fn every_key_that_cannot_be_is_named_by_its_place_in_the_file() {
        let id = |id: &str| format!("[[auth.api_keys]]\nid = \"{id}\"\nsha256 = \"{:064}\"\n", 0);
        let toml = format!(
            "[auth]\ndefault_tenant = \"a/b\"\n\
             [[auth.jwt.keys]]\nalgorithm = \"HS256\"\nsecret = \"short\"\n\
             [[auth.jwt.keys]]\nalgorithm = \"HS256\"\nsecret = \"{:032}\"\n\
             [[auth.jwt.keys]]\nalgorithm = \"RS256\"\n\
             {}[[auth.api_keys]]\nid = \"no id\"\nsha256 = \"x\"\n{}{}",
            7,
            id("aaaaaaaa"),
            id("bbbbbbbb"),
            id("aaaaaaaa"),
        );
        let found = paths(&toml);
        assert_eq!(found.len(), 5, "{found:?}");
        for (found, place) in found.iter().zip([
            "auth.default_tenant",
            "auth.jwt.keys[0].",
            "auth.jwt.keys[2].",
            "auth.api_keys[1].",
            "auth.api_keys[3].id",
        ]) {
            assert!(found.starts_with(place), "{found} {place}");
        }
    }

    #[test]
    fn beyond_loopback_the_operator_says_where_tls_ends() {
        let about = |toml: &str| {
            let found = serving_problems(&config(toml));
            found.iter().any(|problem| problem.0.contains("in the clear"))
        };
        assert!(about("listen = \"0.0.0.0:8080\""));
        assert!(about("listen = \"[::]:8080\""));
        assert!(!about("listen = \"0.0.0.0:8080\"\nbehind_proxy = true"));
        assert!(!about("listen = \"0.0.0.0:8080\"\ntls.allow_cleartext = true"));
        assert!(!about("listen = \"[::1]:8080\""));
    }
}
