//! Finding out what a directory holds after a crash, and saying what was lost.
//!
//! A segment is walked frame by frame. Where no whole frame follows there is a *hole*, and the walk goes on at the next place
//! where a frame of this segment says it is. Which holes are damage and which are just the torn end of the last group?
//!
//! ```text
//! proven(segment) = the end its successor's header states, if it has one    (it was synced to there before that was written)
//!                   else the largest `synced` of its whole frames           (it was synced to there before they were written)
//!                   or what the mark states, if that is more                (it was synced to there before that was written)
//!
//!   frame frame  hole  frame frame | frame  hole  frame  zeros
//!                ^ before proven:  |        ^ from proven on: torn tail; dropped with all
//!                  damage, reported| proven   behind it
//! ```
//!
//! Frames behind an unproven hole are dropped although they are whole: their group was never acknowledged, and the upper end
//! of a partition's coverage must not lie beyond offsets that are missing. Nothing is ever repaired in place: the next segment's
//! header states where this one ends.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::disk::{BLOCK_BYTES, Disk, File};
use super::frame::{self, Account, HEADER_BYTES};
use super::mark::Mark;
use super::ordered::{Ordered, OwnRun};
use super::read::{Frames, RememberedKeys, Run, Window};
use super::segment::{FRAMES_START, Header, Layout, VERSION, segment_name};
use super::{Error, keys};
use crate::coverage::{Coverage, OffsetSet, PartitionKey};
use crate::epoch::Epoch;

/// Threads that read segments at once, at most: each holds a window of a few MiB.
const SURVEY_THREADS_MAX: usize = 4;
/// How often a long log says how much of it is read.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// What was found when the log was opened.
pub struct Recovery {
    /// Every offset of every whole frame, lost ones not included.
    pub coverage: BTreeMap<PartitionKey, OffsetSet>,
    /// Of these, the offsets of normalized messages.
    pub normalized: BTreeMap<PartitionKey, OffsetSet>,
    /// And those of messages as they came.
    pub raw: BTreeMap<PartitionKey, OffsetSet>,
    /// The offsets of messages that are there for their keys only: they are in `coverage` only where others of these are.
    pub recalled: BTreeMap<PartitionKey, OffsetSet>,
    /// What was found, and what was lost.
    pub report: Report,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) runs: Vec<Run>,
    /// What each run wrote of messages as they came.
    pub(super) raw_runs: Vec<OwnRun>,
    pub(super) key_files: Vec<u64>,
    pub(super) unsaved_keys: Vec<keys::File>,
}

impl Recovery {
    /// All whole frames of normalized messages that may not have been published, in the order in which they were logged. Read lazily,
    /// and readable as often as wanted until the log's `release` passes the epoch at which it was opened.
    pub fn frames(&self) -> Frames {
        Frames::new(self.disk.clone(), self.runs.clone())
    }

    /// All whole frames of messages as they came, in the order of their epochs, all of which lie before `before`.
    pub fn raw_frames(&self, before: Epoch) -> Ordered {
        Ordered::new(self.disk.clone(), self.raw_runs.clone(), before)
    }

    /// The dedup keys of all records logged inside the retention, oldest first: those of the frames and those of segments
    /// reused since.
    pub fn keys(&self) -> RememberedKeys {
        RememberedKeys::new(self.disk.clone(), self.key_files.clone(), self.unsaved_keys.clone())
    }
}

/// What a log held, and what of it is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Live segments.
    pub segments: u64,
    /// Whole frames in them.
    pub frames: u64,
    /// Records in those.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// The end of the last group, never acknowledged, if it was torn. Not a loss.
    pub torn: Option<Torn>,
    /// Bytes that were durable once and are damaged now. The files are moved to `corrupt/` when their frames are released.
    pub damaged: Vec<Damage>,
    /// Segments that must have existed between others and are gone.
    pub missing_segments: Vec<Range<u64>>,
    /// Damaged key files, moved to `corrupt/`. A late duplicate of their records may pass.
    pub damaged_keys: Vec<PathBuf>,
}

impl Report {
    /// True if records that were acknowledged are lost: they are in Kafka only.
    pub fn lost_records(&self) -> bool {
        !(self.damaged.is_empty() && self.missing_segments.is_empty())
    }

    /// True if anything that was acknowledged is lost.
    pub fn is_loss(&self) -> bool {
        self.lost_records() || !self.damaged_keys.is_empty()
    }

