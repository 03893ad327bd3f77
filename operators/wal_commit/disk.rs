//! The disk as a port: what the log needs of a file system, and the real one.
//!
//! Names are relative to the log's directory. [`super::memory::Memory`] is the in-memory version, which can also fail and crash.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Error;

/// Unit of writing: the largest alignment that direct I/O demands on common disks and file systems.
pub const BLOCK_BYTES: u64 = 4096;

/// Folder, inside the log's, for damaged files that nobody needs any more.
pub const CORRUPT: &str = "corrupt";

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// In whole aligned blocks, past the page cache where possible.
    Blocks,
    /// Anyhow.
    Bytes,
}

/// One name in the log's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, with its folder if it is in `corrupt`.
    pub name: String,
    /// The file's length.
    pub bytes: u64,
}

/// One open file.
pub trait File: Send + Sync {
    /// Writes all of `bytes` at `at`.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Fills `bytes` from `at` on.
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
    /// Makes all that was written durable, the file's length included.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file off behind its first `bytes`.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    /// The file's length.
    fn bytes(&self) -> io::Result<u64>;
}

/// Held as long as the directory is locked.
pub trait Lock: Send + Sync {}

/// One directory of files. Names become durable with `sync_directory`, contents with `File::sync`.
pub trait Disk: Send + Sync {
    /// The path of `name`, for messages.
    fn path(&self, name: &str) -> PathBuf;
    /// All files, those in `corrupt` included.
    fn list(&self) -> io::Result<Vec<Entry>>;
    /// Creates the file, or empties it, and gives it `bytes` zero bytes, which need not take up space yet.
    fn create(&self, name: &str, bytes: u64, access: Access) -> io::Result<Box<dyn File>>;
    /// Opens an existing file for writing in blocks.
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Opens an existing file for reading.
    fn read(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all creations, renames and removals so far durable.
    fn sync_directory(&self) -> io::Result<()>;
    /// Locks the directory against other processes; `None` if one of them has it.
    fn lock(&self) -> io::Result<Option<Box<dyn Lock>>>;
    /// True if blocks are written past the page cache.
    fn direct(&self) -> bool;
}

/// True if the operation failed for want of space only.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A directory of the operating system.
pub struct Directory {
    root: PathBuf,
    direct: bool,
}

impl Directory {
    /// Opens the directory for a log, creating it if missing, and finds out whether direct I/O works there.
    pub fn create(root: &Path, direct_io: bool) -> Result<Self, Error> {
        create_durably(root).map_err(|error| ("create", root.to_owned(), error))?;
        let direct = direct_io && direct_io_works(&root.join("probe.tmp"));
        Ok(Directory { root: root.to_owned(), direct })
    }

    /// Opens the directory only to look at it.
    pub fn read_only(root: &Path) -> Self {
        Directory { root: root.to_owned(), direct: false }
    }

    fn options(&self, access: Access) -> fs::OpenOptions {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true);
        if self.direct && access == Access::Blocks {
            options.custom_flags(libc::O_DIRECT);
        }
        options
    }
}

/// Creates the directory and syncs each parent that got a new entry.
fn create_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_durably(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::File::open(parent)?.sync_all()
}

/// Some file systems refuse direct I/O when the file is opened, others only at the first write: so try both.
fn direct_io_works(probe: &Path) -> bool {
    let mut block = super::buffer::AlignedBuffer::default();
    block.extend_zeros(BLOCK_BYTES as usize);
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(probe)
        .and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, block.bytes(), 0));
    // A probe that stays behind is removed with the other temporary files.
    let _ = fs::remove_file(probe);
    // A full disk says nothing against direct I/O.
    written.map_or_else(|error| is_full(&error), |()| true)
}

impl File for fs::File {
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, at)
    }
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Lock for fs::File {}

impl Disk for Directory {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for (folder, prefix) in [(self.root.clone(), String::new()), (self.root.join(CORRUPT), format!("{CORRUPT}/"))] {
            let listed = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !prefix.is_empty() => continue,
                listed => listed?,
            };
            for entry in listed {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                    entries.push(Entry { name: format!("{prefix}{name}"), bytes: metadata.len() });
                }
            }
        }
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(entries)
    }

    fn create(&self, name: &str, bytes: u64, access: Access) -> io::Result<Box<dyn File>> {
        // The length is only set. Reserving blocks with fallocate was measured to gain nothing: unwritten extents cost the
        // same journal commits as new blocks. Only reuse does away with them.
        let file = self.options(access).create(true).truncate(true).open(self.path(name))?;
        file.set_len(bytes)?;
        Ok(Box::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(self.options(Access::Blocks).open(self.path(name))?))
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(fs::File::open(self.path(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if to.starts_with(CORRUPT) {
            fs::create_dir_all(self.root.join(CORRUPT))?;
        }
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        match fs::File::open(self.root.join(CORRUPT)) {
            Ok(folder) => folder.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::File::open(&self.root)?.sync_all()
    }

    fn lock(&self) -> io::Result<Option<Box<dyn Lock>>> {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(self.path("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn direct(&self) -> bool {
        self.direct
    }
}
