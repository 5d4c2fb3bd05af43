//! The commands that the documentation shows, run against a hub.
//!
//! The rule: every `sh` block of README.md and docs/ is run, unless its fence gives a reason
//! (`sh no-run: …`). Each page has a `tidings dev` of its own, found through `TIDINGS_URL`,
//! `TIDINGS_KEY` and `TIDINGS_TOKEN`, and a folder with a small Rust project; what one block sets,
//! the next one sees.
//!
//! A fence may say more, in words that readers do not see:
//! - `sh background`: runs while the blocks after it do, and is ended with the page;
//! - `sh fails`: is to end with another status than 0;
//! - `json output`, `text output`, … after a `sh` block: what that prints. `…` stands for any text
//!   within a line, a line of only `…` for any lines.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    markdown::{self, Block},
    root,
    step::Count,
    suite, target, tidings_binary,
};

/// A command that is not done by then hangs.
const BLOCK_TIME_MAX: Duration = Duration::from_secs(120);
/// A hub that has not said where it listens by then will not.
const START_TIME_MAX: Duration = Duration::from_secs(30);
/// What a background command prints comes within this time after the page's last command.
const BACKGROUND_TIME_MAX: Duration = Duration::from_secs(15);

/// What curl does by itself in these examples: a refusal is a failure, its body is shown, and a
/// line ends with it.
const CURLRC: &str = "fail-with-body\nsilent\nshow-error\nmax-time = 100\nwrite-out = \"\\n\"\n";

/// A Rust project for the examples that build one; not a member of ours.
const PROJECT: [(&str, &str); 2] = [
    ("Cargo.toml", "[package]\nname = \"example\"\nedition = \"2024\"\n\n[workspace]\n"),
    ("src/main.rs", "//! Something to build.\nfn main() {}\n"),
];

/// One command block of a page.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    line: usize,
    script: String,
    is_background: bool,
    fails: bool,
    output: Option<String>,
}

/// Builds the binary, then runs all examples.
pub(crate) fn run_alone() -> Result<(), String> {
    if !suite::build().status().is_ok_and(|status| status.success()) {
        return Err("the binary that the examples need does not build".to_owned());
    }
    let (count, failure) = run()?;
    println!("\n{} passed, {} failed", count.passed, count.failed);
    failure.map_or(Ok(()), Err)
}

/// Runs the examples of all pages; the binary must have been built.
pub(crate) fn run() -> Result<(Count, Option<String>), String> {
    let mut count = Count::default();
    for path in pages()? {
        let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        let text = fs::read_to_string(&path).map_err(|error| format!("{name}: {error}"))?;
        let examples = examples(&text).map_err(|why| format!("{name}:{why}"))?;
        if examples.is_empty() {
            continue;
        }
        let mut page = Page::start(&name)?;
        for example in examples {
            let place = format!("{name}:{}", example.line);
            let outcome = page.run(example);
            settle(&place, outcome, &mut count);
        }
        for (line, outcome) in page.finish() {
            settle(&format!("{name}:{line}"), outcome, &mut count);
        }
    }
    let failure = (count.failed > 0).then(|| format!("{} examples failed", count.failed));
    Ok((count, failure))
}

/// A background example is counted when it has ended.
fn settle(place: &str, outcome: Outcome, count: &mut Count) {
    match outcome {
        Outcome::Begun => {}
        Outcome::Passed => {
            println!("{place}: passed");
            count.passed += 1;
        }
        Outcome::Failed(why) => {
            println!("{place}: FAILED: {why}");
            count.failed += 1;
        }
    }
}

