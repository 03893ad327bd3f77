//! `index_trigger`: tells indexers that there are new files.
//!
//! # In
//! Commits that are in the catalog. Their index work was enqueued by the commit's own transaction, so none is ever forgotten.
//!
//! # Out
//! Nothing in the dataflow. In PostgreSQL the transaction itself notifies channel `openwit_index`; here pending work is announced to
//! whoever listens in this process (the embedded catalog's consumers), and the backlog is measured.
//!
//! # Holds
//! The ids of at most `announced_max` files announced and not yet done.
//!
//! # Closes when
//! Each poll by itself; polling is driven by commits and a timer.
//!
//! # Fails when
//! The catalog cannot be read. Files are published by then, so the shell warns and tries again; it never holds anything up.
//!
//! # Invariants
//! - Work stays in the catalog until `index_done`: an announcement may be lost or repeated, work may not.
//! - Within one process a file is announced once, and again only after `repeat_after_ms`.

use std::collections::BTreeMap;
use std::sync::Arc;

use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use ulid::Ulid;

use crate::catalog_commit::registrar::{Registrar, Request};
use crate::catalog_commit::{Catalog, Error, IndexBacklog, IndexWork};
use crate::epoch::Epoch;
use crate::parquet_roll::ClosedCommit;

/// The operator's name in config, metrics and faults.
pub const NAME: &str = "index_trigger";

/// How index work is announced.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Files announced and not done that are kept in mind; the oldest come first, later ones wait in the catalog.
    pub announced_max: usize,
    /// A file not done for this long is announced again: its indexer may have died.
    pub repeat_after_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { announced_max: 1_000, repeat_after_ms: 300_000 }
    }
}

/// What a poll found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Work to announce now.
    pub work: Vec<IndexWork>,
    /// All work waiting.
    pub backlog: IndexBacklog,
    /// Age of the oldest waiting file.
    pub lag_ms: u64,
}

/// The core: remembers what was announced.
#[derive(Debug)]
pub struct Announcer {
    config: Config,
    /// When each file was last announced.
    announced_ms: BTreeMap<Ulid, u64>,
}

impl Announcer {
    /// An announcer that has announced nothing yet.
    pub fn new(config: Config) -> Self {
        Announcer { config, announced_ms: BTreeMap::new() }
    }

    /// Looks for work that should be announced.
    pub fn poll(&mut self, catalog: &dyn Catalog, now_ms: u64) -> Result<Announcement, Error> {
        let pending = catalog.index_pending(self.config.announced_max)?;
        let backlog = catalog.index_backlog()?;
        let lag_ms = backlog.oldest_ms.map_or(0, |oldest| now_ms.saturating_sub(oldest));
        Ok(Announcement { work: self.select(pending, now_ms), backlog, lag_ms })
    }

    /// Of the oldest pending work, what was not announced lately. Work no longer pending is forgotten.
    fn select(&mut self, pending: Vec<IndexWork>, now_ms: u64) -> Vec<IndexWork> {
        let before = std::mem::take(&mut self.announced_ms);
        let mut due = Vec::new();
        for work in pending {
            let last = before.get(&work.file).copied().filter(|last| now_ms.saturating_sub(*last) < self.config.repeat_after_ms);
            self.announced_ms.insert(work.file, last.unwrap_or(now_ms));
            if last.is_none() {
                due.push(work);
            }
        }
        due
    }
}

/// The oldest pending work as lines for a person: file, group, age and path.
pub fn inspect(catalog: &dyn Catalog, limit: usize, now_ms: u64) -> Result<Vec<String>, Error> {
    let line = |work: IndexWork| {
        let age_ms = now_ms.saturating_sub(work.file.timestamp_ms());
        format!("{} {} {}.{:03}s {}", work.file.to_string(), work.group, age_ms / 1_000, age_ms % 1_000, work.path)
    };
    Ok(catalog.index_pending(limit)?.into_iter().map(line).collect())
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The catalog's thread.
    pub registrar: Registrar,
}

/// Has pending index work announced after commits. The work itself is in the catalog already, so nothing waits for the announcement.
pub fn index_trigger(stream: Stream<'_, Epoch, Vec<Arc<ClosedCommit>>>, ports: Ports) {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let mut counter = ports.registrar.counter(scope.worker().sync_activator_for(address.to_vec()));
    let mut input = builder.new_input(stream, Pipeline);
    builder.build(move |_capabilities| {
        move |_frontiers| {
            // 1. Ask once for all commits that are there.
            let mut has_news = false;
            input.for_each(|_capability, commits| {
                has_news |= !commits.is_empty();
                commits.clear();
            });
            if has_news {
                counter.request(Request::Announce);
            }
            // 2. The registrar has reported what came of it.
            while counter.answer().is_some() {}
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Group, Signal};
    use crate::catalog_commit::sled_catalog::SledCatalog;
    use crate::catalog_commit::{Commit, FileRow};
    use crate::coverage::{Dispositions, PartitionKey, TopicKey};
    use crate::parquet_roll::{CoverageRow, Day};

    /// One file, begun at `begun_ms`.
    fn commit(catalog: &SledCatalog, begun_ms: u64) -> Ulid {
        let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
        let partition = PartitionKey { topic: Arc::new(topic), partition: 0 };
        let range = begun_ms as i64..begun_ms as i64 + 1;
        let dispositions = Dispositions { stored: 1, ..Dispositions::default() };
        let group = Group { index: "orders".into(), signal: Signal::Logs };
        let file = FileRow {
            file: Ulid::from_parts(begun_ms, 1),
            commit_id: Ulid::from_parts(begun_ms, 0),
            group: group.clone(),
            node: "node".into(),
            path: format!("{begun_ms}.parquet"),
            uri: None,
            day: Day(1),
            rows: 1,
            bytes: 1,
            time_min_ns: None,
            time_max_ns: None,
            schema_hash: "".into(),
            schema_version: 0,
        };
        let id = file.file;
        let coverage = vec![CoverageRow { partition, range, dispositions, rows: 1, kafka_time_max_ms: None }];
        catalog.commit(&Commit { commit_id: file.commit_id, group, node: "node".into(), files: vec![file], coverage }).unwrap();
        id
    }

    #[test]
    fn work_is_announced_once_and_again_when_nobody_did_it() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = SledCatalog::open(folder.path()).unwrap();
        let mut announcer = Announcer::new(Config { announced_max: 2, repeat_after_ms: 100 });
        let mut poll = |now_ms| {
            let found = announcer.poll(&catalog, now_ms).unwrap();
            (found.work.into_iter().map(|work| work.file).collect::<Vec<_>>(), found.backlog.files, found.lag_ms)
        };
        assert_eq!(poll(1_000), (vec![], 0, 0));
        let (first, second, third) = (commit(&catalog, 10), commit(&catalog, 20), commit(&catalog, 30));
        assert_eq!(poll(1_000), (vec![first, second], 3, 990), "the oldest, as many as allowed");
        assert_eq!(poll(1_050), (vec![], 3, 1_040));
        assert!(catalog.index_done(first).unwrap());
        assert_eq!(poll(1_060), (vec![third], 2, 1_040), "room for the next");
        assert_eq!(poll(1_100), (vec![second], 2, 1_080), "not done in time");
        assert_eq!(poll(0), (vec![], 2, 0), "a clock that steps back harms nothing");
        let lines = inspect(&catalog, 1, 2_345).unwrap();
        assert_eq!(lines, [format!("{} orders/logs 2.325s 20.parquet", second.to_string())]);
    }
}
