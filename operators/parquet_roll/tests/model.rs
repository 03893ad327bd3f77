//! The roller and the catalog's rule of refusal against a model that knows only the definition: each row exactly once, each
//! acknowledgement after its commit, whatever another node commits in between and however late the news of it come.

use std::collections::VecDeque;

use super::*;
use crate::catalog_commit::refusals::Refusals;
use crate::object_upload::remove_local;

const OFFSETS: i64 = 60;
const TOPICS: [&str; 2] = ["orders", "events"];

/// What may happen to a storage node.
#[derive(Clone, Debug)]
enum Step {
    /// A delivery of one or both partitions of a topic; whatever was delivered before.
    Deliver { topic: usize, first: Range<i64>, second: Range<i64> },
    /// Time passes.
    Tick(u64),
    /// The oldest closed commit reaches the catalog, and is registered or refused.
    Settle,
    /// The roller learns of the oldest commit registered.
    LearnCommitted,
    /// The roller learns of the oldest commit refused.
    LearnRefused,
    /// Another node commits what is free of a range: it was sent the same offsets.
    Zombie { topic: usize, number: i32, range: Range<i64> },
    /// The process dies; what was not committed is gone.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..OFFSETS, 0..15i64).prop_map(|(start, length)| start..(start + length).min(OFFSETS));
    let step = prop_oneof![
        8 => (0..2usize, range(), range()).prop_map(|(topic, first, second)| Step::Deliver { topic, first, second }),
        3 => (1..40u64).prop_map(Step::Tick),
        5 => Just(Step::Settle),
        4 => Just(Step::LearnCommitted),
        3 => Just(Step::LearnRefused),
        2 => (0..2usize, 0..2, range()).prop_map(|(topic, number, range)| Step::Zombie { topic, number, range }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What is in a partition's log, from the offset alone: nothing, rejected, or one to three rows on one to three days.
fn rows_at(partition: &PartitionKey, offset: i64) -> Vec<TestRow> {
    let row = |ordinal: i64| TestRow {
        partition: partition.clone(),
        offset,
        ordinal: ordinal as i32,
        kafka_ms: Some(NOON_MS),
        time_ns: Some((NOON_MS - ((offset / 7 + ordinal) % 3) * DAY_MS) * 1_000_000),
    };
    (0..offset % 4).map(row).collect()
}

fn coverage_at(partition: &PartitionKey, range: Range<i64>) -> Coverage {
    let mut coverage = Coverage::stored(partition.clone(), range.clone());
    coverage.rejected = range.filter(|offset| offset % 8 == 4).collect();
    coverage
}

struct World {
    folder: tempfile::TempDir,
    roller: Option<Roller>,
    now_ms: u64,
    deliveries: BTreeMap<u64, Vec<(PartitionKey, Range<i64>)>>,
    /// Deliveries neither acknowledged nor refused.
    unsettled: BTreeSet<u64>,
    closed: VecDeque<ClosedCommit>,
    refusals: Refusals,
    registered: VecDeque<ClosedCommit>,
    refused: VecDeque<(ClosedCommit, BTreeMap<PartitionKey, OffsetSet>)>,
    /// The catalog.
    committed: BTreeMap<PartitionKey, OffsetSet>,
    rejected: u64,
    /// Every row in a committed file.
    rows: Vec<(String, i32, i64, i32)>,
}

impl World {
    fn open(&mut self) {
        // Bounds so small that all of them are hit.
        let config = Config {
            open_writers_max: 5,
            row_group_rows_max: 8,
            compression: crate::parquet_roll::Compression::Zstd(1),
            bloom_filters: true,
            age_max_ms: 60,
            idle_ms: 30,
            file_bytes_max: 60_000,
            memory_bytes_max: 200_000,
            ..config(self.folder.path())
        };
        self.closed.clear();
        self.registered.clear();
        self.refused.clear();
        self.unsettled.clear();
        self.refusals = Refusals::default();
        self.roller = None;
        self.roller = Some(Roller::open(Config { seed: self.now_ms, ..config }, self.committed.clone()).unwrap());
    }

    fn roller(&mut self) -> &mut Roller {
        self.roller.as_mut().unwrap()
    }

    fn deliver(&mut self, topic: usize, ranges: [Range<i64>; 2]) {
        let name = TOPICS[topic];
        let sequence = self.deliveries.len() as u64;
        let parts: Vec<(PartitionKey, Range<i64>)> = (0..).map(|number| partition(name, number)).zip(ranges).collect();
        let rows: Vec<TestRow> =
            parts.iter().flat_map(|(partition, range)| range.clone().flat_map(|offset| rows_at(partition, offset))).collect();
        // A partition may come in several ranges, in any order.
        let halves = parts.iter().flat_map(|(partition, Range { start, end })| {
            let middle = start + (end - start) / 2;
            [middle..*end, *start..middle].map(|range| coverage_at(partition, range))
        });
        let mut received = received(sequence, &group(name), &rows, halves.collect());
        // In pieces, as Flight's size limit may cut a delivery.
        received.batch.batches = received
            .batch
            .batches
            .iter()
            .flat_map(|batch| {
                [batch.slice(0, batch.num_rows() / 2), batch.slice(batch.num_rows() / 2, batch.num_rows().div_ceil(2))]
            })
            .collect();
        self.deliveries.insert(sequence, parts);
        self.unsettled.insert(sequence);
        let now_ms = self.now_ms;
        let admitted = self.roller().admit(received, now_ms).unwrap();
        self.closed.extend(admitted.closed);
        admitted.published.into_iter().for_each(|id| self.acknowledge(id));
    }

    /// The promise: what is acknowledged is in the catalog.
    fn acknowledge(&mut self, id: DeliveryId) {
        self.unsettled.remove(&id.sequence);
        for (partition, range) in &self.deliveries[&id.sequence] {
            let missing = self.committed.get(partition).map_or(vec![range.clone()], |known| known.missing_in(range.clone()));
            assert!(
                range.is_empty() || missing.is_empty(),
                "delivery {id} was acknowledged, {missing:?} of {partition} is not committed"
            );
        }
    }

    fn register(&mut self, partition: &PartitionKey, range: Range<i64>) {
        let known = self.committed.entry(partition.clone()).or_default();
        assert!(!known.overlaps(&range), "{range:?} of {partition} committed twice");
        known.insert(range.clone());
        self.rejected += coverage_at(partition, range).dispositions().rejected;
    }

    /// What the registrar does, word for word.
    fn settle(&mut self) {
        let Some(commit) = self.closed.pop_front() else { return };
        let overlaps = |row: &CoverageRow| self.committed.get(&row.partition).is_some_and(|known| known.overlaps(&row.range));
        if !self.refusals.admits(&commit) {
            self.refused.push_back((commit.clone(), BTreeMap::new()));
        } else if commit.coverage.iter().any(overlaps) {
            self.refusals.refuse(&commit);
            self.refused.push_back((commit.clone(), self.committed.clone()));
        } else {
            self.rows.extend(read_rows(&commit));
            for row in &commit.coverage {
                self.register(&row.partition, row.range.clone());
                let rows: usize = row.range.clone().map(|offset| rows_at(&row.partition, offset).len()).sum();
                assert_eq!(row.rows, rows as u64);
            }
            commit.deliveries.iter().for_each(|id| self.acknowledge(*id));
            self.registered.push_back(commit.clone());
        }
        remove_local(&commit).unwrap();
    }

    fn learn_committed(&mut self) {
        if let Some(commit) = self.registered.pop_front() {
            self.roller().committed(&commit);
        }
    }

    fn learn_refused(&mut self) {
        let Some((commit, covered)) = self.refused.pop_front() else { return };
        let abandoned = self.roller().abandon(commit.commit_id, covered).unwrap();
        let given_up = |commit: &&ClosedCommit| abandoned.commits.contains(&commit.commit_id);
        let mut listed = self.closed.iter().chain([&commit]).filter(given_up).flat_map(|commit| &commit.deliveries);
        assert!(listed.all(|id| abandoned.refused.contains(id)));
        abandoned.refused.iter().for_each(|id| assert!(self.unsettled.remove(&id.sequence), "{id} was settled before"));
    }

    fn zombie(&mut self, partition: &PartitionKey, range: Range<i64>) {
        let known = self.committed.entry(partition.clone()).or_default();
        for range in known.missing_in(range) {
            self.register(partition, range.clone());
            let rows = range.flat_map(|offset| rows_at(partition, offset));
            self.rows.extend(rows.map(|row| (partition.topic.name.to_string(), partition.partition, row.offset, row.ordinal)));
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Deliver { topic, first, second } => self.deliver(topic, [first, second]),
            Step::Tick(passed_ms) => {
                self.now_ms += passed_ms;
                let now_ms = self.now_ms;
                let closed = self.roller().tick(now_ms).unwrap();
                self.closed.extend(closed);
                assert!(self.roller().next_deadline_ms().is_none_or(|deadline| deadline > now_ms));
            }
            Step::Settle => self.settle(),
            Step::LearnCommitted => self.learn_committed(),
            Step::LearnRefused => self.learn_refused(),
            Step::Zombie { topic, number, range } => self.zombie(&partition(TOPICS[topic], number), range),
            Step::Restart => self.open(),
        }
        let stats = self.roller().stats();
        assert!(stats.open_writers <= 5 && stats.memory_bytes <= 200_000, "{stats:?}");
    }

    /// Everything is delivered again until it has gone through, as senders do whose deliveries are refused.
    fn finish(&mut self) {
        // The roller learns with each refusal what the catalog covers by then, and nobody else commits any more.
        for _ in 0..3 {
            self.deliver(0, [0..OFFSETS, 0..OFFSETS]);
            self.deliver(1, [0..OFFSETS, 0..OFFSETS]);
            let closed = self.roller().flush().unwrap();
            self.closed.extend(closed);
            while !self.closed.is_empty() {
                self.settle();
            }
            while !self.refused.is_empty() {
                self.learn_refused();
            }
            while !self.registered.is_empty() {
                self.learn_committed();
            }
            assert!(self.unsettled.is_empty(), "neither acknowledged nor refused: {:?}", self.unsettled);
        }
        let partitions: Vec<PartitionKey> =
            TOPICS.into_iter().flat_map(|name| [partition(name, 0), partition(name, 1)]).collect();
        let mut expected = Vec::new();
        for partition in &partitions {
            let rows = (0..OFFSETS).flat_map(|offset| rows_at(partition, offset));
            expected.extend(rows.map(|row| (partition.topic.name.to_string(), partition.partition, row.offset, row.ordinal)));
            assert_eq!(self.committed[partition].ranges().collect::<Vec<_>>(), [0..OFFSETS]);
        }
        expected.sort();
        self.rows.sort();
        assert_eq!(self.rows, expected);
        let rejected = (0..OFFSETS).filter(|offset| offset % 8 == 4).count() as u64;
        assert_eq!(self.rejected, 4 * rejected);
        assert_eq!((self.roller().stats().closing, self.roller().stats().open_writers), (0, 0));
        for folder in ["active", "stable"] {
            let left = std::fs::read_dir(self.folder.path().join(folder)).unwrap().count();
            assert_eq!(left, 0, "files left in {folder}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn every_row_is_committed_exactly_once_and_no_delivery_is_acknowledged_before(steps in steps()) {
        let mut world = World {
            folder: tempfile::tempdir().unwrap(),
            roller: None,
            now_ms: 1_764_000_000_000,
            deliveries: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            closed: VecDeque::new(),
            refusals: Refusals::default(),
            registered: VecDeque::new(),
            refused: VecDeque::new(),
            committed: BTreeMap::new(),
            rejected: 0,
            rows: vec![],
        };
        world.open();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}
