//! The reader on rdkafka's mock cluster. It cannot prove what a real broker answers about times and retention: `tests/services` does.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rdkafka::config::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use timely::dataflow::operators::Probe;

use super::*;
use crate::budget::{Budget, Load};
use crate::capture::Recorded;
use crate::capture_source::{self, capture_source};
use crate::clock::SystemClock;
use crate::coverage::{OffsetSet, PartitionKey};
use crate::fault::Health;
use crate::place::Place;
use crate::testing::Dice;

type Cluster = MockCluster<'static, DefaultProducerContext>;

/// A catalog that covers these offsets of the first topic of any name.
struct Covers(OffsetSet);

impl Covered for Covers {
    fn covered(&self, partition: &PartitionKey) -> Result<OffsetSet, String> {
        Ok(if partition.topic.id.is_empty() { self.0.clone() } else { OffsetSet::default() })
    }

    fn remembered(&self, _partition: &PartitionKey) -> OffsetSet {
        OffsetSet::default()
    }

    fn log_lost_records(&self) -> bool {
        false
    }
}

/// Topic `t` with three partitions of which the last is empty, whose messages' times go back and forth.
fn filled(dice: &mut Dice) -> (Cluster, [i64; 3]) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 3, 1).unwrap();
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().unwrap();
    let counts = [2_500, 700, 0];
    for (partition, count) in counts.iter().enumerate() {
        let mut time_ms = 1_000_000;
        for number in 0..*count {
            time_ms += dice.below(30) as i64 - 5;
            let (key, payload) = (format!("k{number}"), vec![b'x'; dice.below(900) as usize]);
            let record = BaseRecord::to("t").partition(partition as i32).key(&key).payload(&payload).timestamp(time_ms);
            producer.send(record).unwrap();
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    (cluster, counts)
}

fn config(cluster: &Cluster, ranges: Ranges) -> Config {
    let client = BTreeMap::from([("bootstrap.servers".to_owned(), cluster.bootstrap_servers())]);
    Config { client, ranges, epoch_interval_ms: 100, speed: Speed::Full }
}

fn read(config: &Config, covered: OffsetSet, stats: &Stats) -> Result<Vec<Recorded<RawBatch>>, String> {
    let mut read = Vec::new();
    let mut put = |recorded| {
        read.push(recorded);
        true
    };
    reader::read(config, &Covers(covered), stats, &|| false, &mut put)?;
    Ok(read)
}

fn all() -> Ranges {
    Ranges::Times(TopicPatterns::new(&["t".to_owned()], &[]).unwrap(), None, None)
}

fn at(topic: &str, partition: i32, start: Option<i64>, end: Option<i64>) -> Ranges {
    Ranges::Offsets(vec![OffsetRange { topic: topic.to_owned(), partition, start, end }])
}

/// What makes two results one: epochs, cuts, messages.
fn content(read: &[Recorded<RawBatch>]) -> Vec<(u64, i32, i64, i64, Vec<u8>, Vec<i64>)> {
    let times = |batch: &RawBatch| batch.records.iter().map(|record| record.timestamp_ms).collect();
    let content = read.iter().map(|Recorded { epoch, batch }| {
        (epoch.0, batch.partition.partition, batch.start, batch.end, batch.arena.to_vec(), times(batch))
    });
    let mut content: Vec<_> = content.collect();
    content.sort();
    content
}

#[test]
fn a_range_is_read_whole_in_the_order_of_its_epochs_and_again_the_same() {
    let mut dice = Dice::new(31);
    let (cluster, counts) = filled(&mut dice);
    let (config, stats) = (config(&cluster, all()), Stats::default());
    let first = read(&config, OffsetSet::default(), &stats).unwrap();
    assert!(first.is_sorted_by_key(|recorded| recorded.epoch), "epochs go back");
    assert!(first.iter().all(|recorded| recorded.batch.records.len() <= BATCH_RECORDS));
    for (partition, count) in counts.iter().enumerate() {
        let of_it = first.iter().filter(|recorded| recorded.batch.partition.partition == partition as i32);
        let of_it: Vec<_> = of_it.collect();
        let mut next = 0;
        for Recorded { batch, .. } in of_it {
            assert_eq!(batch.start, next);
            let offsets: Vec<i64> = batch.records.iter().map(|record| record.offset).collect();
            assert_eq!(offsets, (batch.start..batch.end).collect::<Vec<_>>());
            next = batch.end;
        }
        assert_eq!(next, *count);
    }
    let get = |counter: &AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((get(&stats.total_offsets), get(&stats.read_offsets), get(&stats.records)), (3_200, 3_200, 3_200));
    // Slower, from a cold client, with other timing.
    assert_eq!(content(&first), content(&read(&config, OffsetSet::default(), &Stats::default()).unwrap()));
}

#[test]
fn what_was_fetched_before_its_partition_had_a_queue_is_read_all_the_same() {
    let (cluster, _) = filled(&mut Dice::new(31));
    let (config, covers, stats) = (config(&cluster, all()), Covers(OffsetSet::default()), Stats::default());
    let whole = read(&config, OffsetSet::default(), &stats).unwrap();
    let assigned = reader::Assigned::new(&config, &covers, &stats, &|| false).unwrap().unwrap();
    // Messages are there, in the queue of all partitions.
    while !matches!(assigned.client.consumer.poll(Duration::from_millis(100)), Some(Ok(_))) {}
    let mut late = Vec::new();
    let mut put = |recorded| {
        late.push(recorded);
        true
    };
    assigned.read(&stats, &mut put).unwrap();
    assert_eq!(content(&late), content(&whole));
}

#[test]
fn offsets_are_read_exactly() {
    let (cluster, _) = filled(&mut Dice::new(31));
    let check = |start: Option<i64>, end: Option<i64>, expected: Range<i64>| {
        let read = read(&config(&cluster, at("t", 1, start, end)), OffsetSet::default(), &Stats::default()).unwrap();
        let offsets: Vec<i64> = read.iter().flat_map(|one| one.batch.records.iter().map(|record| record.offset)).collect();
        assert_eq!(offsets, expected.clone().collect::<Vec<_>>(), "{start:?}..{end:?}");
        let covered = (read.first().map(|one| one.batch.start), read.last().map(|one| one.batch.end));
        assert_eq!(covered, (Some(expected.start), Some(expected.end)));
    };
    check(Some(100), Some(101), 100..101);
    check(Some(650), None, 650..700);
    check(None, Some(30), 0..30);
}

#[test]
fn what_is_not_there_is_refused_in_words() {
    let (cluster, _) = filled(&mut Dice::new(31));
    let check = |ranges: Ranges, says: &str| {
        let refused = read(&config(&cluster, ranges), OffsetSet::default(), &Stats::default()).map(|read| read.len());
        assert_eq!(refused, Err(says.to_owned()));
    };
    check(at("u", 0, None, None), "there is no topic u");
    check(at("t", 3, None, None), "topic t has 3 partitions, and none of number 3");
    check(at("t", 1, None, Some(701)), "t[1]: offset 700 is not there yet: the partition ends at 700");
    check(Ranges::Times(TopicPatterns::new(&["v.*".to_owned()], &[]).unwrap(), None, None), "no topic matches");
    assert_eq!(
        range_of("t[0]", (Some(3), None), 5..9),
        Err("t[0]: offset 3 is gone: retention has removed all before 5".to_owned())
    );
}

#[test]
fn a_topic_that_was_created_anew_is_not_taken_for_the_former_one() {
    let (cluster, _) = filled(&mut Dice::new(31));
    let id = |covered: Range<i64>| {
        let mut set = OffsetSet::default();
        set.insert(covered);
        let read = read(&config(&cluster, at("t", 1, Some(10), Some(20))), set, &Stats::default()).unwrap();
        read[0].batch.partition.topic.id.to_string()
    };
    assert_eq!(id(0..700), "");
    assert_eq!(id(0..701), "~1");
}

#[test]
fn reading_ends_when_nothing_more_is_wanted() {
    let (cluster, _) = filled(&mut Dice::new(31));
    let mut given = 0;
    let mut put = |_| {
        given += 1;
        given < 3
    };
    reader::read(&config(&cluster, all()), &Covers(OffsetSet::default()), &Stats::default(), &|| false, &mut put).unwrap();
    assert_eq!(given, 3);
    // Nobody answers here.
    let away = Config { client: BTreeMap::from([("bootstrap.servers".into(), "127.0.0.1:1".into())]), ..config(&cluster, all()) };
    let read = reader::read(&away, &Covers(OffsetSet::default()), &Stats::default(), &|| true, &mut |_| true);
    assert_eq!(read, Ok(()));
}

#[test]
fn a_range_that_cannot_be_read_raises_a_fault_and_holds_the_frontier() {
    let (cluster, _) = filled(&mut Dice::new(31));
    let health = Health::default();
    let budget = Budget::new(Load { bytes: 64 << 20, messages: 1_000_000 });
    let place = Place { process: 0, worker: 0, workers: 1, peers: 1 };
    let ports = FeedPorts { place, budget, health: health.clone(), clock: Arc::new(SystemClock::default()) };
    let config = config(&cluster, at("t", 1, None, Some(701)));
    let (feed, thread) = start(config, ports, Arc::new(Covers(OffsetSet::default())), Arc::default()).unwrap();
    thread.join().unwrap();
    timely::execute_directly(move |worker| {
        let probe =
            worker.dataflow::<Epoch, _, _>(|scope| capture_source(scope, NAME, capture_source::Ports { feed }, place).probe().0);
        for _ in 0..100 {
            worker.step();
        }
        assert!(!probe.done(), "the frontier passed what was not read");
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    });
    let fault = health.fault().expect("it was raised").to_string();
    assert_eq!(fault, "kafka_range_source: t[1]: offset 700 is not there yet: the partition ends at 700");
}

#[test]
fn ranges_of_offsets_are_read_as_they_are_written() {
    let range = |topic: &str, partition, start, end| OffsetRange { topic: topic.to_owned(), partition, start, end };
    let read = |text: &str| text.parse::<OffsetRange>();
    assert_eq!(read("a.b[3]=10..20"), Ok(range("a.b", 3, Some(10), Some(20))));
    assert_eq!(read("a[0]=.."), Ok(range("a", 0, None, None)));
    assert_eq!(read("a[0]=7.."), Ok(range("a", 0, Some(7), None)));
    for wrong in
        ["", "a", "a[0]", "a=1..2", "[0]=1..2", "a[x]=1..2", "a[-1]=1..2", "a[0]=2-3", "a[0]=-2..3", "a[0]=x..3", "a[0]=1...3"]
    {
        assert!(read(wrong).is_err_and(|error| error.contains("TOPIC[PARTITION]=START..END")), "{wrong}");
    }
    assert!(read("a[0]=5..5").is_err_and(|error| error.contains("is empty")));
    let twice = OffsetRange::list(&["a[0]=1..2".to_owned(), "a[0]=5..6".to_owned()]);
    assert_eq!(twice, Err("a[0] is named twice".to_owned()));
}

proptest! {
    #[test]
    fn epochs_never_go_back_and_none_is_larger_than_its_share(
        messages in proptest::collection::vec((-1i64..5_000, 0usize..100_000), 1..400),
        interval_ms in 1u64..2_000,
        partitions in 1usize..300,
    ) {
        let mut epochs = Epochs::new(interval_ms, partitions);
        let mut sizes: BTreeMap<Epoch, Vec<usize>> = BTreeMap::new();
        let mut last = Epoch(0);
        for (time_ms, bytes) in messages {
            let epoch = epochs.place(time_ms, bytes);
            prop_assert!(epoch >= last);
            // No message comes before its time.
            prop_assert!(time_ms < 0 || epoch.0 + interval_ms > time_ms as u64);
            sizes.entry(epoch).or_default().push(bytes);
            last = epoch;
        }
        for sizes in sizes.values() {
            let is_single = sizes.iter().filter(|bytes| **bytes > 0).count() <= 1;
            prop_assert!(is_single || sizes.iter().sum::<usize>() <= epochs.bytes_max);
        }
    }
}
