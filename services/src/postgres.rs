//! A private PostgreSQL: made, started, copied, promoted, killed whole, paused, and gone with its owner.
//!
//! The rule: it is set as one that people rely on, fsync included.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use crate::process::{Process, free_port, until};

/// Names a server that tests may share, each in a schema of its own.
pub const POSTGRES_URL: &str = "TESTS_POSTGRES_URL";

/// PostgreSQL refuses to run as root, and Debian's package makes this user.
const USER: &str = "postgres";
/// Replaying what a killed server left takes a second or two.
const START_MAX: Duration = Duration::from_secs(60);
/// A killed process is gone as soon as the kernel gets to it.
const END_MAX: Duration = Duration::from_secs(10);

/// A running server, ended with this and its directory removed.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    port: u16,
    programs: PathBuf,
    /// Besides those of all: `name=value`.
    settings: Vec<String>,
    directory: TempDir,
}

/// The TLS of a server, each part as PEM.
#[derive(Debug, Clone, Copy)]
pub struct Encryption<'a> {
    /// Its certificate, and those between that and the authority.
    pub certificates: &'a str,
    /// The key of its certificate.
    pub key: &'a str,
    /// Whose certificates clients must show; `None`: they show none.
    pub clients_authority: Option<&'a str>,
}

impl Postgres {
    /// Makes a database cluster in a directory of its own and starts it on a free port of loopback.
    ///
    /// # Errors
    /// The programs', with what they printed; the Debian package where they are not installed.
    pub fn start() -> io::Result<Self> {
        let mut server = Self::empty()?;
        server.make()?;
        server.restart()?;
        Ok(server)
    }

    /// Starts one that takes connections by TLS and no others; `scram`, a role, by its password.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_encrypted(encryption: Encryption<'_>) -> io::Result<Self> {
        let mut server = Self::empty()?;
        server.make()?;
        server.settings.push("ssl=on".to_owned());
        server.encrypt(encryption)?;
        let method = match encryption.clients_authority {
            Some(_) => "cert map=anybody",
            None => "trust",
        };
        let rules = format!(
            "hostssl all scram 127.0.0.1/32 scram-sha-256\nhostssl all all 127.0.0.1/32 {method}\n"
        );
        server.write("pg_hba.conf", &rules)?;
        server.write("pg_ident.conf", "anybody /^.*$ postgres\n")?;
        server.restart()?;
        Ok(server)
    }

    /// Gives an encrypted one other certificates, with its next start.
    ///
    /// # Errors
    /// Of the system.
    pub fn encrypt(&mut self, encryption: Encryption<'_>) -> io::Result<()> {
        self.write("server.crt", encryption.certificates)?;
        self.write("server.key", encryption.key)?;
        if let Some(authority) = encryption.clients_authority {
            self.write("clients.crt", authority)?;
            self.settings.push("ssl_ca_file=clients.crt".to_owned());
        }
        Ok(())
    }

    /// Starts a standby of a server: a copy that follows it, and answers questions.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_standby(of: &Self) -> io::Result<Self> {
        let mut server = Self::empty()?;
        let port = of.port.to_string();
        let data = server.data().display().to_string();
        let from = ["--host", "127.0.0.1", "--port", &port, "--username", USER];
        let how =
            ["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--no-sync"];
        server.run("pg_basebackup", &[&from[..], &how[..], &["--pgdata", &data]].concat())?;
        server.restart()?;
        let follows = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        until("a standby that follows", START_MAX, || server.ask(follows).is_ok_and(|n| n == "1"))?;
        Ok(server)
    }

    /// Lets a standby hear nothing more of its primary, for good.
    ///
    /// # Errors
    /// The server's.
    pub fn cut_off(&self) -> io::Result<()> {
        self.configure("SET primary_conninfo = ''")?;
        let hears = "SELECT count(*) FROM pg_stat_wal_receiver";
        until("a standby without a primary", END_MAX, || self.ask(hears).is_ok_and(|n| n == "0"))
    }

    /// Makes a standby a primary, as a person or a tool for failovers does.
    ///
    /// # Errors
    /// The program's, with what it printed.
    pub fn promote(&self) -> io::Result<()> {
        let data = self.data().display().to_string();
        self.run("pg_ctl", &["promote", "--wait", "--timeout=60", "--pgdata", &data]).map(drop)
    }

    /// Asks for one value, or to do something, as its superuser.
    ///
    /// # Errors
    /// The server's.
    pub fn ask(&self, sql: &str) -> io::Result<String> {
        let url = self.url();
        let answer = self.run("psql", &["--no-psqlrc", "-qAtX", "-d", &url, "-c", sql])?;
        Ok(answer.trim_end().to_owned())
    }

    /// Changes a setting while it runs: `SET synchronous_standby_names = '*'`, `RESET …`.
    ///
    /// # Errors
    /// The server's.
    pub fn configure(&self, change: &str) -> io::Result<()> {
        self.ask(&format!("ALTER SYSTEM {change}"))?;
        self.ask("SELECT pg_reload_conf()").map(drop)
    }

    /// One without data.
    fn empty() -> io::Result<Self> {
        let programs = programs()?;
        let directory = tempfile::Builder::new().prefix("tidings-postgres-").tempdir()?;
        give_to_user(directory.path())?;
        Ok(Self { process: None, port: free_port()?, programs, settings: Vec::new(), directory })
    }

    fn make(&self) -> io::Result<()> {
        // The files of a test need not outlive the machine's power: what it commits is synced.
        let how = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"];
        let data = self.data().display().to_string();
        let arguments = [&how[..], &["--username", USER, "--pgdata", &data]].concat();
        self.run("initdb", &arguments).map(drop)
    }

    /// Runs one of PostgreSQL's programs and gives what it printed.
    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<String> {
        let mut command = as_user(&self.programs.join(program));
        let home = self.directory.path();
        // Whatever the person who tests has for PostgreSQL at home is not read.
        command.args(arguments).current_dir(home).env("HOME", home).stdin(Stdio::null());
        let output = command.output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let printed = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{program} failed: {printed}")))
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Writes a file of its data directory, which only it may read.
    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;

        let path = self.data().join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        give_to_user(&path)
    }

    /// The server that [`POSTGRES_URL`] names, or a private one.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared() -> io::Result<SharedPostgres> {
        match env::var(POSTGRES_URL) {
            Ok(url) => Ok(SharedPostgres { url, _private: None }),
            Err(_) => {
                let private = Self::start()?;
                Ok(SharedPostgres { url: private.url(), _private: Some(private) })
            }
        }
    }

    /// Where it is, for its superuser.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://{USER}@{}/postgres", self.address())
    }

    /// Its address and port: `127.0.0.1:15432`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port that it listens on.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its first process, whose children are the others; none of one that was killed.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Starts it again after [`Self::kill`], on the same files and port, and waits until it answers.
    ///
    /// # Errors
    /// It did not start; with what it printed.
    pub fn restart(&mut self) -> io::Result<()> {
        let directory = self.directory.path();
        let log = directory.join("log");
        let socket = format!("unix_socket_directories={}", directory.display());
        let (data, port) = (self.data(), self.port.to_string());
        let (program, data) =
            (self.programs.join("postgres").display().to_string(), data.display().to_string());
        let settings = ["listen_addresses=127.0.0.1", &socket, "max_connections=400", "fsync=on"];
        let mut arguments = vec!["-D", &data, "-p", &port];
        arguments.extend(settings.iter().flat_map(|setting| ["-c", setting]));
        arguments.extend(self.settings.iter().flat_map(|setting| ["-c", setting.as_str()]));
        let mut process = Process::start(&program, &arguments, Some(USER), &log)?;
        let mut ended = false;
        let is_ready = || {
            ended = process.has_ended().unwrap_or(true);
            ended || self.is_ready()
        };
        let started = until("PostgreSQL", START_MAX, is_ready);
        if ended || started.is_err() {
            let printed = fs::read_to_string(&log).unwrap_or_default();
            return Err(io::Error::other(format!("PostgreSQL did not start: {printed}")));
        }
        self.process = Some(process);
        Ok(())
    }

    fn is_ready(&self) -> bool {
        let mut command = Command::new(self.programs.join("pg_isready"));
        command.args(["-q", "-h", "127.0.0.1", "-U", USER, "-d", "postgres", "-t", "1"]);
        command.args(["-p", &self.port.to_string()]).stdin(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Kills it and all its processes at once, as a crash does.
    ///
    /// # Errors
    /// Of the system.
    pub fn kill(&mut self) -> io::Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        // Stopped, it starts no more that would be missed.
        process.pause()?;
        let children = children(process.id())?;
        for child in &children {
            // It may have ended by itself.
            let _ = kill_process(*child, Signal::KILL);
        }
        process.kill()?;
        let all_gone = || children.iter().all(|child| test_kill_process(*child).is_err());
        until("the end of PostgreSQL's processes", END_MAX, all_gone)
    }

    /// Stops the time of all its processes: connections stay and nothing answers.
    ///
    /// # Errors
    /// Of the system.
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Of the system.
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(process) = &self.process else { return Ok(()) };
        process.signal(signal)?;
        for child in children(process.id())? {
            let _ = kill_process(child, signal);
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Before the directory goes; nobody is left to be told.
        let _ = self.kill();
    }
}

