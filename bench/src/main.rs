//! Measures the hub beside a floor: a server that does nothing but write prepared bytes.
//!
//! The rule: only ratios within one run count. The machine is shared and noisy; the server's CPU
//! seconds per million deliveries, beside the floor's of the same run, are the steady figure.
//!
//! ```sh
//! cargo build --release --workspace && target/release/tidings-bench [readers] [events]
//! ```
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool that prints, run by hand")]

mod fanout;
mod floor;
mod server;

use std::{env, process::ExitCode};

/// Readers of the one topic, and events published to it, unless said otherwise.
const READERS: usize = 500;
const EVENTS: usize = 1000;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("floor") {
        floor::run().await;
        return ExitCode::SUCCESS;
    }
    let number =
        |text: Option<String>, default| text.map_or(Some(default), |text| text.parse().ok());
    let (Some(readers), Some(events)) = (number(first, READERS), number(arguments.next(), EVENTS))
    else {
        println!("usage: tidings-bench [readers] [events]");
        return ExitCode::from(64);
    };
    println!("fan-out: one topic, {readers} readers, {events} events of 200 bytes");
    println!("{:<10} {:>14} {:>22}", "server", "deliveries/s", "CPU s / M deliveries");
    let mut floor_cpu = None;
    for server in [server::Server::floor(), server::Server::hub()] {
        let figures = fanout::run(&server, readers, events).await;
        let ratio = floor_cpu.map(|floor: f64| format!("  {:.2} x floor", figures.cpu / floor));
        println!(
            "{:<10} {:>14.0} {:>22.2}{}",
            server.name,
            figures.rate,
            figures.cpu,
            ratio.unwrap_or_default()
        );
        floor_cpu.get_or_insert(figures.cpu);
    }
    ExitCode::SUCCESS
}
