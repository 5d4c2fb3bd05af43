//! TLS on the same port.

use std::{path::Path, sync::Arc, time::Duration};

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use reqwest::{Certificate, Client, Version};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tidings::http::{ServeSettings, Tls};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::support::{Options, Reader, Server, raw};

fn generated() -> CertifiedKey<KeyPair> {
    generate_simple_self_signed(["localhost".to_owned()]).unwrap()
}

fn write(directory: &Path, pair: &CertifiedKey<KeyPair>) {
    std::fs::write(directory.join("cert.pem"), pair.cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), pair.signing_key.serialize_pem()).unwrap();
}

fn open(directory: &Path) -> Tls {
    Tls::open(&directory.join("cert.pem"), &directory.join("key.pem")).unwrap()
}

async fn server(tls: &Arc<Tls>, serve: ServeSettings) -> Server {
    Server::with(Options { tls: Some(Arc::clone(tls)), serve, ..Options::default() }).await
}

/// Shakes hands, offering these protocols; the protocol chosen and the certificate shown.
async fn shake_hands(
    server: &Server,
    trusted: &[&CertifiedKey<KeyPair>],
    offered: &[&str],
) -> (Option<String>, CertificateDer<'static>) {
    let mut roots = RootCertStore::empty();
    for pair in trusted {
        roots.add(pair.cert.der().clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (_, session) = stream.get_ref();
    let chosen = session.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap());
    (chosen, session.peer_certificates().unwrap()[0].clone().into_owned())
}

#[tokio::test]
async fn http_1_and_2_are_chosen_by_alpn_and_cleartext_serves_loopback() {
    let directory = tempfile::tempdir().unwrap();
    let pair = generated();
    write(directory.path(), &pair);
    let server = server(&Arc::new(open(directory.path())), ServeSettings::default()).await;
    for (offered, want) in
        [(vec!["h2", "http/1.1"], Some("h2")), (vec!["http/1.1"], Some("http/1.1")), (vec![], None)]
    {
        let (chosen, shown) = shake_hands(&server, &[&pair], &offered).await;
        assert_eq!(chosen.as_deref(), want);
        assert_eq!(&shown, pair.cert.der());
    }
    super::support::client();
    let root = Certificate::from_der(pair.cert.der()).unwrap();
    for (builder, version) in
        [(Client::builder(), Version::HTTP_2), (Client::builder().http1_only(), Version::HTTP_11)]
    {
        let builder = builder.no_proxy().tls_certs_only([root.clone()]);
        let client = builder.resolve("localhost", server.address).build().unwrap();
        let url = format!("https://localhost:{}/v1/events?topic=t", server.address.port());
        for number in 0..2 {
            let publish = client.post(url.split('?').next().unwrap()).bearer_auth(&server.key);
            let publish = publish.header("content-type", "application/json");
            let event = format!("{{\"topic\":\"other\",\"type\":\"x\",\"data\":{number}}}");
            let answer = publish.body(event).send().await.unwrap();
            assert_eq!((answer.version(), answer.status().as_u16()), (version, 200));
        }
        let answer = client.get(url).bearer_auth(&server.key).send().await.unwrap();
        assert_eq!(answer.version(), version);
        let mut reader = Reader::of(answer);
        reader.control("tidings.caught_up").await;
        // Published in the clear, from loopback, on the same port.
        server.publish_numbers("t", 1..2).await;
        assert_eq!(reader.data(1).await, [1]);
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_and_a_broken_one_to_none() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = [generated(), generated()];
    write(directory.path(), &first);
    let tls = Arc::new(open(directory.path()));
    let server = server(&tls, ServeSettings::default()).await;
    let trusted = [&first, &second];
    let shown = async || shake_hands(&server, &trusted, &[]).await.1;
    assert_eq!(&shown().await, first.cert.der());
    // Half of a renewal: the new certificate is there and its key is not yet.
    std::fs::write(directory.path().join("cert.pem"), second.cert.pem()).unwrap();
    let error = tls.reload().unwrap_err();
    assert!(error.file.ends_with("cert.pem"), "{error}");
    assert_eq!(&shown().await, first.cert.der());
    write(directory.path(), &second);
    tls.reload().unwrap();
    assert_eq!(&shown().await, second.cert.der());
    std::fs::remove_file(directory.path().join("key.pem")).unwrap();
    assert!(tls.reload().unwrap_err().file.ends_with("key.pem"));
    assert_eq!(&shown().await, second.cert.der());
}

#[tokio::test]
async fn an_error_names_the_file_and_repeats_nothing_of_a_key() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &generated());
    std::fs::write(directory.path().join("key.pem"), "-----BEGIN SECRET\nabc").unwrap();
    let paths = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
    let error = Tls::open(&paths[0], &paths[1]).unwrap_err();
    assert!(error.file.ends_with("key.pem"), "{error}");
    assert!(!error.to_string().contains("SECRET"), "{error}");
}

#[tokio::test]
async fn a_handshake_that_stops_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &generated());
    let handshake = Duration::from_millis(150);
    let settings = ServeSettings { handshake, ..ServeSettings::default() };
    let server = server(&Arc::new(open(directory.path())), settings).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(raw(&mut stream, &[0x16, 3, 1, 2, 0, 1]).await, "");
}

#[tokio::test]
async fn a_handshake_on_a_port_without_tls_is_closed() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    let answer = timeout(Duration::from_secs(5), raw(&mut stream, b"")).await.unwrap();
    assert_eq!(answer, "");
}
