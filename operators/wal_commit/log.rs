//! The log: an active segment that grows, sealed ones that wait for their release, free ones that wait for reuse.
//!
//! Plain and single-threaded: it reads no clock but to measure its syncs, starts no thread and never waits. The writer thread
//! owns it. The life of a segment is drawn in [`super::segment`]; frames in [`super::frame`].
//!
//! ```text
//! active segment:   | header | frame frame frame | frame frame | frame . zeros | former life or nothing ...
//!                            0..............synced........written.....end
//! ```
//!
//! Frames are gathered in a buffer and written in whole blocks, so that direct I/O can be used. While one buffer is on its way to the
//! disk ([`super::flush`]), frames are gathered in the other. The last block of a write is rarely full: it is kept, and written again,
//! longer, with the next. The bytes it already held do not change, so a write that is torn by a crash cannot harm them as long as the
//! disk writes sectors whole.
//!
//! Segments are released, and so reused, oldest first. Reuse is what makes syncs cheap: overwriting blocks that were written
//! before needs no journal commit, which doubles the throughput of an idle disk and is worth more on a busy one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::buffer::AlignedBuffer;
use super::disk::{self, BLOCK_BYTES, Directory, Disk, File, Lock};
use super::flush::{Flush, Outcome, Write};
use super::frame::{self, Place, Prepared, Unsealed};
use super::logged::LoggedRef;
use super::long_term::cleanup::Horizon;
use super::mark::{Mark, Marker};
use super::ordered::OwnRun;
use super::read::{Frames, Position, Reader, Run};
use super::recovery::{self, Recovery, Surveyed};
use super::segment::{self, Layout, corrupt_name, free_name, segment_name};
use super::{Config, Error, keys, long_term};
use crate::batch::NormalizedBatch;
use crate::epoch::Epoch;

mod segments;

/// A buffer above this is given back after a huge frame. Well above a usual one: memory that is given back and taken again costs more
/// than the copy into it.
const BUFFER_BYTES_MAX: usize = 32 << 20;
/// Free segments kept for reuse; more are removed. Enough for a second at full rate between two releases.
const FREE_SEGMENTS_MAX: usize = 8;
/// Upper bounds of the sync latency histogram, in microseconds; above the last there is one more bucket.
pub const SYNC_BUCKETS_US: [u64; 11] = [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];

/// What the log did since it was opened, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames appended.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Bytes of the frames: with `payload_bytes` the space amplification.
    pub frame_bytes: u64,
    /// Bytes written to segments, blocks written again and padding included: the write amplification.
    pub written_bytes: u64,
    /// Bytes of key files written.
    pub keys_written_bytes: u64,
    /// Syncs of segments.
    pub syncs: u64,
    /// Time spent in them, in microseconds.
    pub sync_us: u64,
    /// The longest, in microseconds.
    pub sync_us_max: u64,
    /// How many syncs took up to each of `SYNC_BUCKETS_US`; not cumulative.
    pub sync_histogram: [u64; SYNC_BUCKETS_US.len() + 1],
    /// Segments created.
    pub segments_created: u64,
    /// Segments reused.
    pub segments_reused: u64,
    /// Segments with frames that may be needed, the active one included.
    pub segments: u64,
    /// Free segments.
    pub segments_free: u64,
    /// Sealed segments whose copy in the long-term log is not there yet.
    pub segments_uncopied: u64,
    /// Bytes of all segment files; at most `bytes_max`.
    pub total_bytes: u64,
    /// Bytes of segments that are not free: the backlog on disk.
    pub live_bytes: u64,
    /// Key files.
    pub key_files: u64,
    /// Bytes of the key files.
    pub keys_bytes: u64,
    /// Key files dropped before their time because of `keys_bytes_max`, and segments of messages as they came because of `bytes_max`.
    pub keys_dropped: u64,
    /// Jobs that wait for the writer.
    pub queued_jobs: u64,
    /// Bytes of their payloads.
    pub queued_bytes: u64,
    /// True while the writer waits for space.
    pub stalled: bool,
    /// How often it had to.
    pub stalls: u64,
    /// True if blocks are written past the page cache.
    pub direct_io: bool,
    /// The long-term log.
    pub long_term: long_term::Stats,
}