    /// Frames and offsets lost as far as known: a hole whose meta is unreadable counts as one frame, its offsets as none.
    pub fn lost(&self) -> (usize, u64) {
        let offsets = self.damaged.iter().filter_map(|damage| damage.lost.as_ref());
        (self.damaged.len(), offsets.map(|coverage| (coverage.end - coverage.start) as u64).sum())
    }
}

/// The torn end of the last group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub path: PathBuf,
    /// The bytes that are ignored, as far as anything was found there.
    pub bytes: Range<u64>,
    /// Whole frames among them.
    pub frames: u64,
}

/// Damaged bytes of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment's file.
    pub path: PathBuf,
    /// The segment's number.
    pub segment: u64,
    /// The damaged bytes.
    pub bytes: Range<u64>,
    /// What they accounted for, where that can still be read. Else it shows as a hole between the coverage of other frames.
    pub lost: Option<Coverage>,
}

/// What one segment holds.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Stretches of whole frames of normalized messages.
    pub runs: Vec<Range<u64>>,
    /// Stretches of whole frames of messages as they came, which ascend by epoch, each with its first epoch.
    pub raw_runs: Vec<(Epoch, Range<u64>)>,
    /// Damaged bytes between, before or behind them.
    pub holes: Vec<Hole>,
    /// The ignored end, if there is one.
    pub torn: Option<(Range<u64>, u64)>,
    /// Where the frames end.
    pub end: u64,
    /// Whole frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Of these, normalized ones, whose dedup keys are known.
    pub keyed: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// First and last epoch.
    pub epochs: Option<(Epoch, Epoch)>,
    /// How old the messages are, where they are as they came.
    pub age: Option<keys::Age>,
    /// The coverage of normalized messages.
    pub normalized: BTreeMap<PartitionKey, OffsetSet>,
    /// The coverage of messages as they came.
    pub raw: BTreeMap<PartitionKey, OffsetSet>,
    /// The offsets of messages that are there for their keys only.
    pub recalled: BTreeMap<PartitionKey, OffsetSet>,
}

/// Bytes that are no whole frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Hole {
    /// The bytes.
    pub bytes: Range<u64>,
    /// What they accounted for, where that can still be read.
    pub lost: Option<Coverage>,
}

/// How much of a segment is known to have been durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proven {
    /// Up to here, and here the frames end: the successor says so.
    Exactly(u64),
    /// All of it, but the successor's header, which tells where the frames end, is damaged.
    Whole,
    /// It is the last segment: what its frames prove, and at least up to here, as the mark states.
    AtLeast(u64),
}

/// A stretch of whole frames while the segment is walked, with what is needed to judge it.
#[derive(Default)]
struct Stretch {
    bytes: Range<u64>,
    is_raw: bool,
    synced: u64,
    scan: Scan,
}

enum Piece {
    Frames(Box<Stretch>),
    Hole(Hole),
}

/// Walks segment `number`.
pub fn scan(file: &dyn File, number: u64, proven: Proven) -> std::io::Result<Scan> {
    let mut window = Window::new(file)?;
    let limit = match proven {
        Proven::Exactly(end) => end.min(window.end),
        Proven::Whole | Proven::AtLeast(_) => window.end,
    };
    let mut pieces = walk(&mut window, number, limit);
    if let Proven::Exactly(end) | Proven::AtLeast(end) = proven {
        // The file was cut: what is gone is a hole as well.
        if end > limit {
            pieces.push(Piece::Hole(Hole { bytes: limit..end, lost: None }));
        }
    }
    let mut scan = judge(pieces, proven, limit);
    if matches!(proven, Proven::AtLeast(_)) && scan.torn.is_none() {
        scan.torn = rest_of_a_write(&mut window, scan.end);
    }
    Ok(scan)
}

/// Splits the segment into whole frames and holes.
fn walk(window: &mut Window<'_>, number: u64, limit: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = FRAMES_START;
    while at < limit {
        let hole = match check_frame(window, number, at, limit) {
            Ok((header, account)) => {
                let end = at + header.frame_bytes();
                if !matches!(pieces.last(), Some(Piece::Frames(stretch)) if stretch.goes_on_with(&header)) {
                    let is_raw = header.is_raw();
                    pieces.push(Piece::Frames(Box::new(Stretch { bytes: at..end, is_raw, ..Stretch::default() })));
                }
                if let Some(Piece::Frames(stretch)) = pieces.last_mut() {
                    stretch.add(&header, &account, end);
                }
                at = end;
                continue;
            }
            Err(hole) => hole,
        };
        at = hole.bytes.end;
        pieces.push(Piece::Hole(*hole));
    }
    pieces
}

