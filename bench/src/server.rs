//! The servers under measurement: started on their processor, asked what they cost, and ended.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidings::auth::{Algorithm, ApiKey, Secret, SigningKey, jwt::mint};
use tokio::time::Instant;

use crate::{
    client::{Dialect, Target},
    machine,
    peers::Peer,
};

/// Readers have no end within a run: the year 2100.
const TOKEN_EXPIRES: u64 = 4_102_444_800;
/// How long a server that has come to rest does nothing, and how long it may take to get there.
const SETTLED_FOR: Duration = Duration::from_secs(2);
const SETTLE_MAX: Duration = Duration::from_secs(120);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The least that the work takes.
    Floor,
    /// The same with a log file and an fsync that is shared by what came together.
    DurableFloor,
    /// Tidings, with journal, fsync, access checks and ids.
    Hub,
    /// Somebody else's.
    Peer(&'static Peer),
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::DurableFloor => "floor + fsync",
            Self::Hub => "tidings",
            Self::Peer(peer) => peer.name,
        }
    }
}

/// How a scenario wants its servers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setup {
    /// The floor keeps events for readers that come back.
    pub(crate) has_history: bool,
    /// The hub speaks TLS.
    pub(crate) has_tls: bool,
    /// Variables of the hub's configuration that differ from the defaults.
    pub(crate) settings: Vec<(&'static str, String)>,
}

impl Setup {
    /// Keeps all events, however many of one topic.
    pub(crate) fn keep_all(mut self) -> Self {
        for name in ["TIDINGS_RETENTION_EVENTS", "TIDINGS_RETENTION_BYTES"] {
            self.settings.push((name, "0".to_owned()));
        }
        self
    }
}

/// A server's process, and its directory, which outlives restarts.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) target: Target,
    pub(crate) kind: Kind,
    /// The certificate of a hub with TLS, PEM.
    pub(crate) certificate: Option<String>,
    /// How long it took from being started until it served.
    pub(crate) started_in: Duration,
    setup: Setup,
    child: Child,
    directory: TempDir,
}

impl Server {
    pub(crate) fn start(kind: Kind, setup: Setup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut key = String::new();
        let mut certificate = None;
        if kind == Kind::Hub {
            let (secret, entry) = ApiKey::generate();
            let signing = shared_secret();
            // All load comes from one key and one token, which may do what many users may together: what
            // they do is counted all the same.
            key = secret.expose().to_owned();
            certificate = setup.has_tls.then(|| make_certificate(directory.path()));
            let id = entry.id;
            let digest = entry.sha256;
            let config = format!(
                "listen = '127.0.0.1:0'\ndata = '{0}/data'\nadmin.listen = '127.0.0.1:0'\n\
                 log.format = 'json'\n\
                 [limits]\nuser_connections = 0\ntenant_connections = 0\n\
                 user_publish_rate = 100_000_000\ntenant_publish_rate = 100_000_000\n\
                 tenant_topics = 10_000_000\n[auth]\n\
                 jwt.keys = [{{ algorithm = 'HS256', secret = '{signing}' }}]\n\
                 api_keys = [{{ id = '{id}', sha256 = '{digest}', write = ['bench/*'] }}]\n\
                 [[access]]\ntopic = 'bench/*'\nread = true\n",
                directory.path().display()
            );
            let path = directory.path().join("tidings.toml");
            fs::write(&path, config).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let token = reader_token();
        let begun = Instant::now();
        let (child, address) = spawn(kind, &setup, directory.path());
        let started_in = begun.elapsed();
        let dialect = match kind {
            Kind::Peer(peer) => peer.dialect,
            _ => Dialect::Tidings,
        };
        let target = Target { address, dialect, key, token, has_ids: false };
        Self { target, kind, certificate, started_in, setup, child, directory }
    }

    /// Kills it and starts it again on what it kept.
    pub(crate) fn restart(&mut self) {
        self.end();
        let begun = Instant::now();
        let (child, address) = spawn(self.kind, &self.setup, self.directory.path());
        self.started_in = begun.elapsed();
        self.child = child;
        self.target.address = address;
    }

    /// Waits until it does nothing by itself any more: until it has had less than a fiftieth of its
    /// processor for a while.
    pub(crate) async fn settle(&self) {
        let begun = Instant::now();
        loop {
            let before = self.cpu_seconds();
            tokio::time::sleep(SETTLED_FOR).await;
            if self.cpu_seconds() - before < SETTLED_FOR.as_secs_f64() / 50.0 {
                return;
            }
            assert!(begun.elapsed() < SETTLE_MAX, "{} does not come to rest", self.kind.name());
        }
    }

    /// Seconds of CPU so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        machine::cpu_seconds(self.child.id())
    }

