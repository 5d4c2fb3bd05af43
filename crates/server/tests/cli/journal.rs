//! `tidings journal`: what a stopped hub left is checked, saved, made anew and repaired.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{Hub, run, run_with_input};

/// A data directory of a hub that took some events and was stopped.
fn stopped() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    for n in 0..20 {
        let data = format!("\"number {n}\"");
        let args = ["publish", "--topic", "t", "--type", "a.b", "--data", &data];
        run(directory.path(), &args).expect(0);
    }
    drop(hub);
    let journal = directory.path().join(".tidings/journal");
    (directory, journal)
}

/// The commit log's only file, without the zeros at its end.
fn log_file(journal: &Path) -> (PathBuf, Vec<u8>) {
    let files = fs::read_dir(journal.join("store")).unwrap().map(|entry| entry.unwrap().path());
    let mut logs = files.filter(|path| path.extension().is_some_and(|kind| kind == "jnl"));
    let path = logs.next().unwrap();
    assert!(logs.next().is_none());
    let mut bytes = fs::read(&path).unwrap();
    let length = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes.truncate(length);
    (path, bytes)
}

#[test]
fn a_journal_is_checked_exported_and_imported() {
    let (directory, _) = stopped();
    let at = directory.path();
    let checked = run(at, &["journal", "check", "--data", ".tidings"]);
    assert!(checked.err.contains("sound: 1 topics, 20 events"), "{checked:?}");
    checked.expect(0);
    run(at, &["journal", "export", "--data", ".tidings", "--file", "saved"]).expect(0);
    let saved = fs::read_to_string(at.join("saved")).unwrap();
    assert!(saved.contains("number 19") && saved.lines().last().unwrap().starts_with("{\"end\""));
    run(at, &["journal", "export", "--data", ".tidings", "--file", "saved"]).expect(64);
    run(at, &["journal", "import", "--data", "other", "--file", "saved"]).expect(0);
    run(at, &["journal", "check", "--data", "other", "--quiet"]).expect(0);
    // The same again, but for the time at which it was written.
    let again = run(at, &["journal", "export", "--data", "other", "--quiet"]).expect(0);
    let rest = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(rest(&again), rest(&saved));
    // Over a journal nothing is imported, nor what is cut short.
    run(at, &["journal", "import", "--data", "other", "--file", "saved"]).expect(72);
    let cut = &saved[..saved.len() * 2 / 3];
    let refused = run_with_input(at, &["journal", "import", "--data", "cut"], cut.as_bytes());
    assert!(refused.err.contains("line "), "{refused:?}");
    refused.expect(65);
    run(at, &["journal", "check", "--data", "cut"]).expect(72);
}

/// A script that is told 65 restores a backup; 72 is a wrong path, or something to set right about it.
#[test]
fn a_directory_that_cannot_be_used_is_not_called_a_damaged_journal() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::create_dir_all(at.join("newer/journal/store")).unwrap();
    fs::write(at.join("newer/journal/TIDINGS"), "tidings journal 99\n").unwrap();
    fs::write(at.join("file"), "").unwrap();
    for (data, says) in [
        ("nowhere", "there is no journal here"),
        ("newer", "the journal has version 99"),
        ("file", "cannot be read"),
    ] {
        for tool in ["check", "export", "repair"] {
            let refused = run(at, &["journal", tool, "--data", data]);
            assert!(refused.err.contains(says), "{refused:?}");
            refused.expect(72);
        }
    }
    for data in ["newer", "file", "/proc/x"] {
        run_with_input(at, &["journal", "import", "--data", data], b"").expect(72);
        let refused = run(at, &["dev", "--listen", "127.0.0.1:0", "--data", data]);
        refused.expect(72);
    }
    assert_eq!(fs::read(at.join("file")).unwrap(), b"");
}

/// Whose umask lets everybody read.
#[test]
fn what_holds_events_is_for_the_eyes_of_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let shell = |line: &str| {
        let binary = env!("CARGO_BIN_EXE_tidings");
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask 022 && exec {line}"), binary]).current_dir(at);
        shell.stdin(Stdio::null()).stdout(Stdio::piped());
        shell
    };
    let serve = "\"$0\" dev --listen 127.0.0.1:0 --json --data made/data";
    let mut hub = shell(serve).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(hub.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    let (url, key) = (said["url"].as_str().unwrap(), said["publisher_key"].as_str().unwrap());
    let publish = ["publish", "--topic", "a", "--type", "t", "--url", url, "--api-key", key];
    run(at, &publish).expect(0);
    hub.kill().unwrap();
    hub.wait().unwrap();
    let export = shell("\"$0\" journal export --data made/data --file saved").status().unwrap();
    assert_eq!(export.code(), Some(0));
    let import = shell("\"$0\" journal import --data again --file saved").status().unwrap();
    assert_eq!(import.code(), Some(0));
    let mut open = Vec::new();
    let mut found = vec![at.join("saved"), at.join("made/data"), at.join("again")];
    while let Some(path) = found.pop() {
        let about = fs::metadata(&path).unwrap();
        let expected = if about.is_dir() { 0o700 } else { 0o600 };
        if about.permissions().mode() & 0o777 & !expected != 0 {
            open.push(path.clone());
        }
        if about.is_dir() {
            found.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert_eq!(open, Vec::<PathBuf>::new());
}

#[test]
fn the_tools_leave_a_hub_that_runs_alone() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    for tool in ["check", "export", "repair"] {
        let refused = run(directory.path(), &["journal", tool, "--data", ".tidings"]);
        assert!(refused.err.contains("another process has this journal open"), "{refused:?}");
        refused.expect(75);
    }
    drop(hub);
}

#[test]
fn a_damaged_commit_log_is_named_kept_and_repaired() {
    let (directory, journal) = stopped();
    let at = directory.path();
    let (log, mut bytes) = log_file(&journal);
    let place = bytes.windows(9).position(|part| part == b"number 10").unwrap();
    bytes[place] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let dev = ["dev", "--listen", "127.0.0.1:0", "--data", ".tidings"];
    for args in [&["journal", "check", "--data", ".tidings"][..], &dev] {
        let refused = run(at, args);
        for part in [
            ".tidings/journal/store/0.jnl: is damaged at byte",
            "the commits ",
            "tidings journal repair",
        ] {
            assert!(refused.err.contains(part), "{part:?} in {refused:?}");
        }
        assert_eq!(fs::read(&log).unwrap(), bytes, "a refusal changes nothing");
    }
    let repaired = run(at, &["journal", "repair", "--data", ".tidings"]);
    assert!(repaired.err.contains("kept in") && repaired.err.contains("new epoch"), "{repaired:?}");
    repaired.expect(0);
    let kept = journal.join("damaged").join(log.file_name().unwrap());
    assert_eq!(fs::read(kept).unwrap(), bytes);
    let hub = Hub::start(at);
    let follow = ["follow", "--topic", "t", "--since", "earliest", "--catch-up", "--quiet"];
    let left = run(at, &follow).expect(0);
    assert_eq!(left.lines().count(), 10, "{left}");
    drop(hub);
    run(at, &["journal", "check", "--data", ".tidings"]).expect(0);
}