/// The whole frame at `at`, or else the hole that starts there.
pub(super) fn check_frame(
    window: &mut Window<'_>,
    number: u64,
    at: u64,
    limit: u64,
) -> Result<(frame::Header, Account), Box<Hole>> {
    let head = window.get(at..at + HEADER_BYTES as u64);
    let header = frame::Header::parse(head, number, at).ok().filter(|header| header.frame_bytes() <= limit - at);
    let hole = |end, lost| Box::new(Hole { bytes: at..end, lost });
    let Some(header) = header else {
        return Err(hole(next_frame(window, number, at + frame::ALIGNMENT, limit), None));
    };
    // The header is whole, so its length is good, whatever became of the rest.
    let end = at + header.frame_bytes();
    let payload = at + HEADER_BYTES as u64 + u64::from(header.meta_bytes);
    let Ok(account) = header.account(window.get(at + HEADER_BYTES as u64..payload)) else {
        return Err(hole(end, None));
    };
    match header.check_payload(window.crc(payload..end)) {
        Ok(()) => Ok((header, account)),
        Err(_) => Err(hole(end, Some(account.coverage))),
    }
}

/// Where the next frame of this segment says it is.
fn next_frame(window: &mut Window<'_>, number: u64, from: u64, limit: u64) -> u64 {
    let mut at = from;
    while let Some(found) = window.find_magic(at..limit) {
        if frame::Header::parse(window.get(found..found + HEADER_BYTES as u64), number, found).is_ok() {
            return found;
        }
        at = found + frame::ALIGNMENT;
    }
    limit
}

impl Stretch {
    /// True if the frame is of the same kind and, where that is messages as they came, not of an earlier epoch: several workers write one
    /// log.
    fn goes_on_with(&self, header: &frame::Header) -> bool {
        let ascends = self.scan.epochs.is_none_or(|(_, last)| last <= header.epoch);
        self.is_raw == header.is_raw() && (ascends || !self.is_raw)
    }

    fn add(&mut self, header: &frame::Header, account: &Account, end: u64) {
        self.bytes.end = end;
        self.synced = self.synced.max(header.synced);
        let scan = &mut self.scan;
        scan.frames += 1;
        scan.records += u64::from(header.records);
        match account.age {
            Some(age) => scan.age = Some(scan.age.map_or(age, |before| before.max(age))),
            None => scan.keyed += u64::from(header.records),
        }
        scan.payload_bytes += u64::from(header.payload_bytes);
        scan.epochs = Some(join(scan.epochs, (header.epoch, header.epoch)));
        let coverage = match (self.is_raw, header.is_recalled()) {
            (false, _) => &mut scan.normalized,
            (true, false) => &mut scan.raw,
            (true, true) => &mut scan.recalled,
        };
        insert(coverage, &account.coverage.partition, account.coverage.range());
    }
}

fn join(epochs: Option<(Epoch, Epoch)>, more: (Epoch, Epoch)) -> (Epoch, Epoch) {
    epochs.map_or(more, |(first, last)| (first.min(more.0), last.max(more.1)))
}

fn insert(coverage: &mut BTreeMap<PartitionKey, OffsetSet>, partition: &PartitionKey, range: Range<i64>) {
    if range.is_empty() {
        return;
    }
    if let Some(offsets) = coverage.get_mut(partition) {
        offsets.insert(range);
    } else {
        coverage.entry(partition.clone()).or_default().insert(range);
    }
}

/// Adds what is covered in `more` to `coverage`.
pub fn merge(coverage: &mut BTreeMap<PartitionKey, OffsetSet>, more: &BTreeMap<PartitionKey, OffsetSet>) {
    for (partition, offsets) in more {
        for range in offsets.ranges() {
            insert(coverage, partition, range);
        }
    }
}

