//! Reading captures: which files there are, what they hold, and their batches with their epochs.
//!
//! Damage is told and read past: a damaged block hides its own batches and no others. A file without a tail was cut short, by the death of
//! its process, say, or is still being written: it is read up to its last whole block.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::content::{Captured, Kind};
use super::format::{Block, Contents, Head, Index, MARK_BYTES, Tail, Times, VERSION, find_mark};
use super::recorder::{PART, PREFIX, SUFFIX};
use super::{Error, Lost};
use crate::epoch::Epoch;
use crate::wal_commit::codec::Cursor;
use crate::wal_commit::disk::{Directory, Disk, File};

/// Bytes looked at at once in search of the next mark.
const WINDOW_BYTES: u64 = 4 << 20;

/// A file of a capture. Sorted, they are in the order of their epochs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// The epoch of its first batch, by its name.
    pub first: Epoch,
    /// Its number, by its name.
    pub number: u64,
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

impl Found {
    /// True if nobody has ended it.
    pub fn is_part(&self) -> bool {
        self.name.ends_with(PART)
    }

    /// True if it has the name of a file of a capture.
    pub fn is_capture(&self) -> bool {
        Found::of(self.name.clone(), self.bytes).is_some()
    }

    fn of(name: String, bytes: u64) -> Option<Found> {
        let stem = name.strip_suffix(PART).unwrap_or(&name);
        let (first, number) = stem.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split_once('-')?;
        let (first, number) = (first.parse().ok()?, number.parse().ok()?);
        Some(Found { first: Epoch(first), number, name, bytes })
    }
}

/// The files of a capture in a directory, in order.
pub(super) fn found(disk: &dyn Disk) -> Result<Vec<Found>, Error> {
    let entries = disk.list().map_err(|error| Error::io("list", disk.path(""), error))?;
    let mut files: Vec<Found> = entries.into_iter().filter_map(|entry| Found::of(entry.name, entry.bytes)).collect();
    files.sort();
    Ok(files)
}

/// A capture that is read: its files, on whatever disk they lie.
#[derive(Clone)]
pub struct Files {
    disk: Arc<dyn Disk>,
    files: Vec<Found>,
}

impl Files {
    /// The capture in the directory `path`, or the single file `path`, whatever it is called.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |error| Error::io("read", path.to_owned(), error);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.is_dir() {
            let files = Files::on(Arc::new(Directory::read_only(path)))?;
            return if files.files.is_empty() { Err(Error::Empty { path: path.to_owned() }) } else { Ok(files) };
        }
        let named = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let name = named.ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidFilename)))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let bytes = metadata.len();
        let file = Found::of(name.clone(), bytes).unwrap_or(Found { first: Epoch(0), number: 0, name, bytes });
        Ok(Files { disk: Arc::new(Directory::read_only(parent)), files: vec![file] })
    }

    /// The capture on `disk`.
    pub fn on(disk: Arc<dyn Disk>) -> Result<Self, Error> {
        let files = found(&*disk)?;
        Ok(Files { disk, files })
    }

    /// Its files, in order.
    pub fn files(&self) -> &[Found] {
        &self.files
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// What each file holds. Only heads and tails are read, of a file without a tail its marks.
    pub fn summaries(&self) -> Result<Vec<Summary>, Error> {
        self.files.iter().map(|file| Blocks::open(self.disk.clone(), file.clone())?.summary()).collect()
    }

    /// What kind of batches it holds: that of its first file that says so. `None` where no file does.
    pub fn kind(&self) -> Result<Option<Kind>, Error> {
        for file in &self.files {
            if let Some(kind) = Blocks::open(self.disk.clone(), file.clone())?.summary()?.kind {
                return Ok(Some(kind));
            }
        }
        Ok(None)
    }

    /// The batches that are selected, in order. An error that is damage tells what is missing, and what follows it is read all the same.
    pub fn batches<B: Captured>(&self, selection: Selection) -> Batches<B> {
        Batches { packs: self.packs(selection), block: None }
    }

    /// The same, block by block, for those who unpack elsewhere.
    pub fn packs<B: Captured>(&self, selection: Selection) -> Packs<B> {
        let (disk, files, selection) = (self.disk.clone(), self.files.clone().into(), Arc::new(selection));
        Packs { disk, files, selection, current: None, done_bytes: 0, _batch: PhantomData }
    }
}

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its index and its tail are there.
    Whole,
    /// It was cut short, or is still being written.
    Unfinished,
}

