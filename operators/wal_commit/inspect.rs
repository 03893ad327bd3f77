//! Looking at a log without opening it: what `wal ls`, `wal cat` and `wal verify` show. Reads only, and needs no lock; what a running
//! process changes meanwhile is shown as it was found.
//!
//! A path may be a short-term log, a long-term one, the folder of one day of it, or a single segment or copy.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Directory, Disk};
use super::logged::{Logged, LoggedRef};
use super::long_term;
use super::long_term::cleanup::Found;
use super::long_term::read::Selection;
use super::long_term::shelf::{Shelf, Store};
use super::read::{Frames, RecoveredFrame, Run};
use super::recovery::{self, Report, Surveyed};
use super::segment::{Layout, free_name, keys_name, parse_name, segment_name};
use super::{Error, keys};
use crate::coverage::{Coverage, OffsetSet, PartitionKey};
use crate::epoch::Epoch;
use crate::object_upload::ObjectStore;

/// How often a look begins anew because a running process took a segment away under it.
const LOOKS_MAX: u32 = 10;

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
    /// A segment's copy in the long-term log.
    Copy,
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
    /// Where its frames end; for a copy, their bytes before compression.
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
    /// Part of a copy is damaged or its end is missing; so many frames are lost, if that can still be read.
    DamagedCopy(Option<u32>),
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
            ProblemKind::DamagedCopy(None) => write!(f, "damaged or cut short; what it held is unknown"),
            ProblemKind::DamagedCopy(Some(frames)) => write!(f, "damaged; it held {frames} frames"),
        }
    }
}

/// Frames of either log.
pub type FrameIterator = Box<dyn Iterator<Item = Result<RecoveredFrame<Logged>, Error>> + Send>;

/// A log, or a file of one, to be looked at.
#[derive(Clone)]
pub enum Source {
    /// Segments in a directory: all, or the one of this number.
    Short(Arc<dyn Disk>, Option<u64>),
    /// Copies in a folder or store: all, or this one.
    Long(Arc<dyn Shelf>, Option<Found>),
}

impl Source {
    /// Finds out what `path` is.
    pub fn find(path: &Path) -> Result<Source, Error> {
        let failed = |source| Error::from(("open", path.to_owned(), source));
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if metadata.is_file() {
            if let Some(copy) = long_term::Name::parse(name) {
                let found = Found { name: copy, path: name.to_owned(), bytes: metadata.len() };
                return Ok(Source::Long(Arc::new(Store::read_only(folder)?), Some(found)));
            }
            let number = parse_name(name).filter(|(kind, _)| *kind == "segment").map(|(_, number)| number);
            let number = number.ok_or_else(|| failed(io::Error::other("not named like a segment or a copy of one")))?;
            return Ok(Source::Short(Arc::new(Directory::read_only(folder)), Some(number)));
        }
        let (disk, mut has_files, mut has_copies) = (Directory::read_only(path), false, false);
        for entry in disk.list().map_err(failed)? {
            has_files |= entry.name == "lock" || parse_name(&entry.name).is_some();
            has_copies |= long_term::Name::parse(&entry.name).is_some();
        }
        if has_files {
            return Ok(Source::Short(Arc::new(disk), None));
        }
        let store = Store::read_only(path)?;
        if has_copies || !store.list().map_err(failed)?.is_empty() {
            return Ok(Source::Long(Arc::new(store), None));
        }
        Err(failed(io::Error::other("there is no write-ahead log in it, neither short-term nor long-term")))
    }

    /// The long-term log in `store`. Nothing is created there.
    pub fn find_in(store: &ObjectStore) -> Result<Source, Error> {
        if let ObjectStore::Fs { root } = store {
            return Source::find(root);
        }
        let shelf = Store::open(store)?;
        let failed = |source| Error::from(("open", shelf.place("").into(), source));
        if shelf.list().map_err(failed)?.is_empty() {
            return Err(failed(io::Error::other("there is no long-term log in it")));
        }
        Ok(Source::Long(Arc::new(shelf), None))
    }

    /// The files of the log: segments by number, then free ones, then key files; or copies by time.
    pub fn list(&self) -> Result<Vec<Summary>, Error> {
        match self {
            Source::Short(disk, only) => list_segments(&**disk, *only),
            Source::Long(shelf, _) => self.copies()?.into_iter().map(|copy| summarize(shelf, copy).map(|(one, _)| one)).collect(),
        }
    }

    /// What is wrong with the log, and what was found.
    pub fn verify(&self) -> Result<(Vec<Problem>, Report), Error> {
        match self {
            Source::Short(disk, only) => verify_segments(&**disk, *only),
            Source::Long(shelf, _) => {
                let (mut all, mut report) = (vec![], Report::default());
                for copy in self.copies()? {
                    let (summary, problems) = summarize(shelf, copy)?;
                    report.segments += 1;
                    report.frames += summary.frames;
                    report.records += summary.records;
                    report.payload_bytes += summary.payload_bytes;
                    all.extend(problems);
                }
                Ok((all, report))
            }
        }
    }

    /// True if it holds messages as they came, of a log before `normalize`; `None` if nothing in it can be read.
    pub fn is_raw(&self) -> Result<Option<bool>, Error> {
        Ok(self.frames()?.find_map(Result::ok).map(|frame| !matches!(frame.batch, Logged::Normalized(_))))
    }

