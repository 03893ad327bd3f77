//! Dead letters in files: lines of JSON in a directory, rotated by size, each identity once.
//!
//! ```text
//! directory/
//!   .lock                                        held while a process writes here
//!   dead-letter-1700000000000-4711-0000.ndjson   time of creation in Unix ms, process id, number: sorted by name is sorted by age
//!   dead-letter-1700000360000-4711-0001.ndjson   the newest is written to, until it has `file_bytes_max`
//! ```
//!
//! `submit` puts a line into a buffer, `poll` writes the buffer with one write and one sync, and only then acks its letters: so all
//! rejects of a moment share the cost of one sync. Order: buffered >= written >= synced >= acked. A write is repeated at the same
//! position after a full disk; after a failed sync nothing more is written, for what the disk then holds is unknown.
//!
//! After a crash a line may be there that was never acked, whole or torn. A torn one is cut off; a whole one is remembered, and when
//! its message is rejected again (Kafka delivers it again, as its offset was not committed) it is acked without being written. To have
//! been the last to write is not to have synced: what is remembered is synced first.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::letter::{self, Letter};
use super::{Error, Sink};
use crate::batch::Reject;
use crate::clock::Clock;
use crate::coverage::{OffsetSet, PartitionKey};

/// What every file's name starts and ends with.
const PREFIX: &str = "dead-letter-";
const SUFFIX: &str = ".ndjson";

/// A longer line is taken for damage. librdkafka refuses messages above 10^9 bytes, which are 1.34 * 10^9 in base64; the rest is for
/// key and headers.
const LINE_BYTES_MAX: u64 = 2 << 30;

/// How the file sink is told to work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the files go. Created if missing; one process at a time.
    pub directory: PathBuf,
    /// A file of this size is not written to any more. Default 64 MiB. Too small: many files; too large: clumsy to move about.
    pub file_bytes_max: u64,
    /// All files together; at the limit letters are refused until files are moved away or removed. Default 16 GiB.
    pub directory_bytes_max: u64,
    /// Lines waiting for the next sync; at the limit letters are refused. Default 16 MiB. One letter alone may be larger.
    pub buffer_bytes_max: usize,
    /// How much of the newest files is read at start for identities that may come again. Default 256 MiB. Too small: a letter written
    /// just before a crash, but too far back, may be written twice.
    pub scan_bytes_max: u64,
    /// Ranges of offsets remembered, about 40 bytes each. Default 1,000,000; at the limit the lowest offsets are forgotten, which
    /// `Stats::forgotten` counts, and may then be written twice.
    pub remembered_max: usize,
}

impl Config {
    /// The defaults, for `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Config {
            directory: directory.into(),
            file_bytes_max: 64 << 20,
            directory_bytes_max: 16 << 30,
            buffer_bytes_max: 16 << 20,
            scan_bytes_max: 256 << 20,
            remembered_max: 1_000_000,
        }
    }
}

/// What a file sink has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Letters written and synced.
    pub written: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Letters acked without writing, because they were there.
    pub repeated: u64,
    /// Syncs of data.
    pub syncs: u64,
    /// Files created.
    pub files: u64,
    /// Torn last lines cut off at start.
    pub torn: u64,
    /// Lines found at start that are not dead letters. They are left as they are.
    pub damaged: u64,
    /// Files left unread at start because of `scan_bytes_max`.
    pub unscanned: u64,
    /// Ranges of offsets forgotten because of `remembered_max`.
    pub forgotten: u64,
}

/// A new file as the sink sees it: a real one, or in tests one that fails.
pub(super) trait Medium: Send {
    /// Writes all of `bytes` at `position`.
    fn write_at(&self, bytes: &[u8], position: u64) -> std::io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> std::io::Result<()>;
}

impl Medium for fs::File {
    fn write_at(&self, bytes: &[u8], position: u64) -> std::io::Result<()> {
        self.write_all_at(bytes, position)
    }
    fn sync(&self) -> std::io::Result<()> {
        self.sync_data()
    }
}

