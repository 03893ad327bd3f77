//! Reading copies: block by block, and frame by frame as recovery does with segments.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::cleanup::Found;
use super::format::{BLOCK, Block, Head, MARK_BYTES, TAG_AT, TAIL, Tail, VERSION};
use super::shelf::Shelf;
use crate::epoch::Epoch;
use crate::wal_commit::Error;
use crate::wal_commit::codec::u64_at;
use crate::wal_commit::frame::{self, HEADER_BYTES, Header};
use crate::wal_commit::logged::Logged;
use crate::wal_commit::read::{Position, RecoveredFrame};

/// Bytes read at once: a few blocks, so that an object store is asked seldom.
const CHUNK_BYTES: u64 = 4 << 20;

/// What follows in a copy.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A whole block: its frames, back to back.
    Block(Bytes),
    /// Bytes that are no part of a whole copy, and how many frames they held, where that can still be read.
    Damaged(Range<u64>, Option<u32>),
    /// The end, and what the copy holds if nothing of it is damaged.
    Tail(Tail),
}

/// The pieces of one copy.
pub struct Pieces {
    shelf: Arc<dyn Shelf>,
    copy: Found,
    at: u64,
    chunk: Bytes,
    chunk_start: u64,
    ended: bool,
}

impl Pieces {
    /// The pieces of `copy`.
    pub fn new(shelf: Arc<dyn Shelf>, copy: Found) -> Self {
        Pieces { shelf, copy, at: 0, chunk: Bytes::new(), chunk_start: 0, ended: false }
    }

    /// The copy.
    pub fn copy(&self) -> &Found {
        &self.copy
    }

    /// Where the copy is, for messages.
    pub fn place(&self) -> PathBuf {
        self.shelf.place(&self.copy.path).into()
    }

    /// The bytes of `range`, cut at the copy's end.
    fn get(&mut self, range: Range<u64>) -> Result<Bytes, Error> {
        let range = range.start.min(self.copy.bytes)..range.end.min(self.copy.bytes);
        let held = self.chunk_start..self.chunk_start + self.chunk.len() as u64;
        if range.start < held.start || range.end > held.end {
            let wanted = range.start..range.end.max(range.start + CHUNK_BYTES).min(self.copy.bytes);
            let read = self.shelf.read(&self.copy.path, wanted.clone());
            self.chunk = read.map_err(|error| ("read", self.place(), error))?;
            if (self.chunk.len() as u64) < range.end - range.start {
                // It became shorter since it was listed; the rest shows as damage.
                self.copy.bytes = wanted.start + self.chunk.len() as u64;
                self.chunk_start = wanted.start;
                return Ok(self.chunk.clone());
            }
            self.chunk_start = wanted.start;
        }
        let from = (range.start - self.chunk_start) as usize;
        Ok(self.chunk.slice(from..from + (range.end - range.start) as usize))
    }

    fn read_next(&mut self) -> Result<Piece, Error> {
        let (at, segment) = (self.at, self.copy.name.segment);
        if at == 0 {
            let head = Head::decode(&self.get(0..MARK_BYTES as u64)?);
            if head.map_err(|found| Error::Version { path: self.place(), found, known: VERSION })?.is_none() {
                return self.skip_damage(None);
            }
            self.at = MARK_BYTES as u64;
            return self.read_next();
        }
        let mark = self.get(at..at + MARK_BYTES as u64)?;
        if let Some(block) = Block::decode(&mark, segment, at) {
            let stored = at + MARK_BYTES as u64..at + MARK_BYTES as u64 + u64::from(block.stored_bytes);
            return match block.decompress(&self.get(stored.clone())?) {
                Some(frames) => {
                    self.at = stored.end;
                    Ok(Piece::Block(frames.into()))
                }
                None => self.skip_damage(Some(block.frames)),
            };
        }
        match Tail::decode(&mark, segment, at) {
            Some(tail) => {
                self.ended = true;
                Ok(Piece::Tail(tail))
            }
            None => self.skip_damage(None),
        }
    }

    /// Goes on at the next mark that says it is where it is. At the end of the copy there must be a tail: else it is cut short.
    fn skip_damage(&mut self, frames: Option<u32>) -> Result<Piece, Error> {
        let (start, segment, end) = (self.at, self.copy.name.segment, self.copy.bytes);
        let mut at = start + 1;
        while at < end {
            let window = self.get(at..(at + CHUNK_BYTES / 2).min(end))?;
            let tags = window.windows(BLOCK.len()).enumerate().skip(TAG_AT);
            let mut found = tags.filter(|(_, tag)| tag == BLOCK || tag == TAIL).map(|(tag, _)| at + (tag - TAG_AT) as u64);
            let next = found.find(|&place| {
                let mark = window.slice((place - at) as usize..);
                // A mark that reaches beyond the window is looked at with the next one.
                Block::decode(&mark, segment, place).is_some() || Tail::decode(&mark, segment, place).is_some()
            });
            if let Some(next) = next {
                self.at = next;
                return Ok(Piece::Damaged(start..next, frames));
            }
            if at + window.len() as u64 >= end {
                break;
            }
            at += window.len() as u64 - MARK_BYTES as u64;
        }
        self.ended = true;
        Ok(Piece::Damaged(start..end, frames))
    }
}

impl Iterator for Pieces {
    type Item = Result<Piece, Error>;