/// Tells damage from the torn tail; see the module's doc.
fn judge(mut pieces: Vec<Piece>, proven: Proven, limit: u64) -> Scan {
    let stated = |stretch: &Piece| match stretch {
        Piece::Frames(stretch) => stretch.synced,
        Piece::Hole(_) => 0,
    };
    let proven_end = match proven {
        Proven::Exactly(end) => end,
        Proven::Whole => u64::MAX,
        Proven::AtLeast(end) => pieces.iter().map(stated).max().unwrap_or(0).max(end),
    };
    // Behind the last frame there is nothing to lose, unless it is known that the frames went on.
    let least = match proven {
        Proven::AtLeast(end) => end,
        Proven::Exactly(_) | Proven::Whole => FRAMES_START,
    };
    if let (Some(Piece::Hole(hole)), Proven::Whole | Proven::AtLeast(_)) = (pieces.last_mut(), proven)
        && hole.bytes.end == limit
        && hole.lost.is_none()
    {
        hole.bytes.end = least.max(hole.bytes.start);
        if hole.bytes.is_empty() {
            pieces.pop();
        }
    }
    let mut scan = Scan { end: FRAMES_START, ..Scan::default() };
    for piece in pieces {
        match (piece, &mut scan.torn) {
            (Piece::Hole(hole), Some((torn, _))) => torn.end = hole.bytes.end,
            (Piece::Frames(stretch), Some((torn, frames))) => {
                torn.end = stretch.bytes.end;
                *frames += stretch.scan.frames;
            }
            (Piece::Hole(hole), None) if hole.bytes.start < proven_end => {
                scan.end = hole.bytes.end;
                scan.holes.push(hole);
            }
            (Piece::Hole(hole), torn @ None) => *torn = Some((hole.bytes, 0)),
            (Piece::Frames(stretch), None) => scan.keep(*stretch),
        }
    }
    scan
}

impl Scan {
    fn keep(&mut self, stretch: Stretch) {
        let Stretch { bytes, scan, is_raw, .. } = stretch;
        self.end = bytes.end;
        match scan.epochs {
            Some((first, _)) if is_raw => self.raw_runs.push((first, bytes)),
            _ => self.runs.push(bytes),
        }
        self.frames += scan.frames;
        self.records += scan.records;
        self.keyed += scan.keyed;
        self.age = scan.age.map(|age| self.age.map_or(age, |before| before.max(age))).or(self.age);
        self.payload_bytes += scan.payload_bytes;
        self.epochs = scan.epochs.map(|epochs| join(self.epochs, epochs)).or(self.epochs);
        merge(&mut self.normalized, &scan.normalized);
        merge(&mut self.raw, &scan.raw);
        merge(&mut self.recalled, &scan.recalled);
    }

    /// What its frames account for.
    pub fn coverage(&self) -> BTreeMap<PartitionKey, OffsetSet> {
        let mut coverage = self.normalized.clone();
        merge(&mut coverage, &self.raw);
        coverage
    }
}

/// Every group is followed by the zeros of an empty header. Anything else behind the last frame was being written.
fn rest_of_a_write(window: &mut Window<'_>, end: u64) -> Option<(Range<u64>, u64)> {
    if window.get(end..end + HEADER_BYTES as u64).iter().all(|&byte| byte == 0) {
        return None;
    }
    // How far it goes cannot be known in a reused segment; the block is the least that was written at once.
    let block = window.get(end..(end + HEADER_BYTES as u64).next_multiple_of(BLOCK_BYTES));
    let last = block.iter().rposition(|&byte| byte != 0)?;
    Some((end..end + last as u64 + 1, 0))
}

/// One live segment as found.
pub struct Surveyed {
    /// Its number.
    pub number: u64,
    /// The file's length.
    pub file_bytes: u64,
    /// Its header, unless that is damaged.
    pub header: Option<Header>,
    /// Its frames.
    pub scan: Scan,
}

impl Surveyed {
    /// Its stretches of whole frames.
    pub(super) fn into_runs(self) -> impl Iterator<Item = Run> {
        let mut runs = self.scan.runs;
        runs.extend(self.scan.raw_runs.into_iter().map(|(_, bytes)| bytes));
        runs.sort_by_key(|bytes| bytes.start);
        runs.into_iter().map(move |bytes| Run { segment: self.number, bytes })
    }

    /// True if any of it is damaged.
    pub fn is_damaged(&self) -> bool {
        self.header.is_none() || !self.scan.holes.is_empty()
    }
}