/// Makes media of the files the sink creates.
pub(super) type Wrap = Box<dyn Fn(fs::File) -> Box<dyn Medium> + Send>;

/// The file that is written to.
struct Current {
    file: Box<dyn Medium>,
    path: PathBuf,
    /// Bytes written and synced.
    bytes: u64,
}

/// Dead letters in files.
pub struct File {
    config: Config,
    clock: Arc<dyn Clock>,
    wrap: Wrap,
    /// Keeps the directory locked.
    _lock: fs::File,
    current: Option<Current>,
    /// The time in the newest file's name: names never go back, even if the clock does.
    newest_ms: u64,
    next_number: u64,
    directory_bytes: u64,
    buffer: Vec<u8>,
    buffered: u64,
    /// Letters to ack after the next sync.
    waiting: Vec<u64>,
    written: BTreeMap<PartitionKey, OffsetSet>,
    /// Ranges in `written`.
    ranges: usize,
    poisoned: Option<PathBuf>,
    stats: Stats,
}

pub(super) fn io_error(doing: &'static str, path: &Path, source: std::io::Error) -> Error {
    let retriable = matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::Interrupted);
    Error::Io { doing, path: path.to_owned(), retriable, source: Arc::new(source) }
}

impl File {
    /// Opens the directory and reads what may come again: of each partition in `resume` identities from its offset on, of any other
    /// partition all.
    pub fn open(config: Config, resume: &BTreeMap<PartitionKey, i64>, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        Self::open_with(config, resume, clock, Box::new(|file| Box::new(file)))
    }

    /// The same, with media that `wrap` makes of new files.
    pub(super) fn open_with(
        config: Config,
        resume: &BTreeMap<PartitionKey, i64>,
        clock: Arc<dyn Clock>,
        wrap: Wrap,
    ) -> Result<Self, Error> {
        let directory = &config.directory;
        fs::create_dir_all(directory).map_err(|error| io_error("creating directory", directory, error))?;
        let lock = lock(directory)?;
        let mut sink = File {
            clock,
            wrap,
            _lock: lock,
            current: None,
            newest_ms: 0,
            next_number: 0,
            directory_bytes: 0,
            buffer: Vec::new(),
            buffered: 0,
            waiting: Vec::new(),
            written: BTreeMap::new(),
            ranges: 0,
            poisoned: None,
            stats: Stats::default(),
            config,
        };
        sink.scan(resume)?;
        Ok(sink)
    }

    /// True if the letter of this message is in the files, or waiting for the next sync.
    pub fn already_written(&self, partition: &PartitionKey, offset: i64) -> bool {
        self.written.get(partition).is_some_and(|offsets| offsets.range_around(offset).is_some())
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn scan(&mut self, resume: &BTreeMap<PartitionKey, i64>) -> Result<(), Error> {
        let files = list(&self.config.directory)?;
        self.directory_bytes = files.iter().map(|file| file.bytes).sum();
        self.newest_ms = files.iter().map(|file| file.created_ms).max().unwrap_or(0);
        let mut scanned_bytes = 0;
        for file in files.iter().rev() {
            if scanned_bytes > 0 && scanned_bytes + file.bytes > self.config.scan_bytes_max {
                self.stats.unscanned += 1;
                continue;
            }
            scanned_bytes += file.bytes;
            self.scan_file(&file.path, resume)?;
        }
        if self.stats.unscanned > 0 {
            tracing::info!(files = self.stats.unscanned, "older dead letter files were not read for identities");
        }
        Ok(())
    }

    fn scan_file(&mut self, path: &Path, resume: &BTreeMap<PartitionKey, i64>) -> Result<(), Error> {
        let failed = |doing| move |error| io_error(doing, path, error);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("opening"))?;
        let mut lines = Lines::new(&file);
        while let Some(line) = lines.next().map_err(failed("reading"))? {
            match letter::parse_identity(line) {
                Ok((partition, offset)) if resume.get(&partition).is_none_or(|&start| offset >= start) => {
                    self.remember(&partition, offset);
                }
                Ok(_) => {}
                Err(_) => self.stats.damaged += 1,
            }
        }
        if lines.torn > 0 {
            tracing::warn!(path = %path.display(), bytes = lines.torn, "cutting off a torn dead letter that was never acked");
            file.set_len(lines.position).map_err(failed("truncating"))?;
            self.directory_bytes = self.directory_bytes.saturating_sub(lines.torn);
            self.stats.torn += 1;
        }
        // What is remembered will be acked without a write, so it must be durable, not just in the page cache.
        file.sync_all().map_err(failed("syncing"))
    }

