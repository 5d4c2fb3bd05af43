//! Reads the sources and holds what docs/architecture.md says of them.
//!
//! The rule: imports point one way, only `http/` names axum and hyper, the model knows neither
//! async nor time nor I/O, and every file is short and says what it is for. The checker is shown
//! bad sources below, so that a rule which stops to bite is noticed.

#![allow(clippy::unwrap_used, reason = "a file that cannot be read fails the test")]

use std::path::{Path, PathBuf};

use tidings::error::ErrorCode;

/// The library's modules, each list below the next. A module may use its own list and those before.
const LAYERS: &[&[&str]] = &[
    &["model"],
    &["clock", "error", "metrics", "request", "spans"],
    &["sse"],
    &["journal", "bus", "auth", "ring", "settings", "quota", "amqp"],
    &["topic_task"],
    &[
        "hub",
        "publish",
        "ingest",
        "subscribe",
        "connection",
        "counted",
        "connections",
        "ticket",
        "revocation",
        "cluster",
        "relay",
        "due",
        "retention",
        "drain",
    ],
    &["run", "ask", "stream", "effect", "source"],
    &["http", "fuzzing"],
];

/// Crates that only the module `http` names.
const HTTP_ONLY: &[&str] =
    &["axum", "httparse", "httpdate", "hyper", "hyper_util", "tower", "tower_service"];

/// Words that are not in the model, and why.
const NOT_IN_MODEL: &[(&str, &str)] = &[
    ("async", "the model computes, it does not wait"),
    ("await", "the model computes, it does not wait"),
    ("tokio", "the model computes, it does not wait"),
    ("SystemTime", "the model is told what time it is"),
    ("Instant", "the model is told what time it is"),
    ("fs", "the model does no I/O"),
    ("net", "the model does no I/O"),
    ("getrandom", "the model gives the same answer to the same question"),
];

const LINES_MAX: usize = 800;

