//! What the tests of captures share.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use timely::WorkerConfig;
use timely::communication::Config as Communication;
use timely::dataflow::operators::Inspect;

use super::recorder::Recorder;
use super::*;
use crate::batch::{RawBatch, RawRecord, Span, push_header};
use crate::clock::ManualClock;
use crate::coverage::TopicKey;
use crate::fault::Health;
use crate::wal_commit::disk::Disk;
use crate::wal_commit::memory::Memory;

mod files;
mod flow;
mod round_trip;

/// Some partition.
pub(crate) fn partition(number: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "c".into(), name: ["orders", "carts"][number as usize % 2].into(), id: "~1".into() };
    PartitionKey { topic: Arc::new(topic), partition: number }
}

/// A batch with keys, tombstones and headers, and offsets that nobody hands out. `bytes` are in each payload.
pub(crate) fn raw(number: i32, offsets: Range<i64>, bytes: usize) -> RawBatch {
    let (mut arena, mut records) = (b"not of any record".to_vec(), Vec::new());
    let push = |arena: &mut Vec<u8>, bytes: &[u8]| {
        let start = arena.len() as u32;
        arena.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    };
    for offset in offsets.clone().filter(|offset| offset % 5 != 3) {
        let key = (offset % 2 == 0).then(|| push(&mut arena, format!("key {offset}").as_bytes()));
        let noise: Vec<u8> = (0..bytes).map(|byte| (((offset as usize + 7) * (byte + 3) * 2_654_435_761) >> 11) as u8).collect();
        let payload = (offset % 7 != 6).then(|| push(&mut arena, &noise));
        let start = arena.len();
        if offset % 3 == 0 {
            push_header(&mut arena, b"trace", Some(&offset.to_le_bytes()));
            push_header(&mut arena, b"null", None);
        }
        let headers = Span { start: start as u32, len: (arena.len() - start) as u32 };
        let timestamp_ms = if offset % 11 == 10 { -1 } else { 1_790_000_000_000 + offset * 10 };
        records.push(RawRecord { offset, timestamp_ms, key, payload, headers });
    }
    let (start, end, polled_ms) = (offsets.start, offsets.end, 1_790_000_000_000 + offsets.start as u64);
    RawBatch { partition: partition(number), start, end, arena: arena.into(), records, polled_ms, charge: Default::default() }
}

/// All that must come back of a record: offset, timestamp, key, payload, headers.
pub(crate) type RecordContent = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>);

/// All that must come back of a batch, wherever its bytes lie.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Content {
    pub epoch: Epoch,
    pub partition: PartitionKey,
    pub offsets: (i64, i64),
    pub polled_ms: u64,
    pub records: Vec<RecordContent>,
}

pub(crate) fn content(epoch: Epoch, batch: &RawBatch) -> Content {
    let bytes = |span: Span| span.of(&batch.arena).to_vec();
    let record = |record: &RawRecord| {
        (record.offset, record.timestamp_ms, record.key.map(bytes), record.payload.map(bytes), bytes(record.headers))
    };
    Content {
        epoch,
        partition: batch.partition.clone(),
        offsets: (batch.start, batch.end),
        polled_ms: batch.polled_ms,
        records: batch.records.iter().map(record).collect(),
    }
}

/// Batches in the epochs 1000, 1010, .., three partitions each, in the order in which a capture holds them.
pub(crate) fn recorded(epochs: u64, bytes: usize) -> Vec<(Epoch, RawBatch)> {
    let of_epoch = |number: u64| {
        let from = number as i64 * 10;
        [1, 0, 2].into_iter().map(move |partition| (Epoch(1_000 + number * 10), raw(partition, from..from + 10, bytes)))
    };
    (0..epochs).flat_map(of_epoch).collect()
}

/// The same batches in the order in which a capture holds them.
pub(crate) fn contents_of(batches: &[(Epoch, RawBatch)]) -> Vec<Content> {
    let mut contents: Vec<_> = batches.iter().map(|(epoch, batch)| content(*epoch, batch)).collect();
    contents.sort();
    contents
}

pub(crate) fn config() -> Config {
    Config { flush_ms: 1, ..Config::new("memory") }
}

pub(crate) fn writer(disk: &Memory, config: Config, health: &Health) -> Writer<RawBatch> {
    Writer::spawn_on(Arc::new(disk.clone()), config, health.clone(), Arc::new(ManualClock::default())).unwrap()
}

/// Writes batches without a dataflow.
pub(crate) fn write_all(disk: &Memory, config: Config, batches: &[(Epoch, RawBatch)]) {
    let mut recorder = Recorder::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config).unwrap();
    batches.iter().for_each(|(epoch, batch)| recorder.push(*epoch, batch).unwrap());
    recorder.finish().unwrap();
}

/// All that can be read, and what is wrong.
pub(crate) fn read_all(disk: &Memory, selection: Selection) -> (Vec<Content>, Vec<Error>) {
    let (mut contents, mut errors) = (Vec::new(), Vec::new());
    for read in Files::on(Arc::new(disk.clone())).unwrap().batches::<RawBatch>(selection) {
        match read {
            Ok(Recorded { epoch, batch }) => contents.push(content(epoch, &batch)),
            Err(error) => errors.push(error),
        }
    }
    (contents, errors)
}

/// What can be read of a capture of which nothing is damaged.
pub(crate) fn read_whole(disk: &Memory) -> Vec<Content> {
    let (contents, errors) = read_all(disk, Selection::default());
    assert!(errors.is_empty(), "{errors:?}");
    contents
}

/// Runs `build` on `workers` workers until their dataflows are done, or `health` is not.
pub(crate) fn run(
    workers: usize,
    health: &Health,
    build: impl Fn(&mut timely::worker::Worker) -> Box<dyn FnMut() -> bool> + Send + Sync + 'static,
) {
    let health = health.clone();
    let config = timely::Config { communication: Communication::Process(workers), worker: WorkerConfig::default() };
    let guards = timely::execute(config, move |worker| {
        let mut step = build(worker);
        let mut has_more = true;
        while (has_more || worker.has_dataflows()) && !health.failed() {
            has_more = has_more && step();
            worker.step_or_park(Some(std::time::Duration::from_millis(1)));
        }
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    });
    guards.unwrap().join().into_iter().for_each(|worker| worker.unwrap());
}

/// Shows every batch, with its epoch, to `see`.
pub(crate) fn watch<'s>(
    stream: Stream<'s, Epoch, Vec<RawBatch>>,
    mut see: impl FnMut(Epoch, &RawBatch) + 'static,
) -> Stream<'s, Epoch, Vec<RawBatch>> {
    stream.inspect_core(move |event| {
        if let Ok((stamp, batches)) = event {
            batches.iter().for_each(|batch| see(*stamp.expect_singleton(), batch));
        }
    })
}

/// What passed an edge, from all workers.
pub(crate) type Seen = Arc<Mutex<Vec<Content>>>;
