//! Compressed payloads, several records a message and CloudEvents, from a topic to the rows and the dead letter.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Format;
use openwit_operators::batch::Signal;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tempfile::TempDir;

use super::pipeline::{INDEX, config, load, run_to_the_end};
use crate::support::lake;

const PATIENCE: Duration = Duration::from_secs(60);

fn gzip(payload: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(payload).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn framed_and_compressed_messages_become_their_rows_once_and_hostile_ones_keep_their_bytes() {
    let load = load(&format!("v6.qtw.logs.{INDEX}.eu"), Signal::Logs, Format::Json);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    broker.create_topic(&load.topics[0]).unwrap();
    let mut config = config(&broker, &load, &folder);
    config.ingestion.limits.decompressed_bytes_max = Some(64 << 10);

    let (lines, array) = (&b"{\"msg\":\"a\"}\n{\"msg\":\"b\"}\n\n{\"msg\":\"c\"}"[..], &b"[{\"msg\":\"d\"},{\"msg\":\"e\"}]"[..]);
    let event = br#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"msg":"f"}}"#;
    let bomb = gzip(&vec![b' '; 10 << 20]);
    let torn = gzip(lines).split_off(12);
    let messages: [(Vec<u8>, Option<(&str, &str)>, usize); 9] = [
        (lines.to_vec(), None, 3),
        (zstd::encode_all(lines, 3).unwrap(), None, 0),
        (gzip(array), Some(("content-encoding", "gzip")), 2),
        (zstd::encode_all(array, 3).unwrap(), Some(("Content-Encoding", "ZSTD")), 0),
        (event.to_vec(), Some(("content-type", "application/cloudevents+json")), 1),
        (bomb, None, 0),
        (torn, Some(("content-encoding", "gzip")), 0),
        (b"{\"msg\":\"g\"}\n{\"msg\":}".to_vec(), None, 0),
        (b"{\"msg\":\"h\"}".to_vec(), None, 1),
    ];
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", broker.brokers()).create().unwrap();
    for (payload, header, _) in &messages {
        let headers =
            header.iter().fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }));
        let record = BaseRecord::<[u8], [u8]>::to(&load.topics[0].name).partition(0).payload(payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    run_to_the_end(&config, 2);

    let mut rows: BTreeMap<i64, BTreeSet<i32>> = BTreeMap::new();
    let mut contents = BTreeSet::new();
    for row in lake::rows(&config.storage.object_store.root) {
        assert!(rows.entry(row.place.offset).or_default().insert(row.ordinal), "{row:?} is stored twice");
        assert!(contents.insert(row.content), "{row:?} is the duplicate of another");
    }
    let expected = (0..).zip(&messages).filter(|(_, (_, _, rows))| *rows > 0);
    assert_eq!(rows, expected.map(|(offset, (_, _, rows))| (offset, (0..*rows as i32).collect())).collect());

    let letters = lake::letters(config.ingestion.kafka.dead_letter.directory.as_ref().unwrap());
    let mut reasons = BTreeMap::new();
    for letter in letters {
        assert_eq!(letter.payload().as_ref(), Some(&messages[letter.offset as usize].0), "the bytes as they came");
        reasons.insert(letter.offset, (letter.reason, letter.detail));
    }
    let found: Vec<(i64, &str)> = reasons.iter().map(|(offset, (reason, _))| (*offset, reason.as_str())).collect();
    assert_eq!(found, [(5, "too_large"), (6, "malformed"), (7, "malformed")], "{reasons:?}");
    assert!(reasons[&7].1.ends_with("at line 2"), "{reasons:?}");
}
