//! Producers' tokens and tenants from a topic to the rows and the dead letter, and tokens that change while a process runs.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openwit_graphs::process::{self, Control};
use openwit_ingest::commands::audit::{Scope, audit};
use openwit_ingest::config::{Config, Graph, TenantSource};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Format;
use openwit_ingest::plan::{Changes, Input, Output, plan, replay_plan};
use openwit_operators::batch::{Reason, Signal};
use openwit_operators::frame_source;
use openwit_operators::normalize::TenantCount;
use openwit_operators::tenant::Tenant;
use openwit_operators::tokens::{Store, digest};
use openwit_operators::wal_commit::inspect::Source;
use openwit_operators::wal_commit::long_term::read::Selection;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tempfile::TempDir;

use super::pipeline::{INDEX, config, load, run_to_the_end};
use crate::support::binary::Process;
use crate::support::{lake, wait};

const PATIENCE: Duration = Duration::from_secs(60);

const OLD: &str = "owt_old-secret";
const NEW: &str = "owt_new-secret";
const WRONG: &str = "owt_wrong-secret";

struct Setup {
    broker: EmbeddedBroker,
    topic: String,
    folder: TempDir,
    config: Config,
    sent: u64,
}

impl Setup {
    fn new() -> Self {
        let load = load(&format!("v6.qtw.logs.{INDEX}.eu"), Signal::Logs, Format::Json);
        let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
        broker.create_topic(&load.topics[0]).unwrap();
        let mut config = config(&broker, &load, &folder);
        config.ingestion.auth.tokens_file = Some(folder.path().join("tokens.yaml"));
        config.ingestion.auth.reload_interval_ms = 10;
        config.ingestion.tenants.from = TenantSource::Token;
        Setup { broker, topic: load.topics[0].name.clone(), folder, config, sent: 0 }
    }

    fn tokens_file(&self) -> PathBuf {
        self.folder.path().join("tokens.yaml")
    }

    /// Writes the token file: ids with their tokens, each of the tenant of its id.
    fn set_tokens(&self, tokens: &[(&str, &str)]) {
        let mut text = "version: 1\ntokens: []\n".to_owned();
        for (number, (id, token)) in tokens.iter().enumerate() {
            let hash: String = digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
            let entry = format!("  - {{id: {id}, sha256: {hash}, tenant: shop}}\n");
            text = if number == 0 { text.replace(" []\n", "\n") + &entry } else { text + &entry };
        }
        std::fs::write(self.tokens_file(), text).unwrap();
    }

    /// Sends a message of its own with each of these tokens, to partition 0.
    fn send(&mut self, tokens: &[Option<&str>]) {
        let values: Vec<_> = tokens.iter().map(|token| token.map(|token| format!("Bearer {token}"))).collect();
        self.send_with("Authorization", values);
    }

    /// The same with a header of this name and each of these values.
    fn send_with(&mut self, name: &str, values: Vec<Option<String>>) {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.broker.brokers());
        let producer: BaseProducer = client.create().unwrap();
        for value in &values {
            let payload = format!("{{\"msg\":\"{}\"}}", self.sent);
            self.sent += 1;
            let mut headers = OwnedHeaders::new().insert(Header { key: "origin", value: Some("test") });
            if let Some(value) = value {
                headers = headers.insert(Header { key: name, value: Some(value) });
            }
            let record = BaseRecord::<[u8], str>::to(&self.topic).partition(0).payload(&payload).headers(headers);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    }
}

/// Whose the row of each offset is.
fn owners(config: &Config) -> BTreeMap<i64, Option<String>> {
    let mut owners = BTreeMap::new();
    for row in lake::rows(&config.storage.object_store.root) {
        let twice = owners.insert(row.place.offset, row.tenant);
        assert!(twice.is_none(), "offset {} is stored twice", row.place.offset);
    }
    owners
}

fn judged(control: &Control) -> u64 {
    let stats = &control.counters.normalize;
    stats.accepted.load(Ordering::Relaxed) + stats.rejected.load(Ordering::Relaxed)
}

fn accepted(store: &Arc<Store>, id: &str) -> u64 {
    store.accepted().get(id).copied().unwrap_or_default()
}