#[test]
fn imports_point_one_way() {
    let mut broken = Vec::new();
    for (path, text) in sources("crates/tidings/src") {
        broken.extend(check_imports(&path, &text));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn only_http_names_axum_and_hyper() {
    let mut broken = Vec::new();
    for (path, text) in sources("crates/tidings/src") {
        broken.extend(check_http_only(&path, &text));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_model_has_no_async_no_clock_and_no_io() {
    let mut broken = Vec::new();
    for (path, text) in sources("crates/tidings/src/model") {
        broken.extend(check_model(&path, &text));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_file_is_short_and_says_what_it_is_for() {
    let mut broken = Vec::new();
    for folder in ["crates", "bench", "services", "xtask"] {
        for (path, text) in sources(folder) {
            broken.extend(check_file(&path, &text));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_module_has_its_place_in_the_map() {
    let map = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let text = std::fs::read_to_string(root().join("crates/tidings/src/lib.rs")).unwrap();
    let modules = code_lines(&text).into_iter().filter_map(|(_, line)| {
        let name = line.trim().trim_start_matches("pub ").strip_prefix("mod ")?;
        name.strip_suffix(';').map(str::to_owned)
    });
    let missing: Vec<String> = modules
        .filter(|name| {
            !map.contains(&format!("`{name}.rs`")) && !map.contains(&format!("`{name}/`"))
        })
        .collect();
    assert!(missing.is_empty(), "docs/architecture.md does not mention {missing:?}");
}

#[test]
fn every_code_stands_in_the_protocol_with_its_status() {
    let page = std::fs::read_to_string(root().join("docs/protocol.md")).unwrap();
    let missing: Vec<String> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let retryable = if code.retryable() { "yes" } else { "no" };
            format!("| `{}` | {} | {retryable} |", code.as_str(), code.status())
        })
        .filter(|row| !page.contains(row))
        .collect();
    assert!(missing.is_empty(), "docs/protocol.md has no {missing:?}");
}

/// Names the imports of a file that point upwards.
fn check_imports(path: &Path, text: &str) -> Vec<String> {
    let module = module(path);
    let place = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    if module == "lib" {
        return Vec::new();
    }
    let Some(own) = place(&module) else {
        return vec![format!("{}: `{module}` has no layer: give it one", path.display())];
    };
    let depth = depth(path);
    let code = code_lines(text);
    let mut broken = Vec::new();
    for (line, name) in imports(&code, depth) {
        if place(&name).is_some_and(|place| place > own) {
            broken.push(format!(
                "{}:{line}: `{module}` is below `{name}` and must not use it",
                path.display()
            ));
        }
    }
    broken
}

fn check_http_only(path: &Path, text: &str) -> Vec<String> {
    if module(path) == "http" {
        return Vec::new();
    }
    let named = |line: &str| HTTP_ONLY.iter().find(|name| words(line).any(|word| word == **name));
    code_lines(text)
        .iter()
        .filter_map(|(number, line)| {
            let name = named(line)?;
            let place = format!("{}:{number}", path.display());
            Some(format!("{place}: only the module `http` names `{name}`"))
        })
        .collect()
}

fn check_model(path: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for (number, line) in code_lines(text) {
        for (word, reason) in NOT_IN_MODEL {
            if words(&line).any(|found| found == *word) {
                broken.push(format!("{}:{number}: `{word}`: {reason}", path.display()));
            }
        }
    }
    broken
}

fn check_file(path: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let lines = text.lines().count();
    if lines >= LINES_MAX {
        broken.push(format!("{}: {lines} lines: divide it", path.display()));
    }
    if !text.starts_with("//! ") {
        broken.push(format!("{}:1: does not open by saying what it is for", path.display()));
    }
    broken
}

/// The modules of the crate that a file names: `crate::a::…`, `crate::{a, b::…}`, and the same by
/// `super` as far as that leads to the crate's root.
fn imports(code: &[(usize, String)], depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut all = String::new();
    let mut starts = Vec::new();
    for (number, line) in code {
        starts.push((all.len(), *number));
        all.push_str(line);
        all.push('\n');
    }
    let line_of = |at: usize| {
        starts.iter().rev().find(|(start, _)| *start <= at).map_or(0, |(_, number)| *number)
    };
    let to_root = "super::".repeat(depth);
    for root in ["crate::", to_root.as_str()] {
        for (at, _) in all.match_indices(root) {
            // `my_crate::`, and `super::super::` where one would do.
            let before = all[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let start = at + root.len();
            for (offset, name) in first_names(&all[start..]) {
                found.push((line_of(start + offset), name));
            }
        }
    }
    found
}

/// The first names of a path or of a braced list of paths, with their places in the text.
fn first_names(text: &str) -> Vec<(usize, String)> {
    let name_at = |at: usize| -> Option<(usize, String)> {
        let name: String =
            text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        (!name.is_empty()).then_some((at, name))
    };
    if !text.starts_with('{') {
        return name_at(0).into_iter().collect();
    }
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut expects_name = false;
    for (at, c) in text.char_indices() {
        match c {
            '{' => {
                depth += 1;
                expects_name = depth == 1;
            }
            '}' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            ',' if depth == 1 => expects_name = true,
            c if c.is_whitespace() => {}
            _ if expects_name => {
                names.extend(name_at(at));
                expects_name = false;
            }
            _ => {}
        }
    }
    names
}

/// The lines of a source without comments and without what stands in quotes.
fn code_lines(text: &str) -> Vec<(usize, String)> {
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(inside) = rest.strip_prefix('"') {
            1 + end_of_text(inside)
        } else if c == 'r' && !code.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            end_of_raw(rest).unwrap_or(0)
        } else if let Some(quoted) =
            ["'\"'", "'\\\"'", "'\\''"].iter().find(|q| rest.starts_with(**q))
        {
            quoted.len()
        } else {
            0
        };
        if skipped == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..skipped].matches('\n'));
            rest = &rest[skipped..];
        }
    }
    code.lines().enumerate().map(|(number, line)| (number + 1, line.to_owned())).collect()
}

/// Where the text ends whose opening quote was just read.
fn end_of_text(inside: &str) -> usize {
    let mut chars = inside.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return at + 1,
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    inside.len()
}

/// Where a raw text ends, if one begins here.
fn end_of_raw(rest: &str) -> Option<usize> {
    let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
    let inside = rest[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    inside.find(&end).map(|at| 2 + hashes + at + end.len())
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// The top-level module that a file below `src/` belongs to.
fn module(path: &Path) -> String {
    let text = path.to_string_lossy();
    let (_, below) = text.split_once("src/").unwrap_or(("", &text));
    let first = below.split('/').next().unwrap_or_default();
    first.trim_end_matches(".rs").to_owned()
}

/// How many `super` lead from a file to the crate's root.
fn depth(path: &Path) -> usize {
    let text = path.to_string_lossy();
    let (_, below) = text.split_once("src/").unwrap_or(("", &text));
    let names = below.split('/').count();
    if below.ends_with("mod.rs") { names - 1 } else { names }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The Rust files below a folder of the repository, by their paths in it.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut sources = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                sources.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    sources.sort();
    assert!(!sources.is_empty(), "no sources in {folder}");
    sources
}

#[test]
fn an_import_that_points_upwards_is_named_with_file_and_line() {
    let path = Path::new("crates/tidings/src/ring.rs");
    let text =
        "//! Ring.\n\nuse crate::{\n    model::{Class, Offset},\n    http::{self, router},\n};\n";
    assert_eq!(
        check_imports(path, text),
        ["crates/tidings/src/ring.rs:5: `ring` is below `http` and must not use it"]
    );
    for (path, bad) in [
        ("crates/tidings/src/model/topic.rs", "use crate::clock::Clock;"),
        ("crates/tidings/src/model/topic.rs", "use super::super::clock::Clock;"),
        ("crates/tidings/src/journal/mod.rs", "use super::hub::Hub;"),
        ("crates/tidings/src/journal/embedded/mod.rs", "use super::super::hub::Hub;"),
        ("crates/tidings/src/error.rs", "fn f(x: crate::journal::JournalError) {}"),
        ("crates/tidings/src/sse.rs", "use crate::{error::Problem, topic_task};"),
        ("crates/tidings/src/topic_task.rs", "use crate::publish::Publish;"),
        ("crates/tidings/src/publish.rs", "use crate::run::Run;"),
        ("crates/tidings/src/elsewhere.rs", ""),
    ] {
        assert_eq!(check_imports(Path::new(path), bad).len(), 1, "{path}: {bad}");
    }
    for (path, good) in [
        ("crates/tidings/src/model/topic.rs", "use super::limits::X; use super::super::model::Y;"),
        ("crates/tidings/src/http/mod.rs", "use crate::{hub::Hub, auth};"),
        ("crates/tidings/src/ring.rs", "// use crate::http;\nlet x = \"crate::http\";"),
        ("crates/tidings/src/ring.rs", "use my_crate::http;"),
        ("crates/tidings/src/ring.rs", "let x = r#\"{\"a\": crate::http}\"#;"),
        ("crates/tidings/src/ring.rs", "let x = ('\"', 1); let y = \"\\\" crate::http\";"),
        ("crates/tidings/src/lib.rs", "pub use crate::hub::Hub;"),
    ] {
        assert!(check_imports(Path::new(path), good).is_empty(), "{path}: {good}");
    }
}

#[test]
fn other_broken_rules_are_named_with_file_and_line() {
    let connection = Path::new("crates/tidings/src/connection.rs");
    assert_eq!(
        check_http_only(connection, "//! C.\nuse axum::body::Body; // as axum does\n"),
        ["crates/tidings/src/connection.rs:2: only the module `http` names `axum`"]
    );
    assert!(check_http_only(Path::new("crates/tidings/src/http/a.rs"), "use axum;").is_empty());
    assert!(check_http_only(connection, "//! Not axum.\nlet axumatic = 1;").is_empty());

    let topic = Path::new("crates/tidings/src/model/topic.rs");
    assert_eq!(check_model(topic, "pub async fn f() {}").len(), 1);
    assert_eq!(check_model(topic, "use std::{fs, time::Instant};").len(), 2);
    assert!(check_model(topic, "/// Not async.\nfn asynchronous() {}").is_empty());

    assert_eq!(check_file(topic, "use std::fmt;\n").len(), 1);
    assert_eq!(check_file(topic, &format!("//! T.\n{}", "\n".repeat(LINES_MAX))).len(), 1);
    assert!(check_file(topic, "//! Topics.\n").is_empty());
}