/// README.md and everything below docs/ that is Markdown.
pub(crate) fn pages() -> Result<Vec<PathBuf>, String> {
    let mut pages = vec![root().join("README.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    Ok(pages)
}

/// The examples of a page.
fn examples(page: &str) -> Result<Vec<Example>, String> {
    let mut examples: Vec<Example> = Vec::new();
    let mut was_run = false;
    for Block { line, info, text, follows_block } in markdown::blocks(page) {
        let (language, words) = info.split_once(' ').unwrap_or((&info, ""));
        if words == "output" {
            match examples.last_mut() {
                Some(example) if was_run && follows_block => example.output = Some(text),
                _ => return Err(format!("{line}: output of nothing that is run")),
            }
            was_run = false;
            continue;
        }
        was_run = false;
        match language {
            "sh" => {}
            "bash" | "shell" | "console" | "zsh" => {
                return Err(format!("{line}: commands are written in a block of `sh`"));
            }
            _ => continue,
        }
        if let Some(reason) = words.strip_prefix("no-run:") {
            if reason.trim().len() < 10 {
                return Err(format!("{line}: no-run needs a reason"));
            }
            continue;
        }
        if let Some(word) = words.split_whitespace().find(|w| !["background", "fails"].contains(w))
        {
            return Err(format!("{line}: {word} means nothing on a fence of `sh`"));
        }
        was_run = true;
        examples.push(Example {
            line,
            script: text,
            is_background: words.contains("background"),
            fails: words.contains("fails"),
            output: None,
        });
    }
    Ok(examples)
}

/// What became of an example.
enum Outcome {
    Passed,
    Failed(String),
    /// It runs in the background.
    Begun,
}

/// A page being run: its hub, its folder and what runs in the background.
struct Page {
    hub: Child,
    environment: Vec<(&'static str, String)>,
    /// Of this page: the hub's data, the examples' output, and where they run.
    folder: PathBuf,
    background: Vec<(Example, Running)>,
}

impl Page {
    /// Starts a hub on a free port and a fresh directory.
    fn start(name: &str) -> Result<Self, String> {
        let folder = target().join("examples").join(name.replace(['/', '.'], "-"));
        let fail = |error: std::io::Error| format!("{}: {error}", folder.display());
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(fail)?;
        }
        fs::create_dir_all(folder.join("work/src")).map_err(fail)?;
        for (path, text) in PROJECT {
            fs::write(folder.join("work").join(path), text).map_err(fail)?;
        }
        fs::write(folder.join(".curlrc"), CURLRC).map_err(fail)?;
        let binary = tidings_binary();
        let mut hub = Command::new(&binary)
            .args(["dev", "--json", "--listen", "127.0.0.1:0", "--data"])
            .arg(folder.join("data"))
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.join("hub.log")).map_err(fail)?)
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", binary.display()))?;
        let (said, line) = mpsc::channel();
        let stdout = hub.stdout.take();
        thread::spawn(move || {
            let lines = stdout.map(|stdout| BufReader::new(stdout).lines());
            for line in lines.into_iter().flatten().map_while(Result::ok) {
                // Read on after the first line, so that the hub never waits for this.
                let _ = said.send(line);
            }
        });
        let line = line.recv_timeout(START_TIME_MAX).unwrap_or_default();
        let value = |name| member(&line, name);
        let (Some(url), Some(key), Some(token)) =
            (value("url"), value("publisher_key"), value("reader_token"))
        else {
            let _ = hub.kill().and_then(|()| hub.wait());
            let log = fs::read_to_string(folder.join("hub.log")).unwrap_or_default();
            return Err(format!("tidings dev --json said {line:?}\n{log}"));
        };
        let path = std::env::var("PATH").unwrap_or_default();
        let binaries = binary.parent().unwrap_or(Path::new(".")).display().to_string();
        let environment = vec![
            ("TIDINGS_URL", url.trim_end_matches('/').to_owned()),
            ("TIDINGS_KEY", key),
            ("TIDINGS_TOKEN", token),
            ("CURL_HOME", folder.display().to_string()),
            ("PATH", format!("{binaries}:{path}")),
            ("NO_COLOR", "1".to_owned()),
        ];
        Ok(Self { hub, environment, folder, background: Vec::new() })
    }

    fn run(&mut self, example: Example) -> Outcome {
        let running = match Running::start(self, &example) {
            Ok(running) => running,
            Err(error) => return Outcome::Failed(format!("cannot run bash: {error}")),
        };
        if !example.is_background {
            return running.judge(&example);
        }
        // What comes after may count on it: it has to have begun to print.
        let begun = running.wait_for(START_TIME_MAX, |output| !output.is_empty());
        self.background.push((example, running));
        if begun { Outcome::Begun } else { Outcome::Failed("printed nothing".to_owned()) }
    }

    /// Ends what runs in the background, and the hub.
    fn finish(&mut self) -> Vec<(usize, Outcome)> {
        let background = std::mem::take(&mut self.background);
        let judge = |(example, mut running): (Example, Running)| {
            let expected = example.output.as_deref().unwrap_or("…");
            let matched = running.wait_for(BACKGROUND_TIME_MAX, |output| matches(expected, output));
            running.end();
            let outcome = if matched {
                Outcome::Passed
            } else {
                Outcome::Failed(difference(expected, &running.output()))
            };
            (example.line, outcome)
        };
        background.into_iter().map(judge).collect()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        for (_, running) in &mut self.background {
            running.end();
        }
        // It ends only what it started.
        let _ = self.hub.kill().and_then(|()| self.hub.wait());
    }
}

