//! What only PostgreSQL has: roles, versions of tables, TLS. Where there is no database the tests say so loudly (see `conformance`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslAcceptor, SslMethod, SslVerifyMode};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::tls::Mode;
use super::*;
use crate::catalog_commit::conformance::{TestSchema, commit, conforms, group, partition, ranges, row};
use crate::fault::chain;

/// A role of one test, without any right.
struct Role {
    name: String,
    config: Config,
    owner: postgres::Client,
}

impl Role {
    fn new(schema: &TestSchema) -> Role {
        let mut owner = schema.client();
        // Roles belong to the whole server: a name that would not do unquoted shows that it is quoted.
        let name = format!("{}-runs", schema.config.schema);
        owner.batch_execute(&format!("CREATE ROLE \"{name}\" LOGIN")).unwrap();
        let separator = if schema.config.url.reveal().contains('?') { '&' } else { '?' };
        let url = Secret::new(format!("{}{separator}user={name}", schema.config.url.reveal()));
        Role { config: Config { url, ..schema.config.clone() }, name, owner }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.owner.batch_execute(&format!("DROP OWNED BY \"{0}\"; DROP ROLE \"{0}\"", self.name));
    }
}

#[test]
fn a_role_with_the_documented_grants_conforms_and_can_do_nothing_else() {
    let Some(schema) = TestSchema::new() else { return };
    let role = Role::new(&schema);
    let before = PostgresCatalog::migrate(&schema.config, Some(&role.name)).unwrap();
    assert_eq!(before, (0, MIGRATIONS.len() as u32));
    conforms(&mut |_| Box::new(PostgresCatalog::open(&role.config).unwrap()));
    let mut client = postgres::Client::connect(role.config.url.reveal(), postgres::NoTls).unwrap();
    client.batch_execute(&format!("SET search_path = {}, public", schema.config.schema)).unwrap();
    let forbidden = [
        "DROP TABLE files",
        "DROP VIEW complete_through",
        "ALTER TABLE coverage DROP CONSTRAINT coverage_partition_id_offsets_excl",
        "ALTER TABLE files ADD COLUMN mine int",
        "CREATE TABLE mine (number int)",
        "TRUNCATE coverage",
        "UPDATE coverage SET stored = 0",
        "UPDATE commits SET digest = ''",
        "UPDATE commits SET state = 'registered'",
        "DELETE FROM commits",
        "UPDATE files SET rows = 0",
        "UPDATE files SET path = ''",
        "UPDATE partitions SET topic = ''",
        "DELETE FROM partitions",
        "DELETE FROM topics",
        "UPDATE migrations SET version = 9",
        "INSERT INTO migrations VALUES (9)",
    ];
    for statement in forbidden {
        let error = client.batch_execute(statement).expect_err(statement);
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}: {error:?}");
    }
}

#[test]
fn a_role_that_may_not_migrate_is_told_what_to_do() {
    let Some(schema) = TestSchema::new() else { return };
    let role = Role::new(&schema);
    PostgresCatalog::migrate(&schema.config, Some(&role.name)).unwrap();
    drop(PostgresCatalog::open(&role.config).unwrap());
    schema.client().batch_execute("DELETE FROM migrations WHERE version > 1").unwrap();
    let refused = PostgresCatalog::open(&role.config).err().expect("tables are too old");
    assert!(matches!(&refused, Error::NotMigrated { found: 1, .. }) && !refused.is_retriable(), "{refused:?}");
    assert!(refused.to_string().contains("`openwit-ingest migrate`"), "{refused}");
}

#[test]
fn documented_grants_are_the_ones_that_are_made() {
    let docs = include_str!("../../../docs/catalog.md");
    for grant in GRANTS.lines().filter(|line| line.starts_with("GRANT")) {
        let shown = grant.replace("{schema}", "openwit").replace("{role}", "openwit_run");
        assert!(docs.contains(&shown), "docs/catalog.md lacks: {shown}");
    }
}

#[test]
fn processes_that_start_at_once_migrate_once() {
    let Some(schema) = TestSchema::new() else { return };
    let start = std::sync::Barrier::new(6);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                start.wait();
                drop(PostgresCatalog::open(&schema.config).unwrap());
            });
        }
    });
    let row = schema.client().query_one("SELECT count(*), max(version) FROM migrations", &[]).unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i32>(1)), (MIGRATIONS.len() as i64, MIGRATIONS.len() as i32));
}

