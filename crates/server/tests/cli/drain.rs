//! The end of `tidings serve`: what balancers, readers and the service manager are told.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    hub::{log_line, serve},
    support::{Client, run, send_signal, tidings},
};

const DRAINING: &str = "draining; a second signal ends at once";

/// Broken on purpose, it failed: with the listener closed by the first signal.
#[test]
fn during_the_grace_a_hub_is_not_ready_and_serves_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, mut log, key) = serve(directory.path(), "drain_grace = \"300s\"\n");
    let started = log_line(&mut log);
    let url = format!("http://{}", started["listen"].as_str().unwrap());
    let hub = ["--url", &url, "--api-key", &key];
    let publish = [&["publish", "--topic", "a/1", "--type", "t", "--data", "1"], &hub[..]].concat();
    let follow = [&["follow", "--topic", "a/1", "--since", "earliest"], &hub[..]].concat();
    run(directory.path(), &publish).expect(0);
    let before = Client::start(directory.path(), &follow);
    before.line();
    send_signal(&child, "TERM");
    while log_line(&mut log)["message"] != DRAINING {}
    // A balancer that has not asked yet sends others.
    let ran = run(directory.path(), &["health", "--url", &url]);
    assert!(ran.err.contains("takes no events"), "{ran:?}");
    ran.expect(1);
    run(directory.path(), &publish).expect(0);
    before.line();
    let after = Client::start(directory.path(), &follow);
    after.lines(2);
    send_signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    before.kill();
    after.kill();
    // The balancer's question is no failure.
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(
        rest.contains("ended by a second signal") && !rest.contains("request failed"),
        "{rest}"
    );
}

#[test]
fn a_proxy_without_a_name_is_told_of() {
    for (settings, is_told) in [("", false), ("behind_proxy = true\n", true)] {
        let directory = tempfile::tempdir().unwrap();
        let (mut child, mut log, _) = serve(directory.path(), settings);
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &serde_json::Value| line["message"] != "serving") {
            lines.push(log_line(&mut log));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let about = |line: &serde_json::Value| {
            line["level"] == "WARN" && line["message"].as_str().unwrap().contains("trusted_proxies")
        };
        assert_eq!(lines.iter().any(about), is_told, "{lines:?}");
    }
}

#[test]
fn each_reader_is_told_where_it_is_and_when_to_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let settings = "drain_grace = \"0s\"\ndrain_window = \"2s\"\nlimits.user_connections = 0\n";
    let (mut child, mut log, key) = serve(directory.path(), settings);
    let url = format!("http://{}", log_line(&mut log)["listen"].as_str().unwrap());
    let readers: Vec<_> = (0..12)
        .map(|_| {
            let mut curl = Command::new("curl")
                .args(["-sN", "-H", &format!("Authorization: Bearer {key}")])
                .args(["-H", "Accept: text/event-stream", &format!("{url}/v1/events?topic=a/1")])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stream = BufReader::new(curl.stdout.take().unwrap());
            let mut line = String::new();
            while !line.starts_with("event: tidings.caught_up") {
                line.clear();
                assert_ne!(stream.read_line(&mut line).unwrap(), 0);
            }
            (curl, stream)
        })
        .collect();
    send_signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0), "within its window");
    let mut times = Vec::new();
    for (mut curl, mut stream) in readers {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(curl.wait().unwrap().success(), "the stream ends as it should: {rest}");
        let goaway = rest.split("\n\n").find(|frame| frame.contains("tidings.goaway")).unwrap();
        assert!(goaway.contains("\"reason\":\"drain\""), "{goaway}");
        let retry = goaway.lines().find_map(|line| line.strip_prefix("retry: ")).unwrap();
        times.push(retry.parse::<u64>().unwrap());
        let checkpoint = rest.split("\n\n").find(|frame| frame.trim().starts_with("id: ")).unwrap();
        assert_eq!(checkpoint.trim().lines().count(), 1, "{rest}");
    }
    times.sort_unstable();
    times.dedup();
    assert!(times.len() > 6, "readers come back at different times: {times:?}");
}

#[test]
fn the_service_manager_is_told_and_its_watchdog_is_fed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let told = || {
        let mut message = [0; 512];
        let count = manager.recv(&mut message).unwrap();
        String::from_utf8(message[..count].to_vec()).unwrap()
    };
    // Makes the configuration, and ends before it is ready for anything.
    let (mut child, _log, _) = serve(directory.path(), "drain_grace = \"0s\"\n");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut child = tidings(directory.path(), &["serve"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut seen = vec![told(), told(), told()];
    seen.sort();
    assert_eq!(seen, ["READY=1\nSTATUS=serving\n", "WATCHDOG=1\n", "WATCHDOG=1\n"]);
    send_signal(&child, "TERM");
    while told() != "STOPPING=1\nSTATUS=draining\n" {}
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