    fn remember(&mut self, partition: &PartitionKey, offset: i64) {
        let offsets = match self.written.get_mut(partition) {
            Some(offsets) => offsets,
            None => self.written.entry(partition.clone()).or_default(),
        };
        let before = offsets.range_count();
        offsets.insert(offset..offset.saturating_add(1));
        self.ranges = self.ranges + offsets.range_count() - before;
        if self.ranges > self.config.remembered_max {
            self.forget_some();
        }
    }

    /// Forgets the lower half of the partition that takes the most.
    fn forget_some(&mut self) {
        let Some(largest) = self.written.values_mut().max_by_key(|offsets| offsets.range_count()) else {
            return;
        };
        let count = largest.range_count();
        let middle = largest.ranges().nth(count.div_ceil(2)).map_or(i64::MAX, |range| range.start);
        largest.remove_below(middle);
        let forgotten = count - largest.range_count();
        self.ranges -= forgotten;
        self.stats.forgotten += forgotten as u64;
    }

    /// Writes and syncs the buffer.
    fn write(&mut self) -> Result<(), Error> {
        if let Some(path) = &self.poisoned {
            return Err(Error::Poisoned { path: path.clone() });
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut current = match self.current.take() {
            Some(current) => current,
            None => self.create()?,
        };
        let written = current.file.write_at(&self.buffer, current.bytes);
        let written = written.map_err(|error| io_error("writing", &current.path, error));
        let synced = written.and_then(|()| {
            let synced = current.file.sync();
            synced.map_err(|error| {
                self.poisoned = Some(current.path.clone());
                Error::Io { doing: "syncing", path: current.path.clone(), retriable: false, source: Arc::new(error) }
            })
        });
        if let Err(error) = synced {
            self.current = Some(current);
            return Err(error);
        }
        current.bytes += self.buffer.len() as u64;
        self.directory_bytes += self.buffer.len() as u64;
        self.stats.bytes += self.buffer.len() as u64;
        self.stats.written += std::mem::take(&mut self.buffered);
        self.stats.syncs += 1;
        self.buffer.clear();
        // A huge letter must not keep its memory for good.
        self.buffer.shrink_to(self.config.buffer_bytes_max);
        if current.bytes < self.config.file_bytes_max {
            self.current = Some(current);
        }
        Ok(())
    }

    fn create(&mut self) -> Result<Current, Error> {
        self.newest_ms = self.newest_ms.max(self.clock.now_ms());
        loop {
            let (time, process, number) = (self.newest_ms, std::process::id(), self.next_number);
            let path = self.config.directory.join(format!("{PREFIX}{time:013}-{process}-{number:04}{SUFFIX}"));
            self.next_number += 1;
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    sync_directory(&self.config.directory)?;
                    self.stats.files += 1;
                    return Ok(Current { file: (self.wrap)(file), path, bytes: 0 });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_error("creating", &path, error)),
            }
        }
    }

    /// True if the directory may hold no more; files that were moved away are noticed.
    fn is_directory_full(&mut self) -> Result<bool, Error> {
        if self.directory_bytes + self.buffer.len() as u64 >= self.config.directory_bytes_max {
            self.directory_bytes = list(&self.config.directory)?.iter().map(|file| file.bytes).sum();
        }
        Ok(self.directory_bytes + self.buffer.len() as u64 >= self.config.directory_bytes_max)
    }
}

