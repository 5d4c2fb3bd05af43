//! `cargo xtask simulate`: the hub under simulated faults, with more seeds than the tests have.
//!
//! The rule: it runs the same test binary as `cargo xtask test`, so a seed means the same run.

use crate::suite;

/// Seeds of a long run.
const SEEDS: u64 = 2000;

/// What to run.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// The first so many seeds.
    Many(u64),
    /// One, told line by line.
    One(u64),
}

/// Runs what the options ask for.
pub(crate) fn run(options: &[&str]) -> Result<(), String> {
    let plan = plan(options)?;
    let mut command = suite::cargo("nextest run --workspace --all-targets --locked");
    command.args(["--profile", "simulate", "--show-progress", "none"]);
    match plan {
        Plan::Many(seeds) => command
            .args(["-E", "binary(simulation) & test(under_faults)", "--success-output", "final"])
            .env("TIDINGS_SIMULATION_SEEDS", seeds.to_string()),
        Plan::One(seed) => command
            .args(["-E", "binary(simulation) & test(first_quarter)", "--no-capture"])
            .env("TIDINGS_SIMULATION_SEED", seed.to_string()),
    };
    let status = command.status().map_err(|error| format!("cannot run nextest: {error}"))?;
    if status.success() { Ok(()) } else { Err("a promise was broken".to_owned()) }
}

fn plan(options: &[&str]) -> Result<Plan, String> {
    let number = |text: &str| text.parse().map_err(|_| format!("{text} is not a number"));
    match options {
        [] => Ok(Plan::Many(SEEDS)),
        ["--seeds", count] => Ok(Plan::Many(number(count)?)),
        ["--seed", seed] => Ok(Plan::One(number(seed)?)),
        _ => Err(format!("cargo xtask simulate takes --seeds N or --seed X, not {options:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_say_what_to_simulate() {
        assert_eq!(plan(&[]), Ok(Plan::Many(SEEDS)));
        assert_eq!(plan(&["--seeds", "5"]), Ok(Plan::Many(5)));
        assert_eq!(plan(&["--seed", "7"]), Ok(Plan::One(7)));
        assert!(plan(&["--seed", "x"]).is_err());
        assert!(plan(&["7"]).is_err());
    }
}
