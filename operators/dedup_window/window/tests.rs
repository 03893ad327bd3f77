//! The window against a naive model, and its promises one by one. What these tests cannot show: speed and memory (see `benches/dedup.rs`).

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::coverage::TopicKey;

const NOW_MS: i64 = 1_700_000_000_000;

fn sighting(key: u128, time_ms: i64, partition: u32, offset: i64) -> Sighting {
    Sighting { key, time_ms, partition: PartitionIndex(partition), offset }
}

fn window(window_ms: u64) -> Window {
    Window::new(Config { window_ms, bytes_max: 1 << 20 })
}

/// Well-spread keys, as a hash makes them.
fn key(number: u64) -> u128 {
    let half = |seed: u64| {
        let x = (number ^ seed).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    u128::from(half(1)) << 64 | u128::from(half(0))
}

fn decide(window: &mut Window, sighting: Sighting) -> bool {
    let mut verdicts = Vec::new();
    window.observe(&[sighting], &mut verdicts);
    verdicts[0]
}

/// Moves progress to `time_ms` with so many records that no step is too large.
fn advance_to(window: &mut Window, time_ms: i64) {
    window.advance(Progress { epoch_ms: time_ms as u64, time_ms, records: 1 << 20 });
}

#[test]
fn same_key_of_another_record_inside_the_window_is_a_duplicate() {
    let cases = [
        ("another offset", sighting(1, 1_000, 0, 6), true),
        ("another partition", sighting(1, 1_000, 1, 5), true),
        ("the same record", sighting(1, 1_000, 0, 5), false),
        ("the same record with another time", sighting(1, 900_000, 0, 5), false),
        ("another key", sighting(2, 1_000, 0, 6), false),
        ("a key equal in its low half", sighting(1 << 64 | 1, 1_000, 0, 6), false),
        ("the window's last millisecond", sighting(1, 61_000, 0, 6), true),
        ("one past it", sighting(1, 61_001, 0, 6), false),
        ("the window's last millisecond backwards", sighting(1, 0, 0, 6), true),
    ];
    for (name, second, expected) in cases {
        let mut window = window(60_000);
        assert!(!decide(&mut window, sighting(1, 1_000, 0, 5)));
        assert_eq!(decide(&mut window, second), expected, "{name}");
    }
}

#[test]
fn a_key_repeated_for_ever_is_stored_once_per_window() {
    let mut window = window(1_000);
    let winners = (0..100).filter(|&n| !decide(&mut window, sighting(7, NOW_MS + n * 100, 0, n))).count();
    assert_eq!(winners, 10, "every eleventh record is more than a window past the last winner");
}

#[test]
fn one_record_from_the_year_2100_flushes_nothing() {
    let mut window = window(60_000);
    advance_to(&mut window, NOW_MS);
    assert!(!decide(&mut window, sighting(1, NOW_MS, 0, 0)));
    let hostile = 4_102_444_800_000;
    let progress = Progress::of(NOW_MS as u64 + 20, [hostile].into_iter()).expect("one record");
    window.advance(progress);
    assert!(!decide(&mut window, sighting(2, hostile, 0, 1)));
    assert!(decide(&mut window, sighting(2, hostile + 1, 0, 2)), "hostile records are deduplicated among themselves");
    assert!(decide(&mut window, sighting(1, NOW_MS, 0, 3)));
    assert!(window.progress_ms() < Some(NOW_MS + 100));
}

#[test]
fn a_flood_of_future_records_cannot_pass_the_tolerance_of_live_traffic() {
    let mut window = window(60_000);
    advance_to(&mut window, NOW_MS);
    assert!(!decide(&mut window, sighting(1, NOW_MS, 0, 0)));
    for _ in 0..1_000 {
        window.advance(Progress { epoch_ms: NOW_MS as u64, time_ms: i64::MAX, records: 1_000_000 });
    }
    assert!(decide(&mut window, sighting(1, NOW_MS + 60_000, 0, 1)));
    assert_eq!(window.progress_ms(), Some(NOW_MS + 15_000));
}

#[test]
fn records_of_a_lagging_partition_find_each_other() {
    let mut window = window(60_000);
    advance_to(&mut window, NOW_MS);
    let days_ago = NOW_MS - 3 * 86_400_000;
    assert!(!decide(&mut window, sighting(1, NOW_MS, 0, 0)));
    assert!(!decide(&mut window, sighting(1, days_ago, 1, 0)), "three days from the live one");
    assert!(decide(&mut window, sighting(1, days_ago + 59_000, 1, 1)));
    assert!(decide(&mut window, sighting(1, NOW_MS + 1_000, 0, 1)), "the live one is remembered beside it");
}

#[test]
fn progress_jumps_a_gap_after_walking_one_window() {
    let mut window = window(60_000);
    window.advance(Progress { epoch_ms: NOW_MS as u64, time_ms: 0, records: 1 });
    assert!(!decide(&mut window, sighting(1, 0, 0, 0)));
    for n in 0..2_000 {
        window.advance(Progress { epoch_ms: NOW_MS as u64, time_ms: NOW_MS, records: 1 });
        assert!(!decide(&mut window, sighting(key(n), NOW_MS, 0, n as i64 + 1)));
    }
    assert_eq!(window.progress_ms(), Some(NOW_MS));
    assert!(decide(&mut window, sighting(key(1_000), NOW_MS, 1, 0)), "records of the walk are remembered");
    assert!(window.forgotten() > 0, "those from before the gap are not");
}

#[test]
fn winners_from_before_the_first_progress_count_as_come_with_it() {
    let mut window = window(60_000);
    window.remember(&[sighting(1, NOW_MS, 0, 0)]);
    for second in 0..60 {
        advance_to(&mut window, NOW_MS + second * 1_000);
    }
    assert!(decide(&mut window, sighting(1, NOW_MS + 60_000, 0, 1)));
    assert!(!decide(&mut window, sighting(1, NOW_MS, 0, 0)), "a redelivery");
}

#[test]
fn forgetting_frees_memory_by_and_by() {
    let mut window = Window::new(Config { window_ms: 1_000, bytes_max: 16 << 20 });
    let empty_bytes = window.bytes();
    let burst: Vec<Sighting> = (0..200_000).map(|n| sighting(key(n), NOW_MS, 0, n as i64)).collect();
    advance_to(&mut window, NOW_MS);
    window.observe(&burst, &mut Vec::new());
    assert_eq!((window.len(), window.stats().forced), (200_000, 0));
    assert!(window.bytes() > empty_bytes * 4);
    for tick in 0..200 {
        advance_to(&mut window, NOW_MS + 10_000 + tick * 20);
    }
    assert_eq!(window.len(), 0);
    assert!(window.bytes() < empty_bytes + (1 << 20), "{} of {empty_bytes}", window.bytes());
}

#[test]
fn a_full_window_forgets_the_oldest_first_and_counts_it() {
    let bytes_max = 1 << 20;
    let mut window = Window::new(Config { window_ms: 60_000, bytes_max });
    let mut verdicts = Vec::new();
    for batch in 0..100u64 {
        let sightings: Vec<Sighting> =
            (0..1_000).map(|n| sighting(key(batch * 1_000 + n), NOW_MS, 0, (batch * 1_000 + n) as i64)).collect();
        window.observe(&sightings, &mut verdicts);
        assert!(verdicts.iter().all(|&is_duplicate| !is_duplicate));
        assert!(window.bytes() <= bytes_max + (64 << 10), "{}", window.bytes());
    }
    assert!(window.stats().forced > 0 && window.stats().displaced == 0);
    assert!(window.len() > 15_000, "{} remembered", window.len());
    let newest = sighting(key(99_999), NOW_MS, 1, 0);
    assert!(decide(&mut window, newest));
    assert!(!decide(&mut window, sighting(key(0), NOW_MS, 1, 1)));
}

#[test]
fn keys_made_to_collide_cost_only_each_other() {
    let mut window = Window::new(Config { window_ms: 60_000, bytes_max: 8 << 20 });
    assert!(!decide(&mut window, sighting(key(1), NOW_MS, 0, 0)));
    // One shard and one tag, by undoing the first step of the table's mixing.
    let hostile = |n: u64| u128::from(n.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ 0x1234_5678) << 64 | u128::from(n);
    for n in 0..3_000 {
        assert!(!decide(&mut window, sighting(hostile(n), NOW_MS, 1, n as i64)));
    }
    assert!(window.stats().displaced > 2_000, "they share a path of 512 places");
    assert_eq!(window.len() as u64, 3_001 - window.stats().displaced);
    assert!(decide(&mut window, sighting(key(1), NOW_MS, 0, 1)));
}

#[test]
fn partitions_keep_their_number_and_differ_by_topic_id() {
    let partition = |id: &str| {
        let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: id.into() };
        PartitionKey { topic: Arc::new(topic), partition: 3 }
    };
    let mut partitions = Partitions::default();
    let first = partitions.index(&partition("a"));
    assert_eq!(first, Ok(PartitionIndex(0)));
    assert_eq!(partitions.index(&partition("b")), Ok(PartitionIndex(1)));
    assert_eq!(partitions.index(&partition("a")), first);
}

