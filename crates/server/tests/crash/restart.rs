//! Rolling restarts under load: SIGTERM, and the next hub takes over; of one store, and of three nodes
//! behind a balancer.
//!
//! Long run: `TESTS_READERS=1800 TESTS_STALLED=200`.

use std::sync::Arc;

use tidings_services::Redis;
use tokio::{
    io::{AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    PUBLISHERS, Shared, TOPICS, everything_arrived, publisher, reader,
    served::{Served, configure, count},
};

const ROUNDS: usize = 3;
const NODES: usize = 3;

/// Waits until more was acknowledged.
async fn progress(shared: &Shared, round: usize) {
    let goal = shared.acked.lock().unwrap().len() + 400;
    let start = Instant::now();
    while shared.acked.lock().unwrap().len() < goal {
        assert!(start.elapsed() < Duration::from_secs(60), "round {round} makes no progress");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_load_lose_and_double_nothing_and_end_in_time() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let settings = "drain_grace = \"100ms\"\ndrain_window = \"3s\"\nretention.events = 1000000\n\
                    limits.user_publish_rate = 0\nlimits.tenant_publish_rate = 0";
    let key = configure(directory.path(), settings);
    let mut hub = Served::start(directory.path(), "127.0.0.1:0");
    let url = hub.url.clone();
    let listen = url.strip_prefix("http://").unwrap().to_owned();
    let shared = Arc::new(Shared::default());
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|n| tokio::spawn(publisher(n, url.clone(), key.clone(), Arc::clone(&shared))))
        .collect();
    let readers: Vec<_> = (0..count("TESTS_READERS", 20))
        .map(|_| tokio::spawn(reader(url.clone(), key.clone(), Arc::clone(&shared))))
        .collect();
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
        progress(&shared, round).await;
        let terminating = tokio::task::spawn_blocking(move || hub.terminate());
        // 70 would be: not within its window.
        assert_eq!(terminating.await.unwrap(), Some(0), "round {round}");
        hub = Served::start(directory.path(), &listen);
    }
    everything_arrived(&shared, publishers, readers).await;
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
        "drain_grace = \"100ms\"\ndrain_window = \"3s\"\nretention.events = 1000000\n\
         limits.user_publish_rate = 0\nlimits.tenant_publish_rate = 0\n\
         allow_readable_secrets = true\njournal.kind = \"redis\"\nredis.url = \"{}\"\n\
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
    let shared = Arc::new(Shared::default());
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|n| tokio::spawn(publisher(n, url.clone(), key.clone(), Arc::clone(&shared))))
        .collect();
    let readers: Vec<_> = (0..count("TESTS_READERS", 20))
        .map(|_| tokio::spawn(reader(url.clone(), key.clone(), Arc::clone(&shared))))
        .collect();
    for round in 0..2 * NODES {
        let number = round % NODES;
        progress(&shared, round).await;
        let node = nodes[number].take().unwrap();
        let terminating = tokio::task::spawn_blocking(move || node.terminate());
        assert_eq!(terminating.await.unwrap(), Some(0), "round {round}");
        let directory = directories[number].path();
        nodes[number] = Some(Served::start(directory, &addresses[number]));
    }
    everything_arrived(&shared, publishers, readers).await;
    balancing.abort();
    for node in nodes.into_iter().flatten() {
        assert_eq!(node.terminate(), Some(0));
    }
}
