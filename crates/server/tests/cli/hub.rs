//! `tidings dev`, `tidings serve` and `tidings health`.

use std::{
    io::{BufRead, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
};

use crate::support::{Client, Hub, numbered_lines, run, run_with_input, send_signal, tidings};

#[test]
fn dev_prints_one_line_of_json_and_keeps_its_keys_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    let members: Vec<_> = hub.says.as_object().unwrap().keys().cloned().collect();
    assert_eq!(members, ["admin_url", "publisher_key", "reader_token", "url"]);
    let (key, token) = (hub.says("publisher_key").to_owned(), hub.says("reader_token").to_owned());
    run(directory.path(), &["publish", "--topic", "a", "--type", "t"]).expect(0);
    assert_eq!(hub.terminate(), Some(0));
    let hub = Hub::start(directory.path());
    assert_eq!((hub.says("publisher_key"), hub.says("reader_token")), (&*key, &*token));
    let seen = run(
        directory.path(),
        &[
            "follow",
            "--url",
            hub.says("url"),
            "--token",
            &token,
            "--topic",
            "a",
            "--since",
            "earliest",
            "--catch-up",
        ],
    );
    assert_eq!(seen.expect(0).lines().count(), 1);
}

#[test]
fn keys_of_dev_are_for_the_eyes_of_their_owner() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    let data = directory.path().join(".tidings");
    for file in ["credentials.json", "dev.json"] {
        let mode = std::fs::metadata(data.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert_eq!(std::fs::read_to_string(data.join(".gitignore")).unwrap(), "*\n");
    // Also when somebody copied the directory with wider permissions.
    drop(hub);
    let file = data.join("dev.json");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _hub = Hub::start(directory.path());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn dev_refuses_to_listen_beyond_loopback() {
    let directory = tempfile::tempdir().unwrap();
    let ran = run(directory.path(), &["dev", "--listen", "0.0.0.0:0"]);
    assert!(ran.err.contains("tidings serve"), "{ran:?}");
    ran.expect(64);
    assert!(!directory.path().join(".tidings").exists());
}

#[test]
fn a_second_hub_on_the_same_directory_is_refused_and_harms_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    let ran = run(directory.path(), &["dev", "--listen", "127.0.0.1:0", "--json"]);
    let said = "error: .tidings: another process has this data directory open; end it, or choose \
                another directory with `--data`\n";
    assert_eq!(ran.err, said);
    ran.expect(75);
    run(directory.path(), &["publish", "--topic", "a", "--type", "t"]).expect(0);
    run(directory.path(), &["health"]).expect(0);
    drop(hub);
}

#[test]
fn a_port_that_is_taken_is_told_from_one_that_cannot_be() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    let address = hub.says("url").strip_prefix("http://").unwrap();
    let ran = run(directory.path(), &["dev", "--listen", address, "--data", "other"]);
    assert!(ran.err.contains(address) && ran.err.contains("is another hub running?"), "{ran:?}");
    ran.expect(75);
    let key = ["key", "create", "--write", "a"];
    std::fs::write(directory.path().join("tidings.toml"), run(directory.path(), &key).expect(0))
        .unwrap();
    // An address for documentation (RFC 5737), which no machine has.
    let elsewhere = ["serve", "--listen", "192.0.2.1:8080", "--behind-proxy", "true"];
    run(directory.path(), &elsewhere).expect(78);
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named_with_the_file_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    drop(Hub::start(directory.path()));
    let format = directory.path().join(".tidings/journal/TIDINGS");
    std::fs::write(&format, "tidings journal 999\n").unwrap();
    let ran = run(directory.path(), &["dev", "--listen", "127.0.0.1:0"]);
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!(lines[0], "error: the data directory .tidings cannot be used");
    assert!(lines[1].starts_with("error: .tidings/journal/TIDINGS: "), "{ran:?}");
    assert!(lines[1].contains("run the version of Tidings that wrote it"), "{ran:?}");
    ran.expect(72);
    assert_eq!(std::fs::read_to_string(&format).unwrap(), "tidings journal 999\n");
}

