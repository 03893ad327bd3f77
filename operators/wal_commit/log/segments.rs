//! The life of the log's segments: started, sealed, freed and reused, or set aside; and that of the key files beside them.

use std::io;

use super::super::buffer::AlignedBuffer;
use super::super::disk::{Access, BLOCK_BYTES, File};
use super::super::segment::{self, FRAMES_START, corrupt_name, free_name, segment_name, temporary_name};
use super::super::{Error, keys, long_term};
use super::{Active, FREE_SEGMENTS_MAX, KeyShelf, Log, Sealed};
use crate::epoch::Epoch;

/// Sealed segments whose keys are not saved yet. One is the rule; when a second has to wait no segment is started, so that
/// memory stays bounded and older segments always have their keys and can be released.
const KEYS_AWAITING_MAX: usize = 2;
/// Damaged files kept for a person to look at; the oldest are removed.
const CORRUPT_FILES_MAX: usize = 16;

impl Log {
    /// Seals the active segment and starts one that has room for `frame_bytes`. It is sealed even if there is no room for the
    /// next: it may be the one whose release makes room.
    pub(super) fn next_segment(&mut self, frame_bytes: u64) -> Result<(), Error> {
        let needed = (FRAMES_START + frame_bytes).next_multiple_of(BLOCK_BYTES);
        if needed > self.config.bytes_max {
            return Err(Error::FrameTooLarge { bytes: frame_bytes, bytes_max: self.config.bytes_max });
        }
        if self.keys.awaiting.len() >= KEYS_AWAITING_MAX {
            return Err(Error::Full { cause: "the dedup keys of sealed segments are not saved yet".into() });
        }
        if let Some(Active { number, file_bytes, end, synced, epoch_min, epoch_max, keys, age, .. }) = self.active.take() {
            assert_eq!(synced, end, "segment {number} is sealed before it is synced");
            self.previous = (number, end);
            self.sealed.push_back(Sealed { number, file_bytes, epoch_max, damaged: false, age, copied: true });
            self.keys.queue(keys, number);
            if end > FRAMES_START {
                self.want_copy(long_term::Job { segment: number, end, first: epoch_min, last: epoch_max });
            }
        }
        self.retire_released()?;
        self.active = Some(self.start_segment_somehow(needed.max(self.config.segment_bytes))?);
        self.buffer.clear();
        self.buffer_start = FRAMES_START;
        Ok(())
    }

    /// Starts a segment, if need be at the cost of those that are kept only for their retention.
    fn start_segment_somehow(&mut self, file_bytes: u64) -> Result<Active, Error> {
        loop {
            match self.start_segment(file_bytes) {
                Err(error) if error.is_full() && self.is_retired(self.sealed.front()) => {
                    if let Some(segment) =
                        self.sealed.front().filter(|oldest| self.is_remembered(oldest)).map(|oldest| oldest.number)
                    {
                        self.stats.keys_dropped += 1;
                        tracing::warn!(
                            segment,
                            "the write-ahead log lets go of published messages before the dedup window has passed them: after a restart \
                             their duplicates may be stored; raise processing.wal.max_size_bytes"
                        );
                    }
                    self.retire_oldest()?;
                }
                started => return started,
            }
        }
    }

