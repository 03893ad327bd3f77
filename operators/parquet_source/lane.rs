//! One partition of a unit: its messages in the order of their offsets, cut into batches that account for every offset.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use twox_hash::XxHash3_128;

use super::accounts::Run;
use super::files::Commit;
use super::message::Pieces;
use super::rows::Shape;
use super::{BATCH_BYTES, BATCH_RECORDS, Config, Error, Selection};
use crate::batch::{Arena, Group, NormalizedBatch, Record, Span, UniqueBatch};
use crate::capture::Recorded;
use crate::coverage::{Coverage, PartitionKey};
use crate::dataset::Stamp;
use crate::epoch::Epoch;
use crate::tenant::Tenant;

/// Offsets that the coverage of a batch lists at most: a note may tell of any number of duplicates.
const LISTED_MAX: usize = 16_384;
/// Batches that are made at once of what has no rows.
const READY_MAX: usize = 64;

/// What is known of a message beside its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its Kafka timestamp; -1 where it has none.
    pub timestamp_ms: i64,
    /// Whose it is.
    pub tenant: Option<Tenant>,
    /// Of the file it is in.
    pub shape: Shape,
    /// Which commit of the unit it is of.
    pub commit: usize,
    /// Its epoch, if the file tells.
    pub epoch: Option<Epoch>,
    /// Rows of it so far.
    pub rows: u64,
}

/// Where a partition is between the times that were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bound {
    /// No message of the first time or later has come.
    #[default]
    Before,
    /// What comes is asked for.
    Within,
    /// A message of the end or later has come.
    After,
}

/// A run of offsets with what travels with it.
struct Covered {
    run: Run,
    commit: usize,
    name: String,
    group: Group,
    stamp: Option<Arc<Stamp>>,
}

/// A message that is to come.
#[derive(Clone, Copy, Debug)]
struct Expected {
    offset: i64,
    rows: u64,
}

/// A batch that is being filled.
struct Batch {
    epoch: Epoch,
    group: Group,
    stamp: Option<Arc<Stamp>>,
    coverage: Coverage,
    written: Vec<u8>,
    records: Vec<Record>,
    tenants: Vec<Tenant>,
}

/// A partition.
pub struct Lane {
    /// Which.
    pub partition: PartitionKey,
    /// Where it is between the times that were asked for.
    pub bound: Bound,
    selection: Selection,
    is_wanted: bool,
    interval_ms: u64,
    runs: Vec<Covered>,
    /// The first run that is not accounted for to its end, and the next offset in it.
    run: usize,
    at: i64,
    expected: Vec<Expected>,
    next: usize,
    epoch: Epoch,
    batch: Option<Batch>,
}

impl Lane {
    /// Without runs. Where it is between the times asked for is known from the unit before.
    pub fn new(partition: PartitionKey, config: &Config, start: Epoch, bound: Option<Bound>) -> Self {
        let selection = config.selection.clone();
        let is_bounded = selection.since_ms.is_some();
        let bound = bound.unwrap_or(if is_bounded { Bound::Before } else { Bound::Within });
        Lane {
            is_wanted: selection.has_topic(&partition.topic.name),
            partition,
            bound,
            selection,
            interval_ms: config.epoch_interval_ms,
            runs: Vec::new(),
            run: 0,
            at: 0,
            expected: Vec::new(),
            next: 0,
            epoch: start,
            batch: None,
        }
    }

    /// Adds what commit `number` of the unit accounts for.
    pub fn add_run(&mut self, number: usize, commit: &Commit, stamp: Option<Arc<Stamp>>, run: Run) {
        let (name, group) = (commit.name.clone(), commit.group.clone());
        self.runs.push(Covered { run, commit: number, name, group, stamp });
    }

    /// All runs are there.
    pub fn sort(&mut self) {
        self.runs.sort_by_key(|covered| covered.run.range.start);
        self.at = self.runs.first().map_or(0, |covered| covered.run.range.start);
    }

