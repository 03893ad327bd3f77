//! The disk in memory behind a gate: a sync of the log waits there until the schedule lets it through.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use openwit_operators::wal_commit::disk::{Access, Disk, Entry, File, Lock};
use openwit_operators::wal_commit::memory::Memory;

/// The gate. Clones are the same gate.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    is_closed: bool,
    waiting: usize,
}

impl Gate {
    /// Closes or opens it.
    pub fn close(&self, is_closed: bool) {
        self.0.0.lock().unwrap().is_closed = is_closed;
        self.0.1.notify_all();
    }

    /// True if a sync waits.
    pub fn is_awaited(&self) -> bool {
        self.0.0.lock().unwrap().waiting > 0
    }

    fn pass(&self) {
        let mut state = self.0.0.lock().unwrap();
        state.waiting += 1;
        let mut state = self.0.1.wait_while(state, |state| state.is_closed).unwrap();
        state.waiting -= 1;
    }
}

/// The disk.
pub struct Gated {
    memory: Memory,
    gate: Gate,
}

impl Gated {
    /// `memory` behind `gate`.
    pub fn new(memory: Memory, gate: Gate) -> Self {
        Gated { memory, gate }
    }

    fn gated(&self, file: io::Result<Box<dyn File>>) -> io::Result<Box<dyn File>> {
        Ok(Box::new(GatedFile { file: file?, gate: self.gate.clone(), is_begun: AtomicBool::new(false) }))
    }
}

struct GatedFile {
    file: Box<dyn File>,
    gate: Gate,
    /// Its header is synced. That is done by whoever appends, and holds up all others: it is no place to wait.
    is_begun: AtomicBool,
}

impl File for GatedFile {
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }
    fn sync(&self) -> io::Result<()> {
        if self.is_begun.swap(true, Ordering::Relaxed) {
            self.gate.pass();
        }
        self.file.sync()
    }
    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.truncate(bytes)
    }
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }
}

impl Disk for Gated {
    fn path(&self, name: &str) -> PathBuf {
        self.memory.path(name)
    }
    fn list(&self) -> io::Result<Vec<Entry>> {
        self.memory.list()
    }
    fn create(&self, name: &str, bytes: u64, access: Access) -> io::Result<Box<dyn File>> {
        self.gated(self.memory.create(name, bytes, access))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.gated(self.memory.open(name))
    }
    fn read(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.memory.read(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.memory.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.memory.remove(name)
    }
    fn sync_directory(&self) -> io::Result<()> {
        self.memory.sync_directory()
    }
    fn lock(&self) -> io::Result<Option<Box<dyn Lock>>> {
        self.memory.lock()
    }
    fn direct(&self) -> bool {
        self.memory.direct()
    }
}