#[test]
fn a_node_stopped_in_the_middle_of_a_commit_holds_nobody_up_for_longer_than_a_lock_is_waited_for() {
    let Some(schema) = TestSchema::new() else { return };
    let (stopped, other) = (schema.open(), schema.open());
    let traces = group("orders", crate::batch::Signal::Traces);
    let orders = [0..10, 10..20].map(|range| vec![row(&partition("orders", 0), range)]);
    let mut client = stopped.connect().unwrap();
    let mut transaction = client.transaction().unwrap();
    commit_in(&mut transaction, &commit(1, &traces, &[1], orders[0].clone())).unwrap();
    // Not one failed attempt: the server takes the locks back before the wait for them is given up.
    other.commit(&commit(2, &traces, &[1], orders[1].clone())).unwrap();
    assert_eq!(ranges(&other, &partition("orders", 0)), [10..20]);
    // Its commit is gone, and can be repeated.
    let error = failed("commit")(transaction.commit().expect_err("it was rolled back"));
    assert!(error.is_retriable(), "{error:?}");
    stopped.commit(&commit(1, &traces, &[1], orders[0].clone())).unwrap();
    assert_eq!(ranges(&other, &partition("orders", 0)), [0..20]);
}

#[test]
fn tables_of_the_first_version_are_brought_to_this_one_with_what_they_hold() {
    let Some(schema) = TestSchema::new() else { return };
    let mut client = schema.client();
    let first = format!(
        "CREATE SCHEMA {0}; SET search_path = {0}, public; CREATE TABLE migrations (version int PRIMARY KEY); {1} \
         INSERT INTO migrations VALUES (1); INSERT INTO partitions (cluster, topic, topic_id, partition) VALUES ('c', 'orders', '', 0); \
         INSERT INTO coverage SELECT id, '[5,10)', 5, 0, 0, 0, 0, 7 FROM partitions; \
         INSERT INTO commits VALUES ('01ARZ3NDEKTSV4RRFFQ69G5FAV', '', 'orders', 'traces', 'node'); \
         INSERT INTO files VALUES ('01ARZ3NDEKTSV4RRFFQ69G5FAW', '01ARZ3NDEKTSV4RRFFQ69G5FAV', 'orders', 'traces', 'node', 'p', 1, 7, 8, 1, 2, 'h')",
        schema.config.schema, MIGRATIONS[0]
    );
    client.batch_execute(&first).unwrap();
    let catalog = schema.open();
    let files = catalog.files(&FileFilter::default()).unwrap();
    assert_eq!(files.iter().map(|file| (file.rows, file.schema_version, &file.uri)).collect::<Vec<_>>(), [(7, 0, &None)]);
    let complete = catalog.complete_through().unwrap()[&partition("orders", 0)];
    assert_eq!(complete, CompleteThrough { start: 5, offset: 10, kafka_time_max_ms: None });
    assert_eq!(catalog.standing(files[0].commit_id).unwrap(), Standing::Registered);
    let next = commit(1, &group("orders", Signal::Traces), &[1], vec![row(&partition("orders", 0), 10..20)]);
    assert_eq!(catalog.commit(&next).unwrap(), Committed::New);
    assert_eq!(ranges(&catalog, &partition("orders", 0)), [5..20]);
}

#[test]
fn the_pool_serves_callers_at_once_and_keeps_no_more_than_it_says() {
    let Some(schema) = TestSchema::new() else { return };
    let catalog = schema.open();
    std::thread::scope(|scope| {
        for caller in 0..5u64 {
            let catalog = &catalog;
            scope.spawn(move || {
                for step in 0..10 {
                    let partition = partition("orders", caller as i32);
                    let range = step * 10..step * 10 + 10;
                    let commit =
                        commit(caller * 100 + step as u64, &group("orders", Signal::Traces), &[1], vec![row(&partition, range)]);
                    assert_eq!(catalog.commit(&commit).unwrap(), Committed::New);
                }
            });
        }
    });
    assert_eq!(catalog.coverage().unwrap().len(), 5);
    assert!((1..=IDLE_MAX).contains(&catalog.idle().len()));
}

// ------------------------------------------------------------------------------------------------------------------- TLS

/// An authority, and certificates of it as files.
struct Authority {
    folder: tempfile::TempDir,
    certificate: X509,
    key: PKey<Private>,
}

fn certificate(name: &str, key: &PKey<Private>, issuer: Option<(&X509, &PKey<Private>)>) -> X509 {
    let mut subject = X509Name::builder().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(issuer.map_or(&subject, |(issuer, _)| issuer.subject_name())).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    if issuer.is_none() {
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    } else {
        let context = builder.x509v3_context(issuer.map(|(issuer, _)| &**issuer), None);
        let names = SubjectAlternativeName::new().dns(name).build(&context).unwrap();
        builder.append_extension(names).unwrap();
    }
    builder.sign(issuer.map_or(key, |(_, key)| key), MessageDigest::sha256()).unwrap();
    builder.build()
}

