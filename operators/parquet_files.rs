//! Writes batches into Parquet files on the local disk, the same files whatever the number of workers and processes.
//!
//! For graphs that people wire themselves, and for tests by replay: what one run wrote is compared with what another did (`compare`). A
//! production graph uses `arrow_encode` to `catalog_commit`, whose files are cut by time and named by chance.
//!
//! # In
//! `UniqueBatch`: normalized messages of one group, without duplicates.
//!
//! # Out
//! No data. Its effect is the files; the frontier passes an epoch when its rows are in files that are synced, and so are their folders.
//!
//! # Holds
//! Batches of epochs that are not closed; of each group the open files, whole, in memory (Arrow rows of the row group being built, the rest
//! compressed), with the capability of their first epoch; files at the disk's thread, at most `STORING_BYTES_MAX` and one epoch's.
//!
//! # Closes when
//! A file closes at the end of the epoch in which its group's files reach `file_bytes_max`; before an epoch that lies `epoch_span_max` or more
//! after its first; and at the end. Never by a clock: a quiet group closes its file when the frontier says that it was quiet.
//!
//! # Fails when
//! Rows do not become Parquet: an invariant is broken. The folder may not be written to. A full disk and whatever else may pass is tried
//! again; meanwhile the frontier stands still, batches are held with their charges, and reading pauses.
//!
//! # Invariants
//! - I-21: the files are a function of batches, epochs and `Config`: names, cuts, rows, their order and every byte. Neither arrival nor the number of
//!   workers matters, as all batches of a group go to one worker and are sorted within their epoch.
//! - All rows of an epoch of a group and dataset schema are in one file.
//! - A file that has its name is whole; what is not yet whole ends in `.part`.
//!
//! ```text
//! {directory}/openwit-files.json                                     the marker: this program made the folder
//! {directory}/{index}/{signal}/{first epoch}-{sequence}.parquet      rows by epoch, topic, partition, offset
//! ```

pub mod disk;
pub mod note;
pub mod roll;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::vec::Map;
use twox_hash::XxHash3_64;

use crate::batch::{Group, NormalizedBatch, UniqueBatch};
use crate::carried::Carried;
use crate::clock::Clock;
use crate::desk::{Counter, Desk};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};
use crate::parquet_roll::writer::Shape;
use disk::{Clerk, Disk, Request};
use roll::{Finished, Roll};

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "parquet_files";

/// The file by which a folder is known to be made by this operator.
pub const MARKER: &str = "openwit-files.json";
const MARKER_TEXT: &[u8] = b"{\"format\":1}\n";

/// Bytes of finished files at the disk's thread beyond which no more are made: enough to keep a disk busy.
const STORING_BYTES_MAX: usize = 64 << 20;

/// What is done with a folder that holds something already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// It is refused.
    #[default]
    Refuse,
    /// If this operator made it, its files are removed; any other is refused.
    Replace,
    /// Nothing is looked at nor removed: the first process of a cluster has opened it. That one must do so before it joins the cluster,
    /// as the others write only after it has.
    Join,
}

/// When files are cut, and how they are written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of Arrow rows and of listed offsets at which the files of a group close, at the end of an epoch. Not the size on disk, which is
    /// a tenth to a fiftieth of it. Larger: fewer files, more memory.
    pub file_bytes_max: u64,
    /// A file holds epochs that are less than this apart: milliseconds where epochs are times, else a number of epochs. Until a file closes
    /// nothing of it is acknowledged.
    pub epoch_span_max: u64,
    /// Row groups, compression, bloom filters.
    pub shape: Shape,
}

/// How the sink is told to work.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder.
    pub directory: PathBuf,
    /// What is done if it is not empty.
    pub existing: Existing,
    /// When files are cut, and how they are written.
    pub limits: Limits,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is something in it, and it was not asked to be replaced.
    #[error("{} is not empty: choose another folder, or have it replaced", directory.display())]
    NotEmpty {
        /// The folder.
        directory: PathBuf,
    },
    /// It was to be replaced, and holds what this program did not write.
    #[error("{} is not replaced: {} was not written by this program; choose another folder", directory.display(), found.display())]
    Foreign {
        /// The folder.
        directory: PathBuf,
        /// What was found.
        found: PathBuf,
    },
    /// Another process writes there.
    #[error("{} is in use by another process", directory.display())]
    Locked {
        /// The folder.
        directory: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Batches taken.
    pub batches: AtomicU64,
    /// Rows in files that are synced or on their way there.
    pub rows: AtomicU64,
    /// Files stored.
    pub files: AtomicU64,
    /// Their bytes.
    pub file_bytes: AtomicU64,
    /// Attempts to store a file that failed and were made again.
    pub retries: AtomicU64,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The disk's thread.
    pub desk: Desk<Request, ()>,
    /// Where faults go.
    pub health: Health,
    /// Counters.
    pub stats: Arc<Stats>,
}

