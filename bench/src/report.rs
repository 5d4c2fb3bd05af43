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
    floor: String,
    verdict: String,
}

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
    servers: Vec<(String, Vec<(String, String)>)>,
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
        let figures = figures.map(|figure| (figure.name.to_owned(), figure.to_string()));
        (measured.kind.name().to_owned(), figures.collect())
    });
    Run {
        date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        commit: machine::commit(),
        command: command(),
        machine: machine::description(),
        others,
        rows,
        servers: servers.collect(),
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
    for Row { bar, figure, verdict, .. } in &run.rows {
        println!("  {bar:<34} {figure:>16}   {verdict}");
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
rows but those of long scenarios are the middle of three rounds in which the servers take turns. \
Clients count every event, and a run fails if there are fewer or more than were published. Others \
that used a processor meanwhile may be processes of a peer's or a shared server's own.

What to know when reading it: events have ids that the hub makes, unless a row says that they are \
their publisher's, which are looked up and kept. Limits are counted, and high. In `fanout` a \
publisher is up to 16 events ahead, and who is behind gets several in one write, which the floor does \
not do; in lockstep it cannot. `nodes-…` tells the CPU of the node that delivers, and a shared \
journal's own is in no figure. Heartbeats of HTTP/2 and TLS are measured with 5 000 connections, and \
told for 10 000. A cold start is a process's: the files are still in the kernel's memory.

```text
cargo xtask bench                        every scenario, and this page
cargo xtask bench fanout users           some of them
cargo xtask bench --short                smaller and shorter, to see that it works; writes nothing
cargo xtask bench --peers                also the servers of others that are installed
cargo xtask bench --growth               at 1×, 4× and 16× of the load, plotted
cargo xtask bench --perf fanout          where the hub's time goes, by perf
cargo xtask bench --micro                encoding, cursors, readers and access checks by themselves
cargo xtask bench --instructions         the same, counted by callgrind, against the committed counts
cargo xtask bench --builds               size, build time and speed of other build settings
```

What each scenario does, exactly, is at the head of its file in `bench/src/scenario/`. The \
configurations of the others' servers are in `bench/peers/`.

## Bars

";

impl Results {
    fn page(&self) -> String {
        let mut page = INTRODUCTION.to_owned();
        page.push_str("| scenario | bar | figure | × floor | |\n|---|---|---|---|---|\n");
        let runs = || {
            let run = |scenario: &'static Scenario| Some((scenario, self.runs.get(scenario.name)?));
            scenario::ALL.iter().filter_map(run)
        };
        for (scenario, run) in runs() {
            for (place, row) in run.rows.iter().enumerate() {
                let title = if place == 0 { scenario.title } else { "" };
                let Row { bar, figure, floor, verdict } = row;
                page.push_str(&format!("| {title} | {bar} | {figure} | {floor} | {verdict} |\n"));
            }
        }
        page.push_str("\n## All figures\n");
        for (scenario, run) in runs() {
            page.push_str(&format!("\n### `{}`: {}\n\n", scenario.name, scenario.title));
            page.push_str(&servers_table(&run.servers));
            for (server, what) in &run.failed {
                page.push_str(&format!("\n{server} has no figures: {what}\n"));
            }
            let Run { date, commit, command, machine, others, .. } = run;
            page.push_str(&format!("\n{date}, `{commit}`, `{command}`; {machine}"));
            if *others > 0.1 {
                page.push_str(&format!("; others used {others:.1} processors meanwhile"));
            }
            page.push_str(".\n");
        }
        if !self.growth.is_empty() {
            page.push_str("\n## Growth\n\n");
            page.push_str(
                "The hub at 1×, 4× and 16× of the smallest load. A flat line is a cost that does \
                 not grow with the load.\n\n![Cost by load](growth.svg)\n\n",
            );
            page.push_str(&crate::growth::table(&self.growth));
        }
        if !self.builds.is_empty() {
            page.push_str("\n## Builds\n\n");
            page.push_str(
                "Of the binary alone, from nothing. LTO, and units that each crate is compiled in.\n\n\
                 | LTO, units | binary | build | fan-out CPU | publish CPU | replay CPU |\n",
            );
            page.push_str("|---|---|---|---|---|---|\n");
            for row in &self.builds {
                page.push_str(&format!("| {} |\n", row.join(" | ")));
            }
        }
        page
    }
}

fn servers_table(servers: &[(String, Vec<(String, String)>)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in servers.iter().flat_map(|(_, figures)| figures) {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    let mut table =
        format!("| server | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for (server, figures) in servers {
        let cells = names.iter().map(|name| {
            let found = figures.iter().find(|(of, _)| of == name);
            found.map_or("–", |(_, figure)| figure)
        });
        let cells: Vec<&str> = cells.collect();
        table.push_str(&format!("| {server} | {} |\n", cells.join(" | ")));
    }
    table
}
