//! Crowds: readers that stop reading, clients that come and go, publishers without measure.
//!
//! Long runs: `TESTS_STALLED=500 TESTS_HEALTHY=100 TESTS_EVENTS=50000`,
//! `TESTS_CONNECTIONS=20000` and `TESTS_REQUESTS=5000`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, interval, timeout},
};

use crate::{
    client,
    served::{Served, configure, count},
};

const SOON: Duration = Duration::from_secs(60);
/// What one stalled reader may cost in the kernel.
const STALLED_KERNEL_BYTES: u64 = 160 * 1024;

fn follow(key: &str, query: &str, last_id: &str) -> Vec<u8> {
    let last =
        if last_id.is_empty() { String::new() } else { format!("last-event-id: {last_id}\r\n") };
    format!(
        "GET /v1/events?{query} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{last}\r\n"
    )
    .into_bytes()
}

/// The numbers in the data of the events in this text, and the last id.
fn numbers(text: &str) -> (Vec<u64>, Option<String>) {
    let mut found = Vec::new();
    let mut last_id = None;
    // What was cut off in its middle was not delivered.
    let whole = text.rfind("\n\n").map_or("", |end| &text[..end + 2]);
    for frame in whole.split("\n\n") {
        if let Some(id) = frame.lines().find_map(|line| line.strip_prefix("id: ")) {
            last_id = Some(id.to_owned());
        }
        if let Some(number) = frame.split("\"number\":").nth(1) {
            let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
            found.push(digits.parse().unwrap());
        }
    }
    (found, last_id)
}

/// A metric, all of its labels together.
async fn metric(admin: &str, name: &str) -> f64 {
    let text = client().get(format!("{admin}/metrics")).send().await.unwrap().text().await.unwrap();
    let is_it = |line: &&str| line.split([' ', '{']).next() == Some(name);
    let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
    text.lines().filter(is_it).map(value).sum()
}

async fn publish(url: &str, key: &str, events: &[Value]) -> reqwest::Response {
    let request = client().post(format!("{url}/v1/events")).bearer_auth(key).json(events);
    request.send().await.unwrap()
}

/// Broken on purpose, it failed: without the small buffers, a reader cost 2.3 MB of kernel memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_reading_cost_little_lose_nothing_and_hold_up_nobody() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stalled_count = count("TESTS_STALLED", 150);
    let healthy_count = count("TESTS_HEALTHY", 10);
    let events = count("TESTS_EVENTS", 3000) as u64;
    let directory = tempfile::tempdir().unwrap();
    let settings = "http.write_stall = \"2s\"\nretention.events = 1000000\n\
                    limits.user_publish_rate = 0\nlimits.tenant_publish_rate = 0";
    let key = configure(directory.path(), settings);
    let hub = Served::start(directory.path(), "127.0.0.1:0");
    let address = hub.url.strip_prefix("http://").unwrap().to_owned();
    let mut healthy = JoinSet::new();
    for _ in 0..healthy_count {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(&follow(&key, "topic=t&since=earliest", "")).await.unwrap();
        healthy.spawn(async move {
            let mut text = String::new();
            let last = format!("\"number\":{},", events - 1);
            let mut piece = vec![0; 64 * 1024];
            let mut looked = 0;
            while !text[looked..].contains(&last) {
                let read = timeout(SOON, stream.read(&mut piece)).await.unwrap().unwrap();
                assert!(read > 0, "a healthy reader was cut off");
                looked = text.len().saturating_sub(last.len());
                text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
            }
            assert!(!text.contains("tidings.gap"));
            numbers(&text).0
        });
    }
    let mut stalled = Vec::new();
    for _ in 0..stalled_count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
        stream.write_all(&follow(&key, "topic=t&since=earliest", "")).await.unwrap();
        stalled.push(stream);
    }
    let before = hub.resident();
    let text = "x".repeat(400);
    let (mut memory, mut dearest) = (0, 0);
    for first in (0..events).step_by(100) {
        let batch: Vec<Value> = (first..(first + 100).min(events))
            .map(|n| json!({"topic": "t", "type": "x", "data": {"text": text, "number": n}}))
            .collect();
        assert_eq!(publish(&hub.url, &key, &batch).await.status(), 200);
        memory = memory.max(hub.resident());
        dearest = dearest.max(hub.kernel_memory().into_iter().max().unwrap_or(0));
    }
    let all: Vec<u64> = (0..events).collect();
    for seen in healthy.join_all().await {
        assert!(seen == all, "a healthy reader saw {} of {events}", seen.len());
    }
    assert!(dearest > 0, "nobody was looked at");
    assert!(dearest <= STALLED_KERNEL_BYTES, "{dearest} bytes of kernel memory for one reader");
    let grown = memory.saturating_sub(before);
    // Of each reader a page and a batch at most; and the journal's own caches.
    assert!(grown < 128 * 1024 * 1024 + stalled_count as u64 * 320 * 1024, "{grown} bytes more");
    // They are let go of, and come back where they were.
    let gone = async {
        let mut look = interval(Duration::from_millis(50));
        while metric(&hub.admin, "tidings_connections").await > 0.0 {
            look.tick().await;
        }
    };
    timeout(SOON, gone).await.expect("stalled readers are closed");
    for mut stream in stalled.into_iter().step_by(20) {
        let mut text = Vec::new();
        // A reset is how it ends.
        let _ = stream.read_to_end(&mut text).await;
        let (mut seen, last_id) = numbers(&String::from_utf8_lossy(&text));
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let last_id = last_id.unwrap_or_default();
        let resume = follow(&key, "topic=t&since=earliest", &last_id);
        stream.write_all(&resume).await.unwrap();
        let (mut text, mut looked) = (String::new(), 0);
        let mut piece = vec![0; 64 * 1024];
        while !text[looked..].contains("tidings.caught_up") {
            let read = timeout(SOON, stream.read(&mut piece)).await.unwrap().unwrap();
            assert!(read > 0, "cut off while it caught up");
            looked = text.len().saturating_sub(32);
            text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
        assert!(!text.contains("tidings.gap"));
        seen.extend(numbers(&text).0);
        assert!(seen == all, "one that stalled saw {} of {events} after coming back", seen.len());
    }
    println!("{dearest} bytes of kernel memory for the dearest reader, {grown} more in the hub");
    assert_eq!(hub.terminate(), Some(0));
}

