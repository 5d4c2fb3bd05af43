//! The `tidings` binary: the hub and its client.

mod admin;
mod cli;
mod cli_reference;
mod client;
mod commands;
mod components;
mod config;
mod descriptors;
mod dev;
mod exit;
mod files;
mod journals;
mod key_client;
mod live;
mod metrics_reference;
mod otlp;
mod remote;
mod serve;
mod supervisor;
mod telemetry;

use std::{io::Write as _, process::ExitCode};

use anstyle::{AnsiColor, Style};
use clap::Parser as _;
use rustix::{fs::Mode, process::umask};

use cli::{Cli, Command, KeyCommand};
use exit::{Exit, Failure};

#[allow(unexpected_cfgs, reason = "only a comparison of allocators sets it")]
mod allocator {
    /// A publish allocates and frees some hundred times, a delivery a few: what the C library's own
    /// took for that was a quarter of all (docs/adr/0012-what-a-publish-and-a-delivery-cost.md).
    /// `cargo xtask bench --builds` compares with builds that have `--cfg system_allocator`.
    #[cfg(not(system_allocator))]
    #[global_allocator]
    static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
}

const ERROR: Style = AnsiColor::Red.on_default().bold();

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            drop(error.print());
            // `--help` and `--version` come as errors that go to stdout.
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    // Journals, exports and tokens are for the eyes of their owner, whoever writes them.
    umask(Mode::RWXG | Mode::RWXO);
    // Only the first call in a process can fail to be the first.
    drop(rustls::crypto::ring::default_provider().install_default());
    match run(cli.command) {
        Ok(exit) => exit.into(),
        Err(Failure { exit, message }) => {
            for line in message.lines() {
                drop(writeln!(anstream::stderr(), "{ERROR}error:{ERROR:#} {line}"));
            }
            exit.into()
        }
    }
}

fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Dev(args) => run_hub(dev::run(&args)),
        Command::Serve(args) => run_hub(serve::run(&args)),
        Command::Publish(args) => client_runtime()?.block_on(client::publish::run(args)),
        Command::Follow(args) => client_runtime()?.block_on(client::follow::run(args)),
        Command::Health(args) => client_runtime()?.block_on(commands::health::run(&args)),
        Command::Token(command) => commands::token::run(&command),
        Command::Key(KeyCommand::Create(args)) => commands::key::create(&args),
        Command::Admin(args) => client_runtime()?.block_on(commands::admin::run(&args)),
        Command::Migrate(args) => client_runtime()?.block_on(commands::migrate::run(&args)),
        Command::Config(command) => commands::config::run(&command),
        Command::Journal(command) => commands::journal::run(&command),
    }
}

fn run_hub(hub: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Software, error.to_string()))?;
    let exit = runtime.block_on(hub);
    // What is not over by now, a call into the store that hangs, must not keep the process.
    runtime.shutdown_background();
    exit
}

/// One thread does for a client.
fn client_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Software, error.to_string()))
}
