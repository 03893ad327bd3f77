//! `capture_source`: reads a capture as a source in the place of Kafka, or of whatever stands before the edge it was taken from.
//!
//! # In
//! Nothing.
//!
//! # Out
//! The batches of the capture, cut as they were, in the epochs in which they passed.
//!
//! # Holds
//! A capability at the epoch it stands at. In its feed (`capture_source/feed.rs`), some megabytes of batches that their workers have not taken, and a few
//! blocks that none of them has unpacked.
//!
//! # Closes when
//! The capture is exhausted, or the process is told to stop; then at the end of the epoch that is open.
//!
//! # Fails when
//! The capture cannot be read, or is of another edge. What of it is damaged is no failure: it is counted, reported and left out.
//!
//! # Invariants
//! - In a cluster each partition is emitted by one process, whoever has a copy of the capture: all of them.
//! - Batches have the epochs they were recorded with, whatever the number of workers and the speed. Those of a partition all go to the worker
//!   that normalizes it, in their order.
//! - An epoch is begun only while the memory budget has room and its time has come, and then emitted whole: what is in memory is let go
//!   when its epoch is closed. So the budget is exceeded by an epoch at most.
//! - A worker never waits for the disk: files are read by a thread of their own. Workers unpack what it has read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};

use self::feed::{Next, Piece};
use crate::backlog::BYTES_PER_SCHEDULING;
use crate::capture::{Captured, Error, Files, Packed, Packs, Recorded, Selection};
use crate::epoch::Epoch;
use crate::fault::chain;
use crate::normalize::partition_hash;
use crate::place::Place;

mod feed;

pub use feed::{Feed, FeedPorts};

#[cfg(test)]
mod tests;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "capture_source";

/// How long the operator waits where there is no memory, or its time has not come: none of these can wake it.
const WAIT: Duration = Duration::from_millis(5);

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Bytes of all files.
    pub total_bytes: AtomicU64,
    /// Bytes of them that were read or passed over.
    pub read_bytes: AtomicU64,
    /// Batches read.
    pub batches: AtomicU64,
    /// Records in them.
    pub records: AtomicU64,
    /// Damaged places, files cut short included.
    pub damaged: AtomicU64,
}

/// How fast a capture is emitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// As fast as what follows takes it.
    Full,
    /// With the recorded time between two epochs, divided by this factor, which is positive: 2 is twice as fast. Where nothing
    /// passed for hours, hours are waited.
    Recorded(f64),
}

/// What is read, and how fast.
#[derive(Clone, Debug)]
pub struct Config {
    /// A directory, or a single file.
    pub path: PathBuf,
    /// Which of its batches.
    pub selection: Selection,
    /// How fast.
    pub speed: Speed,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports<B> {
    /// The batches, shared by the workers.
    pub feed: Arc<Feed<B>>,
}

impl<B: Captured> Feed<B> {
    /// Starts the thread that reads a capture. A speed that is no positive number is refused.
    pub fn start(config: Config, ports: FeedPorts, stats: Arc<Stats>) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let Config { path, selection, speed } = config;
        let place = ports.place;
        let read = move |put: &mut dyn FnMut(Piece<B>) -> bool| read(&path, selection, place, &stats, put);
        Self::read_pieces(NAME, speed, ports, move |put| read(put).map_err(|error| chain(&error)))
    }
}

/// Reads a capture's blocks, which the workers unpack.
fn read<B: Captured>(
    path: &Path,
    selection: Selection,
    place: Place,
    stats: &Arc<Stats>,
    put: &mut dyn FnMut(Piece<B>) -> bool,
) -> Result<(), Error> {
    let files = Files::open(path)?;
    stats.total_bytes.store(files.bytes(), Ordering::Relaxed);
    let mut packs: Packs<B> = files.packs(selection);
    while let Some(read) = packs.next() {
        stats.read_bytes.store(packs.read_bytes(), Ordering::Relaxed);
        match read {
            Ok(packed) => {
                let stats = stats.clone();
                if !put(Piece::Packed(packed.first(), Box::new(move |give| unpack(packed, place, &stats, give)))) {
                    return Ok(());
                }
            }
            Err(error) => stats.pass_over(error)?,
        }
    }
    stats.read_bytes.store(packs.read_bytes(), Ordering::Relaxed);
    Ok(())
}

fn unpack<B: Captured>(packed: Packed<B>, place: Place, stats: &Stats, give: &mut dyn FnMut(Recorded<B>)) -> Result<(), String> {
    for read in packed.unpack() {
        match read {
            Ok(recorded) => {
                if place.has_share(partition_hash(recorded.batch.partition())) {
                    stats.batches.fetch_add(1, Ordering::Relaxed);
                    stats.records.fetch_add(recorded.batch.load().messages as u64, Ordering::Relaxed);
                }
                give(recorded);
            }
            Err(error) => stats.pass_over(error).map_err(|error| chain(&error))?,
        }
    }
    Ok(())
}

impl Stats {
    /// Counts and tells damage; every other error is given back.
    fn pass_over(&self, error: Error) -> Result<(), Error> {
        if !error.is_damage() {
            return Err(error);
        }
        tracing::warn!(error = chain(&error), "part of a capture is missing, the rest is replayed");
        self.damaged.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Emits the batches of a feed.
pub fn capture_source<'s, B: Captured>(
    scope: Scope<'s, Epoch>,
    name: &str,
    ports: Ports<B>,
    place: Place,
) -> Stream<'s, Epoch, Vec<B>> {
    let mut builder = OperatorBuilder::new(name.into(), scope);
    let address = builder.operator_info().address;
    let (activator, waker) = (scope.activator_for(address.clone()), scope.worker().sync_activator_for(address.to_vec()));
    let (output, batches) = builder.new_output::<Vec<B>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<B>>>::from(output);
    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop();
        let feed = ports.feed;
        let mut timer: Option<Instant> = None;
        move |_frontiers| {
            let mut output = output.activate();
            // 1. Emit what there is of epochs that may be begun; where there is nothing, see to it that there is.
            let mut bytes = 0;
            while let Some(open) = &mut capability
                && bytes < BYTES_PER_SCHEDULING
            {
                match feed.shared.next(place.worker, &waker) {
                    Next::Batch(epoch, batch) => {
                        open.downgrade(&epoch);
                        bytes += batch.load().bytes.max(1);
                        let mut session = output.session(open);
                        session.give(*batch);
                        session.flush();
                    }
                    Next::Unpacked(unpacked) => bytes += unpacked.max(1),
                    Next::Nothing(epoch) => {
                        // Else an epoch of which other workers have the last batches would stay open here.
                        open.downgrade(&epoch);
                        return;
                    }
                    Next::NotYet(epoch) => {
                        open.downgrade(&epoch);
                        let now = Instant::now();
                        // One timer at a time: activate_after never deduplicates.
                        if timer.is_none_or(|timer| timer <= now) {
                            timer = Some(now + WAIT);
                            activator.activate_after(WAIT);
                        }
                        return;
                    }
                    // A capture that cannot be read looks exhausted once its thread has ended: the frontier must not pass the rest.
                    Next::End if feed.shared.ports.health.failed() => return,
                    Next::End => capability = None,
                }
            }
            // 2. Come back for more.
            if capability.is_some() {
                activator.activate();
            }
        }
    });
    batches
}