/// The segment being written. end >= written >= synced, in order of appending, writing, syncing.
struct Active {
    number: u64,
    file: Arc<dyn File>,
    file_bytes: u64,
    end: u64,
    written: u64,
    synced: u64,
    epoch_min: Epoch,
    epoch_max: Epoch,
    keys: keys::Builder,
    age: Option<keys::Age>,
}

/// A segment that is not written any more.
struct Sealed {
    number: u64,
    file_bytes: u64,
    /// Released when every epoch up to this one is.
    epoch_max: Epoch,
    damaged: bool,
    /// How old its messages are, where they are as they came: the dedup window is warmed up from the segment itself.
    age: Option<keys::Age>,
    /// Its copy in the long-term log is there, or none is wanted.
    copied: bool,
}

/// The key files, and the keys on their way there.
#[derive(Default)]
struct KeyShelf {
    saved: BTreeMap<u64, SavedKeys>,
    saved_bytes: u64,
    /// Not yet handed out to be saved.
    unsaved: VecDeque<keys::File>,
    /// Handed out or not, but not saved.
    awaiting: BTreeSet<u64>,
    newest: keys::Age,
}

struct SavedKeys {
    age: keys::Age,
    bytes: u64,
}

/// The log of one process.
pub struct Log {
    disk: Arc<dyn Disk>,
    config: Config,
    run_epoch: Epoch,
    released: Epoch,
    /// The newest epoch there is: the log's clock.
    newest: Epoch,
    active: Option<Active>,
    sealed: VecDeque<Sealed>,
    /// Sealed segments whose copying was not handed out yet.
    uncopied: VecDeque<long_term::Job>,
    free: VecDeque<u64>,
    corrupt: VecDeque<String>,
    keys: KeyShelf,
    /// The last segment that was sealed, and where it ends.
    previous: (u64, u64),
    next_number: u64,
    /// Names were changed since the directory was last synced.
    names_changed: bool,
    buffer: AlignedBuffer,
    /// Where the buffer's first byte belongs in the active segment.
    buffer_start: u64,
    /// Frames in the buffer that have no header yet.
    unsealed: Vec<Unsealed>,
    /// The other buffer, while no flush has it.
    spare: AlignedBuffer,
    /// A flush that writes is under way.
    is_writing: bool,
    /// A flush that syncs is under way.
    is_syncing: bool,
    meta: Vec<u8>,
    poisoned: bool,
    stats: Stats,
    marker: Marker,
    lock: Arc<dyn Lock>,
}

impl Log {
    /// Opens the log in `config.directory` and finds out what it holds. `run_epoch` is the epoch at which recovered frames enter
    /// the dataflow again: they are released with it.
    pub fn open(config: Config, run_epoch: Epoch) -> Result<(Log, Recovery), Error> {
        config.check()?;
        let disk = Directory::create(&config.directory, config.direct_io)?;
        Log::open_on(Arc::new(disk), config, run_epoch)
    }

    /// Opens the log on `disk`.
    pub fn open_on(disk: Arc<dyn Disk>, config: Config, run_epoch: Epoch) -> Result<(Log, Recovery), Error> {
        config.check()?;
        let lock = disk.lock().map_err(|error| ("lock", disk.path("lock"), error))?;
        let lock = lock.ok_or_else(|| Error::Locked { path: disk.path("lock") })?;
        let layout = Layout::read(&*disk)?;
        let surveyed = recovery::survey(&*disk, &layout)?;
        let mut log = Log {
            run_epoch,
            released: Epoch(0),
            newest: run_epoch,
            active: None,
            sealed: VecDeque::new(),
            uncopied: VecDeque::new(),
            free: VecDeque::new(),
            corrupt: layout.corrupt.iter().cloned().collect(),
            keys: KeyShelf::default(),
            previous: surveyed.last().map_or((0, 0), |last| (last.number, last.scan.end)),
            next_number: layout.number_max + 1,
            names_changed: true,
            buffer: AlignedBuffer::default(),
            buffer_start: 0,
            unsealed: Vec::new(),
            spare: AlignedBuffer::default(),
            is_writing: false,
            is_syncing: false,
            meta: Vec::new(),
            poisoned: false,
            stats: Stats { direct_io: disk.direct(), ..Stats::default() },
            marker: Marker::default(),
            lock: lock.into(),
            disk,
            config,
        };
        log.make_found_durable(&surveyed)?;
        let recovery = log.take_over(&layout, &surveyed)?;
        Ok((log, recovery))
    }