/// What one file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The file.
    pub file: Found,
    /// What kind of batches it holds; `None` if that cannot be read.
    pub kind: Option<Kind>,
    /// How it ends.
    pub state: State,
    /// Blocks in it.
    pub blocks: u64,
    /// What they hold.
    pub contents: Contents,
    /// Places in it that are damaged. In a whole file they are found only when it is read.
    pub damaged: u64,
}

/// Which batches are read.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Batches of this epoch and later ones.
    pub from: Option<Epoch>,
    /// Batches before this epoch.
    pub until: Option<Epoch>,
    /// Batches with a record of this Kafka timestamp or a later one, whole as they are.
    pub from_ms: Option<i64>,
    /// Batches with a record before this Kafka timestamp.
    pub until_ms: Option<i64>,
    /// Batches of these topics, by name; empty for all.
    pub topics: Vec<String>,
}

impl Selection {
    fn has_times(&self, times: Times) -> bool {
        match times.range() {
            Some((first, last)) => {
                self.from_ms.is_none_or(|from| last >= from) && self.until_ms.is_none_or(|until| first < until)
            }
            // Without a timestamp a batch is at no time.
            None => self.from_ms.is_none() && self.until_ms.is_none(),
        }
    }

    /// True if what holds this may hold batches that are selected.
    pub fn has_part(&self, contents: &Contents) -> bool {
        self.from.is_none_or(|from| contents.last >= from)
            && self.until.is_none_or(|until| contents.first < until)
            && self.has_times(contents.times)
    }

    /// True if the batch is selected.
    pub fn has_batch<B: Captured>(&self, epoch: Epoch, batch: &B) -> bool {
        let topic = &batch.partition().topic.name;
        self.from.is_none_or(|from| epoch >= from)
            && self.until.is_none_or(|until| epoch < until)
            && ((self.from_ms.is_none() && self.until_ms.is_none()) || self.has_times(batch.times()))
            && (self.topics.is_empty() || self.topics.iter().any(|selected| **selected == **topic))
    }
}

/// A block, and the sound zstd frame behind its mark.
pub(super) type Piece = (Block, Vec<u8>);

/// The blocks of one file.
pub(super) struct Blocks {
    disk: Arc<dyn Disk>,
    found: Found,
    file: Box<dyn File>,
    /// What the index lists, if there is a whole one.
    index: Option<(Tail, Vec<Block>)>,
    at: u64,
    ended: bool,
}

