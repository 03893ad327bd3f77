//! The bytes on disk: what goes in comes out, what was once written stays readable, and payloads are most of it.

use proptest::prelude::*;

use super::*;
use crate::batch::{RawBatch, RawRecord, RecalledBatch, Sourced, push_header};
use crate::dataset::{Carrier, Column, Kind, Stamp};
use crate::wal_commit::buffer::AlignedBuffer;
use crate::wal_commit::frame::{Place, Prepared};

fn encoded<'a>(place: Place, batch: impl Into<LoggedRef<'a>>) -> Bytes {
    let (mut meta, mut out) = (Vec::new(), AlignedBuffer::default());
    let batch: LoggedRef<'a> = batch.into();
    let prepared = Prepared::new(batch, &mut meta).unwrap();
    prepared.write(place, &mut out).seal(4096, &mut out);
    assert_eq!(out.len() as u64, prepared.frame_bytes());
    Bytes::copy_from_slice(out.bytes())
}

const PLACE: Place = Place { segment: 3, position: 8192, epoch: Epoch(1_790_000_000_020) };

fn tenants(names: &[&str]) -> Vec<Tenant> {
    names.iter().map(|name| Tenant::new(name).unwrap()).collect()
}

/// A batch with every disposition of offsets, one whose numbers are as far apart as they can be, one that obeys a dataset schema,
/// which version 1 had not, and two with tenants, which version 2 had not: of one, and of several with a dataset schema.
fn golden_batches() -> [NormalizedBatch; 5] {
    let mut usual = batch(4, 1_000, 5, 23);
    usual.coverage.start = 997;
    usual.coverage.end = 1_020;
    usual.coverage.duplicates = vec![998, 1_006];
    usual.coverage.rejected = vec![1_007];
    usual.coverage.skipped = vec![1_008, 1_009];
    usual.coverage.absent = vec![999..1_000, 1_010..1_020];
    let mut extreme = batch(-1, i64::MIN, 2, 0);
    extreme.coverage.end = -1;
    extreme.records[1].offset = -2;
    extreme.records[0].timestamp_ms = -1;
    extreme.records[1].timestamp_ms = i64::MIN;
    extreme.records[1].key = u128::MAX;
    extreme.group = Group { index: "".into(), signal: Signal::Metrics };
    let mut ruled = batch(2, 70, 3, 11);
    let columns = Kind::ALL.into_iter().filter(|kind| kind.column_type().is_some());
    let column = |kind: Kind| {
        let (key, name) = (format!("a.{}", kind.name()), format!("a_{}", kind.name()));
        Column { carrier: Carrier::Row, key, name, kind }
    };
    let cell = Column { carrier: Carrier::Resource, key: "cell".into(), name: "cell".into(), kind: Kind::Int };
    let columns = columns.map(column).chain([cell]).collect();
    let stamp = Stamp { name: "shop-spans".into(), version: 300, hash: 0x0123_4567_89ab_cdef, columns };
    ruled.schema = Some(Arc::new(stamp));
    let owned = NormalizedBatch { tenants: tenants(&["shop"]), ..batch(3, 500, 2, 9) };
    let mut shared =
        NormalizedBatch { tenants: tenants(&["shop", "Eu.2_x-", "0"]), schema: ruled.schema.clone(), ..batch(3, 502, 4, 6) };
    for (record, tenant) in shared.records.iter_mut().zip([2, 0, 2, 1]) {
        record.tenant = tenant;
    }
    [usual, extreme, ruled, owned, shared]
}

/// A batch with everything that a message can have and lack, one whose numbers are as far apart as they can be, one of nothing but
/// offsets, and one of messages for their keys only.
fn golden_raw_batches() -> [Sourced; 4] {
    let usual = raw_batch(4, 1_000, &[(Some(b"key"), Some(b"payload"), &[("h", Some("1")), ("none", None)]), (None, None, &[])]);
    let usual = RawBatch { start: 997, end: 1_020, ..usual };
    let mut extreme = raw_batch(-1, i64::MIN, &[(Some(b""), Some(b""), &[]), (None, Some(&[0xff; 9]), &[])]);
    (extreme.end, extreme.polled_ms, extreme.records[1].offset) = (-1, u64::MAX, -2);
    (extreme.records[0].timestamp_ms, extreme.records[1].timestamp_ms) = (-1, i64::MIN);
    let empty = RawBatch { end: 1_100, ..raw_batch(4, 1_020, &[]) };
    let recalled = RecalledBatch(raw_batch(5, 7, &[(Some(b"k"), Some(b"handled by another"), &[])]));
    [Sourced::Read(usual), Sourced::Read(extreme), Sourced::Read(empty), Sourced::Recalled(recalled)]
}

