//! The long-term log in a real S3 bucket: copies in one part and in several come back as they were logged.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openwit_operators::batch::{Arena, Group, NormalizedBatch, Record, Signal, Span};
use openwit_operators::budget::Charge;
use openwit_operators::coverage::{Coverage, PartitionKey, TopicKey};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::Health;
use openwit_operators::object_upload::{ObjectStore, S3, Secret};
use openwit_operators::wal_commit::long_term::read::{Frames, Selection};
use openwit_operators::wal_commit::long_term::shelf::{Shelf, Store};
use openwit_operators::wal_commit::{Config, Job, Log, Logged, Writer, long_term};

use super::setup::service;
use crate::support::binary::{PATIENCE, openwit};
use crate::support::random::Random;
use crate::support::wait;

const TEST: &str = "copies_in_a_bucket_come_back_as_they_were_logged_and_expire";
const START: u64 = 1_790_000_000_000;

fn bucket() -> Option<ObjectStore> {
    let unique = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    Some(ObjectStore::S3(S3 {
        bucket: service(TEST, "OPENWIT_TEST_S3_BUCKET")?,
        root: format!("long-term-{unique}"),
        endpoint: Some(service(TEST, "OPENWIT_TEST_S3_ENDPOINT")?),
        region: Some("us-east-1".into()),
        access_key_id: Some(Secret::new(service(TEST, "AWS_ACCESS_KEY_ID")?)),
        secret_access_key: Some(Secret::new(service(TEST, "AWS_SECRET_ACCESS_KEY")?)),
        virtual_host_style: false,
    }))
}

/// A batch of one record that zstd cannot make smaller.
fn batch(offset: i64, bytes: usize, random: &mut Random) -> NormalizedBatch {
    let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
    let partition = PartitionKey { topic: Arc::new(topic), partition: 0 };
    let payload = Span { start: 0, len: bytes as u32 };
    NormalizedBatch {
        group: Group { index: "shop".into(), signal: Signal::Traces },
        coverage: Coverage::stored(partition, offset..offset + 1),
        raw: (0..bytes.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).collect::<Vec<_>>().into(),
        written: vec![].into(),
        records: vec![Record { offset, timestamp_ms: START as i64, key: offset as u128, arena: Arena::Raw, payload, tenant: 0 }],
        schema: None,
        tenants: Vec::new(),
        charge: Charge::default(),
    }
}

#[test]
fn copies_in_a_bucket_come_back_as_they_were_logged_and_expire() {
    let Some(store) = bucket() else { return };
    let mut random = Random::for_test(TEST);
    let folder = tempfile::tempdir().unwrap();
    let cleanup = long_term::Cleanup { interval: Duration::from_millis(200), retention_ms: 3_600_000, bytes_max: 1 << 40 };
    let long_term =
        long_term::Config { store: store.clone(), node: "node-1".into(), compression_level: 1, cleanup: Some(cleanup) };
    let config = Config { segment_bytes: 24 << 20, long_term: Some(long_term), ..Config::new(folder.path()) };
    let writer = Writer::spawn(Log::open(config, Epoch(START)).unwrap().0, Health::default()).unwrap();
    let port = writer.port(|| {});
    let mut logged = Vec::new();
    let mut append = |epoch: u64, bytes: usize| {
        let batch = batch(logged.len() as i64, bytes, &mut random);
        logged.push(batch.raw.clone());
        port.append(Job { ticket: 0, batches: vec![(Epoch(epoch), batch.into())] });
        port.receiver().recv_timeout(PATIENCE).unwrap();
    };
    // Twenty MiB are uploaded in three parts; the larger frames each end the segment before.
    (0..20).for_each(|number| append(START + number, 1 << 20));
    append(START + 20, 23 << 20);
    append(START + 21, 23 << 20);
    wait::until("copies of all sealed segments", PATIENCE, || {
        let stats = writer.stats();
        stats.segments_uncopied == 0 && stats.long_term.copied == 2
    });
    let shelf: Arc<dyn Shelf> = Arc::new(Store::open(&store).unwrap());
    let frames = Frames::open(shelf.clone(), Selection::default()).unwrap().map(|frame| match frame.unwrap().batch {
        Logged::Normalized(batch) => batch.raw,
        batch => panic!("messages as they came: {batch:?}"),
    });
    let found: Vec<_> = frames.collect();
    assert!(logged.starts_with(&found) && found.len() == 21, "{} of {}", found.len(), logged.len());
    // The commands find them by the configuration.
    let set = |key: &str, value: &str| ["--set".to_owned(), format!("processing.wal.long_term.object_store.{key}={value}")];
    let ObjectStore::S3(s3) = &store else { return };
    let mut words = vec!["long-term".to_owned(), "--json".into(), "--config".into(), "config/standalone.yaml".into()];
    words.extend(set("scheme", "s3"));
    words.extend(set("bucket", &s3.bucket));
    words.extend(set("prefix", &s3.root));
    words.extend(set("endpoint", s3.endpoint.as_deref().unwrap_or_default()));
    let wal = |command: &str| {
        let words = ["wal", command].into_iter().chain(words.iter().map(String::as_str));
        openwit(words).expect(0).json()
    };
    assert_eq!(wal("ls").as_array().map(Vec::len), Some(2));
    assert_eq!((&wal("verify")["frames"], &wal("verify")["losses"]), (&21.into(), &0.into()));
    // An hour later, and all published: the copies go.
    writer.release(Epoch(START + 2 * 3_600_000));
    wait::until("the copies to be removed", PATIENCE, || shelf.list().unwrap().is_empty());
    writer.shutdown();
}
