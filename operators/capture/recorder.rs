//! The core of the writer: batches in, files out. It knows neither time nor threads; whoever calls it waits and tries again.
//!
//! ```text
//! directory/
//!   lock                                             held while a process writes here
//!   capture-00000001790000000000-00000007.owcap      first epoch, number: sorted by name is sorted by epoch
//!   capture-00000001790000360000-00000008.owcap.part the one being written, renamed when it is whole and synced
//! ```
//!
//! Every call that fails has changed nothing that matters: the same call does what is left to do. pushed >= written >= synced.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

use super::content::{Captured, Scratch};
use super::format::{BLOCK_BYTES, Block, Contents, Head, MARK_BYTES, end_of_file};
use super::read::{Blocks, Found, found};
use super::{Config, Error};
use crate::epoch::Epoch;
use crate::wal_commit::codec::put_varint;
use crate::wal_commit::disk::{Access, Disk, File, Lock};

/// Bytes written between two syncs: what the death of a machine can take, and short enough that no sync takes long.
const SYNC_BYTES: u64 = 8 << 20;

/// What every file's name starts with.
pub(super) const PREFIX: &str = "capture-";
/// What every file's name ends with.
pub(super) const SUFFIX: &str = ".owcap";
/// What is added to that while the file is written.
pub(super) const PART: &str = ".part";

/// The name of a file whose first batch is of epoch `first`.
pub fn file_name(first: Epoch, number: u64) -> String {
    format!("{PREFIX}{:020}-{number:08}{SUFFIX}", first.0)
}

/// What the recorder did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blocks written.
    pub blocks: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Files that are whole.
    pub files: u64,
    /// Files removed because of `total_bytes_max`.
    pub removed: u64,
    /// Bytes of the files there are.
    pub total_bytes: u64,
}

/// The file being written.
struct Current {
    file: Box<dyn File>,
    name: String,
    number: u64,
    /// Bytes written and kept.
    end: u64,
    synced: u64,
    blocks: Vec<Block>,
    is_renamed: bool,
}

/// Entries on their way into a block.
#[derive(Default)]
struct Open {
    entries: Vec<u8>,
    contents: Contents,
}

/// Writes batches to files.
pub struct Recorder<B> {
    disk: Arc<dyn Disk>,
    config: Config,
    _lock: Box<dyn Lock>,
    compressor: zstd::bulk::Compressor<'static>,
    scratch: Scratch,
    entry: Vec<u8>,
    open: Open,
    /// A block that is compressed and not yet written.
    ready: Option<(Contents, Vec<u8>)>,
    current: Option<Current>,
    /// Whole files, oldest first.
    files: VecDeque<Found>,
    next_number: u64,
    progress: Progress,
    _batch: PhantomData<fn(B)>,
}

impl<B: Captured> Recorder<B> {
    /// Locks the directory and makes whole what a killed process left there.
    pub fn open(disk: Arc<dyn Disk>, config: Config) -> Result<Self, Error> {
        config.check()?;
        let lock = disk.lock().map_err(|error| Error::io("lock", disk.path("lock"), error))?;
        let lock = lock.ok_or_else(|| Error::Locked { path: disk.path("") })?;
        let compressor = zstd::bulk::Compressor::new(config.compression_level);
        let compressor = compressor.map_err(|error| Error::io("start compressing for", disk.path(""), error))?;
        let mut recorder = Recorder {
            config,
            _lock: lock,
            compressor,
            scratch: Scratch::default(),
            entry: Vec::new(),
            open: Open::default(),
            ready: None,
            current: None,
            files: VecDeque::new(),
            next_number: 0,
            progress: Progress::default(),
            _batch: PhantomData,
            disk,
        };
        for file in found(&*recorder.disk)? {
            recorder.next_number = recorder.next_number.max(file.number + 1);
            if file.is_part() {
                recorder.files.extend(recover(&recorder.disk, file)?);
            } else {
                recorder.files.push_back(file);
            }
        }
        recorder.files.make_contiguous().sort();
        recorder.progress.total_bytes = recorder.files.iter().map(|file| file.bytes).sum();
        Ok(recorder)
    }

