//! The messages of one unit: files whose rows belong together, read side by side.
//!
//! ```text
//! first pass      topic, partition, offset of all rows     how many rows each message has, and in which order messages are given
//! files           day 1    m1 m2 m2 m4 ..                  the one is read on whose next row is of a message that is to be given next
//!                 day 2    m3 m4 m5 ..
//! held            m4: one row of two                       what is not complete, or has to wait for a lower offset of its partition
//! ```
//!
//! Where all files have their rows in one order, as storage writes them, only the message that is being put together is held. What came out
//! of order, after a delivery was repeated, is held until its turn; beyond `HELD_BYTES_MAX` it fails.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

use super::file::{OpenFile, places};
use super::files::Commit;
use super::lane::{Bound, Lane, Message};
use super::message::Pieces;
use super::place::Place;
use super::{Config, Error, Stats};
use crate::batch::UniqueBatch;
use crate::capture::Recorded;
use crate::coverage::PartitionKey;
use crate::epoch::Epoch;
use crate::tenant::Tenant;

/// Bytes of messages that wait for their turn.
const HELD_BYTES_MAX: usize = 512 << 20;

const CHANGED: &str = "it was changed while it was read";

/// What was not asked for, by partition: kept from one unit to the next.
pub type Bounds = BTreeMap<PartitionKey, Bound>;

/// What all units are read with.
pub struct Context<'a> {
    /// What is read.
    pub config: &'a Config,
    /// Counters.
    pub stats: &'a Stats,
    /// True once nothing more is wanted.
    pub is_over: &'a dyn Fn() -> bool,
    /// Where files lie.
    pub place: Place,
}

/// A unit that is being read.
pub struct Unit<'a> {
    files: Vec<OpenFile<'a>>,
    lanes: Vec<Lane>,
    /// The lanes of a topic's partition: several where the topic was created anew.
    by_place: BTreeMap<(String, i32), Vec<usize>>,
    /// The lane and the offset of each file's next row; `None` at its end.
    heads: Vec<Option<(usize, i64)>>,
    held: BTreeMap<(usize, i64), (Pieces, Message)>,
    held_bytes: usize,
    spare: Option<Pieces>,
    /// A lane whose next message waits until what is before it is given.
    unfinished: Option<usize>,
    latest: Epoch,
    ready: VecDeque<Recorded<UniqueBatch>>,
    has_ended: bool,
}

