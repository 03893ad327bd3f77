//! The operator in dataflows of one to four workers.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use timely::dataflow::InputHandle;
use timely::dataflow::operators::{Input, Probe};

use super::*;
use crate::budget::{Budget, Load};
use crate::place::Place;
use crate::wal_commit::memory::Fault;

/// What a worker does, and what it sees.
struct Edge {
    input: Option<InputHandle<Epoch, timely::container::CapacityContainerBuilder<Vec<RawBatch>>>>,
    probe: timely::dataflow::ProbeHandle<Epoch>,
    passed: Rc<RefCell<Vec<Content>>>,
}

fn edge(worker: &mut timely::worker::Worker, writer: Writer<RawBatch>) -> Edge {
    let passed = Rc::new(RefCell::new(Vec::new()));
    let seen = passed.clone();
    let (input, probe) = worker.dataflow::<Epoch, _, _>(|scope| {
        let (input, stream) = scope.new_input();
        let passed = capture(stream, Ports { writer }, Place::alone(&scope));
        let (probe, _) = watch(passed, move |epoch, batch| seen.borrow_mut().push(content(epoch, batch))).probe();
        (input, probe)
    });
    Edge { input: Some(input), probe, passed }
}

/// Passes `batches` on `workers` workers, partitions by turns, and gives what passed.
fn pass(disk: &Memory, config: Config, workers: usize, batches: &[(Epoch, RawBatch)]) -> Vec<Content> {
    let (health, seen) = (Health::default(), Seen::default());
    let writer = writer(disk, config, &health);
    let (batches, to, of_graph) = (batches.to_vec(), seen.clone(), writer.clone());
    run(workers, &health, move |worker| {
        let index = worker.index();
        let mut edge = edge(worker, of_graph.clone());
        // In an order that the capture does not keep.
        let backwards = batches.chunk_by(|(one, _), (next, _)| one == next).flat_map(|of_epoch| of_epoch.iter().rev());
        let mut mine: VecDeque<_> =
            backwards.filter(|(_, batch)| batch.partition.partition as usize % workers == index).cloned().collect();
        let to = to.clone();
        Box::new(move || {
            if let (Some((epoch, batch)), Some(input)) = (mine.pop_front(), &mut edge.input) {
                input.advance_to(epoch);
                input.send(batch);
                return true;
            }
            edge.input = None;
            if !edge.probe.done() {
                return true;
            }
            to.lock().unwrap().append(&mut edge.passed.borrow_mut());
            false
        })
    });
    assert_eq!(health.fault(), None);
    writer.shutdown();
    let mut passed = std::mem::take(&mut *seen.lock().unwrap());
    passed.sort();
    passed
}

#[test]
fn a_capture_holds_what_passed_and_the_number_of_workers_changes_nothing() {
    let batches = recorded(40, 200);
    for workers in 1..=4 {
        let disk = Memory::default();
        let config = Config { file_bytes_max: 20_000, ..config() };
        assert_eq!(pass(&disk, config, workers, &batches), contents_of(&batches), "{workers} workers");
        assert_eq!(read_whole(&disk), contents_of(&batches), "{workers} workers");
    }
}

#[test]
fn a_queue_with_room_for_nothing_delays_batches_and_loses_none() {
    let batches = recorded(20, 50);
    let disk = Memory::default();
    let config = Config { queue_bytes_max: 0, ..config() };
    assert_eq!(pass(&disk, config, 2, &batches), contents_of(&batches));
    assert_eq!(read_whole(&disk), contents_of(&batches));
}

/// Feeds one worker, with `during` called after each step until it says that it is done.
fn with_edge(writer: &Writer<RawBatch>, health: &Health, during: impl Fn(&mut Edge) -> bool + Send + Sync + 'static) {
    let (writer, during) = (writer.clone(), Arc::new(during));
    run(1, health, move |worker| {
        let (mut edge, during) = (edge(worker, writer.clone()), during.clone());
        Box::new(move || during(&mut edge))
    });
}

