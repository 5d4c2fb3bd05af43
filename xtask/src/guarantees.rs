//! `docs/guarantees.md` names tests; here it is held to it.

use std::{fs, path::Path};

use crate::root;

/// The rows of the page's tables: their first cell and their last.
fn rows(page: &str) -> Vec<(String, String)> {
    let rows = page.lines().filter(|line| line.starts_with("| I") || line.starts_with("| T"));
    let ends = rows.filter_map(|line| {
        let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        Some((cells.next()?, cells.next_back()?))
    });
    ends.collect()
}

/// Everything under a directory with these endings, as one text.
fn sources(directory: &Path, endings: &[&str], all: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !["node_modules", "target"].contains(&&*name) {
            sources(&path, endings, all);
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            all.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_guarantee_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let rows = rows(&page);
    let listed = (1..=33).map(|n| format!("I{n}")).chain((1..=28).map(|n| format!("T{n}")));
    assert!(rows.iter().map(|row| row.0.clone()).eq(listed), "a row is missing or out of order");
    let mut rust = String::new();
    sources(&root().join("crates"), &[".rs"], &mut rust);
    sources(&root().join("xtask"), &[".rs"], &mut rust);
    let mut browser = String::new();
    sources(&root().join("tests"), &[".test.mjs"], &mut browser);
    let exists = |name: &str| {
        rust.contains(&format!("fn {name}("))
            || browser.contains(&format!("test(\"{name}\""))
            || browser.contains(&format!("test(\"{}\"", name.replace('\'', "’")))
            || name.starts_with("cargo xtask ")
            || root().join(name).is_file()
            || root().join("tests/browser").join(name).is_file()
    };
    let mut wrong = Vec::new();
    for (row, tests) in rows {
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && !tests.contains("past one machine") && !tests.contains("There are") {
            wrong.push(format!("{row}: no test"));
        }
        wrong
            .extend(names.iter().filter(|name| !exists(name)).map(|name| format!("{row}: {name}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
