//! What the log promises, proved on a disk in memory that fails and crashes at will, and on the real one.
//!
//! Proved here: nothing acknowledged is lost by a crash at any byte, nothing is read that was not appended, damage is reported
//! and survived, space is reused, the bytes on disk are those of the golden files. Not proved here: that a real disk keeps what
//! it synced.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::Disk;
use super::logged::LoggedRef;
use super::memory::Memory;
use super::recovery::Recovery;
use super::*;
use crate::batch::{Arena, Group, NormalizedBatch, Record, Signal, Span};
use crate::coverage::{Coverage, PartitionKey, TopicKey};
use crate::dataset::Stamp;
use crate::epoch::Epoch;
use crate::tenant::Tenant;

mod crash;
mod format;
mod kill;
mod model;
mod ordered;
mod space;
mod spilled;
mod threads;

/// Segments of 16 KiB, at most 16 of them.
pub(super) fn small_config() -> Config {
    Config { segment_bytes: segment::BYTES_MIN, bytes_max: 16 * segment::BYTES_MIN, ..Config::new("memory") }
}

fn partition(number: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "cluster-1".into(), name: "traces.shop".into(), id: "topic-id".into() };
    PartitionKey { topic: Arc::new(topic), partition: number }
}

/// The key of the record at `offset`, different for every partition and offset.
fn key_of(partition: &PartitionKey, offset: i64) -> u128 {
    (u128::from(partition.partition as u32) << 64 | offset as u128).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
}

/// A batch of `count` records of `bytes` payload bytes each, every third of them transcoded.
pub(super) fn batch(partition_number: i32, start: i64, count: usize, bytes: usize) -> NormalizedBatch {
    let partition = partition(partition_number);
    let (mut raw, mut written, mut records) = (vec![0xEE; 5], vec![], vec![]);
    for index in 0..count {
        let offset = start + index as i64;
        let (arena, into) = if index % 3 == 2 { (Arena::Written, &mut written) } else { (Arena::Raw, &mut raw) };
        let payload = Span { start: into.len() as u32, len: bytes as u32 };
        into.extend((0..bytes).map(|byte| (offset as usize * 31 + byte * 7 + index) as u8));
        let key = key_of(&partition, offset);
        records.push(Record { offset, timestamp_ms: 1_790_000_000_000 + offset, key, arena, payload, tenant: 0 });
    }
    let coverage = Coverage::stored(partition, start..start + count as i64);
    let group = Group { index: "shop".into(), signal: Signal::Traces };
    NormalizedBatch {
        group,
        coverage,
        raw: Bytes::from(raw),
        written: Bytes::from(written),
        records,
        schema: None,
        tenants: Vec::new(),
        charge: Default::default(),
    }
}

/// What must be the same after reading a batch back.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Content {
    epoch: Epoch,
    group: Group,
    schema: Option<Arc<Stamp>>,
    coverage: Coverage,
    records: Vec<(i64, i64, u128, Vec<u8>, Option<Tenant>)>,
}

pub(super) fn content<'a>(epoch: Epoch, batch: impl Into<LoggedRef<'a>>) -> Content {
    let LoggedRef::Normalized(batch) = batch.into() else { panic!("messages as they came") };
    let record = |record: &Record| {
        let payload = batch.payload(record).to_vec();
        (record.offset, record.timestamp_ms, record.key, payload, batch.tenant(record).cloned())
    };
    let records = batch.records.iter().map(record).collect();
    Content { epoch, group: batch.group.clone(), schema: batch.schema.clone(), coverage: batch.coverage.clone(), records }
}

pub(super) fn recovered(recovery: &Recovery) -> Vec<Content> {
    recovery.frames().map(|frame| frame.map(|frame| content(frame.epoch, &frame.batch)).unwrap()).collect()
}

pub(super) fn open(disk: &Memory, config: &Config, run_epoch: u64) -> (Log, Recovery) {
    Log::open_on(Arc::new(disk.clone()), config.clone(), Epoch(run_epoch)).unwrap()
}

/// Names of the live segments.
fn segments(disk: &Memory) -> Vec<String> {
    let names = disk.list().unwrap().into_iter().map(|entry| entry.name);
    names.filter(|name| name.starts_with("segment-")).collect()
}

pub(super) fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("wal_commit/golden").join(name)
}
