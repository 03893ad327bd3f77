//! The catalog's thread: the one place of a process that talks to it.
//!
//! Commits are tried until they succeed or are refused. One that another node has forestalled is given up, with all later ones of its
//! group that may rest on it (`refusals`); any other refusal is a fault and keeps the frontier where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::refusals::Refusals;
use super::{Catalog, Commit, Error, NAME, covered};
use crate::clock::{Clock, SystemClock};
use crate::coverage::{OffsetSet, PartitionKey, TopicKey};
use crate::desk::{Desk, Envelope};
use crate::fault::{Health, chain};
use crate::index_trigger::{self, Announcer};
use crate::object_upload::{StoreUri, remove_local};
use crate::parquet_roll::ClosedCommit;

/// Waits between attempts to reach the catalog.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

/// How old the coverage may be that an assignment of partitions rests on. An assignment asks for each partition, all at once.
const COVERAGE_AGE_MAX_MS: u64 = 1_000;

/// What the catalog is asked.
pub enum Request {
    /// To register a commit whose files are in the object store.
    Commit(Arc<ClosedCommit>),
    /// What it covers of a partition.
    Covered(PartitionKey),
    /// To announce pending index work.
    Announce,
}

/// What the catalog answers.
pub enum Answer {
    /// The commit is registered.
    Committed,
    /// The commit will never be registered.
    Refused(Refused),
    /// The offsets covered.
    Covered(OffsetSet),
    /// Index work was announced.
    Announced,
    /// It cannot be had; why.
    Failed(String),
}

/// Why a commit is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Another node covered some of its offsets first. Coverage never shrinks: nobody can ever register this commit.
    Overlap,
    /// An earlier commit of its group was refused, on which its deliveries may rest.
    Predecessor,
}

/// A commit that is given up.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The commit.
    pub commit: Arc<ClosedCommit>,
    /// Why.
    pub cause: Cause,
    /// What the catalog covers, read after an overlap; empty otherwise.
    pub covered: BTreeMap<PartitionKey, OffsetSet>,
}

/// The way to the catalog's thread.
pub type Registrar = Desk<Request, Answer>;

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Commits registered.
    pub commits: AtomicU64,
    /// Commits given up because another node was first with some of their offsets, or with those of an earlier one.
    pub refused: AtomicU64,
    /// Files registered.
    pub files: AtomicU64,
    /// Their rows.
    pub rows: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Attempts that failed and were repeated.
    pub retries: AtomicU64,
    /// Age of the oldest file that waits for its indexer, in milliseconds.
    pub indexing_lag_ms: AtomicU64,
    published: Mutex<BTreeMap<PartitionKey, i64>>,
}

impl Stats {
    /// One past the greatest offset that this process has published, by partition.
    pub fn published(&self) -> BTreeMap<PartitionKey, i64> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_published(&self, commit: &Commit) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        for row in &commit.coverage {
            let end = published.entry(row.partition.clone()).or_default();
            *end = row.range.end.max(*end);
        }
    }
}

/// Starts the thread that owns `catalog`. Files of its commits lie in `store`.
pub fn open(
    catalog: Arc<dyn Catalog>,
    store: Option<StoreUri>,
    index: index_trigger::Config,
    health: Health,
    stats: Arc<Stats>,
) -> std::io::Result<(Registrar, JoinHandle<()>)> {
    let on_panic = health.clone();
    let clerk = Clerk {
        catalog,
        store,
        health,
        stats,
        clock: SystemClock::default(),
        announcer: Announcer::new(index),
        coverage: BTreeMap::new(),
        coverage_read_ms: None,
        bound: BTreeSet::new(),
        refusals: Refusals::default(),
    };
    Desk::open(NAME, on_panic, move |requests| clerk.serve(&requests))
}

struct Clerk {
    catalog: Arc<dyn Catalog>,
    /// Where the commits' files lie; none in a process that has none.
    store: Option<StoreUri>,
    health: Health,
    stats: Arc<Stats>,
    clock: SystemClock,
    announcer: Announcer,
    coverage: BTreeMap<PartitionKey, OffsetSet>,
    coverage_read_ms: Option<u64>,
    /// Topics whose group the catalog has.
    bound: BTreeSet<Arc<TopicKey>>,
    refusals: Refusals,
}

impl Clerk {
    fn serve(mut self, requests: &Receiver<Envelope<Request, Answer>>) {
        for envelope in requests {
            let answer = match &envelope.request {
                Request::Commit(commit) => self.commit(commit),
                Request::Covered(partition) => self.covered(partition),
                Request::Announce => self.announce(),
            };
            envelope.answer(answer);
        }
    }

