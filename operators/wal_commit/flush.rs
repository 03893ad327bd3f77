//! A flush: what was appended since the last one, on its way to the disk.
//!
//! It is taken out of the log, run on any thread without the log, and given back, so that frames can be appended while the disk works:
//!
//! ```text
//! log.begin(..) -> Flush -> run: write, sync -> log.finish(flush)
//!        appends go on in the log's other buffer
//! ```

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffer::AlignedBuffer;
use super::disk::{BLOCK_BYTES, File};

/// Bytes of one write, at most: 1 MiB reaches the disk's full rate, and larger ones were measured to be slower.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes to be written at the end of a segment, and whether it is to be synced.
pub(super) struct Flush {
    pub(super) file: Arc<dyn File>,
    /// Number of the segment.
    pub(super) segment: u64,
    /// `None`: only to be synced.
    pub(super) write: Option<Write>,
    pub(super) sync: bool,
    /// Where the segment ends that is written, and durable if it is synced, afterwards.
    pub(super) end: u64,
    pub(super) outcome: Outcome,
}

/// The bytes of a flush.
pub(super) struct Write {
    pub(super) buffer: AlignedBuffer,
    /// Where the buffer's first byte belongs in the segment.
    pub(super) start: u64,
    /// Bytes to be written, a multiple of the block size: those of the buffer, and zeros.
    pub(super) padded: u64,
}

/// How far a flush has come.
pub(super) enum Outcome {
    /// It was not run.
    Pending,
    /// All was done; a sync took this long.
    Done(Option<Duration>),
    NotWritten(io::Error),
    NotSynced(io::Error),
}

impl Flush {
    /// Writes and syncs. What became of it, `Log::finish` finds in the outcome.
    pub(super) fn run(&mut self) {
        self.outcome = self.attempt();
    }

    fn attempt(&mut self) -> Outcome {
        if let Some(Write { buffer, start, padded }) = &mut self.write {
            let pieces = buffer.padded(*padded as usize).chunks(PIECE_BYTES);
            let places = (*start..).step_by(PIECE_BYTES);
            if let Err(error) = pieces.zip(places).try_for_each(|(piece, at)| self.file.write_all_at(piece, at)) {
                return Outcome::NotWritten(error);
            }
        }
        if !self.sync {
            return Outcome::Done(None);
        }
        let start = Instant::now();
        match self.file.sync() {
            Ok(()) => Outcome::Done(Some(start.elapsed())),
            Err(error) => Outcome::NotSynced(error),
        }
    }
}

impl Write {
    /// Bytes at the buffer's front that fill whole blocks, and so are never written again.
    pub(super) fn whole_blocks(&self) -> usize {
        self.buffer.len() / BLOCK_BYTES as usize * BLOCK_BYTES as usize
    }
}