impl Authority {
    fn new() -> Authority {
        let key = PKey::ec_gen("prime256v1").unwrap();
        let certificate = certificate("the authority", &key, None);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.to_pem().unwrap()).unwrap();
        Authority { folder, certificate, key }
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Certificate and key of `name`.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = PKey::ec_gen("prime256v1").unwrap();
        let certificate = certificate(name, &key, Some((&self.certificate, &self.key)));
        let paths = ["pem", "key"].map(|kind| self.folder.path().join(format!("{name}.{kind}")));
        std::fs::write(&paths[0], certificate.to_pem().unwrap()).unwrap();
        std::fs::write(&paths[1], key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        let [certificate, key] = paths;
        (certificate, key)
    }

    /// What a server of `localhost` shows; it may want a certificate of the client.
    fn acceptor(&self, wants_client: bool) -> SslAcceptor {
        let (certificate, key) = self.issue("localhost");
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        builder.set_certificate_chain_file(certificate).unwrap();
        builder.set_private_key_file(key, openssl::ssl::SslFiletype::PEM).unwrap();
        if wants_client {
            let mut store = X509StoreBuilder::new().unwrap();
            store.add_cert(self.certificate.clone()).unwrap();
            builder.set_verify_cert_store(store.build()).unwrap();
            builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        }
        builder.build()
    }
}

/// A door to PostgreSQL that speaks its TLS and refuses plain text, as a server with `hostssl` alone does. Counts who came in.
struct Door {
    port: u16,
    entered: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Door {
    fn open(acceptor: SslAcceptor, server: String) -> Door {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let (port, entered) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let count = entered.clone();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(Self::let_in(socket, acceptor.clone(), server.clone(), count.clone()));
            }
        });
        Door { port, entered, _runtime: runtime }
    }

    async fn let_in(mut socket: tokio::net::TcpStream, acceptor: SslAcceptor, server: String, count: Arc<AtomicUsize>) {
        let mut request = [0; 8];
        // Length 8 and the code of SSLRequest; anything else is a client that speaks plain text.
        if socket.read_exact(&mut request).await.is_err() || request != [0, 0, 0, 8, 4, 210, 22, 47] {
            return;
        }
        socket.write_all(b"S").await.unwrap();
        let mut stream = tokio_openssl::SslStream::new(Ssl::new(acceptor.context()).unwrap(), socket).unwrap();
        if std::pin::Pin::new(&mut stream).accept().await.is_err() {
            return;
        }
        count.fetch_add(1, Ordering::Relaxed);
        let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
    }
}

/// The port of a server that answers the question for TLS with no.
fn server_without_tls() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut request = [0; 8];
            // A client that goes away is its own affair.
            let _ =
                std::io::Read::read_exact(&mut socket, &mut request).and_then(|()| std::io::Write::write_all(&mut socket, b"N"));
        }
    });
    port
}

/// The server's own TLS, where `scripts/services` has started it: its certificate is for 127.0.0.1, and the role `openwit` is let in
/// only with the client's certificate.
#[test]
fn the_servers_own_tls_is_checked_and_a_clients_certificate_logs_in() {
    let Some(schema) = TestSchema::new() else { return };
    let (Ok(folder), Ok(by_certificate)) =
        (std::env::var("OPENWIT_TEST_TLS"), std::env::var("OPENWIT_TEST_POSTGRES_CERTIFICATE"))
    else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "OPENWIT_TEST_TLS must be set under CI");
        eprintln!("\n*** NOT RUN: start PostgreSQL by scripts/services to test its own TLS ***\n");
        return;
    };
    let file = |name: &str| Path::new(&folder).join(name);
    let checked = |ca: &str| Tls { mode: Mode::VerifyFull, ca: Some(file(ca)), ..Tls::default() };
    let own = Config { schema: format!("{}_own", schema.config.schema), ..schema.config.clone() };
    let open = |url: &str, tls: Tls| PostgresCatalog::open(&Config { url: Secret::new(url), tls, ..own.clone() });
    let refused = |url: &str, tls: Tls| chain(&open(url, tls).err().expect("it is refused"));
    let url = own.url.reveal();

    let wrong_authority = refused(url, checked("stranger.pem"));
    let helps = |said: &str| said.contains("metastore.tls.ca_location must hold") && said.contains("certificate verify failed");
    assert!(helps(&wrong_authority), "{wrong_authority}");
    let other_name = refused(&url.replace("127.0.0.1", "localhost"), checked("ca.pem"));
    assert!(helps(&other_name), "{other_name}");
    let unknown = refused(&by_certificate, checked("ca.pem"));
    assert!(unknown.contains("certificate"), "{unknown}");
    let in_the_clear = refused(&by_certificate, Tls { mode: Mode::Disable, ..Tls::default() });
    assert!(in_the_clear.contains("pg_hba.conf"), "{in_the_clear}");

    let client = Tls { certificate: Some(file("client.pem")), key: Some(file("client-key.pem")), ..checked("ca.pem") };
    let catalog = open(&by_certificate, client).unwrap();
    let mine =
        "SELECT s.ssl, a.usename::text FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE pid = pg_backend_pid()";
    let row = catalog.with(|client| client.query_one(mine, &[]).map_err(failed("ask for the connection"))).unwrap();
    assert_eq!((row.get(0), row.get(1)), (true, "openwit"));
    assert!(open(url, checked("ca.pem")).is_ok());
    schema.client().batch_execute(&format!("DROP SCHEMA {} CASCADE", own.schema)).unwrap();
}