    /// All whole frames, in the order in which they were logged. An error tells what is missing, and what follows it is read all
    /// the same.
    pub fn frames(&self) -> Result<FrameIterator, Error> {
        Ok(self.frames_of(&Selection::default())?.1)
    }

    /// The frames of what `selection` may concern, and about how many bytes they have: for whoever shows progress. Frames outside of
    /// it are among them.
    pub fn frames_of(&self, selection: &Selection) -> Result<(u64, FrameIterator), Error> {
        match self {
            Source::Short(disk, only) => {
                let (_, surveyed) = look(&**disk, *only)?;
                let runs: Vec<Run> = surveyed.into_iter().flat_map(Surveyed::into_runs).collect();
                let bytes = runs.iter().map(|run| run.bytes.end - run.bytes.start).sum();
                Ok((bytes, Box::new(Frames::<Logged>::new(disk.clone(), runs))))
            }
            Source::Long(shelf, _) => {
                let mut copies = self.copies()?;
                copies.retain(|copy| selection.has_copy(copy));
                let mut bytes = 0;
                for copy in &copies {
                    bytes += long_term::read::frame_bytes(&**shelf, copy)?;
                }
                Ok((bytes, Box::new(long_term::read::Frames::new(shelf.clone(), copies, Selection::default()))))
            }
        }
    }

    fn copies(&self) -> Result<Vec<Found>, Error> {
        let mut copies = match self {
            Source::Short(..) => vec![],
            Source::Long(_, Some(only)) => vec![only.clone()],
            Source::Long(shelf, None) => shelf.list().map_err(|error| ("list", shelf.place("").into(), error))?,
        };
        copies.sort();
        Ok(copies)
    }
}

/// Lists and surveys the directory. A segment that a running process removed or renamed in between is no reason to fail.
fn look(disk: &dyn Disk, only: Option<u64>) -> Result<(Layout, Vec<Surveyed>), Error> {
    for _ in 1..LOOKS_MAX {
        match look_once(disk, only) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            looked => return looked,
        }
    }
    look_once(disk, only)
}

fn look_once(disk: &dyn Disk, only: Option<u64>) -> Result<(Layout, Vec<Surveyed>), Error> {
    let mut layout = Layout::read(disk)?;
    if let Some(only) = only {
        // Its successor says where its frames end.
        let after = layout.segments.range(only + 1..).next().map(|(number, _)| *number);
        layout.segments.retain(|number, _| *number == only || Some(*number) == after);
        layout.free.clear();
        layout.keys.clear();
    }
    let mut surveyed = recovery::survey(disk, &layout)?;
    surveyed.retain(|found| only.is_none_or(|only| found.number == only));
    Ok((layout, surveyed))
}

fn list_segments(disk: &dyn Disk, only: Option<u64>) -> Result<Vec<Summary>, Error> {
    let (layout, surveyed) = look(disk, only)?;
    let mut summaries = Vec::new();
    let last = layout.segments.keys().next_back().copied();
    for found in surveyed {
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
            offsets: found.scan.coverage(),
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
        // One that expired since the directory was listed is shown without keys.
        let records = keys::File::read(disk, number).ok().flatten().map_or(0, |file| file.entries);
        summaries.push(Summary { used_bytes: bytes, records, ..empty(number, State::Keys, keys_name(number), bytes) });
    }
    Ok(summaries)
}

fn verify_segments(disk: &dyn Disk, only: Option<u64>) -> Result<(Vec<Problem>, Report), Error> {
    let (layout, surveyed) = look(disk, only)?;
    let mut report = recovery::report(disk, &surveyed);
    for &number in layout.keys.keys() {
        let whole = match keys::File::read(disk, number) {
            Ok(Some(file)) => file.keys().all(|key| key.is_ok()),
            Ok(None) => false,
            // It expired since the directory was listed.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
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

/// What one copy holds, and what is wrong with it.
fn summarize(shelf: &Arc<dyn Shelf>, copy: Found) -> Result<(Summary, Vec<Problem>), Error> {
    let path = PathBuf::from(shelf.place(&copy.path));
    let mut summary = Summary {
        number: copy.name.segment,
        state: State::Copy,
        path: path.clone(),
        file_bytes: copy.bytes,
        used_bytes: 0,
        frames: 0,
        records: 0,
        payload_bytes: 0,
        epochs: None,
        offsets: BTreeMap::new(),
    };
    let mut problems = Vec::new();
    for frame in long_term::read::Frames::new(shelf.clone(), vec![copy], Selection::default()) {
        let frame = match frame {
            Ok(frame) => frame,
            Err(Error::Copy { bytes, frames, .. }) => {
                problems.push(Problem { path: path.clone(), bytes, kind: ProblemKind::DamagedCopy(frames) });
                continue;
            }
            Err(error) => return Err(error),
        };
        summary.used_bytes += u64::from(frame.position.bytes);
        summary.frames += 1;
        let batch = frame.batch.by_ref();
        summary.records += batch.records() as u64;
        summary.payload_bytes += batch.payload_bytes();
        let (first, last) = summary.epochs.unwrap_or((frame.epoch, frame.epoch));
        summary.epochs = Some((first.min(frame.epoch), last.max(frame.epoch)));
        if !batch.range().is_empty() && !matches!(batch, LoggedRef::Recalled(_)) {
            summary.offsets.entry(batch.partition().clone()).or_default().insert(batch.range());
        }
    }
    Ok((summary, problems))
}