    /// Syncs the last segment: a process that was killed may have left it written but not synced. Its frames are about to count as
    /// durable, and the next to fail may be the machine. The segments before it were synced before their successors were made.
    fn make_found_durable(&mut self, surveyed: &[Surveyed]) -> Result<(), Error> {
        if let Some(last) = surveyed.last() {
            let name = segment_name(last.number);
            let synced = self.disk.open(&name).and_then(|file| file.sync());
            synced.map_err(|error| self.failed_sync(&name, error))?;
        }
        self.sync_directory()
    }

    /// Makes what was found the log's own.
    fn take_over(&mut self, layout: &Layout, surveyed: &[Surveyed]) -> Result<Recovery, Error> {
        let mut report = recovery::report(&*self.disk, surveyed);
        for name in &layout.temporary {
            self.remove(name)?;
        }
        self.marker = Marker::create(&*self.disk, Mark::read(&*self.disk)?);
        for (&number, &bytes) in &layout.free {
            // Of another size when the configuration changed.
            if bytes == self.config.segment_bytes && self.free.len() < FREE_SEGMENTS_MAX {
                self.free.push_back(number);
            } else {
                self.remove(&free_name(number))?;
            }
        }
        let (mut coverage, mut normalized, mut raw) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut recalled = BTreeMap::new();
        let mut runs = Vec::new();
        let mut raw_runs = Vec::new();
        for Surveyed { number, header, scan, .. } in surveyed {
            recovery::merge(&mut coverage, &scan.coverage());
            recovery::merge(&mut normalized, &scan.normalized);
            recovery::merge(&mut raw, &scan.raw);
            recovery::merge(&mut recalled, &scan.recalled);
            let run = |bytes: &Range<u64>| Run { segment: *number, bytes: bytes.clone() };
            runs.extend(scan.runs.iter().map(run));
            let ascents = scan.raw_runs.iter().map(|(epoch, bytes)| (*epoch, run(bytes)));
            OwnRun::add(&mut raw_runs, header.map(|header| header.run_epoch), scan.epochs, ascents.collect());
            self.keys.newest = scan.age.map_or(self.keys.newest, |age| age.max(self.keys.newest));
        }
        for found in surveyed {
            self.sealed.push_back(Sealed {
                number: found.number,
                file_bytes: found.file_bytes,
                epoch_max: self.run_epoch,
                damaged: found.is_damaged(),
                age: found.scan.age,
                copied: true,
            });
            // Whether it was copied before, the copier finds out.
            if let Some((first, last)) = found.scan.epochs {
                self.want_copy(long_term::Job { segment: found.number, end: found.scan.end, first, last });
            }
        }
        report.damaged_keys = self.take_over_keys(layout, surveyed, &runs)?;
        let key_files = self.keys.saved.keys().copied().collect();
        let unsaved_keys = self.keys.unsaved.iter().cloned().collect();
        let disk = self.disk.clone();
        Ok(Recovery { coverage, normalized, raw, recalled, report, disk, runs, raw_runs, key_files, unsaved_keys })
    }

