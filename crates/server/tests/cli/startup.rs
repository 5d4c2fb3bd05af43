//! What `tidings serve` refuses to start with: the exit code is 78, and each refusal has a remedy.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Stdio};

use crate::{
    hub::log_line,
    support::{run, tidings},
};

const SECRET: &str = "9f86d081884c7d659a2feaa0c55ad015";

fn keys(secret: &str) -> String {
    format!("[[auth.jwt.keys]]\nalgorithm = \"HS256\"\nsecret = \"{secret}\"\n")
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// What `serve` says with this file of this mode, which it refuses.
fn refusal(directory: &Path, toml: &str, mode: u32) -> String {
    write(&directory.join("tidings.toml"), toml, mode);
    for command in [&["config", "check"][..], &["serve"]] {
        let ran = run(directory, command);
        assert_eq!(ran.code, 78, "{ran:?}");
        assert!(!ran.err.contains(SECRET), "{ran:?}");
    }
    run(directory, &["serve"]).err
}

/// Every secret that a configuration can hold, as the file says it.
fn secrets(secret: &str) -> [(&'static str, String); 4] {
    let issuer = "[[auth.jwt.issuers]]\nissuer = \"https://id.example.com\"\n";
    let own = keys(SECRET);
    [
        ("auth.jwt.keys[0].secret", keys(secret)),
        (
            "auth.jwt.issuers[0].keys[0].secret",
            format!("{issuer}keys = [{{ algorithm = \"HS256\", secret = \"{secret}\" }}]\n"),
        ),
        ("admin.token", format!("admin.token = \"{secret}\"\n{own}")),
        ("cluster.secret", format!("cluster.secret = \"{secret}\"\n{own}")),
    ]
}

#[test]
fn a_secret_that_everybody_knows_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for known in [
        "change-me-0123456789abcdef0123456789abcdef",
        "your-256-bit-secret-your-256-bit-secret",
        "0123456789abcdef0123456789abcdef",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ] {
        for (path, toml) in secrets(known) {
            let err = refusal(directory.path(), &toml, 0o600);
            assert!(err.contains(&format!("`{path}` could be guessed")), "{err}");
            assert!(err.contains("head -c 32 /dev/urandom | base64"), "{err}");
            assert!(!err.contains(known), "{err}");
        }
    }
    // One that nobody knows is good in all of these places.
    for (path, toml) in secrets("Wm3nJ0yGqk2bTq8v1rXhZ5cLd7sPfUeA9oIiNgVtRzE=") {
        write(&directory.path().join("tidings.toml"), &toml, 0o600);
        let ran = run(directory.path(), &["config", "check"]);
        assert_eq!(ran.code, 0, "{path}: {ran:?}");
    }
}

#[test]
fn a_key_that_everybody_can_sign_with_is_refused() {
    // The ES256 key that jwt.io shows with its private half.
    let pem = "-----BEGIN PUBLIC KEY-----\n\
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9\n\
        q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==\n\
        -----END PUBLIC KEY-----";
    let key = format!("algorithm = \"ES256\"\npublic_key = \"\"\"\n{pem}\"\"\"\n");
    let directory = tempfile::tempdir().unwrap();
    for (path, table) in [
        ("auth.jwt.keys[0]", "[[auth.jwt.keys]]\n"),
        (
            "auth.jwt.issuers[0].keys[0]",
            "[[auth.jwt.issuers]]\nissuer = \"https://id.example.com\"\n\
             [[auth.jwt.issuers.keys]]\n",
        ),
    ] {
        let err = refusal(directory.path(), &format!("{table}{key}"), 0o600);
        assert!(
            err.contains(&format!("everybody can make tokens with `{path}.public_key`")),
            "{err}"
        );
    }
    let page = include_str!("../../../../docs/configuration.md");
    assert!(!page.contains("MFkw"), "the reference shows a key that could be used");
}

#[test]
fn a_file_with_a_secret_that_everybody_can_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let err = refusal(directory.path(), &keys(SECRET), 0o644);
    assert!(err.contains("chmod 600 tidings.toml"), "{err}");
    let file = directory.path().join("keys");
    let value = format!("[{{ algorithm = \"HS256\", secret = \"{SECRET}\" }}]");
    std::fs::remove_file(directory.path().join("tidings.toml")).unwrap();
    let check = |mode: u32, allow: &str| {
        write(&file, &value, mode);
        let output = tidings(directory.path(), &["config", "check"])
            .env("TIDINGS_AUTH_JWT_KEYS_FILE", &file)
            .env("TIDINGS_ALLOW_READABLE_SECRETS", allow)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, err) = check(0o644, "false");
    assert_eq!(code, 78, "{err}");
    assert!(err.contains("chmod 600") && err.contains("allow_readable_secrets"), "{err}");
    assert_eq!(check(0o640, "false").0, 0);
    // Where the platform decides the mode.
    assert_eq!(check(0o444, "true").0, 0);
}

#[test]
fn a_private_key_that_everybody_can_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("key.pem"), "no key", 0o644);
    write(&directory.path().join("cert.pem"), "no certificate", 0o644);
    let toml = format!("tls.cert = \"cert.pem\"\ntls.key = \"key.pem\"\n{}", keys(SECRET));
    let err = refusal(directory.path(), &toml, 0o600);
    assert!(err.contains("chmod 600 key.pem") && !err.contains("chmod 600 cert.pem"), "{err}");
}

#[test]
fn beyond_loopback_a_hub_asks_where_tls_ends_and_a_proxy_must_be_an_address() {
    let directory = tempfile::tempdir().unwrap();
    let open = format!("listen = \"0.0.0.0:0\"\n{}", keys(SECRET));
    let err = refusal(directory.path(), &open, 0o600);
    assert!(err.contains("tls.cert") && err.contains("behind_proxy = true"), "{err}");
    let toml = format!("behind_proxy = true\ntrusted_proxies = [\"nginx\"]\n{open}");
    let err = refusal(directory.path(), &toml, 0o600);
    assert!(err.contains("tidings.toml:2: `trusted_proxies[0]` must be a network"), "{err}");
    let toml = format!("behind_proxy = true\ntrusted_proxies = [\"10.0.0.0/8\"]\n{open}");
    write(&directory.path().join("tidings.toml"), &toml, 0o600);
    run(directory.path(), &["config", "check"]).expect(0);
}

#[test]
fn connections_leave_room_for_the_store_where_descriptors_are_few() {
    let directory = tempfile::tempdir().unwrap();
    let toml = "listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\ndata = \"data\"\n";
    write(&directory.path().join("tidings.toml"), &format!("{toml}{}", keys(SECRET)), 0o600);
    let limited = "ulimit -n 700 && exec \"$0\" serve";
    let mut shell = std::process::Command::new("sh");
    let binary = env!("CARGO_BIN_EXE_tidings");
    shell.args(["-c", limited, binary]).current_dir(directory.path()).stdin(Stdio::null());
    let mut child = shell.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let warning = loop {
        let line = log_line(&mut log);
        if line["level"] == "WARN" {
            break line;
        }
    };
    assert_eq!((&warning["wanted"], &warning["possible"]), (&50_000.into(), &350.into()));
    assert!(warning["message"].as_str().unwrap().contains("LimitNOFILE"), "{warning}");
    child.kill().unwrap();
    child.wait().unwrap();
}
