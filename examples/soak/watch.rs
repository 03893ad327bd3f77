//! Watches the catalog while everything else is hit: how far publication is behind, and how long it ever stood still.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use openwit_graphs::catalog::{self, Location};
use openwit_operators::catalog_commit::Catalog;
use serde::Serialize;

use crate::load::Progress;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// What was seen.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Seen {
    /// The longest time in which nothing was published though something waited, in seconds.
    pub longest_standstill_seconds: f64,
    /// Most messages that were in Kafka and not published.
    pub lag_max_messages: u64,
}

/// A thread that looks.
pub struct Watch {
    published: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Watch {
    /// Begins to watch.
    pub fn start(location: Location, progress: Arc<Progress>) -> Self {
        let published = Arc::new(AtomicU64::new(0));
        let is_over = Arc::new(AtomicBool::new(false));
        let watched = (published.clone(), is_over.clone());
        let thread = std::thread::spawn(move || watch(&location, &progress, &watched.0, &watched.1));
        Watch { published, is_over, thread }
    }

    /// Messages that are accounted for in the catalog, as of the last look.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Ends the watch.
    pub fn finish(self) -> anyhow::Result<Seen> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that watches the catalog panicked"))
    }
}

fn watch(location: &Location, progress: &Progress, published: &AtomicU64, is_over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut open: Option<Box<dyn Catalog>> = None;
    let mut moved = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        let sent = progress.acknowledged.load(Ordering::Relaxed);
        // PostgreSQL is one of the victims: what cannot be read now is read at the next look.
        open = open.or_else(|| catalog::open(location).ok());
        if let Some(covered) = open.as_ref().and_then(|catalog| covered(catalog.as_ref())) {
            if covered > published.swap(covered, Ordering::Relaxed) || covered >= sent {
                moved = Instant::now();
            }
            seen.lag_max_messages = seen.lag_max_messages.max(sent.saturating_sub(covered));
        }
        seen.longest_standstill_seconds = seen.longest_standstill_seconds.max(moved.elapsed().as_secs_f64());
        std::thread::sleep(INTERVAL);
    }
    seen
}

fn covered(catalog: &dyn Catalog) -> Option<u64> {
    let coverage = catalog.coverage().ok()?;
    Some(coverage.values().flatten().map(|row| row.range.end.abs_diff(row.range.start)).sum())
}
