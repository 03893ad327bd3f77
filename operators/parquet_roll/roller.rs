//! The core: which offsets are known, which commit is open for each group, and when it closes.
//!
//! ```text
//!            admit                  rotate                 committed
//! delivery ---------> open commit ---------> closing commit ---------> committed offsets
//!                          \                     |
//!           no room on disk \____________________| abandon (with all later ones of the group)
//!                                                v
//!                                       forgotten, to be delivered again
//! ```
//! Per partition: committed and accepted offsets are disjoint, and accepted = what open and closing commits cover.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use ulid::Ulid;

use crate::batch::{EncodedBatch, Group};
use crate::coverage::{Coverage, OffsetSet, PartitionKey};
use crate::fault::chain;
use crate::parquet_roll::coverage_rows::{self, CoverageRow};
use crate::parquet_roll::day::{self, Dated, Day};
use crate::parquet_roll::footer::{self, CommitNote, FileNote};
use crate::parquet_roll::ids::Ulids;
use crate::parquet_roll::news::{self, Fault, Found, Missing, News};
use crate::parquet_roll::writer::{FileWriter, Layout, Shape, rows_file, sync_folder};
use crate::parquet_roll::{ClosedCommit, Config, DeliveryId, Error, FileKind, Received, StableFile, time_column};

/// What came of a delivery.
#[derive(Debug, Default)]
pub struct Admitted {
    /// Commits that closed, in order.
    pub closed: Vec<ClosedCommit>,
    /// The delivery itself, if the catalog already covers all of it: acknowledge it at once.
    pub published: Option<DeliveryId>,
}

/// What was given up with a commit that the catalog refused.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Abandoned {
    /// The refused commit and the later ones of its group that were closed. Those on their way to the catalog are refused there.
    pub commits: Vec<Ulid>,
    /// Deliveries to refuse, so that their senders send them again.
    pub refused: Vec<DeliveryId>,
}

/// An open commit that was given up because the local disk is full.
#[derive(Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Its group.
    pub group: Group,
    /// Deliveries to refuse, so that their senders send them again.
    pub deliveries: Vec<DeliveryId>,
    /// What the disk said.
    pub cause: String,
}

/// Counters since the start, and what is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Deliveries accepted.
    pub deliveries: u64,
    /// Deliveries that brought nothing new.
    pub redelivered: u64,
    /// Deliveries refused.
    pub refused: u64,
    /// Rows written.
    pub rows: u64,
    /// Rows dropped because their offsets were known.
    pub rows_known: u64,
    /// Rows in files of the undated day.
    pub rows_undated: u64,
    /// Files finished.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// Commits closed.
    pub commits: u64,
    /// Groups closed early because too many files were open.
    pub early_rotations: u64,
    /// Row groups ended early because memory ran out.
    pub early_row_groups: u64,
    /// Leftovers of a dead process discarded at start.
    pub discarded: u64,
    /// Closed commits abandoned after a refusal.
    pub abandoned: u64,
    /// Open commits given up because the local disk was full.
    pub given_up: u64,
    /// Groups open now.
    pub open_groups: u64,
    /// Files open now.
    pub open_writers: u64,
    /// Bytes in them.
    pub open_bytes: u64,
    /// Memory of their row groups.
    pub memory_bytes: u64,
    /// Commits closed but neither committed nor abandoned.
    pub closing: u64,
}

/// Offsets accepted but not committed, and the group they wait in.
struct Accepted {
    group: Group,
    offsets: OffsetSet,
}

struct OpenCommit {
    commit_id: Ulid,
    opened_ms: u64,
    touched_ms: u64,
    /// The ids of all files begun.
    files: Vec<Ulid>,
    /// By day and schema, so that the latest day comes last.
    writers: BTreeMap<(Day, Arc<str>), FileWriter>,
    /// Bytes of files whose writers are gone.
    finished_bytes: u64,
    coverage: BTreeMap<PartitionKey, Vec<CoverageRow>>,
    deliveries: Vec<DeliveryId>,
}