    /// Reads the key files and writes those that live segments lack. Returns the damaged ones.
    fn take_over_keys(&mut self, layout: &Layout, surveyed: &[Surveyed], runs: &[Run]) -> Result<Vec<std::path::PathBuf>, Error> {
        let mut damaged = Vec::new();
        self.keys.newest.epoch = self.run_epoch;
        for &number in layout.keys.keys() {
            let wanted = surveyed.iter().find(|found| found.number == number).map_or(0, |found| found.scan.keyed);
            match keys::File::read(&*self.disk, number)? {
                Some(file) if file.entries >= wanted => self.keys.shelve(number, file.age, file.bytes().len() as u64),
                _ => {
                    let name = segment::keys_name(number);
                    // Those of a live segment are written again below; nothing is lost then.
                    if wanted == 0 {
                        damaged.push(self.disk.path(&corrupt_name(&name)));
                    }
                    self.set_aside(&name)?;
                }
            }
        }
        for Surveyed { number, scan, .. } in surveyed {
            if self.config.keys_retention_ms > 0 && scan.keyed > 0 && !self.keys.saved.contains_key(number) {
                let runs = runs.iter().filter(|run| run.segment == *number).cloned();
                let mut builder = keys::Builder::default();
                // What became unreadable since the survey is reported by whoever replays it.
                for frame in Frames::<NormalizedBatch>::new(self.disk.clone(), runs).filter_map(Result::ok) {
                    builder.add(frame.epoch, &frame.batch.coverage.partition, &frame.batch.records);
                }
                self.keys.queue(builder, *number);
            }
        }
        match self.save_keys() {
            // The writer tries again; the log can be used as long as it has free segments.
            Err(Error::Full { .. }) => {}
            saved => saved?,
        }
        self.expire_keys();
        Ok(damaged)
    }

