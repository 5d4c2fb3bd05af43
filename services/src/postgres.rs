//! A private PostgreSQL: made, started, killed whole, paused, and gone with its owner.
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
    directory: TempDir,
}

impl Postgres {
    /// Makes a database cluster in a directory of its own and starts it on a free port of loopback.
    ///
    /// # Errors
    /// The programs', with what they printed; the Debian package where they are not installed.
    pub fn start() -> io::Result<Self> {
        let programs = programs()?;
        let directory = tempfile::Builder::new().prefix("tidings-postgres-").tempdir()?;
        give_to_user(directory.path())?;
        let data = directory.path().join("data");
        // The files of a test need not outlive the machine's power: what it commits is synced.
        let arguments = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"];
        let mut command = as_user(&programs.join("initdb"));
        command.args(arguments).args(["--username", USER]).arg("--pgdata").arg(&data);
        let output = command.current_dir(directory.path()).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let printed = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("initdb failed: {printed}")));
        }
        let mut server = Self { process: None, port: free_port()?, programs, directory };
        server.restart()?;
        Ok(server)
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
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    /// Starts it again after [`Self::kill`], on the same files and port, and waits until it answers.
    ///
    /// # Errors
    /// It did not start; with what it printed.
    pub fn restart(&mut self) -> io::Result<()> {
        let directory = self.directory.path();
        let log = directory.join("log");
        let socket = format!("unix_socket_directories={}", directory.display());
        let (data, port) = (directory.join("data"), self.port.to_string());
        let (program, data) =
            (self.programs.join("postgres").display().to_string(), data.display().to_string());
        let settings = ["listen_addresses=127.0.0.1", &socket, "max_connections=400", "fsync=on"];
        let mut arguments = vec!["-D", &data, "-p", &port];
        arguments.extend(settings.iter().flat_map(|setting| ["-c", setting]));
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