impl<'a> Unit<'a> {
    /// Opens the files of `commits` and counts the rows of their messages.
    pub fn open(commits: &[&'a Commit], context: &Context<'_>, bounds: &mut Bounds) -> Result<Self, Error> {
        let Context { config, stats, place, .. } = context;
        let start = commits.iter().map(|commit| commit.start).min().unwrap_or_default();
        // Those of notes are what they are.
        let is_noted = commits.iter().all(|commit| commit.is_noted);
        let start = if is_noted { start } else { Epoch::of(start.0, config.epoch_interval_ms) };
        let mut lanes = Lanes::of(commits, config, start, bounds);
        let mut files = Vec::new();
        let last_ms = commits
            .iter()
            .map(|commit| commit.last_ms)
            .min()
            .flatten()
            .and(commits.iter().filter_map(|commit| commit.last_ms).max());
        if !lanes.lanes.iter().any(|lane| lane.may_be_asked_for(last_ms)) {
            let bytes = commits.iter().flat_map(|commit| &commit.files).map(|file| file.bytes).sum();
            stats.read_bytes.fetch_add(bytes, Ordering::Relaxed);
            return Ok(Unit::new(files, lanes, start, true));
        }
        for (number, commit) in commits.iter().enumerate() {
            commit.check_whole()?;
            lanes.count(number, commit, context)?;
            for file in &commit.files {
                files.push(OpenFile::open(file, number, place)?);
            }
        }
        lanes.lanes.iter_mut().try_for_each(Lane::settle)?;
        let mut unit = Unit::new(files, lanes, start, false);
        for file in 0..unit.files.len() {
            unit.look(file, stats)?;
        }
        Ok(unit)
    }

    fn new(files: Vec<OpenFile<'a>>, lanes: Lanes, latest: Epoch, has_ended: bool) -> Self {
        let (heads, Lanes { lanes, by_place }) = (vec![None; files.len()], lanes);
        let (held, ready) = (BTreeMap::new(), VecDeque::new());
        Unit { files, lanes, by_place, heads, held, held_bytes: 0, spare: None, unfinished: None, latest, ready, has_ended }
    }

    /// How many files it has open.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// What was left open of the partitions' bounds.
    pub fn bounds(self) -> impl Iterator<Item = (PartitionKey, Bound)> {
        self.lanes.into_iter().map(|lane| (lane.partition, lane.bound))
    }

    /// The next batch; `None` at the end.
    pub fn next(&mut self, context: &Context<'_>) -> Result<Option<Recorded<UniqueBatch>>, Error> {
        while self.ready.is_empty() && !self.has_ended {
            if (context.is_over)() {
                return Err(Error::Stopped);
            }
            match (self.unfinished.take(), self.choose()) {
                (Some(lane), _) => self.give(lane)?,
                (None, Some(file)) => self.read(file, context.stats)?,
                (None, None) => self.end()?,
            }
        }
        Ok(self.ready.pop_front())
    }

    /// Finds out what the next row of a file is of.
    fn look(&mut self, file: usize, stats: &Stats) -> Result<(), Error> {
        let Some(place) = self.files[file].place(stats)? else {
            self.heads[file] = None;
            return Ok(());
        };
        let (key, offset) = ((place.topic.to_owned(), place.partition), place.offset);
        let lanes = self.by_place.get(&key).map_or(&[][..], Vec::as_slice);
        let commit = self.files[file].commit;
        let lane = lanes.iter().copied().find(|lane| self.lanes[*lane].is_of(commit, offset));
        let lane = lane.ok_or_else(|| self.files[file].wrong(CHANGED))?;
        self.heads[file] = Some((lane, offset));
        Ok(())
    }

    /// The file to be read on: of whose next row's message all rows are wanted next, else the one of which least was read.
    fn choose(&self) -> Option<usize> {
        let open = || self.heads.iter().enumerate().filter_map(|(file, head)| Some((file, (*head)?)));
        let wanted = open().find(|(_, (lane, offset))| self.lanes[*lane].wanted() == Some(*offset));
        wanted.map(|(file, _)| file).or_else(|| open().map(|(file, _)| file).min_by_key(|file| self.files[*file].progress()))
    }

    /// Reads the rows of one message.
    fn read(&mut self, file: usize, stats: &Stats) -> Result<(), Error> {
        let Some((lane, offset)) = self.heads[file] else { return Ok(()) };
        let mut pieces = self.spare.take().unwrap_or_default();
        pieces.clear();
        let open = &mut self.files[file];
        let (rows, range, epoch) = open.take();
        let origin = &rows.origin;
        let (timestamp_ms, tenant) = (origin.timestamp_ms(range.start), origin.tenant(range.start).map(str::to_owned));
        let is_one = range.clone().all(|row| origin.timestamp_ms(row) == timestamp_ms && origin.tenant(row) == tenant.as_deref());
        let mut added = Ok(());
        if self.lanes[lane].is_asked_for(offset, timestamp_ms) {
            added = range.clone().try_for_each(|row| rows.put(row, &mut pieces));
        }
        let count = range.len();
        let named = |problem: String| format!("{}, offset {offset}: {problem}", self.lanes[lane].partition);
        added.map_err(|problem| open.wrong(named(problem.to_string())))?;
        let tenant = tenant.map(|name| Tenant::new(&name)).transpose();
        let tenant = tenant.map_err(|error| open.wrong(named(format!("its tenant's name {error}"))))?;
        let shape = open.file.shape().clone();
        let message = Message { timestamp_ms, tenant, shape, commit: open.commit, epoch, rows: count as u64 };
        if !is_one {
            return Err(open.wrong(named("its rows have several Kafka timestamps or tenants".into())));
        }
        self.add(file, (lane, offset), pieces, message)?;
        self.give(lane)?;
        self.look(file, stats)
    }

    /// Puts rows to those of their message that were read before.
    fn add(&mut self, file: usize, key: (usize, i64), pieces: Pieces, message: Message) -> Result<(), Error> {
        self.held_bytes += pieces.bytes();
        match self.held.get_mut(&key) {
            None => _ = self.held.insert(key, (pieces, message)),
            Some((before, known)) => {
                known.rows += message.rows;
                let message = Message { rows: known.rows, epoch: known.epoch, ..message };
                if *known != message {
                    let place = format!("{}, offset {}", self.lanes[key.0].partition, key.1);
                    return Err(self.files[file].wrong(format!("{place}: its rows contradict those in other files")));
                }
                before.append(&pieces);
                self.spare = Some(pieces);
            }
        }
        if self.held_bytes > HELD_BYTES_MAX && self.held.len() > 1 {
            let problem =
                format!("its rows are so far out of order that more than {HELD_BYTES_MAX} bytes would be held in memory");
            return Err(self.files[file].wrong(problem));
        }
        Ok(())
    }

    /// Gives on what is complete and next in its partition.
    fn give(&mut self, lane: usize) -> Result<(), Error> {
        while let Some(offset) = self.lanes[lane].wanted() {
            let key = (lane, offset);
            let is_complete = self.held.get(&key).is_some_and(|(_, message)| self.lanes[lane].is_complete(message.rows));
            if !is_complete {
                break;
            }
            let Some((mut pieces, message)) = self.held.remove(&key) else { break };
            self.held_bytes -= pieces.bytes();
            let epoch = self.lanes[lane].epoch_of(&message);
            if epoch > self.latest {
                self.latest = epoch;
                self.flush();
            }
            if !self.lanes[lane].push(offset, epoch, &message, &mut pieces, &mut self.ready)? {
                self.held_bytes += pieces.bytes();
                self.held.insert(key, (pieces, message));
                self.unfinished = Some(lane);
                break;
            }
            self.spare = Some(pieces);
        }
        Ok(())
    }

    /// Gives all batches that are open: what follows is of a later epoch.
    fn flush(&mut self) {
        let mut open: Vec<usize> = (0..self.lanes.len()).filter(|lane| self.lanes[*lane].open_epoch().is_some()).collect();
        open.sort_by_key(|lane| (self.lanes[*lane].open_epoch(), *lane));
        open.into_iter().for_each(|lane| self.lanes[lane].close(&mut self.ready));
    }

    fn end(&mut self) -> Result<(), Error> {
        let is_whole = self.held.is_empty() && self.lanes.iter().all(|lane| lane.wanted().is_none());
        if let Some(file) = self.files.first().filter(|_| !is_whole) {
            return Err(file.wrong(CHANGED));
        }
        if self.lanes.iter_mut().all(|lane| lane.cover_rest(&mut self.ready)) {
            self.has_ended = true;
            self.flush();
        }
        Ok(())
    }
}

/// The partitions of a unit, before its rows are read.
struct Lanes {
    lanes: Vec<Lane>,
    by_place: BTreeMap<(String, i32), Vec<usize>>,
}

impl Lanes {
    fn of(commits: &[&Commit], config: &Config, start: Epoch, bounds: &mut Bounds) -> Self {
        let mut of_partition: BTreeMap<&PartitionKey, Lane> = BTreeMap::new();
        for (number, commit) in commits.iter().enumerate() {
            let stamp = commit.files.first().and_then(|file| file.shape.stamp.clone());
            for (partition, run) in &commit.runs {
                let fresh = || Lane::new(partition.clone(), config, start, bounds.remove(partition));
                of_partition.entry(partition).or_insert_with(fresh).add_run(number, commit, stamp.clone(), run.clone());
            }
        }
        let (mut lanes, mut by_place): (Vec<Lane>, BTreeMap<(String, i32), Vec<usize>>) = (Vec::new(), BTreeMap::new());
        for (partition, mut lane) in of_partition {
            let place = (partition.topic.name.to_string(), partition.partition);
            by_place.entry(place).or_default().push(lanes.len());
            lane.sort();
            lanes.push(lane);
        }
        Lanes { lanes, by_place }
    }

