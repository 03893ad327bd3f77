//! What a start finds in the write-ahead log and in the catalog: where partitions resume, and what the dedup window remembers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use openwit_operators::catalog_commit::registrar::{Answer, Registrar, Request};
use openwit_operators::coverage::{OffsetSet, PartitionKey};
use openwit_operators::dedup_window::{self, owner, window::Window};
use openwit_operators::kafka_source::consumer::Covered;
use openwit_operators::wal_commit::recovery::{Recovery, merge};

/// Offsets that are durable somewhere: in this process's log, or in the catalog.
pub struct Durable {
    logged: BTreeMap<PartitionKey, OffsetSet>,
    /// The offsets that the dedup window is warmed up from.
    remembered: BTreeMap<PartitionKey, OffsetSet>,
    lost_records: bool,
    catalog: Option<Registrar>,
}

impl Durable {
    /// Joins what the log covers with the catalog, which is asked anew at every assignment: other nodes write to it. A graph may have
    /// neither. Messages as they came are remembered only by a graph that reads them again: keys of others are read back from Kafka.
    pub fn new(log: Option<&Recovery>, catalog: Option<Registrar>, reads_raw: bool) -> Self {
        let logged = log.map(|log| log.coverage.clone()).unwrap_or_default();
        let mut remembered = log.map(|log| if reads_raw { &log.coverage } else { &log.normalized }).cloned().unwrap_or_default();
        if let Some(log) = log.filter(|_| reads_raw) {
            merge(&mut remembered, &log.recalled);
        }
        Durable { logged, remembered, lost_records: log.is_some_and(|log| log.report.lost_records()), catalog }
    }
}

impl Covered for Durable {
    fn covered(&self, partition: &PartitionKey) -> Result<OffsetSet, String> {
        let mut covered = match self.catalog.as_ref().map(|catalog| catalog.ask(Request::Covered(partition.clone()))) {
            None => OffsetSet::default(),
            Some(Some(Answer::Covered(covered))) => covered,
            Some(Some(Answer::Failed(message))) => return Err(message),
            Some(_) => return Err("the catalog's thread has ended".into()),
        };
        for range in self.logged.get(partition).iter().flat_map(|set| set.ranges()) {
            covered.insert(range);
        }
        Ok(covered)
    }

    fn remembered(&self, partition: &PartitionKey) -> OffsetSet {
        self.remembered.get(partition).cloned().unwrap_or_default()
    }

    fn log_lost_records(&self) -> bool {
        self.lost_records
    }
}

/// Warms up one window per worker from the keys that the log, if there is one, remembers.
pub fn warm_windows(
    config: dedup_window::Config,
    workers: usize,
    log: Option<&Recovery>,
) -> Result<Arc<Mutex<Vec<Option<dedup_window::Memory>>>>, String> {
    let per_worker = dedup_window::Config { bytes_max: config.bytes_max / workers.max(1), ..config };
    let mut memories: Vec<_> = (0..workers).map(|_| dedup_window::Memory::new(Window::new(per_worker))).collect();
    for key in log.into_iter().flat_map(Recovery::keys) {
        let key = key.map_err(|error| format!("reading the dedup keys of the write-ahead log: {error}"))?;
        let owner = owner(key.key, workers);
        for (worker, memory) in memories.iter_mut().enumerate() {
            memory.recall(&key, worker == owner).map_err(|error| error.to_string())?;
        }
    }
    memories.iter_mut().for_each(dedup_window::Memory::settle);
    Ok(Arc::new(Mutex::new(memories.into_iter().map(Some).collect())))
}
