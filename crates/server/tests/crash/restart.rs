//! Rolling restarts under load: SIGTERM, and the next hub takes over; of one store, and of three nodes
//! behind a balancer.
//!
//! Long run: `TESTS_READERS=1800 TESTS_STALLED=200`.

use tidings_services::Redis;
use tokio::{
    io::{AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpSocket, TcpStream},
    time::Duration,
};

use crate::{
    Load, TOPICS,
    served::{Served, configure, count},
};

const ROUNDS: usize = 3;
const NODES: usize = 3;

const SETTINGS: &str = "drain_grace = \"100ms\"\ndrain_window = \"3s\"\n\
                        retention.events = 1000000\nlimits.user_publish_rate = 0\n\
                        limits.tenant_publish_rate = 0\n";
/// Acknowledged in a round before its restart, and how long that may take.
const MORE: usize = 400;
const WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_load_lose_and_double_nothing_and_end_in_time() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let key = configure(directory.path(), SETTINGS);
    let mut hub = Served::start(directory.path(), "127.0.0.1:0");
    let url = hub.url.clone();
    let listen = url.strip_prefix("http://").unwrap().to_owned();
    let load = Load::start(&url, &key, &key, count("TESTS_READERS", 20));
    for round in 0..ROUNDS {
        let mut stalled = Vec::new();
        for _ in 0..count("TESTS_STALLED", 5) {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut stream = socket.connect(listen.parse().unwrap()).await.unwrap();
            let head = format!(
                "GET /v1/events?topic={}&since=earliest HTTP/1.1\r\nhost: x\r\n\
                 authorization: Bearer {key}\r\n\r\n",
                TOPICS[0]
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stalled.push(stream);
        }
        load.progress(round, MORE, WITHIN).await;
        let terminating = tokio::task::spawn_blocking(move || hub.terminate());
        // 70 would be: not within its window.
        assert_eq!(terminating.await.unwrap(), Some(0), "round {round}");
        hub = Served::start(directory.path(), &listen);
    }
    load.everything_arrived().await;
    assert_eq!(hub.terminate(), Some(0));
}

/// A plain TCP balancer: each connection goes to the next node that takes it.
async fn balance(listener: TcpListener, nodes: [String; NODES]) {
    for turn in 0.. {
        let (mut client, _) = listener.accept().await.unwrap();
        let nodes = nodes.clone();
        tokio::spawn(async move {
            for ahead in 0..NODES {
                let Ok(mut node) = TcpStream::connect(&nodes[(turn + ahead) % NODES]).await else {
                    continue;
                };
                // Either side may break it off.
                let _ = copy_bidirectional(&mut client, &mut node).await;
                return;
            }
        });
    }
}

/// As `docs/guides/several-machines.md` says to do it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_restarted_in_turn_behind_a_balancer_lose_and_double_nothing() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let redis = Redis::start().unwrap();
    let directories = [(); NODES].map(|()| tempfile::tempdir().unwrap());
    // As random as the hub asks for.
    let secret = configure(directories[0].path(), "");
    let settings = format!(
        "{SETTINGS}allow_readable_secrets = true\njournal.kind = \"redis\"\nredis.url = \"{}\"\n\
         cluster = {{ name = \"node-0\", secret = \"{secret}\" }}",
        redis.url()
    );
    let key = configure(directories[0].path(), &settings);
    let configuration =
        std::fs::read_to_string(directories[0].path().join("tidings.toml")).unwrap();
    for (number, directory) in directories.iter().enumerate() {
        let text = configuration.replace("node-0", &format!("node-{number}"));
        std::fs::write(directory.path().join("tidings.toml"), text).unwrap();
    }
    let mut nodes = directories
        .each_ref()
        .map(|directory| Some(Served::start(directory.path(), "127.0.0.1:0")));
    let address = |node: &Option<Served>| node.as_ref().unwrap().url[7..].to_owned();
    let addresses = nodes.each_ref().map(address);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let balancing = tokio::spawn(balance(listener, addresses.clone()));
    let load = Load::start(&url, &key, &key, count("TESTS_READERS", 20));
    for round in 0..2 * NODES {
        let number = round % NODES;
        load.progress(round, MORE, WITHIN).await;
        let node = nodes[number].take().unwrap();
        let terminating = tokio::task::spawn_blocking(move || node.terminate());
        assert_eq!(terminating.await.unwrap(), Some(0), "round {round}");
        let directory = directories[number].path();
        nodes[number] = Some(Served::start(directory, &addresses[number]));
    }
    load.everything_arrived().await;
    balancing.abort();
    for node in nodes.into_iter().flatten() {
        assert_eq!(node.terminate(), Some(0));
    }
}