/// Key, payload and headers.
type RawMessage<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, &'a [(&'a str, Option<&'a str>)]);

fn raw_batch(partition_number: i32, start: i64, messages: &[RawMessage<'_>]) -> RawBatch {
    let (mut arena, mut records) = (Vec::new(), Vec::new());
    for (index, (key, payload, headers)) in messages.iter().enumerate() {
        let mut put = |bytes: &[u8]| {
            arena.extend_from_slice(bytes);
            Span { start: (arena.len() - bytes.len()) as u32, len: bytes.len() as u32 }
        };
        let (key, payload) = (key.map(&mut put), payload.map(&mut put));
        let mut encoded = Vec::new();
        for (name, value) in *headers {
            push_header(&mut encoded, name.as_bytes(), value.map(str::as_bytes));
        }
        let offset = start + index as i64;
        records.push(RawRecord { offset, timestamp_ms: 1_790_000_000_000 + index as i64, key, payload, headers: put(&encoded) });
    }
    let (partition, end) = (partition(partition_number), start + messages.len() as i64);
    RawBatch { partition, start, end, arena: arena.into(), records, polled_ms: 1_790_000_000_007, charge: Default::default() }
}

#[test]
fn segment_and_key_file_equal_their_golden_files() {
    // Key files are of the first two batches, as they were when segments were of version 1.
    let normalized = golden_batches().map(Logged::from);
    let raw = golden_raw_batches().map(Logged::from);
    for (batches, file, name) in [
        (&normalized[..], segment::segment_name(1), "segment-v4.wal"),
        (&raw[..], segment::segment_name(1), "segment-v4-raw.wal"),
        (&normalized[..2], segment::keys_name(1), "keys-v1.keys"),
    ] {
        let disk = Memory::aligned();
        let (mut log, _) = open(&disk, &small_config(), 1_790_000_000_000);
        for (number, batch) in batches.iter().enumerate() {
            log.append(Epoch(1_790_000_000_020 + 20 * number as u64), batch).unwrap();
            log.sync().unwrap();
        }
        drop(log);
        drop(open(&disk, &small_config(), 1_790_000_001_000));
        let written = disk.contents(&file).unwrap();
        if std::env::var_os("GOLDEN_WRITE").is_some() {
            std::fs::write(golden(name), &written).unwrap();
        }
        assert!(written == std::fs::read(golden(name)).unwrap(), "{name} differs: a change needs a new format version");
    }
}

#[test]
fn golden_segments_of_every_version_are_still_read() {
    for (name, batches, keys) in
        [("segment-v1.wal", 2, 7), ("segment-v2.wal", 3, 10), ("segment-v3.wal", 5, 16), ("segment-v4.wal", 5, 16)]
    {
        let disk = Memory::default();
        disk.create(&segment::segment_name(1), 0, disk::Access::Bytes).unwrap();
        assert!(disk.edit(&segment::segment_name(1), |bytes| *bytes = std::fs::read(golden(name)).unwrap()));
        let (_, recovery) = open(&disk, &small_config(), 1_790_000_001_000);
        let expected = golden_batches();
        let expected: Vec<_> =
            (0..batches).map(|number| content(Epoch(1_790_000_000_020 + 20 * number as u64), &expected[number])).collect();
        assert_eq!(recovered(&recovery), expected, "{name}");
        assert_eq!(recovery.keys().count(), keys, "{name}");
    }
}

#[test]
fn messages_as_they_came_are_read_from_their_golden_segment_and_by_nobody_who_wants_normalized_ones() {
    let disk = Memory::default();
    disk.create(&segment::segment_name(1), 0, disk::Access::Bytes).unwrap();
    assert!(disk.edit(&segment::segment_name(1), |bytes| *bytes = std::fs::read(golden("segment-v4-raw.wal")).unwrap()));
    let (_, recovery) = open(&disk, &small_config(), 1_790_000_001_000);
    let found: Vec<_> = recovery.raw_frames(Epoch(1_790_000_001_000)).map(Result::unwrap).collect();
    let told = |batch: &Sourced| format!("{batch:?}");
    let expected = golden_raw_batches();
    assert_eq!(found.len(), expected.len());
    for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.epoch, Epoch(1_790_000_000_020 + 20 * number as u64));
        // Another arena holds the same, at the same places: the pieces lay side by side.
        assert_eq!(told(&found.batch), told(expected));
        let kind = if matches!(expected, Sourced::Read(_)) { &recovery.raw } else { &recovery.recalled };
        let expected = expected.batch();
        assert!(kind[&expected.partition].missing_in(expected.start..expected.end).is_empty());
    }
    assert_eq!((recovery.frames().count(), recovery.keys().count(), recovery.normalized.len()), (0, 0, 0));
    assert_eq!(recovery.coverage, recovery.raw, "nobody accounts for what was read for its keys");
    let frame = encoded(PLACE, &Logged::from(expected[0].clone()));
    assert_eq!(frame::decode::<NormalizedBatch>(&frame, 3, 8192).unwrap_err(), frame::Error::OtherKind { is_raw: true });
    let normalized = encoded(PLACE, &batch(0, 0, 3, 30));
    assert_eq!(frame::decode::<Sourced>(&normalized, 3, 8192).unwrap_err(), frame::Error::OtherKind { is_raw: false });
}

