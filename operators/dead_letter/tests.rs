//! The sinks, without a dataflow: files are opened again after a crash that is played by dropping the sink and tearing its last line,
//! Kafka is rdkafka's mock cluster in this process. What these tests cannot show: a disk that loses power, a real broker.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use proptest::prelude::*;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::file::File;
use super::kafka::{Kafka, Oversize};
use super::letter::Letter;
use super::*;
use crate::batch::{RawRecord, Reason, Span, push_header};
use crate::clock::ManualClock;
use crate::coverage::TopicKey;

mod way_back;

const NOW_MS: u64 = 1_700_000_000_000;
const WAIT: Duration = Duration::from_secs(30);

fn clock() -> Arc<ManualClock> {
    let clock = ManualClock::default();
    clock.set_ms(NOW_MS);
    Arc::new(clock)
}

fn partition(number: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "cluster".into(), name: "spans".into(), id: "topic-id".into() };
    PartitionKey { topic: Arc::new(topic), partition: number }
}

/// A reject whose bytes tell its offset; every third has no key, every fifth no payload.
fn reject(number: i32, offset: i64) -> Reject {
    let mut arena = b"leading bytes".to_vec();
    let mut push = |bytes: &[u8]| {
        let start = arena.len() as u32;
        arena.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    };
    let key = (offset % 3 != 0).then(|| push(format!("key\0{offset}").as_bytes()));
    let payload = (offset % 5 != 0).then(|| push(format!("\u{1}\n\"payload\" {offset}").as_bytes()));
    let start = arena.len();
    push_header(&mut arena, b"trace", Some(b"\xff\x00"));
    push_header(&mut arena, b"null", None);
    push_header(&mut arena, b"openwit.reason", Some(b"of an earlier life"));
    let headers = Span { start: start as u32, len: (arena.len() - start) as u32 };
    let record = RawRecord { offset, timestamp_ms: NOW_MS as i64 - 5, key, payload, headers };
    let detail = format!("field 3 at byte {offset}");
    Reject {
        partition: partition(number),
        record,
        arena: Bytes::from(arena),
        reason: Reason::Malformed,
        detail,
        secret_header: None,
    }
}

fn acked(results: Vec<Result<u64, Error>>) -> Vec<u64> {
    results.into_iter().map(|result| result.expect("no error")).collect()
}

fn letters(directory: &Path) -> Vec<Letter> {
    read::Source::folder(directory).expect("listed").letters(None).map(|found| found.expect("a letter").letter).collect()
}

fn open(directory: &Path) -> File {
    File::open(file::Config::new(directory), &BTreeMap::new(), clock()).expect("opened")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("listed").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "ndjson")).collect();
    files.sort();
    files
}

#[test]
fn files_hold_every_acked_letter_whole_and_in_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut sink = open(directory.path());
    for offset in 0..20 {
        sink.submit(offset as u64, &reject(0, offset)).expect("taken");
    }
    assert_eq!(sink.pending(), 20);
    assert_eq!(acked(sink.poll()), (0..20).collect::<Vec<_>>());
    assert_eq!((sink.stats().syncs, sink.stats().written, sink.pending()), (1, 20, 0));
    let expected: Vec<Letter> = (0..20).map(|offset| Letter::of(&reject(0, offset), NOW_MS)).collect();
    assert_eq!(letters(directory.path()), expected);
}

