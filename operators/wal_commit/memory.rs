//! A disk in memory that can fail and crash, for tests of the log and of whatever stands on it.
//!
//! It keeps apart what a real disk keeps apart: bytes written and bytes synced, names changed and names synced. A crash
//! keeps what was synced, and of the rest whatever the test chooses: single sectors of a write, some renames and not others.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Access, BLOCK_BYTES, Disk, Entry, File, Lock};

/// What a disk is assumed to write as a whole.
const SECTOR_BYTES: usize = 512;

/// What happens to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and has no effect.
    Io,
    /// A write reaches the disk up to this many bytes and then fails for want of space; other operations only fail.
    Full(usize),
}

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    changes: Vec<Change>,
    locked: bool,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    bytes_max: Option<u64>,
    aligned_only: bool,
    syncs: u64,
    unreadable: Vec<(u64, Range<u64>)>,
}

#[derive(Clone)]
enum Change {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Default)]
struct Content {
    current: Vec<u8>,
    synced: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
    /// Bytes that take up space: up to the end of the last write.
    used: u64,
}

fn apply(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Create(name, file) => {
            names.insert(name.clone(), *file);
        }
        Change::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Change::Remove(name) => {
            names.remove(name);
        }
    }
}

impl State {
    /// Counts one changing operation and returns the fault planned for it.
    fn operation(&mut self) -> Result<(), Fault> {
        let operation = self.operations;
        self.operations += 1;
        self.faults.remove(&operation).map_or(Ok(()), Err)
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.operation().map_err(to_io)?;
        apply(&mut self.names, &change);
        self.changes.push(change);
        Ok(())
    }

    fn named(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|file| self.files.get(file)).map(|content| content.used).sum()
    }

    fn write(&mut self, file: u64, bytes: &[u8], at: usize) -> io::Result<()> {
        let room = self.bytes_max.map_or(u64::MAX, |bytes_max| bytes_max.saturating_sub(self.used()));
        let fault = self.operation().err();
        let content = self.files.entry(file).or_default();
        let end = (at + bytes.len()) as u64;
        // What overwrites blocks the file already has needs no room.
        let over = end.saturating_sub(content.used).saturating_sub(room);
        let fault = fault.or((over > 0).then(|| Fault::Full(bytes.len().saturating_sub(over as usize))));
        let reaches = match fault {
            None => bytes.len(),
            Some(Fault::Io) => 0,
            Some(Fault::Full(reached)) => reached.min(bytes.len()),
        };
        if content.current.len() < at + reaches {
            content.current.resize(at + reaches, 0);
        }
        content.current[at..at + reaches].copy_from_slice(&bytes[..reaches]);
        content.pending.push((at, bytes[..reaches].to_vec()));
        content.used = content.used.max((at + reaches) as u64);
        fault.map_or(Ok(()), |fault| Err(to_io(fault)))
    }
}

fn to_io(fault: Fault) -> io::Error {
    match fault {
        Fault::Io => io::Error::other("injected"),
        Fault::Full(_) => io::ErrorKind::StorageFull.into(),
    }
}

