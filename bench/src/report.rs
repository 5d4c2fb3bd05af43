//! What was measured, as tables: on the terminal, in `bench/results.json` and in
//! `docs/benchmarks.md`.
//!
//! The rule: a page's row is of one run, with the floor of the same run. Runs of some scenarios
//! replace the rows of those; each says when and of which commit it is.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    figure::{Bar, Figure, Limit},
    growth::Growth,
    machine,
    scenario::{self, Scenario},
    server::Kind,
};

/// What one server did in a scenario.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) kind: Kind,
    pub(crate) figures: Vec<Figure>,
}

impl Measured {
    pub(crate) fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }
}

/// A bar and what became of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    bar: String,
    figure: String,
    /// The least and the most of several rounds, if there were.
    #[serde(default)]
    range: String,
    floor: String,
    verdict: String,
}

/// A figure: its name, how it is written, and the least and the most of several rounds.
#[derive(Debug, Serialize, Deserialize)]
struct Told(String, String, #[serde(default)] Option<(f64, f64)>);

/// The last run of a scenario.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    date: String,
    commit: String,
    command: String,
    machine: String,
    /// Processors that other programs used meanwhile.
    others: f64,
    rows: Vec<Row>,
    servers: Vec<(String, Vec<Told>)>,
    /// Others' servers, and what of them was installed.
    #[serde(default)]
    versions: Vec<(String, String)>,
    /// Servers without figures, and what they did instead.
    #[serde(default)]
    failed: Vec<(String, String)>,
}

/// Everything that the page tells.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) runs: BTreeMap<String, Run>,
    pub(crate) growth: BTreeMap<String, Growth>,
    /// Binaries and their builds: what, and its columns.
    #[serde(default)]
    pub(crate) builds: Vec<Vec<String>>,
}

fn repository() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or(here.clone(), PathBuf::from)
}

impl Results {
    fn file() -> PathBuf {
        repository().join("bench/results.json")
    }

    pub(crate) fn load() -> Self {
        // A tree without results begins with none; others are not to be lost.
        let Ok(text) = fs::read_to_string(Self::file()) else { return Self::default() };
        serde_json::from_str(&text).expect("bench/results.json must be what this program wrote")
    }

    /// Writes them down, and the page from them.
    pub(crate) fn save(&self) -> std::io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(Self::file(), text)?;
        if !self.growth.is_empty() {
            fs::write(repository().join("docs/growth.svg"), crate::growth::svg(&self.growth))?;
        }
        fs::write(repository().join("docs/benchmarks.md"), self.page())
    }
}

/// Judges what was measured by the scenario's bars.
pub(crate) fn judge(
    scenario: &Scenario,
    measured: &[Measured],
    failed: Vec<(String, String)>,
    others: f64,
) -> Run {
    let of = |kind: Kind| measured.iter().find(|measured| measured.kind == kind);
    let floor = scenario.floors.first().and_then(|kind| of(*kind));
    let mut rows = Vec::new();
    for bar in scenario.bars {
        let Some(figure) = of(Kind::Hub).and_then(|hub| hub.figure(bar.of)) else { continue };
        let beside = floor.and_then(|floor| floor.figure(bar.of));
        let is_met = is_met(bar, figure, beside, measured);
        rows.push(Row {
            bar: bar.text(figure),
            figure: figure.to_string(),
            range: figure.range_text().unwrap_or_default(),
            floor: beside.map_or("–".to_owned(), |floor| times(figure.value / floor.value)),
            verdict: match is_met {
                Some(true) => "met".to_owned(),
                Some(false) => "**missed**".to_owned(),
                None => "not measured".to_owned(),
            },
        });
    }
    let servers = measured.iter().map(|measured| {
        let figures = measured.figures.iter();
        let figures =
            figures.map(|figure| Told(figure.name.to_owned(), figure.to_string(), figure.range));
        (measured.kind.name().to_owned(), figures.collect())
    });
    let versions = measured.iter().filter_map(|measured| match measured.kind {
        Kind::Peer(peer) => Some((peer.name.to_owned(), peer.version())),
        _ => None,
    });
    Run {
        date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        commit: machine::commit(),
        command: command(),
        machine: machine::description(),
        others,
        rows,
        servers: servers.collect(),
        versions: versions.collect(),
        failed,
    }
}