/// A command that runs, its output going to files.
struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    fn start(page: &Page, example: &Example) -> std::io::Result<Self> {
        let file = |end: &str| page.folder.join(format!("{}.{end}", example.line));
        let state = page.folder.join("state.sh");
        // All that a block sets is exported, and read by the next.
        let script = format!(
            "[ ! -f '{state}' ] || . '{state}'\nset -aeuo pipefail\n{}\nset +a\nexport -p > '{state}'\n",
            example.script,
            state = state.display()
        );
        let child = Command::new("bash")
            .args(["--noprofile", "--norc", "-c", &script])
            .envs(page.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(page.folder.join("work"))
            .stdin(Stdio::null())
            .stdout(fs::File::create(file("stdout"))?)
            .stderr(fs::File::create(file("stderr"))?)
            // A group of its own, to be ended with everything that it started.
            .process_group(0)
            .spawn()?;
        Ok(Self { child, stdout: file("stdout"), stderr: file("stderr") })
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    fn wait_for(&self, time_max: Duration, is_there: impl Fn(&str) -> bool) -> bool {
        let deadline = Instant::now() + time_max;
        while !is_there(&self.output()) {
            if Instant::now() > deadline {
                return false;
            }
            // Another process writes a file: nothing tells when it has.
            thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Waits for the end and says whether everything was as the page shows it.
    fn judge(mut self, example: &Example) -> Outcome {
        let deadline = Instant::now() + BLOCK_TIME_MAX;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                _ => {
                    self.end();
                    return Outcome::Failed(format!("not done after {BLOCK_TIME_MAX:?}"));
                }
            }
        };
        let output = self.output();
        let stderr = fs::read_to_string(&self.stderr).unwrap_or_default();
        if status.success() == example.fails {
            return Outcome::Failed(format!("{status}\n{output}{stderr}"));
        }
        match &example.output {
            Some(expected) if !matches(expected, &output) => {
                Outcome::Failed(difference(expected, &output))
            }
            _ => Outcome::Passed,
        }
    }

    fn end(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

fn difference(expected: &str, output: &str) -> String {
    format!("the page shows\n{expected}but it printed\n{output}")
}

/// Whether output is what a page shows. Space at the ends of lines and of the whole is ignored.
fn matches(shown: &str, output: &str) -> bool {
    let lines = |text: &str| -> Vec<String> {
        text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect()
    };
    lines_match(&lines(shown), &lines(output))
}

fn lines_match(shown: &[String], output: &[String]) -> bool {
    match shown.split_first() {
        None => output.is_empty(),
        Some((line, rest)) if line == "…" => {
            (0..=output.len()).any(|skip| lines_match(rest, output.get(skip..).unwrap_or_default()))
        }
        Some((line, rest)) => match output.split_first() {
            Some((printed, others)) => line_matches(line, printed) && lines_match(rest, others),
            None => false,
        },
    }
}

fn line_matches(shown: &str, printed: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = parts.next().and_then(|first| printed.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// A text member of a line of JSON; `tidings dev --json` prints none that needs escapes.
fn member(json: &str, name: &str) -> Option<String> {
    let (_, rest) = json.split_once(&format!("\"{name}\""))?;
    let (_, rest) = rest.split_once(':')?;
    let (value, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
    Some(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_sh_are_run_unless_they_give_a_reason() {
        let page = "```sh\na\n```\n```text output\nb\n```\n```sh no-run: needs a second machine\nc\n```\n```sh background\nd\n```\n```json\n{}\n```\n```sh fails\ne\n```\n";
        let example = |line, script: &str, words: &str, output: Option<&str>| Example {
            line,
            script: script.to_owned(),
            is_background: words == "background",
            fails: words == "fails",
            output: output.map(str::to_owned),
        };
        assert_eq!(
            examples(page).unwrap(),
            [
                example(1, "a\n", "", Some("b\n")),
                example(10, "d\n", "background", None),
                example(16, "e\n", "fails", None),
            ]
        );
    }

    #[test]
    fn a_block_cannot_slip_through() {
        for page in [
            "```sh no-run:\na\n```\n",
            "```sh ignored\na\n```\n",
            "```console\n$ a\n```\n",
            "```bash\na\n```\n",
            "```json output\n{}\n```\n",
            "```sh no-run: needs a second machine\na\n```\n```text output\nb\n```\n",
        ] {
            assert!(examples(page).is_err(), "{page}");
        }
    }

    #[test]
    fn dots_stand_for_what_differs_from_run_to_run() {
        for (shown, output, expected) in [
            ("a\n", "a\n\n", true),
            ("a", "b", false),
            ("id: …\ndata", "id: AQx\ndata", true),
            ("id: …\ndata", "id: AQx\nother", false),
            ("{\"id\":\"…\",\"offset\":1}", "{\"id\":\"x\",\"offset\":1}", true),
            ("{\"id\":\"…\",\"offset\":1}", "{\"id\":\"x\",\"offset\":2}", false),
            ("…\nlast", "one\ntwo\nlast", true),
            ("first\n…", "first\none\ntwo", true),
            ("…", "", true),
            ("a\nb", "a", false),
        ] {
            assert_eq!(matches(shown, output), expected, "{shown:?} {output:?}");
        }
    }

    #[test]
    fn the_hubs_line_is_read() {
        let line = r#"{"url":"http://127.0.0.1:1","publisher_key":"tdk_x"}"#;
        assert_eq!(member(line, "url").as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!(member(line, "publisher_key").as_deref(), Some("tdk_x"));
        assert_eq!(member(line, "reader_token"), None);
    }
}