/// The definition, written down: a list of winners per key.
#[derive(Default)]
struct Model {
    window_ms: u64,
    winners: BTreeMap<u128, Vec<Winner>>,
    count: u64,
    forgotten: u64,
}

#[derive(Clone, Copy, PartialEq)]
struct Winner {
    number: u64,
    time_ms: i64,
    identity: (u32, i64),
    progress_ms: i64,
}

impl Model {
    fn observe(&mut self, sighting: Sighting, progress_ms: i64) -> bool {
        let identity = (sighting.partition.0, sighting.offset);
        let sighting = Sighting { time_ms: sighting.time_ms.clamp(0, (1 << 42) - 1), ..sighting };
        let winners = self.winners.entry(sighting.key).or_default();
        if winners.iter().any(|winner| winner.identity == identity) {
            return false;
        }
        if winners.iter().any(|winner| winner.time_ms.abs_diff(sighting.time_ms) <= self.window_ms) {
            return true;
        }
        if winners.len() == SAME_KEY_MAX {
            let least = winners.iter().map(|winner| (winner.time_ms, winner.identity)).min().expect("not empty");
            winners.retain(|winner| (winner.time_ms, winner.identity) != least);
        }
        winners.push(Winner { number: self.count, time_ms: sighting.time_ms, identity, progress_ms });
        self.count += 1;
        false
    }