impl Ports {
    /// Takes the folder and starts the disk's thread, which ends with the last of the ports.
    pub fn open(
        config: &Config,
        clock: Arc<dyn Clock>,
        health: Health,
        stats: Arc<Stats>,
    ) -> Result<(Ports, JoinHandle<()>), Error> {
        let marker = match config.existing {
            Existing::Join => None,
            Existing::Refuse | Existing::Replace => Some(take_folder(&config.directory, config.existing)?),
        };
        Self::with_disk(Box::new(disk::LocalDisk), marker, clock, health, stats).map_err(|source| Error::Io {
            doing: "start the thread that writes",
            path: config.directory.clone(),
            source,
        })
    }

    fn with_disk(
        disk: Box<dyn Disk>,
        marker: Option<File>,
        clock: Arc<dyn Clock>,
        health: Health,
        stats: Arc<Stats>,
    ) -> std::io::Result<(Ports, JoinHandle<()>)> {
        let clerk = Clerk { disk, clock, health: health.clone(), stats: stats.clone(), _marker: marker };
        let (desk, thread) = Desk::open(NAME, health.clone(), move |requests| clerk.serve(requests))?;
        Ok((Ports { desk, health, stats }, thread))
    }
}

/// Makes `directory` an empty folder with a marker, which is locked as long as the file lives.
fn take_folder(directory: &Path, existing: Existing) -> Result<File, Error> {
    let io = |doing, path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { doing, path, source }
    };
    disk::create_folders(directory).map_err(io("create", directory))?;
    let path = directory.join(MARKER);
    let is_ours = path.exists();
    if !is_ours && let Some(found) = first_entry(directory)? {
        let directory = directory.to_path_buf();
        return Err(if existing == Existing::Replace {
            Error::Foreign { directory, found }
        } else {
            Error::NotEmpty { directory }
        });
    }
    let file = File::options().create(true).append(true).open(&path);
    let mut marker = file.map_err(io("open", &path))?;
    match marker.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(Error::Locked { directory: directory.into() }),
        Err(fs::TryLockError::Error(source)) => return Err(io("lock", &path)(source)),
    }
    if is_ours {
        // A run that ended before its first file leaves the marker alone.
        if existing == Existing::Refuse && entries(directory)?.len() > 1 {
            return Err(Error::NotEmpty { directory: directory.into() });
        }
        clear(directory)?;
    } else {
        marker.write_all(MARKER_TEXT).and_then(|()| marker.sync_all()).map_err(io("write", &path))?;
    }
    Ok(marker)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let io = |source| Error::Io { doing: "list", path: folder.to_path_buf(), source };
    let entries = fs::read_dir(folder).map_err(io)?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(io)?;
    paths.sort();
    Ok(paths)
}

fn first_entry(folder: &Path) -> Result<Option<PathBuf>, Error> {
    Ok(entries(folder)?.into_iter().next())
}

/// Removes files and folders of a former run; nothing if there is anything else.
fn clear(directory: &Path) -> Result<(), Error> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    let foreign = |found: PathBuf| Error::Foreign { directory: directory.to_path_buf(), found };
    for index in entries(directory)?.into_iter().filter(|path| *path != directory.join(MARKER)) {
        if !index.is_dir() {
            return Err(foreign(index));
        }
        for signal in entries(&index)? {
            if !signal.is_dir() {
                return Err(foreign(signal));
            }
            for file in entries(&signal)? {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                if !name.ends_with(".parquet") && !name.ends_with(".parquet.part") {
                    return Err(foreign(file));
                }
                files.push(file);
            }
            folders.push(signal);
        }
        folders.push(index);
    }
    let removed = |path: &Path, result: std::io::Result<()>| {
        result.map_err(|source| Error::Io { doing: "remove", path: path.to_path_buf(), source })
    };
    files.iter().try_for_each(|file| removed(file, fs::remove_file(file)))?;
    folders.iter().try_for_each(|folder| removed(folder, fs::remove_dir(folder)))
}

/// Writes batches into files. Its output carries no data: its frontier passes an epoch when all its rows are in synced files.
pub fn parquet_files<'s>(
    stream: Stream<'s, Epoch, Vec<UniqueBatch>>,
    config: Config,
    ports: Ports,
) -> Stream<'s, Epoch, Vec<()>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let counter = ports.desk.counter(scope.worker().sync_activator_for(address.to_vec()));
    let carried = stream.map(Carried);
    let mut input = builder.new_input(carried, Exchange::new(|batch: &Carried| group_hash(&batch.0.0.group)));
    let (_output, stored) = builder.new_output::<Vec<()>>();
    builder.build(move |_capabilities| {
        let Ports { health, stats, .. } = ports;
        let mut files = Files::new(config, stats, counter);
        move |frontiers| {
            // 1. Hold what comes until its epoch is closed.
            input.for_each(|capability, batches| {
                let capability = capability.retain_least(0).expect("every batch is sent under a capability");
                files.hold(capability, batches.drain(..).map(|batch| batch.0.0));
            });
            // 2. Let go of what is stored.
            files.settle();
            // 3. Write what the frontier closed.
            let frontier = frontiers[0].frontier().first().copied();
            if let Err(error) = files.advance(frontier) {
                health.fail(NAME, chain(&error));
            }
        }
    });
    stored
}

