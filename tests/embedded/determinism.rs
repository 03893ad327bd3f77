//! One capture, the same result: rows, their order, files and every byte of them, rejects and coverage, whatever the number of workers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use openwit_graphs::process::{self, Control, Plan};
use openwit_graphs::wiring::Stage;
use openwit_ingest::config::{Config, default_options};
use openwit_ingest::plan::{Input, Output, REJECTS, ROWS, replay_plan};
use openwit_operators::compare::{Digest, digest};
use openwit_operators::options::Value;
use openwit_operators::parquet_files;
use tempfile::TempDir;

use crate::support::captures::{self, Made};
use crate::support::lake::{self, Place};
use crate::support::random::Random;

const WORKERS: [usize; 4] = [1, 2, 4, 7];

/// What a replay left, in a form that can be compared, and what it counted.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    digest: Digest,
    /// How often each message was rejected, and why.
    rejects: BTreeMap<(Place, String), usize>,
    duplicates: u64,
    skipped: u64,
}

fn config(folder: &Path) -> Config {
    let path = folder.join("replay.yaml");
    std::fs::write(&path, captures::CONFIG).unwrap();
    let data = format!("node.data_directory={}", folder.join("data").display());
    Config::load(&path, &[data]).unwrap_or_else(|problems| panic!("{problems}")).config
}

fn replay(config: &Config, capture: &Path, to: &Path, workers: usize) -> Left {
    let mut options = default_options("capture_source");
    options.set("path", Value::Path(capture.to_owned()));
    let input = Input::Stage(Stage::of("capture_source").with(options));
    let mut plan = replay_plan(config, workers, input, &Output::Files(to.to_owned(), false)).unwrap();
    cut_small(&mut plan);
    let control = Control::default();
    let outcome = process::run(&plan, &control).unwrap_or_else(|fault| panic!("{workers} workers: {fault}"));
    assert_eq!(outcome.restarts, 0);
    let mut rejects = BTreeMap::new();
    for letter in lake::letters(&to.join(REJECTS)) {
        *rejects.entry((letter.place(), letter.reason)).or_default() += 1;
    }
    let counters = &control.counters;
    Left {
        digest: digest(&to.join(ROWS)).unwrap(),
        rejects,
        duplicates: counters.dedup.duplicates.load(Ordering::Relaxed),
        skipped: counters.normalize.skipped.load(Ordering::Relaxed),
    }
}

/// Files are cut by size, too, and have several row groups.
fn cut_small(plan: &mut Plan) {
    let wiring = Arc::make_mut(&mut plan.graph.as_mut().unwrap().wiring);
    let sink = wiring.stages.iter_mut().find(|placed| placed.operator.name == parquet_files::NAME).unwrap();
    sink.stage.options.set("file_bytes_max", Value::Number(512 << 10));
    sink.stage.options.set("row_group_rows", Value::Number(1_000));
}

/// A digest that is the same whatever was done would prove nothing.
#[test]
fn another_dedup_window_gives_another_result() {
    let folder = TempDir::new().unwrap();
    let capture = folder.path().join("capture");
    captures::make(&capture, 1_500, 60, 1);
    let mut config = config(folder.path());
    let wide = replay(&config, &capture, &folder.path().join("wide"), 2);
    config.processing.dedup_window_seconds = 1;
    let narrow = replay(&config, &capture, &folder.path().join("narrow"), 2);
    assert!(narrow.duplicates < wide.duplicates, "{} and {}", narrow.duplicates, wide.duplicates);
    assert!(narrow.digest.rows > wide.digest.rows && narrow.digest.content != wide.digest.content);
    assert_ne!((narrow.digest.coverage, narrow.digest.files_digest), (wide.digest.coverage, wide.digest.files_digest));
}

/// Replays a capture of `messages` messages on different numbers of workers.
fn check(messages: u64, per_epoch: u64, seed: u64, adjust: impl Fn(&mut Config)) -> (Made, Left) {
    println!("seed {seed}, {messages} messages, about {per_epoch} in an epoch");
    let folder = TempDir::new().unwrap();
    let capture = folder.path().join("capture");
    let made = captures::make(&capture, messages, per_epoch, seed);
    let mut config = config(folder.path());
    adjust(&mut config);
    let left = WORKERS.map(|workers| replay(&config, &capture, &folder.path().join(workers.to_string()), workers));
    let [first, others @ ..] = left;
    for (other, workers) in others.iter().zip(&WORKERS[1..]) {
        assert_eq!(first.digest.content, other.digest.content, "rows, {workers} workers, seed {seed}");
        assert_eq!(first.digest.coverage, other.digest.coverage, "coverage, {workers} workers, seed {seed}");
        assert_eq!(first.rejects, other.rejects, "rejects, {workers} workers, seed {seed}");
        // Names, cuts, the order of rows, and bytes.
        assert_eq!(first, *other, "{workers} workers, seed {seed}");
    }
    (made, first)
}

#[test]
fn a_capture_with_every_oddity_gives_the_same_bytes_on_any_number_of_workers() {
    let mut random = Random::for_test("determinism");
    let seed = random.bits();
    let (made, left) = check(6_000, 60, seed, |_| {});
    let Made { messages, reread, empty, repeated, late, too_late, gone, idle, .. } = made;
    assert_eq!(messages, 6_000);
    let oddities = [reread, empty, repeated, late, too_late, gone, idle, left.duplicates, left.skipped];
    assert!(oddities.iter().all(|count| *count > 0), "every oddity is there: {made:?}, {left:?}");
    assert!(left.digest.rows > 3_000 && left.digest.files.len() > 6, "{:?}", left.digest);

    // A message that is rejected again is in the dead letter once.
    assert!(left.rejects.len() > 50 && left.rejects.values().all(|times| *times == 1), "{:?}", left.rejects);
}

#[test]
fn tiny_epochs_and_huge_ones_and_little_memory_change_nothing() {
    for seed in 1..=2 {
        check(1_000, 3, seed, |_| {});
        // An epoch that has more than the budget.
        check(3_000, 1_000, seed, |config| config.processing.buffer.max_size_bytes = 64 << 10);
    }
}