#[test]
fn batches_that_could_not_be_read_back_are_refused() {
    let refused = |change: fn(&mut NormalizedBatch)| {
        let mut batch = batch(0, 10, 4, 8);
        change(&mut batch);
        matches!(Prepared::new(&batch, &mut Vec::new()), Err(Error::Batch { .. }))
    };
    assert!(!refused(|_| {}));
    assert!(refused(|batch| batch.coverage.end = 9));
    assert!(refused(|batch| batch.coverage.end = 12));
    assert!(refused(|batch| batch.coverage.start = 11));
    assert!(refused(|batch| batch.records.swap(0, 1)));
    assert!(refused(|batch| batch.records[1].offset = 10));
    assert!(refused(|batch| batch.coverage.duplicates = vec![12, 12]));
    assert!(refused(|batch| batch.coverage.absent.push(12..12)));
    assert!(refused(|batch| batch.coverage.absent.push(12..15)));
    assert!(!refused(|batch| batch.tenants = tenants(&["a"])));
    assert!(refused(|batch| (batch.tenants, batch.records[3].tenant) = (tenants(&["a"]), 1)));
    assert!(refused(|batch| (batch.tenants, batch.records[3].tenant) = (tenants(&["a", "b"]), 2)));
}

#[test]
fn frame_is_refused_at_another_place() {
    let frame = encoded(PLACE, &batch(0, 0, 3, 30));
    assert!(frame::decode::<Logged>(&frame, 3, 8192).is_ok());
    assert_eq!(frame::decode::<Logged>(&frame, 4, 8192).unwrap_err(), frame::Error::NoFrame);
    assert_eq!(frame::decode::<Logged>(&frame, 3, 8200).unwrap_err(), frame::Error::NoFrame);
}

#[test]
fn every_flipped_bit_of_a_frame_is_refused() {
    let batches = golden_batches().map(Logged::from).into_iter().chain(golden_raw_batches().map(Logged::from));
    for batch in batches {
        let frame = encoded(PLACE, &batch);
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(frame::decode::<Logged>(&flipped.into(), 3, 8192).is_err(), "bit {bit}");
        }
    }
}

/// Bytes of one payload, records of a batch, and the most the log may write per byte of payload, key files included.
#[test]
fn amplification_of_frames_stays_below_a_tenth() {
    for (payload_bytes, records, with_keys_max) in [(344, 1_000, 1.13), (663, 1_000, 1.07), (17_200, 60, 1.01)] {
        let disk = Memory::aligned();
        let config = Config { segment_bytes: 4 << 20, bytes_max: 96 << 20, ..Config::new("memory") };
        let (mut log, _) = open(&disk, &config, 1);
        for number in 0..60 {
            log.append(Epoch(1_790_000_000_000 + number), &batch(3, number as i64 * 1_000, records, payload_bytes)).unwrap();
            if number % 3 == 2 {
                log.sync().unwrap();
            }
            log.save_keys().unwrap();
        }
        let stats = log.stats();
        let payload = stats.payload_bytes as f64;
        let space = stats.frame_bytes as f64 / payload;
        let written = stats.written_bytes as f64 / payload;
        let with_keys = written + stats.keys_written_bytes as f64 / payload;
        println!("{payload_bytes} B: frames {space:.4}, written {written:.4}, with keys {with_keys:.4}");
        assert!(space <= 1.1 && written <= 1.1 && with_keys <= with_keys_max, "{payload_bytes} B: {space} {written} {with_keys}");
    }
}

