//! Faults: how an operator that cannot go on says so (design D-7).
//!
//! An operator that fails keeps its capabilities, raises a fault here, and returns. The first fault wins, every worker is woken, the
//! process ends with its message. Nothing repairs a running dataflow: the write-ahead log makes a restart cheap.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use futures::FutureExt;

/// What stopped the graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{stage}: {message}")]
pub struct Fault {
    /// The operator that failed, by its `NAME`.
    pub stage: &'static str,
    /// What was being done, to which epoch, path or offsets, and why it failed.
    pub message: String,
    /// True if a new start of the graph from its write-ahead log cures it: a peer that lost what it had not published, say.
    pub is_curable: bool,
}

/// An error with all its causes, for a fault or a log line: our errors do not repeat their cause in their own text.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// Shared by all workers and helper threads of a process.
#[derive(Clone, Default)]
pub struct Health(Arc<Inner>);

#[derive(Default)]
struct Inner {
    failed: AtomicBool,
    stopping: AtomicBool,
    fault: Mutex<Option<Fault>>,
    workers: Mutex<Vec<Thread>>,
    wakers: Mutex<Vec<Box<dyn Fn() + Send>>>,
}

impl Health {
    /// Raises a fault. Only the first is kept; all workers are woken to leave their step loops.
    pub fn fail(&self, stage: &'static str, message: impl std::fmt::Display) {
        self.raise(Fault { stage, message: message.to_string(), is_curable: false });
    }

    /// Raises a fault that a new start of the graph from its write-ahead log cures.
    pub fn fail_curable(&self, stage: &'static str, message: impl std::fmt::Display) {
        self.raise(Fault { stage, message: message.to_string(), is_curable: true });
    }

    fn raise(&self, fault: Fault) {
        lock(&self.0.fault).get_or_insert(fault);
        self.0.failed.store(true, Ordering::Release);
        self.wake_all();
    }

    /// The task `work` of a stage, for the I/O runtime. If it panics, that is a fault: its operator would wait for it for ever.
    pub async fn watch(self, stage: &'static str, work: impl Future<Output = ()>) {
        if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
            self.fail(stage, format!("an I/O task panicked: {}", panic_text(panic.as_ref())));
        }
    }

    /// True once a fault was raised.
    pub fn failed(&self) -> bool {
        self.0.failed.load(Ordering::Acquire)
    }

    /// The first fault raised.
    pub fn fault(&self) -> Option<Fault> {
        lock(&self.0.fault).clone()
    }

    /// Asks the sources to close: they stop reading, drain to the empty frontier and commit.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.wake_all();
    }

    /// True once `stop` was called.
    pub fn stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }

    /// Registers the calling thread as a worker to unpark when something happened.
    pub fn register_worker(&self) {
        lock(&self.0.workers).push(std::thread::current());
    }

    /// Registers a function that schedules an operator when something happened.
    pub fn on_wake(&self, wake: impl Fn() + Send + 'static) {
        lock(&self.0.wakers).push(Box::new(wake));
    }

    fn wake_all(&self) {
        for wake in lock(&self.0.wakers).iter() {
            wake();
        }
        for worker in lock(&self.0.workers).iter() {
            worker.unpark();
        }
    }
}

/// A poisoned lock here means that a thread panicked while raising a fault: what it guards is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_fault_wins_and_wakes_everybody() {
        let health = Health::default();
        let woken = Arc::new(AtomicBool::new(false));
        let flag = woken.clone();
        health.on_wake(move || flag.store(true, Ordering::Release));
        health.fail("wal_commit", "no space left on device");
        health.fail("flight_sink", "connection refused");
        assert!(health.failed() && woken.load(Ordering::Acquire));
        assert_eq!(health.fault().map(|fault| fault.to_string()), Some("wal_commit: no space left on device".into()));
    }

    #[tokio::test]
    async fn an_io_task_that_panics_raises_a_fault() {
        let health = Health::default();
        tokio::spawn(health.clone().watch("object_upload", async {})).await.unwrap();
        assert!(!health.failed());
        let number = 7;
        tokio::spawn(health.clone().watch("object_upload", async move { panic!("as staged: {number}") })).await.unwrap();
        let expected = "object_upload: an I/O task panicked: as staged: 7";
        assert_eq!(health.fault().map(|fault| fault.to_string()), Some(expected.into()));
    }
}
