//! `cargo xtask fuzz`: the fuzz targets under libFuzzer, for as long as somebody likes.
//!
//! The rule: what is found stays found. An input that breaks a target goes into `fuzz/corpus`, where
//! `cargo xtask test` tries it and what is near it.

use std::process::Command;

use crate::{root, setup, suite};

/// Each target, unless told otherwise.
const SECONDS: u64 = 60;

/// What to run.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// All of them if none is named.
    target: Option<String>,
    seconds: u64,
}

/// Runs what the options ask for.
pub(crate) fn run(options: &[&str]) -> Result<(), String> {
    let plan = plan(options)?;
    setup::fuzzer()?;
    let targets = match plan.target {
        Some(target) => vec![target],
        None => targets()?,
    };
    for target in targets {
        let status = fuzzer(&target, plan.seconds).status();
        let status = status.map_err(|error| format!("cannot run cargo fuzz: {error}"))?;
        if !status.success() {
            return Err(format!(
                "{target} does not hold: mend it and keep the input that is named above, as a file \
                 in fuzz/corpus/{target}"
            ));
        }
    }
    Ok(())
}

fn fuzzer(target: &str, seconds: u64) -> Command {
    let mut command = suite::cargo("fuzz run");
    // What libFuzzer finds on the way is kept aside: the corpus in the repository stays small.
    let found = root().join("fuzz/target/corpus").join(target);
    let _ = std::fs::create_dir_all(&found);
    command
        .arg(target)
        .arg(found)
        .arg(root().join("fuzz/corpus").join(target))
        .args(["--", &format!("-max_total_time={seconds}"), "-max_len=4096"])
        // The sanitizers are flags of nightly. The toolchain of the repository has them too, and is
        // the one that the code is built with.
        .env("RUSTC_BOOTSTRAP", "1");
    command
}

/// The names of the targets, as their files have them.
fn targets() -> Result<Vec<String>, String> {
    let folder = root().join("fuzz/fuzz_targets");
    let files = std::fs::read_dir(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
    let stem = |path: &std::path::Path| Some(path.file_stem()?.to_str()?.to_owned());
    let mut names: Vec<String> = files.filter_map(|file| stem(&file.ok()?.path())).collect();
    names.sort();
    Ok(names)
}

fn plan(options: &[&str]) -> Result<Plan, String> {
    let number = |text: &str| text.parse().map_err(|_| format!("{text} is not a number"));
    let named = |target: &str| Some(target.to_owned()).filter(|name| !name.starts_with('-'));
    match options {
        [] => Ok(Plan { target: None, seconds: SECONDS }),
        ["--seconds", seconds] => Ok(Plan { target: None, seconds: number(seconds)? }),
        [target] if named(target).is_some() => Ok(Plan { target: named(target), seconds: SECONDS }),
        [target, "--seconds", seconds] if named(target).is_some() => {
            Ok(Plan { target: named(target), seconds: number(seconds)? })
        }
        _ => Err(format!("cargo xtask fuzz takes [TARGET] [--seconds N], not {options:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_say_what_to_fuzz() {
        let of =
            |target: Option<&str>, seconds| Ok(Plan { target: target.map(str::to_owned), seconds });
        assert_eq!(plan(&[]), of(None, SECONDS));
        assert_eq!(plan(&["--seconds", "5"]), of(None, 5));
        assert_eq!(plan(&["cursor"]), of(Some("cursor"), SECONDS));
        assert_eq!(plan(&["cursor", "--seconds", "5"]), of(Some("cursor"), 5));
        assert!(plan(&["--minutes", "5"]).is_err());
        assert!(plan(&["cursor", "--seconds", "x"]).is_err());
    }

    #[test]
    fn the_targets_are_found() {
        assert!(targets().unwrap().contains(&"cursor".to_owned()));
    }
}
