//! The roller against a model that knows only the definition: each row exactly once, each acknowledgement after its commit.

use super::*;

const OFFSETS: i64 = 60;

/// What may happen to a storage node.
#[derive(Clone, Debug)]
enum Step {
    /// A delivery of one or both partitions of a topic; whatever was delivered before.
    Deliver { topic: usize, first: Range<i64>, second: Range<i64> },
    /// Time passes.
    Tick(u64),
    /// The oldest closed commit reaches the catalog.
    Commit,
    /// The oldest closed commit is refused: another node had committed a part of it.
    Overlap,
    /// The process dies; what was not committed is gone.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..OFFSETS, 0..15i64).prop_map(|(start, length)| start..(start + length).min(OFFSETS));
    let step = prop_oneof![
        8 => (0..2usize, range(), range()).prop_map(|(topic, first, second)| Step::Deliver { topic, first, second }),
        3 => (1..40u64).prop_map(Step::Tick),
        4 => Just(Step::Commit),
        1 => Just(Step::Overlap),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
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
    closed: Vec<ClosedCommit>,
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
        self.roller = None;
        self.roller = Some(Roller::open(Config { seed: self.now_ms, ..config }, self.committed.clone()).unwrap());
    }

    fn roller(&mut self) -> &mut Roller {
        self.roller.as_mut().unwrap()
    }

    fn deliver(&mut self, topic: usize, ranges: [Range<i64>; 2]) {
        let name = ["orders", "events"][topic];
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
        let now_ms = self.now_ms;
        let admitted = self.roller().admit(received, now_ms).unwrap();
        self.closed.extend(admitted.closed);
        admitted.published.into_iter().for_each(|id| self.acknowledge(id));
    }

    /// The promise: what is acknowledged is in the catalog.
    fn acknowledge(&self, id: DeliveryId) {
        for (partition, range) in &self.deliveries[&id.sequence] {
            let missing = self.committed.get(partition).map_or(vec![range.clone()], |known| known.missing_in(range.clone()));
            assert!(
                range.is_empty() || missing.is_empty(),
                "delivery {id} was acknowledged, {missing:?} of {partition} is not committed"
            );
        }
    }

    fn commit(&mut self) {
        if self.closed.is_empty() {
            return;
        }
        let commit = self.closed.remove(0);
        self.rows.extend(read_rows(&commit));
        for row in &commit.coverage {
            let known = self.committed.entry(row.partition.clone()).or_default();
            assert!(!known.overlaps(&row.range), "{:?} of {} committed twice", row.range, row.partition);
            known.insert(row.range.clone());
            let rows: usize = row.range.clone().map(|offset| rows_at(&row.partition, offset).len()).sum();
            assert_eq!(row.rows, rows as u64);
            self.rejected += row.dispositions.rejected;
        }
        self.roller().committed(&commit);
        commit.deliveries.iter().for_each(|id| self.acknowledge(*id));
    }

    fn overlap(&mut self) {
        let Some(row) = self.closed.first().and_then(|commit| commit.coverage.first()).cloned() else { return };
        // The other node commits the lower half of one range.
        let range = row.range.start..(row.range.start + row.range.end + 1) / 2;
        self.committed.entry(row.partition.clone()).or_default().insert(range.clone());
        self.rejected += coverage_at(&row.partition, range.clone()).dispositions().rejected;
        let rows = range.flat_map(|offset| rows_at(&row.partition, offset));
        self.rows
            .extend(rows.map(|row| (row.partition.topic.name.to_string(), row.partition.partition, row.offset, row.ordinal)));
        let (commit_id, committed) = (self.closed[0].commit_id, self.committed.clone());
        let abandoned = self.roller().abandon(commit_id, committed).unwrap();
        assert!(abandoned.commits.contains(&commit_id));
        let listed = self
            .closed
            .iter()
            .filter(|commit| abandoned.commits.contains(&commit.commit_id))
            .flat_map(|commit| &commit.deliveries);
        assert!(listed.into_iter().all(|id| abandoned.refused.contains(id)));
        self.closed.retain(|commit| !abandoned.commits.contains(&commit.commit_id));
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
            Step::Commit => self.commit(),
            Step::Overlap => self.overlap(),
            Step::Restart => self.open(),
        }
        let stats = self.roller().stats();
        assert!(stats.open_writers <= 5 && stats.memory_bytes <= 200_000, "{stats:?}");
    }

    /// Everything is delivered once more, as a write-ahead log would.
    fn finish(&mut self) {
        self.deliver(0, [0..OFFSETS, 0..OFFSETS]);
        self.deliver(1, [0..OFFSETS, 0..OFFSETS]);
        let closed = self.roller().flush().unwrap();
        self.closed.extend(closed);
        while !self.closed.is_empty() {
            self.commit();
        }
        let partitions: Vec<PartitionKey> =
            ["orders", "events"].into_iter().flat_map(|name| [partition(name, 0), partition(name, 1)]).collect();
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
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn every_row_is_committed_exactly_once_and_no_delivery_is_acknowledged_before(steps in steps()) {
        let mut world = World {
            folder: tempfile::tempdir().unwrap(),
            roller: None,
            now_ms: 1_764_000_000_000,
            deliveries: BTreeMap::new(),
            closed: vec![],
            committed: BTreeMap::new(),
            rejected: 0,
            rows: vec![],
        };
        world.open();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}
