//! `kill -9` of the whole hub, again and again, under load and with readers that resume.
//!
//! What was acknowledged is delivered to every reader, once, in order, under the offset that was
//! acknowledged. Broken on purpose: in the embedded journal's writer, leave the ids of events out of
//! their commit.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod crowd;
mod faults;
mod full;
mod restart;
mod served;

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

const ROUNDS: usize = 30;
const TOPICS: [&str; 3] = ["load/a", "load/b", "load/c"];
const PUBLISHERS: usize = 4;
const READERS: usize = 4;
/// Far longer than anything here may take: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(45);

/// The hub's process, and what its one line of JSON says.
struct Hub {
    child: Child,
    facts: Value,
}

impl Hub {
    fn start(listen: &str, data: &std::path::Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(["dev", "--json", "--listen", listen, "--data"]).arg(data);
        command.stderr(Stdio::null());
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let facts = serde_json::from_str(&line).unwrap();
        Self { child, facts }
    }

    fn fact(&self, name: &str) -> String {
        self.facts[name].as_str().unwrap().to_owned()
    }

    fn kill(mut self) {
        // SIGKILL on Unix.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Already ended in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Topic and offset: the event's id.
type History = BTreeMap<(String, u64), String>;

#[derive(Default)]
struct Shared {
    acked: Mutex<History>,
    /// Publishers end.
    stop: AtomicBool,
    /// Nothing more is acknowledged: readers end once they have it all.
    complete: AtomicBool,
}

fn client() -> reqwest::Client {
    // The connection is what is being broken: none is to be waited for long.
    let builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(2));
    builder.build().unwrap()
}

/// Publishes one event after the other, each until it is acknowledged.
async fn publisher(number: usize, url: String, key: String, shared: Arc<Shared>) {
    let client = client();
    for count in 0.. {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let events: Vec<Value> = (0..4)
            .map(|part| {
                let id = format!("p{number}:{count}:{part}");
                json!({"topic": TOPICS[(number + part) % 3], "type": "load", "id": id, "data": id})
            })
            .collect();
        let body = Value::Array(events);
        loop {
            let request = client.post(format!("{url}/v1/events")).bearer_auth(&key).json(&body);
            let Ok(Ok(answer)) = timeout(Duration::from_secs(5), request.send()).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let Ok(answer) = answer.json::<Value>().await else { continue };
            let Some(results) = answer["results"].as_array() else { continue };
            let all = results.iter().all(|result| result["offset"].is_u64());
            let mut acked = shared.acked.lock().unwrap();
            for result in results.iter().filter(|result| result["offset"].is_u64()) {
                let topic = result["topic"].as_str().unwrap().to_owned();
                let place = (topic, result["offset"].as_u64().unwrap());
                let id = result["id"].as_str().unwrap().to_owned();
                let before = acked.insert(place.clone(), id.clone());
                assert!(before.is_none_or(|before| before == id), "{place:?} was given twice");
            }
            drop(acked);
            if all {
                break;
            }
        }
    }
}

/// Where a reader is, for whoever wants to know why it lacks something.
#[derive(Debug, Default)]
struct Whereabouts {
    connections: usize,
    /// What it was answered last.
    answer: String,
    /// What it was told last, and when its last event came.
    block: String,
    event_at: Option<Instant>,
    newest: HashMap<String, u64>,
}

/// Follows all topics, resuming by the last id, until it has seen everything acknowledged.
async fn reader(
    url: String,
    token: String,
    shared: Arc<Shared>,
    at: Arc<Mutex<Whereabouts>>,
) -> History {
    let client = client();
    let mut seen = History::new();
    let mut last_id = String::new();
    let query = TOPICS.map(|topic| format!("topic={topic}")).join("&");
    loop {
        let mut request =
            client.get(format!("{url}/v1/events?{query}&since=earliest")).bearer_auth(&token);
        if !last_id.is_empty() {
            request = request.header("last-event-id", &last_id);
        }
        let answer = timeout(PATIENCE, request.send()).await.expect("a reader is not answered");
        let answered = |answer: String| {
            let mut at = at.lock().unwrap();
            (at.connections, at.answer) = (at.connections + 1, answer);
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                answered(error.to_string());
                tokio::task::yield_now().await;
                continue;
            }
        };
        answered(answer.status().to_string());
        if answer.status() == 503 {
            // It is being drained.
            tokio::task::yield_now().await;
            continue;
        }
        assert_eq!(answer.status(), 200);
        let mut stream = answer.bytes_stream();
        let mut buffer = Vec::new();
        let mut came_at = Instant::now();
        loop {
            // Looks now and then whether it is done, also when nothing comes.
            let piece = timeout(Duration::from_millis(200), stream.next()).await;
            match piece {
                Ok(Some(Ok(bytes))) => {
                    buffer.extend_from_slice(&bytes);
                    came_at = Instant::now();
                }
                Ok(_) => break,
                // Heartbeats come more often.
                Err(_) => assert!(came_at.elapsed() < PATIENCE, "silent behind {last_id}"),
            }
            while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = buffer.drain(..end + 2).collect();
                let mut at = at.lock().unwrap();
                at.block = String::from_utf8(block).unwrap();
                message(&mut at, &mut last_id, &mut seen);
            }
            if shared.complete.load(Ordering::SeqCst)
                && shared.acked.lock().unwrap().keys().all(|place| seen.contains_key(place))
            {
                return seen;
            }
        }
    }
}

