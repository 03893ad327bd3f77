//! Partitions that are paused until their messages' tenants and topics owe nothing any more (`quota`).
//!
//! A partition that carries several tenants' messages waits for the slowest. What is in flight goes its way meanwhile, and is charged: so
//! a debt may be as large as a partition's share of the buffer, and over time the rate is what the quota says.

use std::collections::BTreeMap;

use super::Thread;
use crate::coverage::PartitionKey;
use crate::quota::Debtors;

/// The partitions of one consumer that wait.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// What of the quotas' news was seen.
    seen: u64,
    waiting: BTreeMap<PartitionKey, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    debtors: Debtors,
    since_ms: u64,
}

impl Throttle {
    /// True if the partition waits.
    pub fn waits(&self, partition: &PartitionKey) -> bool {
        self.waiting.contains_key(partition)
    }

    /// Forgets a partition that is given up.
    pub fn forget(&mut self, partition: &PartitionKey, now_ms: u64) {
        if let Some(waiting) = self.waiting.remove(partition) {
            waiting.end(now_ms);
        }
    }

    fn add(&mut self, partition: &PartitionKey, debtors: Debtors, now_ms: u64) {
        let waiting = self.waiting.entry(partition.clone()).or_insert_with(|| Waiting { debtors: Vec::new(), since_ms: now_ms });
        for debtor in debtors {
            if !waiting.debtors.iter().any(|known| std::sync::Arc::ptr_eq(known, &debtor)) {
                debtor.note_pause();
                waiting.debtors.push(debtor);
            }
        }
    }

    fn take_repaid(&mut self, now_ms: u64) -> Vec<PartitionKey> {
        let is_repaid = |waiting: &Waiting| waiting.debtors.iter().all(|debtor| debtor.wait_ms(now_ms) == 0);
        let repaid: Vec<_> = self.waiting.extract_if(.., |_, waiting| is_repaid(waiting)).collect();
        let end = |(partition, waiting): (PartitionKey, Waiting)| {
            waiting.end(now_ms);
            partition
        };
        repaid.into_iter().map(end).collect()
    }
}

impl Waiting {
    fn end(self, now_ms: u64) {
        self.debtors.iter().for_each(|debtor| debtor.note_resume(now_ms.saturating_sub(self.since_ms)));
    }
}

impl<W: Fn()> Thread<W> {
    /// Pauses the partitions whose tenant or topic owes something, and resumes those whose debts are repaid.
    pub(super) fn obey_quotas(&mut self) {
        let Some(quotas) = self.ports.quotas.clone() else { return };
        let news = quotas.news();
        if news == self.throttle.seen && self.throttle.waiting.is_empty() {
            return;
        }
        let now_ms = self.ports.clock.now_ms();
        if news != self.throttle.seen {
            self.throttle.seen = news;
            for (partition, debtors) in quotas.take_held_back(|partition| self.collector_of(partition).is_some(), now_ms) {
                let waits = self.waits_for_itself(&partition);
                self.throttle.add(&partition, debtors, now_ms);
                if !waits {
                    self.close_batch_of(&partition);
                    self.pause_alone(&partition);
                }
            }
        }
        let repaid = self.throttle.take_repaid(now_ms);
        self.resume_alone(&repaid);
    }
}
