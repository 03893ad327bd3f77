//! The thread that reads: always on from the unit that is furthest behind.
//!
//! ```text
//!            units, each waiting for those with lower offsets of its partitions        the next batch of each
//!  commit 1     open       e3 e3 e4  ------------------------------------------------>  e3  \
//!  commit 2     open       e5 e6 e9  ------------------------------------------------>  e5   > the one of the least epoch is given
//!  commit 3     not open, begins at e8  --------------------------------------------->  e8  /
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::info;

use super::files::{self, Commit};
use super::order;
use super::place::Place;
use super::unit::{Bounds, Context, Unit};
use super::{Config, EPOCH_BYTES, Error, From, OPEN_FILES_MAX, Stats};
use crate::batch::UniqueBatch;
use crate::capture::{Captured, Recorded};
use crate::epoch::Epoch;

type Put<'a> = dyn FnMut(Recorded<UniqueBatch>) -> bool + 'a;

/// Reads what `config` names into `put`, to its end or until that says that no more is wanted, or `is_over`.
pub fn read(config: &Config, stats: &Stats, is_over: &dyn Fn() -> bool, put: &mut Put<'_>) -> Result<(), Error> {
    let place = match &config.from {
        From::Folder(_) => Place::Disk,
        From::Lake(lake) => lake.place()?,
    };
    let commits = files::find(config, &place)?;
    let units = order::units(&commits)?;
    let bytes: u64 = commits.iter().flat_map(|commit| &commit.files).map(|file| file.bytes).sum();
    stats.total_bytes.store(bytes, Ordering::Relaxed);
    info!(commits = commits.len(), bytes, "reading Parquet files");
    let begins = |unit: &order::Unit| unit.commits.iter().map(|commit| commits[*commit].start).min().unwrap_or_default();
    let waits_for = units.iter().map(|unit| unit.waits_for).collect();
    let behind = units.iter().enumerate().filter(|(_, unit)| unit.waits_for == 0);
    let behind = behind.map(|(at, unit)| (begins(unit), at)).collect();
    let merge = Merge {
        context: Context { config, stats, is_over, place },
        begins: units.iter().map(begins).collect(),
        commits: &commits,
        units: &units,
        waits_for,
        behind,
        open: BTreeMap::new(),
        parked: BTreeSet::new(),
        bounds: Bounds::new(),
        epoch: Epoch(0),
        epoch_bytes: 0,
    };
    merge.run(put)
}

/// A unit that is open, and its next batch.
struct OpenUnit<'a> {
    unit: Unit<'a>,
    next: Recorded<UniqueBatch>,
    is_noted: bool,
}

struct Merge<'a> {
    context: Context<'a>,
    commits: &'a [Commit],
    units: &'a [order::Unit],
    begins: Vec<Epoch>,
    /// How many units each unit still waits for.
    waits_for: Vec<usize>,
    /// Units that wait for none: those that are open by their next batch, the others by when they begin.
    behind: BTreeSet<(Epoch, usize)>,
    open: BTreeMap<usize, OpenUnit<'a>>,
    /// Units whose turn it is, and for which too many files are open.
    parked: BTreeSet<(Epoch, usize)>,
    bounds: Bounds,
    /// The epoch that was given last, and its bytes.
    epoch: Epoch,
    epoch_bytes: usize,
}

impl Merge<'_> {
    fn run(mut self, put: &mut Put<'_>) -> Result<(), Error> {
        while let Some((begin, at)) = self.behind.pop_first().or_else(|| self.parked.pop_first()) {
            match self.open.remove(&at) {
                None if self.has_room(at) => {
                    let commits: Vec<&Commit> = self.units[at].commits.iter().map(|commit| &self.commits[*commit]).collect();
                    let unit = Unit::open(&commits, &self.context, &mut self.bounds)?;
                    let is_noted = commits.iter().all(|commit| commit.is_noted);
                    self.go_on(at, unit, is_noted)?;
                }
                None => _ = self.parked.insert((begin, at)),
                Some(OpenUnit { unit, next, is_noted }) => {
                    if !put(self.placed(next, is_noted)) {
                        return Ok(());
                    }
                    self.go_on(at, unit, is_noted)?;
                }
            }
        }
        Ok(())
    }

    fn has_room(&self, at: usize) -> bool {
        let files = |unit: &order::Unit| unit.commits.iter().map(|commit| self.commits[*commit].files.len()).sum::<usize>();
        let open: usize = self.open.values().map(|open| open.unit.files()).sum();
        self.open.is_empty() || open + files(&self.units[at]) <= OPEN_FILES_MAX
    }
}

impl<'a> Merge<'a> {
    fn go_on(&mut self, at: usize, mut unit: Unit<'a>, is_noted: bool) -> Result<(), Error> {
        if let Some(next) = unit.next(&self.context)? {
            self.behind.insert((next.epoch, at));
            self.open.insert(at, OpenUnit { unit, next, is_noted });
            return Ok(());
        }
        self.bounds.extend(unit.bounds());
        for follower in &self.units[at].followed_by {
            self.waits_for[*follower] -= 1;
            if self.waits_for[*follower] == 0 {
                self.behind.insert((self.begins[*follower], *follower));
            }
        }
        self.behind.append(&mut self.parked);
        Ok(())
    }

    /// The batch in the epoch in which it is given: never an earlier one than the batch before, and none of more than `EPOCH_BYTES`, unless the
    /// files say which epoch it is.
    fn placed(&mut self, next: Recorded<UniqueBatch>, is_noted: bool) -> Recorded<UniqueBatch> {
        let Recorded { epoch, batch } = next;
        let bytes = batch.load().bytes;
        let is_full = self.epoch_bytes > 0 && self.epoch_bytes.saturating_add(bytes) > EPOCH_BYTES;
        let is_later = epoch > self.epoch;
        if is_later {
            (self.epoch, self.epoch_bytes) = (epoch, 0);
        } else if is_full && !(is_noted && epoch == self.epoch) {
            (self.epoch, self.epoch_bytes) = (Epoch(self.epoch.0.saturating_add(1)), 0);
        }
        self.epoch_bytes += bytes;
        let add = |counter: &AtomicU64, value: usize| counter.fetch_add(value as u64, Ordering::Relaxed);
        add(&self.context.stats.batches, 1);
        add(&self.context.stats.records, batch.0.records.len());
        Recorded { epoch: self.epoch, batch }
    }
}
