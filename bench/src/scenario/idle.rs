//! Readers of quiet topics: what a connection holds, and what its heartbeats cost.

use std::{io::BufReader, sync::Arc, time::Duration};

use memchr::memmem;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::task::{JoinHandle, spawn_local};
use tokio_rustls::TlsConnector;

use super::{Load, Watch, create};
use crate::{
    client::{CAUGHT_UP, From, Reader, Tally, Target},
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

/// What the connections are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// HTTP/1.1 in cleartext.
    Plain,
    /// HTTP/2 in cleartext with prior knowledge, one stream a connection.
    Http2,
    /// HTTP/1.1 over TLS.
    Tls,
}

/// Connections before the first measurement: what is allocated once is not theirs.
const FIRST: usize = 50;
/// What the heartbeat's CPU is told for, whatever the load: so many connections, the hub's default.
const TOLD_FOR: f64 = 10_000.0;
const TOLD_EVERY: Duration = Duration::from_secs(15);

pub(super) async fn measure(kind: Kind, load: Load, transport: Transport) -> Vec<Figure> {
    let heartbeat = load.heartbeat;
    let setup = Setup {
        has_tls: transport == Transport::Tls,
        settings: vec![("TIDINGS_HEARTBEAT", format!("{}s", heartbeat.as_secs()))],
        ..Setup::default()
    };
    let server = Server::start(kind, setup);
    let target = &server.target;
    create(target, load.n + FIRST).await;
    let clients = Clients { target: target.clone(), transport, connector: connector(&server) };
    let mut readers = Vec::new();
    for nth in 0..FIRST {
        readers.push(clients.open(nth).await);
    }
    let before = server.resident_bytes();
    for nth in FIRST..FIRST + load.n {
        readers.push(clients.open(nth).await);
    }
    // Each is pinged once before it counts: that too may need memory.
    tokio::time::sleep(heartbeat.mul_f64(1.3)).await;
    let watch = Watch::start(&server);
    tokio::time::sleep(heartbeat * 2).await;
    let spent = watch.stop();
    let each = (server.resident_bytes() - before) / load.n as f64 / 1024.0;
    assert!(readers.iter().all(|reader| !reader.is_finished()), "a connection ended");
    readers.iter().for_each(JoinHandle::abort);
    let mut figures = vec![Figure::new("RSS each", Unit::KiB, each)];
    if kind == Kind::Hub {
        let beats = spent.seconds / heartbeat.as_secs_f64() * load.n as f64;
        let percent = spent.cpu() / beats * TOLD_FOR / TOLD_EVERY.as_secs_f64() * 100.0;
        figures.push(Figure::new("heartbeat CPU of 10 000", Unit::Percent, percent));
    }
    figures
}

struct Clients {
    target: Target,
    transport: Transport,
    connector: Option<TlsConnector>,
}

impl Clients {
    /// Opens a connection, waits until it is live and goes on reading it.
    async fn open(&self, nth: usize) -> JoinHandle<()> {
        let stream = self.target.connect(nth).await;
        let request = self.target.follow(nth, From::Now);
        let ready = Some(self.target.ready());
        match (self.transport, &self.connector) {
            (Transport::Http2, _) => self.open_http2(stream, nth).await,
            (_, Some(connector)) => {
                let name = ServerName::try_from("localhost").unwrap();
                let stream = connector.connect(name, stream).await.unwrap();
                let mut reader = Reader::open(stream, &request, ready).await;
                spawn_local(async move { drop(reader.count(&Tally::default(), u64::MAX).await) })
            }
            _ => {
                let mut reader = Reader::open(stream, &request, ready).await;
                spawn_local(async move { drop(reader.count(&Tally::default(), u64::MAX).await) })
            }
        }
    }

    async fn open_http2(&self, stream: tokio::net::TcpStream, nth: usize) -> JoinHandle<()> {
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let driving = spawn_local(async move { drop(connection.await) });
        let request = http::Request::get(format!("http://bench/v1/events?topic=bench/{nth}"))
            .header("accept", "text/event-stream")
            .header("authorization", format!("Bearer {}", self.target.token))
            .body(())
            .unwrap();
        let mut client = client.ready().await.unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut came = Vec::new();
        while memmem::find(&came, CAUGHT_UP.as_bytes()).is_none() {
            let bytes = body.data().await.unwrap().unwrap();
            body.flow_control().release_capacity(bytes.len()).unwrap();
            came.extend_from_slice(&bytes);
        }
        spawn_local(async move {
            while let Some(Ok(bytes)) = body.data().await {
                if body.flow_control().release_capacity(bytes.len()).is_err() {
                    break;
                }
            }
            driving.abort();
            drop(client);
        })
    }
}

/// Trusts the server's own certificate, if it has one.
fn connector(server: &Server) -> Option<TlsConnector> {
    let pem = server.certificate.as_ref()?;
    let mut roots = RootCertStore::empty();
    let mut reader = BufReader::new(pem.as_bytes());
    for certificate in rustls::pki_types::pem::PemObject::pem_reader_iter(&mut reader) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some(TlsConnector::from(Arc::new(config)))
}
