//! `cargo xtask bench`: builds for release, then measures.
//!
//! The rule: what is timed is told, never judged. What fails is a count of instructions that grew,
//! which is the same on a busy machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use crate::{root, suite, target};

/// Instructions of each case that were right when they were committed.
const COUNTS: &str = "bench/instructions.txt";
/// How much a case may grow before it is a regression.
const GROWTH_MAX: f64 = 1.05;
/// How much two refusals may differ that nobody is to tell apart, as a share of the smaller. The same
/// one differs by 2 % from run to run, by the seeds of hash tables; this is a microsecond.
const DIFFERENCE_MAX: f64 = 0.04;
/// How often a case is done: enough that one beginning or growing buffer does not count.
const FEW: u64 = 200;
const MANY: u64 = 1200;

/// Runs what the arguments ask for.
pub(crate) fn run(arguments: &[&str]) -> Result<(), String> {
    match arguments {
        ["--micro", filters @ ..] => micro(filters),
        ["--instructions"] => instructions(&read_counts()?),
        ["--instructions", "--update"] => update_counts(),
        ["--builds", options @ ..] => builds(options),
        ["--page"] => page(),
        _ => scenarios(arguments),
    }
}

fn run_all(commands: impl IntoIterator<Item = Command>) -> Result<(), String> {
    for mut command in commands {
        let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
        if !status.success() {
            return Err(format!("{command:?} failed"));
        }
    }
    Ok(())
}

/// The load generator with its floor, beside the hub of the same build.
fn scenarios(arguments: &[&str]) -> Result<(), String> {
    let mut build = suite::cargo("build --release --workspace --locked");
    let mut folder = target().join("release");
    if arguments.contains(&"--perf") {
        let other = target().join("perf");
        build = suite::cargo("build --profile profiling --workspace --locked");
        // Perf follows frame pointers; libraries are built anew for them, so in a place of their own.
        build.arg("--target-dir").arg(&other).env("RUSTFLAGS", "-C force-frame-pointers=yes");
        folder = other.join("profiling");
    }
    let mut measure = Command::new(folder.join("tidings-bench"));
    measure.args(arguments).current_dir(root());
    run_all([build, measure])
}

/// Writes the page from what was measured: no figure depends on this build.
fn page() -> Result<(), String> {
    let mut write = Command::new(target().join("debug/tidings-bench"));
    write.arg("--page").current_dir(root());
    run_all([suite::build(), write])
}

fn micro(filters: &[&str]) -> Result<(), String> {
    let mut measure = Command::new(target().join("release/tidings-micro"));
    measure.args(filters);
    run_all([suite::cargo("build --release --workspace --locked"), measure])
}

/// Counts instructions and compares them with those that were committed.
fn instructions(committed: &[(String, u64)]) -> Result<(), String> {
    let counts = count_all()?;
    let mut others = Vec::new();
    for (name, _) in committed.iter().filter(|(name, _)| !counts.iter().any(|(of, _)| of == name)) {
        println!("{name} is not counted any more");
        others.push(name.as_str());
    }
    println!("{:<20} {:>12} {:>12}", "case", "committed", "now");
    for (name, count) in &counts {
        let before = committed.iter().find(|(of, _)| of == name).map(|(_, count)| *count);
        let verdict = verdict(before, *count);
        let before = before.map_or_else(|| "–".to_owned(), |before| before.to_string());
        println!("{name:<20} {before:>12} {count:>12}  {}", verdict.unwrap_or_default());
        if verdict.is_some() {
            others.push(name.as_str());
        }
    }
    let apart = told_apart()?;
    if !apart.is_empty() {
        let list = apart.join(", ");
        return Err(format!("who may not read them can tell which topics are there: {list}"));
    }
    if others.is_empty() {
        return Ok(());
    }
    let list = others.join(", ");
    Err(format!(
        "other instructions than {COUNTS} says: {list}; if that is meant, `cargo xtask bench \
         --instructions --update`"
    ))
}

/// Counts what must take the same, and names the pairs that do not.
fn told_apart() -> Result<Vec<String>, String> {
    let program = target().join("release/tidings-micro");
    let mut apart = Vec::new();
    for pair in lines(&program, "--pairs")? {
        let Some((one, other)) = pair.split_once(' ') else { continue };
        let [one, other] = [(one, each(&program, one)?), (other, each(&program, other)?)];
        println!("{:<20} {:>12} {:<22} {:>12}", one.0, one.1, other.0, other.1);
        if differ(one.1, other.1) {
            apart.push(pair);
        }
    }
    Ok(apart)
}

fn differ(one: u64, other: u64) -> bool {
    one.abs_diff(other) as f64 > one.min(other) as f64 * DIFFERENCE_MAX
}

