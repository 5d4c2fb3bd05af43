//! A server's process: started, paused, killed by its id, and ended with its owner.

use std::{
    fs::File,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

/// Between two looks whether a server is there.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A running server, in a process group of its own. Dropping it kills the group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `program`, with what it prints in the file `log`. It is killed with the thread that
    /// starts it here, so that a test that is killed leaves nothing behind: start it on a thread that
    /// lasts. Root starts it as `user`, because PostgreSQL refuses to run as root.
    ///
    /// # Errors
    /// The program's, with the Debian package that has it where it is not installed.
    pub fn start(
        program: &str,
        arguments: &[&str],
        user: Option<&str>,
        log: &Path,
    ) -> io::Result<Self> {
        use std::os::unix::process::CommandExt as _;

        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = user.filter(|_| rustix::process::getuid().is_root()) {
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        }
        let log = File::options().create(true).append(true).open(log)?;
        command
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = command.spawn().map_err(|error| {
            io::Error::other(format!("cannot start {program} by setpriv (util-linux): {error}"))
        })?;
        Ok(Self { child, name: program.to_owned() })
    }

    /// The process id, which is its group's too.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it ended by itself.
    ///
    /// # Errors
    /// Of the system.
    pub fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends a signal to the whole group.
    ///
    /// # Errors
    /// Of the system; nobody is left to be told.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let group = Pid::from_child(&self.child);
        kill_process_group(group, signal).map_err(|error| {
            io::Error::other(format!("{} ({}): {error}", self.name, self.child.id()))
        })
    }

    /// Stops its time: it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// Of the system.
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a paused process go on.
    ///
    /// # Errors
    /// Of the system.
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills it, as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// Of the system.
    pub fn kill(&mut self) -> io::Result<()> {
        // Its group may have members that outlive it.
        let killed = self.signal(Signal::KILL);
        let ended = self.child.wait();
        killed?;
        ended.map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone, or about to be: nobody is left to be told.
        let _ = self.kill();
    }
}

/// Ports that a server is started on: below those that Linux gives to outgoing connections, one of
/// which would take the port of a server that takes seconds to start.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A port of loopback that nobody listens on now, by chance one of many.
///
/// # Errors
/// None is free.
pub fn free_port() -> io::Result<u16> {
    let mut error = io::Error::other("no port was tried");
    for _ in 0..100 {
        let chance = RandomState::new().build_hasher().finish();
        let place = u16::try_from(chance % u64::from(PORTS.end - PORTS.start)).unwrap_or_default();
        match TcpListener::bind(("127.0.0.1", PORTS.start + place)) {
            Ok(_) => return Ok(PORTS.start + place),
            Err(taken) => error = taken,
        }
    }
    Err(error)
}

/// Waits until something outside holds, looking again and again, for `limit` at most.
///
/// # Errors
/// It did not hold in time; `what` names it.
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> io::Result<()> {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > limit {
            return Err(io::Error::other(format!("{what} did not come within {limit:?}")));
        }
        thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}
