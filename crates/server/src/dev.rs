//! `tidings dev`: a hub to try things out, without configuration.
//!
//! The rules: loopback only; keys and tokens are made once for a data directory, readable for its
//! owner only, and stay valid over restarts.

use std::{fs, io, os::unix::fs::DirBuilderExt as _, path::Path, time::Duration};

use anstyle::{AnsiColor, Style};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidings::{
    auth::{
        Algorithm, ApiKey, ApiKeySettings, Authenticator, JwtKeySettings, Secret, SigningKey,
        jwt::mint,
    },
    clock::{Clock as _, SystemClock},
};

use crate::{
    admin::Admin,
    cli::DevArgs,
    commands::print,
    components::Components,
    config::{Config, Loaded, LogConfig, LogFormat, Period},
    descriptors,
    exit::{Exit, Failure},
    files::write_private,
    live,
    remote::{DEV_DIRECTORY, DevFile, variable},
    serve::Listeners,
    telemetry,
};

/// Where the keys are kept.
const CREDENTIALS_FILE: &str = "credentials.json";
/// How long the reader token is valid: as long as anybody tries things out.
const READER_TOKEN_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// A developer waits for the end: readers of one machine need no spreading.
const DRAIN_WINDOW: Duration = Duration::from_secs(2);

/// Runs the command.
pub(crate) async fn run(args: &DevArgs) -> Result<Exit, Failure> {
    if !args.listen.ip().is_loopback() {
        let message = format!(
            "--listen {}: `dev` serves this machine only, as its keys are printed on the terminal; \
             beyond it, use `tidings serve`",
            args.listen
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    telemetry::start(&LogConfig {
        level: variable("TIDINGS_LOG_LEVEL").unwrap_or_else(|| "warn".to_owned()),
        format: LogFormat::Auto,
    });
    if args.data.exists() && !args.data.is_dir() {
        let message = format!("{}: is a file; choose a directory by --data", args.data.display());
        return Err(Failure::new(Exit::DataDirectory, message));
    }
    prepare(&args.data).map_err(|error| {
        let data = args.data.display();
        let message = format!("{data}: cannot be prepared: {error}; choose a directory by --data");
        Failure::new(Exit::DataDirectory, message)
    })?;
    let credentials = Credentials::load_or_create(&args.data)?;
    let config = credentials.config(args);
    let admin_listen = (args.listen.ip(), 0).into();
    let listeners = Listeners::bind(args.listen, admin_listen)?;
    let mut components = Components::start(&config).await?;
    components.service = components.service.merge(live::router());
    // As many as there may be, without a word: nobody asked for the default.
    let possible = descriptors::possible();
    components.serve.connections_max = components.serve.connections_max.min(possible);
    let loaded = Loaded::of_dev(config);
    let admin = Admin::new(&loaded, &mut components)?;
    let dev = DevFile {
        url: format!("http://{}", listeners.address),
        admin_url: format!("http://{}", listeners.admin_address),
        publisher_key: credentials.publisher_key,
        reader_token: credentials.reader_token,
    };
    let line = serde_json::to_string(&dev)
        .map_err(|error| Failure::new(Exit::Software, error.to_string()))?;
    let file = DevFile::path(&args.data);
    write_private(&file, &line).map_err(|error| Failure::output(file.display(), &error))?;
    print(&if args.json { format!("{line}\n") } else { banner(&dev, &args.data) })?;
    listeners.serve(components, admin).await
}

/// Makes the directory, and keeps its keys out of everybody's repository.
fn prepare(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let ignore = directory.join(".gitignore");
    if ignore.exists() { Ok(()) } else { fs::write(ignore, "*\n") }
}

/// What a data directory's hub is talked to with.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    /// Signs the reader token.
    token_secret: String,
    publisher_key: String,
    publisher: ApiKeySettings,
    reader_token: String,
}

impl Credentials {
    fn load_or_create(directory: &Path) -> Result<Self, Failure> {
        let file = directory.join(CREDENTIALS_FILE);
        match fs::read_to_string(&file) {
            Ok(text) => {
                let credentials: Self = serde_json::from_str(&text).map_err(|error| {
                    let remedy = "remove it, and new keys are made";
                    let message = format!("{}: {error}; {remedy}", file.display());
                    Failure::new(Exit::Config, message)
                })?;
                credentials.check(&file)?;
                Ok(credentials)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let credentials = Self::create()?;
                let text = serde_json::to_string_pretty(&credentials)
                    .map_err(|error| Failure::new(Exit::Software, error.to_string()))?;
                write_private(&file, &text)
                    .map_err(|error| Failure::output(file.display(), &error))?;
                Ok(credentials)
            }
            Err(error) => Err(Failure::input(file.display(), &error)),
        }
    }

    fn create() -> Result<Self, Failure> {
        let (key, publisher) = ApiKey::generate();
        // As random as a key, and as long as HS256 wants it.
        let (token_secret, _) = ApiKey::generate();
        let now = SystemClock.now();
        let claims = json!({
            "sub": "dev", "iat": now.as_secs(), "exp": now.plus(READER_TOKEN_LIFE).as_secs(),
            "tidings": { "read": ["**"] },
        });
        let software =
            |error: &dyn std::fmt::Display| Failure::new(Exit::Software, error.to_string());
        let signer = SigningKey::new(Algorithm::Hs256, None, &token_secret)
            .map_err(|error| software(&error))?;
        let claims = claims.as_object().cloned().unwrap_or_default();
        Ok(Self {
            reader_token: mint(&signer, &claims).map_err(|error| software(&error))?,
            token_secret: token_secret.expose().to_owned(),
            publisher_key: key.expose().to_owned(),
            publisher: ApiKeySettings { write: vec!["**".to_owned()], revoke: true, ..publisher },
        })
    }

    /// A file that was edited, or is ten years old, is said so instead of printed.
    fn check(&self, file: &Path) -> Result<(), Failure> {
        let refused = |reason: &str| {
            let message = format!("{}: {reason}; remove it, and new keys are made", file.display());
            Failure::new(Exit::Config, message)
        };
        let mut config = Config::default();
        self.put(&mut config);
        let authenticator = Authenticator::new(&config.auth_settings())
            .map_err(|error| refused(&error.to_string()))?;
        let now = SystemClock.now();
        for credential in [&self.publisher_key, &self.reader_token] {
            authenticator
                .authenticate(credential, now)
                .map_err(|problem| refused(&problem.detail))?;
        }
        Ok(())
    }

    fn put(&self, config: &mut Config) {
        config.auth.api_keys = vec![self.publisher.clone()];
        config.auth.jwt.keys = vec![JwtKeySettings {
            algorithm: Algorithm::Hs256,
            kid: None,
            secret: Some(Secret::new(self.token_secret.clone())),
            public_key: None,
        }];
    }

    fn config(&self, args: &DevArgs) -> Config {
        let mut config = Config {
            listen: args.listen,
            data: args.data.clone(),
            drain_window: Period(DRAIN_WINDOW),
            drain_grace: Period(Duration::ZERO),
            ..Config::default()
        };
        // One user with one key has the machine to itself, and may want to see what it can do.
        config.limits.user_connections = 0;
        (config.limits.user_publish_rate, config.limits.tenant_publish_rate) = (0, 0);
        self.put(&mut config);
        config
    }
}

fn banner(dev: &DevFile, data: &Path) -> String {
    const TITLE: Style = AnsiColor::Green.on_default().bold();
    const NAME: Style = Style::new().bold();
    const FAINT: Style = Style::new().dimmed();
    let DevFile { url, admin_url, publisher_key, reader_token } = dev;
    // In another directory than its own, a client must be told of it.
    let place = match data == Path::new(DEV_DIRECTORY) {
        true => String::new(),
        false => format!(" --data-dir '{}'", data.display()),
    };
    let data = data.display();
    format!(
        "\n{TITLE}tidings dev{TITLE:#} listens on {url}  {FAINT}events and keys in {data}, \
         health and metrics on {admin_url}{FAINT:#}\n\n\
         {NAME}watch{NAME:#}          {url}/#token={reader_token}&key={publisher_key}\n\n\
         {NAME}publisher key{NAME:#}  {publisher_key}\n\n\
         {NAME}publish{NAME:#}        curl {url}/v1/events -H 'Authorization: Bearer {publisher_key}' \
         -H 'Content-Type: application/json' \
         -d '{{\"topic\":\"user/42\",\"type\":\"greeting\",\"data\":\"hello\"}}'\n\n\
         {NAME}follow{NAME:#}         curl -N '{url}/v1/events?topic=user/42&since=earliest' \
         -H 'Accept: text/event-stream' -H 'Authorization: Bearer {reader_token}'\n\n\
         {NAME}or, here{NAME:#}       cargo build 2>&1 | tidings publish --lines --topic build/1{place}\n\n"
    )
}
