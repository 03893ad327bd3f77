//! The source in dataflows of one to four workers.

use std::sync::Mutex;

use timely::dataflow::operators::Probe;

use super::*;
use crate::batch::{RawBatch, UniqueBatch};
use crate::budget::{Budget, Load};
use crate::capture::tests::{Content, Seen, content, contents_of, recorded, run, watch};
use crate::capture::{self, recorder::Recorder};
use crate::clock::{Clock, ManualClock};
use crate::fault::Health;
use crate::wal_commit::disk::Directory;

/// A capture on a real disk, as the source opens it by its path.
struct Replay {
    folder: tempfile::TempDir,
    ports: FeedPorts,
    stats: Arc<Stats>,
    clock: ManualClock,
}

impl Replay {
    fn new(batches: &[(Epoch, RawBatch)], workers: usize, budget_bytes: usize) -> Replay {
        let folder = tempfile::tempdir().unwrap();
        let config = capture::Config { file_bytes_max: 20_000, ..capture::Config::new(folder.path()) };
        let disk = Directory::create(folder.path(), false).unwrap();
        let mut recorder = Recorder::open(Arc::new(disk), config).unwrap();
        batches.iter().for_each(|(epoch, batch)| recorder.push(*epoch, batch).unwrap());
        recorder.finish().unwrap();
        let budget = Budget::new(Load { bytes: budget_bytes, messages: usize::MAX });
        let clock = ManualClock::default();
        let (health, stats) = (Health::default(), Arc::new(Stats::default()));
        let ports = FeedPorts {
            place: Place { process: 0, worker: 0, workers, peers: workers },
            budget,
            health,
            clock: Arc::new(clock.clone()),
        };
        Replay { folder, ports, stats, clock }
    }

    fn config(&self, speed: Speed) -> Config {
        Config { path: self.folder.path().to_owned(), selection: Selection::default(), speed }
    }

    /// Replays all of it. `during` sees the frontier after each step of each worker.
    fn run(&self, speed: Speed, during: impl Fn(Epoch, usize) + Send + Sync + 'static) -> Vec<Content> {
        let (feed, thread) = Feed::<RawBatch>::start(self.config(speed), self.ports.clone(), self.stats.clone()).unwrap();
        let (seen, during) = (Seen::default(), Arc::new(during));
        let to = seen.clone();
        run(self.ports.place.workers, &self.ports.health, move |worker| {
            let (seen, count) = (to.clone(), to.clone());
            let probe = worker.dataflow::<Epoch, _, _>(|scope| {
                let batches = capture_source(scope, NAME, Ports { feed: feed.clone() }, Place::alone(&scope));
                let seen = watch(batches, move |epoch, batch| seen.lock().unwrap().push(content(epoch, batch)));
                seen.probe().0
            });
            let during = during.clone();
            Box::new(move || {
                let frontier = probe.with_frontier(|frontier| frontier.first().copied());
                during(frontier.unwrap_or(Epoch(u64::MAX)), count.lock().unwrap().len());
                !probe.done()
            })
        });
        thread.join().unwrap();
        std::mem::take(&mut seen.lock().unwrap())
    }
}

#[test]
fn the_same_batches_come_in_the_same_epochs_whatever_the_number_of_workers() {
    let batches = recorded(40, 300);
    for workers in 1..=4 {
        let replay = Replay::new(&batches, workers, 1 << 20);
        let mut seen = replay.run(Speed::Full, |_, _| {});
        let of_partition = |contents: &[Content], number: i32| {
            contents
                .iter()
                .filter(|content| content.partition.partition == number)
                .map(|content| content.offsets)
                .collect::<Vec<_>>()
        };
        for number in 0..3 {
            assert!(of_partition(&seen, number).is_sorted(), "{workers} workers: batches of a partition come in order");
        }
        seen.sort();
        assert_eq!(seen, contents_of(&batches), "{workers} workers");
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let stats = &replay.stats;
        assert!(count(&stats.total_bytes) > 0 && count(&stats.total_bytes) == count(&stats.read_bytes));
        assert_eq!((count(&stats.batches), count(&stats.damaged)), (batches.len() as u64, 0));
        assert_eq!(replay.ports.budget.in_flight(), Load::default());
    }
}

#[test]
fn an_epoch_that_exceeds_the_budget_is_emitted_whole() {
    let batches = recorded(10, 1_000);
    for workers in 1..=4 {
        // One byte: every epoch exceeds it, and what follows lets go only of epochs that are closed.
        let replay = Replay::new(&batches, workers, 1);
        let (feed, _thread) =
            Feed::<RawBatch>::start(replay.config(Speed::Full), replay.ports.clone(), replay.stats.clone()).unwrap();
        let seen = Seen::default();
        let (to, budget) = (seen.clone(), replay.ports.budget.clone());
        run(workers, &replay.ports.health, move |worker| {
            let (to, budget) = (to.clone(), budget.clone());
            let probe = worker.dataflow::<Epoch, _, _>(|scope| {
                let batches = capture_source(scope, NAME, Ports { feed: feed.clone() }, Place::alone(&scope));
                let held = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
                let holding = held.clone();
                let inspected = watch(batches, move |epoch, batch| {
                    to.lock().unwrap().push(content(epoch, batch));
                    holding.borrow_mut().push((epoch, batch.clone()));
                });
                (inspected.probe().0, held)
            });
            Box::new(move || {
                let (probe, held) = &probe;
                held.borrow_mut().retain(|(epoch, _)| probe.less_equal(epoch));
                let epochs: std::collections::BTreeSet<_> = held.borrow().iter().map(|(epoch, _)| *epoch).collect();
                assert!(epochs.len() <= 1 || budget.limit().bytes > 1, "no epoch is begun while the budget is full");
                !probe.done()
            })
        });
        let mut seen = std::mem::take(&mut *seen.lock().unwrap());
        seen.sort();
        assert_eq!(seen, contents_of(&batches), "{workers} workers");
    }
}

