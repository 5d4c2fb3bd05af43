//! A Redis server of one's own.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use tempfile::TempDir;

use crate::process::{Process, free_port, until};

/// The environment variable with the URL of a server that all tests of a run share.
pub const REDIS_URL: &str = "TESTS_REDIS_URL";

/// How long a server may take to be there: it reads its append-only file first.
const START_MAX: Duration = Duration::from_secs(30);
/// How long it may take to answer once it listens.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// A private `redis-server` with an append-only file that is synced before it answers. It ends, with
/// its files, when it is dropped.
#[derive(Debug)]
pub struct Redis {
    /// `None` for one that belongs to somebody else.
    own: Option<Own>,
    url: String,
}

#[derive(Debug)]
struct Own {
    process: Process,
    arguments: Vec<String>,
    port: u16,
    directory: TempDir,
}

impl Redis {
    /// Starts a server on a free port of loopback.
    ///
    /// # Errors
    /// It did not start: the message has what it said.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[])
    }

    /// Starts a server with further arguments: `["--maxmemory-policy", "allkeys-lru"]`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(arguments: &[&str]) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = free_port()?;
        let port_text = port.to_string();
        let path = directory.path().to_string_lossy().into_owned();
        let mut all = vec!["--port", &port_text, "--bind", "127.0.0.1", "--dir", &path];
        all.extend(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        all.extend(arguments);
        let arguments: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let process = launch(directory.path(), port, &arguments)?;
        let url = format!("redis://127.0.0.1:{port}");
        Ok(Self { own: Some(Own { process, arguments, port, directory }), url })
    }

    /// The server that the run of tests shares, which [`REDIS_URL`] names, or one of its own. Give
    /// whatever is put there names that nobody else gives.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared() -> io::Result<Self> {
        match std::env::var(REDIS_URL) {
            Ok(url) => Ok(Self { own: None, url }),
            Err(_) => Self::start(),
        }
    }

    /// Starts a replica of a server that was started here.
    ///
    /// # Errors
    /// As [`Self::start`], or it did not receive what there is.
    pub fn start_replica(of: &Self) -> io::Result<Self> {
        let port = of.port()?.to_string();
        let replica = Self::start_with(&["--replicaof", "127.0.0.1", &port])?;
        until("a replica in step", START_MAX, || {
            let info = replica.command(&["INFO", "replication"]);
            info.is_ok_and(|info| info.contains("master_link_status:up"))
        })?;
        Ok(replica)
    }

    /// Starts a Sentinel that watches a server by a name and promotes a replica of it one second
    /// after it is gone.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_sentinel(of: &Self, name: &str) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let configuration = directory.path().join("sentinel.conf");
        let watched = of.port()?;
        let text = format!(
            "sentinel monitor {name} 127.0.0.1 {watched} 1\n\
             sentinel down-after-milliseconds {name} 1000\n\
             sentinel failover-timeout {name} 5000\n"
        );
        std::fs::write(&configuration, text)?;
        let port = free_port()?;
        let path = configuration.to_string_lossy().into_owned();
        let arguments =
            [path.as_str(), "--sentinel", "--port", &port.to_string()].map(str::to_owned).to_vec();
        let process = launch(directory.path(), port, &arguments)?;
        let url = format!("127.0.0.1:{port}");
        Ok(Self { own: Some(Own { process, arguments, port, directory }), url })
    }

    /// Where its files are, of one that was started here.
    ///
    /// # Errors
    /// It belongs to somebody else.
    pub fn directory(&self) -> io::Result<&Path> {
        self.own.as_ref().map(|own| own.directory.path()).ok_or_else(not_ours)
    }

    /// Where it is: `redis://127.0.0.1:41234`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The port that it listens on, of one that was started here.
    ///
    /// # Errors
    /// It belongs to somebody else.
    pub fn port(&self) -> io::Result<u16> {
        self.own.as_ref().map(|own| own.port).ok_or_else(not_ours)
    }

    /// Its process, of one that was started here.
    ///
    /// # Errors
    /// It belongs to somebody else.
    pub fn id(&self) -> io::Result<u32> {
        self.own.as_ref().map(|own| own.process.id()).ok_or_else(not_ours)
    }

    /// Kills it, as `kill -9` does.
    ///
    /// # Errors
    /// It belongs to somebody else, or the system's.
    pub fn kill(&mut self) -> io::Result<()> {
        self.own()?.process.kill()
    }

    /// Starts it again after it was killed, on the same port and files.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        let own = self.own()?;
        own.process = launch(own.directory.path(), own.port, &own.arguments)?;
        Ok(())
    }

    /// Stops its time: it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// It belongs to somebody else, or the system's.
    pub fn pause(&mut self) -> io::Result<()> {
        self.own()?.process.pause()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It belongs to somebody else, or the system's.
    pub fn resume(&mut self) -> io::Result<()> {
        self.own()?.process.resume()
    }

    /// Sends one command, such as `["FLUSHALL"]`, and returns its answer as it came.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub fn command(&self, words: &[&str]) -> io::Result<String> {
        command(self.port()?, words)
    }

    fn own(&mut self) -> io::Result<&mut Own> {
        self.own.as_mut().ok_or_else(not_ours)
    }
}

fn not_ours() -> io::Error {
    io::Error::other("this Redis belongs to the whole run of tests: start one with Redis::start")
}

fn launch(directory: &Path, port: u16, arguments: &[String]) -> io::Result<Process> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let log = directory.join("redis.log");
    let mut process = Process::start("redis-server", &arguments, None, &log)?;
    let mut ended = false;
    let started = until("redis-server", START_MAX, || {
        ended = process.has_ended().unwrap_or(true);
        ended || command(port, &["PING"]).is_ok_and(|answer| answer.starts_with("+PONG"))
    });
    if ended || started.is_err() {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        return Err(io::Error::other(format!(
            "redis-server (Debian package redis-server) did not start: {said}"
        )));
    }
    Ok(process)
}

/// Sends one command over a connection of its own; what is sent back at once is the answer.
fn command(port: u16, words: &[&str]) -> io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; 64 * 1024];
    let length = stream.read(&mut answer)?;
    answer.truncate(length);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if answer.starts_with('-') || answer.is_empty() {
        return Err(io::Error::other(format!("redis-server to {words:?}: {answer:?}")));
    }
    Ok(answer)
}
