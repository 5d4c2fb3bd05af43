//! Where the hub's time goes, by perf: recorded over what is measured, told as soon as it ends.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use crate::server::{Kind, Server};

/// Where recordings are put, if they are asked for.
static RECORDINGS: OnceLock<PathBuf> = OnceLock::new();
/// Functions told of each recording.
const FUNCTIONS: usize = 45;

/// Has every hub recorded from now on.
pub(crate) fn enable(directory: PathBuf) {
    std::fs::create_dir_all(&directory).unwrap();
    RECORDINGS.get_or_init(|| directory);
}

/// Begins to record a hub.
pub(crate) fn start(server: &Server) -> Option<Child> {
    let directory = RECORDINGS.get()?;
    if server.kind != Kind::Hub {
        return None;
    }
    let pid = server.pid().to_string();
    let mut perf = Command::new("perf");
    perf.args(["record", "--quiet", "-F", "1999", "-g", "-p", &pid, "-o", "perf.data"]);
    let perf = perf.current_dir(directory).stdout(Stdio::null()).spawn();
    Some(perf.expect("perf (linux-perf) must be installed to profile"))
}

/// Ends a recording and prints where the time went.
pub(crate) fn stop(mut recording: Child) {
    let pid = recording.id().to_string();
    // Perf writes its file when it is interrupted.
    let _ = Command::new("kill").args(["-INT", &pid]).status();
    let _ = recording.wait();
    let Some(directory) = RECORDINGS.get() else { return };
    let mut report = Command::new("perf");
    report.args(["report", "--stdio", "--no-children", "-g", "none", "-i", "perf.data"]);
    report.args(["--percent-limit", "0.5", "--sort", "comm,sym"]);
    let output = report.current_dir(directory).stderr(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines.take(FUNCTIONS) {
        println!("  {}", line.trim_end().chars().take(140).collect::<String>());
    }
    println!("  (the whole: perf report -i {})", directory.join("perf.data").display());
}