/// A server to have a schema in.
#[derive(Debug)]
pub struct SharedPostgres {
    url: String,
    _private: Option<Postgres>,
}

impl SharedPostgres {
    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// Where the programs are: Debian keeps them by version and out of the path.
fn programs() -> io::Result<PathBuf> {
    let version = |path: &Path| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    let entries = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions =
        entries.map(|entry| entry.path()).filter_map(|path| Some((version(&path)?, path)));
    let newest = versions.map(|(version, path)| (version, path.join("bin")));
    let newest = newest.filter(|(_, path)| path.join("postgres").exists()).max();
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = || env::split_paths(&path).find(|folder| folder.join("postgres").exists());
    newest.map(|(_, path)| path).or_else(in_path).ok_or_else(|| {
        io::Error::other("PostgreSQL is not installed: `apt-get install postgresql` has it")
    })
}

/// A program, run by the user that PostgreSQL runs as.
fn as_user(program: &Path) -> Command {
    if !rustix::process::getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(program);
    command
}

fn give_to_user(path: &Path) -> io::Result<()> {
    if !rustix::process::getuid().is_root() {
        return Ok(());
    }
    let status = Command::new("chown").arg(format!("{USER}:{USER}")).arg(path).status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("there is no user {USER}: `apt-get install postgresql` makes it")))
}

/// The processes that a process started. PostgreSQL's have each a group of their own.
fn children(id: u32) -> io::Result<Vec<Pid>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may end while it is looked at.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // After the name, which may hold anything: the state and the parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent.is_some_and(|parent| parent == id.to_string()) {
            children.extend(Pid::from_raw(child));
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_killed_whole_and_started_again() -> io::Result<()> {
        let mut server = Postgres::start()?;
        let process = server.process.as_ref().map(Process::id).unwrap_or_default();
        let before = children(process)?;
        assert!(!before.is_empty());
        server.kill()?;
        assert!(before.iter().all(|child| test_kill_process(*child).is_err()));
        assert!(!server.is_ready());
        server.restart()?;
        assert!(server.is_ready());
        let directory = server.directory.path().to_owned();
        drop(server);
        assert!(!directory.exists());
        Ok(())
    }
}