impl Content {
    fn sync(&mut self) {
        let Content { current, synced, pending, .. } = self;
        if synced.len() != current.len() {
            synced.resize(current.len(), 0);
        }
        for (at, bytes) in pending.drain(..) {
            synced[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// What is left after a crash. `choose(n)` picks a number below n.
    fn crash(&self, choose: &mut dyn FnMut(usize) -> usize) -> Vec<u8> {
        let mut left = self.synced.clone();
        left.resize(self.current.len(), 0);
        for (at, bytes) in &self.pending {
            match choose(4) {
                0 => {}
                1 => left[*at..at + bytes.len()].copy_from_slice(bytes),
                2 => {
                    let cut = choose(bytes.len() + 1);
                    left[*at..at + cut].copy_from_slice(&bytes[..cut]);
                }
                _ => {
                    for (sector, bytes) in bytes.chunks(SECTOR_BYTES).enumerate() {
                        if choose(2) == 1 {
                            let at = at + sector * SECTOR_BYTES;
                            left[at..at + bytes.len()].copy_from_slice(bytes);
                        }
                    }
                }
            }
        }
        left
    }
}

impl Memory {
    /// A disk that refuses writes which direct I/O would refuse.
    pub fn aligned() -> Self {
        let memory = Memory::default();
        memory.state().aligned_only = true;
        memory
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the operation that comes after `after` others fail. Counted are writes, syncs and changes of names.
    pub fn fail(&self, after: u64, fault: Fault) {
        let mut state = self.state();
        let operation = state.operations + after;
        state.faults.insert(operation, fault);
    }

    /// Lets every planned fault be forgotten.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Changing operations so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// File syncs so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Sets the disk's size; `None` is endless.
    pub fn limit(&self, bytes_max: Option<u64>) {
        self.state().bytes_max = bytes_max;
    }

    /// The disk as another machine would find it after this one lost power now. `choose(n)` picks a number below n.
    pub fn crash(&self, choose: &mut dyn FnMut(usize) -> usize) -> Memory {
        let state = self.state();
        let mut names = state.synced_names.clone();
        // Names are journaled by file systems: a crash keeps a prefix of the changes.
        let kept = choose(state.changes.len() + 1);
        for change in &state.changes[..kept] {
            apply(&mut names, change);
        }
        let mut files = BTreeMap::new();
        for (&file, content) in &state.files {
            let left = content.crash(choose);
            let used = content.used.min(left.len() as u64);
            files.insert(file, Content { current: left.clone(), synced: left, pending: vec![], used });
        }
        let aligned_only = state.aligned_only;
        let state = State { files, synced_names: names.clone(), names, aligned_only, ..State::default() };
        Memory(Arc::new(Mutex::new(state)))
    }

    /// The disk as the next process finds it after this one was killed: with all that was written, synced or not.
    pub fn copy(&self) -> Memory {
        let state = self.state();
        let (files, names, synced_names) = (state.files.clone(), state.names.clone(), state.synced_names.clone());
        let changes = state.changes.clone();
        let aligned_only = state.aligned_only;
        Memory(Arc::new(Mutex::new(State { files, names, synced_names, changes, aligned_only, ..State::default() })))
    }

    /// Changes a file's bytes behind the log's back. False if there is no such file.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.state();
        let Some(file) = state.names.get(name).copied() else { return false };
        let content = state.files.entry(file).or_default();
        edit(&mut content.current);
        content.synced = content.current.clone();
        content.pending.clear();
        true
    }

    /// Lets reads of these bytes of a file fail, as of a bad sector. False if there is no such file.
    pub fn make_unreadable(&self, name: &str, bytes: Range<u64>) -> bool {
        let mut state = self.state();
        let Some(file) = state.names.get(name).copied() else { return false };
        state.unreadable.push((file, bytes));
        true
    }

    /// A file's bytes.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let file = state.names.get(name)?;
        state.files.get(file).map(|content| content.current.clone())
    }
}

struct Handle {
    memory: Memory,
    file: u64,
    access: Access,
}

impl File for Handle {
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.memory.state();
        let block = BLOCK_BYTES as usize;
        let places = [at as usize, bytes.len(), bytes.as_ptr().addr()];
        let misplaced = !places.iter().all(|place| place.is_multiple_of(block));
        if state.aligned_only && self.access == Access::Blocks && misplaced {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        state.write(self.file, bytes, at as usize)
    }

    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let state = self.memory.state();
        let current = state.files.get(&self.file).map_or(&[][..], |content| &content.current);
        let range = at as usize..(at as usize).saturating_add(bytes.len());
        let hits = |bad: &Range<u64>| bad.start < range.end as u64 && (range.start as u64) < bad.end;
        if state.unreadable.iter().any(|(file, bad)| *file == self.file && hits(bad)) {
            return Err(io::Error::other("unreadable sector"));
        }
        let found = current.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.memory.state();
        state.operation().map_err(to_io)?;
        state.syncs += 1;
        state.files.entry(self.file).or_default().sync();
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.memory.state();
        state.operation().map_err(to_io)?;
        let content = state.files.entry(self.file).or_default();
        content.current.truncate(bytes as usize);
        for (at, written) in &mut content.pending {
            written.truncate((bytes as usize).saturating_sub(*at));
        }
        content.pending.retain(|(_, written)| !written.is_empty());
        content.used = content.used.min(bytes);
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.memory.state().files.get(&self.file).map_or(0, |content| content.current.len() as u64))
    }
}

struct Held(Memory);

impl Lock for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state().locked = false;
    }
}

impl Disk for Memory {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("memory").join(name)
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let state = self.state();
        let bytes = |file: &u64| state.files.get(file).map_or(0, |content| content.current.len() as u64);
        Ok(state.names.iter().map(|(name, file)| Entry { name: name.clone(), bytes: bytes(file) }).collect())
    }

    fn create(&self, name: &str, bytes: u64, access: Access) -> io::Result<Box<dyn File>> {
        let mut state = self.state();
        let file = state.files.keys().next_back().map_or(0, |last| last + 1);
        state.change(Change::Create(name.to_owned(), file))?;
        let zeros = vec![0; bytes as usize];
        state.files.insert(file, Content { current: zeros.clone(), synced: zeros, pending: vec![], used: 0 });
        Ok(Box::new(Handle { memory: self.clone(), file, access }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = self.state().named(name)?;
        Ok(Box::new(Handle { memory: self.clone(), file, access: Access::Blocks }))
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.named(from)?;
        state.change(Change::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.named(name)?;
        state.change(Change::Remove(name.to_owned()))
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.state();
        state.operation().map_err(to_io)?;
        state.synced_names = state.names.clone();
        state.changes.clear();
        Ok(())
    }

    fn lock(&self) -> io::Result<Option<Box<dyn Lock>>> {
        let mut state = self.state();
        let free = !std::mem::replace(&mut state.locked, true);
        drop(state);
        Ok(free.then(|| Box::new(Held(self.clone())) as Box<dyn Lock>))
    }

    fn direct(&self) -> bool {
        self.state().aligned_only
    }
}
