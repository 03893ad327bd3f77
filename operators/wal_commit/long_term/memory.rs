//! A shelf in memory that fails at will, for tests.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::Name;
use super::cleanup::Found;
use super::shelf::{Draft, Shelf};

/// The shelf. Clones are the same shelf.
#[derive(Clone, Default)]
pub struct MemoryShelf(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    copies: BTreeMap<String, Bytes>,
    /// Calls so far.
    calls: u64,
    fail_at: Option<u64>,
    is_away: bool,
    cancelled: bool,
    drafts: u64,
}

impl MemoryShelf {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn call(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let call = state.calls;
        state.calls += 1;
        let is_down = state.is_away || state.cancelled || state.fail_at == Some(call);
        if is_down { Err(io::Error::other("injected")) } else { Ok(state) }
    }

    /// Lets all calls fail, or none.
    pub fn set_away(&self, is_away: bool) {
        self.state().is_away = is_away;
    }

    /// Lets the call that comes after `after` others fail.
    pub fn fail(&self, after: u64) {
        let mut state = self.state();
        state.fail_at = Some(state.calls + after);
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Copies that were begun.
    pub fn drafts(&self) -> u64 {
        self.state().drafts
    }

    /// The paths of all copies.
    pub fn paths(&self) -> Vec<String> {
        self.state().copies.keys().cloned().collect()
    }

    /// A copy's bytes.
    pub fn contents(&self, path: &str) -> Bytes {
        self.state().copies[path].clone()
    }

    /// Puts a copy there.
    pub fn put(&self, path: &str, bytes: impl Into<Bytes>) {
        self.state().copies.insert(path.to_owned(), bytes.into());
    }

    /// The same copies on a shelf that works.
    pub fn healed(&self) -> MemoryShelf {
        MemoryShelf(Arc::new(Mutex::new(State { copies: self.state().copies.clone(), ..State::default() })))
    }
}

impl Shelf for MemoryShelf {
    fn place(&self, path: &str) -> String {
        format!("shelf/{path}")
    }

    fn list(&self) -> io::Result<Vec<Found>> {
        let state = self.call()?;
        let found = |(path, bytes): (&String, &Bytes)| {
            Name::parse(path).map(|name| Found { name, path: path.clone(), bytes: bytes.len() as u64 })
        };
        Ok(state.copies.iter().filter_map(found).collect())
    }

    fn bytes(&self, path: &str) -> io::Result<Option<u64>> {
        Ok(self.call()?.copies.get(path).map(|bytes| bytes.len() as u64))
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn Draft + '_>> {
        self.call()?.drafts += 1;
        Ok(Box::new(MemoryDraft { shelf: self, path: path.to_owned(), bytes: vec![] }))
    }

    fn read(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        let state = self.call()?;
        let bytes = state.copies.get(path).ok_or(io::ErrorKind::NotFound)?;
        let end = range.end.min(bytes.len() as u64);
        Ok(bytes.slice(range.start.min(end) as usize..end as usize))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.call()?.copies.remove(path);
        Ok(())
    }

    fn cancel(&self) {
        self.state().cancelled = true;
    }
}

struct MemoryDraft<'a> {
    shelf: &'a MemoryShelf,
    path: String,
    bytes: Vec<u8>,
}

impl Draft for MemoryDraft<'_> {
    fn write(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        drop(self.shelf.call()?);
        self.bytes.extend(bytes);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        self.shelf.call()?.copies.insert(self.path.clone(), bytes.into());
        Ok(())
    }

    fn abandon(&mut self) {}
}
