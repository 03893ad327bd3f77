//! The thread that copies sealed segments to the long-term log, and removes what is past its time.
//!
//! ```text
//! sealed segment -> read and verify frame by frame -> blocks -> store -> told to the writer: the segment may be reused
//! ```
//!
//! A store that fails is tried again, for ever, with growing waits: nothing is lost by that, and nobody but the short-term log's space
//! waits. An episode of failures is logged when it begins and when it ends; each failure is counted.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::cleanup::{Found, expired};
use super::format::{Encoder, MARK_BYTES, Tail};
use super::shelf::{Draft, Shelf};
use super::{Config, Job, Name};
use crate::backoff::Backoff;
use crate::fault::chain;
use crate::wal_commit::Error;
use crate::wal_commit::disk::{Disk, Lock};
use crate::wal_commit::read::Window;
use crate::wal_commit::recovery::check_frame;
use crate::wal_commit::segment::{FRAMES_START, segment_name};
use crate::wal_commit::writer::Shared;

/// Bytes handed to the store at once.
const WRITE_BYTES: usize = 4 << 20;
/// First and longest wait between attempts.
const RETRY_MIN_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 30_000;

pub(in crate::wal_commit) struct Copier {
    pub(in crate::wal_commit) shared: Arc<Shared>,
    pub(in crate::wal_commit) disk: Arc<dyn Disk>,
    pub(in crate::wal_commit) shelf: Arc<dyn Shelf>,
    pub(in crate::wal_commit) config: Config,
    /// The segments must stay this log's as long as they are read.
    pub(in crate::wal_commit) _lock: Arc<dyn Lock>,
}

/// What became of a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::wal_commit) struct Copied {
    /// Bytes of the frames copied; 0 if the copy was there already.
    pub(super) frame_bytes: u64,
    /// Bytes of the copy.
    pub(super) stored_bytes: u64,
    /// Bytes of the segment that could not be copied.
    pub(super) damaged: Vec<Range<u64>>,
}