    /// Resident bytes now.
    pub(crate) fn resident_bytes(&self) -> f64 {
        machine::resident_bytes(self.child.id())
    }

    /// Its process, for profilers.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, and what it started.
    pub(crate) fn end(&mut self) {
        if let Kind::Peer(peer) = self.kind {
            // Some have children of their own, which their own way of ending takes along.
            peer.end(&mut self.child);
        }
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Signs the readers' tokens, and is what nodes share: as random as the hub asks for, made anew for
/// each run.
pub(crate) fn shared_secret() -> &'static str {
    static SECRET: OnceLock<String> = OnceLock::new();
    SECRET.get_or_init(|| ApiKey::generate().0.expose().to_owned())
}

fn reader_token() -> String {
    let key = SigningKey::new(Algorithm::Hs256, None, &Secret::new(shared_secret())).unwrap();
    let claims = json!({ "sub": "reader", "exp": TOKEN_EXPIRES });
    mint(&key, claims.as_object().unwrap()).unwrap()
}

fn spawn(kind: Kind, setup: &Setup, directory: &Path) -> (Child, SocketAddr) {
    let own = std::env::current_exe().unwrap();
    match kind {
        Kind::Peer(peer) => {
            let port = free_port();
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let child = peer.spawn(port, directory);
            wait_for(address, peer.name);
            (child, address)
        }
        Kind::Hub => {
            let other = std::env::var_os("BENCH_HUB").map(PathBuf::from);
            let hub = other.unwrap_or_else(|| own.with_file_name("tidings"));
            let mut command = machine::pinned(hub);
            command.arg("serve").arg("--config").arg(directory.join("tidings.toml"));
            command.envs(setup.settings.iter().map(|(name, value)| (name, value)));
            // An allocator that a build is compared with.
            command.envs(std::env::var_os("BENCH_PRELOAD").map(|library| ("LD_PRELOAD", library)));
            if setup.has_tls {
                command.env("TIDINGS_TLS_CERT", directory.join("cert.pem"));
                command.env("TIDINGS_TLS_KEY", directory.join("key.pem"));
            }
            let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
            let log = child.stderr.take().unwrap();
            (child, listening(log))
        }
        Kind::Floor | Kind::DurableFloor => {
            let mut command = machine::pinned(own);
            command.arg("floor");
            if kind == Kind::DurableFloor {
                command.arg("--log").arg(directory.join("log"));
            }
            if setup.has_history {
                command.arg("--history");
            }
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let log = child.stdout.take().unwrap();
            (child, listening(log))
        }
    }
}

/// Reads a server's log until it says where it listens. What it complains of later is passed on.
fn listening(log: impl Read + Send + 'static) -> SocketAddr {
    let mut lines = BufReader::new(log).lines().map_while(Result::ok);
    let mut said = String::new();
    let address = loop {
        let line = lines.next().unwrap_or_else(|| panic!("the server did not start:\n{said}"));
        let entry: Value = serde_json::from_str(&line).unwrap_or_default();
        if entry["message"] == "serving" {
            break entry["listen"].as_str().unwrap().parse().unwrap();
        }
        said.push_str(&line);
        said.push('\n');
    };
    thread::spawn(move || {
        for line in lines.filter(|line| !line.contains(r#""level":"INFO""#)) {
            // Nobody may read what this tool says any more.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    });
    address
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait_for(address: SocketAddr, name: &str) {
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{name} does not listen");
        thread::sleep(Duration::from_millis(20));
    }
}

fn make_certificate(directory: &Path) -> String {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let write = |name: &str, text: String| -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let key = write("key.pem", pair.signing_key.serialize_pem());
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    let certificate = pair.cert.pem();
    write("cert.pem", certificate.clone());
    certificate
}