#[test]
fn a_reopened_directory_loses_no_acked_letter_and_writes_none_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut sink = open(directory.path());
    for offset in 0..3 {
        sink.submit(offset as u64, &reject(0, offset)).expect("taken");
    }
    assert_eq!(acked(sink.poll()).len(), 3);
    // Written but, as far as the process knows, never acked: one whole line, one torn.
    sink.submit(3, &reject(0, 3)).expect("taken");
    sink.submit(4, &reject(0, 4)).expect("taken");
    sink.poll();
    drop(sink);
    let path = &files(directory.path())[0];
    let length = fs::metadata(path).expect("metadata").len();
    fs::OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(length - 7)).expect("torn");

    let mut sink = open(directory.path());
    assert_eq!((sink.stats().torn, sink.stats().damaged), (1, 0));
    assert!(sink.already_written(&partition(0), 3) && !sink.already_written(&partition(0), 4));
    assert!(!sink.already_written(&partition(1), 3));
    for offset in 0..6 {
        sink.submit(offset as u64, &reject(0, offset)).expect("taken");
    }
    assert_eq!(acked(sink.poll()), (0..6).collect::<Vec<_>>());
    assert_eq!((sink.stats().repeated, sink.stats().written), (4, 2));
    let offsets: Vec<i64> = letters(directory.path()).iter().map(|letter| letter.offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn only_identities_that_may_come_again_are_remembered() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut sink = open(directory.path());
    for offset in 0..10 {
        sink.submit(offset as u64, &reject(0, offset)).expect("taken");
    }
    sink.poll();
    sink.forget_below(&partition(0), 4);
    assert!(!sink.already_written(&partition(0), 3) && sink.already_written(&partition(0), 4));
    drop(sink);
    let resume = BTreeMap::from([(partition(0), 7)]);
    let sink = File::open(file::Config::new(directory.path()), &resume, clock()).expect("opened");
    assert!(!sink.already_written(&partition(0), 6) && sink.already_written(&partition(0), 7));
}

#[test]
fn memory_for_identities_is_bounded_and_the_bound_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = file::Config { remembered_max: 10, ..file::Config::new(directory.path()) };
    let mut sink = File::open(config, &BTreeMap::new(), clock()).expect("opened");
    for offset in 0..100 {
        sink.submit(offset as u64, &reject(0, offset * 2)).expect("taken");
    }
    assert!(sink.stats().forgotten >= 90 && sink.already_written(&partition(0), 198));
    assert_eq!(acked(sink.poll()).len(), 100);
}

#[test]
fn a_line_that_is_no_letter_is_reported_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut sink = open(directory.path());
    for offset in 0..3 {
        sink.submit(offset as u64, &reject(0, offset)).expect("taken");
    }
    sink.poll();
    drop(sink);
    let path = &files(directory.path())[0];
    let mut bytes = fs::read(path).expect("read");
    let second = bytes.iter().position(|&byte| byte == b'\n').expect("a line") + 1;
    bytes[second + 30..second + 60].fill(0);
    fs::write(path, &bytes).expect("written");
    let sink = open(directory.path());
    assert_eq!((sink.stats().damaged, sink.stats().torn), (1, 0));
    let read: Vec<_> = {
        let source = read::Source::folder(directory.path()).expect("listed");
        source.letters(None).map(|found| found.map(|found| found.letter)).collect()
    };
    assert!(matches!(read[1], Err(read::Error::File(Error::Damaged { line: 2, .. }))));
    assert!(read[0].is_ok() && read[2].is_ok() && read.len() == 3);
    assert_eq!(fs::read(path).expect("read"), bytes);
}

#[test]
fn files_rotate_by_size_and_sort_by_age_even_when_the_clock_goes_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = clock();
    let config = file::Config { file_bytes_max: 1, ..file::Config::new(directory.path()) };
    for round in 0..3 {
        let mut sink = File::open(config.clone(), &BTreeMap::new(), clock.clone()).expect("opened");
        for offset in round * 3..round * 3 + 3 {
            sink.submit(offset as u64, &reject(0, offset)).expect("taken");
            assert_eq!(acked(sink.poll()), [offset as u64]);
        }
        assert_eq!(sink.stats().files, 3);
        clock.set_ms(NOW_MS - 1_000 * round as u64);
    }
    assert_eq!(files(directory.path()).len(), 9);
    let offsets: Vec<i64> = letters(directory.path()).iter().map(|letter| letter.offset).collect();
    assert_eq!(offsets, (0..9).collect::<Vec<_>>());
}

