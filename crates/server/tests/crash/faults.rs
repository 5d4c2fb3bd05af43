//! The whole hub on a disk that is full, broken, slow, hung or forbidden.
//!
//! The rule: nothing is acknowledged that is not durable, readiness is off with the first refusal,
//! the log says what is wrong and what to do, and after a new start everything that was
//! acknowledged is there. Broken on purpose: let the writer answer before it commits.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{History, Hub, Whereabouts, client, message};

/// The longest that anything may take; nothing is judged by it.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Compiles the disk that fails, once.
fn fault_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/fault.c");
        let library =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fault-{}.so", std::process::id()));
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .status();
        let status = compiled.expect("`cc` is there, as it links every Rust program");
        assert!(status.success(), "the disk that fails does not compile");
        library
    })
}

/// A data directory on a disk that fails as it is told.
struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let disk = Self { directory: tempfile::tempdir().unwrap() };
        disk.says("none");
        disk
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn says(&self, word: &str) {
        let new = self.directory.path().join("control.new");
        fs::write(&new, word).unwrap();
        fs::rename(new, self.directory.path().join("control")).unwrap();
    }

    fn command(&self) -> Command {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command
            .args(["dev", "--json", "--listen", "127.0.0.1:0", "--data"])
            .arg(self.data())
            .env("LD_PRELOAD", fault_library())
            .env("FAULT_DIRECTORY", self.data().join("journal"))
            .env("FAULT_CONTROL", self.directory.path().join("control"))
            .stderr(Stdio::from(log));
        command
    }

    fn hub(&self) -> Hub {
        Hub::of(self.command())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap()
    }

    async fn until_log_says(&self, part: &str) {
        let started = Instant::now();
        while !self.log().contains(part) {
            assert!(started.elapsed() < WAIT_MAX, "{part:?} in\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What was acknowledged, and to whom to talk.
pub(crate) struct Client {
    http: reqwest::Client,
    acked: History,
}

impl Client {
    pub(crate) fn new() -> Self {
        // Another test of this process may have been faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { http: client(), acked: History::new() }
    }

    /// Publishes an event, and returns the answer's status.
    pub(crate) async fn publish(&mut self, hub: &Hub, id: &str) -> StatusCode {
        self.publish_data(hub, id, id).await
    }

    pub(crate) async fn publish_data(&mut self, hub: &Hub, id: &str, data: &str) -> StatusCode {
        let (status, body) = self.send_data(hub, id, data).await.unwrap();
        if status.is_success() {
            let offset = body["results"][0]["offset"].as_u64().expect("one result");
            assert_eq!(self.acked.insert(("t".to_owned(), offset), id.to_owned()), None);
        }
        status
    }

    async fn send(&self, hub: &Hub, id: &str) -> reqwest::Result<(StatusCode, Value)> {
        self.send_data(hub, id, id).await
    }

    async fn send_data(
        &self,
        hub: &Hub,
        id: &str,
        data: &str,
    ) -> reqwest::Result<(StatusCode, Value)> {
        let event = json!([{"topic": "t", "type": "a.b", "id": id, "data": data}]);
        let request = self.http.post(format!("{}/v1/events", hub.fact("url")));
        let request = request.bearer_auth(hub.fact("publisher_key")).json(&event);
        let answer = timeout(WAIT_MAX, request.send()).await.unwrap()?;
        let status = answer.status();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            assert!(answer.headers().contains_key("retry-after"));
        }
        Ok((status, answer.json().await?))
    }

    pub(crate) async fn ready(&self, hub: &Hub) -> StatusCode {
        let request = self.http.get(format!("{}/health/ready", hub.fact("url")));
        timeout(WAIT_MAX, request.send()).await.unwrap().unwrap().status()
    }

    /// Waits until the hub says that it is ready or not.
    async fn until_ready_is(&self, hub: &Hub, status: StatusCode) {
        let started = Instant::now();
        while self.ready(hub).await != status {
            assert!(started.elapsed() < WAIT_MAX, "readiness does not become {status}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Reads the topic from its beginning until all that was acknowledged came, as it was.
    pub(crate) async fn reads_all(&self, hub: &Hub) {
        // For all of it together: heartbeats come whatever is missing.
        timeout(WAIT_MAX, self.reads(hub)).await.expect("all of it comes");
    }

    async fn reads(&self, hub: &Hub) {
        let url = format!("{}/v1/events?topic=t&since=earliest", hub.fact("url"));
        let request = self.http.get(url).bearer_auth(hub.fact("reader_token"));
        let mut answer = timeout(WAIT_MAX, request.send()).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        let (mut buffer, mut last_id) = (Vec::new(), String::new());
        let (mut seen, mut at) = (History::new(), Whereabouts::default());
        while !self.acked.keys().all(|place| seen.contains_key(place)) {
            let piece = answer.chunk().await.unwrap();
            buffer.extend_from_slice(&piece.expect("the stream goes on"));
            while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = buffer.drain(..end + 2).collect();
                at.block = String::from_utf8(block).unwrap();
                message(&mut at, &mut last_id, &mut seen);
            }
        }
        for (place, id) in &self.acked {
            assert_eq!(seen.get(place), Some(id), "{place:?}");
        }
    }
}

/// Waits for a process to end by itself.
async fn ended(child: &mut Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(started.elapsed() < WAIT_MAX, "the process does not end");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A disk on which commits fail, until the hub is started anew on one that works.
async fn a_commit_fails(word: &str, says: &str) {
    let disk = Disk::new();
    let mut client = Client::new();
    let hub = disk.hub();
    for n in 0..5 {
        assert!(client.publish(&hub, &format!("before {n}")).await.is_success());
    }
    assert_eq!(client.ready(&hub).await, StatusCode::OK);
    disk.says(word);
    assert_eq!(client.publish(&hub, "refused").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(client.ready(&hub).await, StatusCode::SERVICE_UNAVAILABLE);
    for part in ["the journal takes no more events", says, "then start the hub anew"] {
        assert!(disk.log().contains(part), "{part:?} in\n{}", disk.log());
    }
    // What is there is read; and a disk that works again changes nothing before a new start.
    client.reads_all(&hub).await;
    disk.says("none");
    assert_eq!(client.publish(&hub, "too early").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(client.ready(&hub).await, StatusCode::SERVICE_UNAVAILABLE);
    hub.kill();
    let hub = disk.hub();
    assert_eq!(client.ready(&hub).await, StatusCode::OK);
    assert!(client.publish(&hub, "after").await.is_success());
    client.reads_all(&hub).await;
    hub.kill();
}

#[tokio::test]
async fn on_a_full_disk_nothing_is_acknowledged_and_reading_goes_on() {
    a_commit_fails("full", "No space left on device").await;
}

#[tokio::test]
async fn after_an_fsync_that_failed_nothing_is_acknowledged_and_reading_goes_on() {
    a_commit_fails("broken", "Input/output error").await;
}

#[tokio::test]
async fn on_a_slow_disk_the_hub_is_not_ready_until_the_commit_is_done() {
    let disk = Disk::new();
    let mut client = Client::new();
    let hub = disk.hub();
    assert!(client.publish(&hub, "before").await.is_success());
    disk.says("hang");
    let other = Client::new();
    let slow = client.publish(&hub, "slow");
    let meanwhile = async {
        other.until_ready_is(&hub, StatusCode::SERVICE_UNAVAILABLE).await;
        // Nobody queues behind it.
        let (status, _) = other.send(&hub, "meanwhile").await.unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        disk.until_log_says("a commit is slow").await;
        disk.says("none");
    };
    let (slow, ()) = tokio::join!(slow, meanwhile);
    assert!(slow.is_success(), "what is slow is acknowledged in the end: {slow}");
    client.until_ready_is(&hub, StatusCode::OK).await;
    assert!(client.publish(&hub, "after").await.is_success());
    client.reads_all(&hub).await;
    disk.until_log_says("the slow commit is done").await;
    hub.kill();
}

#[tokio::test]
async fn a_hub_whose_disk_hangs_ends_itself_and_starts_anew() {
    let disk = Disk::new();
    let mut client = Client::new();
    let mut hub = disk.hub();
    assert!(client.publish(&hub, "before").await.is_success());
    disk.says("hang");
    let answer = client.send(&hub, "hung").await;
    assert!(answer.is_err(), "an event that was not stored was answered: {answer:?}");
    let status = ended(&mut hub.child).await;
    assert!(!status.success(), "{status}");
    assert!(disk.log().contains("a commit hangs"), "{}", disk.log());
    disk.says("none");
    let hub = disk.hub();
    assert_eq!(client.ready(&hub).await, StatusCode::OK);
    assert!(client.publish(&hub, "after").await.is_success());
    client.reads_all(&hub).await;
    hub.kill();
}

#[tokio::test]
async fn a_hub_that_cannot_use_its_directory_says_which_file_and_what_to_do() {
    let disk = Disk::new();
    let mut client = Client::new();
    let hub = disk.hub();
    assert!(client.publish(&hub, "before").await.is_success());
    hub.kill();
    let refused = |says: &[&str]| {
        let output = disk.command().stderr(Stdio::piped()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(72), "{error}");
        for part in says {
            assert!(error.contains(part), "{part:?} in\n{error}");
        }
    };
    disk.says("forbidden");
    refused(&["journal/TIDINGS: ", "give the hub's user read and write permission"]);
    disk.says("none");
    let format = disk.data().join("journal/TIDINGS");
    let own = fs::read(&format).unwrap();
    fs::write(&format, "tidings journal 999\n").unwrap();
    refused(&["journal/TIDINGS: the journal has version 999", "or a newer one"]);
    fs::write(&format, own).unwrap();
    let mark = disk.data().join("journal/commits");
    let own = fs::read(&mark).unwrap();
    fs::write(&mark, "7\n").unwrap();
    refused(&["journal/commits: is damaged", "or delete it to accept"]);
    fs::write(&mark, own).unwrap();
    let hub = disk.hub();
    client.reads_all(&hub).await;
    hub.kill();
}
