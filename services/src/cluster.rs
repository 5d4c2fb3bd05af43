//! Three hubs on one journal, behind one port: a cluster to play with, on one machine.

use std::{
    fs, io,
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tidings_services::{Postgres, Redis, free_port, until};

const NODES: usize = 3;
/// A hub that does not answer by then will not.
const START_TIME_MAX: Duration = Duration::from_secs(30);

/// Starts them and serves until the standard input is closed.
pub(crate) fn run(journal: &str) -> io::Result<()> {
    let program = std::env::var_os("HUB_PROGRAM").unwrap_or_else(|| "target/debug/tidings".into());
    let directory = tempfile::tempdir()?;
    let (mut redis, mut postgres) = (None, None);
    let engine = if journal == "redis" {
        let started = redis.insert(Redis::start()?);
        format!("[redis]\nurl = {:?}\n", started.url())
    } else {
        let started = postgres.insert(Postgres::start()?);
        format!("[postgres]\nurl = {:?}\n", started.url())
    };
    let key = output(
        Command::new(&program).args(["key", "create", "--write", "**", "--read", "**", "--json"]),
    )?;
    let field = |name: &str| {
        let (_, rest) = key.split_once(&format!("\"{name}\":\""))?;
        rest.split_once('"').map(|(value, _)| value.to_owned())
    };
    let (Some(id), Some(hash), Some(secret)) = (field("id"), field("sha256"), field("key")) else {
        return Err(io::Error::other(format!("tidings key create printed {key}")));
    };
    let entry = format!("id = {id:?}\nsha256 = {hash:?}\nread = [\"**\"]\nwrite = [\"**\"]");
    // As random as the hub asks for.
    let secret_of_nodes = &secret;
    let mut hubs = Vec::new();
    let mut addresses = Vec::new();
    for number in 1..=NODES {
        let data = directory.path().join(format!("node-{number}"));
        fs::create_dir_all(&data)?;
        let (port, admin) = (free_port()?, free_port()?);
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\ndata = {data:?}\nadmin.listen = \"127.0.0.1:{admin}\"\n\
             journal.kind = \"{journal}\"\n\
             cluster = {{ name = \"node-{number}\", secret = \"{secret_of_nodes}\" }}\n\
             {engine}\n[[auth.api_keys]]\n{entry}\n"
        );
        let file = data.join("tidings.toml");
        fs::write(&file, text)?;
        private(&file)?;
        let hub = Command::new(&program).arg("serve").arg("--config").arg(&file).spawn()?;
        hubs.push(Hub(hub));
        until("a hub", START_TIME_MAX, || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        println!("node-{number}: http://127.0.0.1:{port}, operators http://127.0.0.1:{admin}");
        addresses.push(port);
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("export TIDINGS_URL=http://{} TIDINGS_KEY={secret}", listener.local_addr()?);
    println!("ready: each new connection to TIDINGS_URL is another node's");
    thread::spawn(move || balance(&listener, &addresses.into()));
    super::until_closed()
}

/// A hub's process; dropped, it is told to end and waited for.
struct Hub(Child);

impl Drop for Hub {
    fn drop(&mut self) {
        // Its journal is thrown away with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Hands each connection to the next hub that takes it.
fn balance(listener: &TcpListener, hubs: &Arc<[u16]>) {
    let turn = Arc::new(AtomicUsize::new(0));
    for client in listener.incoming().flatten() {
        let (hubs, turn) = (Arc::clone(hubs), Arc::clone(&turn));
        thread::spawn(move || {
            let first = turn.fetch_add(1, Ordering::Relaxed);
            let hub = (0..hubs.len()).find_map(|ahead| {
                let port = hubs.get((first + ahead) % hubs.len())?;
                TcpStream::connect(("127.0.0.1", *port)).ok()
            });
            // No hub: the client's connection ends, as with any balancer.
            let _ = hub.map(|hub| join(client, hub));
        });
    }
}

/// Copies both ways until one side ends.
fn join(client: TcpStream, hub: TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_hub) = (client.try_clone()?, hub.try_clone()?);
    let up = thread::spawn(move || {
        let copied = io::copy(&mut from_client, &mut to_hub);
        to_hub.shutdown(std::net::Shutdown::Write).and(copied.map(drop))
    });
    let (mut from_hub, mut to_client) = (hub, client);
    let copied = io::copy(&mut from_hub, &mut to_client);
    to_client.shutdown(std::net::Shutdown::Both)?;
    up.join().unwrap_or(Ok(()))?;
    copied.map(drop)
}

fn output(command: &mut Command) -> io::Result<String> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut text = String::new();
    if let Some(printed) = child.stdout.take() {
        for line in BufReader::new(printed).lines() {
            text.push_str(&line?);
        }
    }
    child.wait()?;
    Ok(text)
}

fn private(file: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))
}