    /// Adds one batch. Those of an epoch come in order, epochs ascend.
    pub fn push(&mut self, epoch: Epoch, batch: &B) -> Result<(), Error> {
        self.entry.clear();
        let encoded = batch.encode(epoch, &mut self.scratch, &mut self.entry);
        encoded.map_err(|problem| {
            let (start, end) = batch.offsets();
            Error::Batch { partition: batch.partition().clone(), start, end, problem }
        })?;
        // Ten bytes each are the most that epoch and length take up.
        if self.ready.is_some() || self.open.entries.len() + self.entry.len() + 20 > BLOCK_BYTES {
            self.flush()?;
        }
        let Open { entries, contents } = &mut self.open;
        let previous = if contents.batches == 0 { epoch } else { contents.last };
        assert!(previous <= epoch, "epoch {epoch} comes after {previous}");
        put_varint(entries, epoch.0 - previous.0);
        put_varint(entries, self.entry.len() as u64);
        entries.extend_from_slice(&self.entry);
        let load = batch.load();
        let times = batch.times();
        contents.join(&Contents { first: epoch, last: epoch, batches: 1, records: load.messages as u64, bytes: 0, times });
        contents.bytes = entries.len() as u64;
        self.entry.clear();
        self.entry.shrink_to(2 * BLOCK_BYTES);
        Ok(())
    }

    /// The epoch of the first batch that is not written yet.
    pub fn unwritten(&self) -> Option<Epoch> {
        let open = Some(&self.open.contents).filter(|contents| contents.batches > 0);
        self.ready.as_ref().map(|(contents, _)| contents).or(open).map(|contents| contents.first)
    }

    /// Writes all that was pushed, and ends the file if it is long enough.
    pub fn flush(&mut self) -> Result<(), Error> {
        // What an earlier call has compressed and could not write.
        self.write_ready()?;
        if self.open.contents.batches > 0 {
            let stored = self.compressor.compress(&self.open.entries);
            let stored = stored.map_err(|error| Error::io("compress a block for", self.disk.path(""), error))?;
            self.ready = Some((self.open.contents, stored));
            self.open.entries.clear();
            self.open.entries.shrink_to(2 * BLOCK_BYTES);
            self.open.contents = Contents::default();
            self.write_ready()?;
        }
        if self.current.as_ref().is_some_and(|current| current.end >= self.config.file_bytes_max) { self.close() } else { Ok(()) }
    }

    fn write_ready(&mut self) -> Result<(), Error> {
        let Some((contents, stored)) = self.ready.take() else { return Ok(()) };
        let written = self.write(contents, &stored);
        if written.is_err() {
            self.ready = Some((contents, stored));
        }
        written
    }

    fn write(&mut self, contents: Contents, stored: &[u8]) -> Result<(), Error> {
        // With the mark, and with what the index becomes at most.
        let blocks = self.current.as_ref().map_or(0, |current| current.blocks.len());
        self.make_room(((blocks + 5) * MARK_BYTES + stored.len()) as u64);
        let mut current = match self.current.take() {
            Some(current) => current,
            None => self.create(contents.first)?,
        };
        let block = Block::new(current.end, B::KIND, contents, stored);
        assert!(Block::decode(&block.encode(), block.at) == Some(block), "block at {} could not be read back", block.at);
        let written = current.file.write_all_at(&block.encode(), current.end);
        let written = written.and_then(|()| current.file.write_all_at(stored, current.end + MARK_BYTES as u64));
        let written = written.map_err(|error| Error::io("write", self.disk.path(&current.name), error));
        if written.is_ok() {
            let bytes = block.end() - block.at;
            current.end = block.end();
            current.blocks.push(block);
            self.progress.blocks += 1;
            self.progress.written_bytes += bytes;
            self.progress.total_bytes += bytes;
        }
        let synced =
            written.and_then(|()| if current.end - current.synced < SYNC_BYTES { Ok(()) } else { current.sync(&*self.disk) });
        self.current = Some(current);
        // The block is written, and may not be written again: a sync that fails cannot be tried again either.
        synced
    }

    fn create(&mut self, first: Epoch) -> Result<Current, Error> {
        let number = self.next_number;
        let name = format!("{}{PART}", file_name(first, number));
        let failed = |action| move |error| (action, error);
        let created = self.disk.create(&name, 0, Access::Bytes).map_err(failed("create"));
        let head = Head { kind: B::KIND, number, first }.encode();
        let created = created.and_then(|file| {
            file.write_all_at(&head, 0).map_err(failed("write"))?;
            self.disk.sync_directory().map_err(failed("sync the directory of"))?;
            Ok(file)
        });
        let file = created.map_err(|(action, error)| Error::io(action, self.disk.path(&name), error))?;
        self.next_number += 1;
        self.progress.total_bytes += head.len() as u64;
        Ok(Current { file, name, number, end: head.len() as u64, synced: 0, blocks: Vec::new(), is_renamed: false })
    }