impl Copier {
    /// Ends when the writer has, or when it is told to stop.
    pub(in crate::wal_commit) fn run(self, jobs: &Receiver<Job>) {
        let mut next_cleanup = Instant::now();
        while !self.shared.is_stopping() {
            let wait = match self.config.cleanup {
                Some(_) => next_cleanup.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3_600),
            };
            match jobs.recv_timeout(wait) {
                Ok(job) => {
                    if !self.copy_until_done(job, &mut next_cleanup) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.clean_if_due(&mut next_cleanup);
        }
    }

    /// False if it was told to stop before it succeeded: the next start copies the segment.
    fn copy_until_done(&self, job: Job, next_cleanup: &mut Instant) -> bool {
        let mut backoff = Backoff::new(RETRY_MIN_MS, RETRY_MAX_MS, job.segment);
        loop {
            let error = match copy(&*self.disk, &*self.shelf, &self.config, job, &|| self.shared.is_stopping()) {
                Ok(copied) => {
                    self.count(job, &copied);
                    self.shared.copied(job.segment);
                    return true;
                }
                Err(error) => error,
            };
            if self.shared.is_stopping() {
                return false;
            }
            let wait = backoff.next_wait();
            let is_first = self.shared.long_term(|stats| {
                stats.failures += 1;
                !std::mem::replace(&mut stats.failing, true)
            });
            if is_first {
                let error = chain(&error);
                tracing::warn!(
                    segment = job.segment,
                    error,
                    "copying to the long-term log failed, trying again; its segments are kept"
                );
            }
            // The store may be full of what nobody needs any more.
            self.clean_if_due(next_cleanup);
            if self.shared.wait_to_stop(wait) {
                return false;
            }
        }
    }

    fn count(&self, job: Job, copied: &Copied) {
        if !copied.damaged.is_empty() {
            let path = self.disk.path(&segment_name(job.segment));
            let regions = copied.damaged.len();
            tracing::error!(path = %path.display(), regions, "a segment is damaged; the rest of it is in the long-term log");
        }
        let was_failing = self.shared.long_term(|stats| {
            stats.copied += 1;
            stats.frame_bytes += copied.frame_bytes;
            stats.stored_bytes += copied.stored_bytes;
            stats.damaged += copied.damaged.len() as u64;
            std::mem::take(&mut stats.failing)
        });
        if was_failing {
            tracing::info!(segment = job.segment, "the long-term log can be written again");
        }
    }

    fn clean_if_due(&self, next_cleanup: &mut Instant) {
        let Some(cleanup) = self.config.cleanup.filter(|_| Instant::now() >= *next_cleanup) else { return };
        *next_cleanup = Instant::now() + cleanup.interval;
        match self.clean(&cleanup) {
            Ok(_) => {}
            Err(_) if self.shared.is_stopping() => {}
            Err(error) => {
                self.shared.long_term(|stats| stats.cleanup_failures += 1);
                tracing::warn!(
                    error = chain(&error),
                    "cleaning up the long-term log failed, it is tried again at the next cleanup"
                );
            }
        }
    }

    fn clean(&self, cleanup: &super::Cleanup) -> Result<(), Error> {
        let listed = self.shelf.list().map_err(|error| ("list", self.shelf.place("").into(), error))?;
        let own: Vec<Found> = listed.into_iter().filter(|copy| copy.name.node == self.config.node).collect();
        let (mut kept, mut kept_bytes) = (own.len() as u64, own.iter().map(|copy| copy.bytes).sum::<u64>());
        for copy in expired(own, cleanup, self.shared.horizon()) {
            let removed = self.shelf.remove(&copy.path);
            removed.map_err(|error| ("remove", self.shelf.place(&copy.path).into(), error))?;
            kept -= 1;
            kept_bytes -= copy.bytes;
            self.shared.long_term(|stats| stats.removed += 1);
        }
        self.shared.long_term(|stats| (stats.kept, stats.kept_bytes) = (kept, kept_bytes));
        Ok(())
    }
}

/// Copies one segment, unless its copy is there. Reads each frame once, verifies it, and holds a few MiB.
pub(in crate::wal_commit) fn copy(
    disk: &dyn Disk,
    shelf: &dyn Shelf,
    config: &Config,
    job: Job,
    is_stopping: &dyn Fn() -> bool,
) -> Result<Copied, Error> {
    let path = Name::new(&config.node, &job).path();
    let at_shelf = |action| {
        let place = shelf.place(&path);
        move |error| Error::from((action, place.into(), error))
    };
    if let Some(stored_bytes) = whole_copy(shelf, &path, &job).map_err(at_shelf("read"))? {
        return Ok(Copied { stored_bytes, ..Copied::default() });
    }
    let mut draft = shelf.create(&path).map_err(at_shelf("create"))?;
    let written = write(disk, &mut *draft, config, job, is_stopping).and_then(|(copied, tail)| {
        draft.finish().map_err(at_shelf("complete"))?;
        Ok((copied, tail))
    });
    let (mut copied, tail) = written.inspect_err(|_| draft.abandon())?;
    copied.stored_bytes = tail.at + MARK_BYTES as u64;
    copied.frame_bytes = tail.frame_bytes;
    // A store that says yes and has something else is a failure like any other, and is tried again.
    match shelf.bytes(&path).map_err(at_shelf("look at"))? {
        Some(bytes) if bytes == copied.stored_bytes => Ok(copied),
        found => {
            let message = format!("{} bytes were written, {} are there", copied.stored_bytes, found.unwrap_or(0));
            Err(at_shelf("verify")(std::io::Error::other(message)))
        }
    }
}

/// The length of the copy if it is there and has its tail.
fn whole_copy(shelf: &dyn Shelf, path: &str, job: &Job) -> std::io::Result<Option<u64>> {
    let Some(bytes) = shelf.bytes(path)?.filter(|&bytes| bytes >= 2 * MARK_BYTES as u64) else { return Ok(None) };
    let at = bytes - MARK_BYTES as u64;
    let tail = shelf.read(path, at..bytes)?;
    Ok(Tail::decode(&tail, job.segment, at).map(|_| bytes))
}

fn write(
    disk: &dyn Disk,
    draft: &mut dyn Draft,
    config: &Config,
    job: Job,
    is_stopping: &dyn Fn() -> bool,
) -> Result<(Copied, Tail), Error> {
    let name = segment_name(job.segment);
    let at_segment = |action| {
        let path = disk.path(&name);
        move |error| Error::from((action, path, error))
    };
    let file = disk.read(&name).map_err(at_segment("open"))?;
    let mut window = Window::new(&*file).map_err(at_segment("read"))?;
    let mut encoder = Encoder::new(job, config.compression_level).map_err(at_segment("compress"))?;
    let mut copied = Copied::default();
    let mut at = FRAMES_START;
    while at < job.end {
        match check_frame(&mut window, job.segment, at, job.end) {
            Ok((header, _)) => {
                let end = at + header.frame_bytes();
                encoder.push(&header, window.get(at..end)).map_err(at_segment("compress"))?;
                at = end;
            }
            Err(hole) => {
                at = hole.bytes.end.max(at + 1);
                copied.damaged.push(hole.bytes);
            }
        }
        if encoder.ready() >= WRITE_BYTES {
            draft.write(encoder.take()).map_err(at_segment("copy"))?;
        }
        if is_stopping() {
            return Err(at_segment("copy")(std::io::ErrorKind::Interrupted.into()));
        }
    }
    let (rest, tail) = encoder.finish().map_err(at_segment("compress"))?;
    draft.write(rest).map_err(at_segment("copy"))?;
    Ok((copied, tail))
}
