//! The disk as a port: whole files, stored so that they survive a power failure; and the thread that stores them until it succeeds.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tracing::warn;

use super::{NAME, Stats};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::desk::Envelope;
use crate::fault::Health;
use crate::told::Told;

/// How often the log tells that files cannot be stored.
const LOG_INTERVAL_MS: u64 = 5_000;
/// Waits between attempts, for a start and at most: a disk is filled and emptied by people and by jobs of minutes.
const BACKOFF_MS: (u64, u64) = (50, 2_000);
/// A waiting thread looks this often whether the graph has failed.
const SLICE: Duration = Duration::from_millis(50);

/// Where finished files go.
pub trait Disk: Send {
    /// Stores a file whole and synced, or gives an error and may leave a `.part` behind. May be called again after an error.
    fn store(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()>;
}

/// The local disk.
#[derive(Debug, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn store(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = path.parent().ok_or(ErrorKind::InvalidFilename)?;
        create_folders(folder)?;
        let part = part_of(path);
        // Created anew at each attempt: what a failed sync left of the former one is unknown.
        let _ = fs::remove_file(&part);
        let mut file = File::create_new(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        sync_folder(folder)
    }
}

/// The name of a file until it is whole.
fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Creates `folder` and those above it that are missing, each synced into the one it lies in.
pub(super) fn create_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return create_folder(folder);
    };
    create_folders(parent)?;
    create_folder(folder)?;
    sync_folder(parent)
}

/// Two workers may create the folder of an index at once.
fn create_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        created => created,
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A file to be stored.
#[derive(Debug)]
pub struct Request {
    /// Where.
    pub path: PathBuf,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// What the thread owns.
pub(super) struct Clerk {
    pub disk: Box<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub health: Health,
    pub stats: Arc<Stats>,
    /// Locked for as long as the thread lives.
    pub _marker: Option<File>,
}

impl Clerk {
    /// Stores what comes, each until it succeeds. What is not answered keeps its capability.
    pub fn serve(mut self, requests: Receiver<Envelope<Request, ()>>) {
        let mut told = Told::every(LOG_INTERVAL_MS);
        for envelope in requests {
            let Request { path, bytes } = &envelope.request;
            if !self.store(path, bytes, &mut told) {
                return;
            }
            self.stats.files.fetch_add(1, Ordering::Relaxed);
            self.stats.file_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            envelope.answer(());
        }
    }

    /// False if it was given up, because it cannot succeed or the graph has failed.
    fn store(&mut self, path: &Path, bytes: &[u8], told: &mut Told) -> bool {
        let mut backoff = Backoff::new(BACKOFF_MS.0, BACKOFF_MS.1, bytes.len() as u64);
        loop {
            let Err(error) = self.disk.store(path, bytes) else { return true };
            if is_lasting(&error) {
                self.health
                    .fail(NAME, format!("cannot store {}: {error}; make the folder writable and start again", path.display()));
                return false;
            }
            self.stats.retries.fetch_add(1, Ordering::Relaxed);
            if let Some(left_out) = told.count("store", self.clock.now_ms()) {
                let path = path.display();
                warn!(%path, %error, left_out, "a file cannot be stored, trying again; nothing is acknowledged meanwhile");
            }
            if !self.wait(backoff.next_wait()) {
                return false;
            }
        }
    }

    fn wait(&self, wait: Duration) -> bool {
        let mut left = wait;
        while !left.is_zero() && !self.health.failed() {
            let slice = left.min(SLICE);
            std::thread::sleep(slice);
            left -= slice;
        }
        !self.health.failed()
    }
}

/// Errors that no waiting mends. Any other may pass, a failed sync too: the file is written whole again.
fn is_lasting(error: &io::Error) -> bool {
    use ErrorKind::{InvalidFilename, IsADirectory, NotADirectory, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | NotADirectory | IsADirectory | InvalidFilename | Unsupported)
}
