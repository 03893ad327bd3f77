//! Random work, faults, crashes, copies and releases against a list of what was appended.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::object_upload::ObjectStore;
use crate::wal_commit::flush::{Flush, Outcome};
use crate::wal_commit::long_term::copier::copy;
use crate::wal_commit::long_term::memory::MemoryShelf;
use crate::wal_commit::long_term::read::{Frames as CopiedFrames, Selection};
use crate::wal_commit::memory::Fault;

#[derive(Clone, Debug)]
enum Step {
    Append {
        partition: i32,
        count: usize,
        bytes: usize,
    },
    Write,
    Sync,
    /// A flush begins, and is run now or when it ends: what comes until then happens beside it.
    Begin {
        sync: bool,
        run: bool,
    },
    Finish,
    SaveKeys,
    NextEpoch,
    /// A segment is copied to the long-term log, where one of the next calls fails. Nothing without such a log.
    Copy {
        after: u64,
    },
    /// Everything up to this many epochs ago is published.
    Release(u64),
    /// One of the next operations fails for good.
    Fault {
        after: u64,
    },
    /// One of the next operations finds the disk full, once.
    Full {
        after: u64,
        reached: usize,
    },
    /// The process ends in an orderly way and starts again.
    Reopen,
    /// Power is lost, and the machine starts again.
    Crash {
        seed: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3, 0usize..6, 0usize..1_500).prop_map(|(partition, count, bytes)| Step::Append { partition, count, bytes }),
        1 => (0..3, 3usize..6, 5_000usize..9_000).prop_map(|(partition, count, bytes)| Step::Append { partition, count, bytes }),
        1 => Just(Step::Write),
        3 => Just(Step::Sync),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(sync, run)| Step::Begin { sync, run }),
        2 => Just(Step::Finish),
        2 => Just(Step::SaveKeys),
        2 => Just(Step::NextEpoch),
        2 => (0u64..12).prop_map(|after| Step::Copy { after }),
        2 => (1u64..5).prop_map(Step::Release),
        1 => (0u64..12).prop_map(|after| Step::Fault { after }),
        1 => (0u64..12, 0usize..5_000).prop_map(|(after, reached)| Step::Full { after, reached }),
        1 => Just(Step::Reopen),
        2 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
    ]
}

/// The naive log: everything appended that may still exist, and how much of it must.
struct Model {
    disk: Memory,
    config: Config,
    log: Option<Log>,
    shelf: MemoryShelf,
    /// Segments that the log wants copied.
    uncopied: std::collections::VecDeque<long_term::Job>,
    appended: Vec<Content>,
    /// The flush under way, and how many frames had been appended when it began.
    flush: Option<(Flush, usize)>,
    /// The epoch whose release frees each of them: its own, or that of the run it was recovered by.
    epochs: Vec<Epoch>,
    synced: usize,
    /// Keys and offsets of everything that was ever synced.
    keys: BTreeSet<(u128, i64)>,
    released: Epoch,
    epoch: u64,
    next_offsets: [i64; 3],
}

/// The generator of choices for a crash.
fn chooser(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed | 1;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    }
}

impl Model {
    fn new(long_term: Option<long_term::Config>) -> Self {
        let (disk, shelf, uncopied) = (Memory::aligned(), MemoryShelf::default(), Default::default());
        let config = Config { bytes_max: 6 * segment::BYTES_MIN, long_term, ..small_config() };
        let (appended, epochs) = (vec![], vec![]);
        let (synced, released, epoch, next_offsets) = (0, Epoch(0), 1_000, [0; 3]);
        let log = Some(open(&disk, &config, epoch).0);
        let keys = BTreeSet::new();
        Model {
            disk,
            config,
            log,
            shelf,
            uncopied,
            appended,
            flush: None,
            epochs,
            synced,
            keys,
            released,
            epoch: epoch + 1,
            next_offsets,
        }
    }