fn is_met(
    bar: &Bar,
    figure: &Figure,
    floor: Option<&Figure>,
    measured: &[Measured],
) -> Option<bool> {
    match bar.limit {
        Limit::AtMost(most) => Some(figure.value <= most),
        Limit::AtLeast(least) => Some(figure.value >= least),
        Limit::FloorTimes(times) => floor.map(|floor| figure.value <= times * floor.value),
        Limit::PeerTimes(name, times) => {
            let peer = measured.iter().find(|measured| measured.kind.name() == name)?;
            Some(figure.value >= times * peer.figure(bar.of)?.value)
        }
    }
}

/// The moment, the commit and the machine, of a row that has no run.
pub(crate) fn when_and_where() -> String {
    let (date, commit) = (jiff::Timestamp::now().strftime("%Y-%m-%d"), machine::commit());
    format!("{date} `{commit}`, {}", machine::description())
}

fn times(value: f64) -> String {
    format!("{value:.2} ×")
}

fn command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo xtask bench {}", arguments.join(" ")).trim_end().to_owned()
}

/// A table on the terminal: servers and their figures.
pub(crate) fn print(scenario: &Scenario, load: usize, measured: &[Measured], run: &Run) {
    println!("\n{}: {} ({load} {})", scenario.name, scenario.title, scenario.of);
    let floor = scenario
        .floors
        .first()
        .and_then(|kind| measured.iter().find(|measured| measured.kind == *kind));
    for Measured { kind, figures } in measured {
        print!("  {:<25}", kind.name());
        for figure in figures {
            let beside = floor.and_then(|floor| floor.figure(figure.name));
            let ratio = match beside {
                Some(beside) if floor.is_some_and(|floor| floor.kind != *kind) => {
                    format!(" ({})", times(figure.value / beside.value))
                }
                _ => String::new(),
            };
            print!("  {} {figure}{ratio}", figure.name);
        }
        println!();
    }
    for Row { bar, figure, range, verdict, .. } in &run.rows {
        println!("  {bar:<34} {figure:>16}   {verdict}   {range}");
    }
    for (name, what) in &run.versions {
        println!("  {name}: {what}");
    }
    if run.others > 0.1 {
        println!("  others used {:.1} processors meanwhile", run.others);
    }
}

const INTRODUCTION: &str = "\
# Benchmarks

<!-- Written by `cargo xtask bench`. Do not edit: the text is in bench/src/report.rs. -->

How fast the hub is, beside a floor: a server that does the least that the work takes. It has one \
thread, raw sockets, epoll and prepared bytes, and no history, access checks or HTTP beyond what \
the load generator understands; its frames are as long as the hub's. The hub has journal, fsync, \
access checks and ids on. `floor + fsync` also appends to a file, and syncs it once for all \
requests that came together.

The server has one processor, the load generator another. The machine is shared: only ratios within \
one run count, and of a server's own figures the steadiest is its CPU per delivery or event (user \
and system, from `/proc/PID/stat`; `s/M` is seconds per million, which is microseconds each). All \
rows but those of long scenarios are the middle of three rounds in which the servers take turns; the \
range is the least and the most of the three (`bench/results.json` has it of every figure). Rows \
without a range were measured once. Others that used a processor meanwhile may be processes of a \
peer's or a shared server's own.

What is checked: every event has its number in its topic, from 1 on, in its data, which all servers, \
peers too, hand on as it came. A reader that is given any other event than the next fails the run, and \
so does one that lacks any in the end. Of publishing alone the answers are checked: each must be a success, \
of all its events. Of `source` only the total is checked, by the hub's own count of stored messages. \
(Runs before 2026-11-22 20:00 UTC compared totals everywhere.)

