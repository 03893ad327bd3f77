//! Reading segments: through a moving window for recovery, frame by frame for replay, one frame for reading back.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{BLOCK_BYTES, Disk, File};
use super::frame::{self, Framed, HEADER_BYTES, Header};
use super::segment::segment_name;
use super::{Error, keys};
use crate::batch::NormalizedBatch;
use crate::epoch::Epoch;

/// Bytes of frames read at once. Large enough that a disk streams; a replayed batch keeps its whole chunk in memory, so not larger.
const CHUNK_BYTES: u64 = 1 << 20;
/// Bytes of a segment read at once while it is walked. A frame at the end of one chunk is read again with the next, so larger.
const WINDOW_BYTES: u64 = 4 << 20;

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// The frame's first byte in the segment's file.
    pub at: u64,
    /// The frame's length.
    pub bytes: u32,
}

impl Position {
    /// The run of this frame alone.
    pub fn run(&self) -> Run {
        Run { segment: self.segment, bytes: self.at..self.at + u64::from(self.bytes) }
    }

    /// True if the frame begins where `run` ends.
    pub fn follows(&self, run: &Run) -> bool {
        self.segment == run.segment && self.at == run.bytes.end
    }
}

/// A batch read from the log.
#[derive(Clone, Debug)]
pub struct RecoveredFrame<B = NormalizedBatch> {
    /// The epoch in which it was logged, by the run that logged it.
    pub epoch: Epoch,
    /// Where it lies.
    pub position: Position,
    /// The batch, its payloads in `Arena::Raw`.
    pub batch: B,
}

/// A file seen through a moving buffer. What cannot be read is read as zeros, block by block: no frame has a checksum that
/// matches zeros, so it is reported as damage like any other, and what lies around it is kept.
pub(super) struct Window<'a> {
    file: &'a dyn File,
    /// The file's length.
    pub(super) end: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a dyn File) -> std::io::Result<Self> {
        Ok(Window { file, end: file.bytes()?, start: 0, bytes: vec![] })
    }

    /// The bytes of `range`, cut at the file's end.
    pub(super) fn get(&mut self, range: Range<u64>) -> &[u8] {
        let range = range.start.min(self.end)..range.end.min(self.end);
        let held = self.start..self.start + self.bytes.len() as u64;
        if range.start < held.start || range.end > held.end {
            self.fill(range.start..range.end.max(range.start + WINDOW_BYTES).min(self.end));
        }
        &self.bytes[(range.start - self.start) as usize..(range.end - self.start) as usize]
    }

    fn fill(&mut self, range: Range<u64>) {
        self.start = range.start;
        // Not cleared: what is overwritten at once need not be zeroed first.
        self.bytes.resize((range.end - range.start) as usize, 0);
        if self.file.read_exact_at(&mut self.bytes, range.start).is_ok() {
            return;
        }
        for (index, block) in self.bytes.chunks_mut(BLOCK_BYTES as usize).enumerate() {
            if self.file.read_exact_at(block, range.start + index as u64 * BLOCK_BYTES).is_err() {
                block.fill(0);
            }
        }
    }

    /// The checksum of `range`, without holding all of it.
    pub(super) fn crc(&mut self, range: Range<u64>) -> u32 {
        let (mut crc, mut at) = (0, range.start);
        while at < range.end {
            let end = range.end.min(at + WINDOW_BYTES);
            crc = crc32c::crc32c_append(crc, self.get(at..end));
            at = end;
        }
        crc
    }

    /// The first position in `range`, of those where a frame may start, whose bytes begin like a frame.
    pub(super) fn find_magic(&mut self, range: Range<u64>) -> Option<u64> {
        let mut at = range.start.next_multiple_of(frame::ALIGNMENT);
        while at < range.end {
            let end = range.end.min(at + WINDOW_BYTES);
            let magic = frame::MAGIC.to_le_bytes();
            let mut words = self.get(at..end).chunks_exact(frame::ALIGNMENT as usize);
            if let Some(index) = words.position(|word| word[..4] == magic) {
                return Some(at + index as u64 * frame::ALIGNMENT);
            }
            at = end;
        }
        None
    }
}

/// A stretch of whole frames, back to back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the segment.
    pub segment: u64,
    /// Its bytes.
    pub bytes: Range<u64>,
}

/// The frames of some runs, read in chunks.
pub struct Frames<B = NormalizedBatch> {
    disk: Arc<dyn Disk>,
    runs: VecDeque<Run>,
    current: Option<Current>,
    holds: PhantomData<fn() -> B>,
}

struct Current {
    run: Run,
    file: Box<dyn File>,
    chunk: Bytes,
    chunk_start: u64,
}

impl<B> Frames<B> {
    /// The frames of `runs`, in their order.
    pub fn new(disk: Arc<dyn Disk>, runs: impl IntoIterator<Item = Run>) -> Self {
        Frames { disk, runs: runs.into_iter().collect(), current: None, holds: PhantomData }
    }

