//! What stages have beyond a dataflow: things that their operators on all workers share, and counters that outlive a restart.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

type Shared = Arc<dyn Any + Send + Sync>;

/// Something that a stage has opened, and how it is closed once its operators are gone.
#[derive(Clone)]
pub struct Held {
    value: Shared,
    close: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Held {
    /// Something that needs no closing.
    pub fn new(value: impl Any + Send + Sync) -> Self {
        Held { value: Arc::new(value), close: None }
    }

    /// The same, which is closed so.
    pub fn closed_by(self, close: impl Fn() + Send + Sync + 'static) -> Self {
        Held { close: Some(Arc::new(close)), ..self }
    }

    /// The same, with a thread that ends when nobody has it any more.
    pub fn served_by(self, thread: JoinHandle<()>) -> Self {
        let thread = Mutex::new(Some(thread));
        self.closed_by(move || {
            if let Some(thread) = lock(&thread).take() {
                // A panic of it has raised a fault already.
                let _ = thread.join();
            }
        })
    }

    /// What was opened, where it is of this type.
    pub fn value<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.value.clone().downcast().ok()
    }

    /// Lets go of it and closes it. Nobody else may have it by then.
    pub fn close(self) {
        drop(self.value);
        if let Some(close) = self.close {
            close();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counters of an operator that a graph can have several of.
pub trait Counts: Default + Send + Sync + 'static {
    /// Each with its name, as summaries tell it.
    fn counts(&self) -> Vec<(&'static str, u64)>;
}

struct Kept {
    stats: Shared,
    read: fn(&Shared) -> Vec<(&'static str, u64)>,
}

/// The counters of such stages, by their names.
#[derive(Default)]
pub struct StageStats {
    stages: Mutex<BTreeMap<String, Kept>>,
}

impl StageStats {
    /// Those of a stage: the same at every start.
    pub fn of<S: Counts>(&self, stage: &str) -> Arc<S> {
        let mut stages = lock(&self.stages);
        if let Some(stats) = stages.get(stage).and_then(|kept| kept.stats.clone().downcast().ok()) {
            return stats;
        }
        let stats = Arc::new(S::default());
        let read = |stats: &Shared| stats.downcast_ref::<S>().map(Counts::counts).unwrap_or_default();
        stages.insert(stage.to_owned(), Kept { stats: stats.clone(), read });
        stats
    }

    /// What all of them say now.
    pub fn counts(&self) -> BTreeMap<String, BTreeMap<&'static str, u64>> {
        let stages = lock(&self.stages);
        stages.iter().map(|(stage, kept)| (stage.clone(), (kept.read)(&kept.stats).into_iter().collect())).collect()
    }
}