fn any_batch() -> impl Strategy<Value = NormalizedBatch> {
    let records = proptest::collection::vec((1i64..50, any::<i64>(), any::<u128>(), 0usize..80, any::<(bool, u32)>()), 0..30);
    let tenants = proptest::collection::vec("[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,63}", 0..5);
    (records, any::<i32>(), -1_000_000i64..1_000_000, proptest::collection::vec(any::<u8>(), 80), ".{0,12}", tenants).prop_map(
        |(rows, partition_number, start, bytes, index, tenants)| {
            let mut result = batch(partition_number, start, 0, 0);
            (result.raw, result.written) = (bytes.clone().into(), bytes.into());
            result.group.index = index.into();
            result.schema = golden_batches()[2].schema.clone().filter(|_| partition_number % 2 == 0);
            result.tenants = tenants.iter().map(|name| Tenant::new(name).unwrap()).collect();
            for (step, timestamp_ms, key, len, (raw, tenant)) in rows {
                let offset = result.coverage.end + step;
                let arena = if raw { Arena::Raw } else { Arena::Written };
                let payload = Span { start: (80 - len) as u32, len: len as u32 };
                let tenant = tenant.checked_rem(tenants.len() as u32).unwrap_or(0);
                result.records.push(Record { offset, timestamp_ms, key, arena, payload, tenant });
                result.coverage.duplicates.push(offset - 1);
                result.coverage.absent.push(offset..offset + 1);
                result.coverage.end = offset + 1;
            }
            result
        },
    )
}

proptest! {
    #[test]
    fn frames_come_back_as_they_were_written(batch in any_batch(), epoch: u64) {
        let frame = encoded(Place { epoch: Epoch(epoch), ..PLACE }, &batch);
        let (read_epoch, read) = frame::decode::<NormalizedBatch>(&frame, 3, 8192).unwrap();
        prop_assert_eq!(content(read_epoch, &read), content(Epoch(epoch), &batch));
    }

    #[test]
    fn keys_come_back_as_they_were_added(batches in proptest::collection::vec((any_batch(), any::<u64>()), 0..6)) {
        let mut builder = keys::Builder::default();
        let mut expected = Vec::new();
        for (batch, epoch) in &batches {
            builder.add(Epoch(*epoch), &batch.coverage.partition, &batch.records);
            expected.extend(batch.records.iter().map(|record| keys::RememberedKey {
                key: record.key,
                partition: batch.coverage.partition.clone(),
                offset: record.offset,
                timestamp_ms: record.timestamp_ms,
                epoch: Epoch(*epoch),
            }));
        }
        let read = builder.finish(9).map(|file| keys::File::parse(file.bytes().to_vec(), 9).unwrap().unwrap());
        let read: Vec<_> = read.into_iter().flat_map(keys::File::keys).map(Result::unwrap).collect();
        prop_assert_eq!(read, expected);
    }

    /// Meta that passes its checksum but that nobody wrote.
    #[test]
    fn forged_meta_is_refused_or_read_but_never_panics(mut meta in proptest::collection::vec(any::<u8>(), 0..200), records in 0u32..40) {
        let honest = batch(0, 0, 2, 10);
        let honest = if records % 4 == 0 { NormalizedBatch { tenants: tenants(&["a", "b"]), ..honest } } else { honest };
        let mut whole = encoded(PLACE, &honest).to_vec();
        let header_of = |whole: &[u8]| frame::Header::parse(whole, 3, 8192).unwrap();
        let honest = whole[64..64 + header_of(&whole).meta_bytes as usize].to_vec();
        if records % 2 == 0 {
            // Nearly honest: the first half is what was written.
            meta.splice(..0, honest[..honest.len() / 2].iter().copied());
        }
        whole[40..44].copy_from_slice(&(meta.len() as u32).to_le_bytes());
        whole[48..52].copy_from_slice(&crc32c::crc32c(&meta).to_le_bytes());
        whole[56..60].copy_from_slice(&records.to_le_bytes());
        let crc = crc32c::crc32c(&whole[8..64]);
        whole[4..8].copy_from_slice(&crc.to_le_bytes());
        let _ = header_of(&whole).meta(&meta);
    }

    #[test]
    fn forged_key_files_are_refused_or_read_but_never_panic(blocks in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut builder = keys::Builder::default();
        builder.add(Epoch(5), &partition(0), &batch(0, 0, 3, 1).records);
        let mut bytes = builder.finish(9).unwrap().bytes().to_vec();
        bytes.extend_from_slice(&blocks);
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        let read = keys::File::parse(bytes, 9).unwrap().unwrap().keys().take(1_000).filter(Result::is_ok).count();
        prop_assert!(read >= 3);
    }
}