    /// A failure for want of space changes nothing; any other closes the log.
    fn settle<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if error.is_full() => None,
            Err(_) => {
                self.flush = None;
                let log = self.log.as_mut().unwrap();
                assert!(matches!(log.append(Epoch(self.epoch), &batch(0, 0, 1, 1)), Err(Error::Poisoned)));
                assert!(matches!(log.sync(), Err(Error::Poisoned)));
                None
            }
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Append { partition, count, bytes } => {
                let start = self.next_offsets[partition as usize];
                let batch = batch(partition, start, count, bytes);
                let epoch = Epoch(self.epoch);
                let mut result = self.log.as_mut().unwrap().try_append(epoch, &batch);
                if matches!(result, Ok(None)) {
                    // The segment must be closed.
                    self.finish();
                    result = self.log.as_mut().unwrap().append(epoch, &batch).map(Some);
                }
                if self.settle(result).is_some() {
                    self.appended.push(content(epoch, &batch));
                    self.epochs.push(epoch);
                    self.next_offsets[partition as usize] += count as i64;
                }
            }
            Step::Begin { sync, run } => {
                self.finish();
                if let Some(mut flush) = self.log.as_mut().unwrap().begin(sync) {
                    if run {
                        flush.run();
                    }
                    self.flush = Some((flush, self.appended.len()));
                }
            }
            Step::Finish => self.finish(),
            Step::Write => {
                self.finish();
                let result = self.log.as_mut().unwrap().write();
                self.settle(result);
            }
            Step::Sync => {
                self.finish();
                let result = self.log.as_mut().unwrap().sync();
                if self.settle(result).is_some() {
                    self.synced = self.appended.len();
                }
            }
            Step::SaveKeys => {
                let result = self.log.as_mut().unwrap().save_keys();
                self.settle(result);
            }
            Step::NextEpoch => self.epoch += 1,
            Step::Copy { after } => self.copy(after),
            Step::Release(ago) => {
                let epoch = Epoch(self.epoch - ago);
                // Only what was acknowledged can have been published.
                let unsynced = self.epochs[self.synced..].iter().min().copied().unwrap_or(epoch);
                self.released = self.released.max(epoch.min(unsynced));
                let result = self.log.as_mut().unwrap().release(self.released);
                self.settle(result);
            }
            Step::Fault { after } => self.disk.fail(after, Fault::Io),
            Step::Full { after, reached } => self.disk.fail(after, Fault::Full(reached)),
            Step::Reopen => {
                self.finish();
                self.reopen(self.disk.clone());
            }
            Step::Crash { seed } => {
                let crashed = self.disk.crash(&mut chooser(seed));
                self.reopen(crashed);
            }
        }
    }

    fn finish(&mut self) {
        let Some((mut flush, appended)) = self.flush.take() else { return };
        if matches!(flush.outcome, Outcome::Pending) {
            flush.run();
        }
        let is_sync = flush.sync;
        let result = self.log.as_mut().unwrap().finish(flush);
        if self.settle(result).is_some() && is_sync {
            self.synced = self.synced.max(appended);
        }
    }

    fn copy(&mut self, after: u64) {
        let Some(config) = self.config.long_term.clone() else { return };
        self.uncopied.extend(std::iter::from_fn(|| self.log.as_mut().unwrap().take_uncopied()));
        let Some(&job) = self.uncopied.front() else { return };
        self.shelf.fail(after);
        if copy(&self.disk, &self.shelf, &config, job, &|| false).is_ok() {
            self.uncopied.pop_front();
            let result = self.log.as_mut().unwrap().copied(job.segment);
            self.settle(result);
        }
    }

    fn reopen(&mut self, disk: Memory) {
        (self.log, self.flush) = (None, None);
        self.uncopied.clear();
        // A store keeps what it has confirmed, whatever becomes of this machine.
        self.shelf = self.shelf.healed();
        disk.heal();
        self.disk = disk;
        self.epoch += 10;
        let (log, recovery) = open(&self.disk, &self.config, self.epoch);
        let found = recovered(&recovery);
        self.check_frames(&found);
        self.check_rest(&recovery, &found);
        // What was not released enters the dataflow again, at the epoch of the run.
        let lost = self.next_offsets;
        self.synced = found.len();
        self.epochs = vec![Epoch(self.epoch); found.len()];
        self.appended = found;
        self.next_offsets = lost.map(|offset| offset + 1);
        self.log = Some(log);
        self.epoch += 1;
    }

    /// One unbroken run of what was appended: from no later than the first frame that may be unpublished, to no earlier than
    /// the last that was synced.
    fn check_frames(&self, found: &[Content]) {
        let needed = self.epochs.iter().position(|&epoch| epoch >= self.released).unwrap_or(self.appended.len());
        let runs = (0..=self.appended.len()).filter(|&from| self.appended[from..].starts_with(found));
        let good = runs.filter(|&from| found.is_empty() || (from <= needed && from + found.len() >= self.synced));
        let nothing_needed = needed >= self.synced && found.is_empty();
        assert!(
            if found.is_empty() { nothing_needed } else { good.count() > 0 },
            "{} frames found, {} appended, {} synced, first needed {needed}",
            found.len(),
            self.appended.len(),
            self.synced
        );
    }

    fn check_rest(&mut self, recovery: &Recovery, found: &[Content]) {
        assert!(!recovery.report.is_loss(), "a crash is no loss: {:?}", recovery.report);
        let mut coverage = std::collections::BTreeMap::new();
        for frame in found.iter().filter(|frame| !frame.coverage.range().is_empty()) {
            let entry: &mut crate::coverage::OffsetSet = coverage.entry(frame.coverage.partition.clone()).or_default();
            entry.insert(frame.coverage.range());
        }
        assert_eq!(recovery.coverage, coverage);
        // The keys of everything synced are remembered, whatever became of the segment.
        let kept = self.appended[..self.synced].iter().chain(found);
        self.keys.extend(kept.flat_map(|frame| &frame.records).map(|(offset, _, key, ..)| (*key, *offset)));
        if self.config.long_term.is_some() {
            let copies = CopiedFrames::open(Arc::new(self.shelf.clone()), Selection::default()).unwrap().map(Result::unwrap);
            let copied = copies.map(|frame| content(frame.epoch, &frame.batch));
            let held = copied.chain(found.iter().cloned()).flat_map(|frame| frame.records);
            let held: BTreeSet<_> = held.map(|(offset, _, key, ..)| (key, offset)).collect();
            assert!(held.is_superset(&self.keys), "synced, and in neither log: {:?}", self.keys.difference(&held).next());
        }
        let remembered: BTreeSet<_> = recovery.keys().map(|key| key.unwrap()).map(|key| (key.key, key.offset)).collect();
        assert_eq!(remembered, self.keys);
    }
}

proptest! {
    #[test]
    fn what_is_recovered_is_an_unbroken_run_that_holds_everything_synced_and_unpublished(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        let mut model = Model::new(None);
        for step in steps {
            model.run(step);
        }
        model.reopen(model.disk.clone());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_was_synced_is_in_one_of_the_two_logs_for_ever(steps in proptest::collection::vec(step(), 1..120)) {
        let (store, node) = (ObjectStore::Memory, "node-1".into());
        let mut model = Model::new(Some(long_term::Config { store, node, compression_level: 1, cleanup: None }));
        for step in steps {
            model.run(step);
        }
        model.reopen(model.disk.clone());
    }
}
