//! The generated pages are what the binary prints. `UPDATE_DOCS=1` writes them anew.

use std::path::Path;

use crate::support::run;

fn compare(page: &str, args: &[&str]) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let directory = tempfile::tempdir().unwrap();
    let printed = run(directory.path(), args).expect(0);
    let file = docs.join(page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(&docs).unwrap();
        std::fs::write(&file, printed).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == printed, "docs/{page} is out of date: run `cargo xtask docs`");
}

#[test]
fn the_configuration_page_is_what_the_code_says() {
    compare("configuration.md", &["config", "docs"]);
}

#[test]
fn the_command_line_page_is_what_the_code_says() {
    compare("cli.md", &["config", "docs", "cli"]);
}

#[test]
fn the_metrics_page_is_what_the_code_says() {
    compare("metrics.md", &["config", "docs", "metrics"]);
}

#[test]
fn the_schema_is_what_the_code_says() {
    compare("tidings.schema.json", &["config", "schema"]);
}

#[test]
fn alerts_are_about_metrics_that_are_there() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let page = |name: &str| std::fs::read_to_string(docs.join(name)).unwrap();
    let (operations, metrics) = (page("operations.md"), page("metrics.md"));
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let named: Vec<&str> =
        operations.split(|c| !is_name(c)).filter(|word| word.starts_with("tidings_")).collect();
    assert!(named.len() > 10, "{named:?}");
    for name in named {
        let of_histogram = name.trim_end_matches("_bucket");
        assert!(metrics.contains(&format!("| `{of_histogram}` |")), "there is no {name}");
    }
}