/// Scans all live segments, on a few threads, and gives them in their order. One that takes long says how far it is.
pub fn survey(disk: &dyn Disk, layout: &Layout) -> Result<Vec<Surveyed>, Error> {
    // Read before the segments: what a running log adds meanwhile is not missed in them.
    let mark = Mark::read(disk)?;
    let mut headers = BTreeMap::new();
    for &number in layout.segments.keys() {
        headers.insert(number, read_header(disk, number)?);
    }
    let survey_one = |(&number, &file_bytes): (&u64, &u64)| {
        let name = segment_name(number);
        let after = std::ops::Bound::Excluded(number);
        let proven = match headers.range((after, std::ops::Bound::Unbounded)).next() {
            None => Proven::AtLeast(mark.proves(number, headers[&number].as_ref())),
            Some((_, Some(next))) if next.previous == number => Proven::Exactly(next.previous_end),
            Some(_) => Proven::Whole,
        };
        let file = disk.read(&name).map_err(|error| ("open", disk.path(&name), error))?;
        let scan = scan(&*file, number, proven).map_err(|error| ("read", disk.path(&name), error))?;
        Ok(Surveyed { number, file_bytes, header: headers.get(&number).copied().flatten(), scan })
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(SURVEY_THREADS_MAX).min(layout.segments.len());
    // Taken by whichever thread is free, oldest first. The lock is held for as long as it takes to step an iterator.
    let segments = Mutex::new(layout.segments.iter());
    let (found, surveyed) = channel();
    thread::scope(|scope| {
        for _ in 0..threads {
            let (segments, survey_one, found) = (&segments, &survey_one, found.clone());
            let work = move || {
                while let Some(segment) = { segments.lock().unwrap_or_else(PoisonError::into_inner).next() } {
                    let one = survey_one(segment);
                    let is_over = one.is_err();
                    if found.send(one).is_err() || is_over {
                        return;
                    }
                }
            };
            let started = thread::Builder::new().name("wal-survey".into()).spawn_scoped(scope, work);
            started.map_err(|error| ("start a thread for", disk.path(""), error))?;
        }
        drop(found);
        gather(disk, surveyed, layout.segments.values().sum())
    })
}

/// Takes what the threads of `survey` find until they have ended or one failed; the others then end with their segment.
fn gather(disk: &dyn Disk, found: Receiver<Result<Surveyed, Error>>, total_bytes: u64) -> Result<Vec<Surveyed>, Error> {
    let (start, mut told) = (Instant::now(), Instant::now());
    let (mut surveyed, mut bytes, mut frames) = (Vec::new(), 0, 0);
    for one in found {
        let one: Surveyed = one?;
        (bytes, frames) = (bytes + one.file_bytes, frames + one.scan.frames);
        surveyed.push(one);
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            let mib_per_second = (bytes >> 20) as f64 / start.elapsed().as_secs_f64();
            tracing::info!(
                directory = %disk.path("").display(),
                read_mib = bytes >> 20,
                of_mib = total_bytes >> 20,
                frames,
                mib_per_second = mib_per_second as u64,
                "reading the write-ahead log"
            );
        }
    }
    surveyed.sort_by_key(|found| found.number);
    Ok(surveyed)
}

fn read_header(disk: &dyn Disk, number: u64) -> Result<Option<Header>, Error> {
    let name = segment_name(number);
    let file = disk.read(&name).map_err(|error| ("open", disk.path(&name), error))?;
    let mut window = Window::new(&*file).map_err(|error| ("read", disk.path(&name), error))?;
    let header = Header::decode(window.get(0..FRAMES_START), number);
    header.map_err(|found| Error::Version { path: disk.path(&name), found, known: VERSION })
}

/// What was found and lost in the surveyed segments.
pub fn report(disk: &dyn Disk, surveyed: &[Surveyed]) -> Report {
    let mut report = Report { segments: surveyed.len() as u64, ..Report::default() };
    let mut before: Option<u64> = None;
    for Surveyed { number, header, scan, .. } in surveyed {
        let path = disk.path(&segment_name(*number));
        report.frames += scan.frames;
        report.records += scan.records;
        report.payload_bytes += scan.payload_bytes;
        let damage = |bytes, lost| Damage { path: path.clone(), segment: *number, bytes, lost };
        if header.is_none() {
            report.damaged.push(damage(0..FRAMES_START, None));
        }
        report.damaged.extend(scan.holes.iter().map(|hole| damage(hole.bytes.clone(), hole.lost.clone())));
        if let Some((bytes, frames)) = &scan.torn {
            report.torn = Some(Torn { path: path.clone(), bytes: bytes.clone(), frames: *frames });
        }
        // Segments are released oldest first, so those between two live ones must be live.
        if let Some(before) = before.filter(|before| before + 1 < *number) {
            report.missing_segments.push(before + 1..*number);
        }
        before = Some(*number);
    }
    report
}
