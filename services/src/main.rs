//! `cargo xtask services` and `cargo xtask cluster`: private servers, and hubs on them, until it ends.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command that a person runs and reads"
)]

mod cluster;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use tidings_services::{
    POSTGRES_URL, Postgres, RABBITMQ_URL, REDIS_CLUSTER_URL, REDIS_URL, RabbitMq, Redis,
    RedisCluster,
};

const USAGE: &str = "\
tidings-services [redis] [redis-cluster] [postgres] [rabbitmq]
    starts these servers (all of them) and prints where they are, as variables
tidings-services cluster [redis|postgres]
    starts three hubs on one journal (redis) behind one port, and prints where they are
";

/// What the servers are started as; dropped, they end.
#[derive(Debug, Default)]
struct Servers {
    redis: Option<Redis>,
    redis_cluster: Option<RedisCluster>,
    postgres: Option<Postgres>,
    rabbitmq: Option<RabbitMq>,
}

impl Servers {
    fn start(names: &[&str]) -> io::Result<Self> {
        let wanted = |name: &str| names.is_empty() || names.contains(&name);
        let mut servers = Self::default();
        if wanted("redis") {
            let redis = Redis::start()?;
            println!("{REDIS_URL}={}", redis.url());
            servers.redis = Some(redis);
        }
        if wanted("redis-cluster") {
            let cluster = RedisCluster::start()?;
            println!("{REDIS_CLUSTER_URL}={}", cluster.url());
            servers.redis_cluster = Some(cluster);
        }
        if wanted("postgres") {
            let postgres = Postgres::start()?;
            println!("{POSTGRES_URL}={}", postgres.url());
            servers.postgres = Some(postgres);
        }
        if wanted("rabbitmq") {
            let rabbitmq = RabbitMq::start()?;
            println!("{RABBITMQ_URL}={}", rabbitmq.url());
            servers.rabbitmq = Some(rabbitmq);
        }
        Ok(servers)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let known = |word: &&str| ["redis", "redis-cluster", "postgres", "rabbitmq"].contains(word);
    let done = match words.as_slice() {
        ["cluster"] => cluster::run("redis"),
        ["cluster", journal @ ("redis" | "postgres")] => cluster::run(journal),
        names if names.iter().all(known) => Servers::start(names).and_then(|servers| {
            println!("ready");
            until_closed()?;
            drop(servers);
            Ok(())
        }),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Waits until the standard input is closed. From a terminal, ctrl-c ends everything: the servers are
/// killed with the thread that started them.
fn until_closed() -> io::Result<()> {
    io::stdout().flush()?;
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
}