#[test]
fn full_buffers_and_directories_refuse_letters_until_there_is_room() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = file::Config { buffer_bytes_max: 1, ..file::Config::new(directory.path()) };
    let mut sink = File::open(config.clone(), &BTreeMap::new(), clock()).expect("opened");
    sink.submit(0, &reject(0, 0)).expect("the first is taken whatever its size");
    let refused = sink.submit(1, &reject(0, 1)).expect_err("full");
    assert!(refused.is_retriable() && matches!(refused, Error::Full { setting: "buffer_bytes_max" }));
    assert_eq!(acked(sink.poll()), [0]);
    sink.submit(1, &reject(0, 1)).expect("room again");
    assert_eq!(acked(sink.poll()), [1]);
    drop(sink);

    let config = file::Config { directory_bytes_max: 10, ..config };
    let mut sink = File::open(config, &BTreeMap::new(), clock()).expect("opened");
    let refused = sink.submit(2, &reject(0, 2)).expect_err("full");
    assert!(refused.is_retriable() && matches!(refused, Error::DirectoryFull { bytes_max: 10, .. }));
    sink.submit(3, &reject(0, 0)).expect("what is there needs no room");
    files(directory.path()).iter().for_each(|path| fs::remove_file(path).expect("removed"));
    sink.submit(2, &reject(0, 2)).expect("taken once files are gone");
    assert_eq!(acked(sink.poll()), [3, 2]);
}

/// A file that fails once, at its n-th write or sync; a failed write leaves half of its bytes.
struct Failing {
    file: fs::File,
    writes_left: Arc<AtomicUsize>,
    syncs_left: Arc<AtomicUsize>,
}

fn is_now(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(1))) == Ok(1)
}

impl file::Medium for Failing {
    fn write_at(&self, bytes: &[u8], position: u64) -> std::io::Result<()> {
        if is_now(&self.writes_left) {
            self.file.write_at(&bytes[..bytes.len() / 2], position)?;
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.file.write_at(bytes, position)
    }
    fn sync(&self) -> std::io::Result<()> {
        if is_now(&self.syncs_left) { Err(std::io::Error::other("sync failed")) } else { self.file.sync() }
    }
}

/// A sink whose `write`-th write and `sync`-th sync fail; 0 never does.
fn open_failing(directory: &Path, write: usize, sync: usize) -> File {
    let (writes_left, syncs_left) = (Arc::new(AtomicUsize::new(write)), Arc::new(AtomicUsize::new(sync)));
    let wrap: file::Wrap =
        Box::new(move |file| Box::new(Failing { file, writes_left: writes_left.clone(), syncs_left: syncs_left.clone() }));
    File::open_with(file::Config::new(directory), &BTreeMap::new(), clock(), wrap).expect("opened")
}

#[test]
fn a_full_disk_delays_letters_and_damages_none() {
    for failing in 1..4 {
        let directory = tempfile::tempdir().expect("a directory");
        let mut sink = open_failing(directory.path(), failing, 0);
        let (mut ids, mut errors) = (Vec::new(), 0);
        for offset in 0..4 {
            sink.submit(offset as u64, &reject(0, offset)).expect("taken");
            for result in sink.poll() {
                match result {
                    Ok(id) => ids.push(id),
                    Err(error) => {
                        assert!(error.is_retriable() && matches!(error, Error::Io { doing: "writing", .. }), "{error}");
                        errors += 1;
                    }
                }
            }
        }
        assert_eq!((ids, errors), (vec![0, 1, 2, 3], 1));
        assert_eq!(letters(directory.path()).len(), 4);
    }
}

#[test]
fn after_a_failed_sync_nothing_is_acked_any_more() {
    for failing in 1..3 {
        let directory = tempfile::tempdir().expect("a directory");
        let mut sink = open_failing(directory.path(), 0, failing);
        for offset in 0..failing as i64 - 1 {
            sink.submit(offset as u64, &reject(0, offset)).expect("taken");
            assert_eq!(acked(sink.poll()).len(), 1);
        }
        sink.submit(9, &reject(0, 9)).expect("taken");
        let results = sink.poll();
        assert!(matches!(results[..], [Err(Error::Io { doing: "syncing", retriable: false, .. })]), "{results:?}");
        assert!(matches!(sink.poll()[..], [Err(Error::Poisoned { .. })]));
        assert!(matches!(sink.submit(10, &reject(0, 10)), Err(Error::Poisoned { .. })));
        drop(sink);
        let mut sink = open(directory.path());
        sink.submit(9, &reject(0, 9)).expect("taken by a new process");
        assert_eq!(acked(sink.poll()), [9]);
        assert_eq!(letters(directory.path()).len(), failing);
    }
}

#[test]
fn one_process_at_a_time_writes_to_a_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let sink = open(directory.path());
    let second = File::open(file::Config::new(directory.path()), &BTreeMap::new(), clock());
    assert!(matches!(second.err(), Some(Error::Locked { .. })));
    drop(sink);
    open(directory.path());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any sequence of submits, polls and crashes: what was acked is there, and nothing is there twice.
    #[test]
    fn any_sequence_of_crashes_keeps_each_acked_letter_exactly_once(
        steps in proptest::collection::vec((0u8..10, 0i64..12, 0u64..200), 1..60), file_bytes_max in 1u64..2_000,
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let config = file::Config { file_bytes_max, ..file::Config::new(directory.path()) };
        let reopen = || File::open(config.clone(), &BTreeMap::new(), clock()).expect("opened");
        let (mut sink, mut durable, mut open_ids) = (reopen(), BTreeSet::new(), BTreeMap::new());
        for (id, (step, offset, torn)) in steps.into_iter().enumerate() {
            match step {
                0..6 => {
                    sink.submit(id as u64, &reject(0, offset)).expect("taken");
                    open_ids.insert(id as u64, offset);
                }
                6..8 => durable.extend(acked(sink.poll()).iter().filter_map(|id| open_ids.remove(id))),
                _ => {
                    // The crash: what the last write left, cut anywhere behind what was acked.
                    let acked_lengths: u64 = files(directory.path()).iter().map(|path| fs::metadata(path).expect("metadata").len()).sum();
                    let written = step == 9;
                    if written {
                        sink.poll();
                    }
                    drop(sink);
                    if let Some(path) = files(directory.path()).last().filter(|_| written) {
                        let length = fs::metadata(path).expect("metadata").len();
                        let all: u64 = files(directory.path()).iter().map(|path| fs::metadata(path).expect("metadata").len()).sum();
                        let cut = torn.min(all - acked_lengths);
                        fs::OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(length - cut)).expect("torn");
                    }
                    open_ids.clear();
                    sink = reopen();
                }
            }
        }
        drop(sink);
        let found: Vec<i64> = letters(directory.path()).iter().map(|letter| letter.offset).collect();
        let distinct: BTreeSet<i64> = found.iter().copied().collect();
        prop_assert_eq!(found.len(), distinct.len(), "an identity is there twice");
        prop_assert!(durable.is_subset(&distinct), "acked {:?}, found {:?}", durable, distinct);
    }
}

