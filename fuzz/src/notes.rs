//! What is written beside data, and read from peers and stores: metadata of Flight parts with their coverage, acknowledgements, footers of
//! Parquet files and the notes in them, which are also objects of their own.
//!
//! What is accepted reads the same when it is written again. Coverage goes where it would go: a delivery without rows is offered to
//! `Roller::admit`, which refuses it or makes a commit of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use openwit_operators::arrow_encode::{Config, Encoder};
use openwit_operators::batch::{EncodedBatch, Group, RawBatch, RawRecord, Signal, Span};
use openwit_operators::coverage::{Coverage, PartitionKey, TopicKey};
use openwit_operators::flight::{Ack, PartHeader};
use openwit_operators::normalize::index::IndexRules;
use openwit_operators::normalize::{self, Normalizer};
use openwit_operators::parquet_roll::footer::{self, CommitNote};
use openwit_operators::parquet_roll::{self, DeliveryId, Received, Roller};
use parquet::file::metadata::ParquetMetaDataReader;

use super::{Body, Meter, Stage};

static PART: Stage = Stage { name: "admit coverage", bytes: 256 << 10, bytes_per_byte: 64 };
static ACK: Stage = Stage { name: "read an ack", bytes: 4 << 10, bytes_per_byte: 64 };
static NOTE: Stage = Stage { name: "read a note", bytes: 16 << 10, bytes_per_byte: 64 };
// An element of a list, which Thrift writes with a byte, is a column chunk of several hundred bytes in memory.
static FOOTER: Stage = Stage { name: "read a footer", bytes: 256 << 10, bytes_per_byte: 1024 };

/// A body for all of it, chosen by an input's first byte.
pub fn body() -> Box<dyn Body> {
    Box::new(Notes { folder: tempfile::tempdir().expect("there is a folder for temporary files") })
}

struct Notes {
    folder: tempfile::TempDir,
}

impl Body for Notes {
    fn run(&mut self, input: &[u8], meter: &mut Meter) {
        let Some((&kind, bytes)) = input.split_first() else { return };
        match kind {
            0 => self.check_part(bytes, meter),
            1 => {
                let ack = meter.measure(&ACK, bytes.len(), || serde_json::from_slice::<Ack>(bytes));
                let Ok(ack) = ack else { return };
                let written = serde_json::to_vec(&ack).expect("an ack is numbers only");
                assert_eq!(serde_json::from_slice::<Ack>(&written).expect("what was written can be read"), ack);
            }
            2 => {
                let note = meter.measure(&NOTE, bytes.len(), || CommitNote::from_json(bytes));
                let Ok(note) = note else { return };
                let written = note.to_json().expect("a note can be written");
                assert_eq!(CommitNote::from_json(written.as_bytes()).expect("what was written can be read"), note);
            }
            3 => {
                let read = || footer::decode(bytes).map(|metadata| footer::read(&metadata).is_ok());
                let _ = meter.measure(&FOOTER, bytes.len(), read);
            }
            _ => {}
        }
    }
}

impl Notes {
    fn check_part(&self, bytes: &[u8], meter: &mut Meter) {
        let mut roller = self.roller();
        let header = meter.measure(&PART, bytes.len(), || {
            let Ok(header) = serde_json::from_slice::<PartHeader>(bytes) else { return None };
            let coverage = header.coverage.clone()?;
            let id = DeliveryId { session: 1, sequence: header.sequence };
            let batch = EncodedBatch { group: header.group.clone(), batches: Vec::new(), coverage };
            match roller.admit(Received { id, batch }, 0) {
                Ok(admitted) => drop((admitted, roller.flush().expect("a commit without rows can be closed"))),
                Err(error) => assert!(error.is_refusal(), "coverage breaks the roller: {error}"),
            }
            Some(header)
        });
        if let Some(header) = header {
            let written = serde_json::to_vec(&header).expect("a header can be written");
            assert_eq!(serde_json::from_slice::<PartHeader>(&written).expect("what was written can be read"), header);
        }
    }

    fn roller(&self) -> Roller {
        let config = parquet_roll::Config::new(self.folder.path().to_owned(), "fuzz".into(), 7);
        Roller::open(config, BTreeMap::new()).unwrap_or_else(|error| panic!("{error}"))
    }
}

fn partition() -> PartitionKey {
    let topic = TopicKey { cluster: "c".into(), name: "shop.logs".into(), id: "".into() };
    PartitionKey { topic: Arc::new(topic), partition: 3 }
}

/// A delivery of some lines.
fn delivery(messages: usize) -> EncodedBatch {
    let config = normalize::Config {
        format: normalize::Format::Raw,
        telemetry_type: Some(Signal::Logs),
        topics: IndexRules { default_index_position: Some(0), ..IndexRules::default() },
        ..normalize::Config::default()
    };
    let line = b"a line of text";
    let records = (0..messages as i64).map(|offset| RawRecord {
        offset,
        timestamp_ms: 1_767_225_600_000,
        key: None,
        payload: Some(Span { start: 0, len: line.len() as u32 }),
        headers: Span::default(),
    });
    let (end, arena) = (messages as i64, (&line[..]).into());
    let raw = RawBatch {
        partition: partition(),
        start: 0,
        end,
        arena,
        records: records.collect(),
        polled_ms: 0,
        charge: Default::default(),
    };
    let normalized = Normalizer::new(config).expect("the configuration is good").normalize(raw);
    let mut encoder = Encoder::new(Config::new(Group { index: "shop".into(), signal: Signal::Logs }));
    encoder.append(&normalized.batch).expect("lines can be encoded");
    encoder.finish().expect("there are rows")
}

/// One of each kind, as the program writes it.
pub fn normal() -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    for messages in [1, 10, 100] {
        let notes = Notes { folder: tempfile::tempdir().expect("there is a folder for temporary files") };
        let mut roller = notes.roller();
        let batch = delivery(messages);
        let mut coverage = Coverage::stored(partition(), 0..3 * messages as i64);
        coverage.duplicates = (0..messages as i64).map(|offset| 3 * offset).collect();
        coverage.absent = (0..messages as i64).map(|offset| 3 * offset + 1..3 * offset + 2).collect();
        let header = PartHeader { sequence: 7, group: batch.group.clone(), coverage: Some(vec![coverage]) };
        let json = |value: &dyn Fn() -> serde_json::Result<Vec<u8>>| value().expect("it can be written");
        inputs.push([&[0][..], &json(&|| serde_json::to_vec(&header))].concat());
        inputs.push([&[1][..], &json(&|| serde_json::to_vec(&Ack::Published((0..3 * messages as u64).collect())))].concat());
        let id = DeliveryId { session: 1, sequence: 1 };
        roller.admit(Received { id, batch }, 0).expect("the delivery is good");
        for commit in roller.flush().expect("the folder can be written to") {
            for file in &commit.files {
                let bytes = std::fs::read(&file.local).expect("the file is there");
                let end = bytes.len() - 8;
                let length = bytes[end..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
                let thrift = &bytes[end - length..end];
                inputs.push([&[3][..], thrift].concat());
                let metadata = ParquetMetaDataReader::decode_metadata(thrift).expect("the footer is good");
                let (mut note, _) = footer::read(&metadata).expect("the notes are good");
                note.files = vec![note.files[0]; messages];
                inputs.push([&[2][..], note.to_json().expect("a note can be written").as_bytes()].concat());
            }
        }
    }
    inputs
}