What to know when reading it: events have ids that the hub makes, unless a row says that they are \
their publisher's, which are looked up and kept. Limits are counted, and high. In `fanout` a \
publisher is up to 16 events ahead, and who is behind gets several in one write, which the floor does \
not do; in lockstep it cannot. Events that are due at fixed times (`tokens`, `nodes-…`, `stalled`) \
count from when they were due if they had to wait for the answer to the one before; if only the load \
generator's timer was late, they count from when they were sent, and `sent late` says how late that was. \
(Rows without that column forgave up to 2 ms, whoever was late.) `CPU` of `nodes-…` is the delivering \
node's and that of `three-nodes` all nodes'; the publishing node and the shared servers have columns \
of their own, for the same events. Heartbeats of HTTP/2 and TLS are measured with 5 000 connections, \
and told for 10 000. A cold start is a process's: the files are still in the kernel's memory.

Of the peers, only those of Durable Streams have rows in `publish-500`: an append of a JSON array is \
many messages. Nchan takes one message a request; `better-sse` and `sse-starlette` are libraries \
without a publishing protocol, and a list in the few lines that `bench/peers` puts around them \
would be our own.

```text
cargo xtask bench                        every scenario, and this page
cargo xtask bench fanout users           some of them
cargo xtask bench --short                smaller and shorter, to see that it works; writes nothing
cargo xtask bench --peers                also the servers of others that are installed
cargo xtask bench --growth               at 1×, 4× and 16× of the load, plotted
cargo xtask bench --perf fanout          where the hub's time goes, by perf
cargo xtask bench --micro                encoding, cursors, readers and access checks by themselves
cargo xtask bench --instructions         the same, counted by callgrind, against the committed counts
cargo xtask bench --builds               size, build time and speed of other build settings and allocators
cargo xtask bench --page                 this page anew from bench/results.json, nothing measured
```

What each scenario does, exactly, is at the head of its file in `bench/src/scenario/`. The \
configurations of the others' servers are in `bench/peers/`, with the versions of all that they \
bring; `cargo xtask bench --peers` says what installs those that are missing.

## Bars

";

const GROWTH: &str = "
## Growth

The hub at 1×, 4× and 16× of the smallest load, each measured once. A flat line is a cost, or a rate, \
that does not change with the load; each panel begins at zero. A figure bends at the first load at \
which it is worse than at the smallest by half: a cost half as much again, a rate two thirds. What \
grows with the load by its nature (`all caught up`, of all readers together) is told per load. What \
bends first is first in the table.

How far it goes: two processors and 24 GiB. For `resume`, `topics` and `start` the largest load is the \
bars' million and 1× a sixteenth of it: sixteen times a million takes minutes to fill for each, which \
was not tried. For `source` the largest is the bar's 200 000 messages, because the broker has to be filled \
first. 800 token streams are 40 000 tokens a second, which one processor cannot do: their delays are of \
a queue that grows as long as it is measured. `three-nodes` goes to 14 400 readers. Heartbeats come every \
5 s here, and their CPU is told for every 15.

![Figures by load](growth.svg)

";

const BUILD_COLUMNS: usize = 7;
const BUILDS: &str = "
## Builds

Of the hub's binary alone, from nothing; the load generator stays what it is. LTO, and units that each \
crate is compiled in; the allocator is mimalloc unless a row says another. `system` is a build that \
has the C library's, and jemalloc is that same build with Debian's `libjemalloc2` preloaded. CPU is \
the middle of three rounds, with the least and the most; rows without a date were measured once.

| LTO, units | binary | build | fan-out CPU | publish CPU | replay CPU | measured |
|---|---|---|---|---|---|---|
";

