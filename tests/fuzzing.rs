//! The fuzz targets without a fuzzer: every input that was kept, and some seeded mutations of them, through the same bodies.
//!
//! ```text
//! fuzz/src/                   the targets' bodies: what is decoded, and what must be true of it
//! fuzz/corpus/TARGET/         inputs that reach different parts of a decoder
//! fuzz/regressions/TARGET/    inputs that once broke something
//! ```
//!
//! Proves that nothing that was found comes back, and that the neighbours of what is known do no harm. Finding what is new is for
//! `scripts/fuzz`, which is guided by coverage (docs/fuzzing.md). `SIM_SEED=n` repeats the mutations, `FUZZ_RUNS=n` draws that many of each
//! target.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, reason = "the binaries use the rest")]
mod fuzz;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use fuzz::{Counting, Judge, Target, target};
use support::random::Random;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Memory and time are those of the process: one target at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Mutations of each target: a second.
const RUNS: u64 = 300;

/// The inputs in a folder, with their names; none if there is no folder.
fn inputs(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs.into_iter().map(|path| (path.display().to_string(), std::fs::read(&path).unwrap())).collect()
}

fn judge(judge: &mut Judge, name: &str, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| judge.judge(input))) {
        // Of a mutation there is no file yet.
        println!("{name}, {} bytes: {}", input.len(), input.escape_ascii());
        resume_unwind(panic);
    }
}

/// One to four changes: what a fuzzer does when nothing guides it.
fn mutate(random: &mut Random, input: &mut Vec<u8>, other: &[u8], target: &Target) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() as u64 + 1) as usize;
        let len = (random.below(16) as usize).min(input.len() - at);
        match random.below(7) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff, b'{', b'[', b'"'][random.below(8) as usize],
            2 => drop(input.drain(at..at + len)),
            3 => {
                let piece = input[at..at + len].repeat(1 + random.below(20) as usize);
                drop(input.splice(at..at, piece));
            }
            4 => {
                let from = random.below(other.len() as u64 + 1) as usize;
                let piece = other[from..(from + len).min(other.len())].to_vec();
                drop(input.splice(at..at + len.min(1), piece));
            }
            5 => input.truncate(at),
            _ => drop(input.splice(at..at, random.bits().to_le_bytes())),
        }
    }
    input.truncate(target.len_max);
}

fn check(name: &str) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let target = target(name);
    let mut random = Random::for_test(name);
    let mut of_target = Judge::new(target, false);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut known = inputs(&folder.join("corpus").join(name));
    assert!(!known.is_empty(), "{name} has a corpus");
    known.extend(inputs(&folder.join("regressions").join(name)));
    known.extend((target.normal)().into_iter().map(|input| ("a normal input".to_owned(), input)));
    for (file, input) in &known {
        judge(&mut of_target, file, input);
    }
    let runs = std::env::var("FUZZ_RUNS").map_or(RUNS, |runs| runs.parse().expect("FUZZ_RUNS is a number"));
    for _ in 0..runs {
        let (of, with) = (random.below(known.len() as u64) as usize, random.below(known.len() as u64) as usize);
        let mut input = known[of].1.clone();
        mutate(&mut random, &mut input, &known[with].1, target);
        judge(&mut of_target, &known[of].0, &input);
    }
}

#[test]
fn otlp_protobuf_that_is_accepted_encodes_and_the_rest_is_rejected_within_bounds() {
    check("otlp_proto");
}

#[test]
fn otlp_json_that_is_accepted_encodes_and_the_rest_is_rejected_within_bounds() {
    check("otlp_json");
}

#[test]
fn plain_json_and_text_that_is_accepted_encodes_and_the_rest_is_rejected_within_bounds() {
    check("plain_json");
}

#[test]
fn headers_events_compression_and_schemas_accept_or_reject_within_bounds() {
    check("envelope");
}

#[test]
fn files_of_the_log_are_read_or_refused_within_bounds() {
    check("log_files");
}

#[test]
fn dead_letters_come_back_as_they_were_written() {
    check("dead_letters");
}

#[test]
fn captures_are_read_or_refused_within_bounds_and_made_whole() {
    check("captures");
}

#[test]
fn notes_and_coverage_are_admitted_or_refused_within_bounds() {
    check("notes");
}

#[test]
fn configurations_and_schemas_are_taken_or_refused_within_bounds() {
    check("configs");
}
