//! Rolling restarts of one store under load: SIGTERM, and the next hub takes over.
//!
//! Long run: `TESTS_READERS=1800 TESTS_STALLED=200`.

use std::sync::Arc;

use tokio::{
    io::AsyncWriteExt as _,
    net::TcpSocket,
    time::{Duration, Instant},
};

use crate::{
    PUBLISHERS, Shared, TOPICS, everything_arrived, publisher, reader,
    served::{Served, configure, count},
};

const ROUNDS: usize = 3;

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
        let goal = shared.acked.lock().unwrap().len() + 400;
        let start = Instant::now();
        while shared.acked.lock().unwrap().len() < goal {
            assert!(start.elapsed() < Duration::from_secs(60), "round {round} makes no progress");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let terminating = tokio::task::spawn_blocking(move || hub.terminate());
        // 70 would be: not within its window.
        assert_eq!(terminating.await.unwrap(), Some(0), "round {round}");
        hub = Served::start(directory.path(), &listen);
    }
    everything_arrived(&shared, publishers, readers).await;
    assert_eq!(hub.terminate(), Some(0));
}
