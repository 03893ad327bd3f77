//! The threads that look whether a file has changed: that of the producers' tokens, that of the quotas. They outlive the graphs.
//!
//! Their failures hold nobody up: a file that cannot be used is told once, as an error, and what was good before it stays so.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use openwit_operators::clock::Clock;
use openwit_operators::quota::{Quotas, Rules};
use openwit_operators::reload::File;
use openwit_operators::tokens::{Replaced, Store, Token, reload};
use tracing::{error, info};

/// What a file is read into, again when it changes.
pub trait Watched: Send + Sync + Debug + 'static {
    /// What is in the file, in a word: the thread's name.
    fn name(&self) -> &'static str;

    /// Time between two looks.
    fn interval(&self) -> Duration;

    /// One look: what changed and counts from now on, or all that is wrong with it; `None` if it is as it was.
    fn look(&self, now_ms: u64) -> Option<Result<String, String>>;
}

/// The tokens of a process and where new ones come from.
#[derive(Clone, Debug)]
pub struct TokenReload {
    /// The tokens that are good.
    pub store: Arc<Store>,
    /// The file.
    pub file: Arc<dyn File<Vec<Token>>>,
    /// Time between two looks.
    pub interval: Duration,
}

impl Watched for TokenReload {
    fn name(&self) -> &'static str {
        "tokens"
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    fn look(&self, now_ms: u64) -> Option<Result<String, String>> {
        let tell =
            |Replaced { added, changed, removed }: Replaced| format!("added {added:?}, changed {changed:?}, removed {removed:?}");
        Some(reload(&*self.file, &self.store, now_ms)?.map(tell))
    }
}

/// The quotas of a process and where new ones come from.
#[derive(Clone, Debug)]
pub struct QuotaReload {
    /// The accounts.
    pub quotas: Arc<Quotas>,
    /// The file.
    pub file: Arc<dyn File<Rules>>,
    /// Time between two looks.
    pub interval: Duration,
}

impl Watched for QuotaReload {
    fn name(&self) -> &'static str {
        "quotas"
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    fn look(&self, _: u64) -> Option<Result<String, String>> {
        let replace = |rules: Rules| {
            let told =
                format!("{} tenants, {} topics, default: {}", rules.tenants.len(), rules.topics.len(), rules.default.is_some());
            self.quotas.replace(rules);
            told
        };
        Some(self.file.changed()?.map(replace))
    }
}

/// The thread. Dropping it ends it.
pub struct Reloader {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Reloader {
    /// Starts it; its first look is at once, for the file may have changed since it was read.
    pub fn start(watched: impl Watched, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let name = watched.name();
        let serve = move || {
            loop {
                look(&watched, clock.now_ms());
                if stopped.recv_timeout(watched.interval()) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(serve)?;
        Ok(Reloader { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Reloader {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It catches what panics.
            let _ = thread.join();
        }
    }
}

fn look(watched: &impl Watched, now_ms: u64) {
    let file = watched.name();
    let looked = catch_unwind(AssertUnwindSafe(|| watched.look(now_ms)));
    match looked.unwrap_or_else(|_| Some(Err("reading it panicked".to_owned()))) {
        None => {}
        Some(Ok(changes)) => info!(file, changes, "the file was read anew"),
        Some(Err(problems)) => error!(file, problems, "the new file is refused, what was good before it stays so"),
    }
}