/// A mock cluster with the topic `letters`, of one partition.
fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("letters", 1, 1).expect("a topic");
    cluster
}

fn kafka_config(cluster: &MockCluster<'static, DefaultProducerContext>) -> kafka::Config {
    let mut config = kafka::Config::new("letters", cluster.bootstrap_servers());
    // A clock that stands still must not hold a retry back for ever.
    config.backoff_ms = 0;
    config.client.insert("reconnect.backoff.max.ms".into(), "100".into());
    config.client.insert("linger.ms".into(), "50".into());
    config
}

/// Polls until `count` letters are acked; errors are collected beside them.
fn flush_until(sink: &mut dyn Sink, count: usize) -> (BTreeSet<u64>, Vec<Error>) {
    let (mut ids, mut errors) = (BTreeSet::new(), Vec::new());
    let started = std::time::Instant::now();
    while ids.len() < count && started.elapsed() < WAIT {
        for result in sink.flush(Duration::from_millis(100)) {
            match result {
                Ok(id) => assert!(ids.insert(id), "{id} is acked twice"),
                Err(error) => errors.push(error),
            }
        }
    }
    (ids, errors)
}

/// Reads `count` messages of the topic back: as letters, and the broker's timestamps.
fn consume(cluster: &MockCluster<'static, DefaultProducerContext>, count: usize) -> Vec<(Letter, Option<i64>)> {
    use rdkafka::message::Message;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "reader");
    let consumer: BaseConsumer = client.create().expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset("letters", 0, Offset::Beginning).expect("an assignment");
    consumer.assign(&assignment).expect("assigned");
    let started = std::time::Instant::now();
    let mut read = Vec::new();
    while read.len() < count && started.elapsed() < WAIT {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        read.push((kafka::read_message(&message).expect("a letter"), message.timestamp().to_millis()));
    }
    read
}