impl Sink for File {
    fn submit(&mut self, id: u64, reject: &Reject) -> Result<(), Error> {
        if let Some(path) = &self.poisoned {
            return Err(Error::Poisoned { path: path.clone() });
        }
        if self.already_written(&reject.partition, reject.record.offset) {
            self.stats.repeated += 1;
            self.waiting.push(id);
            return Ok(());
        }
        if self.is_directory_full()? {
            let Config { directory, directory_bytes_max: bytes_max, .. } = &self.config;
            return Err(Error::DirectoryFull { directory: directory.clone(), bytes_max: *bytes_max });
        }
        if self.buffer.len() >= self.config.buffer_bytes_max {
            return Err(Error::Full { setting: "buffer_bytes_max" });
        }
        Letter::of(reject, self.clock.now_ms()).write_line(&mut self.buffer);
        self.buffered += 1;
        self.remember(&reject.partition, reject.record.offset);
        self.waiting.push(id);
        Ok(())
    }

    fn poll(&mut self) -> Vec<Result<u64, Error>> {
        match self.write() {
            Ok(()) => self.waiting.drain(..).map(Ok).collect(),
            Err(error) => vec![Err(error)],
        }
    }

    fn pending(&self) -> usize {
        self.waiting.len()
    }

    fn flush(&mut self, _timeout: Duration) -> Vec<Result<u64, Error>> {
        self.poll()
    }

    fn forget_below(&mut self, partition: &PartitionKey, offset: i64) {
        if let Some(offsets) = self.written.get_mut(partition) {
            let before = offsets.range_count();
            offsets.remove_below(offset);
            self.ranges -= before - offsets.range_count();
            if offsets.is_empty() {
                self.written.remove(partition);
            }
        }
    }
}

/// Whole lines of a file, and where they end.
pub(super) struct Lines<R: Read> {
    reader: BufReader<R>,
    line: Vec<u8>,
    /// The number of the last line returned, from 1.
    pub number: u64,
    /// Bytes up to the end of the last whole line.
    pub position: u64,
    /// Bytes after it, known at the end.
    pub torn: u64,
}

impl<R: Read> Lines<R> {
    pub fn new(file: R) -> Self {
        Lines { reader: BufReader::with_capacity(1 << 20, file), line: Vec::new(), number: 0, position: 0, torn: 0 }
    }

    /// The next line without its line feed. A line too long to be a letter comes in pieces, none of which will parse.
    pub fn next(&mut self) -> std::io::Result<Option<&[u8]>> {
        self.line.clear();
        let length = (&mut self.reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)? as u64;
        let is_whole = self.line.pop_if(|last| *last == b'\n').is_some();
        if !is_whole && length < LINE_BYTES_MAX {
            self.torn = length;
            return Ok(None);
        }
        self.number += 1;
        self.position += length;
        Ok(Some(&self.line))
    }
}

/// A file of dead letters.
pub(super) struct Listed {
    pub path: PathBuf,
    pub created_ms: u64,
    pub bytes: u64,
}

impl Listed {
    /// The file's name, which is text: `list` passes over all others.
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

/// When a file of this name was created; `None` if no file of dead letters is called so.
pub(super) fn created_ms(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split('-').next()?.parse().ok()
}

/// The files of `directory`, oldest first.
pub(super) fn list(directory: &Path) -> Result<Vec<Listed>, Error> {
    let failed = |error| io_error("listing directory", directory, error);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(created_ms) = name.to_str().and_then(created_ms) else {
            continue;
        };
        match entry.metadata() {
            Ok(metadata) => files.push(Listed { path: entry.path(), created_ms, bytes: metadata.len() }),
            // Somebody moved it away just now.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    files.sort_by(|left, right| (left.created_ms, &left.path).cmp(&(right.created_ms, &right.path)));
    Ok(files)
}

fn lock(directory: &Path) -> Result<fs::File, Error> {
    let path = directory.join(".lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| io_error("creating", &path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Locked { directory: directory.to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(io_error("locking", &path, error)),
    }
}

fn sync_directory(directory: &Path) -> Result<(), Error> {
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| io_error("syncing directory", directory, error))
}
