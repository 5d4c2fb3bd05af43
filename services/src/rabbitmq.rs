//! RabbitMQ: a private broker with its own Erlang port mapper, and the one that tests share.
//!
//! The rule: nothing of it meets the machine's own broker: other ports, node name, cookie, files.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use tempfile::TempDir;

use crate::{Process, free_port, until};

/// Where the broker is that tests share; without it each starts its own.
pub const RABBITMQ_URL: &str = "TESTS_RABBITMQ_URL";

/// Where Debian's `rabbitmq-server` has its programs. Those on the path insist on Debian's files.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// For Erlang's schedulers of all three kinds.
const NO_SPINNING: &str = "+sbwt none +sbwtdcpu none +sbwtdio none";

/// From the start to a listening broker: 4 s on an idle machine (measured 2026-11).
const START_MAX: Duration = Duration::from_secs(120);

/// A broker. Dropping it kills it.
#[derive(Debug)]
pub struct RabbitMq {
    broker: Process,
    /// Erlang's port mapper, by which `rabbitmqctl` finds the broker. One that the broker starts
    /// would outlive it.
    _mapper: Process,
    directory: TempDir,
    ports: Ports,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    amqp: u16,
    distribution: u16,
    mapper: u16,
}

/// The broker that tests share, or one of one's own.
#[derive(Debug)]
pub struct SharedRabbitMq {
    url: String,
    _own: Option<RabbitMq>,
}

impl SharedRabbitMq {
    /// Where it is: `amqp://guest:guest@127.0.0.1:4321/%2f`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl RabbitMq {
    /// Starts one.
    ///
    /// # Errors
    /// It is not installed, or did not start; what it printed is in the error.
    pub fn start() -> io::Result<Self> {
        let program = Path::new(PROGRAMS).join("rabbitmq-server");
        if !program.exists() {
            let missing = program.display();
            return Err(io::Error::other(format!(
                "there is no {missing}: install the Debian package rabbitmq-server (cargo xtask setup)"
            )));
        }
        let directory = tempfile::Builder::new().prefix("tidings-rabbitmq-").tempdir()?;
        let ports = Ports { amqp: free_port()?, distribution: free_port()?, mapper: free_port()? };
        let configuration =
            format!("listeners.tcp.1 = 127.0.0.1:{}\nlog.console = true\n", ports.amqp);
        fs::write(directory.path().join("rabbitmq.conf"), configuration)?;
        let mapper = ["-port", &ports.mapper.to_string(), "-address", "127.0.0.1"];
        let mapper = Process::start("epmd", &mapper, None, &directory.path().join("epmd.log"))?;
        let broker = launch(directory.path(), ports)?;
        let mut rabbitmq = Self { broker, _mapper: mapper, directory, ports };
        rabbitmq.wait()?;
        Ok(rabbitmq)
    }

    /// The broker that [`RABBITMQ_URL`] names, else one of one's own. Others use it too: do not
    /// break it, and choose names that nobody else has.
    ///
    /// # Errors
    /// Those of [`RabbitMq::start`].
    pub fn shared() -> io::Result<SharedRabbitMq> {
        if let Ok(url) = std::env::var(RABBITMQ_URL) {
            return Ok(SharedRabbitMq { url, _own: None });
        }
        let own = Self::start()?;
        Ok(SharedRabbitMq { url: own.url(), _own: Some(own) })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.broker.id()
    }

    /// Kills it, as `kill -9` does.
    ///
    /// # Errors
    /// Of the system.
    pub fn kill(&mut self) -> io::Result<()> {
        self.broker.kill()
    }

    /// Starts it again, on the same ports and files.
    ///
    /// # Errors
    /// Those of [`RabbitMq::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.broker = launch(self.directory.path(), self.ports)?;
        self.wait()
    }

    /// Stops its time: it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// Of the system.
    pub fn pause(&self) -> io::Result<()> {
        self.broker.pause()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Of the system.
    pub fn resume(&self) -> io::Result<()> {
        self.broker.resume()
    }

    /// Runs `rabbitmqctl` on it and returns what it prints.
    ///
    /// # Errors
    /// What it said, if it failed.
    pub fn ctl<const N: usize>(&self, arguments: [&str; N]) -> io::Result<String> {
        let Output { status, stdout, stderr } =
            Command::new(Path::new(PROGRAMS).join("rabbitmqctl"))
                .envs(environment(self.directory.path(), self.ports))
                .arg("--quiet")
                .args(arguments)
                .output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if status.success() {
            return Ok(text(stdout));
        }
        let said = text(stderr) + &text(stdout);
        Err(io::Error::other(format!("rabbitmqctl {}: {said}", arguments.join(" "))))
    }

    fn wait(&mut self) -> io::Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.amqp));
        let mut ended = false;
        let broker = &mut self.broker;
        until("RabbitMQ", START_MAX, || {
            ended = broker.has_ended().unwrap_or(true);
            ended || TcpStream::connect(address).is_ok()
        })?;
        if ended {
            let said = fs::read_to_string(log(self.directory.path()))?;
            return Err(io::Error::other(format!("RabbitMQ ended at once: {said}")));
        }
        Ok(())
    }
}

fn launch(directory: &Path, ports: Ports) -> io::Result<Process> {
    let mut arguments: Vec<String> =
        environment(directory, ports).map(|(name, value)| format!("{name}={value}")).to_vec();
    arguments.push(format!("{PROGRAMS}/rabbitmq-server"));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Process::start("env", &arguments, None, &log(directory))
}

fn log(directory: &Path) -> PathBuf {
    directory.join("broker.log")
}

fn environment(directory: &Path, ports: Ports) -> [(&'static str, String); 14] {
    let place = |name: &str| directory.join(name).display().to_string();
    [
        // The Erlang cookie is there.
        ("HOME", place("")),
        ("ERL_EPMD_PORT", ports.mapper.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        // Without it a shell stays between us and the broker, and survives it.
        ("RABBITMQ_ALLOW_INPUT", "1".to_owned()),
        ("RABBITMQ_SERVER_START_ARGS", "-noinput".to_owned()),
        ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
        ("RABBITMQ_CONFIG_FILE", place("rabbitmq.conf")),
        ("RABBITMQ_NODENAME", format!("tidings{}@localhost", ports.amqp)),
        ("RABBITMQ_DIST_PORT", ports.distribution.to_string()),
        ("RABBITMQ_MNESIA_BASE", place("mnesia")),
        ("RABBITMQ_LOG_BASE", place("")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", place("plugins")),
        ("RABBITMQ_LOGS", "-".to_owned()),
        // Its schedulers are not to spin while they wait: others have the processors, too.
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", NO_SPINNING.to_owned()),
    ]
}
