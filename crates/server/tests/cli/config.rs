//! `tidings config`: problems with their places, values with their origins.

use crate::support::{run, tidings};

#[test]
fn every_problem_is_listed_with_its_place_and_the_exit_code_is_78() {
    let directory = tempfile::tempdir().unwrap();
    let toml = "listn = \"127.0.0.1:1\"\n[limits]\nring_frames = -1\n";
    std::fs::write(directory.path().join("tidings.toml"), toml).unwrap();
    for command in [&["config", "check"][..], &["config", "show"], &["serve"]] {
        let output =
            tidings(directory.path(), command).env("TIDINGS_HEARTBEET", "1s").output().unwrap();
        assert_eq!(output.status.code(), Some(78));
        let err = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = err.lines().collect();
        assert_eq!(
            lines,
            [
                "error: tidings.toml:1: unknown key `listn`; did you mean `listen`?",
                "error: tidings.toml:3: `limits.ring_frames`: invalid value: integer `-1`, expected u64",
                "error: TIDINGS_HEARTBEET: unknown variable; did you mean `TIDINGS_HEARTBEAT`?",
            ]
        );
    }
}

#[test]
fn every_key_that_cannot_be_is_listed_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let toml = "[[auth.jwt.keys]]\nalgorithm = \"HS256\"\nsecret = \"short\"\n\
                [[auth.api_keys]]\nid = \"a b\"\nsha256 = \"\"\n\
                [[auth.api_keys]]\nid = \"abcdefgh\"\nsha256 = \"no\"\n";
    std::fs::write(directory.path().join("tidings.toml"), toml).unwrap();
    let ran = run(directory.path(), &["config", "check"]);
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!(lines.len(), 4, "{ran:?}");
    for (line, place) in lines.iter().zip([
        "tidings.toml:1: `auth.jwt.keys[0].secret`",
        "tidings.toml:4: `auth.api_keys[0].id`",
        "tidings.toml:4: `auth.api_keys[0].sha256`",
        "tidings.toml:7: `auth.api_keys[1].sha256`",
    ]) {
        assert!(line.contains(place), "{line} {place}");
    }
    assert!(!ran.err.contains("short"), "{ran:?}");
    ran.expect(78);
}

#[test]
fn show_prints_where_each_value_comes_from_and_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let secret = "0123456789abcdef0123456789abcdef";
    let toml = format!(
        "heartbeat = \"5s\"\n[[auth.jwt.keys]]\nalgorithm = \"HS256\"\nsecret = \"{secret}\"\n"
    );
    std::fs::write(directory.path().join("other.toml"), toml).unwrap();
    let output =
        tidings(directory.path(), &["config", "show", "--config", "other.toml", "--retry", "1s"])
            .env("TIDINGS_DATA", "/var/lib/tidings")
            .output()
            .unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    for line in [
        "# file: other.toml",
        "heartbeat = \"5s\"  # other.toml:1",
        "retry = \"1s\"  # --retry",
        "data = \"/var/lib/tidings\"  # TIDINGS_DATA",
        "drain_window = \"20s\"  # default",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in\n{shown}");
    }
    assert!(!shown.contains(secret) && shown.contains("[secret]"), "{shown}");
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let directory = tempfile::tempdir().unwrap();
    let ran = run(directory.path(), &["config", "check", "--config", "absent.toml"]);
    assert!(ran.err.contains("absent.toml: cannot be read"), "{ran:?}");
    ran.expect(78);
}