#[test]
fn at_recorded_speed_an_epoch_comes_when_its_time_has_come() {
    // Not every worker has something of every epoch.
    let is_there = |(epoch, batch): &(Epoch, RawBatch)| batch.partition.partition as u64 <= epoch.0 / 10 % 3;
    let batches: Vec<_> = recorded(12, 20).into_iter().filter(is_there).collect();
    for workers in 1..=4 {
        let replay = Replay::new(&batches, workers, 1 << 20);
        replay.clock.set_ms(5_000);
        // Workers take turns: one that is late must not set it back.
        let clock = Mutex::new(replay.clock.clone());
        let epochs: Vec<Epoch> = batches.iter().map(|(epoch, _)| *epoch).collect();
        // Twice as fast: an epoch every 5 ms. The clock goes on once all of what is due has come, and nothing else.
        let mut seen = replay.run(Speed::Recorded(2.0), move |frontier, seen| {
            let clock = clock.lock().unwrap();
            let passed_ms = clock.now_ms() - 5_000;
            let due = epochs.partition_point(|epoch| epoch.0 - epochs[0].0 <= passed_ms * 2);
            assert!(seen <= due, "{seen} batches after {passed_ms} ms, {due} are due");
            if epochs.get(due).is_some_and(|next| *next == frontier) && seen == due {
                clock.set_ms(5_000 + passed_ms + 5);
            }
        });
        seen.sort();
        assert_eq!(seen, contents_of(&batches), "{workers} workers");
    }
    let replay = Replay::new(&batches, 1, 1 << 20);
    for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(
            Feed::<RawBatch>::start(replay.config(Speed::Recorded(factor)), replay.ports.clone(), replay.stats.clone()).is_err()
        );
    }
}

#[test]
fn a_stop_ends_it_behind_a_whole_epoch() {
    let batches = recorded(200, 2_000);
    for workers in [1, 2, 4] {
        let replay = Replay::new(&batches, workers, 60_000);
        let health = replay.ports.health.clone();
        let mut seen = replay.run(Speed::Full, move |frontier, _| {
            if frontier > Epoch(1_100) {
                health.stop();
            }
        });
        seen.sort();
        assert!(seen.len() >= 30 && seen.len().is_multiple_of(3), "{workers} workers: {} batches", seen.len());
        assert!(contents_of(&batches).starts_with(&seen), "{workers} workers");
    }
}

#[test]
fn a_capture_that_cannot_be_read_raises_a_fault_and_its_end_is_not_reached() {
    let replay = Replay::new(&recorded(3, 20), 1, 1 << 20);
    let check = |config: Config, says: &str| {
        let ports = FeedPorts { health: Health::default(), ..replay.ports.clone() };
        let health = ports.health.clone();
        let (feed, thread) = Feed::<UniqueBatch>::start(config, ports, replay.stats.clone()).unwrap();
        run(1, &health, move |worker| {
            let probe = worker.dataflow::<Epoch, _, _>(|scope| {
                capture_source(scope, NAME, Ports { feed: feed.clone() }, Place::alone(&scope)).probe().0
            });
            Box::new(move || {
                assert!(!probe.done(), "the frontier passed what was not read");
                true
            })
        });
        thread.join().unwrap();
        let fault = health.fault().unwrap();
        assert!(fault.stage == NAME && fault.message.contains(says), "{fault}");
    };
    check(replay.config(Speed::Full), "holds raw batches, and unique batches are wanted");
    let empty = tempfile::tempdir().unwrap();
    check(Config { path: empty.path().to_owned(), ..replay.config(Speed::Full) }, "there is no capture in");
    check(Config { path: replay.folder.path().join("missing"), ..replay.config(Speed::Full) }, "No such file");
}

#[test]
fn damage_is_counted_and_the_rest_replayed() {
    let batches = recorded(10, 3_000);
    let replay = Replay::new(&batches, 2, 1 << 20);
    let file = replay.folder.path().join(&Files::open(replay.folder.path()).unwrap().files()[0].name);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let mut seen = replay.run(Speed::Full, |_, _| {});
    seen.sort();
    assert_eq!(replay.stats.damaged.load(Ordering::Relaxed), 1);
    assert_eq!(seen, contents_of(&batches));
}