#[test]
fn while_the_disk_is_full_the_frontier_is_held_and_then_nothing_is_missing() {
    let (disk, health, batches) = (Memory::default(), Health::default(), recorded(3, 60_000));
    disk.limit(Some(0));
    let budget = Budget::new(Load { bytes: 1 << 20, messages: 1 << 20 });
    let writer = writer(&disk, Config { queue_bytes_max: 0, ..config() }, &health);
    let (stats, is_sent, of_test) = (writer.stats(), AtomicBool::new(false), (disk.clone(), batches.clone(), budget.clone()));
    with_edge(&writer, &health, move |edge| {
        let (disk, batches, budget) = &of_test;
        if !is_sent.swap(true, Ordering::AcqRel) {
            let input = edge.input.as_mut().unwrap();
            for (epoch, batch) in batches {
                budget.collect(batch.load());
                input.advance_to(*epoch);
                input.send(batch.clone().charged(budget.seal(batch.load())));
            }
            edge.input = None;
            return true;
        }
        if stats.retries.load(Ordering::Relaxed) < 5 {
            assert!(edge.probe.less_equal(&Epoch(1_000)) && !edge.probe.done(), "the frontier passed what is not written");
            assert!(edge.passed.borrow().is_empty(), "batches are held back while the writer is behind");
            assert!(budget.in_flight().bytes > 0, "what waits is counted");
            return true;
        }
        disk.limit(None);
        if !edge.probe.done() {
            return true;
        }
        let mut passed = edge.passed.borrow().clone();
        passed.sort();
        assert_eq!(passed, contents_of(batches));
        false
    });
    writer.shutdown();
    assert_eq!(health.fault(), None);
    assert_eq!(read_whole(&disk), contents_of(&batches));
    assert_eq!(budget.in_flight(), Load::default());
}

#[test]
fn a_failed_sync_raises_a_fault_and_the_frontier_stays() {
    let (disk, health, batches) = (Memory::default(), Health::default(), recorded(2, 100));
    // Creating, head, directory, mark and block, index and tail; then the sync.
    disk.fail(6, Fault::Io);
    let writer = writer(&disk, Config { file_bytes_max: 1, ..config() }, &health);
    let is_sent = AtomicBool::new(false);
    with_edge(&writer, &health, move |edge| {
        if !is_sent.swap(true, Ordering::AcqRel) {
            let input = edge.input.as_mut().unwrap();
            for (epoch, batch) in &batches {
                input.advance_to(*epoch);
                input.send(batch.clone());
            }
            edge.input = None;
        }
        assert!(edge.probe.less_equal(&Epoch(1_000)), "the frontier passed what may be lost");
        true
    });
    let fault = health.fault().unwrap();
    assert!(fault.stage == NAME && fault.message.starts_with("failed to sync memory/capture-"), "{fault}");
}

#[test]
fn a_process_that_is_killed_leaves_all_that_the_frontier_has_passed() {
    let (disk, health, batches) = (Memory::default(), Health::default(), recorded(30, 100));
    let writer = writer(&disk, Config { file_bytes_max: 15_000, ..config() }, &health);
    let (of_test, next) = ((disk.clone(), batches.clone()), std::sync::Mutex::new(0));
    with_edge(&writer, &health, move |edge| {
        let (disk, batches) = &of_test;
        let mut next = next.lock().unwrap();
        if let Some(input) = &mut edge.input {
            for (epoch, batch) in &batches[*next..*next + 3] {
                input.advance_to(*epoch);
                input.send(batch.clone());
            }
            *next += 3;
            if *next == batches.len() {
                edge.input = None;
            }
        }
        let passed = edge.probe.with_frontier(|frontier| frontier.first().copied().unwrap_or(Epoch(u64::MAX)));
        let (left, errors) = read_all(&disk.copy(), Selection::default());
        assert!(errors.iter().all(Error::is_damage), "{errors:?}");
        let whole = contents_of(batches);
        assert!(whole.starts_with(&left), "a capture has no gap");
        let needed = whole.iter().filter(|content| content.epoch < passed).count();
        assert!(left.len() >= needed, "{} of {needed} that the frontier has passed", left.len());
        !edge.probe.done()
    });
    writer.shutdown();
    assert_eq!(read_whole(&disk), contents_of(&batches));
}
