//! Measures the hub beside a floor: a server that does the least that the work takes.
//!
//! The rule: only ratios within one run count. The machine is shared and noisy; the server's CPU
//! seconds for each delivery, beside the floor's of the same run, are the steady figure.
//!
//! `cargo xtask bench` builds and runs it, and says what it takes.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a tool that prints, run by hand, which may end by a panic"
)]

mod client;
mod figure;
mod floor;
mod growth;
mod machine;
mod peers;
mod profile;
mod report;
mod scenario;
mod server;

use std::{collections::BTreeMap, env, fs::File, path::PathBuf, process::ExitCode, time::Duration};

use tokio::{
    task::{JoinError, spawn_local},
    time::Instant,
};

use crate::{
    figure::Figure,
    growth::Growth,
    peers::Peer,
    report::{Measured, Results},
    scenario::{Load, Scenario},
    server::Kind,
};

const USAGE: &str = "\
cargo xtask bench [scenario…] [--short] [--peers] [--growth] [--perf] [--dry]

  --short    smaller and shorter, to see that everything works; writes nothing
  --peers    also the servers of others that are installed
  --growth   at 1×, 4× and 16× of the load instead of at the bars'
  --perf     says where the hub's time goes
  --dry      writes nothing: neither bench/results.json nor docs/benchmarks.md
  --page     measures nothing: writes docs/benchmarks.md and docs/growth.svg from bench/results.json

  --micro, --instructions [--update], --builds: see docs/benchmarks.md

scenarios: ";

/// How long each server is measured in each round.
const SPAN: Duration = Duration::from_secs(6);
const SHORT_SPAN: Duration = Duration::from_secs(1);
/// The hub's heartbeat. Growth is measured with a quicker one, which is told for this one.
const HEARTBEAT: Duration = Duration::from_secs(15);
const GROWTH_HEARTBEAT: Duration = Duration::from_secs(5);
const SHORT_HEARTBEAT: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
struct Options {
    scenarios: Vec<&'static Scenario>,
    is_short: bool,
    has_peers: bool,
    is_growth: bool,
    has_perf: bool,
    is_dry: bool,
    is_page: bool,
    is_help: bool,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        for argument in arguments {
            match argument.as_str() {
                "--short" => options.is_short = true,
                "--peers" => options.has_peers = true,
                "--growth" => options.is_growth = true,
                "--perf" => options.has_perf = true,
                "--dry" => options.is_dry = true,
                "--page" => options.is_page = true,
                "--help" | "-h" => options.is_help = true,
                name => {
                    let found = scenario::ALL.iter().find(|scenario| scenario.name == name);
                    options.scenarios.push(found.ok_or_else(|| unknown(name))?);
                }
            }
        }
        if options.scenarios.is_empty() {
            options.scenarios = scenario::ALL.iter().collect();
        }
        Ok(options)
    }

    fn load(&self, n: usize) -> Load {
        let (span, heartbeat) = match (self.is_short, self.is_growth) {
            (true, _) => (SHORT_SPAN, SHORT_HEARTBEAT),
            (false, true) => (SPAN, GROWTH_HEARTBEAT),
            (false, false) => (SPAN, HEARTBEAT),
        };
        Load { n, span, heartbeat }
    }

    /// What the bars are about, or less of it.
    fn bars_load(&self, scenario: &Scenario) -> Load {
        self.load(if self.is_short { scenario.short } else { scenario.full })
    }

    const fn rounds(&self, scenario: &Scenario) -> usize {
        if self.is_short || self.has_perf { 1 } else { scenario.rounds }
    }

    const fn is_written(&self) -> bool {
        !self.is_short && !self.has_perf && !self.is_dry
    }
}

fn usage() -> String {
    let names: Vec<&str> = scenario::ALL.iter().map(|scenario| scenario.name).collect();
    format!("{USAGE}{}", names.join(", "))
}