    fn error(&self, segment: u64, at: u64, source: frame::Error) -> Error {
        Error::Frame { path: self.disk.path(&segment_name(segment)), at, source }
    }
}

impl Current {
    fn open(disk: &dyn Disk, run: Run) -> Result<Self, Error> {
        let name = segment_name(run.segment);
        let file = disk.read(&name).map_err(|error| ("open", disk.path(&name), error))?;
        Ok(Current { chunk_start: run.bytes.start, run, file, chunk: Bytes::new() })
    }

    /// `bytes` bytes at the run's start, from the chunk if it has them.
    fn get(&mut self, bytes: u64) -> Result<Bytes, frame::Error> {
        let Range { start, end } = self.run.bytes;
        if bytes > end - start {
            return Err(frame::Error::Cut);
        }
        let from = (start - self.chunk_start) as usize;
        if self.chunk.len() as u64 >= from as u64 + bytes {
            return Ok(self.chunk.slice(from..from + bytes as usize));
        }
        let mut chunk = vec![0; bytes.max(CHUNK_BYTES).min(end - start) as usize];
        self.file.read_exact_at(&mut chunk, start).map_err(|_| frame::Error::Cut)?;
        (self.chunk, self.chunk_start) = (chunk.into(), start);
        Ok(self.chunk.slice(..bytes as usize))
    }

    fn next<B: Framed>(&mut self) -> Result<RecoveredFrame<B>, frame::Error> {
        let at = self.run.bytes.start;
        let header = Header::parse(&self.get(HEADER_BYTES as u64)?, self.run.segment, at)?;
        let bytes = self.get(header.frame_bytes())?;
        let (epoch, batch) = frame::decode(&bytes, self.run.segment, at)?;
        self.run.bytes.start += bytes.len() as u64;
        Ok(RecoveredFrame { epoch, position: Position { segment: self.run.segment, at, bytes: bytes.len() as u32 }, batch })
    }
}

impl<B: Framed> Iterator for Frames<B> {
    type Item = Result<RecoveredFrame<B>, Error>;

    /// After an error the rest of the run is skipped.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(current) = self.current.as_mut().filter(|current| !current.run.bytes.is_empty()) else {
                let run = self.runs.pop_front()?;
                match Current::open(&*self.disk, run) {
                    Ok(current) => self.current = Some(current),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            let read = current.next::<B>();
            let (segment, at) = (current.run.segment, current.run.bytes.start);
            return Some(read.map_err(|source| {
                self.current = None;
                self.error(segment, at, source)
            }));
        }
    }
}

/// Reads frames back whose payloads were let go to save memory (design D-9).
///
/// A position is good until its epoch is released.
#[derive(Clone)]
pub struct Reader {
    pub(super) disk: Arc<dyn Disk>,
}

impl Reader {
    /// The frame at `position`.
    pub fn read(&self, position: Position) -> Result<RecoveredFrame, Error> {
        let mut frames = self.frames([position.run()]);
        frames.next().unwrap_or_else(|| Err(frames.error(position.segment, position.at, frame::Error::NoFrame)))
    }

    /// The frames of `runs`, in their order.
    pub fn frames<B>(&self, runs: impl IntoIterator<Item = Run>) -> Frames<B> {
        Frames::new(self.disk.clone(), runs)
    }
}

/// The keys of some key files, oldest first.
pub struct RememberedKeys {
    disk: Arc<dyn Disk>,
    segments: VecDeque<u64>,
    unsaved: VecDeque<keys::File>,
    current: Option<keys::Keys>,
}

impl RememberedKeys {
    pub(super) fn new(disk: Arc<dyn Disk>, segments: Vec<u64>, unsaved: Vec<keys::File>) -> Self {
        RememberedKeys { disk, segments: segments.into(), unsaved: unsaved.into(), current: None }
    }

    fn next_file(&mut self) -> Option<Result<keys::File, Error>> {
        while let Some(segment) = self.segments.pop_front() {
            match keys::File::read(&*self.disk, segment) {
                // It expired since the log was opened.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                // It was whole when the log was opened.
                Ok(None) => return Some(Err(self.damaged(segment))),
                Ok(Some(file)) => return Some(Ok(file)),
                Err(error) => return Some(Err(error)),
            }
        }
        self.unsaved.pop_front().map(Ok)
    }

    fn damaged(&self, segment: u64) -> Error {
        let path = self.disk.path(&super::segment::keys_name(segment));
        Error::Frame { path, at: 0, source: frame::Error::Malformed }
    }
}

impl Iterator for RememberedKeys {
    type Item = Result<keys::RememberedKey, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(key) = self.current.as_mut().and_then(Iterator::next) {
                let segment = self.current.as_ref().map_or(0, |keys| keys.segment());
                return Some(key.map_err(|_| self.damaged(segment)));
            }
            match self.next_file()? {
                Ok(file) => self.current = Some(file.keys()),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
