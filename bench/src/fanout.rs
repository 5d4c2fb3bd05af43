//! One topic, many readers: every event goes to all of them.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::server::Server;

/// What occurs once in each delivered event, and in nothing else.
const MARK: &[u8] = b"\"specversion\"";
/// Longest run: past it something is wrong.
const RUN_MAX: Duration = Duration::from_secs(120);

/// What a run showed.
pub(crate) struct Figures {
    /// Deliveries a second.
    pub(crate) rate: f64,
    /// The server's CPU seconds per million deliveries.
    pub(crate) cpu: f64,
}

/// Publishes one event a request, each when the last is answered, until all readers have them all.
pub(crate) async fn run(server: &Server, readers: usize, events: usize) -> Figures {
    let mut reading = JoinSet::new();
    for _ in 0..readers {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        let request = format!(
            "GET /v1/events?topic=bench HTTP/1.1\r\nhost: h\r\naccept: text/event-stream\r\n\
             authorization: Bearer {}\r\n\r\n",
            server.token
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        count(&mut stream, b"tidings.caught_up", 1).await;
        reading.spawn(async move { count(&mut stream, MARK, events).await });
    }
    let mut publisher = TcpStream::connect(&server.address).await.unwrap();
    publisher.set_nodelay(true).unwrap();
    let body = format!(r#"{{"topic":"bench","type":"bench","data":"{}"}}"#, "x".repeat(200));
    let request = format!(
        "POST /v1/events HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n\
         authorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        server.key,
        body.len()
    );
    let (cpu, begin) = (server.cpu_seconds(), Instant::now());
    for _ in 0..events {
        publisher.write_all(request.as_bytes()).await.unwrap();
        count(&mut publisher, b"HTTP/1.1 200", 1).await;
    }
    timeout(RUN_MAX, reading.join_all()).await.unwrap();
    let deliveries = (readers * events) as f64;
    Figures {
        rate: deliveries / begin.elapsed().as_secs_f64(),
        cpu: (server.cpu_seconds() - cpu) * 1e6 / deliveries,
    }
}

/// Reads until a mark was seen so often.
async fn count(stream: &mut TcpStream, mark: &[u8], often: usize) {
    let mut buffer = vec![0; 32 * 1024];
    let (mut held, mut seen) = (0, 0);
    while seen < often {
        let free = buffer.get_mut(held..).unwrap();
        let read = timeout(RUN_MAX, stream.read(free)).await.unwrap().unwrap();
        assert!(read > 0, "the server ended the connection");
        held += read;
        let filled = buffer.get(..held).unwrap();
        let mut after = 0;
        for (at, window) in filled.windows(mark.len()).enumerate() {
            if window == mark {
                seen += 1;
                after = at + mark.len();
            }
        }
        // A mark may be cut by the end of what has come.
        let keep = after.max(held.saturating_sub(mark.len() - 1));
        buffer.copy_within(keep..held, 0);
        held -= keep;
    }
}