    /// Writes all that was pushed and ends the file, if there is one.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.flush()?;
        self.close()
    }

    /// Ends the file: index and tail, sync, its final name.
    fn close(&mut self) -> Result<(), Error> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        let closed = current.close(&*self.disk);
        match closed {
            Ok(found) => {
                self.progress.files += 1;
                self.progress.written_bytes += found.bytes - current.end;
                self.progress.total_bytes += found.bytes - current.end;
                self.files.push_back(found);
                self.make_room(0);
                Ok(())
            }
            Err(error) => {
                self.current = Some(current);
                Err(error)
            }
        }
    }

    /// Removes the oldest files until `bytes` more are within `total_bytes_max`. One that cannot be removed is tried again the next time.
    fn make_room(&mut self, bytes: u64) {
        while self.progress.total_bytes + bytes > self.config.total_bytes_max
            && let Some(oldest) = self.files.pop_front()
        {
            match self.disk.remove(&oldest.name) {
                Ok(()) => {
                    self.progress.removed += 1;
                    let path = self.disk.path(&oldest.name);
                    tracing::info!(path = %path.display(), bytes = oldest.bytes, "removed the oldest file of a capture at its bound");
                }
                // Somebody moved it away.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let path = self.disk.path(&oldest.name);
                    tracing::warn!(path = %path.display(), %error, "the oldest file of a capture could not be removed");
                    self.files.push_front(oldest);
                    return;
                }
            }
            self.progress.total_bytes = self.progress.total_bytes.saturating_sub(oldest.bytes);
        }
    }

    /// What was done so far.
    pub fn progress(&self) -> Progress {
        self.progress
    }
}

impl Current {
    fn sync(&mut self, disk: &dyn Disk) -> Result<(), Error> {
        self.file.sync().map_err(|source| Error::Sync { path: disk.path(&self.name), source })?;
        self.synced = self.end;
        Ok(())
    }

    fn close(&mut self, disk: &dyn Disk) -> Result<Found, Error> {
        let failed = |action| move |(name, error): (&str, _)| Error::io(action, disk.path(name), error);
        let name = self.name.strip_suffix(PART).unwrap_or(&self.name).to_owned();
        let end = end_of_file(&self.blocks, self.end).map_err(|error| failed("end")((&self.name, error)))?;
        if !self.is_renamed {
            self.file.write_all_at(&end, self.end).map_err(|error| failed("write")((&self.name, error)))?;
            self.sync(disk)?;
            disk.rename(&self.name, &name).map_err(|error| failed("rename")((&self.name, error)))?;
            self.is_renamed = true;
        }
        disk.sync_directory().map_err(|error| failed("sync the directory of")((&name, error)))?;
        let first = self.blocks.first().map_or(Epoch(0), |block| block.contents.first);
        Ok(Found { first, number: self.number, name, bytes: self.end + end.len() as u64 })
    }
}

/// Makes whole what a killed process left: what is behind the last whole block is cut off, the index is written. A file without a whole
/// block is removed.
fn recover(disk: &Arc<dyn Disk>, part: Found) -> Result<Option<Found>, Error> {
    let path = disk.path(&part.name);
    let (mut blocks, mut end) = (Vec::new(), 0);
    let mut reader = Blocks::open(disk.clone(), part.clone())?;
    while let Some(piece) = reader.next_piece(&|_| true) {
        match piece {
            Ok((block, _)) => {
                end = block.end();
                blocks.push(block);
            }
            // What lies in the middle stays as it is, and is told to whoever reads it.
            Err(error) if error.is_damage() => tracing::warn!(error = crate::fault::chain(&error), "a capture was not ended"),
            Err(error) => return Err(error),
        }
    }
    if blocks.is_empty() {
        disk.remove(&part.name).map_err(|error| Error::io("remove", path, error))?;
        return Ok(None);
    }
    let file = disk.open(&part.name).map_err(|error| Error::io("open", path.clone(), error))?;
    // A tail may be there already, if it was killed between that and the renaming.
    file.truncate(end).map_err(|error| Error::io("truncate", path, error))?;
    let mut current = Current { file, name: part.name, number: part.number, end, synced: 0, blocks, is_renamed: false };
    current.close(&**disk).map(Some)
}
