//! Producers' tokens and tenants from a topic to the rows and the dead letter, and tokens that change while a process runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openwit_graphs::process::{self, Control};
use openwit_ingest::commands::audit::{Scope, audit};
use openwit_ingest::config::{Config, TenantSource};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Format;
use openwit_ingest::plan::{Changes, plan};
use openwit_operators::batch::{Reason, Signal};
use openwit_operators::normalize::TenantCount;
use openwit_operators::tenant::Tenant;
use openwit_operators::tokens::{Store, digest};
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tempfile::TempDir;

use super::pipeline::{INDEX, config, load};
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
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.broker.brokers());
        let producer: BaseProducer = client.create().unwrap();
        for token in tokens {
            let payload = format!("{{\"msg\":\"{}\"}}", self.sent);
            self.sent += 1;
            let value = token.map(|token| format!("Bearer {token}"));
            let mut headers = OwnedHeaders::new().insert(Header { key: "origin", value: Some("test") });
            if let Some(value) = &value {
                headers = headers.insert(Header { key: "Authorization", value: Some(value) });
            }
            let record = BaseRecord::<[u8], str>::to(&self.topic).partition(0).payload(&payload).headers(headers);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    }
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
    let store = plan.ingest.as_ref().and_then(|ingest| ingest.tokens.as_ref()).unwrap().store.clone();
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
    let mut stored: Vec<i64> = lake::rows(&setup.config.storage.object_store.root).iter().map(|row| row.place.offset).collect();
    stored.sort_unstable();
    assert_eq!(stored, [0, 4, 5, 6, 7, 9]);
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
