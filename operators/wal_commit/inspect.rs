//! Looking at a log without opening it: what `wal ls` and `wal verify` show. Reads only, and needs no lock; what a
//! running process changes meanwhile is shown as it was found.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Directory, Disk};
use super::read::{Frames, Run};
use super::recovery::{self, Report};
use super::segment::{Layout, free_name, keys_name, segment_name};
use super::{Error, keys};
use crate::coverage::{Coverage, OffsetSet, PartitionKey};
use crate::epoch::Epoch;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The newest segment: being written, or the last one written.
    Last,
    /// Complete.
    Sealed,
    /// Waiting for reuse.
    Free,
    /// Dedup keys.
    Keys,
}

/// One file of the log.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its segment's number.
    pub number: u64,
    /// What it is for.
    pub state: State,
    /// Where it is.
    pub path: PathBuf,
    /// The file's length.
    pub file_bytes: u64,
    /// Where its frames end.
    pub used_bytes: u64,
    /// Whole frames.
    pub frames: u64,
    /// Records in them, or keys.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// First and last epoch.
    pub epochs: Option<(Epoch, Epoch)>,
    /// Offsets accounted for, per partition.
    pub offsets: BTreeMap<PartitionKey, OffsetSet>,
}

/// Something wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// The bytes concerned.
    pub bytes: Range<u64>,
    /// What is wrong.
    pub kind: ProblemKind,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// Durable frames are damaged; this is what they accounted for, if it can still be read.
    Damaged(Option<Coverage>),
    /// The last write was torn; nothing of it was acknowledged.
    TornTail,
    /// The segments from this number to before that one are gone.
    MissingSegments(Range<u64>),
    /// The keys are damaged: late duplicates of this segment's records may pass.
    DamagedKeys,
}

impl Problem {
    /// True if something acknowledged is lost.
    pub fn is_loss(&self) -> bool {
        self.kind != ProblemKind::TornTail
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, bytes {} to {}: ", self.path.display(), self.bytes.start, self.bytes.end)?;
        match &self.kind {
            ProblemKind::Damaged(None) => write!(f, "damaged; what it accounted for is unknown"),
            ProblemKind::Damaged(Some(lost)) => {
                write!(f, "damaged; it accounted for {} offsets {} to {}", lost.partition, lost.start, lost.end - 1)
            }
            ProblemKind::TornTail => write!(f, "torn tail of the last write, never acknowledged"),
            ProblemKind::MissingSegments(numbers) => {
                write!(f, "segments {} to {} before this one are missing", numbers.start, numbers.end - 1)
            }
            ProblemKind::DamagedKeys => write!(f, "damaged dedup keys; late duplicates of their records may pass"),
        }
    }
}

/// The files of the log in `directory`: segments by number, then free ones, then key files.
pub fn list(directory: &Path) -> Result<Vec<Summary>, Error> {
    list_on(&Directory::read_only(directory))
}

/// The same on any disk.
pub fn list_on(disk: &dyn Disk) -> Result<Vec<Summary>, Error> {
    let layout = Layout::read(disk)?;
    let mut summaries = Vec::new();
    let last = layout.segments.keys().next_back().copied();
    for found in recovery::survey(disk, &layout)? {
        let state = if Some(found.number) == last { State::Last } else { State::Sealed };
        summaries.push(Summary {
            number: found.number,
            state,
            path: disk.path(&segment_name(found.number)),
            file_bytes: found.file_bytes,
            used_bytes: found.scan.end,
            frames: found.scan.frames,
            records: found.scan.records,
            payload_bytes: found.scan.payload_bytes,
            epochs: found.scan.epochs,
            offsets: found.scan.coverage,
        });
    }
    let empty = |number, state, name: String, file_bytes| Summary {
        number,
        state,
        path: disk.path(&name),
        file_bytes,
        used_bytes: 0,
        frames: 0,
        records: 0,
        payload_bytes: 0,
        epochs: None,
        offsets: BTreeMap::new(),
    };
    summaries.extend(layout.free.iter().map(|(&number, &bytes)| empty(number, State::Free, free_name(number), bytes)));
    for (&number, &bytes) in &layout.keys {
        let records = keys::File::read(disk, number)?.map_or(0, |file| file.entries);
        summaries.push(Summary { used_bytes: bytes, records, ..empty(number, State::Keys, keys_name(number), bytes) });
    }
    Ok(summaries)
}

/// What is wrong with the log in `directory`, and what was found.
pub fn verify(directory: &Path) -> Result<(Vec<Problem>, Report), Error> {
    verify_on(&Directory::read_only(directory))
}

/// The same on any disk.
pub fn verify_on(disk: &dyn Disk) -> Result<(Vec<Problem>, Report), Error> {
    let layout = Layout::read(disk)?;
    let surveyed = recovery::survey(disk, &layout)?;
    let mut report = recovery::report(disk, &surveyed);
    for &number in layout.keys.keys() {
        let whole = match keys::File::read(disk, number)? {
            Some(file) => file.keys().all(|key| key.is_ok()),
            None => false,
        };
        if !whole {
            report.damaged_keys.push(disk.path(&keys_name(number)));
        }
    }
    Ok((problems(disk, &report), report))
}

fn problems(disk: &dyn Disk, report: &Report) -> Vec<Problem> {
    let mut problems = Vec::new();
    for damage in &report.damaged {
        let kind = ProblemKind::Damaged(damage.lost.clone());
        problems.push(Problem { path: damage.path.clone(), bytes: damage.bytes.clone(), kind });
    }
    for missing in &report.missing_segments {
        let path = disk.path(&segment_name(missing.end));
        problems.push(Problem { path, bytes: 0..0, kind: ProblemKind::MissingSegments(missing.clone()) });
    }
    if let Some(torn) = &report.torn {
        problems.push(Problem { path: torn.path.clone(), bytes: torn.bytes.clone(), kind: ProblemKind::TornTail });
    }
    for path in &report.damaged_keys {
        problems.push(Problem { path: path.clone(), bytes: 0..0, kind: ProblemKind::DamagedKeys });
    }
    problems
}

/// All whole frames of the log in `directory`, in the order in which they were logged.
pub fn frames(directory: &Path) -> Result<Frames, Error> {
    frames_on(Arc::new(Directory::read_only(directory)))
}

/// The same on any disk.
pub fn frames_on(disk: Arc<dyn Disk>) -> Result<Frames, Error> {
    let layout = Layout::read(&*disk)?;
    let mut runs = Vec::new();
    for found in recovery::survey(&*disk, &layout)? {
        runs.extend(found.scan.runs.into_iter().map(|bytes| Run { segment: found.number, bytes }));
    }
    Ok(Frames::new(disk, runs))
}
