//! `dedup_window`: drops records whose key was seen from another record inside the window.
//!
//! # In
//! `NormalizedBatch`: accepted messages of one partition, with their 128-bit keys.
//!
//! # Out
//! `UniqueBatch`: the same batch without the records found to be duplicates. Their offsets move to the `duplicates` of the batch's
//! coverage, so nothing is unaccounted for. A batch stays whole on its worker: keys travel to the worker that owns them, verdicts
//! travel back, payloads stay (design D-5).
//!
//! # Holds
//! The batches of open epochs until their verdicts are in, and one `window::Window` per worker: the keys it owns with the identity
//! (topic, partition, offset) and the record time of their winners, bounded by `bytes_max`.
//!
//! # Closes when
//! Epoch by epoch: an epoch's sightings are decided together when the frontier passed it, in the order of (topic, partition, offset).
//! So the least identity of an epoch wins, whichever worker read it first (design D-8).
//!
//! # Fails when
//! It has no port to the outside; it can only run out of partition numbers (`window::TooManyPartitions`). A full window is no
//! failure: the oldest keys are forgotten early, and counted.
//!
//! # Invariants
//! - A record is dropped only if another record with its key, at most `window_ms` away in record time, passed before it.
//! - A record that *is* the remembered winner (same topic, partition, offset) is a redelivery and is never dropped.
//! - Decisions depend on the epochs, the records and their order, on nothing else. Memory decides only when `forced` counts.

mod table;
pub mod window;

/// The stage's name in config, metrics and faults.
pub const NAME: &str = "dedup_window";

/// What an operator of this kind can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Two records with one key are duplicates when their record times are at most this far apart. Milliseconds, default 60,000.
    /// Too small: a producer's late retry is stored twice. Too large: memory; see `bytes_max`.
    pub window_ms: u64,
    /// Bytes one worker's window may take, about 45 per live key. Default 256 MiB; less than 128 KiB counts as 128 KiB.
    /// At the limit the oldest keys are forgotten early, which `forced` counts: duplicates may pass, nothing is dropped wrongly.
    pub bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { window_ms: 60_000, bytes_max: 256 << 20 }
    }
}
