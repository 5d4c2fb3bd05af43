//! PostgreSQL over TLS, against servers that take nothing else.
//!
//! The rule: who is not the server that the URL means learns nothing and is named, and what a URL
//! promises is promised for every connection: the journal's, the bus's and its ears'.

use std::{path::Path, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use tidings::{
    auth::Secret,
    bus::{Announcement, Bus, Codec, Heard, postgres::PostgresBus},
    journal::{
        Append, Batch, Journal, JournalError, JournalSettings, PageLimit,
        postgres::{PostgresJournal, PostgresOptions},
    },
    model::{EventType, NewEvent, Offset, Tenant, Timestamp, Topic, TopicKey},
};
use tidings_services::{Encryption, Postgres};
use tokio::time::timeout;

use crate::postgres::{fresh, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn topic() -> TopicKey {
    TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse("t").unwrap())
}

fn batch() -> Batch {
    let event = NewEvent::new(EventType::parse("a.b").unwrap());
    let events = vec![Append::new(Arc::new(event))];
    Batch { events, now: Timestamp::from_millis(1), ..Batch::default() }
}

/// Who signs certificates.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub(crate) struct Signed {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Signed {
    fn encryption(&self) -> Encryption<'_> {
        Encryption { certificates: &self.certificate, key: &self.key, clients_authority: None }
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sign(&self, name: &str) -> Signed {
        self.sign_until(name, 2100)
    }

    fn sign_until(&self, name: &str, year: i32) -> Signed {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Signed { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A certificate that nobody signed but itself, as `openssl req -x509` makes them.
fn self_signed(name: &str) -> Signed {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Signed { certificate: certificate.pem(), key: key.serialize_pem() }
}

/// A server of the name `localhost`, its authority in a file, and another authority that did not
/// sign it in another.
struct Place {
    server: Postgres,
    authority: Authority,
    files: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let authority = Authority::new("ours");
        let server = Postgres::start_encrypted(authority.sign("localhost").encryption()).unwrap();
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("ours.pem"), &authority.pem).unwrap();
        std::fs::write(files.path().join("other.pem"), Authority::new("other").pem).unwrap();
        Self { server, authority, files }
    }

    /// Its URL by a name, and with more of a query, in which `{}` is the folder of the files.
    fn url(&self, host: &str, query: &str) -> String {
        url(&self.server, self.files.path(), host, query)
    }

    fn options(&self, host: &str, query: &str) -> PostgresOptions {
        PostgresOptions { writers: 1, readers: 1, ..fresh(&self.url(host, query)) }
    }
}

fn url(server: &Postgres, files: &Path, host: &str, query: &str) -> String {
    let query = query.replace("{}", &files.display().to_string());
    format!("postgres://postgres@{host}:{}/postgres?{query}", server.port())
}

/// Opens a journal, writes and reads with it.
async fn works(options: &PostgresOptions) -> Result<Arc<PostgresJournal>, JournalError> {
    let journal = PostgresJournal::open(options.clone(), JournalSettings::default()).await?;
    let appended = journal.append(&topic(), batch()).await?;
    let page = journal.read(&topic(), Offset::ZERO, PageLimit::default()).await?;
    assert_eq!((page.events.len(), page.head), (1, appended.head));
    Ok(journal)
}

async fn refused(options: &PostgresOptions) -> String {
    match works(options).await {
        Err(JournalError::Broken(what)) => what,
        other => panic!("{:?} was to be refused and gave {other:?}", options.url),
    }
}

/// Broken on purpose: with the mode that is sent always `prefer`, a server without TLS is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mode_that_asks_for_tls_gets_it_for_every_connection() {
    let place = Place::new();
    for (host, query) in [
        ("127.0.0.1", ""),
        ("127.0.0.1", "sslmode=prefer"),
        ("127.0.0.1", "sslmode=require"),
        ("127.0.0.1", "sslmode=require&sslrootcert={}/ours.pem"),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert={}/ours.pem"),
        ("localhost", "sslmode=verify-full&sslrootcert={}/ours.pem"),
        // The name is checked that the URL has, wherever that leads.
        ("localhost", "sslmode=verify-full&sslrootcert={}/ours.pem&hostaddr=127.0.0.1"),
    ] {
        let journal = works(&place.options(host, query)).await.unwrap_or_else(|error| {
            panic!("{host} {query}: {error}");
        });
        let counted = place.server.ask(
            "SELECT count(*) > 2 AND bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity \
             USING (pid) WHERE application_name = 'tidings'",
        );
        assert_eq!(counted.unwrap(), "t", "{host} {query}");
        journal.close().await;
    }
    let plain = refused(&place.options("127.0.0.1", "sslmode=disable")).await;
    assert!(plain.contains("no encryption"), "{plain}");
    let without_tls = Postgres::shared().unwrap();
    let require = fresh(&format!("{}?sslmode=require", without_tls.url()));
    let told = works(&require).await.unwrap_err().to_string();
    assert!(told.contains("does not support TLS"), "{told}");
}