impl Blocks {
    pub(super) fn open(disk: Arc<dyn Disk>, mut found: Found) -> Result<Self, Error> {
        let opened = match disk.read(&found.name) {
            // Its writer has ended it since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && found.is_part() => {
                found.name.truncate(found.name.len() - PART.len());
                disk.read(&found.name)
            }
            opened => opened,
        };
        let path = disk.path(&found.name);
        let file = opened.map_err(|error| Error::io("open", path.clone(), error))?;
        found.bytes = file.bytes().map_err(|error| Error::io("read", path, error))?;
        let mut blocks = Blocks { disk, found, file, index: None, at: 0, ended: false };
        blocks.index = blocks.read_index()?;
        Ok(blocks)
    }

    /// The bytes from `at` on, `bytes` of them or up to the end of the file.
    fn get(&self, at: u64, bytes: u64) -> Result<Vec<u8>, Error> {
        let end = at.saturating_add(bytes).min(self.found.bytes);
        let mut read = vec![0; end.saturating_sub(at) as usize];
        let done = self.file.read_exact_at(&mut read, at);
        done.map_err(|error| Error::io("read", self.disk.path(&self.found.name), error))?;
        Ok(read)
    }

    fn read_index(&self) -> Result<Option<(Tail, Vec<Block>)>, Error> {
        let at = self.found.bytes.saturating_sub(MARK_BYTES as u64);
        let Some(tail) = Tail::decode(&self.get(at, MARK_BYTES as u64)?, at) else { return Ok(None) };
        let mark = self.get(tail.index_at, MARK_BYTES as u64)?;
        let Some(index) = Index::decode(&mark, tail.index_at).filter(|index| index.end() == at) else { return Ok(None) };
        let blocks = index.blocks(&self.get(index.at + MARK_BYTES as u64, index.stored_bytes.into())?);
        Ok(blocks.map(|blocks| (tail, blocks)))
    }

    fn summary(mut self) -> Result<Summary, Error> {
        let kind = self.head()?.map(|head| head.kind);
        if let Some((Tail { blocks, contents, .. }, listed)) = self.index {
            let (file, blocks) = (self.found, blocks.into());
            // Each block says it too, should the head be damaged.
            let kind = kind.or(listed.first().map(|block| block.kind));
            return Ok(Summary { file, kind, state: State::Whole, blocks, contents, damaged: 0 });
        }
        let (mut blocks, mut contents, mut damaged, mut state) = (0, Contents::default(), 0, State::Whole);
        // No block is read: every mark is looked at and passed over.
        let seen = std::cell::RefCell::new(Vec::new());
        while let Some(piece) = self.next_piece(&|block| {
            seen.borrow_mut().push(*block);
            false
        }) {
            match piece {
                Err(Error::Torn { .. }) => state = State::Unfinished,
                Err(error) if error.is_damage() => damaged += 1,
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        let seen = seen.into_inner();
        let kind = kind.or(seen.first().map(|block| block.kind));
        for block in seen {
            blocks += 1;
            contents.join(&block.contents);
        }
        Ok(Summary { file: self.found, kind, state, blocks, contents, damaged })
    }

    fn head(&self) -> Result<Option<Head>, Error> {
        let head = Head::decode(&self.get(0, MARK_BYTES as u64)?);
        head.map_err(|found| Error::Version { path: self.disk.path(&self.found.name), found, known: VERSION })
    }

    /// Goes to the first block that `is_wanted`, where the index tells which that is.
    fn seek(&mut self, is_wanted: &dyn Fn(&Block) -> bool) -> Result<(), Error> {
        self.head()?;
        if let Some((tail, blocks)) = &self.index {
            self.at = blocks.iter().find(|block| is_wanted(block)).map_or(tail.at, |block| block.at);
        }
        Ok(())
    }

    /// The next block that `is_wanted`, or what is wrong. After an error that is no damage nothing follows.
    pub(super) fn next_piece(&mut self, is_wanted: &dyn Fn(&Block) -> bool) -> Option<Result<Piece, Error>> {
        while !self.ended {
            match self.step(is_wanted) {
                Ok(None) => {}
                Ok(Some(piece)) => return Some(Ok(piece)),
                Err(error) => {
                    self.ended |= !error.is_damage();
                    return Some(Err(error));
                }
            }
        }
        None
    }

    fn step(&mut self, is_wanted: &dyn Fn(&Block) -> bool) -> Result<Option<Piece>, Error> {
        let (at, end) = (self.at, self.found.bytes);
        if at == 0 {
            if self.head()?.is_none() {
                return Err(self.skip_damage(None)?);
            }
            self.at = MARK_BYTES as u64;
            return Ok(None);
        }
        let mark = self.get(at, MARK_BYTES as u64)?;
        if let Some(block) = Block::decode(&mark, at) {
            if block.end() > end {
                return Err(self.skip_damage(Some(&block))?);
            }
            if !is_wanted(&block) {
                self.at = block.end();
                return Ok(None);
            }
            let stored = self.get(at + MARK_BYTES as u64, block.stored_bytes.into())?;
            if !block.is_sound(&stored) {
                return Err(self.skip_damage(Some(&block))?);
            }
            self.at = block.end();
            return Ok(Some((block, stored)));
        }
        if let Some(index) = Index::decode(&mark, at).filter(|index| index.end() <= end) {
            self.at = index.end();
            return Ok(None);
        }
        if Tail::decode(&mark, at).is_some() && at + MARK_BYTES as u64 == end {
            self.ended = true;
            return Ok(None);
        }
        Err(self.skip_damage(None)?)
    }

    /// Goes on at the next mark that says it is where it is, and tells what lies before it. Without one the file is cut short.
    fn skip_damage(&mut self, block: Option<&Block>) -> Result<Error, Error> {
        let (start, end) = (self.at, self.found.bytes);
        let path = self.disk.path(&self.found.name);
        let mut at = start + 1;
        while at < end {
            let window = self.get(at, WINDOW_BYTES)?;
            if let Some(next) = find_mark(&window, at) {
                self.at = next;
                return Ok(Error::Damaged { path, bytes: start..next, lost_contents: self.lost(start..next, block) });
            }
            if at + window.len() as u64 >= end {
                break;
            }
            at += window.len() as u64 - MARK_BYTES as u64;
        }
        self.ended = true;
        Ok(Error::Torn { path, at: start, bytes: end - start })
    }

    /// What the damaged bytes held, as far as the index or a mark that is whole tells.
    fn lost(&self, bytes: std::ops::Range<u64>, block: Option<&Block>) -> Option<Lost> {
        let mut contents = Contents::default();
        let listed = self.index.iter().flat_map(|(_, blocks)| blocks);
        let hit = listed.filter(|block| block.at < bytes.end && block.end() > bytes.start);
        hit.for_each(|block| contents.join(&block.contents));
        if contents.batches == 0 {
            // The index was written without it, by a recovery that had found it damaged.
            contents = block?.contents;
        }
        Some(Lost(contents))
    }
}

/// A batch, with the epoch in which it passed.
#[derive(Clone, Debug)]
pub struct Recorded<B> {
    /// The epoch.
    pub epoch: Epoch,
    /// The batch.
    pub batch: B,
}

/// A block as it lies in its file.
pub struct Packed<B> {
    block: Block,
    stored: Vec<u8>,
    path: PathBuf,
    selection: Arc<Selection>,
    _batch: PhantomData<fn() -> B>,
}

impl<B: Captured> Packed<B> {
    /// No batch in it is of an earlier epoch.
    pub fn first(&self) -> Epoch {
        self.block.contents.first
    }

    /// Its batches that are selected, in order. The only error there can be is that it is malformed, and it is the last one.
    pub fn unpack(self) -> Unpacked<B> {
        let Packed { block: Block { at, contents, .. }, path, selection, .. } = self;
        let Contents { first, last, batches: left, .. } = contents;
        let rest = self.block.decompress(&self.stored);
        Unpacked { path, selection, at, rest, left, epoch: first, last, _batch: PhantomData }
    }
}

/// The batches of a block that are still to come.
pub struct Unpacked<B> {
    path: PathBuf,
    selection: Arc<Selection>,
    at: u64,
    /// Their entries; `None` if they cannot be read.
    rest: Option<Bytes>,
    left: u64,
    epoch: Epoch,
    last: Epoch,
    _batch: PhantomData<fn() -> B>,
}

impl<B: Captured> Unpacked<B> {
    fn entry(&mut self) -> Option<Recorded<B>> {
        let rest = self.rest.take()?;
        let mut cursor = Cursor::new(&rest);
        let epoch = Epoch(self.epoch.0.checked_add(cursor.varint()?)?);
        let bytes = usize::try_from(cursor.varint()?).ok()?;
        let start = cursor.position_in(&rest);
        let end = start.checked_add(bytes).filter(|&end| end <= rest.len())?;
        let batch = B::decode(&rest.slice(start..end))?;
        let rest = rest.slice(end..);
        self.epoch = epoch;
        self.left = self.left.checked_sub(1)?;
        // The last one must end with its block.
        let is_sound = epoch <= self.last && (self.left == 0) == rest.is_empty();
        self.rest = Some(rest);
        is_sound.then_some(Recorded { epoch, batch })
    }
}

impl<B: Captured> Iterator for Unpacked<B> {
    type Item = Result<Recorded<B>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.left > 0 {
            let left = self.left;
            match self.entry() {
                Some(recorded) if self.selection.has_batch(recorded.epoch, &recorded.batch) => return Some(Ok(recorded)),
                Some(_) => {}
                None => {
                    // Nothing says where the next entry begins.
                    self.left = 0;
                    return Some(Err(Error::Malformed { path: std::mem::take(&mut self.path), at: self.at, batches: left }));
                }
            }
        }
        None
    }
}

