//! A Redis server of one's own.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
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

/// What makes a server take connections by TLS and no others, and from those who have a password.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Its certificate, as PEM.
    pub certificate: String,
    /// The key of that, as PEM.
    pub key: String,
    /// Who signs the certificates of other servers, as PEM.
    pub authority: String,
    /// What the user `hub` may do, as `ACL SETUSER` has it: `~* &* +@all`.
    pub rights: String,
}

impl Guard {
    /// The password of the user `hub`, and that of servers and of who administers them.
    pub const PASSWORD: &str = "s3cret-of-a-test";

    /// Writes what a server reads, and names it.
    fn arguments(&self, directory: &Path, port: &str) -> io::Result<Vec<String>> {
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text)?;
            Ok::<_, io::Error>(path.to_string_lossy().into_owned())
        };
        let (password, rights) = (Self::PASSWORD, &self.rights);
        let users =
            format!("user default on >{password} ~* &* +@all\nuser hub on >{password} {rights}\n");
        let socket = directory.join(SOCKET).to_string_lossy().into_owned();
        let [certificate, key, authority, users] = [
            write("server.crt", &self.certificate)?,
            write("server.key", &self.key)?,
            write("authority.crt", &self.authority)?,
            write("users.acl", &users)?,
        ];
        let arguments = ["--port", "0", "--tls-port", port, "--unixsocket", &socket];
        let tls = ["--tls-cert-file", &certificate, "--tls-key-file", &key];
        let others = ["--tls-ca-cert-file", &authority, "--tls-auth-clients", "no"];
        let between = ["--tls-replication", "yes", "--masterauth", password, "--aclfile", &users];
        let all = [&arguments[..], &tls, &others, &between].concat();
        Ok(all.into_iter().map(str::to_owned).collect())
    }
}

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
    door: Door,
    directory: TempDir,
}

/// The file of a guarded server that commands of tests are sent through.
const SOCKET: &str = "redis.sock";

/// How tests send commands to a server.
#[derive(Debug)]
enum Door {
    Port(u16),
    /// Of a guarded one.
    Socket(PathBuf),
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
        Self::start_of(None, arguments)
    }

    /// Starts a guarded server with further arguments.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_guarded(guard: &Guard, arguments: &[&str]) -> io::Result<Self> {
        Self::start_of(Some(guard), arguments)
    }

    pub(crate) fn start_of(guard: Option<&Guard>, arguments: &[&str]) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = free_port()?;
        let (port_text, path) = (port.to_string(), directory.path().to_string_lossy());
        let mut all = vec!["--bind", "127.0.0.1", "--dir", &path];
        all.extend(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        let doors = match guard {
            Some(guard) => guard.arguments(directory.path(), &port_text)?,
            None => ["--port", &port_text].map(str::to_owned).to_vec(),
        };
        all.extend(doors.iter().map(String::as_str));
        all.extend(arguments);
        let arguments: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let (door, url) = match guard {
            Some(_) => {
                let password = Guard::PASSWORD;
                let url = format!("rediss://hub:{password}@localhost:{port}");
                (Door::Socket(directory.path().join(SOCKET)), url)
            }
            None => (Door::Port(port), format!("redis://127.0.0.1:{port}")),
        };
        let process = launch(directory.path(), &door, &arguments)?;
        Ok(Self { own: Some(Own { process, arguments, port, door, directory }), url })
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
        Self::start_replica_of(of, None)
    }

    /// Starts a guarded replica of a guarded server.
    ///
    /// # Errors
    /// As [`Self::start_replica`].
    pub fn start_guarded_replica(of: &Self, guard: &Guard) -> io::Result<Self> {
        Self::start_replica_of(of, Some(guard))
    }

    fn start_replica_of(of: &Self, guard: Option<&Guard>) -> io::Result<Self> {
        let port = of.port()?.to_string();
        let replica = Self::start_of(guard, &["--replicaof", "127.0.0.1", &port])?;
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
        Self::start_sentinel_of(of, name, None)
    }

    /// Starts a Sentinel of a guarded server, which takes connections by TLS and no others, from
    /// anybody.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_guarded_sentinel(of: &Self, name: &str, guard: &Guard) -> io::Result<Self> {
        Self::start_sentinel_of(of, name, Some(guard))
    }

    fn start_sentinel_of(of: &Self, name: &str, guard: Option<&Guard>) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let configuration = directory.path().join("sentinel.conf");
        let watched = of.port()?;
        let mut text = format!(
            "sentinel monitor {name} 127.0.0.1 {watched} 1\n\
             sentinel down-after-milliseconds {name} 1000\n\
             sentinel failover-timeout {name} 5000\n"
        );
        let port = free_port()?;
        let path = configuration.to_string_lossy().into_owned();
        let mut arguments = [path.as_str(), "--sentinel"].map(str::to_owned).to_vec();
        let door = match guard {
            Some(guard) => {
                text += &format!("sentinel auth-pass {name} {}\n", Guard::PASSWORD);
                arguments.extend(guard.arguments(directory.path(), &port.to_string())?);
                // Its own door is open: clients send the password of the servers to these alone.
                std::fs::write(directory.path().join("users.acl"), OPEN)?;
                Door::Socket(directory.path().join(SOCKET))
            }
            None => {
                arguments.extend(["--port".to_owned(), port.to_string()]);
                Door::Port(port)
            }
        };
        std::fs::write(&configuration, text)?;
        let process = launch(directory.path(), &door, &arguments)?;
        let host = if guard.is_some() { "localhost" } else { "127.0.0.1" };
        let url = format!("{host}:{port}");
        Ok(Self { own: Some(Own { process, arguments, port, door, directory }), url })
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
        own.process = launch(own.directory.path(), &own.door, &own.arguments)?;
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
        command(&self.own.as_ref().ok_or_else(not_ours)?.door, words)
    }

    fn own(&mut self) -> io::Result<&mut Own> {
        self.own.as_mut().ok_or_else(not_ours)
    }
}

fn not_ours() -> io::Error {
    io::Error::other("this Redis belongs to the whole run of tests: start one with Redis::start")
}

/// Users of a server that asks nobody who he is.
const OPEN: &str = "user default on nopass ~* &* +@all\n";

fn launch(directory: &Path, door: &Door, arguments: &[String]) -> io::Result<Process> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let log = directory.join("redis.log");
    let mut process = Process::start("redis-server", &arguments, None, &log)?;
    let mut ended = false;
    let started = until("redis-server", START_MAX, || {
        ended = process.has_ended().unwrap_or(true);
        ended || command(door, &["PING"]).is_ok_and(|answer| answer.starts_with("+PONG"))
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
fn command(door: &Door, words: &[&str]) -> io::Result<String> {
    match door {
        Door::Port(port) => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            let stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
            stream.set_read_timeout(Some(ANSWER_MAX))?;
            ask(stream, words)
        }
        Door::Socket(path) => {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(ANSWER_MAX))?;
            ask(&mut stream, &["AUTH", "default", Guard::PASSWORD])?;
            ask(stream, words)
        }
    }
}

fn ask(mut stream: impl Read + Write, words: &[&str]) -> io::Result<String> {
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
