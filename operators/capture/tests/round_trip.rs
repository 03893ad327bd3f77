//! Every batch comes back as it was.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::batch::{Arena, Group, NormalizedBatch, Record, Signal, UniqueBatch};
use crate::coverage::Coverage;
use crate::tenant::Tenant;

fn encoded<B: Captured>(batch: &B) -> Result<Bytes, &'static str> {
    let mut bytes = Vec::new();
    batch.encode(Epoch(7), &mut Scratch::default(), &mut bytes).map(|()| bytes.into())
}

/// A record's offset step, timestamp, key, payload and headers, and what lies in the arena before each of them.
type Drawn = (u32, i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>, bool);

fn batch_of(start: i64, drawn: Vec<Drawn>, beyond: u32) -> RawBatch {
    let (mut arena, mut records, mut next) = (Vec::new(), Vec::new(), start);
    for (step, timestamp_ms, key, payload, headers, is_apart) in drawn {
        let mut push = |bytes: &[u8]| {
            // The source lays them side by side; nothing says that everybody does.
            arena.extend_from_slice(if is_apart { b"xx" } else { b"" });
            let start = arena.len() as u32;
            arena.extend_from_slice(bytes);
            Span { start, len: bytes.len() as u32 }
        };
        let (headers, payload, key) = (push(&headers), payload.map(|bytes| push(&bytes)), key.map(|bytes| push(&bytes)));
        let offset = next + i64::from(step);
        records.push(RawRecord { offset, timestamp_ms, key, payload, headers });
        next = offset + 1;
    }
    let end = next + i64::from(beyond);
    RawBatch { partition: partition(3), start, end, arena: arena.into(), records, polled_ms: 17, charge: Default::default() }
}

proptest! {
    #[test]
    fn raw_batches_come_back_as_they_were(
        start in -1_000_000_000_000i64..1_000_000_000_000,
        drawn in proptest::collection::vec(any::<Drawn>(), 0..12),
        beyond: u32,
    ) {
        let batch = batch_of(start, drawn, beyond);
        let back = RawBatch::decode(&encoded(&batch).unwrap()).unwrap();
        prop_assert_eq!(content(Epoch(1), &back), content(Epoch(1), &batch));
        prop_assert_eq!(back.load().messages, batch.load().messages);
    }

    #[test]
    fn garbage_is_refused_or_read_but_never_panics(bytes: Vec<u8>) {
        if let Some(batch) = RawBatch::decode(&bytes.into()) {
            prop_assert!(encoded(&batch).is_ok());
        }
    }

    #[test]
    fn a_batch_of_which_any_byte_is_changed_is_refused_or_another_batch(at: usize, with: u8) {
        let mut bytes = encoded(&raw(1, 100..140, 9)).unwrap().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= with;
        if let Some(batch) = RawBatch::decode(&bytes.into()) {
            prop_assert!(encoded(&batch).is_ok());
        }
    }
}

#[test]
fn batches_that_could_not_be_read_back_are_refused() {
    let refused = |change: fn(&mut RawBatch)| {
        let mut batch = raw(0, 10..20, 8);
        change(&mut batch);
        encoded(&batch).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|batch| batch.end = 15));
    assert!(refused(|batch| batch.start = 11));
    assert!(refused(|batch| batch.end = 9));
    assert!(refused(|batch| batch.records.swap(0, 1)));
    assert!(refused(|batch| batch.arena = Bytes::new()));
}

/// A batch of two tenants with payloads in both arenas and every disposition of offsets.
pub(super) fn normalized() -> NormalizedBatch {
    let mut coverage = Coverage::stored(partition(2), 50..60);
    (coverage.duplicates, coverage.rejected, coverage.skipped) = (vec![51], vec![53], vec![54]);
    coverage.absent = vec![55..58];
    let record = |offset: i64, arena: Arena, start: u32, tenant: u32| {
        let payload = Span { start, len: 4 };
        Record { offset, timestamp_ms: 1_790_000_000_000 - offset, key: u128::MAX - offset as u128, arena, payload, tenant }
    };
    let records = vec![record(50, Arena::Raw, 2, 1), record(52, Arena::Written, 0, 0), record(58, Arena::Raw, 6, 1)];
    NormalizedBatch {
        group: Group { index: "shop".into(), signal: Signal::Logs },
        coverage,
        raw: Bytes::from_static(b"..AAAACCCC"),
        written: Bytes::from_static(b"BBBB"),
        records,
        schema: None,
        tenants: ["eu", "us"].iter().map(|name| Tenant::new(name).unwrap()).collect(),
        charge: Default::default(),
    }
}

#[test]
fn normalized_batches_come_back_as_they_were() {
    let batch = normalized();
    let back = NormalizedBatch::decode(&encoded(&batch).unwrap()).unwrap();
    let payloads =
        |batch: &NormalizedBatch| batch.records.iter().map(|record| batch.payload(record).to_vec()).collect::<Vec<_>>();
    let records = |batch: &NormalizedBatch| {
        let record = |record: &Record| (record.offset, record.timestamp_ms, record.key, record.tenant);
        batch.records.iter().map(record).collect::<Vec<_>>()
    };
    assert_eq!((&back.group, &back.coverage, &back.tenants), (&batch.group, &batch.coverage, &batch.tenants));
    assert_eq!((payloads(&back), records(&back)), (payloads(&batch), records(&batch)));
    let unique = UniqueBatch::decode(&encoded(&UniqueBatch(batch.clone())).unwrap()).unwrap();
    assert_eq!(payloads(&unique.0), payloads(&batch));
}