/// Which worker writes the files of `group`: the same at every worker of every process.
fn group_hash(group: &Group) -> u64 {
    XxHash3_64::oneshot(group.index.as_bytes()).wrapping_add(group.signal as u64)
}

/// What one worker holds.
struct Files {
    config: Config,
    stats: Arc<Stats>,
    counter: Counter<Request, ()>,
    /// Batches of epochs that are not closed, or for which the disk has no room.
    held: BTreeMap<Epoch, (Capability<Epoch>, Vec<NormalizedBatch>)>,
    rolls: BTreeMap<Group, Roll>,
    /// Of the first epoch of each group's open files.
    open: BTreeMap<Group, Capability<Epoch>>,
    /// Files at the disk's thread, with their bytes.
    storing: BTreeMap<u64, (Capability<Epoch>, usize)>,
    storing_bytes: usize,
    /// An error was raised: nothing more is written, and no capability is let go.
    has_failed: bool,
}

impl Files {
    fn new(config: Config, stats: Arc<Stats>, counter: Counter<Request, ()>) -> Self {
        let (held, rolls, open, storing) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Files { config, stats, counter, held, rolls, open, storing, storing_bytes: 0, has_failed: false }
    }

    fn hold(&mut self, capability: Capability<Epoch>, batches: impl Iterator<Item = NormalizedBatch>) {
        let epoch = *capability.time();
        let (_, held) = self.held.entry(epoch).or_insert_with(|| (capability, Vec::new()));
        let before = held.len();
        held.extend(batches);
        self.stats.batches.fetch_add((held.len() - before) as u64, Ordering::Relaxed);
    }

    fn settle(&mut self) {
        while let Some((ticket, ())) = self.counter.answer() {
            if let Some((_, bytes)) = self.storing.remove(&ticket) {
                self.storing_bytes -= bytes;
            }
        }
    }

    /// Writes closed epochs as far as the disk's thread has room for files; its answers schedule the operator for the rest.
    fn advance(&mut self, frontier: Option<Epoch>) -> Result<(), roll::Error> {
        let is_closed = |epoch: &Epoch| frontier.is_none_or(|frontier| *epoch < frontier);
        while !self.has_failed && self.storing_bytes < STORING_BYTES_MAX {
            let Some(entry) = self.held.first_entry().filter(|entry| is_closed(entry.key())) else {
                let passed = self.pass(frontier);
                self.has_failed = passed.is_err();
                return passed;
            };
            let (epoch, (capability, batches)) = entry.remove_entry();
            if let Err(error) = self.append(epoch, &capability, batches) {
                // What failed is in no file: its capability is held for ever.
                self.held.insert(epoch, (capability, Vec::new()));
                self.has_failed = true;
                return Err(error);
            }
        }
        Ok(())
    }

    fn append(&mut self, epoch: Epoch, capability: &Capability<Epoch>, batches: Vec<NormalizedBatch>) -> Result<(), roll::Error> {
        let mut groups: BTreeMap<Group, Vec<NormalizedBatch>> = BTreeMap::new();
        for batch in batches {
            groups.entry(batch.group.clone()).or_default().push(batch);
        }
        for (group, batches) in groups {
            let limits = self.config.limits;
            let roll = self.rolls.entry(group.clone()).or_insert_with(|| Roll::new(group.clone(), limits));
            let finished = roll.append(epoch, batches)?;
            let first = roll.first();
            // Files that begin and close with this epoch have no capability yet.
            let held = self.open.remove(&group).unwrap_or_else(|| capability.clone());
            self.store(finished, &held);
            if let Some(first) = first {
                self.open.insert(group, if first == epoch { capability.clone() } else { held });
            }
        }
        Ok(())
    }

    /// Closes files whose span is over; at the end of the input, all.
    fn pass(&mut self, frontier: Option<Epoch>) -> Result<(), roll::Error> {
        let open: Vec<Group> = self.open.keys().cloned().collect();
        for group in open {
            let Some(roll) = self.rolls.get_mut(&group) else { continue };
            let finished = match frontier {
                Some(frontier) => roll.pass(frontier)?,
                None => roll.close()?,
            };
            if !finished.is_empty()
                && let Some(capability) = self.open.remove(&group)
            {
                self.store(finished, &capability);
            }
        }
        Ok(())
    }

    fn store(&mut self, finished: Vec<Finished>, capability: &Capability<Epoch>) {
        for Finished { name, bytes, rows } in finished {
            self.stats.rows.fetch_add(rows, Ordering::Relaxed);
            self.storing_bytes += bytes.len();
            let size = bytes.len();
            let ticket = self.counter.request(Request { path: self.config.directory.join(name), bytes });
            self.storing.insert(ticket, (capability.clone(), size));
        }
    }
}
