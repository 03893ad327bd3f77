//! Dedup keys that outlive their segment: one file per sealed segment, so that the window can be rebuilt after a restart even
//! though the segment was reused long ago.
//!
//! ```text
//!  0  magic "OWWALKEY"           24  u64  newest epoch
//!  8  u32  crc32c of 12..end     32  i64  newest record time, at most the record's epoch
//! 12  u32  version               40  u64  entries
//! 16  u64  segment number        48  blocks to the end of the file
//!
//! block: partition index; if it is the next unused one, the partition follows
//!        epoch, number of entries, first offset
//! entry: offset (step), timestamp (step), key: 16 bytes
//! ```

use std::collections::BTreeMap;

use super::codec::{Cursor, put_partition, put_signed, put_varint, u32_at, u64_at};
use super::disk::{Access, Disk};
use super::segment;
use super::{Error, frame};
use crate::batch::Record;
use crate::coverage::PartitionKey;
use crate::epoch::Epoch;

/// Version of key files. A change needs a reader for the old one.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"OWWALKEY";
const HEADER_BYTES: usize = 48;
/// The least an entry takes up.
const ENTRY_BYTES_MIN: usize = 18;

/// The key of a record that was logged, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RememberedKey {
    /// The dedup key.
    pub key: u128,
    /// The record's partition.
    pub partition: PartitionKey,
    /// The record's offset.
    pub offset: i64,
    /// The record's Kafka timestamp in Unix milliseconds; -1 where the broker gave none.
    pub timestamp_ms: i64,
    /// The epoch in which the record was logged.
    pub epoch: Epoch,
}

/// How old the keys of a segment are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Age {
    /// The newest epoch.
    pub epoch: Epoch,
    /// The newest record time in Unix milliseconds. A record from the future counts as one of its epoch, one without time too.
    pub record_ms: i64,
}

impl Age {
    /// That of a record.
    pub fn of(epoch: Epoch, timestamp_ms: i64) -> Age {
        let epoch_ms = i64::try_from(epoch.0).unwrap_or(i64::MAX);
        Age { epoch, record_ms: if timestamp_ms < 0 { epoch_ms } else { timestamp_ms.min(epoch_ms) } }
    }

    /// The newer of both, in each respect.
    pub fn max(self, other: Age) -> Age {
        Age { epoch: self.epoch.max(other.epoch), record_ms: self.record_ms.max(other.record_ms) }
    }

    /// True if both the epochs and the record times lie more than `retention_ms` before the newest of the log. Both, because
    /// the window runs by record time, which stands still on quiet topics and lags behind in a backlog.
    pub fn expired(self, newest: Age, retention_ms: u64) -> bool {
        let by_epoch = self.epoch.0.saturating_add(retention_ms) < newest.epoch.0;
        let by_record = self.record_ms.saturating_add_unsigned(retention_ms) < newest.record_ms;
        by_epoch && by_record
    }
}

/// The keys of one segment, growing as frames are appended.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    blocks: Vec<u8>,
    partitions: BTreeMap<PartitionKey, u64>,
    age: Age,
    entries: u64,
}

impl Builder {
    /// Adds the keys of one batch.
    pub fn add(&mut self, epoch: Epoch, partition: &PartitionKey, records: &[Record]) {
        let Some(first) = records.first() else { return };
        let unused = self.partitions.len() as u64;
        let index = self.partitions.get(partition).copied().unwrap_or(unused);
        put_varint(&mut self.blocks, index);
        if index == unused {
            put_partition(&mut self.blocks, partition);
            self.partitions.insert(partition.clone(), index);
        }
        put_varint(&mut self.blocks, epoch.0);
        put_varint(&mut self.blocks, records.len() as u64);
        put_signed(&mut self.blocks, first.offset);
        let (mut next, mut previous_ms) = (first.offset, 0);
        for record in records {
            put_varint(&mut self.blocks, (record.offset - next) as u64);
            put_signed(&mut self.blocks, record.timestamp_ms.wrapping_sub(previous_ms));
            self.blocks.extend_from_slice(&record.key.to_le_bytes());
            (next, previous_ms) = (record.offset + 1, record.timestamp_ms);
            self.age = self.age.max(Age::of(epoch, record.timestamp_ms));
        }
        self.entries += records.len() as u64;
    }

    /// Keys added.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How old the keys are.
    pub fn age(&self) -> Age {
        self.age
    }

    /// The file of these keys; `None` if there are none.
    pub fn finish(self, segment: u64) -> Option<File> {
        if self.entries == 0 {
            return None;
        }
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[12..16].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&segment.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.age.epoch.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.age.record_ms.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.entries.to_le_bytes());
        bytes.extend_from_slice(&self.blocks);
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        Some(File { segment, age: self.age, entries: self.entries, bytes })
    }
}

/// A key file's whole content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The segment whose keys these are.
    pub segment: u64,
    /// How old they are.
    pub age: Age,
    /// How many.
    pub entries: u64,
    bytes: Vec<u8>,
}

