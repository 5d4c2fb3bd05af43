//! The command line: what can be said on it.
//!
//! The rule: `--help` is the reference; `docs/cli.md` is made from it.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::config::{Period, SettingFlags};

/// A self-hosted live-event hub: publish over HTTP, follow over Server-Sent Events, resume exactly.
#[derive(Debug, Parser)]
#[command(name = "tidings", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = after_help())]
pub(crate) struct Cli {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

fn after_help() -> String {
    let mut text = "Exit codes:\n".to_owned();
    for exit in crate::exit::Exit::ALL {
        text.push_str(&format!("  {:>2}  {}\n", exit.code(), exit.meaning()));
    }
    text.push_str("\nEnvironment of the client commands:\n");
    text.push_str("  TIDINGS_URL                address of the hub\n");
    text.push_str("  TIDINGS_KEY, _KEY_FILE     API key, or a file that holds it\n");
    text.push_str("  TIDINGS_TOKEN, _TOKEN_FILE token, or a file that holds it\n");
    text.push_str("  NO_COLOR                   no colours, as if the output were no terminal\n");
    text
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a hub on this machine to try things out: no configuration, keys made for you
    Dev(DevArgs),
    /// Run a hub as configured
    Serve(Box<ServeArgs>),
    /// Publish events: one, each line of the input, or NDJSON in bulk
    Publish(PublishArgs),
    /// Follow topics: print events as they happen, resuming by itself
    Follow(FollowArgs),
    /// Mint and look into tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Check and explain the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check, save, restore and repair the journal of a hub that is stopped
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Bring the PostgreSQL schema of the journal and of the outbox up to date
    Migrate(ServeArgs),
    /// Look into a running hub, and change what operators may
    Admin(AdminArgs),
    /// Ask a hub whether it is well: exits with 0 or 1, for container health checks
    Health(HealthArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Address and port, on loopback only; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub(crate) listen: std::net::SocketAddr,
    /// Directory of events, keys and tokens
    #[arg(long, value_name = "DIR", default_value = crate::remote::DEV_DIRECTORY)]
    pub(crate) data: PathBuf,
    /// Print one line of JSON instead, once the hub listens: url, admin_url, publisher_key,
    /// reader_token
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) layers: LayerArgs,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
pub(crate) struct LayerArgs {
    /// Configuration file [default: tidings.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: SettingFlags,
}

/// Where a hub is.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArgs {
    /// Address of the hub [env: TIDINGS_URL] [default: the `tidings dev` of this directory]
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Data directory of the `tidings dev` to talk to
    #[arg(long, value_name = "DIR", default_value = crate::remote::DEV_DIRECTORY)]
    pub(crate) data_dir: PathBuf,
    /// File of further certificate authorities to trust, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

/// Which hub, and as whom.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Hub")]
pub(crate) struct HubArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// API key; better in TIDINGS_KEY or TIDINGS_KEY_FILE, as the process list shows flags
    #[arg(long, value_name = "KEY", conflicts_with = "token")]
    pub(crate) api_key: Option<String>,
    /// Token; better in TIDINGS_TOKEN or TIDINGS_TOKEN_FILE, as the process list shows flags
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("input").args(["data", "data_file", "lines", "ndjson"]))]
#[command(after_help = "\
Examples:
  tidings publish --topic user/42 --type greeting --data '{\"text\":\"hello\"}'
  tidings publish --topic user/42 --type run.progress --class state --key run/7 --data '{\"done\":3}'
  cargo build 2>&1 | tidings publish --lines --topic build/1
  tidings publish --ndjson --file events.ndjson
  tidings publish --ndjson --topic build/1 --type step --file steps.ndjson

