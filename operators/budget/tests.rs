use super::*;
use crate::coverage::TopicKey;

fn load(bytes: usize) -> Load {
    Load { bytes, messages: 1 }
}

/// Only for what its charge says: the batch itself is not in flight.
fn stay(budget: &Arc<Budget>, load: Load) -> Option<Charge> {
    budget.collect(load);
    budget.stay(&budget.seal(load))
}

fn partition(number: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
    PartitionKey { topic: topic.into(), partition: number }
}

/// A batch of a partition, collected and sealed.
fn read(budget: &Arc<Budget>, lane: &Arc<Lane>, load: Load) -> Charge {
    budget.collect(load);
    lane.seal(load)
}

#[test]
fn a_charge_that_grew_is_given_back_as_large_as_it_became() {
    let budget = Budget::new(load(1_000));
    budget.collect(Load { bytes: 100, messages: 2 });
    let charge = budget.seal(Load { bytes: 100, messages: 2 }).grown(500);
    assert_eq!((charge.load(), budget.in_flight()), (Load { bytes: 600, messages: 2 }, Load { bytes: 600, messages: 2 }));
    drop(charge);
    assert_eq!(budget.in_flight(), Load::default());
    assert_eq!(Charge::default().grown(5).load(), Load::default());
}

#[test]
fn what_is_behind_the_log_goes_on_being_in_flight_however_it_grows() {
    let budget = Budget::new(load(1_000));
    let lane = budget.lane(&partition(0));
    let charge = read(&budget, &lane, load(100));
    let behind = budget.stay(&charge).unwrap();
    let charge = charge.with(behind).grown(50);
    assert_eq!((budget.in_flight(), budget.behind(), lane.before_log()), (load(150), load(150), Load::default()));
    let other = charge.clone();
    drop(charge);
    assert_eq!(budget.behind(), load(150));
    drop(other);
    assert_eq!((budget.in_flight(), budget.behind()), (Load::default(), Load::default()));
}

#[test]
fn a_charge_is_given_back_with_its_last_clone_and_only_once() {
    let budget = Budget::new(Load { bytes: 100, messages: 10 });
    budget.collect(load(60));
    budget.collect(load(40));
    assert!(budget.is_full());
    let charge = budget.seal(Load { bytes: 100, messages: 2 });
    let other = charge.clone();
    drop(charge);
    assert_eq!(budget.in_flight(), Load { bytes: 100, messages: 2 });
    drop(other);
    assert_eq!(budget.in_flight(), Load::default());
    drop(Charge::default());
    assert_eq!(budget.in_flight(), Load::default());
}

#[test]
fn reading_resumes_only_when_a_quarter_is_free() {
    let budget = Budget::new(Load { bytes: 100, messages: 10 });
    budget.collect(load(80));
    assert!(!budget.is_full() && !budget.has_room());
    drop(budget.seal(load(80)));
    assert!(budget.has_room());
    budget.collect(Load { bytes: 0, messages: 10 });
    assert!(budget.is_full());
}

#[test]
fn durable_batches_stay_only_in_half_of_the_budget_but_one_always_can() {
    let budget = Budget::new(Load { bytes: 100, messages: 10 });
    let huge = stay(&budget, load(90)).expect("the room is empty");
    assert!(stay(&budget, load(1)).is_none());
    drop(huge);
    let first = stay(&budget, load(30)).expect("there is room");
    assert!(stay(&budget, load(30)).is_none());
    let second = stay(&budget, load(20)).expect("there is room");
    assert_eq!(budget.behind(), Load { bytes: 50, messages: 2 });
    // What is read back has room of its own.
    assert!(budget.may_recall());
    let recalled = budget.recall(load(50));
    assert!(!budget.may_recall());
    drop((first, second, recalled));
    assert!(budget.may_recall());
    assert_eq!(budget.behind(), Load::default());
}

#[test]
fn a_partition_busy_alone_gets_eight_ninths_and_what_is_left_is_for_others() {
    let budget = Budget::new(Load { bytes: 900, messages: 9_000 });
    let (busy, quiet) = (budget.lane(&partition(0)), budget.lane(&partition(1)));
    let mut held = Vec::new();
    while !busy.is_over(Load::default()) {
        held.push(read(&budget, &busy, load(10)));
    }
    assert_eq!(busy.in_flight(), Load { bytes: 810, messages: 81 }, "800 are eight times the hundred that are free");
    assert!(!quiet.is_over(load(10)), "there is room for a quiet one");
    held.truncate(71);
    assert!(!busy.is_over(Load::default()) && busy.is_relieved(Load::default()), "760 free eight times 190");
    // Messages count as well as bytes.
    held.push(read(&budget, &busy, Load { bytes: 0, messages: 8_000 }));
    assert!(busy.is_over(Load::default()));
}

#[test]
fn what_is_behind_the_log_does_not_count_against_its_partition() {
    let budget = Budget::new(load(1_000));
    let lane = budget.lane(&partition(0));
    let charge = read(&budget, &lane, Load { bytes: 400, messages: 0 }).grown(50);
    assert_eq!(lane.before_log(), Load { bytes: 450, messages: 0 });
    let behind = budget.stay(&charge).expect("there is room behind the log");
    assert_eq!((lane.before_log(), lane.in_flight().bytes), (Load::default(), 450));
    drop(charge);
    drop(behind);
    assert_eq!((lane.in_flight(), budget.in_flight()), (Load::default(), Load::default()));
}

#[test]
fn a_lane_is_the_same_as_long_as_anything_of_its_partition_is_in_flight() {
    let budget = Budget::new(load(1_000));
    let charge = read(&budget, &budget.lane(&partition(0)), load(10));
    let again = budget.lane(&partition(0));
    assert_eq!(again.in_flight(), load(10), "its collector went with a revoke, its batch is still there");
    drop((charge, again));
    assert_eq!(budget.lane(&partition(1)).in_flight(), Load::default());
    assert_eq!(budget.lanes.lock().unwrap().len(), 1, "a lane that nobody holds is forgotten");
}

#[test]
fn a_process_near_its_ceiling_reads_only_what_it_needs_to_go_on() {
    let budget = Budget::new(Load { bytes: 800, messages: 80 });
    let charge = |bytes| {
        let load = Load { bytes, messages: 1 };
        budget.collect(load);
        budget.seal(load)
    };
    budget.press(true);
    let eighth = charge(100);
    assert!(!budget.is_full() && budget.has_room());
    let more = charge(1);
    assert!(budget.is_full() && !budget.has_room());
    budget.press(false);
    assert!(!budget.is_full() && budget.has_room());
    budget.press(true);
    // Storage is away: what is behind the log does not keep reading from going on, and no more stays in memory there.
    let behind = budget.stay(&eighth).unwrap();
    assert!(budget.stay(&more).is_none());
    assert!(!budget.is_full() && budget.has_room());
    drop((eighth, behind));
    assert!(!budget.is_full() && budget.has_room());
}
