//! The small commands: tokens, keys, configuration, health, and the journal's tools.

pub(crate) mod admin;
pub(crate) mod config;
pub(crate) mod health;
pub(crate) mod journal;
pub(crate) mod key;
pub(crate) mod migrate;
pub(crate) mod token;

use std::io::{self, Write as _};

use crate::{
    cli::LayerArgs,
    config::{ConfigProblem, Layers, Loaded, load},
    exit::{Exit, Failure},
};

/// Prints a command's result. A reader that went away is no failure.
pub(crate) fn print(text: &str) -> Result<Exit, Failure> {
    let mut out = anstream::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::output("stdout", &error))
        }
        _ => Ok(Exit::Ok),
    }
}

/// Reads the configuration of a command.
pub(crate) fn load_config(layers: &LayerArgs) -> Result<Loaded, Failure> {
    let layers = Layers::of_process(layers.config.clone(), layers.settings.given.clone());
    load(&layers).map_err(|problems| problems_of_config(&problems))
}

/// All problems, a line each.
pub(crate) fn problems_of_config(problems: &[ConfigProblem]) -> Failure {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Failure::new(Exit::Config, lines.join("\n"))
}