/// Broken on purpose: without the look at the chain in `Verifier`, and without that at the name; and
/// when `sslrootcert` counts with `verify-full` alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_name_or_authority_or_time_is_refused_and_says_why() {
    let mut place = Place::new();
    let full = "sslmode=verify-full&sslrootcert={}/ours.pem";
    let told = refused(&place.options("127.0.0.1", full)).await;
    assert!(told.contains("certificate is refused"), "{told}");
    assert!(told.contains("127.0.0.1") && told.contains("localhost"), "{told}");
    assert!(told.contains("connect by a name that it has"), "{told}");
    for mode in ["prefer", "require", "verify-ca", "verify-full"] {
        let query = format!("sslmode={mode}&sslrootcert={{}}/other.pem");
        let told = refused(&place.options("localhost", &query)).await;
        assert!(told.contains("UnknownIssuer"), "{mode}: {told}");
        assert!(told.contains("name the file of its authority by sslrootcert"), "{mode}: {told}");
    }
    // The machine's authorities did not sign it either.
    if let Err(error) = works(&place.options("localhost", "sslmode=verify-full")).await {
        assert!(matches!(error, JournalError::Broken(_)), "{error}");
    } else {
        panic!("any certificate is taken");
    }
    let expired = place.authority.sign_until("localhost", 2001);
    place.server.kill().unwrap();
    place.server.encrypt(expired.encryption()).unwrap();
    place.server.restart().unwrap();
    let told = refused(&place.options("localhost", full)).await;
    assert!(told.contains("expired") && told.contains("renew it"), "{told}");
}

/// libpq takes a server's own certificate as its authority, which people make with one command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_its_own_authority_is_trusted_where_it_is_named() {
    let own = self_signed("localhost");
    let server = Postgres::start_encrypted(own.encryption()).unwrap();
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("own.pem"), &own.certificate).unwrap();
    let other = self_signed("localhost");
    std::fs::write(files.path().join("other.pem"), &other.certificate).unwrap();
    let options = |host: &str, query: &str| fresh(&url(&server, files.path(), host, query));
    let ca = "sslmode=verify-ca&sslrootcert={}/own.pem";
    let full = "sslmode=verify-full&sslrootcert={}/own.pem";
    works(&options("127.0.0.1", ca)).await.unwrap();
    works(&options("localhost", full)).await.unwrap();
    assert!(refused(&options("127.0.0.1", full)).await.contains("not valid for name"));
    let told = refused(&options("localhost", &full.replace("own.pem", "other.pem"))).await;
    assert!(told.contains("certificate is refused"), "{told}");
}

