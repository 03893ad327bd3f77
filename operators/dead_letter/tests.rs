//! What the dead letter promises: acked letters are whole and there once, also after a crash; originals are kept byte for byte.

use std::io::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;

use super::*;
use crate::batch::{RawRecord, Reason, Span, push_header};
use crate::coverage::{PartitionKey, TopicKey};

fn reject(offset: i64) -> Reject {
    let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
    let mut arena = Vec::new();
    arena.extend_from_slice(b"key\xffpay\0load");
    push_header(&mut arena, b"h", Some(b"\x01\x02"));
    push_header(&mut arena, b"none", None);
    let headers = Span { start: 12, len: arena.len() as u32 - 12 };
    let (key, payload) = (Some(Span { start: 0, len: 3 }), Some(Span { start: 3, len: 9 }));
    let record = RawRecord { offset, timestamp_ms: 77, key, payload, headers };
    let partition = PartitionKey { topic: topic.into(), partition: 4 };
    Reject { partition, record, arena: arena.into(), reason: Reason::Undecodable, detail: "no decoder".into() }
}

fn offsets(directory: &std::path::Path) -> Vec<i64> {
    read_directory(directory).expect("the folder is readable").iter().map(|letter| letter.offset).collect()
}

#[test]
fn letters_hold_the_original_bytes_and_the_reason() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut sink = FileSink::open(folder.path(), 1 << 20).expect("the folder is new");
    sink.keep(&[reject(5)]).expect("the disk is fine");
    let letters = read_directory(folder.path()).expect("the folder is readable");
    let letter = &letters[0];
    assert_eq!((letter.reason.as_str(), letter.topic.as_str(), letter.partition, letter.offset), ("undecodable", "t", 4, 5));
    let bytes = |text: &Option<String>| STANDARD.decode(text.as_deref().expect("it is there")).expect("it is base64");
    assert_eq!(bytes(&letter.key_base64), b"key");
    assert_eq!(bytes(&letter.payload_base64), b"\xffpay\0load");
    assert_eq!(letter.headers, vec![("h".into(), Some(STANDARD.encode([1, 2]))), ("none".into(), None)]);
}

#[test]
fn a_message_rejected_again_after_a_crash_is_written_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut sink = FileSink::open(folder.path(), 1 << 20).expect("the folder is new");
    sink.keep(&[reject(1), reject(2)]).expect("the disk is fine");
    drop(sink);
    let mut reopened = FileSink::open(folder.path(), 1 << 20).expect("the folder is readable");
    let kept = reopened.keep(&[reject(2), reject(3)]).expect("the disk is fine");
    assert_eq!(kept, Kept { written: 1, repeated: 1 });
    assert_eq!(offsets(folder.path()), vec![1, 2, 3]);
}

#[test]
fn a_torn_last_line_is_cut_off_and_written_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut sink = FileSink::open(folder.path(), 1 << 20).expect("the folder is new");
    sink.keep(&[reject(1)]).expect("the disk is fine");
    drop(sink);
    let path = letter::files(folder.path()).expect("the folder is readable").remove(0);
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("the file is there");
    file.write_all(b"{\"reason\":\"empty\",\"offs").expect("the disk is fine");
    let mut reopened = FileSink::open(folder.path(), 1 << 20).expect("the folder is readable");
    assert_eq!(reopened.keep(&[reject(2)]).expect("the disk is fine").written, 1);
    assert_eq!(offsets(folder.path()), vec![1, 2]);
    let text = std::fs::read_to_string(path).expect("the file is text");
    assert!(text.ends_with('\n') && !text.contains("\"offs\n"));
}

#[test]
fn files_follow_one_another_at_their_size() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut sink = FileSink::open(folder.path(), 300).expect("the folder is new");
    for offset in 0..10 {
        sink.keep(&[reject(offset)]).expect("the disk is fine");
    }
    assert!(letter::files(folder.path()).expect("the folder is readable").len() > 2);
    assert_eq!(offsets(folder.path()), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_disk_that_fails_holds_the_ack_until_it_works_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let directory = folder.path().join("letters");
    let mut sink = FileSink::open(&directory, 1 << 20).expect("the folder is new");
    std::fs::remove_dir_all(&directory).expect("the folder is there");
    let error = sink.keep(&[reject(1)]).expect_err("the folder is gone");
    assert!(error.is_retriable());
    std::fs::create_dir_all(&directory).expect("the disk is fine");
    assert_eq!(sink.keep(&[reject(1)]).expect("the folder is back").written, 1);
    assert_eq!(offsets(&directory), vec![1]);
}

#[test]
fn the_topic_gets_the_original_message_with_reason_headers() {
    let cluster = MockCluster::new(1).expect("the mock broker starts");
    cluster.create_topic("dead", 1, 1).expect("the topic is new");
    let client = BTreeMap::from([("bootstrap.servers".to_owned(), cluster.bootstrap_servers())]);
    let mut sink = KafkaSink::open("dead", &client).expect("the settings are valid");
    assert_eq!(sink.keep(&[reject(9)]).expect("the broker is up").written, 1);

    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g").set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = config.create().expect("the settings are valid");
    consumer.subscribe(&["dead"]).expect("the name is valid");
    let deadline = Instant::now() + Duration::from_secs(30);
    let message = loop {
        assert!(Instant::now() < deadline, "the letter did not come");
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            break message.detach();
        }
    };
    assert_eq!((message.key(), message.payload()), (Some(&b"key"[..]), Some(&b"\xffpay\0load"[..])));
    assert_eq!(message.timestamp().to_millis(), Some(77));
    let headers = message.headers().expect("there are headers");
    let header =
        |name: &str| headers.iter().find(|header| header.key == name).and_then(|header| header.value).map(<[u8]>::to_vec);
    assert_eq!(header("h"), Some(vec![1, 2]));
    assert_eq!(header("openwit.reason"), Some(b"undecodable".to_vec()));
    assert_eq!(header("openwit.offset"), Some(b"9".to_vec()));
    assert_eq!(header("openwit.partition"), Some(b"4".to_vec()));
}