    /// The first pass over the files of a commit.
    fn count(&mut self, number: usize, commit: &Commit, context: &Context<'_>) -> Result<(), Error> {
        for file in &commit.files {
            let mut last: Option<((String, i32), i64, usize)> = None;
            places(file, context, |place| {
                let (topic, partition, offset) = (place.topic, place.partition, place.offset);
                if let Some(((known, number), same, lane)) = &last
                    && (known.as_str(), *number, *same) == (topic, partition, offset)
                {
                    self.lanes[*lane].count(offset);
                    return Ok(());
                }
                let key = (topic.to_owned(), partition);
                let lanes = self.by_place.get(&key).map_or(&[][..], Vec::as_slice);
                let mut of_commit = lanes.iter().copied().filter(|lane| self.lanes[*lane].is_of(number, offset));
                let unsure = |what: &str| {
                    Error::of(&file.path, format!("offset {offset} of {topic}[{partition}] has rows in it, and {what}"))
                };
                let lane = of_commit.next().ok_or_else(|| unsure("its footer does not account for it: the file is damaged"))?;
                if of_commit.next().is_some() {
                    return Err(unsure("its footer accounts for it in two topics of that name: they cannot be told apart"));
                }
                self.lanes[lane].count(offset);
                last = Some((key, offset, lane));
                Ok(())
            })?;
        }
        Ok(())
    }
}
