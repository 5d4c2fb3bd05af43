//! `tidings health`: whether a hub is well, as an exit code.

use std::net::SocketAddr;

use reqwest::Url;

use super::load_config;
use crate::{
    cli::{HealthArgs, LayerArgs},
    config::SettingFlags,
    exit::{Exit, Failure},
    remote::{DevFile, build_client, causes, is_loopback, parse_url, variable},
};

/// Runs the command. Prints nothing if the hub is well.
pub(crate) async fn run(args: &HealthArgs) -> Result<Exit, Failure> {
    let url = address(args)?;
    let path = if args.live { "health/live" } else { "health/ready" };
    let unhealthy = |message: String| Failure::new(Exit::Unhealthy, format!("{url}: {message}"));
    let place =
        url.join(path).map_err(|error| Failure::new(Exit::Usage, format!("{url}: {error}")))?;
    let client = build_client(args.place.ca.as_deref(), is_loopback(&url))?;
    let answer = client.get(place).timeout(args.timeout.0).send().await;
    let answer = answer.map_err(|error| unhealthy(causes(&error.without_url())))?;
    if answer.status().is_success() {
        return Ok(Exit::Ok);
    }
    let status = answer.status();
    let body = answer.bytes().await.unwrap_or_default();
    let problem = serde_json::from_slice(&body).ok();
    Err(unhealthy(crate::remote::describe(status, problem.as_ref())))
}

fn address(args: &HealthArgs) -> Result<Url, Failure> {
    if let Some(url) = args.place.url.clone().or_else(|| variable("TIDINGS_URL")) {
        return parse_url(&url);
    }
    if let Some(dev) = DevFile::read(&args.place.data_dir) {
        return parse_url(&dev.admin_url);
    }
    let layers = LayerArgs { config: None, settings: SettingFlags::default() };
    reachable(load_config(&layers)?.config.admin.listen)
}

/// Where a hub that listens there is reached from its own machine.
pub(super) fn reachable(mut listen: SocketAddr) -> Result<Url, Failure> {
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv6() {
            std::net::Ipv6Addr::LOCALHOST.into()
        } else {
            std::net::Ipv4Addr::LOCALHOST.into()
        });
    }
    parse_url(&format!("http://{listen}"))
}