    /// Makes the file of the next segment: reused if possible. Its header is durable before it gets its name.
    fn start_segment(&mut self, file_bytes: u64) -> Result<Active, Error> {
        let number = self.next_number;
        if self.names_changed {
            // Else a crash could bring back the name that a reused file had when its frames were still needed.
            self.sync_directory()?;
        }
        let reused = self.free.front().copied().filter(|_| file_bytes == self.config.segment_bytes);
        let (name, made) = match reused {
            Some(free) => (free_name(free), self.disk.open(&free_name(free))),
            None => {
                self.make_room(file_bytes)?;
                let name = temporary_name(number, "wal");
                let made = self.disk.create(&name, file_bytes, Access::Blocks);
                (name, made)
            }
        };
        let made = made.and_then(|file| self.write_header(&*file, number).map(|()| file));
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                // What cannot be removed now is removed at the next start.
                let _ = reused.is_none() && self.disk.remove(&name).is_ok();
                return Err(self.failed("create", &name, error));
            }
        };
        file.sync().map_err(|error| self.failed_sync(&name, error))?;
        self.disk.rename(&name, &segment_name(number)).map_err(|error| self.failed("rename", &name, error))?;
        self.sync_directory()?;
        self.next_number += 1;
        match reused.and_then(|_| self.free.pop_front()) {
            Some(_) => self.stats.segments_reused += 1,
            None => self.stats.segments_created += 1,
        }
        let (end, epoch_min, epoch_max, keys) = (FRAMES_START, Epoch(u64::MAX), Epoch(0), keys::Builder::default());
        let file = file.into();
        let (written, synced, age) = (end, end, None);
        Ok(Active { number, file, file_bytes, end, written, synced, epoch_min, epoch_max, keys, age })
    }

    fn write_header(&self, file: &dyn File, number: u64) -> io::Result<()> {
        let (previous, previous_end) = self.previous;
        let header = segment::Header { number, previous, previous_end, run_epoch: self.run_epoch.0 };
        let mut block = AlignedBuffer::default();
        block.extend(&header.encode());
        // An empty first header, as behind every group: a reused file must not look as if a write had been torn there.
        block.extend_zeros(BLOCK_BYTES as usize);
        file.write_all_at(block.bytes(), 0)
    }

    /// Makes sure that a new file of `file_bytes` keeps the log below its bound.
    fn make_room(&mut self, file_bytes: u64) -> Result<(), Error> {
        while self.stats().total_bytes + file_bytes > self.config.bytes_max {
            if !self.drop_free_segment()? {
                let cause = format!("bytes_max of {} bytes is reached and no segment is released", self.config.bytes_max);
                return Err(Error::Full { cause });
            }
        }
        Ok(())
    }

    /// Frees the oldest sealed segments as far as nobody needs them and their retention is over.
    pub(super) fn retire_released(&mut self) -> Result<(), Error> {
        let is_past = |sealed: &Sealed, log: &Log| {
            let retention_ms = log.config.retention_ms;
            retention_ms == 0 || sealed.epoch_max.0.saturating_add(retention_ms) < log.newest.0
        };
        while let Some(oldest) = self.sealed.front()
            && self.is_retired(Some(oldest))
            && is_past(oldest, self)
            && !self.is_remembered(oldest)
        {
            self.retire_oldest()?;
        }
        Ok(())
    }

    /// True if the dedup window is to be warmed up from the segment itself: its messages are as they came, and are not old enough.
    fn is_remembered(&self, sealed: &Sealed) -> bool {
        let (newest, retention_ms) = (self.keys.newest, self.config.keys_retention_ms);
        retention_ms > 0 && sealed.age.is_some_and(|age| !age.expired(newest, retention_ms))
    }

    /// True if nobody needs the segment: it is published, its keys are saved, its copy is made.
    fn is_retired(&self, sealed: Option<&Sealed>) -> bool {
        let is_done = |sealed: &Sealed| sealed.epoch_max < self.released && sealed.copied;
        sealed.is_some_and(|sealed| is_done(sealed) && !self.keys.awaiting.contains(&sealed.number))
    }

    /// Frees the oldest sealed segment.
    fn retire_oldest(&mut self) -> Result<(), Error> {
        let Some(&Sealed { number, file_bytes, damaged, .. }) = self.sealed.front() else { return Ok(()) };
        let name = segment_name(number);
        if damaged {
            self.set_aside(&name)?;
        } else if file_bytes == self.config.segment_bytes && self.free.len() < FREE_SEGMENTS_MAX {
            let renamed = self.disk.rename(&name, &free_name(number));
            renamed.map_err(|error| self.failed("rename", &name, error))?;
            self.names_changed = true;
            self.free.push_back(number);
        } else {
            self.remove(&name)?;
        }
        self.sealed.pop_front();
        Ok(())
    }

    /// Moves a damaged file to `corrupt/`, where the oldest make room.
    pub(super) fn set_aside(&mut self, name: &str) -> Result<(), Error> {
        let aside = corrupt_name(name);
        self.disk.rename(name, &aside).map_err(|error| self.failed("set aside", name, error))?;
        self.names_changed = true;
        self.corrupt.push_back(aside);
        while self.corrupt.len() > CORRUPT_FILES_MAX {
            if let Some(oldest) = self.corrupt.pop_front() {
                self.remove(&oldest)?;
            }
        }
        Ok(())
    }

    /// Removes key files that are too old, or the oldest if there are too many. Those of live segments stay.
    pub(super) fn expire_keys(&mut self) {
        let live = self.sealed.front().map(|oldest| oldest.number).or(self.active.as_ref().map(|active| active.number));
        let live = live.unwrap_or(self.next_number);
        let (newest, retention_ms) = (self.keys.newest, self.config.keys_retention_ms);
        let over = |shelf: &KeyShelf| shelf.saved_bytes > self.config.keys_bytes_max;
        while let Some((&number, oldest)) = self.keys.saved.first_key_value().filter(|(number, _)| **number < live) {
            let expired = oldest.age.expired(newest, retention_ms);
            if !expired && !over(&self.keys) {
                return;
            }
            self.stats.keys_dropped += u64::from(!expired);
            self.keys.saved_bytes -= oldest.bytes;
            self.keys.saved.remove(&number);
            let name = segment::keys_name(number);
            if let Err(error) = self.disk.remove(&name) {
                // It is found again at the next start.
                tracing::warn!(path = %self.disk.path(&name).display(), %error, "expired key file was not removed");
            }
            self.names_changed = true;
        }
    }
}
