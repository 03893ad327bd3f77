//! What becomes of a case's messages.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openwit_graphs::dataflow::Memory;
use openwit_graphs::process::{self, Control, Plan};
use openwit_operators::batch::{RawBatch, RawRecord, Reason, Span, push_header};
use openwit_operators::coverage::{Coverage, PartitionKey, TopicKey};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::chain;
use openwit_operators::row_values::{self, Row};

use crate::config::cases::{METRICS, Message};

/// What a run gave, each list in the order of partitions and offsets.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Rows.
    pub rows: Vec<Row>,
    /// Rejects.
    pub rejects: Vec<Rejected>,
    /// Messages dropped as duplicates.
    pub duplicates: Vec<Place>,
    /// Messages skipped by policy.
    pub skipped: Vec<Place>,
    /// Counters by their names.
    pub metrics: BTreeMap<String, u64>,
}

/// Where a message was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
}

/// A message that was rejected.
#[derive(Debug)]
pub struct Rejected {
    /// Which one.
    pub place: Place,
    /// Why.
    pub reason: Reason,
    /// What is wrong with it.
    pub detail: String,
}

/// Messages as a source gives them: those of one partition and epoch that follow one another are one batch.
pub fn batches(messages: &[Message], epoch_interval_ms: u64) -> Vec<(Epoch, RawBatch)> {
    let epoch = |message: &Message| Epoch::of(message.polled_ms, epoch_interval_ms);
    let mut ends: BTreeMap<(&str, i32), i64> = BTreeMap::new();
    let mut batches = Vec::new();
    let are_together = |one: &Message, other: &Message| {
        one.topic == other.topic && one.partition == other.partition && epoch(one) == epoch(other)
    };
    for run in messages.chunk_by(are_together) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let end = ends.entry((&first.topic, first.partition)).or_insert(first.offset);
        let mut arena = Vec::new();
        let records = run.iter().map(|message| record(message, &mut arena)).collect();
        let start = std::mem::replace(end, last.offset + 1);
        let (partition, polled_ms) = (partition(&first.topic, first.partition), first.polled_ms);
        let charge = Default::default();
        let batch = RawBatch { partition, start, end: last.offset + 1, arena: arena.into(), records, polled_ms, charge };
        batches.push((epoch(first), batch));
    }
    batches
}

fn partition(topic: &str, partition: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "case".into(), name: topic.into(), id: "".into() };
    PartitionKey { topic: Arc::new(topic), partition }
}

fn record(message: &Message, arena: &mut Vec<u8>) -> RawRecord {
    let mut put = |bytes: &[u8]| {
        let start = arena.len() as u32;
        arena.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    };
    let key = message.key.as_deref().map(&mut put);
    let payload = message.payload.as_deref().map(&mut put);
    let mut headers = Vec::new();
    for (name, value) in &message.headers {
        push_header(&mut headers, name.as_bytes(), value.as_deref());
    }
    let headers = put(&headers);
    RawRecord { offset: message.offset, timestamp_ms: message.timestamp_ms, key, payload, headers }
}

/// Runs a plan to its end, and looks at what came.
pub fn run(plan: &Plan, memory: &Memory) -> Result<Outcome, String> {
    let control = Control::default();
    process::run(plan, &control).map_err(|fault| fault.to_string())?;
    let collected = memory.collected.take();
    let mut outcome = Outcome { metrics: metrics(&control), ..Outcome::default() };
    for batch in &collected.batches {
        outcome.rows.extend(row_values::rows(batch).map_err(|error| chain(&error))?);
        outcome.duplicates.extend(places(&batch.coverage, &batch.coverage.duplicates));
        outcome.skipped.extend(places(&batch.coverage, &batch.coverage.skipped));
    }
    outcome.rejects.extend(collected.rejects.into_iter().map(|reject| Rejected {
        place: place(&reject.partition, reject.record.offset),
        reason: reject.reason,
        detail: reject.detail,
    }));
    Ok(outcome)
}

fn places<'c>(coverage: &'c Coverage, offsets: &'c [i64]) -> impl Iterator<Item = Place> + 'c {
    offsets.iter().map(|offset| place(&coverage.partition, *offset))
}

fn place(partition: &PartitionKey, offset: i64) -> Place {
    Place { topic: partition.topic.name.to_string(), partition: partition.partition, offset }
}

/// The counters that a case can expect.
fn metrics(control: &Control) -> BTreeMap<String, u64> {
    let (normalize, dedup) = (&control.counters.normalize, &control.counters.dedup);
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let totals = [&normalize.accepted, &normalize.rejected, &normalize.skipped, &dedup.duplicates].map(get);
    let mut metrics: BTreeMap<String, u64> = METRICS.into_iter().map(str::to_owned).zip(totals).collect();
    let by_reason = normalize.by_reason();
    for reason in Reason::ALL {
        metrics.insert(format!("normalize.rejected.{}", reason.code()), by_reason.get(&reason).copied().unwrap_or(0));
    }
    metrics
}
