//! The mark: how far the last segment was synced, in a file of its own.
//!
//! Frames state how far the log was synced before they were written, so the last group has nothing behind it that proves it. The mark
//! does: it is written after each sync and before the group is acknowledged, so that damage in that group is told from the torn end of one
//! that was never acknowledged. It is not synced: a process that is killed leaves it in the page cache, and after a power failure an older
//! one says less, but nothing wrong.
//!
//! ```text
//! synced, 40 bytes:
//!  0  magic "OWWALSYN"           16  u64  number of the segment
//!  8  u32  crc32c of 12..40      24  u64  it is durable up to here
//! 12  u32  version               32  u64  epoch at which the run that wrote the segment started
//! ```

use std::io;

use super::Error;
use super::codec::{u32_at, u64_at};
use super::disk::{Access, Disk, File};
use super::segment::{Header, temporary_name};

const NAME: &str = "synced";
const MAGIC: [u8; 8] = *b"OWWALSYN";
const VERSION: u32 = 1;
const BYTES: usize = 40;

/// What a mark states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The segment's number; 0 for none.
    pub segment: u64,
    /// All before this position is durable.
    pub end: u64,
    /// Of the segment's header: numbers begin anew in a directory that was emptied.
    pub run_epoch: u64,
}

impl Mark {
    /// Reads the mark. One that is missing, damaged or of another version states nothing.
    pub fn read(disk: &dyn Disk) -> Result<Mark, Error> {
        let failed = |error| ("read", disk.path(NAME), error);
        let mut bytes = [0; BYTES];
        let read = disk.read(NAME).and_then(|file| file.read_exact_at(&mut bytes, 0));
        match read {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                return Ok(Mark::default());
            }
            read => read.map_err(failed)?,
        }
        let is_known = bytes[0..8] == MAGIC && u32_at(&bytes, 12) == VERSION && u32_at(&bytes, 8) == crc32c::crc32c(&bytes[12..]);
        let mark = Mark { segment: u64_at(&bytes, 16), end: u64_at(&bytes, 24), run_epoch: u64_at(&bytes, 32) };
        Ok(if is_known { mark } else { Mark::default() })
    }

    fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[12..16].copy_from_slice(&VERSION.to_le_bytes());
        for (at, value) in [(16, self.segment), (24, self.end), (32, self.run_epoch)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The position up to which `segment` is durable, as far as this mark knows; 0 if it knows nothing of it.
    pub fn proves(&self, segment: u64, header: Option<&Header>) -> u64 {
        let is_same_run = header.is_none_or(|header| header.run_epoch == self.run_epoch);
        if self.segment == segment && is_same_run { self.end } else { 0 }
    }
}

/// Writes marks. A log without one works: only damage in its last group would be taken for a torn end.
#[derive(Default)]
pub struct Marker {
    file: Option<Box<dyn File>>,
    last: Mark,
}

impl Marker {
    /// Takes over from the former run, whose mark stays until the first sync of this one.
    pub fn create(disk: &dyn Disk, former: Mark) -> Self {
        let temporary = temporary_name(former.segment, NAME);
        let create = || {
            let file = disk.create(&temporary, BYTES as u64, Access::Bytes)?;
            file.write_all_at(&former.encode(), 0)?;
            disk.rename(&temporary, NAME)?;
            Ok(file)
        };
        let file = create().inspect_err(|error: &io::Error| tell(disk, error)).ok();
        Marker { file, last: former }
    }

    /// States how far a segment is durable.
    pub fn note(&mut self, mark: Mark, disk: &dyn Disk) {
        let Some(file) = self.file.as_ref().filter(|_| mark != self.last) else { return };
        match file.write_all_at(&mark.encode(), 0) {
            Ok(()) => self.last = mark,
            Err(error) => {
                tell(disk, &error);
                self.file = None;
            }
        }
    }
}

fn tell(disk: &dyn Disk, error: &io::Error) {
    let path = disk.path(NAME);
    tracing::warn!(path = %path.display(), %error, "cannot write the log's mark; until the next start, damage in its last group would go unseen");
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;

    #[test]
    fn a_mark_is_read_as_written_and_a_damaged_one_states_nothing() {
        let disk = Memory::default();
        assert_eq!(Mark::read(&disk).unwrap(), Mark::default());
        let mut marker = Marker::create(&disk, Mark::default());
        let mark = Mark { segment: 7, end: 12_345, run_epoch: 99 };
        marker.note(mark, &disk);
        assert_eq!(Mark::read(&disk).unwrap(), mark);
        for byte in 0..BYTES {
            assert!(disk.edit(NAME, |bytes| bytes[byte] ^= 1));
            assert_eq!(Mark::read(&disk).unwrap(), Mark::default(), "flipped in byte {byte}");
            assert!(disk.edit(NAME, |bytes| bytes[byte] ^= 1));
        }
        assert!(disk.edit(NAME, |bytes| bytes.truncate(BYTES - 1)));
        assert_eq!(Mark::read(&disk).unwrap(), Mark::default());
    }

    #[test]
    fn the_former_runs_mark_stays_until_the_next_sync() {
        let disk = Memory::default();
        let mark = Mark { segment: 7, end: 12_345, run_epoch: 99 };
        Marker::create(&disk, Mark::default()).note(mark, &disk);
        let _marker = Marker::create(&disk, Mark::read(&disk).unwrap());
        assert_eq!(Mark::read(&disk).unwrap(), mark);
    }

    #[test]
    fn a_mark_proves_nothing_of_other_segments_nor_of_another_runs_segment_of_its_number() {
        let mark = Mark { segment: 7, end: 12_345, run_epoch: 99 };
        let header = |run_epoch| Header { number: 7, previous: 0, previous_end: 0, run_epoch };
        assert_eq!(mark.proves(7, Some(&header(99))), 12_345);
        assert_eq!(mark.proves(7, None), 12_345);
        assert_eq!((mark.proves(7, Some(&header(98))), mark.proves(8, None)), (0, 0));
    }
}