impl OpenCommit {
    fn bytes(&self) -> u64 {
        self.finished_bytes + self.writers.values().map(|writer| writer.bytes).sum::<u64>()
    }

    /// The ids of its files, the latest day last.
    fn files_by_day(&self) -> Vec<Ulid> {
        self.writers.values().map(|writer| writer.file).collect()
    }
}

struct Closing {
    group: Group,
    coverage: Vec<CoverageRow>,
    deliveries: Vec<DeliveryId>,
}

/// Rolls deliveries into commits. One per process; it does file I/O and belongs on a thread that may block.
pub struct Roller {
    config: Config,
    active: PathBuf,
    stable: PathBuf,
    /// Held as long as the roller lives.
    _lock: File,
    ids: Ulids,
    node: Arc<str>,
    committed: BTreeMap<PartitionKey, OffsetSet>,
    accepted: BTreeMap<PartitionKey, Accepted>,
    open: BTreeMap<Group, OpenCommit>,
    /// By id, so in the order of closing within a group.
    closing: BTreeMap<Ulid, Closing>,
    /// How often commits of a group were refused; none where it has no entry.
    generations: BTreeMap<Group, u64>,
    given_up: Vec<GivenUp>,
    /// Bytes at which a group closes: `file_bytes_max`, or less after the disk was full.
    file_bytes: u64,
    /// The schemas in use, few: compared by pointer first, as batches of one Flight stream share theirs.
    layouts: Vec<Layout>,
    poisoned: Option<String>,
    stats: Stats,
}

/// Schemas remembered. Beyond it the oldest is forgotten and computed again when it comes back.
const LAYOUTS_MAX: usize = 64;

impl Roller {
    /// Opens the local folder, discards what a dead process left there, and starts from what the catalog covers.
    pub fn open(config: Config, committed: BTreeMap<PartitionKey, OffsetSet>) -> Result<Self, Error> {
        for (key, value) in [
            ("file_bytes_max", config.file_bytes_max),
            ("open_writers_max", config.open_writers_max as u64),
            ("row_group_rows_max", config.row_group_rows_max as u64),
        ] {
            if value == 0 {
                return Err(Error::Config { key, value, least: 1 });
            }
        }
        let (active, stable) = (config.directory.join("active"), config.directory.join("stable"));
        for folder in [&active, &stable] {
            std::fs::create_dir_all(folder).map_err(|source| Error::Io { doing: "create", path: folder.clone(), source })?;
        }
        let lock = lock(&config.directory)?;
        let discarded = discard_leftovers(&active)? + discard_leftovers(&stable)?;
        Ok(Roller {
            ids: Ulids::new(config.seed),
            node: config.node_id.as_str().into(),
            file_bytes: config.file_bytes_max,
            config,
            active,
            stable,
            _lock: lock,
            committed,
            accepted: BTreeMap::new(),
            open: BTreeMap::new(),
            closing: BTreeMap::new(),
            generations: BTreeMap::new(),
            given_up: Vec::new(),
            layouts: Vec::new(),
            poisoned: None,
            stats: Stats { discarded, ..Stats::default() },
        })
    }

    /// Takes a delivery: all of it, or with an error for which `is_refusal` holds, nothing. Look at `take_given_up` afterwards, as after
    /// `tick` and `flush`: it may be there.
    pub fn admit(&mut self, received: Received, now_ms: u64) -> Result<Admitted, Error> {
        self.check_usable()?;
        let admitted = self.try_admit(received, now_ms);
        match &admitted {
            Ok(_) => self.stats.deliveries += 1,
            Err(error) if error.is_refusal() => self.stats.refused += 1,
            Err(error) => self.poisoned = Some(error.to_string()),
        }
        admitted
    }

    /// Closes what is too old or idle.
    pub fn tick(&mut self, now_ms: u64) -> Result<Vec<ClosedCommit>, Error> {
        let due = self.open.iter().filter(|(_, open)| self.deadline_ms(open) <= now_ms);
        let due: Vec<Group> = due.map(|(group, _)| group.clone()).collect();
        self.rotate_all(due)
    }

