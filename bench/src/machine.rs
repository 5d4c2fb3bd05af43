//! The machine: which processor does what, how many files may be open, what else runs.

use std::{
    fs,
    process::{self, Command},
    sync::OnceLock,
};

/// The processor that servers have to themselves, and the load generator's.
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";
/// Descriptors: 40 000 connections, and what a server needs beside them.
const FILES: u64 = 100_000;
/// Clock ticks a second in /proc (proc(5), `sysconf(_SC_CLK_TCK)`): 100 on every Linux of today.
const TICKS: f64 = 100.0;

/// Prepares this process: its descriptors, which servers inherit, and its processor.
pub(crate) fn prepare() -> Result<(), String> {
    let raised = rlimit::setrlimit(rlimit::Resource::NOFILE, FILES, FILES);
    if raised.is_err() {
        // Not privileged: what the hard limit allows must do.
        rlimit::increase_nofile_limit(FILES).map_err(|error| format!("descriptors: {error}"))?;
    }
    let own = process::id().to_string();
    let pinned = Command::new("taskset").args(["-cp", LOAD_CORE, &own]).output();
    match pinned {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => Err("this needs two processors, one for servers and one for the load".to_owned()),
        Err(error) => Err(format!("taskset (util-linux): {error}")),
    }
}

/// A command that runs on the servers' processor.
pub(crate) fn pinned(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", SERVER_CORE]).arg(program);
    command
}

/// The process and all that it started.
fn family(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?)))
        .collect();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// Fields of /proc/PID/stat from the third, the state, on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit(')').next()?.split_whitespace().map(str::to_owned).collect())
}

/// Seconds of CPU that a process and its children have used, user and system, those that have ended
/// included.
pub(crate) fn cpu_seconds(root: u32) -> f64 {
    let ticks = |pid| -> Option<f64> {
        // Fields 14 to 17 of proc(5): its own, and those of children that it has waited for.
        stat(pid)?.iter().skip(11).take(4).map(|field| field.parse::<f64>().ok()).sum()
    };
    family(root).into_iter().filter_map(ticks).sum::<f64>() / TICKS
}

/// Resident bytes of a process and its children.
pub(crate) fn resident_bytes(root: u32) -> f64 {
    let resident = |pid| -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
    };
    family(root).into_iter().filter_map(resident).sum()
}

/// Seconds that all processors together were busy since they started.
pub(crate) fn busy_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    // All but `idle` and `iowait`; `guest` is part of `user`.
    let busy = ticks.iter().take(8).enumerate().filter(|(place, _)| ![3, 4].contains(place));
    busy.map(|(_, ticks)| ticks).sum::<f64>() / TICKS
}

/// What the figures were measured on, in a line.
pub(crate) fn description() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.trim().split('-').next().unwrap_or_default().to_owned();
    let gib = total.unwrap_or_default() / 1024.0 / 1024.0;
    format!("{cores} × {model}, {gib:.0} GiB, Linux {kernel}, loopback")
}

/// The commit that is measured; `+` says that the tree differed from it when this was asked first.
pub(crate) fn commit() -> String {
    static COMMIT: OnceLock<String> = OnceLock::new();
    COMMIT.get_or_init(find_commit).clone()
}

fn find_commit() -> String {
    let git = |arguments: &[&str]| {
        let here = env!("CARGO_MANIFEST_DIR");
        let output = Command::new("git").args(["-C", here]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".to_owned() };
    let is_clean =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| text.is_empty());
    if is_clean { hash } else { format!("{hash}+") }
}
