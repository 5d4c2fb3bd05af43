//! `tidings follow`: formats, places, and hubs that come and go.

use crate::support::{Client, Hub, numbered_lines, numbers, run, run_with_input};

fn publish_lines(directory: &std::path::Path, range: std::ops::RangeInclusive<u32>) {
    let args = ["publish", "--lines", "--topic", "a"];
    run_with_input(directory, &args, numbered_lines(range).as_bytes()).expect(0);
}

#[test]
fn a_cursor_file_continues_where_the_last_follow_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let _hub = Hub::start(directory.path());
    let args = [
        "follow",
        "--topic",
        "a",
        "--since",
        "earliest",
        "--format",
        "data",
        "--cursor-file",
        "cursor",
        "--catch-up",
    ];
    let next = || run(directory.path(), &args).expect(0);
    publish_lines(directory.path(), 1..=3);
    assert_eq!(next(), "1\n2\n3\n");
    assert_eq!(next(), "");
    publish_lines(directory.path(), 4..=5);
    assert_eq!(next(), "4\n5\n");
    assert!(!directory.path().join("cursor.new").exists());
}

/// Proven by breaking the code: with the place saved before the output is flushed, the events that
/// the killed follow had not printed are missing.
#[test]
fn a_follow_that_is_killed_again_and_again_prints_every_event() {
    let directory = tempfile::tempdir().unwrap();
    let _hub = Hub::start(directory.path());
    publish_lines(directory.path(), 1..=2000);
    let args = [
        "follow",
        "--topic",
        "a",
        "--since",
        "earliest",
        "--format",
        "data",
        "--cursor-file",
        "cursor",
    ];
    let mut last = 0;
    while last < 2000 {
        let follower = Client::start(directory.path(), &args);
        let mut printed = vec![follower.line()];
        printed.extend(follower.kill());
        let printed: Vec<u32> = printed.iter().map(|line| line.parse().unwrap()).collect();
        // What was printed but not yet noted comes again; nothing is passed over.
        assert!(printed[0] <= last + 1, "{last} then {}", printed[0]);
        assert!(printed.windows(2).all(|pair| pair[1] == pair[0] + 1), "{printed:?}");
        last = *printed.last().unwrap();
    }
}

#[test]
fn a_follow_outlives_the_hub() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    let args = ["follow", "--topic", "a", "--since", "earliest", "--format", "data"];
    let mut follower = Client::start(directory.path(), &args);
    publish_lines(directory.path(), 1..=3);
    assert_eq!(follower.lines(3), numbers(1..=3));
    hub.kill();
    assert!(follower.error_line().ends_with("trying again"));
    let hub = Hub::start(directory.path());
    publish_lines(directory.path(), 4..=6);
    assert_eq!(follower.lines(3), numbers(4..=6));
    assert_eq!(hub.terminate(), Some(0));
    let _hub = Hub::start(directory.path());
    publish_lines(directory.path(), 7..=9);
    assert_eq!(follower.lines(3), numbers(7..=9));
}

#[test]
fn many_topics_are_followed_on_one_connection_and_filtered() {
    let directory = tempfile::tempdir().unwrap();
    let _hub = Hub::start(directory.path());
    for (topic, event_type, data) in
        [("a", "job.done", "1"), ("b", "job.failed", "2"), ("a", "chat", "3")]
    {
        let args = ["publish", "--topic", topic, "--type", event_type, "--data", data];
        run(directory.path(), &args).expect(0);
    }
    let args = [
        "follow",
        "--topic",
        "a",
        "--topic",
        "b",
        "--since",
        "earliest",
        "--catch-up",
        "--format",
        "data",
        "--filter",
        "type=job.*",
    ];
    let seen = run(directory.path(), &args).expect(0);
    let mut seen: Vec<&str> = seen.lines().collect();
    seen.sort_unstable();
    assert_eq!(seen, ["1", "2"]);
    let args = ["follow", "--topic", "a", "--since", "latest:1", "--count", "1"];
    let seen: serde_json::Value =
        serde_json::from_str(&run(directory.path(), &args).expect(0)).unwrap();
    assert_eq!((&seen["type"], &seen["data"]), (&"chat".into(), &3.into()));
    let args = ["follow", "--topic", "a", "--since", "earliest", "--format", "sse", "--catch-up"];
    let seen = run(directory.path(), &args).expect(0);
    assert!(seen.starts_with(": ok\n\nretry: "), "{seen}");
    assert!(seen.contains("event: tidings.caught_up\n"), "{seen}");
}

#[test]
fn a_closed_topic_ends_its_follow_and_takes_no_more_lines() {
    let directory = tempfile::tempdir().unwrap();
    let _hub = Hub::start(directory.path());
    let args = ["follow", "--topic", "a", "--since", "earliest", "--format", "data"];
    let follower = Client::start(directory.path(), &args);
    publish_lines(directory.path(), 1..=2);
    assert_eq!(follower.lines(2), numbers(1..=2));
    let close = ["publish", "--topic", "a", "--type", "end", "--data", "3", "--close"];
    run(directory.path(), &close).expect(0);
    assert_eq!(follower.line(), "3");
    assert_eq!(follower.finish(), 0);
    // One that was not there ends just so.
    assert_eq!(run(directory.path(), &args).expect(0), "1\n2\n3\n");
    let late = run_with_input(directory.path(), &["publish", "--lines", "--topic", "a"], b"4\n");
    assert!(late.err.contains("topic_closed"), "{late:?}");
    late.expect(65);
}

#[test]
fn a_reader_that_has_enough_ends_the_follow_quietly() {
    let directory = tempfile::tempdir().unwrap();
    let _hub = Hub::start(directory.path());
    publish_lines(directory.path(), 1..=9000);
    let binary = env!("CARGO_BIN_EXE_tidings");
    let script = format!(
        "{binary} follow --topic a --since earliest --format data | head -n 2; echo ${{PIPESTATUS[0]}}"
    );
    let output = std::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1\n2\n0\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn what_is_not_allowed_or_not_there_ends_a_follow_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    let with = |args: &[&str]| run(directory.path(), &[&["follow"], args].concat());
    let ran = with(&["--topic", "a", "--url", hub.says("url"), "--token", "not-a-token"]);
    assert!(!ran.err.contains("not-a-token"), "{ran:?}");
    ran.expect(77);
    with(&["--topic", "a b"]).expect(65);
    with(&["--topic", "a", "--filter", "colour=red"]).expect(64);
    with(&["--topic", "a", "--cursor-file", "/absent/cursor", "--catch-up"]).expect(74);
    drop(hub);
    with(&["--topic", "a", "--retry-for", "0s"]).expect(69);
}
