//! What the judge makes of recalled keys.

use super::*;
use crate::coverage::TopicKey;

const WINDOW_MS: u64 = 1_000;

fn partition(number: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
    PartitionKey { topic: topic.into(), partition: number }
}

fn judge() -> Judge {
    let ports = Ports { remembered: remember::Feed::default(), stats: Arc::default(), health: Health::default() };
    let place = Place { process: 0, worker: 0, workers: 1, peers: 1 };
    Judge::new(Config { window_ms: WINDOW_MS, bytes_max: 1 << 20 }, ports, place)
}

/// Keys by offset and time.
fn keys(keys: &[(i64, i64, u128)]) -> Vec<Asked> {
    keys.iter().map(|&(offset, time_ms, key)| Asked { offset, time_ms, key }).collect()
}

fn recalled(number: i32, asked: &[(i64, i64, u128)]) -> Recalled {
    let keys = keys(asked);
    let progress = Progress::of(0, keys.iter().map(|asked| asked.time_ms)).map(|progress| (progress.time_ms, progress.records));
    Recalled { owner: 0, partition: partition(number), start: asked[0].0, progress, keys }
}

fn question(number: i32, asked: &[(i64, i64, u128)]) -> Question {
    let Recalled { owner, partition, start, progress, keys } = recalled(number, asked);
    let keys = keys.into_iter().enumerate().map(|(position, asked)| (position as u32, asked)).collect();
    Question { owner, asker: 0, ticket: 1, partition, start, progress, keys }
}

fn duplicates(judge: &mut Judge, question: Question) -> Vec<u32> {
    judge.decide(Epoch(50_000), vec![question]).unwrap().remove(0).duplicates
}

#[test]
fn a_duplicate_of_what_a_former_owner_handled_is_found_and_other_records_pass() {
    let mut judge = judge();
    judge.recall(Epoch(40_000), vec![recalled(0, &[(7, 10_000, 1), (8, 10_100, 2)])]).unwrap();
    let asked = question(0, &[(9, 10_500, 1), (10, 10_500, 3), (11, 10_600, 2)]);
    assert_eq!(duplicates(&mut judge, asked), [0, 2]);
}

#[test]
fn keys_recalled_in_an_epoch_count_for_all_its_records() {
    // Partition 1 is gained, and the duplicate lies in partition 0, which would be decided first.
    let mut judge = judge();
    judge.recall(Epoch(50_000), vec![recalled(1, &[(7, 10_000, 1)])]).unwrap();
    assert_eq!(duplicates(&mut judge, question(0, &[(3, 10_500, 1)])), [0]);
}

#[test]
fn what_the_former_owner_dropped_is_no_winner_here_either() {
    let mut judge = judge();
    // The former owner stored offset 1 and dropped offset 2. Offset 3 is more than the window behind the one that was stored.
    judge.recall(Epoch(40_000), vec![recalled(0, &[(1, 10_000, 1), (2, 10_900, 1)])]).unwrap();
    assert_eq!(duplicates(&mut judge, question(0, &[(3, 11_001, 1)])), [0_u32; 0]);
}

#[test]
fn a_record_that_was_recalled_and_is_read_again_is_not_its_own_duplicate() {
    let mut judge = judge();
    judge.recall(Epoch(40_000), vec![recalled(0, &[(7, 10_000, 1)])]).unwrap();
    // The same twice, too: as after a warm-up that was begun anew.
    judge.recall(Epoch(40_020), vec![recalled(0, &[(7, 10_000, 1)])]).unwrap();
    assert_eq!(duplicates(&mut judge, question(0, &[(7, 10_000, 1), (8, 10_001, 1)])), [1]);
}

#[test]
fn a_window_that_is_full_and_forgets_early_is_counted() {
    let mut judge = judge();
    let spread = |offset: i64| twox_hash::XxHash3_128::oneshot(&offset.to_le_bytes());
    let few: Vec<_> = (0..1_000).map(|offset| (offset, 10_000, spread(offset))).collect();
    duplicates(&mut judge, question(0, &few));
    let forced = |judge: &Judge| judge.ports.stats.forced.load(Ordering::Relaxed);
    assert_eq!(forced(&judge), 0);
    // More than fit into a MiB, all of one moment.
    let many: Vec<_> = (1_000..60_000).map(|offset| (offset, 10_000, spread(offset))).collect();
    duplicates(&mut judge, question(0, &many));
    assert!(forced(&judge) > 0);
}
