//! The whole hub on a file system without room: the kernel refuses, wherever that hits.
//!
//! The rule of `faults.rs`, where it is simulated. A real one stops in the middle of a record, and
//! leaves no room for what a start, an end or the store's background work would write. Broken on
//! purpose: let the writer answer before it commits.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use reqwest::StatusCode;
use tidings_services::{on_a_small_disk, small_disk};

use super::{Hub, faults::Client};

const DISK_BYTES: u64 = 10 * 1024 * 1024;
/// What somebody else takes of it at first, so that there is room to be made.
const OTHERS_BYTES: usize = 6 * 1024 * 1024;
/// More events than there is room for.
const EVENTS_MAX: usize = 1_000;

#[test]
fn a_file_system_without_room_costs_no_acknowledged_event_and_room_and_a_new_start_mend_it() {
    on_a_small_disk("full::a_hub_on_a_small_disk", DISK_BYTES);
}

/// 24 000 letters that nothing compresses.
fn letters(seed: usize) -> String {
    let mut state = seed as u64 + 1;
    let mut letter = || {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        format!("{state:016x}")
    };
    (0..1_500).map(|_| letter()).collect()
}

/// A hub on the small file system; its log is elsewhere, as a log is.
struct Small {
    data: PathBuf,
    others: PathBuf,
    log: tempfile::NamedTempFile,
}

impl Small {
    fn hub(&self) -> Hub {
        let log = fs::OpenOptions::new().append(true).open(self.log.path()).unwrap();
        let mut command = self.command(&["dev", "--json", "--listen", "127.0.0.1:0"]);
        command.stderr(Stdio::from(log));
        Hub::of(command)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(args).arg("--data").arg(&self.data);
        command
    }

    fn check(&self) -> Output {
        self.command(&["journal", "check"]).output().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap()
    }

    /// Takes room, or gives it back.
    fn others_take(&self, bytes: usize) {
        fs::write(&self.others, vec![0; bytes]).unwrap();
    }

    /// Publishes until there is no room, and checks how that is told.
    async fn fill(&self, client: &mut Client, hub: &Hub, round: usize) {
        let mut refused = None;
        for n in 0..EVENTS_MAX {
            let data = letters(round * EVENTS_MAX + n);
            let status = client.publish_data(hub, &format!("{round} {n}"), &data).await;
            if !status.is_success() {
                refused = Some(status);
                break;
            }
        }
        // With `Retry-After`, as the client checks.
        assert_eq!(refused, Some(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(client.ready(hub).await, StatusCode::SERVICE_UNAVAILABLE);
        for part in [
            "the journal takes no more events",
            "/data/journal: a commit failed: No space left on device",
            "then start the hub anew",
        ] {
            assert!(self.log().contains(part), "{part:?} in\n{}", self.log());
        }
        client.reads_all(hub).await;
    }
}

/// SIGTERM; whether the hub says that it ended in order.
fn terminate(mut hub: Hub) -> bool {
    let pid = hub.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    hub.child.wait().unwrap().success()
}

#[tokio::test]
#[ignore = "started by the test of this file, on a file system of its own"]
async fn a_hub_on_a_small_disk() {
    let disk = small_disk();
    let small = Small {
        data: disk.join("data"),
        others: disk.join("others"),
        log: tempfile::NamedTempFile::new().unwrap(),
    };
    small.others_take(OTHERS_BYTES);
    let mut client = Client::new();
    let hub = small.hub();
    assert!(client.publish(&hub, "first").await.is_success());
    small.fill(&mut client, &hub, 0).await;
    hub.kill();
    // A supervisor starts it at once, when there is no more room than before.
    fs::write(small.log.path(), "").unwrap();
    let hub = small.hub();
    client.reads_all(&hub).await;
    small.fill(&mut client, &hub, 1).await;
    assert!(terminate(hub), "{}", small.log());
    let hub = small.hub();
    client.reads_all(&hub).await;
    small.fill(&mut client, &hub, 2).await;
    // Room alone changes nothing: what the system holds of the file that failed is not certain.
    small.others_take(0);
    assert_eq!(client.publish(&hub, "too early").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(client.ready(&hub).await, StatusCode::SERVICE_UNAVAILABLE);
    hub.kill();
    let hub = small.hub();
    assert_eq!(client.ready(&hub).await, StatusCode::OK);
    for n in 0..20 {
        let id = format!("after {n}");
        assert!(client.publish_data(&hub, &id, &letters(n)).await.is_success());
    }
    client.reads_all(&hub).await;
    assert!(terminate(hub), "{}", small.log());
    let check = small.check();
    assert!(check.status.success(), "{check:?}");
}
