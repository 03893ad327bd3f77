//! Keeps catalog and object store tidy: what was lost is registered again, what is nobody's is removed, what is old is removed.
//!
//! ```text
//! 1. retention   retire in the catalog > remove the object > forget the row      a crash in between is completed by the next pass
//! 2. reconcile   see `rebuild`: registers, restores, reports
//! 3. leftovers   abandon the commit in the catalog > remove its objects
//! ```
//! Objects of a commit that was never finished are removed only when the youngest of them is older than the grace period, and only after
//! the catalog refuses the commit for good. So a node that was away for days, and comes back to finish its upload, is told so and gets
//! its rows delivered again; it cannot publish a commit whose first files are gone.
//!
//! Pure but for the object store and the catalog; time and configuration are handed in. Any number of janitors may run at once.

use futures::StreamExt;
use opendal::Operator;
use serde::Serialize;
use tokio::runtime::Handle;

use super::rebuild::{self, Depth, Error, Leftover, Options, Stop};
use super::{Catalog, FileFilter, FileRow, Standing};
use crate::parquet_roll::Day;

#[cfg(test)]
mod tests;

const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// Files retired at once: what a crash leaves to the next pass.
const BATCH_FILES: usize = 1_000;
/// Objects removed in parallel.
const CONCURRENT: usize = 16;

/// What is tidied.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder in the object store below which all groups lie.
    pub prefix: String,
    /// How old the objects of a commit must be that was never finished.
    pub grace_ms: u64,
    /// Files all of whose rows are of days before the last so many go; `None` keeps them.
    pub retention_days: Option<u32>,
}

/// What was found and done; in a rehearsal, what would be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Between catalog and object store.
    #[serde(flatten)]
    pub found: rebuild::Report,
    /// Objects of never finished commits that were removed.
    pub removed: Vec<String>,
    /// Files that retention removed.
    pub expired: Vec<String>,
}

/// One pass.
pub struct Pass<'a> {
    /// The object store.
    pub store: &'a Operator,
    /// The catalog.
    pub catalog: &'a dyn Catalog,
    /// Where requests to the store run; the caller must not be a part of it.
    pub runtime: &'a Handle,
    /// What is tidied.
    pub config: &'a Config,
    /// How thoroughly, and whether anything is changed.
    pub options: Options,
    /// Unix time in milliseconds.
    pub now_ms: u64,
    /// Ends the pass early.
    pub stop: &'a Stop,
}

impl Pass<'_> {
    /// Goes through all three steps.
    pub fn run(&self) -> Result<Report, Error> {
        let expired = self.expire()?;
        let Pass { store, catalog, runtime, config, options, stop, .. } = *self;
        let found = rebuild::reconcile(store, &config.prefix, catalog, runtime, options, stop)?;
        let removed = self.remove_leftovers(&found)?;
        Ok(Report { found, removed, expired })
    }

    /// Removes files all of whose rows are too old, and completes what a pass before began.
    fn expire(&self) -> Result<Vec<String>, Error> {
        let mut expired = Vec::new();
        if !self.options.is_rehearsal {
            self.remove_retired(&mut expired)?;
        }
        let Some(days) = self.config.retention_days else { return Ok(expired) };
        let today = i32::try_from(self.now_ms / DAY_MS).unwrap_or(i32::MAX);
        let before = Day(today.saturating_sub(i32::try_from(days).unwrap_or(i32::MAX)));
        let mut filter = FileFilter { before: Some(before), limit: Some(BATCH_FILES), ..FileFilter::default() };
        loop {
            let page = self.catalog.files(&filter)?;
            let Some(last) = page.last() else { return Ok(expired) };
            filter.after = Some(last.file);
            // Undated rows have no age.
            let old: Vec<FileRow> = page.into_iter().filter(|file| file.day != Day::UNDATED).collect();
            if self.options.is_rehearsal {
                expired.extend(old.into_iter().map(|file| file.path));
                continue;
            }
            self.catalog.retire_files(&old.iter().map(|file| file.file).collect::<Vec<_>>())?;
            self.remove_retired(&mut expired)?;
        }
    }

    /// Objects first, rows after: a crash leaves rows whose object may be gone, which this finds again, and never an object that no row
    /// names.
    fn remove_retired(&self, expired: &mut Vec<String>) -> Result<(), Error> {
        loop {
            let retired = self.catalog.retired_files(BATCH_FILES)?;
            if retired.is_empty() {
                return Ok(());
            }
            let paths: Vec<String> = retired.iter().map(|file| file.path.clone()).collect();
            self.remove_objects(&paths)?;
            self.catalog.remove_files(&retired.iter().map(|file| file.file).collect::<Vec<_>>())?;
            expired.extend(paths);
        }
    }

    fn remove_leftovers(&self, found: &rebuild::Report) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        let is_old = |leftover: &&Leftover| leftover.modified_ms.saturating_add(self.config.grace_ms) <= self.now_ms;
        let given_up = found.incomplete.iter().chain(&found.superseded).filter(is_old);
        for leftover in given_up.chain(&found.abandoned) {
            let Leftover { commit_id, group, node, paths, .. } = leftover;
            if !self.options.is_rehearsal {
                // Its node may have finished it since it was looked at.
                if self.catalog.abandon(*commit_id, group, node)? != Standing::Abandoned {
                    continue;
                }
                self.remove_objects(paths)?;
            }
            removed.extend(paths.iter().cloned());
        }
        Ok(removed)
    }

    fn remove_objects(&self, paths: &[String]) -> Result<(), Error> {
        let remove = |path: &String| {
            let path = path.clone();
            async move {
                let removed = self.store.delete(&path).await;
                removed.map_err(|source| Error::Object { doing: "remove", path, source: Box::new(source) })
            }
        };
        let requests: Vec<_> = paths.iter().map(remove).collect();
        self.stop.or(self.runtime, async {
            let done: Vec<_> = futures::stream::iter(requests).buffer_unordered(CONCURRENT).collect().await;
            done.into_iter().collect()
        })
    }
}

/// The options of a pass beside running nodes.
pub const ROUTINE: Options = Options { depth: Depth::Unknown, is_rehearsal: false };