#[test]
fn connections_are_encrypted_and_the_server_checked_as_the_mode_says() {
    let Some(schema) = TestSchema::new() else { return };
    let real: postgres::Config = schema.config.url.reveal().parse().unwrap();
    let (postgres::config::Host::Tcp(host), port) = (&real.get_hosts()[0], real.get_ports()[0]) else { panic!("a TCP host") };
    let server = format!("{host}:{port}");
    let (authority, stranger) = (Authority::new(), Authority::new());
    let door = Door::open(authority.acceptor(false), server.clone());
    let strict = Door::open(authority.acceptor(true), server);
    let (certificate, key) = authority.issue("client");
    let base = format!(
        "user={} dbname={} hostaddr=127.0.0.1",
        real.get_user().unwrap_or("postgres"),
        real.get_dbname().unwrap_or("postgres")
    );
    let tls = |mode, ca: Option<&Path>| Tls { mode, ca: ca.map(Path::to_path_buf), ..Tls::default() };
    let (ours, theirs) = (authority.ca(), stranger.ca());
    let with_client = Tls { certificate: Some(certificate), key: Some(key), ..tls(Mode::VerifyFull, Some(&ours)) };
    // (where, the name it is asked by, how, expected to be let in encrypted)
    let cases = [
        (door.port, "localhost", tls(Mode::VerifyFull, Some(&ours)), true),
        (door.port, "127.0.0.1", tls(Mode::VerifyFull, Some(&ours)), false),
        (door.port, "localhost", tls(Mode::VerifyFull, Some(&theirs)), false),
        (door.port, "localhost", tls(Mode::VerifyFull, None), false),
        (door.port, "127.0.0.1", tls(Mode::Require, None), true),
        (door.port, "127.0.0.1", tls(Mode::Prefer, None), true),
        (door.port, "localhost", tls(Mode::Disable, None), false),
        (strict.port, "localhost", tls(Mode::VerifyFull, Some(&ours)), false),
        (strict.port, "localhost", with_client, true),
    ];
    for (number, (port, name, tls, expected)) in cases.into_iter().enumerate() {
        let count = || door.entered.load(Ordering::Relaxed) + strict.entered.load(Ordering::Relaxed);
        let before = count();
        let url = Secret::new(format!("{base} host={name} port={port}"));
        let opened = PostgresCatalog::open(&Config { url, tls: tls.clone(), ..schema.config.clone() });
        assert_eq!(opened.is_ok(), expected, "case {number}: {name} {tls:?}: {:?}", opened.err());
        assert!(!expected || count() > before, "case {number} was not encrypted");
    }
    let port = server_without_tls();
    for mode in [Mode::Require, Mode::VerifyFull] {
        let url = Secret::new(format!("{base} host=localhost port={port}"));
        let error = PostgresCatalog::open(&Config { url, tls: tls(mode, None), ..schema.config.clone() }).err();
        assert!(matches!(error, Some(Error::Encryption { .. })), "{error:?}");
    }
    let missing = tls(Mode::VerifyFull, Some(Path::new("/nonexistent/root.pem")));
    let error = PostgresCatalog::open(&Config { tls: missing, ..schema.config.clone() }).err().expect("no such file");
    assert!(error.to_string().contains("/nonexistent/root.pem") && !error.is_retriable(), "{error}");
}
