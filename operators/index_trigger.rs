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

use crate::catalog_commit::registrar::Request;
use crate::catalog_commit::{Catalog, Error, IndexBacklog, IndexWork, Ports};
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
