//! `tidings journal`: what a stopped hub left is checked, saved, made anew and repaired.

use std::{
    fs,
    path::{Path, PathBuf},
};

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
    run(at, &["journal", "import", "--data", "other", "--file", "saved"]).expect(65);
    let cut = &saved[..saved.len() * 2 / 3];
    let refused = run_with_input(at, &["journal", "import", "--data", "cut"], cut.as_bytes());
    assert!(refused.err.contains("line "), "{refused:?}");
    refused.expect(65);
    run(at, &["journal", "check", "--data", "cut"]).expect(65);
    run(at, &["journal", "check", "--data", "nowhere"]).expect(65);
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
