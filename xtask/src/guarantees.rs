//! `docs/guarantees.md` names tests; here it is held to it.

use std::{collections::HashSet, fs, path::Path};

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

/// What says that the function below it is a test.
const TESTS: [&str; 2] = ["#[test]", "#[tokio::test"];
/// Where the cases of contracts are listed, which a macro makes tests of for each adapter.
const CONTRACTS: [&str; 2] =
    ["crates/tidings/src/journal/contract.rs", "crates/tidings/src/bus/contract.rs"];

/// The names of the functions that are tests, in `proptest!` too: the attribute is right above, but
/// for comments and other attributes.
fn rust_tests(text: &str) -> HashSet<&str> {
    let mut tests = HashSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        let name = line.trim_start_matches("pub(crate) ").trim_start_matches("async ");
        if let Some(name) = name.strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next())
        {
            if is_test {
                tests.insert(name);
            }
            is_test = false;
        } else if TESTS.iter().any(|attribute| line.starts_with(attribute)) {
            is_test = true;
        } else if !line.starts_with('#') && !line.starts_with("//") && !line.is_empty() {
            // Lines of an attribute that is longer than one line: `#[tokio::test(\n…\n)]`.
            is_test &= line.starts_with(')') || line.ends_with(',');
        }
    }
    tests
}

#[test]
fn only_functions_that_run_as_tests_are_tests() {
    let text = "
        #[test]
        fn one() {}
        fn helper() {}
        /// #[test] is no attribute here.
        fn described() {}
        #[tokio::test(start_paused = true)]
        #[ignore = \"slow\"]
        async fn two() {}
        let code = \"fn three()\";
        #[test]
        let other = 1;
        fn four() {}
        #[test]
        fn five(x in 0..3_u8) {}
    ";
    let mut tests: Vec<&str> = rust_tests(text).into_iter().collect();
    tests.sort_unstable();
    assert_eq!(tests, ["five", "one", "two"]);
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
    let mut tests = rust_tests(&rust);
    let contracts = CONTRACTS.map(|file| fs::read_to_string(root().join(file)).unwrap());
    let listed = |line| str::strip_prefix(line, "            ")?.strip_suffix(',');
    tests.extend(contracts.iter().flat_map(|text| text.lines().filter_map(listed)));
    let exists = |name: &str| {
        tests.contains(name)
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