    /// The run that has `offset`.
    fn run_of(&self, offset: i64) -> Option<usize> {
        let position = self.runs.partition_point(|covered| covered.run.range.end <= offset);
        self.runs.get(position).filter(|covered| covered.run.range.contains(&offset)).map(|_| position)
    }

    /// True if commit `number` of the unit accounts for `offset`.
    pub fn is_of(&self, number: usize, offset: i64) -> bool {
        self.run_of(offset).is_some_and(|run| self.runs[run].commit == number)
    }

    /// A row of a message was found in the first pass.
    pub fn count(&mut self, offset: i64) {
        match self.expected.last_mut().filter(|last| last.offset == offset) {
            Some(last) => last.rows += 1,
            None => self.expected.push(Expected { offset, rows: 1 }),
        }
    }

    /// The first pass is over.
    pub fn settle(&mut self) -> Result<(), Error> {
        if !self.expected.is_sorted_by(|one, other| one.offset < other.offset) {
            self.expected.sort_by_key(|expected| expected.offset);
            self.expected.dedup_by(|other, one| {
                let is_same = other.offset == one.offset;
                one.rows += if is_same { other.rows } else { 0 };
                is_same
            });
        }
        let mut expected = &self.expected[..];
        for Covered { run, name, .. } in &mut self.runs {
            let count = expected.partition_point(|expected| expected.offset < run.range.end);
            let (inside, rest) = expected.split_at(count);
            let settled = run.settle(count as u64, inside.iter().map(|expected| expected.rows).sum());
            settled.map_err(|problem| {
                let Range { start, end } = run.range;
                let problem = format!(
                    "offsets {start} to {end} of {}: {problem}: a file of it is damaged, or not what it was",
                    self.partition
                );
                Error::at(&*name, problem)
            })?;
            expected = rest;
        }
        Ok(())
    }

    /// The offset of the message that is to be given next.
    pub fn wanted(&self) -> Option<i64> {
        self.expected.get(self.next).map(|expected| expected.offset)
    }

    /// True if the message that is to be given next has so many rows.
    pub fn is_complete(&self, rows: u64) -> bool {
        self.expected.get(self.next).is_some_and(|expected| expected.rows == rows)
    }

    /// False for a message whose content nobody wants.
    pub fn is_asked_for(&self, offset: i64, timestamp_ms: i64) -> bool {
        // Of one whose turn has not come it is not known: what comes behind the first message of the time asked for is asked for, too.
        let is_next = self.bound == Bound::Before && self.wanted() == Some(offset);
        let is_too_early = is_next && self.selection.since_ms.is_some_and(|since| timestamp_ms < since);
        self.is_wanted && self.bound != Bound::After && !is_too_early
    }

    /// False if nothing of it is wanted, where no message is later than `last_ms`.
    pub fn may_be_asked_for(&self, last_ms: Option<i64>) -> bool {
        let is_too_early =
            self.bound == Bound::Before && last_ms.zip(self.selection.since_ms).is_some_and(|(last, since)| last < since);
        self.is_wanted && self.bound != Bound::After && !is_too_early
    }

    /// The epoch of the next message: that of the note, else that of its time, unless the one before was later.
    pub fn epoch_of(&self, message: &Message) -> Epoch {
        let of_time = || Epoch::of(u64::try_from(message.timestamp_ms).unwrap_or(0), self.interval_ms);
        message.epoch.unwrap_or_else(of_time).max(self.epoch)
    }

    /// The epoch of the batch that is open.
    pub fn open_epoch(&self) -> Option<Epoch> {
        self.batch.as_ref().map(|batch| batch.epoch)
    }

    /// Takes the message that was wanted. False if what is before it fills `ready`: then once more, when that is empty.
    pub fn push(
        &mut self,
        offset: i64,
        epoch: Epoch,
        message: &Message,
        pieces: &mut Pieces,
        ready: &mut VecDeque<Recorded<UniqueBatch>>,
    ) -> Result<bool, Error> {
        if self.is_wanted && !self.account(offset, epoch, message, ready) {
            return Ok(false);
        }
        if self.is_wanted && self.bound == Bound::Within {
            self.take(offset, message, pieces, ready)?;
        }
        self.next += 1;
        Ok(true)
    }