    /// Forgets the first `count` winners, and returns how recent the most recent of them was.
    fn forget(&mut self, count: u64) -> Option<i64> {
        if count == self.forgotten {
            return None;
        }
        self.forgotten = count;
        let all = self.winners.values().flatten();
        let newest = all.filter(|winner| winner.number < count).map(|winner| winner.progress_ms).max();
        self.winners.values_mut().for_each(|winners| winners.retain(|winner| winner.number >= count));
        newest
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Time passes, and an epoch of records (key, lateness, partition, offset) comes.
    Epoch { passed_ms: i64, records: Vec<(u64, i64, u32, i64)> },
    /// Many records with fresh keys come.
    Burst { count: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lateness = prop_oneof![8 => -200i64..200, 2 => 0i64..20_000, 1 => Just(-3_000_000_000_000i64), 1 => Just(i64::MAX)];
    let record = (0u64..40, lateness, 0u32..2, 0i64..60);
    let passed = prop_oneof![8 => 0i64..300, 1 => 0i64..5_000, 1 => Just(1_000_000i64)];
    let epoch = (passed, proptest::collection::vec(record, 0..60));
    let step = prop_oneof![
        12 => epoch.prop_map(|(passed_ms, records)| Step::Epoch { passed_ms, records }),
        1 => (1u64..4_000).prop_map(|count| Step::Burst { count }),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The sightings of a step, and their epoch.
fn sightings_of(step: &Step, now_ms: &mut i64, fresh: &mut u64) -> Vec<Sighting> {
    match step {
        Step::Epoch { passed_ms, records } => {
            *now_ms += passed_ms;
            let made = |&(number, lateness, partition, offset): &(u64, i64, u32, i64)| {
                sighting(key(number), now_ms.wrapping_sub(lateness), partition, offset)
            };
            records.iter().map(made).collect()
        }
        Step::Burst { count } => {
            *fresh += count;
            (*fresh - count..*fresh).map(|n| sighting(key(n + 1_000), *now_ms, 3, n as i64)).collect()
        }
    }
}

proptest! {
    /// With forgetting: late and hostile times, redelivery, rotation and a bound that is reached. The model forgets when it is told.
    #[test]
    fn verdicts_agree_with_the_definition(steps in steps(), bytes_max in prop_oneof![Just(0usize), Just(1 << 20)]) {
        let window_ms = 1_000;
        let mut window = Window::new(Config { window_ms, bytes_max });
        let mut model = Model { window_ms, ..Model::default() };
        let (mut now_ms, mut fresh, mut verdicts, mut forced) = (NOW_MS, 0, Vec::new(), 0);
        for step in &steps {
            let sightings = sightings_of(step, &mut now_ms, &mut fresh);
            if let Some(progress) = Progress::of(now_ms as u64, sightings.iter().map(|sighting| sighting.time_ms)) {
                window.advance(progress);
            }
            let progress_ms = window.progress_ms().unwrap_or(0);
            for &sighting in &sightings {
                // One by one, so that the model learns of forgetting inside a batch.
                window.observe(&[sighting], &mut verdicts);
                let newest = model.forget(window.forgotten());
                let is_told = window.stats().forced > forced;
                forced = window.stats().forced;
                if let Some(newest) = newest.filter(|_| !is_told) {
                    prop_assert!(progress_ms.saturating_sub(newest) > window_ms as i64, "forgotten while in the window");
                }
                prop_assert_eq!(verdicts[0], model.observe(sighting, progress_ms), "{:?}", sighting);
            }
            prop_assert_eq!(window.len(), model.winners.values().map(Vec::len).sum::<usize>());
        }
        prop_assert_eq!(window.stats().winners, model.count);
    }

    /// Without forgetting in the model: in live traffic that is not later than the tolerance the window finds every duplicate.
    #[test]
    fn live_traffic_is_decided_as_if_nothing_were_ever_forgotten(
        epochs in proptest::collection::vec((0i64..100, proptest::collection::vec((0u64..30, 0i64..125, 0u32..2), 1..40)), 1..80),
    ) {
        let window_ms = 1_000;
        let mut window = Window::new(Config { window_ms, bytes_max: 1 << 20 });
        let mut model = Model { window_ms, ..Model::default() };
        let (mut now_ms, mut offset, mut verdicts) = (NOW_MS, 0, Vec::new());
        for (passed_ms, records) in epochs {
            now_ms += passed_ms;
            let mut sightings = Vec::new();
            for (number, lateness, partition) in records {
                offset += 1;
                sightings.push(sighting(key(number), now_ms - lateness, partition, offset));
            }
            window.advance(Progress::of(now_ms as u64, sightings.iter().map(|s| s.time_ms)).expect("not empty"));
            window.observe(&sightings, &mut verdicts);
            let expected: Vec<bool> = sightings.iter().map(|&sighting| model.observe(sighting, 0)).collect();
            prop_assert_eq!(&verdicts, &expected);
        }
    }

    /// Splitting the calls differently changes nothing; nor does a restart that remembers the winners in their order.
    #[test]
    fn batching_and_a_restart_change_no_verdict(
        records in proptest::collection::vec((0u64..20, 0i64..900, 0i64..100), 1..200), cut in 0usize..200,
    ) {
        let sightings: Vec<Sighting> =
            records.into_iter().map(|(number, time, offset)| sighting(key(number), NOW_MS + time, 0, offset)).collect();
        let mut whole = Vec::new();
        window(1_000).observe(&sightings, &mut whole);
        let (before, after) = sightings.split_at(cut.min(sightings.len()));
        let (mut first, mut second) = (window(1_000), window(1_000));
        let mut verdicts = Vec::new();
        first.observe(before, &mut verdicts);
        let winners: Vec<Sighting> =
            before.iter().zip(&verdicts).filter(|(_, is_duplicate)| !**is_duplicate).map(|(sighting, _)| *sighting).collect();
        second.remember(&winners);
        let mut rest = Vec::new();
        second.observe(after, &mut rest);
        verdicts.extend(rest);
        prop_assert_eq!(verdicts, whole);
    }
}