impl File {
    /// Bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Checks what `read` found in the key file of `segment`: `Ok(None)` if it is damaged, `Err` with the version if newer.
    pub fn parse(bytes: Vec<u8>, segment: u64) -> Result<Option<File>, u32> {
        let whole = bytes.len() >= HEADER_BYTES && bytes[0..8] == MAGIC;
        if !whole || u32_at(&bytes, 8) != crc32c::crc32c(&bytes[12..]) {
            return Ok(None);
        }
        let version = u32_at(&bytes, 12);
        if version != VERSION {
            return Err(version);
        }
        let age = Age { epoch: Epoch(u64_at(&bytes, 24)), record_ms: u64_at(&bytes, 32) as i64 };
        let entries = u64_at(&bytes, 40);
        Ok((u64_at(&bytes, 16) == segment).then_some(File { segment, age, entries, bytes }))
    }

    /// Reads the key file of `segment`; `Ok(None)` if it is damaged.
    pub fn read(disk: &dyn Disk, segment: u64) -> Result<Option<File>, Error> {
        let path = || disk.path(&segment::keys_name(segment));
        let read = || {
            let file = disk.read(&segment::keys_name(segment))?;
            let mut bytes = vec![0; file.bytes()? as usize];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error| ("read", path(), error))?;
        File::parse(bytes, segment).map_err(|found| Error::Version { path: path(), found, known: VERSION })
    }

    /// Writes the file under its name, whole and synced, or not at all.
    pub fn save(&self, disk: &dyn Disk) -> std::io::Result<()> {
        let temporary = segment::temporary_name(self.segment, "keys");
        let saved = self.save_as(disk, &temporary);
        if saved.is_err() {
            // Its space may be what is missing. What cannot be removed is removed at the next start.
            let _ = disk.remove(&temporary);
        }
        saved
    }

    fn save_as(&self, disk: &dyn Disk, temporary: &str) -> std::io::Result<()> {
        let file = disk.create(temporary, self.bytes.len() as u64, Access::Bytes)?;
        file.write_all_at(&self.bytes, 0)?;
        file.sync()?;
        disk.rename(temporary, &segment::keys_name(self.segment))?;
        disk.sync_directory()
    }

    /// The keys, in the order in which they were logged.
    pub fn keys(self) -> Keys {
        Keys { at: HEADER_BYTES, file: self, partitions: vec![], block: None }
    }
}

/// Iterator over the keys of one file. Ends with an error where the content, although its checksum matches, was not written by
/// a `Builder`.
pub struct Keys {
    file: File,
    at: usize,
    partitions: Vec<PartitionKey>,
    block: Option<Block>,
}

/// The block being read, and what the next entry's steps start from.
struct Block {
    epoch: Epoch,
    partition: PartitionKey,
    entries_left: usize,
    offset: i64,
    timestamp_ms: i64,
}

impl Keys {
    /// The segment whose keys these are.
    pub fn segment(&self) -> u64 {
        self.file.segment
    }

    fn read_next(&mut self) -> Option<RememberedKey> {
        let mut cursor = Cursor::new(self.file.bytes.get(self.at..)?);
        let mut block = match self.block.take().filter(|block| block.entries_left > 0) {
            Some(block) => block,
            None => Block::read(&mut cursor, &mut self.partitions)?,
        };
        let offset = block.offset.checked_add(i64::try_from(cursor.varint()?).ok()?)?;
        block.timestamp_ms = block.timestamp_ms.wrapping_add(cursor.signed()?);
        let key = cursor.key()?;
        block.offset = offset.checked_add(1)?;
        block.entries_left -= 1;
        let Block { epoch, ref partition, timestamp_ms, .. } = block;
        let remembered = RememberedKey { key, partition: partition.clone(), offset, timestamp_ms, epoch };
        self.block = Some(block);
        self.at = cursor.position_in(&self.file.bytes);
        Some(remembered)
    }
}

impl Block {
    fn read(cursor: &mut Cursor<'_>, partitions: &mut Vec<PartitionKey>) -> Option<Block> {
        let index = usize::try_from(cursor.varint()?).ok()?;
        if index == partitions.len() {
            partitions.push(cursor.partition()?);
        }
        let partition = partitions.get(index)?.clone();
        let epoch = Epoch(cursor.varint()?);
        let entries_left = cursor.count(ENTRY_BYTES_MIN)?;
        let offset = cursor.signed()?;
        (entries_left > 0).then_some(Block { epoch, partition, entries_left, offset, timestamp_ms: 0 })
    }
}

impl Iterator for Keys {
    type Item = Result<RememberedKey, frame::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.file.bytes.len() {
            return None;
        }
        let read = self.read_next().ok_or(frame::Error::Malformed);
        if read.is_err() {
            self.at = self.file.bytes.len();
        }
        Some(read)
    }
}