#[test]
fn kafka_holds_the_original_bytes_headers_and_time() {
    let cluster = cluster();
    let mut sink = Kafka::open(kafka_config(&cluster), clock()).expect("opened");
    for offset in 0..20 {
        sink.submit(offset as u64, &reject(2, offset)).expect("taken");
    }
    let (ids, errors) = flush_until(&mut sink, 20);
    assert_eq!((ids, errors.len()), ((0..20).collect(), 0));
    for (offset, (letter, time_ms)) in consume(&cluster, 20).into_iter().enumerate() {
        assert_eq!(letter, Letter::of(&reject(2, offset as i64), NOW_MS));
        assert_eq!(time_ms, Some(NOW_MS as i64 - 5));
    }
}

#[test]
fn letters_outlive_a_broker_that_is_down() {
    let cluster = cluster();
    let config = kafka::Config { delivery_timeout_ms: 300, ..kafka_config(&cluster) };
    let mut sink = Kafka::open(config, clock()).expect("opened");
    cluster.broker_down(-1).expect("down");
    for offset in 0..50 {
        sink.submit(offset as u64, &reject(0, offset)).expect("taken");
    }
    // Until librdkafka has given up each letter once.
    let started = std::time::Instant::now();
    let mut failed = BTreeSet::new();
    while failed.len() < 50 && started.elapsed() < WAIT {
        for result in sink.flush(Duration::from_millis(100)) {
            let error = result.expect_err("nothing is delivered while the broker is down");
            assert!(error.is_retriable(), "{error}");
            failed.extend(error.id());
        }
    }
    assert_eq!((failed.len(), sink.pending()), (50, 50));
    cluster.broker_up(-1).expect("up");
    assert_eq!(flush_until(&mut sink, 50).0, (0..50).collect());
    let read = consume(&cluster, 50);
    let distinct: BTreeSet<i64> = read.iter().map(|(letter, ..)| letter.offset).collect();
    assert_eq!(distinct, (0..50).collect());
}

#[test]
fn passing_broker_errors_are_not_even_news() {
    let cluster = cluster();
    let mut sink = Kafka::open(kafka_config(&cluster), clock()).expect("opened");
    let passing = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
    cluster.request_errors(RDKafkaApiKey::Produce, &[passing, passing]);
    sink.submit(7, &reject(0, 1)).expect("taken");
    let (ids, errors) = flush_until(&mut sink, 1);
    assert_eq!((ids.len(), errors.len()), (1, 0));
}

#[test]
fn a_letter_too_large_for_its_topic_is_an_error_that_names_the_setting() {
    let cluster = cluster();
    let mut sink = Kafka::open(kafka_config(&cluster), clock()).expect("opened");
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    // The batch of both, then the first one alone; the second, alone, is taken.
    cluster.request_errors(RDKafkaApiKey::Produce, &[too_large, too_large]);
    sink.submit(0, &reject(0, 1)).expect("taken");
    sink.submit(1, &reject(0, 2)).expect("taken");
    let (ids, errors) = flush_until(&mut sink, 1);
    assert_eq!(ids, BTreeSet::from([1]), "the letter that only shared the batch is delivered");
    let last = errors.iter().find(|error| !error.is_retriable()).expect("an error");
    assert!(matches!(last, Error::TooLarge { id: 0, .. }) && last.to_string().contains("max.message.bytes"), "{last}");
    assert_eq!(sink.pending(), 0);
}

#[test]
fn an_oversized_payload_may_be_omitted() {
    let cluster = cluster();
    let config = kafka::Config { oversize: Oversize::OmitPayload, ..kafka_config(&cluster) };
    let mut sink = Kafka::open(config, clock()).expect("opened");
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::Produce, &[too_large, too_large]);
    sink.submit(0, &reject(0, 1)).expect("taken");
    assert_eq!(flush_until(&mut sink, 1).0, BTreeSet::from([0]));
    assert_eq!(sink.stats().omitted, 1);
    let (letter, _) = consume(&cluster, 1).remove(0);
    let whole = Letter::of(&reject(0, 1), NOW_MS);
    let length = whole.payload.as_ref().map_or(0, Vec::len);
    assert_eq!(letter, Letter { payload: Some(vec![]), omitted: Some(format!("payload:{length}")), ..whole });
}

