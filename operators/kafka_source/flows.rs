//! How each partition flows: what it has in flight, how often and how long it was paused alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::budget::{Lane, Load};
use crate::coverage::PartitionKey;

/// The partitions this process has read, as many as it ever owned. Written by consumers, read by anybody.
#[derive(Debug, Default)]
pub struct Flows(Mutex<BTreeMap<PartitionKey, Entry>>);

#[derive(Debug, Default)]
struct Entry {
    lane: Weak<Lane>,
    pauses: u64,
    resumes: u64,
    paused: Duration,
    paused_since: Option<Instant>,
}

/// One partition's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Times it was paused alone.
    pub pauses: u64,
    /// Times it was resumed. A partition that moves away while it is paused is not.
    pub resumes: u64,
    /// How long it was paused, up to now.
    pub paused_ms: u64,
    /// It is paused now.
    pub is_paused: bool,
    /// What it has in flight.
    pub in_flight: Load,
}

/// All partitions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Times one was paused alone.
    pub pauses: u64,
    /// Times one was resumed.
    pub resumes: u64,
    /// How long they were paused, added up.
    pub paused_ms: u64,
    /// How many are paused now.
    pub paused_now: usize,
}

impl Flows {
    /// A partition is read from now on.
    pub fn begin(&self, partition: &PartitionKey, lane: &Arc<Lane>) {
        self.lock().entry(partition.clone()).or_default().lane = Arc::downgrade(lane);
    }

    /// It is paused alone.
    pub fn note_pause(&self, partition: &PartitionKey) {
        let mut entries = self.lock();
        let entry = entries.entry(partition.clone()).or_default();
        // One that waits for its share and for a quota is paused once.
        if entry.paused_since.is_none() {
            entry.pauses += 1;
            entry.paused_since = Some(Instant::now());
        }
    }

    /// It is resumed.
    pub fn note_resume(&self, partition: &PartitionKey) {
        let mut entries = self.lock();
        let entry = entries.entry(partition.clone()).or_default();
        entry.resumes += 1;
        entry.end_pause();
    }

    /// It belongs to somebody else.
    pub fn end(&self, partition: &PartitionKey) {
        if let Some(entry) = self.lock().get_mut(partition) {
            entry.end_pause();
        }
    }

    /// Partition by partition.
    pub fn partitions(&self) -> BTreeMap<PartitionKey, Flow> {
        self.lock().iter().map(|(partition, entry)| (partition.clone(), entry.flow())).collect()
    }

    /// All together.
    pub fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for flow in self.lock().values().map(Entry::flow) {
            sum.pauses += flow.pauses;
            sum.resumes += flow.resumes;
            sum.paused_ms += flow.paused_ms;
            sum.paused_now += usize::from(flow.is_paused);
        }
        sum
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PartitionKey, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn end_pause(&mut self) {
        self.paused += self.paused_since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    fn flow(&self) -> Flow {
        let running = self.paused_since.map_or(Duration::ZERO, |since| since.elapsed());
        Flow {
            pauses: self.pauses,
            resumes: self.resumes,
            paused_ms: (self.paused + running).as_millis() as u64,
            is_paused: self.paused_since.is_some(),
            in_flight: self.lane.upgrade().map_or(Load::default(), |lane| lane.in_flight()),
        }
    }
}