/// The blocks of a capture.
pub struct Packs<B> {
    disk: Arc<dyn Disk>,
    files: VecDeque<Found>,
    selection: Arc<Selection>,
    current: Option<Blocks>,
    /// Bytes of the files before the current one.
    done_bytes: u64,
    _batch: PhantomData<fn() -> B>,
}

impl<B: Captured> Packs<B> {
    /// Bytes of the capture that were read or passed over.
    pub fn read_bytes(&self) -> u64 {
        self.done_bytes + self.current.as_ref().map_or(0, |blocks| blocks.at)
    }

    /// The next piece of the current file, or of one behind it.
    fn next_piece(&mut self) -> Option<Result<Piece, Error>> {
        loop {
            let selection = &self.selection;
            let is_wanted = |block: &Block| selection.has_part(&block.contents);
            if let Some(piece) = self.current.as_mut().and_then(|blocks| blocks.next_piece(&is_wanted)) {
                return Some(piece);
            }
            self.done_bytes += self.current.take().map_or(0, |blocks| blocks.found.bytes);
            let opened = Blocks::open(self.disk.clone(), self.files.pop_front()?);
            let sought = opened.and_then(|mut blocks| {
                blocks.seek(&is_wanted)?;
                Ok(blocks)
            });
            match sought {
                Ok(blocks) => self.current = Some(blocks),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.current.as_ref().map_or_else(Default::default, |blocks| self.disk.path(&blocks.found.name))
    }

    fn packed(&self, (block, stored): Piece) -> Result<Packed<B>, Error> {
        let (path, selection) = (self.path(), self.selection.clone());
        if block.kind != B::KIND {
            return Err(Error::Kind { path, found: block.kind, wanted: B::KIND });
        }
        Ok(Packed { block, stored, path, selection, _batch: PhantomData })
    }
}

impl<B: Captured> Iterator for Packs<B> {
    type Item = Result<Packed<B>, Error>;

    /// After an error that is no damage nothing follows.
    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_piece()?.and_then(|piece| self.packed(piece));
        if next.as_ref().is_err_and(|error| !error.is_damage()) {
            self.files.clear();
            self.current = None;
        }
        Some(next)
    }
}

/// The batches of a capture.
pub struct Batches<B> {
    packs: Packs<B>,
    block: Option<Unpacked<B>>,
}

impl<B: Captured> Iterator for Batches<B> {
    type Item = Result<Recorded<B>, Error>;

    /// After an error that is no damage nothing follows.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(read) = self.block.as_mut().and_then(Iterator::next) {
                return Some(read);
            }
            match self.packs.next()? {
                Ok(packed) => self.block = Some(packed.unpack()),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