/// The server is another one for a while: nobody talks to it, and nobody falls back to plain text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_as_another_is_not_talked_to_until_it_is_itself() {
    let mut place = Place::new();
    let options = place.options("localhost", "sslmode=verify-full&sslrootcert={}/ours.pem");
    let journal = works(&options).await.unwrap();
    let failure = |journal: &Arc<PostgresJournal>, holds: fn(Option<String>) -> bool| {
        let journal = Arc::clone(journal);
        move || holds(journal.failure())
    };
    place.server.kill().unwrap();
    place.server.encrypt(Authority::new("thief").sign("localhost").encryption()).unwrap();
    place.server.restart().unwrap();
    let is_refused = |told: Option<String>| told.is_some_and(|told| told.contains("UnknownIssuer"));
    wait_for("the refusal", failure(&journal, is_refused)).await;
    assert!(matches!(
        journal.append(&topic(), batch()).await,
        Err(JournalError::Unavailable(_) | JournalError::Broken(_))
    ));
    place.server.kill().unwrap();
    place.server.encrypt(place.authority.sign("localhost").encryption()).unwrap();
    place.server.restart().unwrap();
    wait_for("the recovery", failure(&journal, |told| told.is_none())).await;
    let appended = journal.append(&topic(), batch()).await.unwrap();
    assert_eq!(appended.head.tail, Offset(3));
}

/// `listen_url` is another server's, or the same by another way: it has a TLS of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_listens_has_a_url_and_a_tls_of_its_own() {
    let place = Place::new();
    let says = place.options("localhost", "sslmode=require");
    let listen = |query: &str| Some(place.url("localhost", query));
    let full = listen("sslmode=verify-full&sslrootcert={}/ours.pem&application_name=ears");
    let options = PostgresOptions { listen_url: full, ..says.clone() };
    let codec = || Codec::new(&Secret::new("0123456789abcdef0123456789abcdef"));
    let one = PostgresBus::open(&options, codec()).await.unwrap();
    let other = PostgresBus::open(&options, codec()).await.unwrap();
    other.follow(&topic());
    assert_eq!(other.heard().await, Heard::Missed(Some(topic())));
    let changed = Announcement::Changed { topic: topic() };
    one.announce(changed.clone());
    let heard = timeout(PATIENCE, other.heard()).await.unwrap();
    assert_eq!(heard, Heard::Announced(changed));
    let ears = "SELECT count(*) = 2 AND bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity \
                USING (pid) WHERE application_name = 'ears'";
    assert_eq!(place.server.ask(ears).unwrap(), "t");
    let wrong = listen("sslmode=verify-full&sslrootcert={}/other.pem");
    let told = PostgresBus::open(&PostgresOptions { listen_url: wrong, ..says }, codec()).await;
    let told = told.unwrap_err().to_string();
    assert!(told.contains("to listen") && told.contains("UnknownIssuer"), "{told}");
    one.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_a_certificate_is_shown_one() {
    let authority = Authority::new("ours");
    let (server, client) = (authority.sign("localhost"), authority.sign("hub"));
    let server = Postgres::start_encrypted(Encryption {
        clients_authority: Some(&authority.pem),
        ..server.encryption()
    });
    let server = server.unwrap();
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(files.path().join(name), text).unwrap();
    write("ours.pem", &authority.pem);
    write("hub.pem", &client.certificate);
    write("hub.key", &client.key);
    let full = "sslmode=verify-full&sslrootcert={}/ours.pem";
    let shown = format!("{full}&sslcert={{}}/hub.pem&sslkey={{}}/hub.key");
    works(&fresh(&url(&server, files.path(), "localhost", &shown))).await.unwrap();
    let told = refused(&fresh(&url(&server, files.path(), "localhost", full))).await;
    assert!(told.contains("client certificate"), "{told}");
}

/// Whoever passes a password on from in between is found out: SCRAM is bound to the channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_bound_to_the_channel() {
    let place = Place::new();
    place.server.ask("CREATE ROLE scram LOGIN SUPERUSER PASSWORD 'secret'").unwrap();
    let query = "sslmode=verify-full&sslrootcert={}/ours.pem&channel_binding=require";
    let as_role = |password: &str| {
        let url = place.url("localhost", query);
        fresh(&url.replace("postgres@", &format!("scram:{password}@")))
    };
    works(&as_role("secret")).await.unwrap();
    let told = refused(&as_role("wrong")).await;
    assert!(told.contains("password authentication failed") && !told.contains("wrong"), "{told}");
}