impl Results {
    fn page(&self) -> String {
        let mut page = INTRODUCTION.to_owned();
        page.push_str(
            "| scenario | bar | figure | range | × floor | |\n|---|---|---|---|---|---|\n",
        );
        let runs = || {
            let run = |scenario: &'static Scenario| Some((scenario, self.runs.get(scenario.name)?));
            scenario::ALL.iter().filter_map(run)
        };
        for (scenario, run) in runs() {
            for (place, row) in run.rows.iter().enumerate() {
                let title = if place == 0 { scenario.title } else { "" };
                let Row { bar, figure, range, floor, verdict } = row;
                page.push_str(&format!(
                    "| {title} | {bar} | {figure} | {range} | {floor} | {verdict} |\n"
                ));
            }
        }
        page.push_str("\n## All figures\n");
        for (scenario, run) in runs() {
            page.push_str(&format!("\n### `{}`: {}\n\n", scenario.name, scenario.title));
            page.push_str(&servers_table(&run.servers));
            for (server, what) in &run.failed {
                page.push_str(&format!("\n{server} has no figures: {what}\n"));
            }
            if !run.versions.is_empty() {
                let versions = run.versions.iter().map(|(name, what)| format!("{name}: {what}"));
                let versions: Vec<String> = versions.collect();
                page.push_str(&format!("\nVersions of {}.\n", versions.join("; of ")));
            }
            let Run { date, commit, command, machine, others, .. } = run;
            page.push_str(&format!("\n{date}, `{commit}`, `{command}`; {machine}"));
            if *others > 0.1 {
                page.push_str(&format!("; others used {others:.1} processors meanwhile"));
            }
            page.push_str(".\n");
        }
        if !self.growth.is_empty() {
            page.push_str(GROWTH);
            page.push_str(&crate::growth::table(&self.growth));
        }
        if !self.builds.is_empty() {
            page.push_str(BUILDS);
            for row in &self.builds {
                let cells = (0..BUILD_COLUMNS).map(|nth| row.get(nth).map_or("–", String::as_str));
                page.push_str(&format!("| {} |\n", cells.collect::<Vec<&str>>().join(" | ")));
            }
        }
        page
    }
}

fn servers_table(servers: &[(String, Vec<Told>)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for Told(name, ..) in servers.iter().flat_map(|(_, figures)| figures) {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    let mut table =
        format!("| server | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for (server, figures) in servers {
        let cells = names.iter().map(|name| {
            let found = figures.iter().find(|Told(of, ..)| of == name);
            found.map_or("–", |Told(_, figure, _)| figure)
        });
        let cells: Vec<&str> = cells.collect();
        table.push_str(&format!("| {server} | {} |\n", cells.join(" | ")));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody edits the page, the plot or the data without the others: `cargo xtask bench --page`.
    #[test]
    fn the_page_and_the_plot_are_what_the_results_say() {
        let results = Results::load();
        let read = |name: &str| fs::read_to_string(repository().join("docs").join(name)).unwrap();
        assert!(read("benchmarks.md") == results.page(), "docs/benchmarks.md is of other results");
        let plot = crate::growth::svg(&results.growth);
        assert!(read("growth.svg") == plot, "docs/growth.svg is of other results");
    }

    #[test]
    fn runs_without_ranges_and_versions_are_read() {
        let text = r#"{"date":"","commit":"","command":"","machine":"","others":0.0,
            "rows":[{"bar":"b","figure":"1/s","floor":"–","verdict":"met"}],
            "servers":[["tidings",[["events","1/s"],["CPU","2.00 s/M",[1.5,2.5]]]]]}"#;
        let run: Run = serde_json::from_str(text).unwrap();
        let Some((_, figures)) = run.servers.first() else { panic!("no server") };
        let ranges: Vec<Option<(f64, f64)>> = figures.iter().map(|told| told.2).collect();
        assert_eq!(ranges, [None, Some((1.5, 2.5))]);
        assert!(servers_table(&run.servers).ends_with("| tidings | 1/s | 2.00 s/M |\n"));
    }
}