    /// After an error nothing follows.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let piece = self.read_next();
        self.ended |= piece.is_err();
        Some(piece)
    }
}

/// Bytes of the frames of a copy as its tail states them; as many as it has itself if it is cut short.
pub fn frame_bytes(shelf: &dyn Shelf, copy: &Found) -> Result<u64, Error> {
    let at = copy.bytes.saturating_sub(MARK_BYTES as u64);
    let mark = shelf.read(&copy.path, at..copy.bytes);
    let mark = mark.map_err(|error| ("read", PathBuf::from(shelf.place(&copy.path)), error))?;
    Ok(Tail::decode(&mark, copy.name.segment, at).map_or(copy.bytes, |tail| tail.frame_bytes))
}

/// The frames of one block.
struct BlockFrames {
    segment: u64,
    rest: Bytes,
}

impl BlockFrames {
    /// The first frame of the rest. Its checksums are its own; where it lay in its segment it says itself.
    fn read_next(&mut self) -> Result<RecoveredFrame<Logged>, frame::Error> {
        if self.rest.len() < HEADER_BYTES {
            return Err(frame::Error::Cut);
        }
        let at = u64_at(&self.rest, 16);
        let header = Header::parse(&self.rest, self.segment, at)?;
        let bytes = header.frame_bytes();
        if bytes > self.rest.len() as u64 {
            return Err(frame::Error::Cut);
        }
        let frame = self.rest.split_to(bytes as usize);
        let (epoch, batch) = frame::decode(&frame, self.segment, at)?;
        Ok(RecoveredFrame { epoch, position: Position { segment: self.segment, at, bytes: bytes as u32 }, batch })
    }
}

impl Iterator for BlockFrames {
    type Item = Result<RecoveredFrame<Logged>, frame::Error>;

    /// After an error the rest of the block is skipped: nothing says where its next frame begins.
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let frame = self.read_next();
        if frame.is_err() {
            self.rest.clear();
        }
        Some(frame)
    }
}

/// Which copies are read, and which of their frames.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Frames of this epoch and later ones.
    pub from: Option<Epoch>,
    /// Frames before this epoch.
    pub until: Option<Epoch>,
    /// Frames of these topics, by name; empty for all.
    pub topics: Vec<String>,
}

impl Selection {
    /// True if the copy may hold frames that are selected.
    pub fn has_copy(&self, copy: &Found) -> bool {
        self.from.is_none_or(|from| copy.name.last >= from) && self.until.is_none_or(|until| copy.name.first < until)
    }

    /// True if the frame is selected.
    pub fn has_frame(&self, frame: &RecoveredFrame<Logged>) -> bool {
        let topic = &frame.batch.by_ref().partition().topic.name;
        self.from.is_none_or(|from| frame.epoch >= from)
            && self.until.is_none_or(|until| frame.epoch < until)
            && (self.topics.is_empty() || self.topics.iter().any(|selected| **selected == **topic))
    }
}

/// The frames of a long-term log, oldest copy first; inside a copy in the order in which they were logged. An error tells what is
/// missing, and what follows it is read all the same.
pub struct Frames {
    shelf: Arc<dyn Shelf>,
    copies: VecDeque<Found>,
    selection: Selection,
    current: Option<Pieces>,
    block: BlockFrames,
}

impl Frames {
    /// The frames that are selected, of all copies on `shelf`.
    pub fn open(shelf: Arc<dyn Shelf>, selection: Selection) -> Result<Self, Error> {
        let found = shelf.list().map_err(|error| ("list", PathBuf::from(shelf.place("")), error))?;
        Ok(Frames::new(shelf, found, selection))
    }

    /// The frames that are selected, of `copies`.
    pub fn new(shelf: Arc<dyn Shelf>, mut copies: Vec<Found>, selection: Selection) -> Self {
        copies.retain(|copy| selection.has_copy(copy));
        copies.sort();
        let block = BlockFrames { segment: 0, rest: Bytes::new() };
        Frames { shelf, copies: copies.into(), selection, current: None, block }
    }

    fn next_piece(&mut self) -> Option<Result<Piece, Error>> {
        loop {
            if let Some(piece) = self.current.as_mut().and_then(Iterator::next) {
                return Some(piece);
            }
            self.current = Some(Pieces::new(self.shelf.clone(), self.copies.pop_front()?));
        }
    }

    fn place(&self) -> PathBuf {
        self.current.as_ref().map_or_else(PathBuf::new, Pieces::place)
    }
}

impl Iterator for Frames {
    type Item = Result<RecoveredFrame<Logged>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.block.next() {
                Some(Ok(frame)) if self.selection.has_frame(&frame) => return Some(Ok(frame)),
                Some(Ok(_)) => continue,
                Some(Err(source)) => {
                    let at = self.current.as_ref().map_or(0, |pieces| pieces.at);
                    return Some(Err(Error::Frame { path: self.place(), at, source }));
                }
                None => {}
            }
            match self.next_piece()? {
                Ok(Piece::Block(rest)) => {
                    let segment = self.current.as_ref().map_or(0, |pieces| pieces.copy.name.segment);
                    self.block = BlockFrames { segment, rest };
                }
                Ok(Piece::Damaged(bytes, frames)) => {
                    return Some(Err(Error::Copy { path: self.place(), bytes, frames }));
                }
                Ok(Piece::Tail(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
