//! `tidings token` and `tidings key`.

use crate::support::{run, run_with_input, tidings};

#[test]
fn a_minted_token_says_what_was_asked_for_and_inspect_shows_it() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secret"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let token = run(
        directory.path(),
        &[
            "token",
            "mint",
            "--sub",
            "42",
            "--key-file",
            "secret",
            "--tenant",
            "acme",
            "--role",
            "admin",
            "--read",
            "user/*",
            "--claim",
            "teams=[7,8]",
            "--claim",
            "name=Ann",
            "--ttl",
            "15m",
        ],
    );
    let token = token.expect(0);
    let shown = run_with_input(directory.path(), &["token", "inspect"], token.as_bytes()).expect(0);
    for part in
        ["\"sub\": \"42\"", "\"tenant\": \"acme\"", "\"Ann\"", "\"user/*\"", "# not verified"]
    {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    assert!(!shown.contains(token.trim().rsplit('.').next().unwrap()), "{shown}");
    run(directory.path(), &["token", "inspect", "nonsense"]).expect(65);
}

#[test]
fn a_token_is_minted_with_the_key_and_claims_of_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let mint = ["token", "mint", "--sub", "42"];
    run(directory.path(), &mint).expect(78);
    let output = tidings(directory.path(), &mint)
        .env(
            "TIDINGS_AUTH_JWT_KEYS",
            "[{ algorithm = \"HS256\", kid = \"k1\", secret = \"0123456789abcdef0123456789abcdef\" }]",
        )
        .env("TIDINGS_AUTH_JWT_ISSUER", "me")
        .env("TIDINGS_AUTH_JWT_AUDIENCE", "hub")
        .output()
        .unwrap();
    let token = String::from_utf8(output.stdout).unwrap();
    let shown = run(directory.path(), &["token", "inspect", token.trim()]).expect(0);
    for part in ["\"kid\": \"k1\"", "\"iss\": \"me\"", "\"aud\": \"hub\""] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
}

#[test]
fn a_key_is_shown_once_and_its_entry_is_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let made = run(directory.path(), &["key", "create", "--write", "user/*", "--tenant", "acme"]);
    let made = made.expect(0);
    assert_eq!(made.matches("tdk_").count(), 1);
    std::fs::write(directory.path().join("tidings.toml"), &made).unwrap();
    run(directory.path(), &["config", "check"]).expect(0);
    run(directory.path(), &["key", "create"]).expect(64);
    run(directory.path(), &["key", "create", "--write", "a//b"]).expect(64);
    run(directory.path(), &["key", "create", "--write", "a", "--expires-at", "soon"]).expect(64);
}