    fn commit(&mut self, closed: &Arc<ClosedCommit>) -> Answer {
        if !self.refusals.admits(closed) {
            return self.refuse(closed, Cause::Predecessor, "an earlier commit of its group was refused");
        }
        let commit = Commit::of(closed, self.store.as_ref());
        self.bind_topics(&commit);
        match self.patiently("registering a commit", |catalog| catalog.commit(&commit)) {
            Ok(_) => {}
            // Another node covered some of its offsets first; or the janitor gave it up and removed its objects.
            Err(error @ (Error::Overlap { .. } | Error::Abandoned { .. })) => {
                return self.refuse(closed, Cause::Overlap, &chain(&error));
            }
            Err(error) => return self.fail(format!("commit {} of {}: {}", closed.commit_id, closed.group, chain(&error))),
        }
        let (rows, bytes) = commit.files.iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows, bytes + file.bytes));
        self.stats.note_published(&commit);
        self.stats.commits.fetch_add(1, Ordering::Relaxed);
        self.stats.files.fetch_add(commit.files.len() as u64, Ordering::Relaxed);
        self.stats.rows.fetch_add(rows, Ordering::Relaxed);
        self.stats.bytes.fetch_add(bytes, Ordering::Relaxed);
        debug!(commit = %closed.commit_id, group = %closed.group, files = commit.files.len(), rows, bytes, "committed");
        let_go_of_files(closed);
        Answer::Committed
    }

    /// Gives a commit up, and says what the catalog covers so that the roller clips it off next time.
    fn refuse(&mut self, closed: &Arc<ClosedCommit>, cause: Cause, why: &str) -> Answer {
        self.refusals.refuse(closed);
        let covered = match cause {
            Cause::Predecessor => BTreeMap::new(),
            Cause::Overlap => match self.patiently("reading what is covered", |catalog| catalog.coverage()) {
                Ok(coverage) => covered(&coverage),
                Err(error) => return self.fail(format!("reading what is covered: {}", chain(&error))),
            },
        };
        self.stats.refused.fetch_add(1, Ordering::Relaxed);
        warn!(commit = %closed.commit_id, group = %closed.group, why, "commit given up, its deliveries are asked for again");
        let_go_of_files(closed);
        Answer::Refused(Refused { commit: closed.clone(), cause, covered })
    }

    fn fail(&self, message: String) -> Answer {
        self.health.fail(NAME, &message);
        Answer::Failed(message)
    }

    /// Notes which group each topic belongs to. A topic that changed its group is told of, not refused: its rows are safe either way,
    /// but a query over the old index misses them.
    fn bind_topics(&mut self, commit: &Commit) {
        for row in &commit.coverage {
            let topic = &row.partition.topic;
            if self.bound.contains(topic) {
                continue;
            }
            let bound = self.patiently("binding a topic", |catalog| catalog.bind_topic(topic, &commit.group));
            if let Err(error) = bound {
                warn!(topic = %topic.name, group = %commit.group, error = chain(&error), "the topic's group differs from before");
            }
            self.bound.insert(topic.clone());
        }
    }

    fn covered(&mut self, partition: &PartitionKey) -> Answer {
        let now_ms = self.clock.now_ms();
        if self.coverage_read_ms.is_none_or(|read_ms| now_ms - read_ms > COVERAGE_AGE_MAX_MS) {
            match self.catalog.coverage() {
                Ok(coverage) => self.coverage = covered(&coverage),
                Err(error) => return Answer::Failed(chain(&error)),
            }
            self.coverage_read_ms = Some(now_ms);
        }
        Answer::Covered(self.coverage.get(partition).cloned().unwrap_or_default())
    }

    fn announce(&mut self) -> Answer {
        match self.announcer.poll(self.catalog.as_ref(), self.clock.now_ms()) {
            Ok(announcement) => {
                self.stats.indexing_lag_ms.store(announcement.lag_ms, Ordering::Relaxed);
                if !announcement.work.is_empty() {
                    info!(files = announcement.work.len(), waiting = announcement.backlog.files, "files to index");
                }
                Answer::Announced
            }
            Err(error) => {
                warn!(error = chain(&error), "announcing index work failed; it stays in the catalog");
                Answer::Failed(chain(&error))
            }
        }
    }

    fn patiently<T>(&self, doing: &str, call: impl Fn(&dyn Catalog) -> Result<T, Error>) -> Result<T, Error> {
        let mut wait = RETRY_WAIT_MIN;
        loop {
            match call(self.catalog.as_ref()) {
                Err(error) if error.is_retriable() && !self.health.failed() => {
                    self.stats.retries.fetch_add(1, Ordering::Relaxed);
                    warn!(error = chain(&error), doing, "the catalog cannot be reached, trying again");
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(RETRY_WAIT_MAX);
                }
                result => return result,
            }
        }
    }
}

/// Removes the local files of a commit that is settled, one way or the other.
fn let_go_of_files(closed: &ClosedCommit) {
    if let Err(error) = remove_local(closed) {
        warn!(commit = %closed.commit_id, error = chain(&error), "a local file that nobody needs stays until the next start");
    }
}
