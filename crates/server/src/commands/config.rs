//! `tidings config`: what is configured, and what can be.

use super::{load_config, print};
use crate::{
    cli::{ConfigCommand, DocsPage},
    cli_reference,
    config::{reference_page, schema_text, serving_problems, show},
    exit::{Exit, Failure},
    metrics_reference,
};

/// Runs the command.
pub(crate) fn run(command: &ConfigCommand) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Check(layers) => {
            let loaded = load_config(layers)?;
            let problems = serving_problems(&loaded);
            if !problems.is_empty() {
                let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                return Err(Failure::new(Exit::Config, lines.join("\n")));
            }
            let place = match loaded.file {
                Some(file) => file.display().to_string(),
                None => "no file; environment and defaults".to_owned(),
            };
            print(&format!("configuration is good ({place})\n"))
        }
        ConfigCommand::Show(layers) => print(&show(&load_config(layers)?)),
        ConfigCommand::Docs { page: DocsPage::Configuration } => print(&reference_page()),
        ConfigCommand::Docs { page: DocsPage::Cli } => print(&cli_reference::page()),
        ConfigCommand::Docs { page: DocsPage::Metrics } => print(&metrics_reference::page()),
        ConfigCommand::Schema => print(&schema_text()),
    }
}
