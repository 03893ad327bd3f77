//! The janitor of a storage process: a thread that makes a pass every so often, beside the graphs.
//!
//! It touches only what no node counts on, so nothing waits for it and its failures hold nobody up: they are logged, and the next pass
//! begins anew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use opendal::Operator;
use openwit_operators::catalog_commit::Catalog;
use openwit_operators::catalog_commit::janitor::{Config, Pass, ROUTINE, Report};
use openwit_operators::catalog_commit::rebuild::{Error, Stop};
use openwit_operators::clock::Clock;
use openwit_operators::fault::{Health, chain};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{info, warn};

/// Its name in threads and faults.
pub const NAME: &str = "janitor";

/// Findings named one by one in the log of a pass; the command lists all.
const FINDINGS_LOGGED_MAX: usize = 20;

/// What it works with.
pub struct Tools {
    /// The object store.
    pub store: Operator,
    /// The catalog.
    pub catalog: Arc<dyn Catalog>,
    /// Where requests to the store run.
    pub runtime: Handle,
    /// Tells what is old.
    pub clock: Arc<dyn Clock>,
}

/// Starts the thread; it makes its first pass after `interval`, and ends when the sender says so.
pub fn start(
    tools: Tools,
    config: Config,
    interval: Duration,
    health: Health,
) -> std::io::Result<(watch::Sender<bool>, JoinHandle<()>)> {
    let (sender, stop) = Stop::pair();
    let serve = move || {
        // An embedded catalog that panics is damaged: every later call would meet it.
        if catch_unwind(AssertUnwindSafe(|| serve(&tools, &config, interval, &stop))).is_err() {
            health.fail(NAME, "the janitor's thread panicked");
        }
    };
    Ok((sender, std::thread::Builder::new().name(NAME.into()).spawn(serve)?))
}

fn serve(tools: &Tools, config: &Config, interval: Duration, stop: &Stop) {
    let Tools { store, catalog, runtime, clock } = tools;
    loop {
        let is_due = runtime.block_on(async {
            tokio::select! {
                () = stop.came() => false,
                () = tokio::time::sleep(interval) => true,
            }
        });
        if !is_due {
            return;
        }
        let (catalog, now_ms) = (&**catalog, clock.now_ms());
        match (Pass { store, catalog, runtime, config, options: ROUTINE, now_ms, stop }).run() {
            Ok(report) => tell(&report),
            Err(Error::Stopped) => return,
            Err(error) => warn!(error = chain(&error), "the janitor's pass failed; the next one begins anew"),
        }
    }
}

fn tell(report: &Report) {
    let Report { found, removed, expired } = report;
    info!(
        objects = found.objects,
        registered = found.registered,
        restored = found.restored.len(),
        incomplete = found.incomplete.len(),
        removed = removed.len(),
        expired = expired.len(),
        "janitor's pass done"
    );
    for finding in found.findings().take(FINDINGS_LOGGED_MAX) {
        warn!(finding, "the janitor found what needs a person; `openwit-ingest janitor --dry-run` lists all");
    }
}