fn unknown(wrong: &str) -> String {
    format!("{wrong} is neither a scenario nor an option\n\n{}", usage())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((first, options)) if first == "floor" => run_floor(options),
        _ => Options::parse(&arguments).and_then(start),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn start(mut options: Options) -> Result<(), String> {
    if options.is_help {
        println!("{}", usage());
        return Ok(());
    }
    if options.is_page {
        return written(Results::load().save());
    }
    if let (Some(hub), None) = (env::var_os("BENCH_HUB"), env::var_os("BENCH_BUILD")) {
        println!("nothing is written: {} is not known to be this commit's hub", hub.display());
        options.is_dry = true;
    }
    machine::prepare()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let tasks = tokio::task::LocalSet::new();
    runtime.block_on(tasks.run_until(run(&options)))
}

fn written(done: std::io::Result<()>) -> Result<(), String> {
    done.map_err(|error| format!("the results were not written: {error}"))
}

/// This program as the floor.
fn run_floor(options: &[String]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let log = options.iter().position(|option| option == "--log");
    let log = log.and_then(|place| options.get(place + 1)).map(File::create);
    let log = log.transpose().map_err(text)?;
    floor::run(options.iter().any(|option| option == "--history"), log).map_err(text)
}

async fn run(options: &Options) -> Result<(), String> {
    println!("{}", machine::description());
    if let Ok(label) = env::var("BENCH_BUILD") {
        return measure_build(options, &label).await;
    }
    if options.has_perf {
        let own = env::current_exe().map_err(|error| error.to_string())?;
        profile::enable(own.parent().map_or_else(PathBuf::new, |path| path.join("recordings")));
    }
    let peers = if options.has_peers { peers::installed() } else { Vec::new() };
    for scenario in &options.scenarios {
        // Read anew each time: a run that is stopped has written what it had measured.
        let mut results = Results::load();
        if options.is_growth {
            let growth = grow(scenario, options).await;
            results.growth.insert(scenario.name.to_owned(), growth);
        } else {
            let run = compare(scenario, options, &peers).await;
            results.runs.insert(scenario.name.to_owned(), run);
        }
        if options.is_written() {
            written(results.save())?;
        }
    }
    Ok(())
}

/// Measures floors, hub and peers in turn, as often as the scenario wants.
async fn compare(
    scenario: &'static Scenario,
    options: &Options,
    peers: &[&'static Peer],
) -> report::Run {
    let load = options.bars_load(scenario);
    let mut kinds = scenario.floors.to_vec();
    kinds.push(Kind::Hub);
    if scenario.has_peers {
        kinds.extend(peers.iter().map(|peer| Kind::Peer(peer)));
    }
    if options.has_perf {
        kinds = vec![Kind::Hub];
    }
    let (begun, busy) = (Instant::now(), machine::busy_seconds());
    let own = machine::cpu_seconds(std::process::id());
    let mut measured: Vec<(Kind, Vec<Vec<Figure>>)> =
        kinds.iter().map(|kind| (*kind, Vec::new())).collect();
    let mut failed: BTreeMap<&str, String> = BTreeMap::new();
    for _ in 0..options.rounds(scenario) {
        for (kind, results) in &mut measured {
            let measuring = (scenario.measure)(*kind, load);
            let figures = match *kind {
                // Somebody else's server may fail: it has no row then, and the others go on.
                Kind::Peer(peer) => spawn_local(measuring).await.unwrap_or_else(|error| {
                    let what = reason(error);
                    println!("{} failed in {}: {what}", peer.name, scenario.name);
                    failed.insert(peer.name, what);
                    Vec::new()
                }),
                _ => measuring.await,
            };
            results.push(figures);
        }
    }
    let ours = machine::cpu_seconds(std::process::id()) - own;
    let others = (machine::busy_seconds() - busy - ours) / begun.elapsed().as_secs_f64();
    let measured: Vec<Measured> = measured
        .into_iter()
        .map(|(kind, rounds)| Measured { kind, figures: middle(&rounds) })
        .filter(|measured| !measured.figures.is_empty())
        .collect();
    // Who failed in some rounds has the figures of the others.
    failed.retain(|name, _| !measured.iter().any(|measured| measured.kind.name() == *name));
    let failed = failed.into_iter().map(|(name, what)| (name.to_owned(), what)).collect();
    let run = report::judge(scenario, &measured, failed, others);
    report::print(scenario, load.n, &measured, &run);
    run
}

/// What somebody else's server did that ended its measurement, in one line.
fn reason(error: JoinError) -> String {
    let panic = error.into_panic();
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    // An answer that was no success ends the assertion's text: its first line, and its body, perhaps
    // between the sizes of its chunks.
    let mut lines = said.lines().map(str::trim).filter(|line| line.len() > 4);
    let status = said.lines().find_map(|line| Some(&line[line.find("HTTP/1.1 ")?..]));
    match (status, lines.next_back()) {
        (Some(status), Some(last)) => format!("`{status}`, `{last}`"),
        (None, Some(last)) => last.to_owned(),
        _ => "it ended its measurement".to_owned(),
    }
}

/// Of each figure, the middle of its rounds.
fn middle(rounds: &[Vec<Figure>]) -> Vec<Figure> {
    let first =
        rounds.iter().find(|round| !round.is_empty()).map(Vec::as_slice).unwrap_or_default();
    let of = |figure: &Figure| {
        let same = |round: &Vec<Figure>| round.iter().find(|of| of.name == figure.name).copied();
        Figure::middle(&rounds.iter().filter_map(same).collect::<Vec<Figure>>())
    };
    first.iter().filter_map(of).collect()
}

/// Measures the hub alone, as `cargo xtask bench --builds` has built it: the processor time of each
/// scenario, by the row's label.
async fn measure_build(options: &Options, label: &str) -> Result<(), String> {
    let mut row: Vec<String> = label.split('|').map(str::to_owned).collect();
    for scenario in &options.scenarios {
        let mut rounds = Vec::new();
        for _ in 0..options.rounds(scenario) {
            rounds.push((scenario.measure)(Kind::Hub, options.bars_load(scenario)).await);
        }
        let figures = middle(&rounds);
        let figure = figures.iter().find(|figure| figure.name == "CPU");
        row.push(figure.map_or_else(String::new, |figure| match figure.range_text() {
            Some(range) => format!("{figure} ({range})"),
            None => figure.to_string(),
        }));
    }
    row.push(report::when_and_where());
    println!("{}", row.join("  "));
    let mut results = Results::load();
    results.builds.retain(|old| old.first() != row.first());
    results.builds.push(row);
    if options.is_written() { written(results.save()) } else { Ok(()) }
}

/// Measures the hub at three loads.
async fn grow(scenario: &Scenario, options: &Options) -> Growth {
    let mut points = Vec::new();
    println!("\n{}: {}", scenario.name, scenario.title);
    for n in scenario.growth {
        // A short run sees only that growing works.
        let n = if options.is_short { (n / 16).max(1) } else { n };
        let figures = (scenario.measure)(Kind::Hub, options.load(n)).await;
        let texts: Vec<String> =
            figures.iter().map(|figure| format!("{} {figure}", figure.name)).collect();
        println!("  {n:>9} {}  {}", scenario.of, texts.join("  "));
        points.push((n, figures));
    }
    Growth::of(scenario, &points)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<String>>())
    }

    #[test]
    fn scenarios_are_found_by_their_names_and_others_are_refused() {
        let names = |options: Options| -> Vec<&str> {
            options.scenarios.iter().map(|scenario| scenario.name).collect()
        };
        assert_eq!(names(options("storm users --dry").unwrap()), ["storm", "users"]);
        assert_eq!(options("").unwrap().scenarios.len(), scenario::ALL.len());
        assert!(options("storms").unwrap_err().starts_with("storms is neither"));
    }

    #[test]
    fn what_is_short_or_dry_or_profiled_is_not_written() {
        assert!(options("users --growth --peers").unwrap().is_written());
        for line in ["--short", "--dry", "--perf"] {
            assert!(!options(line).unwrap().is_written(), "{line}");
        }
    }

    #[test]
    fn help_is_no_error() {
        assert!(options("--help").unwrap().is_help && options("users -h").unwrap().is_help);
    }
}
