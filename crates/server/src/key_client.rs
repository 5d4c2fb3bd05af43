//! Reading the key sets of token issuers over HTTP.
//!
//! The rules: the address is the operator's and nothing of a token is ever part of it; what counts is
//! the address that is connected to, each time, so that a name which suddenly leads into the private
//! network leads nowhere; no redirects and no proxies, which would connect to something else.

use std::{
    error::Error,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::Arc,
};

use async_trait::async_trait;
use reqwest::{
    Client, StatusCode, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header,
};
use tidings::{
    auth::{IssuerSettings, KeySource, KeySourceError},
    model::limits::{KEY_SET_BYTES_MAX, KEY_SET_READ_MAX},
};

/// The source of an issuer's keys at its `jwks_url`.
///
/// # Errors
/// Why the address cannot be, for the configuration's problems.
pub(crate) fn connect(issuer: &IssuerSettings) -> Result<Arc<dyn KeySource>, String> {
    let text = issuer.jwks_url.as_deref().unwrap_or_default();
    let source = HttpSource::new(text, issuer.jwks_private_network, issuer.jwks_ca.as_deref());
    Ok(Arc::new(source?))
}

/// A key set at an address.
#[derive(Debug)]
struct HttpSource {
    client: Client,
    url: Url,
}

/// Which addresses may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Those of the public internet.
    Public,
    /// All.
    Any,
    /// Loopback and private networks: without encryption.
    Private,
}

impl Reach {
    fn allows(self, ip: IpAddr) -> bool {
        match self {
            Self::Public => is_public(ip),
            Self::Any => true,
            Self::Private => !is_public(ip),
        }
    }

    const fn refusal(self) -> &'static str {
        match self {
            Self::Public => {
                "leads to a private address; `jwks_private_network = true` would allow it"
            }
            Self::Any => "leads nowhere",
            Self::Private => "is `http` and leads to a public address; use `https`",
        }
    }
}

impl HttpSource {
    fn new(text: &str, private_network: bool, ca: Option<&Path>) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("is no address: {error}"))?;
        let reach = match (url.scheme(), private_network) {
            ("https", false) => Reach::Public,
            ("https", true) => Reach::Any,
            ("http", true) => Reach::Private,
            _ => return Err("must start with https://".to_owned()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a credential".to_owned());
        }
        // A name is looked at by the resolver; an address never gets there.
        let host = url.host_str().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        if literal.is_ok_and(|ip| !reach.allows(ip)) {
            return Err(reach.refusal().to_owned());
        }
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(url.scheme() == "https")
            .dns_resolver(Resolver { reach, look_up })
            // Each reading looks its name up and connects anew.
            .pool_max_idle_per_host(0)
            .timeout(KEY_SET_READ_MAX)
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")));
        if let Some(file) = ca {
            let wrong = |error: String| format!("has a `jwks_ca` that cannot be read: {error}");
            let pem = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem);
            builder =
                builder.tls_certs_merge(certificates.map_err(|error| wrong(error.to_string()))?);
        }
        let client = builder.build().map_err(|error| format!("has no client: {error}"))?;
        Ok(Self { client, url })
    }
}