    /// Accounts for all before the message at `offset`, as far as it is asked for. False if that is not done.
    fn account(&mut self, offset: i64, epoch: Epoch, message: &Message, ready: &mut VecDeque<Recorded<UniqueBatch>>) -> bool {
        if self.bound == Bound::Before {
            // What has no rows before it is not asked for.
            self.pass(offset);
            if self.selection.since_ms.is_some_and(|since| message.timestamp_ms < since) {
                self.step_over(offset);
                return true;
            }
            self.bound = Bound::Within;
        }
        if self.bound == Bound::Within && self.selection.until_ms.is_some_and(|until| message.timestamp_ms >= until) {
            if !self.cover(offset, ready) {
                return false;
            }
            self.bound = Bound::After;
            ready.extend(self.batch.take().map(Batch::recorded));
        }
        if self.bound != Bound::Within {
            return true;
        }
        self.epoch = epoch;
        if self.batch.as_ref().is_some_and(|batch| batch.epoch != epoch || !batch.takes(message) || batch.is_full()) {
            ready.extend(self.batch.take().map(Batch::recorded));
        }
        if self.batch.is_none()
            && let Some(covered) = self.runs.get(self.run).filter(|covered| covered.run.range.contains(&offset))
        {
            // What has no rows before it goes with it.
            let (start, group, stamp) =
                (self.at.max(covered.run.range.start), covered.group.clone(), message.shape.stamp.clone());
            self.batch = Some(Batch::new(epoch, group, stamp, self.partition.clone(), start));
        }
        self.cover(offset, ready)
    }

    /// Appends the message to the batch, all before it being accounted for.
    fn take(
        &mut self,
        offset: i64,
        message: &Message,
        pieces: &mut Pieces,
        ready: &mut VecDeque<Recorded<UniqueBatch>>,
    ) -> Result<(), Error> {
        let covered = self.runs.get(self.run).expect("the first pass has found the run of each message");
        let wrong = |problem: String| Error::at(&*covered.name, format!("{}, offset {offset}: {problem}", self.partition));
        if covered.run.denies(offset) {
            return Err(wrong("it has rows, and its footer says that it has none: the file is damaged".into()));
        }
        let fits = |batch: &Batch| batch.group == covered.group && batch.takes(message) && batch.coverage.end == offset;
        if !self.batch.as_ref().is_some_and(fits) {
            ready.extend(self.batch.take().map(Batch::recorded));
            let (group, stamp) = (covered.group.clone(), message.shape.stamp.clone());
            self.batch = Some(Batch::new(self.epoch, group, stamp, self.partition.clone(), offset));
        }
        let batch = self.batch.as_mut().expect("it was just made");
        batch.push(offset, message, pieces).map_err(|problem| wrong(problem.to_string()))?;
        self.step_over(offset);
        Ok(())
    }

    /// The message at `offset`, before which all is accounted for, is done with.
    fn step_over(&mut self, offset: i64) {
        self.at = offset + 1;
        if self.runs.get(self.run).is_some_and(|covered| covered.run.range.end == self.at) {
            self.run += 1;
        }
    }

    /// Accounts for all before `end`, of which nothing has rows. False if that fills `ready` before it is done.
    fn cover(&mut self, end: i64, ready: &mut VecDeque<Recorded<UniqueBatch>>) -> bool {
        while let Some(Covered { run, group, stamp, .. }) =
            self.runs.get_mut(self.run).filter(|covered| covered.run.range.start < end)
        {
            if ready.len() >= READY_MAX {
                return false;
            }
            self.at = self.at.max(run.range.start);
            let gap = self.at..end.min(run.range.end);
            if gap.start < gap.end {
                let fits =
                    |batch: &Batch| batch.group == *group && batch.coverage.end == gap.start && batch.listed() < LISTED_MAX;
                if !self.batch.as_ref().is_some_and(fits) {
                    ready.extend(self.batch.take().map(Batch::recorded));
                    self.batch = Some(Batch::new(self.epoch, group.clone(), stamp.clone(), self.partition.clone(), gap.start));
                }
                let batch = self.batch.as_mut().expect("it was just made");
                let room = LISTED_MAX - batch.listed();
                batch.coverage.end = run.tell(gap, &mut batch.coverage, room);
                self.at = batch.coverage.end;
            }
            if self.at == run.range.end {
                self.run += 1;
            } else if self.at >= end {
                break;
            }
        }
        true
    }