#[test]
fn producers_are_told_apart_by_tokens_that_change_without_a_restart_and_no_token_is_kept_anywhere() {
    let mut setup = Setup::new();
    setup.set_tokens(&[("old", OLD)]);
    let control = Control::default();
    let plan = plan(&setup.config, &Changes::default(), control.counters.positions.clone()).unwrap();
    let store = plan.graph.as_ref().and_then(|graph| graph.tokens.as_ref()).unwrap().store.clone();
    let running = control.clone();
    let process = std::thread::spawn(move || process::run(&plan, &running));
    let all_judged = |sent: u64| wait::until("every message is judged", PATIENCE, || judged(&control) == sent);
    let read_anew =
        |times: u64| wait::until("the token file is read anew", PATIENCE, || store.reloads.load(Ordering::Relaxed) == times);

    setup.send(&[Some(OLD), Some(WRONG), None, Some(NEW)]);
    all_judged(4);
    // Both are good while producers change over.
    setup.set_tokens(&[("old", OLD), ("new", NEW)]);
    read_anew(1);
    setup.send(&[Some(OLD), Some(NEW)]);
    all_judged(6);
    assert_eq!((accepted(&store, "old"), accepted(&store, "new")), (2, 1));
    // A broken file changes nothing.
    std::fs::write(setup.tokens_file(), "version: 1\ntokens:\n  - id: a/b\n").unwrap();
    wait::until("the broken file is refused", PATIENCE, || store.refused.load(Ordering::Relaxed) == 1);
    setup.send(&[Some(OLD), Some(NEW)]);
    all_judged(8);
    setup.set_tokens(&[("new", NEW)]);
    read_anew(2);
    setup.send(&[Some(OLD), Some(NEW)]);
    all_judged(10);
    control.stop();
    process.join().unwrap().unwrap_or_else(|fault| panic!("{fault}"));

    let stats = &control.counters.normalize;
    assert_eq!(stats.by_reason().into_iter().collect::<Vec<_>>(), [(Reason::Unauthenticated, 4)]);
    let tenants = stats.by_tenant().tenants;
    let bytes = 6 * "{\"msg\":\"0\"}".len() as u64;
    let expected = TenantCount { accepted: 6, accepted_bytes: bytes, ..TenantCount::default() };
    assert_eq!(tenants.into_iter().collect::<Vec<_>>(), [(Tenant::new("shop").unwrap(), expected)]);
    let audited = audit(&setup.config, Scope::Consumed).unwrap_or_else(|failure| panic!("{}", failure.message));
    assert!(audited.clean && audited.lag == 0, "{audited}");
    assert_eq!(owners(&setup.config), BTreeMap::from([0, 4, 5, 6, 7, 9].map(|offset| (offset, Some("shop".to_owned())))));
    let letters = lake::letters(setup.config.ingestion.kafka.dead_letter.directory.as_ref().unwrap());
    let mut rejected: Vec<(i64, &str)> = letters.iter().map(|letter| (letter.offset, &*letter.reason)).collect();
    rejected.sort_unstable();
    assert_eq!(rejected, [1, 2, 3, 8].map(|offset| (offset, "unauthenticated")));
    check_that_nothing_holds_a_token(&setup);
}

/// Looks into every file of the process: log, letters, objects, catalog. In letters headers are in base64.
fn check_that_nothing_holds_a_token(setup: &Setup) {
    let files = lake::files(setup.folder.path(), "");
    assert!(files.iter().any(|path| path.extension().is_some_and(|extension| extension == "ndjson")), "{files:?}");
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        // Three beginnings within the groups of base64.
        for token in [&b"-secret"[..], b"LXNlY3Jld", b"1zZWNyZX", b"tc2VjcmV0"] {
            let holds = bytes.windows(token.len()).any(|window| window == token);
            assert!(!holds, "{} holds {:?}", path.display(), String::from_utf8_lossy(token));
        }
    }
}

#[test]
fn a_broken_token_file_refuses_the_start() {
    let setup = Setup::new();
    let start = || plan(&setup.config, &Changes::default(), Arc::default()).map(|_| ()).unwrap_err();
    assert!(start().contains("tokens.yaml: cannot be read"), "{}", start());
    std::fs::write(setup.tokens_file(), "version: 1\ntokens:\n  - id: a/b\n").unwrap();
    let refused = start();
    assert!(refused.contains("tokens.yaml:3: tokens[0].id") && refused.contains("tokens[0].sha256"), "{refused}");
}

#[test]
fn rows_have_the_tenant_their_message_was_accepted_for_after_a_kill_too_and_again_from_the_log() {
    let mut setup = Setup::new();
    setup.config.ingestion.auth.tokens_file = None;
    setup.config.ingestion.tenants.from = TenantSource::Header;
    // As large as a process wants it that is started in earnest.
    (setup.config.processing.wal.segment_size_bytes, setup.config.processing.wal.max_size_bytes) = (16 << 20, 256 << 20);
    // The log is kept, to be replayed at the end.
    setup.config.wal_cleanup.retention_seconds = 3_600;
    let tenants = ["shop", "cart", "shop", "eu.2", "cart"].map(str::to_owned);
    setup.send_with("openwit-tenant", tenants.iter().cloned().map(Some).collect());

    // An ingest node whose storage is away dies with everything in its log.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut ingest = setup.config.clone();
    ingest.graph = Graph::Ingest;
    ingest.metastore.path = setup.folder.path().join("catalog-of-ingest");
    ingest.storage.endpoints = vec![format!("http://127.0.0.1:{port}")];
    let path = setup.folder.path().join("ingest.yaml");
    std::fs::write(&path, ingest.to_yaml()).unwrap();
    let mut process = Process::start(["run", "--config", &path.display().to_string()]);
    let wal = setup.config.processing.wal.directory.clone();
    let segments = || Source::find(&wal).and_then(|log| log.list()).unwrap_or_default();
    let logged = || segments().iter().map(|segment| segment.records).sum::<u64>();
    let met = wait::until_or_late(PATIENCE, || logged() == 5 || process.has_ended());
    assert!(met && !process.has_ended(), "{} records are in the log, not 5:\n{}", logged(), process.stderr());
    assert!(process.kill());

    // Who takes over knows no tenants: the log does.
    setup.config.ingestion.tenants.from = TenantSource::None;
    setup.send_with("openwit-tenant", vec![Some("late".to_owned())]);
    run_to_the_end(&setup.config, 2);
    let expected: BTreeMap<i64, Option<String>> = (0..).zip(tenants.into_iter().map(Some).chain([None])).collect();
    assert_eq!(owners(&setup.config), expected);

    let elsewhere = TempDir::new().unwrap();
    let embedded = Config::embedded(elsewhere.path());
    let mut other = setup.config.clone();
    other.storage.object_store.root = embedded.storage.object_store.root;
    other.storage.local_directory = embedded.storage.local_directory;
    other.metastore.path = embedded.metastore.path;
    other.processing.wal.directory = embedded.processing.wal.directory;
    let source = Source::find(&wal).unwrap();
    let plan = replay_plan(
        &other,
        2,
        Input::Log(frame_source::Config { source, selection: Selection::default(), is_raw: false }),
        &Output::Published,
    )
    .unwrap();
    process::run(&plan, &Control::default()).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(owners(&other), expected);
}