    /// Closes everything: at shutdown, or when all input has come.
    pub fn flush(&mut self) -> Result<Vec<ClosedCommit>, Error> {
        self.rotate_all(self.open.keys().cloned().collect())
    }

    /// Open commits that the local disk had no room for since the last call.
    pub fn take_given_up(&mut self) -> Vec<GivenUp> {
        std::mem::take(&mut self.given_up)
    }

    /// When `tick` has something to do, if nothing else comes.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.open.values().map(|open| self.deadline_ms(open)).min()
    }

    fn deadline_ms(&self, open: &OpenCommit) -> u64 {
        let aged = open.opened_ms.saturating_add(self.config.age_max_ms);
        aged.min(open.touched_ms.saturating_add(self.config.idle_ms))
    }

    /// Learns that a commit is in the catalog.
    ///
    /// Panics if an earlier commit of the group is not: deliveries of this one may rest on it, and would be acknowledged unstored.
    pub fn committed(&mut self, commit: &ClosedCommit) {
        let Some(closing) = self.closing.remove(&commit.commit_id) else { return };
        let earlier = self.closing.range(..commit.commit_id).find(|(_, other)| other.group == closing.group);
        assert!(
            earlier.is_none(),
            "commit {} of group {} was committed before {:?}",
            commit.commit_id,
            closing.group,
            earlier.map(|(id, _)| id)
        );
        for row in closing.coverage {
            self.forget_accepted(&row.partition, &row.range);
            self.committed.entry(row.partition).or_default().insert(row.range);
        }
        self.file_bytes = self.file_bytes.saturating_mul(2).min(self.config.file_bytes_max);
    }

    /// Gives up a commit that the catalog refused because another node had covered some of its offsets first, and with it all later
    /// commits of the group, which may rest on it. `committed` is what the catalog covers now. The group's next commits are of a new
    /// generation; files of closed ones stay until the catalog has refused each of them, as they may be on their way there.
    pub fn abandon(&mut self, commit_id: Ulid, committed: BTreeMap<PartitionKey, OffsetSet>) -> Result<Abandoned, Error> {
        self.check_usable()?;
        for (partition, offsets) in committed {
            let known = self.committed.entry(partition).or_default();
            offsets.ranges().for_each(|range| known.insert(range));
        }
        let Some(group) = self.closing.get(&commit_id).map(|closing| closing.group.clone()) else {
            return Ok(Abandoned::default());
        };
        let mut abandoned = Abandoned::default();
        let later = self.closing.range(commit_id..).filter(|(_, closing)| closing.group == group);
        let later: Vec<Ulid> = later.map(|(id, _)| *id).collect();
        for id in later {
            let Some(closing) = self.closing.remove(&id) else { continue };
            closing.coverage.iter().for_each(|row| self.forget_accepted(&row.partition, &row.range));
            self.stats.abandoned += 1;
            abandoned.commits.push(id);
            abandoned.refused.extend(closing.deliveries);
        }
        if let Some(open) = self.open.remove(&group) {
            abandoned.refused.extend(self.forget_open(open)?);
        }
        *self.generations.entry(group).or_default() += 1;
        Ok(abandoned)
    }

    /// Forgets an open commit and removes its files, finished or not; returns its deliveries.
    fn forget_open(&mut self, open: OpenCommit) -> Result<Vec<DeliveryId>, Error> {
        let OpenCommit { commit_id, files, writers, coverage, deliveries, .. } = open;
        coverage.values().flatten().for_each(|row| self.forget_accepted(&row.partition, &row.range));
        drop(writers);
        for folder in [&self.active, &self.stable] {
            remove(&coverage_file(folder, commit_id))?;
            files.iter().try_for_each(|file| remove(&rows_file(folder, *file)))?;
        }
        Ok(deliveries)
    }

    /// Gives up a group's open commit if `error` says that the disk is full; other errors are handed back.
    ///
    /// Its rows are still in a log. Where the group alone is larger than the disk this would go on for ever, so commits close early until
    /// some have got through.
    fn give_up_if_full(&mut self, group: &Group, open: Option<OpenCommit>, error: Error) -> Result<(), Error> {
        let Some(open) = open.filter(|_| error.is_full()) else { return Err(error) };
        self.file_bytes = self.file_bytes.min(open.bytes() / 2).max(1);
        let deliveries = self.forget_open(open)?;
        self.stats.given_up += 1;
        self.given_up.push(GivenUp { group: group.clone(), deliveries, cause: chain(&error) });
        Ok(())
    }

    fn forget_accepted(&mut self, partition: &PartitionKey, range: &Range<i64>) {
        let Some(accepted) = self.accepted.get_mut(partition) else { return };
        accepted.offsets.remove(range.clone());
        if accepted.offsets.is_empty() {
            self.accepted.remove(partition);
        }
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        let writers = || self.open.values().flat_map(|open| open.writers.values());
        Stats {
            open_groups: self.open.len() as u64,
            open_writers: writers().count() as u64,
            open_bytes: writers().map(|writer| writer.bytes).sum(),
            memory_bytes: writers().map(|writer| writer.memory_bytes as u64).sum(),
            closing: self.closing.len() as u64,
            ..self.stats
        }
    }

    fn check_usable(&self) -> Result<(), Error> {
        match &self.poisoned {
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    fn try_admit(&mut self, received: Received, now_ms: u64) -> Result<Admitted, Error> {
        let Received { id, batch } = received;
        let EncodedBatch { group, batches, mut coverage } = batch;
        let malformed = |detail| Error::Malformed { id, group: group.clone(), detail };
        news::check(&group, &batches, &coverage).map_err(malformed)?;
        coverage.sort_by(|left, right| news::sort_key(left).cmp(&news::sort_key(right)));
        let rows: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();

        // 1. What is new, and on whom does the rest depend?
        let mut missing = Vec::with_capacity(coverage.len());
        let mut rests_on_accepted = false;
        for coverage in &coverage {
            let (ranges, rests) = self.missing(id, &group, coverage)?;
            rests_on_accepted |= rests;
            missing.push(Missing { coverage, ranges });
        }
        let News { ranges: counts, batches } = match news::select(batches, &missing) {
            Ok(news) => news,
            Err(Fault::Malformed(detail)) => return Err(malformed(detail)),
            Err(Fault::Arrow(source)) => return Err(Error::Arrow { id, source }),
        };
        let dated = self.by_day(&group, &batches).map_err(|source| Error::Arrow { id, source })?;

        // 2. Nothing new: published, or as soon as the commits before it are.
        let new = coverage_of(&missing, counts);
        self.stats.rows_known += rows - dated.iter().map(|dated| dated.rows.num_rows() as u64).sum::<u64>();
        if new.is_empty() {
            self.stats.redelivered += 1;
            return self.admit_nothing_new(id, group, rests_on_accepted);
        }

        // 3. Rows, then coverage: an error in between gives the open commit up, or poisons the roller.
        let open = self.open_commit(&group, now_ms);
        open.touched_ms = now_ms;
        open.deliveries.push(id);
        if let Err(error) = self.append(&group, dated, now_ms) {
            let open = self.open.remove(&group);
            self.give_up_if_full(&group, open, error)?;
            return Ok(Admitted::default());
        }
        let open = self.open_commit(&group, now_ms);
        for row in new {
            let rows = open.coverage.entry(row.partition.clone()).or_default();
            coverage_rows::add(rows, row).unwrap_or_else(|known| panic!("accepted offsets {known:?} twice in delivery {id}"));
        }
        for missing in missing.iter().filter(|missing| !missing.ranges.is_empty()) {
            let partition = missing.coverage.partition.clone();
            let accepted = self
                .accepted
                .entry(partition)
                .or_insert_with(|| Accepted { group: group.clone(), offsets: OffsetSet::default() });
            missing.ranges.iter().for_each(|range| accepted.offsets.insert(range.clone()));
        }

        // 4. Bounds.
        let closed = self.enforce_bounds(&group)?;
        Ok(Admitted { closed, published: None })
    }

    /// The offsets of `coverage` that are neither committed nor accepted, and whether any is accepted.
    fn missing(&self, id: DeliveryId, group: &Group, coverage: &Coverage) -> Result<(Vec<Range<i64>>, bool), Error> {
        let range = coverage.range();
        let uncommitted = match self.committed.get(&coverage.partition) {
            Some(committed) => committed.missing_in(range.clone()),
            None if range.is_empty() => vec![],
            None => vec![range],
        };
        let Some(accepted) = self.accepted.get(&coverage.partition) else { return Ok((uncommitted, false)) };
        let missing: Vec<Range<i64>> = uncommitted.iter().flat_map(|range| accepted.offsets.missing_in(range.clone())).collect();
        let rests_on_accepted = missing != uncommitted;
        // Offsets of one partition accepted for two groups could be acknowledged out of order.
        if accepted.group != *group && !uncommitted.is_empty() {
            let (group, partition, pending) = (group.clone(), coverage.partition.clone(), accepted.group.clone());
            return Err(Error::OtherGroup { id, group, partition, pending });
        }
        Ok((missing, rests_on_accepted))
    }

    fn by_day(&self, group: &Group, batches: &[RecordBatch]) -> Result<Vec<Dated>, arrow::error::ArrowError> {
        let mut dated = Vec::with_capacity(batches.len());
        for batch in batches {
            dated.extend(day::split(batch.clone(), time_column(group.signal), self.config.event_time_skew_days_max)?);
        }
        Ok(dated)
    }

    fn admit_nothing_new(&mut self, id: DeliveryId, group: Group, rests_on_accepted: bool) -> Result<Admitted, Error> {
        if !rests_on_accepted {
            return Ok(Admitted { closed: vec![], published: Some(id) });
        }
        if let Some(open) = self.open.get_mut(&group) {
            open.deliveries.push(id);
            return Ok(Admitted::default());
        }
        // What it rests on is closing: an empty commit right behind carries the acknowledgement.
        let closed = ClosedCommit {
            commit_id: self.ids.next(0),
            generation: self.generation(&group),
            group: group.clone(),
            node: self.node.clone(),
            files: vec![],
            coverage: vec![],
            deliveries: vec![id],
        };
        self.closing.insert(closed.commit_id, Closing { group, coverage: vec![], deliveries: vec![id] });
        Ok(Admitted { closed: vec![closed], published: None })
    }

    fn generation(&self, group: &Group) -> u64 {
        self.generations.get(group).copied().unwrap_or(0)
    }

    fn open_commit(&mut self, group: &Group, now_ms: u64) -> &mut OpenCommit {
        let ids = &mut self.ids;
        self.open.entry(group.clone()).or_insert_with(|| OpenCommit {
            commit_id: ids.next(now_ms),
            opened_ms: now_ms,
            touched_ms: now_ms,
            files: vec![],
            writers: BTreeMap::new(),
            finished_bytes: 0,
            coverage: BTreeMap::new(),
            deliveries: vec![],
        })
    }

    fn append(&mut self, group: &Group, dated: Vec<Dated>, now_ms: u64) -> Result<(), Error> {
        for dated in dated {
            let layout = self.layout(dated.rows.schema_ref())?;
            let key = (dated.day, layout.hash.clone());
            let known = self.open_commit(group, now_ms).writers.contains_key(&key);
            if !known {
                let file = self.ids.next(now_ms);
                // Noted first: what cannot be begun leaves a file all the same.
                self.open_commit(group, now_ms).files.push(file);
                let writer = FileWriter::create(&self.active, file, &layout)?;
                self.open_commit(group, now_ms).writers.insert(key.clone(), writer);
            }
            if let Some(writer) = self.open_commit(group, now_ms).writers.get_mut(&key) {
                writer.write(&dated)?;
            }
            let rows = dated.rows.num_rows() as u64;
            self.stats.rows += rows;
            self.stats.rows_undated += if dated.day == Day::UNDATED { rows } else { 0 };
        }
        Ok(())
    }

    fn layout(&mut self, schema: &SchemaRef) -> Result<Layout, Error> {
        let same = |layout: &&Layout| Arc::ptr_eq(&layout.schema, schema) || layout.schema == *schema;
        if let Some(layout) = self.layouts.iter().find(same) {
            return Ok(layout.clone());
        }
        let Config { row_group_rows_max, compression, bloom_filters, .. } = self.config;
        let layout = Layout::new(schema.clone(), Shape { row_group_rows_max, compression, bloom_filters })
            .map_err(|source| Error::Parquet { doing: "derive the layout of files in", path: self.active.clone(), source })?;
        if self.layouts.len() >= LAYOUTS_MAX {
            self.layouts.remove(0);
        }
        self.layouts.push(layout.clone());
        Ok(layout)
    }

    fn enforce_bounds(&mut self, group: &Group) -> Result<Vec<ClosedCommit>, Error> {
        while self.stats().memory_bytes > self.config.memory_bytes_max as u64 {
            let writers =
                self.open.iter_mut().flat_map(|(group, open)| open.writers.values_mut().map(move |writer| (group, writer)));
            let largest = writers.max_by_key(|(_, writer)| writer.memory_bytes).filter(|(_, writer)| writer.memory_bytes > 0);
            let Some((group, largest)) = largest else { break };
            self.stats.early_row_groups += 1;
            if let Err(error) = largest.end_row_group() {
                let group = group.clone();
                let open = self.open.remove(&group);
                self.give_up_if_full(&group, open, error)?;
            }
        }
        let mut closed = Vec::new();
        if self.open.get(group).is_some_and(|open| open.bytes() >= self.file_bytes) {
            closed.extend(self.rotate(group)?);
        }
        while self.stats().open_writers > self.config.open_writers_max as u64 {
            let least_recent =
                self.open.iter().filter(|(_, open)| !open.writers.is_empty()).min_by_key(|(_, open)| open.touched_ms);
            let Some(least_recent) = least_recent.map(|(group, _)| group.clone()) else { break };
            self.stats.early_rotations += 1;
            closed.extend(self.rotate(&least_recent)?);
        }
        Ok(closed)
    }

    fn rotate_all(&mut self, groups: Vec<Group>) -> Result<Vec<ClosedCommit>, Error> {
        self.check_usable()?;
        let closed: Result<Vec<_>, Error> = groups.iter().filter_map(|group| self.rotate(group).transpose()).collect();
        if let Err(error) = &closed {
            self.poisoned = Some(error.to_string());
        }
        closed
    }

    /// Closes a group's open commit; `None` if it has none, or the disk no room for it.
    fn rotate(&mut self, group: &Group) -> Result<Option<ClosedCommit>, Error> {
        let Some(mut open) = self.open.remove(group) else { return Ok(None) };
        let coverage: Vec<CoverageRow> = open.coverage.values().flatten().cloned().collect();
        let note = CommitNote::new(open.commit_id, group.clone(), self.node.clone(), open.files_by_day(), coverage);
        let files = match self.finish_all(&note, &mut open) {
            Ok(files) => files,
            Err(error) => {
                self.give_up_if_full(group, Some(open), error)?;
                return Ok(None);
            }
        };
        self.stats.commits += 1;
        self.stats.files += files.len() as u64;
        self.stats.file_bytes += files.iter().map(|file| file.bytes).sum::<u64>();
        let OpenCommit { commit_id, deliveries, .. } = open;
        let (coverage, generation) = (note.coverage, self.generation(group));
        let closing = Closing { group: group.clone(), coverage: coverage.clone(), deliveries: deliveries.clone() };
        self.closing.insert(commit_id, closing);
        let (group, node) = (group.clone(), self.node.clone());
        Ok(Some(ClosedCommit { commit_id, group, generation, node, files, coverage, deliveries }))
    }

    /// Finishes all files of an open commit, which keeps everything but its writers.
    fn finish_all(&self, note: &CommitNote, open: &mut OpenCommit) -> Result<Vec<StableFile>, Error> {
        let json = note.to_json().map_err(|error| unwritable(&self.stable, error))?;
        open.finished_bytes = open.bytes();
        let writers = std::mem::take(&mut open.writers);
        let mut files = Vec::with_capacity(writers.len().max(1));
        for ((day, schema_hash), writer) in writers {
            files.push(self.finish(&note.group, &json, day, schema_hash, writer)?);
        }
        if files.is_empty() {
            files.push(self.write_coverage(note, &json)?);
        }
        sync_folder(&self.stable)?;
        Ok(files)
    }

    fn finish(
        &self,
        group: &Group,
        commit: &str,
        day: Day,
        schema_hash: Arc<str>,
        writer: FileWriter,
    ) -> Result<StableFile, Error> {
        let (file, rows) = (writer.file, writer.rows);
        let (time_min_ns, time_max_ns, schema_version) = (writer.time_min_ns, writer.time_max_ns, writer.schema_version);
        let note = FileNote { file, day, time_min_ns, time_max_ns, schema_hash: schema_hash.clone(), schema_version };
        let notes = footer::pairs(commit, &note).map_err(|error| unwritable(&self.stable, error))?;
        let finished = writer.finish(notes, &self.stable)?;
        let path = day::object_path(&self.config.prefix, group, day, &self.config.node_id, file);
        Ok(StableFile {
            file,
            kind: FileKind::Rows,
            local: finished.path,
            path,
            day,
            rows,
            bytes: finished.bytes,
            time_min_ns,
            time_max_ns,
            schema_hash,
            schema_version,
        })
    }

    /// A commit without rows has no footer to speak for it.
    fn write_coverage(&self, note: &CommitNote, json: &str) -> Result<StableFile, Error> {
        let written = coverage_file(&self.active, note.commit_id);
        let local = coverage_file(&self.stable, note.commit_id);
        let done = std::fs::write(&written, json)
            .and_then(|()| File::open(&written)?.sync_all())
            .and_then(|()| std::fs::rename(&written, &local));
        done.map_err(|source| Error::Io { doing: "write", path: written, source })?;
        let path = day::coverage_path(&self.config.prefix, &note.group, &self.config.node_id, note.commit_id);
        Ok(StableFile {
            file: note.commit_id,
            kind: FileKind::Coverage,
            local,
            path,
            day: Day::UNDATED,
            rows: 0,
            bytes: json.len() as u64,
            time_min_ns: None,
            time_max_ns: None,
            schema_hash: "".into(),
            schema_version: 0,
        })
    }
}

/// The coverage rows of what is missing; `counts` holds what was found of each missing range.
fn coverage_of(missing: &[Missing<'_>], counts: Vec<Vec<Found>>) -> Vec<CoverageRow> {
    let mut rows = Vec::new();
    for (missing, counts) in missing.iter().zip(counts) {
        for (range, count) in missing.ranges.iter().zip(counts) {
            let dispositions = missing.coverage.clip(range).dispositions();
            rows.push(CoverageRow {
                partition: missing.coverage.partition.clone(),
                range: range.clone(),
                dispositions,
                rows: count.rows,
                kafka_time_max_ms: count.kafka_time_max_ms,
            });
        }
    }
    rows
}

fn unwritable(folder: &Path, error: serde_json::Error) -> Error {
    Error::Readback { path: folder.to_path_buf(), detail: format!("a commit's note cannot be written as JSON: {error}") }
}

/// Two processes in one folder would discard each other's files.
fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join("lock");
    let io = |source| Error::Io { doing: "lock", path: path.clone(), source };
    let file = File::options().create(true).write(true).truncate(false).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path }),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Removes our files from `folder`; others' are left alone.
fn discard_leftovers(folder: &Path) -> Result<u64, Error> {
    let io = |source| Error::Io { doing: "list", path: folder.to_path_buf(), source };
    let mut discarded = 0;
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let ours = path.extension().is_some_and(|extension| extension == "parquet" || extension == "json");
        if ours && Ulid::from_string(stem).is_ok() {
            remove(&path)?;
            discarded += 1;
        }
    }
    Ok(discarded)
}

fn coverage_file(folder: &Path, commit_id: Ulid) -> PathBuf {
    folder.join(format!("{}.json", commit_id.to_string()))
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|source| Error::Io { doing: "remove", path: path.to_path_buf(), source }),
    }
}