#[async_trait]
impl KeySource for HttpSource {
    async fn read(&self) -> Result<Vec<u8>, KeySourceError> {
        let accepted = "application/jwk-set+json, application/json;q=0.9";
        let request = self.client.get(self.url.clone()).header(header::ACCEPT, accepted);
        let mut answer = request.send().await.map_err(failed)?;
        if answer.status() != StatusCode::OK {
            let hint =
                if answer.status().is_redirection() { "; redirects are not followed" } else { "" };
            return Err(KeySourceError(format!("answered {}{hint}", answer.status())));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > KEY_SET_BYTES_MAX {
                return Err(KeySourceError(format!("is larger than {KEY_SET_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

fn failed(error: reqwest::Error) -> KeySourceError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    KeySourceError(text)
}

type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Looks names up, and keeps the addresses that may be connected to. What it returns is what is
/// connected to: there is no second look-up that could find something else.
#[derive(Debug, Clone, Copy)]
struct Resolver {
    reach: Reach,
    look_up: fn(String) -> Found,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (reach, found) = (self.reach, (self.look_up)(name.as_str().to_owned()));
        Box::pin(async move {
            let mut addresses = found.await?;
            addresses.retain(|address| reach.allows(address.ip()));
            if addresses.is_empty() {
                return Err(reach.refusal().into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

fn look_up(name: String) -> Found {
    Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
}

/// Whether the address is one of the public internet (IANA special-purpose registries, RFC 6890).
/// An IPv6 address that stands for an IPv4 one is judged as that.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => match embedded_v4(ip) {
            Some(ip) => is_public_v4(ip),
            None => is_public_v6(ip),
        },
    }
}

const fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        // This network, shared addresses of carriers, protocol assignments, benchmarks.
        || a == 0
        || (a == 100 && b & 0b1100_0000 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0b1111_1110 == 18)
        // Multicast, reserved, broadcast.
        || a >= 224)
}

const fn is_public_v6(ip: Ipv6Addr) -> bool {
    // Only 2000::/3 is given out; of it, 2001::/23 is for protocols and 2001:db8::/32 and 3fff::/20
    // for documentation.
    let [a, b, ..] = ip.segments();
    a & 0xe000 == 0x2000
        && !(a == 0x2001 && b & 0xfe00 == 0)
        && !(a == 0x2001 && b == 0x0db8)
        && !(a == 0x3fff && b & 0xf000 == 0)
}

/// The IPv4 address inside a mapped, compatible, 6to4 or NAT64 address.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0 | 0xffff) | (0x64, 0xff9b, 0, 0, 0, 0) => Some(of(g, h)),
        (0x2002, high, low, ..) => Some(of(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{Router, http::StatusCode, response::IntoResponse as _, routing::get};
    use tidings::{
        http::{ServeSettings, serve},
        metrics::LimitsHit,
    };
    use tokio_util::sync::{CancellationToken, DropGuard};

    use super::*;

    #[test]
    fn the_public_internet_is_told_from_everything_else() {
        for public in [
            "1.1.1.1",
            "93.184.215.14",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "198.17.0.1",
            "2606:4700::1111",
            "2a00:1450:4001:82a::200e",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for other in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!is_public(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn an_address_that_may_not_be_is_a_problem_of_the_configuration() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let refusal = |text: &str, private: bool| HttpSource::new(text, private, None).err();
        for (text, private, reason) in [
            ("jwks.json", false, "is no address"),
            ("http://id.example/jwks", false, "must start with https://"),
            ("file:///etc/passwd", true, "must start with https://"),
            ("https://user:secret@id.example/jwks", false, "must not hold a credential"),
            ("https://127.0.0.1/jwks", false, "private address"),
            ("https://2130706433/jwks", false, "private address"),
            ("https://0x7f.1/jwks", false, "private address"),
            ("https://[::1]/jwks", false, "private address"),
            ("https://[::ffff:a9fe:a9fe]/jwks", false, "private address"),
            ("https://169.254.169.254/latest", false, "private address"),
            ("http://1.1.1.1/jwks", true, "use `https`"),
        ] {
            let refused = refusal(text, private).unwrap_or_else(|| panic!("{text}"));
            assert!(refused.contains(reason), "{text}: {refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
        for (text, private) in [
            ("https://id.example/jwks", false),
            ("https://id.example:8443/a?b=c", true),
            ("https://10.0.0.1/jwks", true),
            ("http://127.0.0.1:1/jwks", true),
            ("http://id.internal/jwks", true),
        ] {
            assert_eq!(refusal(text, private), None, "{text}");
        }
    }

    /// What a server answers at its paths, and how often it was asked.
    struct World {
        port: u16,
        asked: Arc<AtomicUsize>,
        _ends: DropGuard,
    }

    impl World {
        async fn begin() -> Self {
            drop(rustls::crypto::ring::default_provider().install_default());
            let asked = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&asked);
            let to_keys = [(header::LOCATION, "/keys")];
            let router = Router::new()
                .route("/keys", get(|| async { "{\"keys\":[]}" }))
                .route("/moved", get(move || async move { (StatusCode::FOUND, to_keys.clone()) }))
                .route("/large", get(|| async { "x".repeat(KEY_SET_BYTES_MAX + 1) }))
                .route("/fits", get(|| async { "x".repeat(KEY_SET_BYTES_MAX) }))
                .layer(axum::middleware::from_fn(
                    move |request: axum::extract::Request, next: axum::middleware::Next| {
                        count.fetch_add(1, Ordering::SeqCst);
                        async move { next.run(request).await.into_response() }
                    },
                ));
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let ends = CancellationToken::new();
            let (settings, limits_hit) = (ServeSettings::default(), LimitsHit::default());
            tokio::spawn(serve(listener, router, settings, None, limits_hit, ends.clone()));
            Self { port, asked, _ends: ends.drop_guard() }
        }

        async fn read(&self, host: &str, path: &str) -> Result<usize, String> {
            let text = format!("http://{host}:{}{path}", self.port);
            let source = HttpSource::new(&text, true, None).unwrap();
            source.read().await.map(|bytes| bytes.len()).map_err(|error| error.0)
        }
    }

    #[tokio::test]
    async fn a_set_is_read_from_a_private_network_that_was_allowed() {
        let world = World::begin().await;
        assert_eq!(world.read("127.0.0.1", "/keys").await, Ok(11));
        assert_eq!(world.read("localhost", "/keys").await, Ok(11));
    }

    #[tokio::test]
    async fn redirects_and_answers_that_are_too_large_are_refused() {
        let world = World::begin().await;
        let refused = world.read("127.0.0.1", "/moved").await.unwrap_err();
        assert_eq!(refused, "answered 302 Found; redirects are not followed");
        assert_eq!(world.asked.load(Ordering::SeqCst), 1, "it did not go there");
        assert_eq!(
            world.read("127.0.0.1", "/nothing").await.unwrap_err(),
            "answered 404 Not Found"
        );
        assert_eq!(world.read("127.0.0.1", "/fits").await, Ok(KEY_SET_BYTES_MAX));
        let refused = world.read("127.0.0.1", "/large").await.unwrap_err();
        assert_eq!(refused, "is larger than 262144 bytes");
    }

    /// Broken on purpose: a resolver that lets all addresses through makes it fail.
    #[tokio::test]
    async fn a_public_name_that_leads_to_a_private_address_is_not_connected_to() {
        let world = World::begin().await;
        let text = format!("https://localhost:{}/keys", world.port);
        let source = HttpSource::new(&text, false, None).unwrap();
        let refused = source.read().await.unwrap_err();
        assert!(refused.0.contains("leads to a private address"), "{refused}");
        assert_eq!(world.asked.load(Ordering::SeqCst), 0);
    }

    /// A name that is public when it is first looked up and private later, and one that is both.
    #[tokio::test]
    async fn a_name_that_changes_its_address_is_judged_each_time() {
        static LOOK_UPS: AtomicUsize = AtomicUsize::new(0);
        fn rebinding(_: String) -> Found {
            let addresses: &[[u8; 4]] = match LOOK_UPS.fetch_add(1, Ordering::SeqCst) {
                0 => &[[93, 184, 215, 14]],
                1 => &[[127, 0, 0, 1], [93, 184, 215, 14], [169, 254, 169, 254]],
                _ => &[[127, 0, 0, 1]],
            };
            let found = addresses.iter().map(|ip| SocketAddr::from((*ip, 0))).collect();
            Box::pin(async move { Ok(found) })
        }
        let resolver = Resolver { reach: Reach::Public, look_up: rebinding };
        let look = async || {
            let found = resolver.resolve("id.example".parse().unwrap()).await;
            found.map(|found| found.map(|address| address.ip().to_string()).collect::<Vec<_>>())
        };
        assert_eq!(look().await.unwrap(), ["93.184.215.14"]);
        assert_eq!(look().await.unwrap(), ["93.184.215.14"]);
        assert!(look().await.is_err());
    }
}