/// What is wrong with a count, if anything. One that fell is to be committed: it could grow back, and
/// nobody would notice.
fn verdict(before: Option<u64>, now: u64) -> Option<&'static str> {
    match before {
        None => Some("not committed"),
        Some(before) if now as f64 > before as f64 * GROWTH_MAX => Some("grew by more than 5 %"),
        Some(before) if (now as f64) * GROWTH_MAX < before as f64 => Some("fell by more than 5 %"),
        Some(_) => None,
    }
}

fn update_counts() -> Result<(), String> {
    let mut text = "# Instructions of each case of bench/src/bin/tidings-micro.rs, by callgrind.\n\
                    # Written by `cargo xtask bench --instructions --update`.\n"
        .to_owned();
    for (name, count) in count_all()? {
        text.push_str(&format!("{name} {count}\n"));
    }
    fs::write(root().join(COUNTS), &text).map_err(|error| format!("{COUNTS}: {error}"))?;
    print!("{text}");
    Ok(())
}

fn read_counts() -> Result<Vec<(String, u64)>, String> {
    let text = fs::read_to_string(root().join(COUNTS));
    let text = text.map_err(|error| format!("{COUNTS}: {error}"))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let parsed = line
                .split_once(' ')
                .and_then(|(name, count)| Some((name.to_owned(), count.parse::<u64>().ok()?)));
            parsed.ok_or_else(|| format!("{COUNTS}: `{line}` is not a name and a number"))
        })
        .collect()
}

/// Every case and its instructions, beginnings left out.
fn count_all() -> Result<Vec<(String, u64)>, String> {
    run_all([suite::cargo("build --release --workspace --locked")])?;
    let program = target().join("release/tidings-micro");
    let names = lines(&program, "--names")?;
    names.into_iter().map(|name| each(&program, &name).map(|count| (name, count))).collect()
}

fn lines(program: &PathBuf, argument: &str) -> Result<Vec<String>, String> {
    let said = Command::new(program).arg(argument).output();
    let said = said.map_err(|error| format!("{}: {error}", program.display()))?;
    if !said.status.success() {
        return Err(format!("{} {argument} failed", program.display()));
    }
    Ok(String::from_utf8_lossy(&said.stdout).lines().map(str::to_owned).collect())
}

/// The instructions of one time of a case.
fn each(program: &PathBuf, name: &str) -> Result<u64, String> {
    let [few, many] = [FEW, MANY].map(|times| count(program, name, times));
    Ok(many?.saturating_sub(few?) / (MANY - FEW))
}

fn count(program: &PathBuf, name: &str, times: u64) -> Result<u64, String> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    command.args(["--count", name, &times.to_string()]);
    let output = command.output().map_err(|error| {
        format!("valgrind: {error}; install it (Debian: apt-get install valgrind)")
    })?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    collected(&said).ok_or_else(|| format!("{command:?} failed:\n{said}"))
}

/// The number in "==1234== Collected : 56789".
fn collected(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
}

/// A way to build and to run the hub.
#[derive(Debug)]
struct Setting {
    name: &'static str,
    /// Its row's name.
    label: &'static str,
    /// LTO, and the units that a crate is compiled in. None: as `cargo build` does it.
    release: Option<(&'static str, &'static str)>,
    allocator: Allocator,
}

/// Who gives the hub its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allocator {
    /// What the hub is built with.
    Mimalloc,
    /// The C library.
    System,
    /// Debian's library, preloaded into a hub that has the C library's.
    Jemalloc,
}

const fn setting(
    name: &'static str,
    label: &'static str,
    release: (&'static str, &'static str),
    allocator: Allocator,
) -> Setting {
    Setting { name, label, release: Some(release), allocator }
}

/// All that are compared; those of one LTO in turn, because they share what is built.
static SETTINGS: [Setting; 5] = [
    setting("off", "off, 16 units", ("off", "16"), Allocator::Mimalloc),
    setting("thin", "thin, 4 units", ("thin", "4"), Allocator::Mimalloc),
    setting("fat", "fat, 1 units", ("fat", "1"), Allocator::Mimalloc),
    setting("system", "fat, 1 units, system", ("fat", "1"), Allocator::System),
    setting("jemalloc", "fat, 1 units, jemalloc", ("fat", "1"), Allocator::Jemalloc),
];
/// What is there already, to see that comparing works: nothing of it is written.
static DEV: Setting =
    Setting { name: "dev", label: "dev", release: None, allocator: Allocator::Mimalloc };

