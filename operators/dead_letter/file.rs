//! The dead letter as NDJSON files in a folder.
//!
//! ```text
//! dead-letter-{unix ms}-{process id}-{number}.ndjson     appended to, synced per group, followed by the next at its size limit
//! ```
//!
//! Rejects of one group share a sync. A crash may leave a torn last line, which is cut off at the next start; what was acked is
//! whole. Identities in the newest files are remembered, so a message rejected again after a crash is not written again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::letter::{self, Letter, PREFIX, SUFFIX};
use super::{Error, Kept, Sink};
use crate::batch::Reject;
use crate::coverage::{OffsetSet, PartitionKey};

/// How much of the newest files is read at the start. Only rejects of the last seconds before a crash come again: far less.
const REMEMBERED_BYTES_MAX: u64 = 256 << 20;

/// Writes letters to files.
pub struct FileSink {
    directory: PathBuf,
    file_bytes_max: u64,
    open: Option<Open>,
    files_made: u64,
    written: BTreeMap<PartitionKey, OffsetSet>,
}

/// The file being written. Bytes from `synced` on are of a write that failed: they are overwritten.
struct Open {
    path: PathBuf,
    file: File,
    synced: u64,
}

impl FileSink {
    /// Opens the folder, creates it when missing, cuts off a torn last line, and remembers what was written lately.
    pub fn open(directory: &Path, file_bytes_max: u64) -> Result<Self, Error> {
        std::fs::create_dir_all(directory).map_err(|source| Error::File {
            doing: "creating",
            path: directory.to_owned(),
            source,
        })?;
        let mut written: BTreeMap<PartitionKey, OffsetSet> = BTreeMap::new();
        let mut remembered_bytes = 0;
        for path in letter::files(directory)?.iter().rev() {
            if remembered_bytes > REMEMBERED_BYTES_MAX {
                break;
            }
            let (letters, whole_bytes) = letter::read_file(path)?;
            cut(path, whole_bytes)?;
            remembered_bytes += whole_bytes;
            for letter in letters {
                written.entry(letter.partition_key()).or_default().insert(letter.offset..letter.offset + 1);
            }
        }
        Ok(FileSink { directory: directory.to_owned(), file_bytes_max, open: None, files_made: 0, written })
    }

    /// True if the message at `offset` is in the files already.
    pub fn already_written(&self, partition: &PartitionKey, offset: i64) -> bool {
        self.written.get(partition).is_some_and(|written| written.range_around(offset).is_some())
    }

    fn file(&mut self) -> Result<&mut Open, Error> {
        if self.open.as_ref().is_some_and(|open| open.synced >= self.file_bytes_max) {
            self.open = None;
        }
        if self.open.is_none() {
            let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
            let name = format!("{PREFIX}{unix_ms:013}-{}-{}{SUFFIX}", std::process::id(), self.files_made);
            self.files_made += 1;
            let path = self.directory.join(name);
            let created = OpenOptions::new().write(true).create_new(true).open(&path);
            let file = created.map_err(|source| Error::File { doing: "creating", path: path.clone(), source })?;
            let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
            synced.map_err(|source| Error::File { doing: "syncing", path: self.directory.clone(), source })?;
            self.open = Some(Open { path, file, synced: 0 });
        }
        Ok(self.open.as_mut().expect("the file was opened above"))
    }
}

fn cut(path: &Path, whole_bytes: u64) -> Result<(), Error> {
    let failed = |source| Error::File { doing: "cutting the torn end of", path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > whole_bytes {
        file.set_len(whole_bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    }
    Ok(())
}

impl Sink for FileSink {
    fn keep(&mut self, rejects: &[Reject]) -> Result<Kept, Error> {
        let is_new = |reject: &&Reject| !self.already_written(&reject.partition, reject.record.offset);
        let new: Vec<&Reject> = rejects.iter().filter(is_new).collect();
        let kept = Kept { written: new.len() as u64, repeated: (rejects.len() - new.len()) as u64 };
        if new.is_empty() {
            return Ok(kept);
        }
        let mut lines = Vec::new();
        for reject in &new {
            serde_json::to_writer(&mut lines, &Letter::of(reject)).expect("a letter is text and numbers, written to memory");
            lines.push(b'\n');
        }
        let open = self.file()?;
        let written = open.file.write_all_at(&lines, open.synced).and_then(|()| open.file.sync_data());
        written.map_err(|source| Error::File { doing: "writing", path: open.path.clone(), source })?;
        open.synced += lines.len() as u64;
        for reject in new {
            let offset = reject.record.offset;
            self.written.entry(reject.partition.clone()).or_default().insert(offset..offset + 1);
        }
        Ok(kept)
    }
}
