//! `tidings admin`: the admin listener's resources on the command line.

use std::time::Duration;

use reqwest::{Method, Url};
use serde_json::Value;
use tidings::auth::Secret;

use super::{health::reachable, load_config, print};
use crate::{
    admin::TOKEN_FILE,
    cli::{AdminArgs, AdminCommand, LayerArgs},
    config::SettingFlags,
    exit::{Exit, Failure},
    remote::{DevFile, build_client, causes, describe, is_loopback, parse_url},
};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Runs the command.
pub(crate) async fn run(args: &AdminArgs) -> Result<Exit, Failure> {
    let (base, token) = place(args)?;
    let (method, path, query) = request(&args.command);
    let mut url = base
        .join(&format!("admin/v1/{path}"))
        .map_err(|error| Failure::new(Exit::Usage, format!("{base}: {error}")))?;
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    let client = build_client(args.ca.as_deref(), is_loopback(&url))?;
    let asked = client.request(method, url).bearer_auth(token.expose()).timeout(ANSWER_MAX);
    let gone = |message: String| Failure::new(Exit::Unavailable, format!("{base}: {message}"));
    let answer = asked.send().await.map_err(|error| gone(causes(&error.without_url())))?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(|error| gone(causes(&error.without_url())))?;
    let json: Option<Value> = serde_json::from_slice(&body).ok();
    match json {
        Some(json) if status.is_success() => {
            let text = serde_json::to_string_pretty(&json)
                .map_err(|error| Failure::new(Exit::Software, error.to_string()))?;
            print(&format!("{text}\n"))
        }
        json => {
            let exit = match status.as_u16() {
                400 => Exit::Usage,
                401 | 403 => Exit::Refused,
                404 => Exit::NotFound,
                _ => Exit::Unavailable,
            };
            Err(Failure::new(exit, describe(status, json.as_ref())))
        }
    }
}

/// Where the hub is, and the operators' token.
fn place(args: &AdminArgs) -> Result<(Url, Secret), Failure> {
    let dev = DevFile::read(&args.data_dir).filter(|_| args.config.is_none());
    let layers = LayerArgs { config: args.config.clone(), settings: SettingFlags::default() };
    let config = load_config(&layers)?.config;
    let url = match (&args.url, &dev) {
        (Some(url), _) => parse_url(url)?,
        (None, Some(dev)) => parse_url(&dev.admin_url)?,
        (None, None) => reachable(config.admin.listen)?,
    };
    if let Some(token) = config.admin.token {
        return Ok((url, token));
    }
    let data = if dev.is_some() { &args.data_dir } else { &config.data };
    let file = data.join(TOKEN_FILE);
    let text =
        std::fs::read_to_string(&file).map_err(|error| Failure::input(file.display(), &error))?;
    Ok((url, Secret::new(text.trim())))
}

type Query = Vec<(&'static str, String)>;

fn request(command: &AdminCommand) -> (Method, String, Query) {
    let given = |parts: Vec<(&'static str, Option<String>)>| {
        parts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    };
    let (method, path, query) = match command {
        AdminCommand::Nodes => (Method::GET, "nodes", Query::new()),
        AdminCommand::Config => (Method::GET, "config", Query::new()),
        AdminCommand::Keys => (Method::GET, "keys", Query::new()),
        AdminCommand::Revocations { tenant, limit } => {
            let limit = limit.map(|limit| limit.to_string());
            let query = given(vec![("tenant", tenant.clone()), ("limit", limit)]);
            (Method::GET, "revocations", query)
        }
        AdminCommand::Lift { tenant, sub, jti, team } => {
            let query = given(vec![
                ("tenant", Some(tenant.clone())),
                ("sub", sub.clone()),
                ("jti", jti.clone()),
                ("team", team.clone()),
            ]);
            (Method::DELETE, "revocations", query)
        }
        AdminCommand::Connections { tenant, subject, topic, limit } => {
            let query = given(vec![
                ("tenant", tenant.clone()),
                ("subject", subject.clone()),
                ("topic", topic.clone()),
                ("limit", limit.map(|limit| limit.to_string())),
            ]);
            (Method::GET, "connections", query)
        }
        AdminCommand::Kick { id: Some(id), .. } => {
            // An id is hex digits; anything else is no connection's.
            let id = id.replace(|character: char| !character.is_ascii_alphanumeric(), "_");
            return (Method::DELETE, format!("connections/{id}"), Query::new());
        }
        AdminCommand::Kick { id: None, subject, tenant } => {
            let query = given(vec![("tenant", tenant.clone()), ("subject", subject.clone())]);
            (Method::DELETE, "connections", query)
        }
        AdminCommand::Topics { tenant, topic, prefix, after, limit } => {
            let query = given(vec![
                ("tenant", tenant.clone()),
                ("topic", topic.clone()),
                ("prefix", prefix.clone()),
                ("after", after.clone()),
                ("limit", limit.map(|limit| limit.to_string())),
            ]);
            (Method::GET, "topics", query)
        }
        AdminCommand::Trim { tenant, topic, keep_events, keep_bytes, keep_age } => {
            let query = given(vec![
                ("tenant", Some(tenant.clone())),
                ("topic", Some(topic.clone())),
                ("keep_events", keep_events.map(|count| count.to_string())),
                ("keep_bytes", keep_bytes.clone()),
                ("keep_age", keep_age.as_ref().map(ToString::to_string)),
            ]);
            (Method::POST, "trim", query)
        }
    };
    (method, path.to_owned(), query)
}