/// Builds the hub with the settings that are named, or with all, and measures each.
fn builds(arguments: &[&str]) -> Result<(), String> {
    let (options, names): (Vec<&str>, Vec<&str>) =
        arguments.iter().partition(|argument| argument.starts_with("--"));
    if names == ["dev"] {
        let bench = target().join("debug/tidings-bench");
        run_all([suite::build()])?;
        return compare(&DEV, &bench, &["--short"]);
    }
    let chosen = chosen(&names)?;
    // The load generator itself stays what it is.
    run_all([suite::cargo("build --release --workspace --locked")])?;
    let bench = target().join("release/tidings-bench");
    chosen.iter().try_for_each(|setting| compare(setting, &bench, &options))
}

fn chosen(names: &[&str]) -> Result<Vec<&'static Setting>, String> {
    let known = |name: &str| SETTINGS.iter().find(|setting| setting.name == name);
    if let Some(wrong) = names.iter().find(|name| known(name).is_none()) {
        let all: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
        return Err(format!("{wrong} is no setting: dev, or some of {}", all.join(", ")));
    }
    let is_chosen = |setting: &&Setting| names.is_empty() || names.contains(&setting.name);
    Ok(SETTINGS.iter().filter(is_chosen).collect())
}

fn compare(setting: &Setting, bench: &Path, options: &[&str]) -> Result<(), String> {
    let (hub, took) = build(setting)?;
    let size = fs::metadata(&hub).map_err(|error| format!("{}: {error}", hub.display()))?.len();
    let size = size as f64 / 1024.0 / 1024.0;
    let mut measure = Command::new(bench);
    measure.args(["fanout", "publish-64", "replay"]).args(options).current_dir(root());
    measure.env("BENCH_HUB", &hub);
    measure.env("BENCH_BUILD", format!("{}|{size:.1} MiB|{took}", setting.label));
    if setting.allocator == Allocator::Jemalloc {
        measure.env("BENCH_PRELOAD", jemalloc()?);
    }
    run_all([measure])
}

/// The hub, and how long it took from nothing if it was built from nothing.
fn build(setting: &Setting) -> Result<(PathBuf, String), String> {
    let unknown = "–".to_owned();
    let Some((lto, units)) = setting.release else {
        return Ok((target().join("debug/tidings"), unknown));
    };
    let folder = target().join(format!("builds/{lto}-{units}"));
    let is_whole = setting.allocator == Allocator::Mimalloc;
    if is_whole && folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    // `cargo rustc`: what comes behind `--` is for the hub's own crate, and all others are kept.
    let mut build = suite::cargo("rustc --release --package tidings-server --bin tidings --locked");
    build.arg("--target-dir").arg(&folder).env("CARGO_PROFILE_RELEASE_LTO", lto);
    build.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", units);
    if !is_whole {
        build.args(["--", "--cfg", "system_allocator"]);
    }
    let begun = Instant::now();
    run_all([build])?;
    let took = format!("{} s", begun.elapsed().as_secs());
    Ok((folder.join("release/tidings"), if is_whole { took } else { unknown }))
}

/// Where Debian has it, which has a folder for each architecture.
fn jemalloc() -> Result<PathBuf, String> {
    let folders = fs::read_dir("/usr/lib").map_err(|error| format!("/usr/lib: {error}"))?;
    let mut libraries = folders.flatten().map(|folder| folder.path().join("libjemalloc.so.2"));
    libraries.find(|library| library.exists()).ok_or_else(|| {
        "there is no libjemalloc.so.2: install it (Debian: apt-get install libjemalloc2)".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_grew_by_more_than_five_percent_is_a_regression() {
        assert_eq!(verdict(Some(1000), 1050), None);
        assert_eq!(verdict(Some(1000), 953), None);
        assert_eq!(verdict(Some(1000), 952), Some("fell by more than 5 %"));
        assert_eq!(verdict(Some(1000), 1051), Some("grew by more than 5 %"));
        assert_eq!(verdict(None, 1), Some("not committed"));
    }

    #[test]
    fn settings_are_chosen_by_name_in_their_own_order() {
        let names = |names: &[&str]| -> Vec<&str> {
            chosen(names).unwrap_or_default().iter().map(|setting| setting.name).collect()
        };
        assert_eq!(names(&["jemalloc", "off"]), ["off", "jemalloc"]);
        assert_eq!(names(&[]).len(), SETTINGS.len());
        assert!(chosen(&["fast"]).is_err_and(|error| error.starts_with("fast is no setting")));
    }

    #[test]
    fn two_refusals_that_differ_by_more_than_four_percent_can_be_told_apart() {
        assert!(!differ(1000, 1040) && !differ(1040, 1000) && differ(1000, 1041));
    }

    #[test]
    fn callgrinds_count_is_found_among_what_it_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 123456\n==7== \n==7== I   refs:      123,456\n";
        assert_eq!(collected(said), Some(123_456));
        assert_eq!(collected("no such program"), None);
    }
}
