//! Steps: one command each, its output passed on as it comes, its tests counted, its time taken.
//!
//! The rule: a step whose command fails is a failure, whatever its output counted.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

/// How many tests passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

/// Whose output a step prints, so that its tests can be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    /// Nobody's who counts: the step itself is one test.
    Plain,
    /// `cargo nextest`.
    Nextest,
    /// `cargo test`.
    CargoTest,
    /// `node --test` with the `spec` reporter.
    Node,
}

/// What became of the steps so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    lines: Vec<String>,
    pub(crate) total: Count,
}

impl Report {
    /// Runs a command as a step and returns whether it succeeded.
    pub(crate) fn command(&mut self, name: &str, runner: Runner, command: &mut Command) -> bool {
        let line = line_of(command);
        self.step(name, &line, || {
            let (success, count) = run(command, runner)?;
            if count == Count::default() && runner != Runner::Plain {
                return Err("ran no test".to_owned());
            }
            Ok(if success { (count, None) } else { (count, Some(format!("{line} failed"))) })
        })
    }

    /// Does something as a step; returns whether it succeeded.
    pub(crate) fn step(
        &mut self,
        name: &str,
        what: &str,
        work: impl FnOnce() -> Result<(Count, Option<String>), String>,
    ) -> bool {
        println!("\n=== {name}: {what}");
        let begun = Instant::now();
        let (mut count, failure) = work().unwrap_or_else(|why| (Count::default(), Some(why)));
        let took = seconds(begun.elapsed());
        if failure.is_some() && count.failed == 0 {
            count.failed = 1;
        }
        if count == Count::default() {
            count.passed = 1;
        }
        self.total.passed += count.passed;
        self.total.failed += count.failed;
        let success = count.failed == 0;
        let verdict = if success { "passed" } else { "FAILED" };
        if let Some(why) = &failure {
            eprintln!("{name}: {why}");
        }
        let counted = format!("{} passed, {} failed", count.passed, count.failed);
        let line = format!("{name:<12} {verdict:<7} {took:>8}   {counted}");
        println!("=== {line}");
        self.lines.push(line);
        success
    }

    /// Says that something could not be done, without calling it passed or failed.
    pub(crate) fn note(&mut self, name: &str, why: &str) {
        println!("\n=== {name}: not run: {why}");
        self.lines.push(format!("{name:<12} NOT RUN            {why}"));
    }

    /// Prints what became of every step and, on a line of its own, the sum.
    pub(crate) fn close(&self) {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
        println!("\n{} passed, {} failed", self.total.passed, self.total.failed);
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn line_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command, passing its output on and counting the tests that it tells of.
fn run(command: &mut Command, runner: Runner) -> Result<(bool, Count), String> {
    let line = line_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run {line}: {error}"))?;
    let count = Mutex::new(Count::default());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(|| stdout.map(|from| pass_on(from, &mut std::io::stdout(), runner, &count)));
        scope.spawn(|| stderr.map(|from| pass_on(from, &mut std::io::stderr(), runner, &count)));
    });
    let status = child.wait().map_err(|error| format!("{line}: {error}"))?;
    let count = *count.lock().map_err(|_| "counting panicked".to_owned())?;
    Ok((status.success(), count))
}

fn pass_on(from: impl Read, to: &mut impl std::io::Write, runner: Runner, count: &Mutex<Count>) {
    for line in BufReader::new(from).split(b'\n') {
        let Ok(line) = line else { return };
        // A reader that went away (`| head`) must not end the tests.
        let _ = to.write_all(&line).and_then(|()| to.write_all(b"\n"));
        let told = count_of(runner, &String::from_utf8_lossy(&line));
        if let Ok(mut count) = count.lock() {
            count.passed += told.passed;
            count.failed += told.failed;
        }
    }
}

/// What a line of a runner's output counts.
fn count_of(runner: Runner, line: &str) -> Count {
    let line = line.trim();
    let before = |word: &str| -> u64 {
        // "…, 12 passed (1 slow), 2 failed": the number is the word before.
        let words: Vec<&str> = line.split([' ', ',', ';', '(', ')']).collect();
        let pairs = words.windows(2).filter_map(|pair| match pair {
            [number, name] if *name == word => number.parse::<u64>().ok(),
            _ => None,
        });
        pairs.sum()
    };
    match runner {
        Runner::Nextest if line.starts_with("Summary [") => Count {
            passed: before("passed"),
            failed: before("failed") + before("exec") + before("timed"),
        },
        Runner::CargoTest if line.starts_with("test result:") => {
            Count { passed: before("passed"), failed: before("failed") }
        }
        Runner::Node => {
            let after = |name: &str| -> u64 {
                let rest = line.strip_prefix("ℹ ").and_then(|line| line.strip_prefix(name));
                rest.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
            };
            // A test that is skipped or to be done is one that was not run.
            Count {
                passed: after("pass "),
                failed: after("fail ") + after("cancelled ") + after("skipped ") + after("todo "),
            }
        }
        _ => Count::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(passed: u64, failed: u64) -> Count {
        Count { passed, failed }
    }

    #[test]
    fn the_tests_that_a_runner_tells_of_are_counted() {
        for (runner, line, expected) in [
            (
                Runner::Nextest,
                "     Summary [   3.1s] 12 tests run: 12 passed, 0 skipped",
                count(12, 0),
            ),
            (
                Runner::Nextest,
                "     Summary [  61.0s] 9/12 tests run: 6 passed (1 slow), 2 failed, 1 timed out, 3 skipped",
                count(6, 3),
            ),
            (Runner::Nextest, "        PASS [   0.005s] tidings 12 passed", count(0, 0)),
            (
                Runner::CargoTest,
                "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured",
                count(3, 1),
            ),
            (Runner::Node, "ℹ pass 7", count(7, 0)),
            (Runner::Node, "ℹ fail 1", count(0, 1)),
            (Runner::Node, "ℹ skipped 2", count(0, 2)),
            (Runner::Node, "ℹ tests 7", count(0, 0)),
        ] {
            assert_eq!(count_of(runner, line), expected, "{line}");
        }
    }

    #[test]
    fn a_command_that_fails_is_a_failure_even_if_its_tests_passed() {
        let mut report = Report::default();
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test result: ok. 3 passed; 0 failed'; exit 1"]);
        assert!(!report.command("liar", Runner::CargoTest, &mut command));
        assert_eq!(report.total, count(3, 1));
    }

    #[test]
    fn a_runner_that_ran_no_test_and_a_command_that_is_missing_are_failures() {
        let mut report = Report::default();
        assert!(!report.command("empty", Runner::Nextest, &mut Command::new("true")));
        assert!(!report.command("none", Runner::Plain, &mut Command::new("/no/such/program")));
        assert!(report.command("plain", Runner::Plain, &mut Command::new("true")));
        assert_eq!(report.total, count(1, 2));
    }
}