#[test]
fn a_producer_that_failed_for_good_is_replaced_and_its_letters_sent_again() {
    let cluster = cluster();
    let mut sink = Kafka::open(kafka_config(&cluster), clock()).expect("opened");
    for offset in 0..10 {
        sink.submit(offset as u64, &reject(0, offset)).expect("taken");
    }
    assert_eq!(sink.poll().len(), 0, "sent, but nothing reported yet");
    sink.fail_for_good();
    assert_eq!(flush_until(&mut sink, 10).0, (0..10).collect());
    assert_eq!(sink.stats().replaced, 1);
    let distinct: BTreeSet<i64> = consume(&cluster, 10).iter().map(|(letter, ..)| letter.offset).collect();
    assert_eq!(distinct, (0..10).collect());
}

#[test]
fn a_topic_that_may_not_be_written_to_ends_the_sink() {
    let cluster = cluster();
    let mut sink = Kafka::open(kafka_config(&cluster), clock()).expect("opened");
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    sink.submit(3, &reject(0, 1)).expect("taken");
    let started = std::time::Instant::now();
    let mut errors = Vec::new();
    while errors.is_empty() && started.elapsed() < WAIT {
        errors = sink.flush(Duration::from_millis(100));
    }
    assert!(matches!(errors[..], [Err(Error::Delivery { id: 3, retriable: false, .. })]), "{errors:?}");
}

#[test]
fn a_full_kafka_sink_refuses_letters_and_takes_them_later() {
    let cluster = cluster();
    let config = kafka::Config { pending_letters_max: 2, ..kafka_config(&cluster) };
    let mut sink = Kafka::open(config, clock()).expect("opened");
    sink.submit(0, &reject(0, 0)).expect("taken");
    sink.submit(1, &reject(0, 1)).expect("taken");
    assert!(sink.submit(2, &reject(0, 2)).expect_err("full").is_retriable());
    assert_eq!(flush_until(&mut sink, 2).0.len(), 2);
    sink.submit(2, &reject(0, 2)).expect("taken");
    assert_eq!(flush_until(&mut sink, 1).0, BTreeSet::from([2]));
}

#[test]
fn passwords_do_not_show_in_a_printed_config() {
    let mut config = kafka::Config::new("letters", "broker:9092");
    config.client.insert("sasl.password".into(), "secret".into());
    let printed = format!("{config:?}");
    assert!(printed.contains("sasl.password") && !printed.contains("secret"));
}

/// Acks what it is told to, in the order it was submitted, and takes at most two letters at a time.
#[derive(Default)]
struct Manual {
    held: Vec<u64>,
    taken: Arc<AtomicUsize>,
    allowed: Arc<AtomicUsize>,
}

impl Sink for Manual {
    fn submit(&mut self, id: u64, _reject: &Reject) -> Result<(), Error> {
        if self.held.len() >= 2 {
            return Err(Error::Full { setting: "two" });
        }
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.held.push(id);
        Ok(())
    }
    fn poll(&mut self) -> Vec<Result<u64, Error>> {
        let count = self.allowed.swap(0, Ordering::Relaxed);
        let kept = self.held.split_off(count.min(self.held.len()));
        std::mem::replace(&mut self.held, kept).into_iter().map(Ok).collect()
    }
    fn pending(&self) -> usize {
        self.held.len()
    }
    fn flush(&mut self, _timeout: Duration) -> Vec<Result<u64, Error>> {
        self.poll()
    }
    fn forget_below(&mut self, _partition: &PartitionKey, _offset: i64) {}
}

#[test]
fn both_sinks_must_ack_and_neither_takes_a_letter_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    let manual = Manual::default();
    let (taken, allowed) = (manual.taken.clone(), manual.allowed.clone());
    let mut all = All::new(vec![Box::new(open(directory.path())), Box::new(manual)]);
    all.submit(0, &reject(0, 0)).expect("taken");
    all.submit(1, &reject(0, 1)).expect("taken");
    assert!(matches!(all.submit(2, &reject(0, 2)), Err(Error::Full { setting: "two" })));
    assert_eq!((acked(all.poll()).len(), all.pending()), (0, 3));
    allowed.store(1, Ordering::Relaxed);
    assert_eq!(acked(all.poll()), [0]);
    all.submit(2, &reject(0, 2)).expect("taken");
    allowed.store(2, Ordering::Relaxed);
    assert_eq!(acked(all.poll()), [1, 2]);
    assert_eq!((taken.load(Ordering::Relaxed), all.pending(), letters(directory.path()).len()), (3, 0, 3));
}