    /// Passes over all before `end`, as it was not asked for.
    fn pass(&mut self, end: i64) {
        while let Some(Covered { run, .. }) = self.runs.get_mut(self.run).filter(|covered| covered.run.range.start < end) {
            self.at = self.at.max(run.range.start);
            let gap = self.at..end.min(run.range.end);
            self.at = gap.end;
            run.pass(gap);
            if self.at < run.range.end {
                break;
            }
            self.run += 1;
        }
    }

    /// Gives the batch that is open; with what follows without rows, if no message is to come.
    pub fn close(&mut self, ready: &mut VecDeque<Recorded<UniqueBatch>>) {
        // What is not done now is at the end.
        let _ = self.cover_rest(ready);
        ready.extend(self.batch.take().map(Batch::recorded));
    }

    /// Accounts for all that is left, if no message is to come. False if that fills `ready` before it is done.
    pub fn cover_rest(&mut self, ready: &mut VecDeque<Recorded<UniqueBatch>>) -> bool {
        let is_open = self.wanted().is_none() && self.is_wanted && self.bound == Bound::Within;
        !is_open || self.cover(i64::MAX, ready)
    }
}

impl Batch {
    fn new(epoch: Epoch, group: Group, stamp: Option<Arc<Stamp>>, partition: PartitionKey, start: i64) -> Self {
        let coverage = Coverage::stored(partition, start..start);
        Batch { epoch, group, stamp, coverage, written: Vec::new(), records: Vec::new(), tenants: Vec::new() }
    }

    /// True if `message` may be in it: of the same schema, and of a tenant only if all are.
    fn takes(&self, message: &Message) -> bool {
        let is_tenanted_as_others = self.records.is_empty() || self.tenants.is_empty() == message.tenant.is_none();
        self.stamp == message.shape.stamp && is_tenanted_as_others
    }

    fn is_full(&self) -> bool {
        self.records.len() >= BATCH_RECORDS || self.written.len() >= BATCH_BYTES
    }

    fn listed(&self) -> usize {
        let Coverage { duplicates, rejected, skipped, .. } = &self.coverage;
        duplicates.len() + rejected.len() + skipped.len()
    }

    fn push(&mut self, offset: i64, message: &Message, pieces: &mut Pieces) -> Result<(), super::Problem> {
        let start = self.written.len();
        pieces.write(self.group.signal, &mut self.written)?;
        let too_large = |_| super::Problem::of("_offset", "its message would have over 4 GiB");
        let (start, len) =
            (u32::try_from(start).map_err(too_large)?, u32::try_from(self.written.len() - start).map_err(too_large)?);
        let payload = Span { start, len };
        let tenant = match &message.tenant {
            None => 0,
            Some(tenant) => self.tenants.iter().position(|known| known == tenant).unwrap_or_else(|| {
                self.tenants.push(tenant.clone());
                self.tenants.len() - 1
            }),
        };
        // Nobody judges it any more: it is that of the payload for whoever looks.
        let key = XxHash3_128::oneshot(payload.of(&self.written));
        let (timestamp_ms, arena) = (message.timestamp_ms, Arena::Written);
        self.records.push(Record { offset, timestamp_ms, key, arena, payload, tenant: tenant as u32 });
        self.coverage.end = offset + 1;
        Ok(())
    }

    fn recorded(self) -> Recorded<UniqueBatch> {
        let Batch { epoch, group, stamp, coverage, written, records, tenants } = self;
        let (raw, written, schema) = (Default::default(), written.into(), stamp);
        let batch = NormalizedBatch { group, coverage, raw, written, records, schema, tenants, charge: Default::default() };
        Recorded { epoch, batch: UniqueBatch(batch) }
    }
}
