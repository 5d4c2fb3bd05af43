//! `tidings migrate`: the schema in PostgreSQL, brought up to date.

use tidings::{journal::postgres, source::outbox};

use super::{load_config, print};
use crate::{
    cli::ServeArgs,
    exit::{Exit, Failure},
    journals::unusable_server,
};

/// Runs the command. Two at once, or one beside hubs that run, wait for each other.
pub(crate) async fn run(args: &ServeArgs) -> Result<Exit, Failure> {
    let config = load_config(&args.layers)?.config;
    if config.postgres.url.is_none() {
        let message = "`postgres.url` is missing: there is no schema to bring up to date";
        return Err(Failure::new(Exit::Config, message.to_owned()));
    }
    let options = config.postgres.options();
    let migrated =
        async { Ok([postgres::migrate(&options).await?, outbox::migrate(&options).await?]) };
    let [journal, outbox] = migrated.await.map_err(|e| unusable_server("postgres.url", &e))?;
    print(&format!("steps done: {journal} of the journal, {outbox} of the outbox\n"))
}