    /// Appends one frame. It is durable after the next `sync`. On `Error::Full` nothing was appended: the same call succeeds once
    /// there is room.
    pub fn append<'a>(&mut self, epoch: Epoch, batch: impl Into<LoggedRef<'a>>) -> Result<Position, Error> {
        let batch = batch.into();
        self.usable()?;
        assert!(!self.is_flushing(), "with a flush under way only `try_append` can tell that it must wait");
        loop {
            match self.try_append(epoch, batch)? {
                Some(position) => return Ok(position),
                None => self.sync()?,
            }
        }
    }

    /// As `append`, but `None`, without having done anything, if the active segment must be closed and is not synced to its end.
    pub(super) fn try_append<'a>(&mut self, epoch: Epoch, batch: impl Into<LoggedRef<'a>>) -> Result<Option<Position>, Error> {
        let batch = batch.into();
        self.usable()?;
        let mut meta = std::mem::take(&mut self.meta);
        let appended = Prepared::new(batch, &mut meta).and_then(|frame| self.append_prepared(epoch, batch, &frame));
        self.meta = meta;
        appended
    }

    fn append_prepared(&mut self, epoch: Epoch, batch: LoggedRef<'_>, frame: &Prepared<'_>) -> Result<Option<Position>, Error> {
        let bytes = frame.frame_bytes();
        let fits = self.active.as_ref().is_some_and(|active| active.end + bytes <= active.file_bytes);
        if !fits {
            if self.is_dirty() || self.is_writing || self.is_syncing {
                return Ok(None);
            }
            self.next_segment(bytes)?;
        }
        let Some(active) = self.active.as_mut() else { return Err(Error::Poisoned) };
        assert!(active.end + bytes <= active.file_bytes, "segment {} has no room for the frame", active.number);
        let Active { number: segment, end: position, .. } = *active;
        self.unsealed.push(frame.write(Place { segment, position, epoch }, &mut self.buffer));
        active.end += bytes;
        assert_eq!(self.buffer_start + self.buffer.len() as u64, active.end, "segment {segment}: buffer and end differ");
        (active.epoch_min, active.epoch_max) = (active.epoch_min.min(epoch), active.epoch_max.max(epoch));
        self.newest = self.newest.max(epoch);
        match batch {
            _ if self.config.keys_retention_ms == 0 => {}
            LoggedRef::Normalized(batch) => active.keys.add(epoch, &batch.coverage.partition, &batch.records),
            LoggedRef::Raw(batch) | LoggedRef::Recalled(batch) => {
                for record in &batch.records {
                    let age = keys::Age::of(epoch, record.timestamp_ms);
                    active.age = Some(active.age.map_or(age, |before| before.max(age)));
                }
                self.keys.newest = active.age.map_or(self.keys.newest, |age| age.max(self.keys.newest));
            }
        }
        self.stats.frames += 1;
        self.stats.records += batch.records() as u64;
        self.stats.payload_bytes += batch.payload_bytes();
        self.stats.frame_bytes += bytes;
        Ok(Some(Position { segment, at: position, bytes: bytes as u32 }))
    }

    /// Hands everything appended to the operating system. On `Error::Full` all of it is kept and written by the next call.
    pub fn write(&mut self) -> Result<(), Error> {
        self.flush(false)
    }

    /// Makes everything appended durable.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.flush(true)
    }

    fn flush(&mut self, sync: bool) -> Result<(), Error> {
        self.usable()?;
        let Some(mut flush) = self.begin(sync) else { return Ok(()) };
        flush.run();
        self.finish(flush)
    }

    /// Takes out what was appended and not written, to be written and, if `sync`, synced with all before it. `None` if there is
    /// nothing to do, or if a flush that does the same is under way. Give it back to `finish` when it was run.
    pub(super) fn begin(&mut self, sync: bool) -> Option<Flush> {
        let is_free = !(self.is_writing || sync && self.is_syncing);
        let Some(active) = self.active.as_mut().filter(|active| is_free && active.written < active.end) else {
            return sync.then(|| self.begin_sync()).flatten();
        };
        let synced = active.synced;
        self.unsealed.drain(..).for_each(|frame| frame.seal(synced, &mut self.buffer));
        // Zeros for one header more, so that the end of the log can be told from whatever the file held before.
        let terminated = (self.buffer.len() + frame::HEADER_BYTES) as u64;
        let room = active.file_bytes - self.buffer_start;
        let padded = terminated.next_multiple_of(BLOCK_BYTES).min(room);
        let buffer = std::mem::replace(&mut self.buffer, std::mem::take(&mut self.spare));
        let write = Write { buffer, start: self.buffer_start, padded };
        let whole_blocks = write.whole_blocks();
        self.buffer.clear();
        self.buffer.extend(&write.buffer.bytes()[whole_blocks..]);
        self.buffer_start += whole_blocks as u64;
        (self.is_writing, self.is_syncing) = (true, self.is_syncing || sync);
        let (file, segment, end) = (active.file.clone(), active.number, active.end);
        Some(Flush { file, segment, write: Some(write), sync, end, outcome: Outcome::Pending })
    }

    /// A flush that syncs what is written, and leaves what was appended since. `None` if there is nothing to sync, or another flush is
    /// under way.
    pub(super) fn begin_sync(&mut self) -> Option<Flush> {
        let is_free = !self.is_flushing();
        let active = self.active.as_ref().filter(|active| is_free && active.synced < active.written)?;
        let (file, segment, end) = (active.file.clone(), active.number, active.written);
        self.is_syncing = true;
        Some(Flush { file, segment, write: None, sync: true, end, outcome: Outcome::Pending })
    }

    /// Takes a flush back. On `Error::Full` all its bytes are the log's again, to be written by the next.
    pub(super) fn finish(&mut self, flush: Flush) -> Result<(), Error> {
        let Flush { segment, write, sync, end, outcome, .. } = flush;
        let is_write = write.is_some();
        (self.is_writing, self.is_syncing) = (self.is_writing && !is_write, self.is_syncing && !sync);
        self.usable()?;
        match outcome {
            Outcome::Pending => panic!("a flush of segment {segment} was not run"),
            Outcome::NotWritten(error) => {
                write.into_iter().for_each(|write| self.take_back(write));
                return Err(self.failed("write", &segment_name(segment), error));
            }
            Outcome::NotSynced(error) => return Err(self.failed_sync(&segment_name(segment), error)),
            Outcome::Done(synced_in) => {
                let Some(active) = self.active.as_mut() else { return Err(Error::Poisoned) };
                assert_eq!(active.number, segment, "a segment is closed while it is flushed");
                active.written = active.written.max(end);
                if let Some(elapsed) = synced_in {
                    active.synced = active.synced.max(end);
                    let mark = Mark { segment, end: active.synced, run_epoch: self.run_epoch.0 };
                    self.marker.note(mark, &*self.disk);
                    self.stats.count_sync(elapsed);
                }
            }
        }
        if let Some(Write { buffer, padded, .. }) = write {
            self.stats.written_bytes += padded;
            self.spare = buffer;
            self.spare.clear();
            self.spare.shrink_to(BUFFER_BYTES_MAX);
        }
        Ok(())
    }

    /// Puts bytes that could not be written before those that were appended meanwhile.
    fn take_back(&mut self, write: Write) {
        let whole_blocks = write.whole_blocks();
        let Write { buffer: mut whole, start, .. } = write;
        let kept = whole.len() - whole_blocks;
        whole.extend(&self.buffer.bytes()[kept..]);
        self.unsealed.iter_mut().for_each(|frame| frame.at += whole_blocks);
        self.spare = std::mem::replace(&mut self.buffer, whole);
        self.buffer_start = start;
    }

    /// True if something was appended and not synced.
    pub fn is_dirty(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.synced < active.end)
    }

    /// Bytes appended, and not yet on their way to the disk.
    pub(super) fn gathered_bytes(&self) -> u64 {
        let is_unwritten = self.active.as_ref().is_some_and(|active| active.written < active.end);
        let is_gathered = if self.is_writing { !self.unsealed.is_empty() } else { is_unwritten };
        if is_gathered { self.buffer.len() as u64 } else { 0 }
    }

    /// True while a flush is under way.
    pub(super) fn is_flushing(&self) -> bool {
        self.is_writing || self.is_syncing
    }

    /// States that every frame of an epoch before `epoch` is published. Sealed segments without other frames are made free.
    pub fn release(&mut self, epoch: Epoch) -> Result<(), Error> {
        self.usable()?;
        self.released = self.released.max(epoch);
        if epoch < Epoch(u64::MAX) {
            // The last release says only that nothing more will come.
            self.newest = self.newest.max(epoch);
        }
        self.retire_released()
    }

    /// How far the log is, for those who remove what is older.
    pub fn horizon(&self) -> Horizon {
        Horizon { published: self.released, newest: self.newest }
    }

    /// A sealed segment that must be copied before it can be reused. Pass its number to `copied` when its copy is durable.
    pub fn take_uncopied(&mut self) -> Option<long_term::Job> {
        self.uncopied.pop_front()
    }

    /// States that the copy of this segment is durable.
    pub fn copied(&mut self, segment: u64) -> Result<(), Error> {
        self.usable()?;
        self.sealed.iter_mut().filter(|sealed| sealed.number == segment).for_each(|sealed| sealed.copied = true);
        self.retire_released()
    }

    fn want_copy(&mut self, job: long_term::Job) {
        if self.config.long_term.is_some()
            && let Some(sealed) = self.sealed.iter_mut().rfind(|sealed| sealed.number == job.segment)
        {
            sealed.copied = false;
            self.uncopied.push_back(job);
        }
    }

    /// Keys that must be saved before their segment can be reused. Pass the number to `keys_saved` when they are.
    pub fn take_unsaved_keys(&mut self) -> Option<keys::File> {
        self.keys.unsaved.pop_front()
    }

    /// States that this file is saved.
    pub fn keys_saved(&mut self, file: &keys::File) -> Result<(), Error> {
        self.usable()?;
        self.keys.awaiting.remove(&file.segment);
        self.keys.shelve(file.segment, file.age, file.bytes().len() as u64);
        self.stats.keys_written_bytes += file.bytes().len() as u64;
        self.expire_keys();
        self.retire_released()
    }

    /// Saves all keys that are not, on this thread.
    pub fn save_keys(&mut self) -> Result<(), Error> {
        while let Some(file) = self.take_unsaved_keys() {
            if let Err(error) = file.save(&*self.disk) {
                let name = segment::keys_name(file.segment);
                self.keys.unsaved.push_front(file);
                return Err(self.failed("write", &name, error));
            }
            self.keys_saved(&file)?;
        }
        Ok(())
    }

    /// Gives one free segment's space back to the disk. False if there is none.
    pub fn drop_free_segment(&mut self) -> Result<bool, Error> {
        self.usable()?;
        let Some(number) = self.free.pop_back() else { return Ok(false) };
        self.remove(&free_name(number))?;
        Ok(true)
    }

    /// Refuses all further work, because something outside the log's sight failed.
    pub fn poison(&mut self) {
        self.poisoned = true;
    }

    /// Reads frames back.
    pub fn reader(&self) -> Reader {
        Reader { disk: self.disk.clone() }
    }

    /// The disk the log is on.
    pub fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    /// The lock on the directory, for whoever writes there besides the log: it is held until the last clone is dropped.
    pub fn lock(&self) -> Arc<dyn Lock> {
        self.lock.clone()
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the log did and holds. The queue's fields are the writer's.
    pub fn stats(&self) -> Stats {
        let live_bytes = self.live_bytes();
        Stats {
            segments: (self.sealed.len() + usize::from(self.active.is_some())) as u64,
            segments_free: self.free.len() as u64,
            segments_uncopied: self.sealed.iter().filter(|sealed| !sealed.copied).count() as u64,
            total_bytes: live_bytes + self.free.len() as u64 * self.config.segment_bytes,
            live_bytes,
            key_files: self.keys.saved.len() as u64,
            keys_bytes: self.keys.saved_bytes,
            ..self.stats
        }
    }

    fn usable(&self) -> Result<(), Error> {
        if self.poisoned { Err(Error::Poisoned) } else { Ok(()) }
    }

    fn live_bytes(&self) -> u64 {
        let sealed = self.sealed.iter().map(|sealed| sealed.file_bytes).sum::<u64>();
        sealed + self.active.as_ref().map_or(0, |active| active.file_bytes)
    }

    fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.disk.remove(name).map_err(|error| self.failed("remove", name, error))?;
        self.names_changed = true;
        Ok(())
    }

    fn sync_directory(&mut self) -> Result<(), Error> {
        self.disk.sync_directory().map_err(|error| self.failed_sync("", error))?;
        self.names_changed = false;
        Ok(())
    }

    /// The error of a failed operation, which closes the log unless only space was missing.
    fn failed(&mut self, action: &'static str, name: &str, source: io::Error) -> Error {
        let path = self.disk.path(name);
        if disk::is_full(&source) {
            return Error::Full { cause: format!("{}: {source}", path.display()) };
        }
        self.poisoned = true;
        Error::Io { action, path, source }
    }

    /// A failed sync always closes the log, even if only space was missing: pages that did not reach the disk may be gone from
    /// memory too, and a second sync would succeed without them.
    fn failed_sync(&mut self, name: &str, source: io::Error) -> Error {
        self.poisoned = true;
        Error::Io { action: "sync", path: self.disk.path(name), source }
    }
}

impl KeyShelf {
    fn queue(&mut self, builder: keys::Builder, segment: u64) {
        if let Some(file) = builder.finish(segment) {
            self.awaiting.insert(segment);
            self.unsaved.push_back(file);
        }
    }

    fn shelve(&mut self, segment: u64, age: keys::Age, bytes: u64) {
        self.newest = self.newest.max(age);
        let before = self.saved.insert(segment, SavedKeys { age, bytes });
        self.saved_bytes = self.saved_bytes + bytes - before.map_or(0, |before| before.bytes);
    }
}

impl Stats {
    fn count_sync(&mut self, elapsed: Duration) {
        let elapsed_us = elapsed.as_micros() as u64;
        self.syncs += 1;
        self.sync_us += elapsed_us;
        self.sync_us_max = self.sync_us_max.max(elapsed_us);
        let bucket = SYNC_BUCKETS_US.iter().position(|&bound| elapsed_us <= bound).unwrap_or(SYNC_BUCKETS_US.len());
        self.sync_histogram[bucket] += 1;
    }
}
