//! The thread that looks whether the file of the producers' tokens has changed. One for a process, over all starts of its graphs.
//!
//! Its failures hold nobody up: a file that cannot be used is told once, as an error, and the tokens before it stay good.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use openwit_operators::clock::Clock;
use openwit_operators::tokens::{File, Replaced, Store, reload};
use tracing::{error, info};

/// Its name in threads.
pub const NAME: &str = "tokens";

/// The tokens of a process and where new ones come from.
#[derive(Clone, Debug)]
pub struct Reload {
    /// The tokens that are good.
    pub store: Arc<Store>,
    /// The file.
    pub file: Arc<dyn File>,
    /// Time between two looks.
    pub interval: Duration,
}

/// The thread. Dropping it ends it.
pub struct Reloader {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Reloader {
    /// Starts it; its first look is at once, for the file may have changed since it was read.
    pub fn start(config: Reload, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let serve = move || {
            loop {
                look(&config, clock.now_ms());
                if stopped.recv_timeout(config.interval) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name(NAME.into()).spawn(serve)?;
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

fn look(config: &Reload, now_ms: u64) {
    let Reload { store, file, .. } = config;
    let looked = catch_unwind(AssertUnwindSafe(|| reload(&**file, store, now_ms)));
    match looked.unwrap_or_else(|_| Some(Err("reading it panicked".to_owned()))) {
        None => {}
        Some(Ok(Replaced { added, changed, removed })) => info!(?added, ?changed, ?removed, "the token file was read anew"),
        Some(Err(problems)) => error!(problems, "the new token file is refused, the tokens before it stay good"),
    }
}