With --lines, an event's data is the line as a JSON string, without its line break; colours
and other control characters stay, bytes that are no UTF-8 become U+FFFD. While the hub is away,
lines wait in the pipe; each has an id of its own, so that what is sent twice is stored once.")]
pub(crate) struct PublishArgs {
    /// Topic, such as user/42; with --ndjson, of the events that name none
    #[arg(long, required_unless_present_any = ["ndjson", "amqp"])]
    pub(crate) topic: Option<String>,
    /// Event type, such as job.done; with --ndjson, of the events that name none [default with
    /// --lines: line]
    #[arg(long = "type", value_name = "TYPE", required_unless_present_any = ["lines", "ndjson"])]
    pub(crate) event_type: Option<String>,
    /// Data of the event, JSON; what is no JSON is published as a string
    #[arg(long, value_name = "JSON")]
    pub(crate) data: Option<String>,
    /// File that holds the data, `-` for stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) data_file: Option<PathBuf>,
    /// How the event is kept [default: log, with --key: state]
    #[arg(long, conflicts_with = "ndjson")]
    pub(crate) class: Option<ClassArg>,
    /// What a state replaces, such as run/7
    #[arg(long, conflicts_with_all = ["lines", "ndjson"])]
    pub(crate) key: Option<String>,
    /// Id of the event: published twice, it is stored once [default: a new one]
    #[arg(long, conflicts_with_all = ["lines", "ndjson"])]
    pub(crate) id: Option<String>,
    /// What the event is about
    #[arg(long, conflicts_with = "ndjson")]
    pub(crate) subject: Option<String>,
    /// Offset that the key's current state must have; 0: there must be none
    #[arg(long, value_name = "OFFSET", requires = "key")]
    pub(crate) if_offset: Option<u64>,
    /// When the state ends by itself, RFC 3339
    #[arg(long, value_name = "TIME", requires = "key")]
    pub(crate) expires_at: Option<String>,
    /// End the key's state
    #[arg(long, requires = "key")]
    pub(crate) delete: bool,
    /// Close the topic with this event: nothing can follow it
    #[arg(long, conflicts_with_all = ["lines", "ndjson"])]
    pub(crate) close: bool,
    /// Publish each line of stdin as an event
    #[arg(long)]
    pub(crate) lines: bool,
    /// Publish each line of stdin or --file, which is an event as JSON
    #[arg(long)]
    pub(crate) ndjson: bool,
    /// File to read with --ndjson [default: stdin]
    #[arg(long, value_name = "FILE", requires = "ndjson")]
    pub(crate) file: Option<PathBuf>,
    /// Publish to RabbitMQ instead, amqp://user:password@host:5672/vhost: the data as a message with
    /// id and type, in a queue once this ends well
    #[arg(
        long,
        value_name = "URL",
        requires = "routing_key",
        conflicts_with_all = ["topic", "lines", "ndjson", "class", "key", "subject", "close"]
    )]
    pub(crate) amqp: Option<String>,
    /// Routing key of the message, such as team.7.job.8f1c.status
    #[arg(long, value_name = "KEY", requires = "amqp")]
    pub(crate) routing_key: Option<String>,
    /// Topic exchange of the message
    #[arg(
        long,
        value_name = "NAME",
        requires = "amqp",
        env = "RABBITMQ_EVENTS_EXCHANGE",
        default_value = "events.topic"
    )]
    pub(crate) exchange: String,
    /// How long to try again while the hub is away [default: 10s, for streams 10m]
    #[arg(long, value_name = "DURATION")]
    pub(crate) retry_for: Option<Period>,
    /// No summary and no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClassArg {
    /// Kept until retention trims it
    Log,
    /// The newest per key is kept
    State,
    /// Not kept at all
    Ephemeral,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidings follow --topic build/1 --since earliest --format data
  tidings follow --topic user/42 --topic team/7/jobs --filter 'type=job.*' --cursor-file cursor

