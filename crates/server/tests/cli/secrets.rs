//! Whatever the level, the log holds nothing that lets its reader act as somebody else, and no data.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{run, send_signal, tidings};

/// Each is in one place only, so that a leak says where it comes from.
const JWT_SECRET: &str = "q7Xw2VbN9tRk4ZsLm8YcJf3HdGpA6uEo-canary";
const ADMIN_TOKEN: &str = "w5Tz8QnB3xPv7KcRj2MdYh9LfSgU4aEi-canary";
const DATA: &str = "data-canary-91c2";
const COOKIE: &str = "cookie-canary-7d10";
const HEADER: &str = "header-canary-55ab";
const QUERY: &str = "query-canary-08fe";
const WRONG_TOKEN: &str = "wrong-token-canary-3f6d";
const WRONG_ADMIN: &str = "wrong-admin-canary-b21e";
const PASSWORD: &str = "password-canary-64c9";

fn curl(args: &[&str]) -> String {
    let output = Command::new("curl").args(["-s", "-m", "20"]).args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What `tidings serve` logs at the most talkative level, and everything that must not be in it.
fn log_of(directory: &Path, format: &str) -> (String, Vec<String>) {
    let create = ["key", "create", "--write", "**", "--read", "**", "--json"];
    let made: Value = serde_json::from_str(&run(directory, &create).expect(0)).unwrap();
    let key = made["key"].as_str().unwrap().to_owned();
    let (id, hash) =
        (made["entry"]["id"].as_str().unwrap(), made["entry"]["sha256"].as_str().unwrap());
    let toml = format!(
        "listen = \"127.0.0.1:0\"\ndata = \"data\"\nadmin.listen = \"127.0.0.1:0\"\n\
         admin.token = \"{ADMIN_TOKEN}\"\nlog.level = \"trace\"\nlog.format = \"{format}\"\n\
         [[auth.jwt.keys]]\nalgorithm = \"HS256\"\nsecret = \"{JWT_SECRET}\"\n\
         [[auth.api_keys]]\nid = \"{id}\"\nsha256 = \"{hash}\"\nread = [\"**\"]\nwrite = [\"**\"]\n\
         [[access]]\ntopic = \"**\"\nread = true\n"
    );
    let file = directory.join("tidings.toml");
    std::fs::write(&file, toml).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let token = run(directory, &["token", "mint", "--sub", "u1"]).expect(0).trim().to_owned();
    let mut child = tidings(directory, &["serve"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("serving") {
        assert_ne!(log.read_line(&mut text).unwrap(), 0, "{text}");
    }
    let rest = std::thread::spawn(move || {
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        rest
    });
    let address = |name: &str| {
        let of = |quote: &str| {
            let (_, after) = text.split_once(&format!("{name}{quote}"))?;
            Some(format!("http://{}", after.split(['"', ' ']).next()?))
        };
        of("\":\"").or_else(|| of("=")).unwrap()
    };
    let (hub, admin) = (address("listen"), address("admin"));
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let events = format!("{hub}/v1/events");
    let body = format!("{{\"topic\":\"t\",\"type\":\"x\",\"data\":\"{DATA}\"}}");
    let json = "Content-Type: application/json";
    let cookie = format!("Cookie: session={COOKIE}");
    let own = format!("X-Own: {HEADER}");
    let with = [&events, "-H", json, "-d", &body, "-H", &cookie, "-H", &own];
    assert!(curl(&[&with[..], &["-H", &bearer(&key)]].concat()).contains("\"offset\":1"));
    curl(&[&with[..], &["--http2-prior-knowledge", "-H", &bearer(&key)]].concat());
    curl(&[&with[..], &["-H", &bearer(WRONG_TOKEN)]].concat());
    curl(&[&with[..], &["-u", &format!("u:{PASSWORD}")]].concat());
    curl(&[&with[..], &["-H", &bearer(&token)]].concat());
    curl(&[&events, "-H", json, "-d", &format!("{{\"broken\":{DATA}"), "-H", &bearer(&key)]);
    let ticket = curl(&["-X", "POST", &format!("{hub}/v1/tickets"), "-H", &bearer(&token)]);
    let ticket: Value = serde_json::from_str(&ticket).unwrap();
    let ticket = ticket["ticket"].as_str().unwrap().to_owned();
    let follow = format!("{events}?topic=t&since=earliest&wait=0s&ticket={ticket}");
    assert!(curl(&[&follow, "-H", "Accept: application/json"]).contains(DATA));
    curl(&[&follow, "--http2-prior-knowledge", "-H", "Accept: application/json"]);
    curl(&[&format!("{events}?topic=t&x={QUERY}"), "-H", &bearer(&key)]);
    curl(&[&format!("{hub}/nowhere?x={QUERY}")]);
    for path in ["nodes", "config", "topics"] {
        assert!(
            curl(&[&format!("{admin}/admin/v1/{path}"), "-H", &bearer(ADMIN_TOKEN)]).contains('{')
        );
        curl(&[&format!("{admin}/admin/v1/{path}"), "-H", &bearer(WRONG_ADMIN)]);
    }
    send_signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    text.push_str(&rest.join().unwrap());
    let canaries = [
        JWT_SECRET,
        ADMIN_TOKEN,
        DATA,
        COOKIE,
        HEADER,
        QUERY,
        WRONG_TOKEN,
        WRONG_ADMIN,
        PASSWORD,
        hash,
        &ticket,
        &key,
        &token,
    ];
    let mut canaries: Vec<String> = canaries.map(str::to_owned).into();
    // Also without its name, and the parts of the token that sign it and say whom it is for.
    canaries.push(key.rsplit('_').next().unwrap().to_owned());
    canaries.extend(token.split('.').skip(1).map(str::to_owned));
    (text, canaries)
}

/// Broken on purpose, it failed: with the request's whole address in its span.
#[test]
fn no_log_line_holds_a_credential_or_an_events_data_at_any_level() {
    for format in ["text", "json"] {
        let directory = tempfile::tempdir().unwrap();
        let (log, canaries) = log_of(directory.path(), format);
        for canary in canaries {
            let line = log.lines().find(|line| line.contains(&canary));
            assert_eq!(line, None, "{canary}");
        }
        // It was there to be seen: requests are logged, each with its id.
        let answered: Vec<&str> =
            log.lines().filter(|line| line.contains("request answered")).collect();
        assert!(answered.len() > 10, "{log}");
        assert!(answered.iter().all(|line| line.contains("request_id")), "{answered:?}");
        assert!(log.contains("operator refused"), "{log}");
    }
}
