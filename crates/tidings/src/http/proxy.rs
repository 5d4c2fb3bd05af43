//! Whose address a request comes from, also through reverse proxies.
//!
//! The rule: `X-Forwarded-For` is believed as far as trusted proxies wrote it. Each proxy appends
//! whom it saw, so it is read from its right end: the first address that is no trusted proxy is the
//! client, and whatever stands further left is what that client said of itself.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, request::Parts},
};
use ipnet::IpNet;

use super::{router::App, serve::Peer};
use crate::quota::counted_as;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address behind trusted proxies, as it is counted; `None` if the client is connected directly,
/// where its address has been counted when it connected, or is on the proxy's own machine.
pub(super) struct BehindProxy(pub(super) Option<IpAddr>);

impl FromRequestParts<Arc<App>> for BehindProxy {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.address.ip());
        let peer = peer.filter(|peer| is_trusted(&app.trusted_proxies, *peer));
        Ok(Self(peer.and_then(|peer| counted(&app.trusted_proxies, peer, &parts.headers))))
    }
}

/// Whether the address is one of these networks'.
pub(super) fn is_trusted(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// What a client behind a trusted peer is counted as. Those whom a proxy does not tell apart are
/// counted together, as that proxy.
fn counted(trusted: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
    match client(trusted, peer, headers) {
        Client::At(address) => counted_as(address),
        Client::Unnamed(proxy) => Some(counted_as(proxy).unwrap_or(proxy)),
    }
}

/// Who is behind a trusted peer.
#[derive(Debug, PartialEq, Eq)]
enum Client {
    /// Whoever has this address.
    At(IpAddr),
    /// One of those whom this proxy does not name.
    Unnamed(IpAddr),
}

/// The right-most address that is not trusted.
fn client(trusted: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> Client {
    let lines: Vec<&str> =
        headers.get_all(FORWARDED_FOR).iter().map(|value| value.to_str().unwrap_or("?")).collect();
    let mut client = peer;
    for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        // What is no address was not written by a proxy that knows its trade: nothing left of it
        // is believed either.
        let Some(address) = address(entry.trim()) else { return Client::Unnamed(client) };
        client = address;
        if !is_trusted(trusted, client) {
            break;
        }
    }
    Client::At(client)
}

/// An address, perhaps with a port, as proxies write it.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// Who is taken for the client by a hub that trusts these networks, at the first of them.
    fn found(lines: &[&str]) -> String {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"].map(|text| text.parse().unwrap());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        match client(&trusted, "10.0.0.1".parse().unwrap(), &headers) {
            Client::At(address) => address.to_string(),
            Client::Unnamed(proxy) => format!("behind {proxy}"),
        }
    }

    #[test]
    fn the_right_most_address_that_is_no_trusted_proxy_is_the_client() {
        for (lines, client) in [
            (&["192.0.2.7"][..], "192.0.2.7"),
            // What the client wrote itself stands left of what the proxy saw.
            (&["127.0.0.1, 192.0.2.7"], "192.0.2.7"),
            (&["198.51.100.1, 192.0.2.7, 10.0.0.2"], "192.0.2.7"),
            (&["198.51.100.1", "192.0.2.7", "10.0.0.2, 10.0.0.3"], "192.0.2.7"),
            (&["198.51.100.1, [2001:db8::5]:443 , 10.9.9.9"], "198.51.100.1"),
            (&["192.0.2.7:51000"], "192.0.2.7"),
            (&["::ffff:192.0.2.7"], "192.0.2.7"),
            (&["[2001:4860::1]"], "2001:4860::1"),
        ] {
            assert_eq!(found(lines), client, "{lines:?}");
        }
    }

    #[test]
    fn what_is_no_address_ends_the_belief() {
        for (lines, client) in [
            (&[][..], "10.0.0.1"),
            (&[""], "behind 10.0.0.1"),
            (&["192.0.2.7, unknown"], "behind 10.0.0.1"),
            (&["192.0.2.7, _hidden, 10.0.0.2"], "behind 10.0.0.2"),
            (&["192.0.2.7, \u{1}x"], "behind 10.0.0.1"),
            (&["192.0.2.7", "é"], "behind 10.0.0.1"),
            (&["192.0.2.7,,10.0.0.2"], "behind 10.0.0.2"),
            // Proxies all the way: the farthest of them.
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ] {
            let Ok(found) = std::panic::catch_unwind(|| found(lines)) else { continue };
            assert_eq!(found, client, "{lines:?}");
        }
    }
}