The cursor file is replaced after an event was printed, never before: an interrupted follow
prints the last event again rather than never.")]
pub(crate) struct FollowArgs {
    /// Topic to follow; repeat it for more [default: the feed of the credential]
    #[arg(long)]
    pub(crate) topic: Vec<String>,
    /// Where to start: now, earliest, latest:N, a time (RFC 3339) or a duration (15m) [default: now]
    #[arg(long)]
    pub(crate) since: Option<String>,
    /// Only such events: type=job.*, key=run/7 or class=log; repeat it for more
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) filter: Vec<String>,
    /// Do not print current states first
    #[arg(long)]
    pub(crate) no_states: bool,
    /// File that keeps the place between runs; where it exists, --since is not looked at
    #[arg(long, value_name = "FILE")]
    pub(crate) cursor_file: Option<PathBuf>,
    /// How events are printed
    #[arg(long, value_enum, default_value_t = FormatArg::Ndjson)]
    pub(crate) format: FormatArg,
    /// End once everything that there is was printed
    #[arg(long)]
    pub(crate) catch_up: bool,
    /// End after so many events
    #[arg(long, value_name = "NUMBER")]
    pub(crate) count: Option<u64>,
    /// How long to try again while the hub is away [default: for ever]
    #[arg(long, value_name = "DURATION")]
    pub(crate) retry_for: Option<Period>,
    /// Say nothing on stderr but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// A line of JSON for each event
    Ndjson,
    /// The data alone, a line each: strings as their text, all else as JSON
    Data,
    /// As the hub sends it, control frames too
    Sse,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Mint a token, signed with a key of the configuration or a given one
    Mint(Box<MintArgs>),
    /// Show what is in a token, without verifying it
    Inspect {
        /// The token [default: read from stdin]
        token: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct MintArgs {
    /// Whom the token is for (claim `sub`)
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) sub: String,
    /// How long it is valid
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub(crate) ttl: Period,
    /// Its tenant
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// A role (claim `roles`); repeat it for more
    #[arg(long)]
    pub(crate) role: Vec<String>,
    /// A permission (claim `permissions`); repeat it for more
    #[arg(long)]
    pub(crate) permission: Vec<String>,
    /// Topics that it may read, a pattern such as user/*; repeat it for more
    #[arg(long, value_name = "PATTERN")]
    pub(crate) read: Vec<String>,
    /// Topics that it may write, a pattern; repeat it for more
    #[arg(long, value_name = "PATTERN")]
    pub(crate) write: Vec<String>,
    /// A further claim; the value is JSON, or text if it is none
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) claim: Vec<String>,
    /// File of the signing key: a shared secret, or a private key as PEM [default: the first shared
    /// secret of the configuration]
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Algorithm of --key-file
    #[arg(long, value_name = "NAME", default_value = "HS256", requires = "key_file")]
    pub(crate) algorithm: String,
    /// Name of --key-file in the configuration
    #[arg(long, requires = "key_file")]
    pub(crate) kid: Option<String>,
    #[command(flatten)]
    pub(crate) layers: LayerArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make an API key: prints the key, which is shown this once, and its entry for the configuration
    Create(KeyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// Topics that it may write, a pattern such as user/*; repeat it for more
    #[arg(long, value_name = "PATTERN")]
    pub(crate) write: Vec<String>,
    /// Topics that it may read, a pattern; repeat it for more
    #[arg(long, value_name = "PATTERN")]
    pub(crate) read: Vec<String>,
    /// Let it revoke credentials of its tenant
    #[arg(long)]
    pub(crate) revoke: bool,
    /// Its tenant [default: that of the configuration]
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// Who acts with it
    #[arg(long)]
    pub(crate) subject: Option<String>,
    /// When it ends, RFC 3339 [default: never]
    #[arg(long, value_name = "TIME")]
    pub(crate) expires_at: Option<String>,
    /// Print one line of JSON: key and entry
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// List every problem of the configuration, with its place
    Check(LayerArgs),
    /// Print the values in effect, and where each comes from
    Show(LayerArgs),
    /// Print the reference page
    Docs {
        /// Which page
        #[arg(value_enum, default_value_t = DocsPage::Configuration)]
        page: DocsPage,
    },
    /// Print the JSON schema of the configuration file
    Schema,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Read everything, and print what is wrong and what to do: exits with 0, or with 65 if
    /// something is. Changes nothing but what starting the hub changes
    Check(JournalArgs),
    /// Write everything as lines of JSON
    Export(ExportArgs),
    /// Make a journal of an export, in an empty data directory. If the export was whole, all cursors
    /// go on; else every topic begins a new epoch
    Import(ImportArgs),
    /// Give up what cannot be replayed, so that the hub starts: every topic then begins a new epoch.
    /// What is cut off is kept in the data directory
    Repair(JournalArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JournalArgs {
    /// Data directory of the hub [default: that of the configuration]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// No summary and no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// File to write, which must not be there [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Leave out what is damaged, saying so, and exit with 65, instead of stopping there
    #[arg(long)]
    pub(crate) salvage: bool,
    #[command(flatten)]
    pub(crate) journal: JournalArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// File to read [default: stdin]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) journal: JournalArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DocsPage {
    /// docs/configuration.md
    Configuration,
    /// docs/cli.md
    Cli,
    /// docs/metrics.md
    Metrics,
}

#[derive(Debug, Args)]
#[command(mut_arg("url", |url| url.help(HEALTH_URL)))]
pub(crate) struct HealthArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Ask only whether the process answers, not whether it takes events
    #[arg(long)]
    pub(crate) live: bool,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub(crate) timeout: Period,
}

/// Beyond what clients talk to, operators have a listener of their own.
const HEALTH_URL: &str = "Address of the hub or of its admin listener [env: TIDINGS_URL] [default: \
                          the `tidings dev` of this directory, else the admin listener of the \
                          configuration]";

#[derive(Debug, Args)]
#[command(after_help = "\
The token of operators is that of the configuration (TIDINGS_ADMIN_TOKEN, TIDINGS_ADMIN_TOKEN_FILE,
admin.token), else the file `admin-token` of the data directory, which the hub made. Prints JSON.")]
pub(crate) struct AdminArgs {
    #[command(subcommand)]
    pub(crate) command: AdminCommand,
    /// Address of the admin listener [default: the `tidings dev` of this directory, else that of the
    /// configuration]
    #[arg(long, value_name = "URL", global = true)]
    pub(crate) url: Option<String>,
    /// Configuration file [default: tidings.toml, if it is there]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Data directory of the `tidings dev` to ask
    #[arg(long, value_name = "DIR", default_value = crate::remote::DEV_DIRECTORY, global = true)]
    pub(crate) data_dir: PathBuf,
    /// File of further certificate authorities to trust, PEM
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// The node: version, uptime, readiness
    Nodes,
    /// Open connections of readers
    Connections {
        /// Of this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// Of this subject
        #[arg(long)]
        subject: Option<String>,
        /// That follow this topic
        #[arg(long)]
        topic: Option<String>,
        /// How many at most, up to 1000 [default: 100]
        #[arg(long, value_name = "NUMBER")]
        limit: Option<usize>,
    },
    /// Send readers away: they come back with their cursor and lose nothing
    Kick {
        /// This connection
        #[arg(long, required_unless_present = "subject")]
        id: Option<String>,
        /// All of this subject; needs --tenant
        #[arg(long, requires = "tenant", conflicts_with = "id")]
        subject: Option<String>,
        /// The subject's tenant
        #[arg(long)]
        tenant: Option<String>,
    },
    /// API keys and when each was used last on this node, and the key sets of issuers
    Keys,
    /// Revocations in force
    Revocations {
        /// Of this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// How many at most, up to 1000 [default: 100]
        #[arg(long, value_name = "NUMBER")]
        limit: Option<usize>,
    },
    /// Lift a revocation: what it revoked counts again
    #[command(group = ArgGroup::new("whose").required(true))]
    Lift {
        /// Its tenant
        #[arg(long)]
        tenant: String,
        /// The subject whose credentials it revokes
        #[arg(long, group = "whose")]
        sub: Option<String>,
        /// The token that it revokes
        #[arg(long, group = "whose")]
        jti: Option<String>,
        /// The team whose credentials it revokes
        #[arg(long, group = "whose")]
        team: Option<String>,
    },
    /// Topics of all tenants
    Topics {
        /// Of this tenant only
        #[arg(long)]
        tenant: Option<String>,
        /// This topic only; needs --tenant
        #[arg(long, requires = "tenant")]
        topic: Option<String>,
        /// Names that begin so
        #[arg(long)]
        prefix: Option<String>,
        /// After this one: `next` of the answer before
        #[arg(long, value_name = "TENANT/TOPIC")]
        after: Option<String>,
        /// How many at most, up to 1000 [default: 100]
        #[arg(long, value_name = "NUMBER")]
        limit: Option<usize>,
    },
    /// Remove a topic's oldest events now; readers learn of it by a gap
    Trim {
        /// Its tenant
        #[arg(long)]
        tenant: String,
        /// Its name
        #[arg(long)]
        topic: String,
        /// How many events stay
        #[arg(long, value_name = "NUMBER")]
        keep_events: Option<u64>,
        /// How many bytes stay
        #[arg(long, value_name = "SIZE")]
        keep_bytes: Option<String>,
        /// How old what stays may be
        #[arg(long, value_name = "DURATION")]
        keep_age: Option<Period>,
    },
    /// The configuration in effect, secrets left out
    Config,
}