fn message(at: &mut Whereabouts, last_id: &mut String, seen: &mut History) {
    let block = &at.block;
    assert!(!block.contains("tidings.gap"), "{block}");
    let mut data = None;
    for line in block.lines() {
        match line.split_once(": ") {
            Some(("id", id)) => id.clone_into(last_id),
            Some(("data", text)) if !block.contains("event: ") => data = Some(text),
            _ => {}
        }
    }
    let Some(data) = data else { return };
    let event: Value = serde_json::from_str(data).unwrap();
    let topic = event["topic"].as_str().unwrap().to_owned();
    let position = event["position"].as_str().unwrap();
    let offset: u64 = position.split_once('-').unwrap().1.parse().unwrap();
    let before = at.newest.insert(topic.clone(), offset).unwrap_or(0);
    at.event_at = Some(Instant::now());
    assert_eq!(offset, before + 1, "{topic} goes from {before} to {offset}");
    seen.insert((topic, offset), event["id"].as_str().unwrap().to_owned());
}

/// Publishers and readers at work.
struct Load {
    shared: Arc<Shared>,
    publishers: Vec<JoinHandle<()>>,
    readers: Vec<(JoinHandle<History>, Arc<Mutex<Whereabouts>>)>,
}

impl Load {
    /// Starts them: publishers with a key, readers with a token.
    fn start(url: &str, key: &str, token: &str, readers: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let publisher = |number| {
            tokio::spawn(publisher(number, url.to_owned(), key.to_owned(), Arc::clone(&shared)))
        };
        let reader = |_| {
            let (at, shared) = (Arc::default(), Arc::clone(&shared));
            let reader = reader(url.to_owned(), token.to_owned(), shared, Arc::clone(&at));
            (tokio::spawn(reader), at)
        };
        let publishers = (0..PUBLISHERS).map(publisher).collect();
        let readers = (0..readers).map(reader).collect();
        Self { shared, publishers, readers }
    }

    /// Waits until so many more were acknowledged.
    async fn progress(&self, round: usize, more: usize, within: Duration) {
        let acked = || self.shared.acked.lock().unwrap().len();
        let (goal, start) = (acked() + more, Instant::now());
        while acked() < goal {
            assert!(start.elapsed() < within, "round {round} makes no progress");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends the load, checks that every reader saw what was acknowledged, once and in its place, and
    /// returns how many events that were.
    async fn everything_arrived(self) -> usize {
        let Self { shared, publishers, readers } = self;
        shared.stop.store(true, Ordering::SeqCst);
        for publisher in publishers {
            publisher.await.unwrap();
        }
        shared.complete.store(true, Ordering::SeqCst);
        let acked = shared.acked.lock().unwrap().clone();
        let (readers, whereabouts): (Vec<_>, Vec<_>) = readers.into_iter().unzip();
        let all = timeout(2 * PATIENCE, join_all(readers)).await;
        let all = all.unwrap_or_else(|_| panic!("readers lack events: {whereabouts:#?}"));
        for seen in all {
            let seen = seen.unwrap();
            for (place, id) in &acked {
                assert_eq!(seen.get(place), Some(id), "{place:?}");
            }
            let mut ids: Vec<&String> = seen.values().collect();
            ids.sort();
            let count = ids.len();
            ids.dedup();
            assert_eq!(ids.len(), count, "an event was stored twice");
        }
        acked.len()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_killed_again_and_again_loses_doubles_and_renumbers_nothing() {
    // A second test of this process may have been faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let data = tempfile::tempdir().unwrap();
    let mut hub = Hub::start("127.0.0.1:0", data.path());
    let (url, key, token) = (hub.fact("url"), hub.fact("publisher_key"), hub.fact("reader_token"));
    let listen = url.strip_prefix("http://").unwrap().to_owned();
    let load = Load::start(&url, &key, &token, READERS);
    for round in 0..ROUNDS {
        // Killed in the middle of the load, not after so long: once this round has acknowledged a
        // number of events that differs from round to round.
        load.progress(round, 1 + round * 37 % 200, Duration::from_secs(30)).await;
        hub.kill();
        hub = Hub::start(&listen, data.path());
        assert_eq!(hub.fact("publisher_key"), key, "keys stay valid over restarts");
    }
    assert!(load.everything_arrived().await > ROUNDS * 4);
    hub.kill();
}
