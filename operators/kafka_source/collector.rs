//! Collects the messages of one partition into a `RawBatch`.

use std::sync::Arc;

use crate::batch::{RawBatch, RawRecord, Span, push_header};
use crate::budget::{Lane, Load};
use crate::coverage::PartitionKey;

use super::pool::ArenaPool;

/// When a batch closes, whichever comes first.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Messages in a batch.
    pub records_max: usize,
    /// Arena bytes in a batch; a single larger message closes its batch alone.
    pub bytes_max: usize,
    /// Age of the oldest message in a batch, in milliseconds.
    pub timeout_ms: u64,
}

/// One message as the client hands it out, borrowed.
pub struct Message<'a> {
    /// The message's offset.
    pub offset: i64,
    /// Unix milliseconds, -1 where there is none.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The payload; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
}

/// The open batch of one partition. Messages in it hold no epoch and are not committed.
#[derive(Debug)]
pub struct Collector {
    partition: PartitionKey,
    lane: Arc<Lane>,
    /// Where the first batch's coverage starts.
    first: i64,
    /// Where the next batch's coverage starts: the end of the last one.
    start: i64,
    /// One past the last message collected; `start` when empty.
    next: i64,
    arena: Vec<u8>,
    records: Vec<RawRecord>,
    opened_at_ms: u64,
}

impl Collector {
    /// A collector for `partition`, whose first batch accounts for offsets from `start` on. Its batches are charged to `lane`.
    pub fn new(partition: PartitionKey, start: i64, lane: Arc<Lane>) -> Self {
        Collector { partition, lane, first: start, start, next: start, arena: Vec::new(), records: Vec::new(), opened_at_ms: 0 }
    }

    /// The partition.
    pub fn partition(&self) -> &PartitionKey {
        &self.partition
    }

    /// The partition's part of the budget.
    pub fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// What the open batch holds.
    pub fn open(&self) -> Load {
        Load { bytes: self.arena.len(), messages: self.records.len() }
    }

    /// The partition, and the offsets that closed batches account for.
    pub fn emitted(&self) -> (&PartitionKey, std::ops::Range<i64>) {
        (&self.partition, self.first..self.start)
    }

    /// One past the last message seen.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// Adds a message, with its headers; and returns the bytes added; `None` if it lies below the position (a redelivery).
    pub fn push<'h>(
        &mut self,
        message: &Message<'_>,
        headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)>,
        pool: &ArenaPool,
        now_ms: u64,
    ) -> Option<usize> {
        if message.offset < self.next {
            return None;
        }
        if self.records.is_empty() {
            self.opened_at_ms = now_ms;
            self.arena = pool.take();
        }
        let before = self.arena.len();
        let key = message.key.map(|key| append(&mut self.arena, key));
        let payload = message.payload.map(|payload| append(&mut self.arena, payload));
        let headers_start = self.arena.len();
        for (name, value) in headers {
            push_header(&mut self.arena, name, value);
        }
        let headers = Span { start: headers_start as u32, len: (self.arena.len() - headers_start) as u32 };
        self.records.push(RawRecord { offset: message.offset, timestamp_ms: message.timestamp_ms, key, payload, headers });
        self.next = message.offset + 1;
        Some(self.arena.len() - before)
    }

    /// Goes on at `offset`: what lies between is accounted for by no batch. Only while no batch is open.
    pub fn skip_to(&mut self, offset: i64) {
        debug_assert!(self.records.is_empty() && self.next <= offset, "{}: {} to {offset}", self.partition, self.next);
        (self.start, self.next) = (offset, offset);
    }

    /// True if the batch has reached its size.
    pub fn is_full(&self, limits: &BatchLimits) -> bool {
        self.records.len() >= limits.records_max || self.arena.len() >= limits.bytes_max
    }

    /// When the open batch times out, in Unix milliseconds; `None` if nothing is collected.
    pub fn deadline_ms(&self, limits: &BatchLimits) -> Option<u64> {
        (!self.records.is_empty()).then(|| self.opened_at_ms + limits.timeout_ms)
    }

    /// Closes the open batch, if it has a message. It takes over what the budget has counted for its messages.
    pub fn close(&mut self, pool: &ArenaPool) -> Option<RawBatch> {
        if self.records.is_empty() {
            return None;
        }
        let capacity = self.records.len();
        let records = std::mem::replace(&mut self.records, Vec::with_capacity(capacity));
        let charge = self.lane.seal(Load { bytes: self.arena.len(), messages: records.len() });
        let arena = pool.seal(std::mem::take(&mut self.arena));
        let start = std::mem::replace(&mut self.start, self.next);
        Some(RawBatch {
            partition: self.partition.clone(),
            start,
            end: self.next,
            arena,
            records,
            polled_ms: self.opened_at_ms,
            charge,
        })
    }
}

fn append(arena: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let start = arena.len() as u32;
    arena.extend_from_slice(bytes);
    Span { start, len: bytes.len() as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::coverage::TopicKey;

    fn message(offset: i64, payload: &[u8]) -> Message<'_> {
        Message { offset, timestamp_ms: 1, key: None, payload: Some(payload) }
    }

    #[test]
    fn batches_account_for_every_offset_from_one_end_to_the_next() {
        let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
        let partition = PartitionKey { topic: topic.into(), partition: 0 };
        let budget = Budget::new(Load { bytes: 1_000, messages: 100 });
        let mut collector = Collector::new(partition.clone(), 10, budget.lane(&partition));
        let pool = ArenaPool::new(2, 64, false);
        // As the consumer does for each message.
        (0..3).for_each(|_| budget.collect(Load { bytes: 10, messages: 1 }));
        let limits = BatchLimits { records_max: 2, bytes_max: 100, timeout_ms: 50 };
        assert!(collector.close(&pool).is_none());
        // Offset 10 was compacted away.
        collector.push(&message(11, b"a"), std::iter::once((&b"h"[..], None)), &pool, 1_000);
        assert!(!collector.is_full(&limits));
        assert_eq!(collector.deadline_ms(&limits), Some(1_050));
        collector.push(&message(13, b"bc"), std::iter::empty(), &pool, 1_010);
        assert!(collector.is_full(&limits));
        // A redelivered message is not collected twice.
        assert_eq!(collector.push(&message(13, b"bc"), std::iter::empty(), &pool, 1_010), None);
        let batch = collector.close(&pool).expect("two messages were pushed");
        assert_eq!((batch.start, batch.end, batch.records.len()), (10, 14, 2));
        assert_eq!(batch.records[1].payload.map(|span| span.of(&batch.arena)), Some(&b"bc"[..]));
        collector.push(&message(14, b"d"), std::iter::empty(), &pool, 1_020);
        let batch = collector.close(&pool).expect("one message was pushed");
        assert_eq!((batch.start, batch.end), (14, 15));
        // Offsets that are gone are nobody's.
        collector.skip_to(100);
        collector.push(&message(100, b"e"), std::iter::empty(), &pool, 1_030);
        let batch = collector.close(&pool).expect("one message was pushed");
        assert_eq!((batch.start, batch.end), (100, 101));
    }
}