/// Broken on purpose, it failed: with the places of a stream forgotten instead of dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_come_and_go_leave_nothing_behind() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let connections = count("TESTS_CONNECTIONS", 2000);
    let directory = tempfile::tempdir().unwrap();
    let key = configure(directory.path(), "limits.tenant_connections = 600");
    let hub = Served::start(directory.path(), "127.0.0.1:0");
    let address = hub.url.strip_prefix("http://").unwrap().to_owned();
    // Once everything that is made only once is there.
    publish(&hub.url, &key, &[json!({"topic": "t", "type": "x"})]).await;
    // The topic, and the hub's own that it follows itself.
    let active = metric(&hub.admin, "tidings_topics_active").await;
    let before = hub.descriptors();
    let head = Arc::new(follow(&key, "topic=t&since=earliest", ""));
    let post = format!(
        "POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
         content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let post = Arc::new(post.into_bytes());
    for first in (0..connections).step_by(200) {
        let mut batch = JoinSet::new();
        for number in first..(first + 200).min(connections) {
            let (address, head, post) = (address.clone(), Arc::clone(&head), Arc::clone(&post));
            batch.spawn(async move {
                let mut stream = TcpStream::connect(&address).await.unwrap();
                let mut piece = vec![0; 4096];
                match number % 6 {
                    // Nothing, half a head, a whole one, an answer begun, and publishers.
                    0 => {}
                    1 => stream.write_all(&head[..head.len() / 2]).await.unwrap(),
                    2 => stream.write_all(&head).await.unwrap(),
                    5 => stream.write_all(&post).await.unwrap(),
                    _ => {
                        stream.write_all(&head).await.unwrap();
                        let read = timeout(SOON, stream.read(&mut piece)).await.unwrap().unwrap();
                        assert!(piece[..read].starts_with(b"HTTP/1.1 200"), "refused");
                    }
                }
                // Half of them without a goodbye.
                if number % 2 == 0 {
                    stream.set_zero_linger().unwrap();
                }
            });
        }
        batch.join_all().await;
    }
    let back = async {
        let mut look = interval(Duration::from_millis(50));
        // One more: the connection that asks.
        while metric(&hub.admin, "tidings_connections").await > 0.0
            || hub.descriptors() > before + 1
        {
            look.tick().await;
        }
    };
    let (open, now) = (metric(&hub.admin, "tidings_connections").await, hub.descriptors());
    timeout(SOON, back).await.unwrap_or_else(|_| panic!("{open} open, {now} of {before} files"));
    // All places of the tenant are free.
    let mut held = Vec::new();
    for _ in 0..600 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(&head).await.unwrap();
        let mut piece = vec![0; 4096];
        let read = timeout(SOON, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(piece[..read].starts_with(b"HTTP/1.1 200"), "{} have a place", held.len());
        held.push(stream);
    }
    assert_eq!(metric(&hub.admin, "tidings_topics_active").await, active);
    drop(held);
    assert_eq!(hub.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_events_is_refused_by_name_and_what_was_taken_is_stored() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let requests = count("TESTS_REQUESTS", 400);
    let directory = tempfile::tempdir().unwrap();
    // One key may publish 200 events a second; eight publishers ask as fast as they can.
    let settings = "limits.user_publish_rate = 200\nlimits.user_publish_burst = 400\n\
                    limits.publish_bytes = \"64KiB\"\nlimits.publish_waiting_bytes = \"64KiB\"\n\
                    http.publish_wait = \"0s\"\nretention.events = 1000000";
    let key = configure(directory.path(), settings);
    let hub = Served::start(directory.path(), "127.0.0.1:0");
    let acked = Arc::new(Mutex::new(BTreeMap::new()));
    let refused = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let before = hub.resident();
    let mut flood = JoinSet::new();
    for publisher in 0..8 {
        let (url, key) = (hub.url.clone(), key.clone());
        let (acked, refused) = (Arc::clone(&acked), Arc::clone(&refused));
        flood.spawn(async move {
            let client = client();
            for number in 0..requests / 8 {
                let events: Vec<Value> = (0..20)
                    .map(|part| {
                        let id = format!("{publisher}:{number}:{part}");
                        json!({"topic": "t", "type": "x", "id": id, "data": "x".repeat(1000)})
                    })
                    .collect();
                let request = client.post(format!("{url}/v1/events")).bearer_auth(&key);
                let answer = request.json(&events).send().await.unwrap();
                let status = answer.status().as_u16();
                let retry_after = answer.headers().get("retry-after").cloned();
                let body: Value = answer.json().await.unwrap();
                if status == 200 {
                    let mut acked = acked.lock().unwrap();
                    for result in body["results"].as_array().unwrap() {
                        let id = result["id"].as_str().unwrap().to_owned();
                        acked.insert(result["offset"].as_u64().unwrap(), id);
                    }
                } else {
                    assert!(matches!(status, 429 | 503), "{status}: {body}");
                    assert!(retry_after.is_some() && body["retryable"] == true, "{body}");
                    let limit = body["limit"].as_str().unwrap().to_owned();
                    *refused.lock().unwrap().entry(limit).or_default() += 1;
                }
            }
        });
    }
    let begun = Instant::now();
    let mut memory = before;
    let mut look = interval(Duration::from_millis(20));
    while !flood.is_empty() {
        tokio::select! {
            ended = flood.join_next() => ended.unwrap().unwrap(),
            _ = look.tick() => memory = memory.max(hub.resident()),
        }
    }
    let acked = acked.lock().unwrap().clone();
    let refused = refused.lock().unwrap().clone();
    println!("{} taken in {:?}, refused {refused:?}", acked.len(), begun.elapsed());
    assert!(refused.contains_key("user_publish_rate"), "{refused:?}");
    let grown = memory.saturating_sub(before);
    assert!(grown < 96 * 1024 * 1024, "{grown} bytes more");
    // Back to normal as soon as the hub says.
    let again = async {
        loop {
            let answer = publish(&hub.url, &key, &[json!({"topic": "t", "type": "end"})]).await;
            if answer.status() == 200 {
                return;
            }
            let seconds = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
    };
    timeout(SOON, again).await.unwrap();
    // What was acknowledged is there under its offset, and nothing else is.
    let (mut stored, mut cursor) = (BTreeMap::new(), String::new());
    loop {
        let url = format!("{}/v1/events?topic=t&since=earliest&wait=1s", hub.url);
        let request = client().get(url).bearer_auth(&key).header("accept", "application/json");
        let request = request.header("last-event-id", &cursor);
        let page: Value = request.send().await.unwrap().json().await.unwrap();
        let events = page["events"].as_array().unwrap();
        for event in events.iter().filter(|event| event["type"] == "x") {
            let offset = event["position"].as_str().unwrap().split('-').next_back().unwrap();
            stored.insert(offset.parse().unwrap(), event["id"].as_str().unwrap().to_owned());
        }
        page["cursor"].as_str().unwrap().clone_into(&mut cursor);
        if events.is_empty() {
            break;
        }
    }
    assert!(stored == acked, "{} stored, {} acknowledged", stored.len(), acked.len());
    assert_eq!(hub.terminate(), Some(0));
}