#[test]
fn metrics_are_on_the_admin_listener_and_for_clients_only_if_they_are_to_be() {
    let status = |url: &str, path: &str| {
        let url = format!("{url}{path}");
        let args = ["-s", "-o", "/dev/null", "-w", "%{http_code}", &url];
        let output = std::process::Command::new("curl").args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for (settings, for_clients) in [("", "404"), ("metrics.public = true\n", "200")] {
        let directory = tempfile::tempdir().unwrap();
        let (mut child, mut log, _) = serve(directory.path(), settings);
        let started = log_line(&mut log);
        let address = |name: &str| format!("http://{}", started[name].as_str().unwrap());
        assert_eq!(status(&address("listen"), "/metrics"), for_clients);
        assert_eq!(status(&address("admin"), "/metrics"), "200");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_file_is_no_data_directory() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f"), "mine").unwrap();
    let ran = run(directory.path(), &["dev", "--listen", "127.0.0.1:0", "--data", "f"]);
    assert!(ran.err.contains("f: is a file; choose a directory"), "{}", ran.err);
    ran.expect(72);
    assert_eq!(std::fs::read_to_string(directory.path().join("f")).unwrap(), "mine");
}

#[test]
fn dev_prints_a_banner_whose_curl_lines_name_the_address_and_keys() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = tidings(directory.path(), &["dev", "--listen", "127.0.0.1:0", "--data", "d"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let banner: Vec<String> = out
        .lines()
        .map(Result::unwrap)
        .scan(false, |over, line| {
            let was_over = std::mem::replace(over, line.starts_with("or, here"));
            (!was_over).then_some(line)
        })
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let link = banner.iter().find(|line| line.starts_with("watch")).unwrap();
    assert!(link.contains("/#token=ey") && link.contains("&key=tdk_"), "{link}");
    assert!(!link.contains('?'), "a credential must be in the fragment: {link}");
    assert_eq!(banner.iter().filter(|line| line.contains(" curl ")).count(), 2);
    assert!(banner.iter().all(|line| !line.contains('\u{1b}')), "colours are for terminals");
    let pipe = banner.iter().find(|line| line.starts_with("or, here")).unwrap();
    assert!(pipe.ends_with(" --data-dir 'd'"), "{pipe}");
}

#[test]
fn the_live_page_may_load_nothing_from_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    let curl = |path: &str| {
        let url = format!("{}{path}", hub.says("url"));
        let output = std::process::Command::new("curl").args(["-si", &url]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().to_lowercase()
    };
    for (path, kind) in
        [("/", "text/html"), ("/live/app.js", "text/javascript"), ("/live/style.css", "text/css")]
    {
        let answer = curl(path);
        let head = answer.split("\r\n\r\n").next().unwrap();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(head.contains(&format!("content-type: {kind}")), "{head}");
        assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    }
}

#[test]
fn a_signal_drains_readers_who_are_told_to_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    let mut follower = Client::start(directory.path(), &["follow", "--topic", "a"]);
    // The follower is there once it sees what is published after it.
    run(directory.path(), &["publish", "--topic", "b", "--type", "t"]).expect(0);
    let url = hub.says("url").to_owned();
    let mut raw = std::process::Command::new("curl")
        .args(["-sN", "-H", &format!("Authorization: Bearer {}", hub.says("reader_token"))])
        .args([
            "-H",
            "Accept: text/event-stream",
            &format!("{url}/v1/events?topic=b&since=earliest"),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stream = BufReader::new(raw.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("event: tidings.caught_up") {
        line.clear();
        assert_ne!(stream.read_line(&mut line).unwrap(), 0);
    }
    assert_eq!(hub.terminate(), Some(0));
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    raw.wait().unwrap();
    assert!(rest.contains("event: tidings.goaway") && rest.contains("\"drain\""), "{rest}");
    // It was told, or cut off before it was attached; either way it tries again.
    assert!(!follower.error_line().is_empty());
    follower.kill();
}

#[test]
fn while_it_drains_a_hub_is_not_ready_and_a_second_signal_ends_it_at_once() {
    let directory = tempfile::tempdir().unwrap();
    // Its readers would be let go within minutes.
    let (mut child, mut log, key) = serve(directory.path(), "drain_window = \"600s\"\n");
    let started = log_line(&mut log);
    let url = format!("http://{}", started["listen"].as_str().unwrap());
    let admin = format!("http://{}", started["admin"].as_str().unwrap());
    let hub = ["--url", &url, "--api-key", &key];
    let follow = [&["follow", "--topic", "a/1", "--since", "earliest"], &hub[..]].concat();
    let publish = [&["publish", "--topic", "a/1", "--type", "t"], &hub[..]].concat();
    run(directory.path(), &publish).expect(0);
    let follower = Client::start(directory.path(), &follow);
    follower.line();
    run(directory.path(), &["health", "--url", &admin]).expect(0);
    send_signal(&child, "TERM");
    while log_line(&mut log)["message"] != "draining; a second signal ends at once" {}
    let ran = run(directory.path(), &["health", "--url", &admin]);
    assert!(ran.err.contains("draining"), "{ran:?}");
    ran.expect(1);
    run(directory.path(), &["health", "--url", &admin, "--live"]).expect(0);
    send_signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    while log_line(&mut log)["message"] != "ended by a second signal" {}
    follower.kill();
}

/// Starts `tidings serve` with these settings, and a key that may do everything under `a/`.
pub(crate) fn serve(
    directory: &std::path::Path,
    settings: &str,
) -> (std::process::Child, BufReader<std::process::ChildStderr>, String) {
    let create = ["key", "create", "--write", "a/*", "--read", "a/*", "--json"];
    let made: serde_json::Value = serde_json::from_str(&run(directory, &create).expect(0)).unwrap();
    let entry = |name: &str| made["entry"][name].as_str().unwrap().to_owned();
    let toml = format!(
        "{settings}listen = \"127.0.0.1:0\"\ndata = \"data\"\nadmin.listen = \"127.0.0.1:0\"\n\
         [[auth.api_keys]]\nid = \"{}\"\nsha256 = \"{}\"\nread = [\"a/*\"]\nwrite = [\"a/*\"]\n",
        entry("id"),
        entry("sha256"),
    );
    let file = directory.join("tidings.toml");
    std::fs::write(&file, toml).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    run(directory, &["config", "check"]).expect(0);
    let mut child = tidings(directory, &["serve"]).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    (child, log, made["key"].as_str().unwrap().to_owned())
}

pub(crate) fn log_line(log: &mut impl BufRead) -> serde_json::Value {
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn serve_refuses_what_would_be_unsafe_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let ran = run(directory.path(), &["serve"]);
    assert!(ran.err.contains("tidings key create"), "{ran:?}");
    ran.expect(78);
    let key = "TIDINGS_AUTH_JWT_KEYS";
    let with = |secret: &str, args: &[&str]| {
        let value = format!("[{{ algorithm = \"HS256\", secret = \"{secret}\" }}]");
        let output = tidings(directory.path(), args).env(key, value).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{err}");
        assert!(secret.len() < 8 || !err.contains(secret), "{err}");
        err
    };
    assert!(with("too-short-to-be-safe", &["serve"]).contains("at least 32 random bytes"));
    let secret = "0123456789abcdef0123456789abcdef";
    let err = with(secret, &["serve", "--listen", "0.0.0.0:0"]);
    assert!(err.contains("behind_proxy") && err.contains("tls.cert"), "{err}");
}

#[test]
fn serve_serves_what_is_configured_and_health_finds_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, mut log, key) = serve(directory.path(), "");
    let logged = log_line(&mut log);
    // Its log is not read any further: a collector that goes away must not end the hub.
    drop(log);
    let url = format!("http://{}", logged["listen"].as_str().unwrap());
    let admin = format!("http://{}", logged["admin"].as_str().unwrap());
    run(directory.path(), &["health", "--url", &admin]).expect(0);
    run(directory.path(), &["health", "--url", &url, "--live"]).expect(0);
    let publish = |topic: &str| {
        let output =
            tidings(directory.path(), &["publish", "--url", &url, "--topic", topic, "--type", "t"])
                .env("TIDINGS_KEY", &key)
                .output()
                .unwrap();
        output.status.code()
    };
    assert_eq!(publish("a/1"), Some(0));
    assert_eq!(publish("b/1"), Some(77));
    send_signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let ran = run(directory.path(), &["health", "--url", &admin]);
    assert!(ran.err.contains(&admin), "{ran:?}");
    ran.expect(1);
}

#[test]
fn a_client_without_a_credential_is_told_where_to_get_one() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::start(directory.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let args = ["publish", "--url", hub.says("url"), "--lines", "--topic", "a"];
    let ran = run_with_input(elsewhere.path(), &args, numbered_lines(1..=3).as_bytes());
    assert!(ran.err.contains("TIDINGS_KEY"), "{ran:?}");
    ran.expect(77);
}
