//! `tidings journal`: the journal's tools, for a hub that is stopped.
//!
//! The rule: what is wrong is on stderr, a line each, with what to do; the exit code tells a script.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidings::journal::{
    JournalError,
    embedded::{CheckReport, OnDamage, Repaired, Step, Transferred, check, export, import, repair},
};

use super::load_config;
use crate::{
    cli::{ExportArgs, ImportArgs, JournalArgs, JournalCommand, LayerArgs},
    config::SettingFlags,
    exit::{Exit, Failure},
    journals::{JOURNAL_DIRECTORY, is_in_use},
};

/// Runs the command.
pub(crate) fn run(command: &JournalCommand) -> Result<Exit, Failure> {
    match command {
        JournalCommand::Check(args) => {
            let bar = progress(args, "events");
            let directory = directory(args)?;
            let report = check(&directory, &mut |step| show(&bar, step));
            bar.finish_and_clear();
            told(args, &report.map_err(|error| refused(&directory, error))?)
        }
        JournalCommand::Export(args) => exported(args),
        JournalCommand::Import(args) => imported(args),
        JournalCommand::Repair(args) => {
            let bar = progress(args, "events");
            let directory = directory(args)?;
            let repaired = repair(&directory, &mut |step| show(&bar, step));
            bar.finish_and_clear();
            repaired_what(args, &repaired.map_err(|error| refused(&directory, error))?)
        }
    }
}

/// Where the journal is.
fn directory(args: &JournalArgs) -> Result<PathBuf, Failure> {
    let data = match &args.data {
        Some(data) => data.clone(),
        None => {
            let layers = LayerArgs { config: None, settings: SettingFlags::default() };
            load_config(&layers)?.config.data
        }
    };
    Ok(data.join(JOURNAL_DIRECTORY))
}

fn refused(directory: &Path, error: JournalError) -> Failure {
    match error {
        JournalError::Broken(message) => Failure::new(Exit::Data, message),
        JournalError::Unusable(message) => Failure::new(Exit::DataDirectory, message),
        JournalError::Unavailable(message) if is_in_use(directory) => {
            Failure::new(Exit::InUse, message)
        }
        JournalError::Unavailable(message) => Failure::new(Exit::Output, message),
        error => Failure::new(Exit::Software, error.to_string()),
    }
}

/// A bar on a terminal; nothing else sees it.
fn progress(args: &JournalArgs, unit: &str) -> ProgressBar {
    if args.quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(&format!(
        "{{bar:30}} {{human_pos}} of {{human_len}} {unit}, {{eta}} left"
    ));
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, step: Step) {
    bar.set_length(step.total);
    bar.set_position(step.done);
}

/// Says something on stderr. One that goes nowhere is no failure.
fn say(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

fn told(args: &JournalArgs, report: &CheckReport) -> Result<Exit, Failure> {
    for finding in &report.findings {
        say(&format!("damaged: {finding}"));
    }
    let untold = report.findings_total - report.findings.len() as u64;
    if untold > 0 {
        say(&format!("damaged: {untold} more places"));
    }
    let CheckReport { topics, events, states, commits, findings_total, .. } = report;
    let held = format!("{topics} topics, {events} events, {states} states after {commits} commits");
    if report.is_sound() {
        if !args.quiet {
            say(&format!("the journal is sound: {held}"));
        }
        return Ok(Exit::Ok);
    }
    let message = if *commits == 0 {
        "the journal cannot be opened, so nothing was counted. Restore a backup; where the commit \
         log is damaged, `tidings journal repair` keeps what is before the damage"
            .to_owned()
    } else {
        format!(
            "the journal is damaged in {findings_total} places: {held}. Restore a backup; or save \
             what can be read with `tidings journal export --salvage` and import that into an empty \
             directory"
        )
    };
    Err(Failure::new(Exit::Data, message))
}

fn exported(args: &ExportArgs) -> Result<Exit, Failure> {
    let directory = directory(&args.journal)?;
    let (file, partial) = match &args.file {
        Some(file) => {
            let partial = file.with_added_extension("part");
            (Some(file), Some(partial))
        }
        None => (None, None),
    };
    if let Some(file) = file.filter(|file| file.exists()) {
        let message = format!("{}: is there already; choose another file", file.display());
        return Err(Failure::new(Exit::Usage, message));
    }
    let mut out: Box<dyn Write> = match &partial {
        Some(partial) => Box::new(BufWriter::new(create(partial)?)),
        None => Box::new(BufWriter::new(io::stdout().lock())),
    };
    let on_damage = if args.salvage { OnDamage::Salvage } else { OnDamage::Stop };
    let bar = progress(&args.journal, "events");
    let done = export(&directory, &mut out, on_damage, &mut |step| show(&bar, step));
    bar.finish_and_clear();
    drop(out);
    let done = done.map_err(|error| {
        // What is not whole is of no use; it is this program's own file.
        partial.as_ref().map(fs::remove_file);
        refused(&directory, error)
    })?;
    if let (Some(file), Some(partial)) = (file, &partial) {
        // Under its name it is whole and on disk.
        let placed = File::open(partial).and_then(|partial| partial.sync_all());
        let placed = placed.and_then(|()| fs::rename(partial, file));
        placed.map_err(|error| Failure::output(file.display(), &error))?;
    }
    transferred(&args.journal, "exported", &done);
    if done.is_whole() {
        return Ok(Exit::Ok);
    }
    let message = format!(
        "{} damaged places were left out; an import of this begins a new epoch in every topic",
        done.left_out_total
    );
    Err(Failure::new(Exit::Data, message))
}

fn create(file: &Path) -> Result<File, Failure> {
    let created = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        // It holds every tenant's events.
        .mode(0o600)
        .open(file);
    created.map_err(|error| Failure::output(file.display(), &error))
}

fn imported(args: &ImportArgs) -> Result<Exit, Failure> {
    let directory = directory(&args.journal)?;
    let bar = progress(&args.journal, "bytes");
    let mut step = |read: u64| bar.set_position(read);
    let done = match &args.file {
        Some(file) => {
            let input = File::open(file).map_err(|error| Failure::input(file.display(), &error))?;
            bar.set_length(input.metadata().map_or(0, |metadata| metadata.len()));
            import(&directory, &mut BufReader::new(input), &mut step)
        }
        None => import(&directory, &mut io::stdin().lock(), &mut step),
    };
    bar.finish_and_clear();
    let done = done.map_err(|error| refused(&directory, error))?;
    transferred(&args.journal, "imported", &done);
    Ok(Exit::Ok)
}

fn transferred(args: &JournalArgs, what: &str, done: &Transferred) {
    for place in &done.left_out {
        say(&format!("left out: {place}"));
    }
    if !args.quiet {
        let Transferred { topics, events, states, .. } = done;
        say(&format!("{what} {topics} topics, {events} events, {states} states"));
    }
}

fn repaired_what(args: &JournalArgs, repaired: &Repaired) -> Result<Exit, Failure> {
    if let (Some(commit), Some(kept)) = (repaired.cut_after, &repaired.kept) {
        say(&format!(
            "the commit log was cut after commit {commit}; what was cut off is kept in {}",
            kept.display()
        ));
    }
    if repaired.new_epoch {
        say("every topic begins a new epoch: readers are told a gap and go on");
    }
    told(args, &repaired.left)
}
