//! Messages of Kafka: whatever bytes, headers and compression they have, through the whole `Normalizer`, and on into Arrow.
//!
//! ```text
//! accepted   passes the walk again, byte for byte; prost decodes it; its Arrow rows are as many as prost counts
//! rejected   as a dead letter, it comes back as it was; its detail is short and printable
//! either     the same when it comes again; its offset has exactly one disposition
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use opentelemetry_proto::tonic::logs::v1::LogsData;
use opentelemetry_proto::tonic::metrics::v1::{MetricsData, metric};
use opentelemetry_proto::tonic::trace::v1::TracesData;
use openwit_ingest::config::datasets;
use openwit_operators::arrow_encode::{self, Encoder, encoder::expanded_bytes};
use openwit_operators::batch::{Group, NormalizedBatch, RawBatch, RawRecord, Signal, Span, push_header};
use openwit_operators::coverage::{Coverage, PartitionKey, TopicKey};
use openwit_operators::dataset::Schema;
use openwit_operators::dead_letter::letter::Letter;
use openwit_operators::normalize::index::IndexRules;
use openwit_operators::normalize::{Config, Format, Limits, Normalized, Normalizer};
use prost::Message as _;

use super::{Body, Meter, Stage};

/// The signals, as the first byte of an input chooses them.
pub const SIGNALS: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];
/// The formats, as the first byte of an envelope chooses them.
pub const FORMATS: [Format; 5] = [Format::Auto, Format::OtlpProto, Format::OtlpJson, Format::Json, Format::Raw];

/// What decompressed payloads may have: small, so that what a bomb costs is easy to tell from the cost of a message.
pub const DECOMPRESSED_BYTES_MAX: usize = 64 << 10;
/// Characters that a detail may have.
const DETAIL_CHARS_MAX: usize = 256;

// A row of `{}` is three bytes, and an OTLP record of some twenty with a place in several tables.
static PROTOBUF: Stage = Stage { name: "normalize protobuf", bytes: 256 << 10, bytes_per_byte: 32 };
static JSON: Stage = Stage { name: "normalize json", bytes: 256 << 10, bytes_per_byte: 64 };
static ENVELOPE: Stage = Stage { name: "normalize what is enveloped", bytes: 512 << 10, bytes_per_byte: 64 };
// The size is that of the rows with what is repeated on them, the measure by which `normalize` refuses a message.
static ENCODE: Stage = Stage { name: "encode as arrow", bytes: 1 << 20, bytes_per_byte: 16 };

/// A message of Kafka and how it is read.
#[derive(Clone, Debug)]
pub struct Message {
    /// The topic's format.
    pub format: Format,
    /// The topic's signal.
    pub signal: Signal,
    /// True if its index has a dataset schema.
    pub is_ruled: bool,
    /// Its headers.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Its payload.
    pub payload: Option<Vec<u8>>,
    stage: &'static Stage,
    size: usize,
}

fn plain(format: Format, signal: Signal, payload: &[u8], stage: &'static Stage) -> Message {
    let (headers, size) = (Vec::new(), payload.len());
    Message { format, signal, is_ruled: false, headers, payload: Some(payload.to_vec()), stage, size }
}

/// OTLP protobuf; the first byte says of which signal.
pub fn protobuf(input: &[u8]) -> Option<Message> {
    let (first, payload) = input.split_first()?;
    Some(plain(Format::OtlpProto, SIGNALS[usize::from(*first) % 3], payload, &PROTOBUF))
}

/// OTLP JSON; the first byte says of which signal.
pub fn otlp_json(input: &[u8]) -> Option<Message> {
    let (first, payload) = input.split_first()?;
    Some(plain(Format::OtlpJson, SIGNALS[usize::from(*first) % 3], payload, &JSON))
}

/// Plain JSON, or any format that is told by its bytes, or lines; the first byte says of which signal.
pub fn plain_json(input: &[u8]) -> Option<Message> {
    let (first, payload) = input.split_first()?;
    let (signal, format) =
        (SIGNALS[usize::from(*first) % 3], [Format::Json, Format::Auto, Format::Raw][usize::from(*first) / 3 % 3]);
    let signal = if format == Format::Raw { Signal::Logs } else { signal };
    Some(plain(format, signal, payload, &JSON))
}

/// Header names that mean something, as an envelope's bytes choose them.
pub const NAMES: [&str; 12] = [
    "content-encoding",
    "content-type",
    "ce_specversion",
    "ce_id",
    "ce_source",
    "ce_type",
    "ce_time",
    "ce_subject",
    "ce_datacontenttype",
    "id",
    "openwit.replay.attempt",
    "Content-Type",
];

/// A message with headers, perhaps compressed.
///
/// ```text
/// u8  signal, format and whether there is a dataset schema     u8  headers 0..7, how it is packed, 0x80: a tombstone
/// per header: u8 which of `NAMES`, or else the length of a name that follows; u8 length of the value, 255: null; the value
/// payload, before it is packed
/// ```
pub fn envelope(input: &[u8]) -> Option<Message> {
    let (&[first, second], mut rest) = input.split_first_chunk::<2>()?;
    let first = usize::from(first);
    let (mut signal, format, is_ruled) = (SIGNALS[first % 3], FORMATS[first / 3 % 5], first / 15 % 2 == 1);
    if format == Format::Raw {
        signal = Signal::Logs;
    }
    let mut headers = Vec::new();
    for _ in 0..second & 7 {
        let (name, after) = rest.split_first()?;
        rest = after;
        let name = match NAMES.get(usize::from(*name)) {
            Some(name) => name.as_bytes().to_vec(),
            None => take(&mut rest, usize::from(*name) - NAMES.len())?,
        };
        let (len, after) = rest.split_first()?;
        rest = after;
        let value = if *len == 255 { None } else { Some(take(&mut rest, usize::from(*len))?) };
        headers.push((name, value));
    }
    let payload = pack(second >> 3 & 7, rest, &mut headers);
    // What is compressed, or may be in what it is taken out of, costs what its bound costs.
    let size = rest.len().max(DECOMPRESSED_BYTES_MAX);
    let payload = (second & 0x80 == 0).then_some(payload);
    Some(Message { format, signal, is_ruled, headers, payload, stage: &ENVELOPE, size })
}

fn take(rest: &mut &[u8], len: usize) -> Option<Vec<u8>> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken.to_vec())
}

/// Packs a payload, so that fuzzing gets behind the checksums of compressed forms.
fn pack(how: u8, payload: &[u8], headers: &mut Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Vec<u8> {
    use std::io::Write;
    let mut said = |codec: &str| headers.push((b"content-encoding".to_vec(), Some(codec.as_bytes().to_vec())));
    match how {
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(payload).expect("a vector takes all");
            encoder.finish().expect("a vector takes all")
        }
        2 => zstd::bulk::compress(payload, 1).expect("a slice can be compressed"),
        3 => {
            said("snappy");
            let mut encoder = snap::write::FrameEncoder::new(Vec::new());
            encoder.write_all(payload).expect("a vector takes all");
            encoder.into_inner().expect("a vector takes all")
        }
        4 => {
            said("snappy");
            snap::raw::Encoder::new().compress_vec(payload).expect("a short slice can be compressed")
        }
        _ => payload.to_vec(),
    }
}

/// How an input becomes a message; `None` if it is too short for one.
pub type Read = fn(&[u8]) -> Option<Message>;

/// A body that reads inputs by `read`.
pub fn body(read: Read) -> Box<dyn Body> {
    Box::new(Messages { read, normalizers: BTreeMap::new(), encoders: BTreeMap::new() })
}

struct Messages {
    read: Read,
    normalizers: BTreeMap<(usize, Signal, bool), Normalizer>,
    encoders: BTreeMap<(Signal, bool), Encoder>,
}

impl Body for Messages {
    fn run(&mut self, input: &[u8], meter: &mut Meter) {
        let Some(message) = (self.read)(input) else { return };
        let (raw, again) = (raw_batch(&message), raw_batch(&message));
        let normalizer = self.normalizer(message.format, message.signal, message.is_ruled);
        let normalized = meter.measure(message.stage, message.size, || normalizer.normalize(raw));
        let again = normalizer.normalize(again);
        assert_eq!(outcome(&normalized), outcome(&again), "the same message has another outcome when it comes again");
        check_dispositions(&normalized);
        for reject in &normalized.rejects {
            assert!(reject.detail.chars().count() <= DETAIL_CHARS_MAX && !reject.detail.contains(char::is_control));
            let (letter, mut line) = (Letter::of(reject, 7), Vec::new());
            letter.write_line(&mut line);
            assert_eq!(Letter::parse(&line).expect("a line that was written can be read"), letter);
        }
        if !normalized.batch.records.is_empty() {
            self.check_accepted(&normalized.batch, meter);
        }
    }
}

impl Messages {
    fn normalizer(&mut self, format: Format, signal: Signal, is_ruled: bool) -> &mut Normalizer {
        let position = FORMATS.iter().position(|known| *known == format).expect("every format is listed");
        let new = || Normalizer::new(config(format, signal, is_ruled)).expect("the configuration is good");
        self.normalizers.entry((position, signal, is_ruled)).or_insert_with(new)
    }

    /// What is accepted decodes everywhere, and has as many rows everywhere.
    fn check_accepted(&mut self, batch: &NormalizedBatch, meter: &mut Meter) {
        let signal = batch.group.signal;
        let [record] = &batch.records[..] else { panic!("one message became {} records", batch.records.len()) };
        let payload = batch.payload(record);
        let walked = self.normalizer(Format::OtlpProto, signal, false).normalize(raw_batch(&plain(
            Format::OtlpProto,
            signal,
            payload,
            &PROTOBUF,
        )));
        assert!(walked.rejects.is_empty(), "what was accepted is rejected when it is walked again: {:?}", walked.rejects);
        let [again] = &walked.batch.records[..] else { panic!("what was accepted is neither accepted nor rejected again") };
        assert!(walked.batch.payload(again) == payload, "what was accepted is changed when it is walked again");

        let expanded = expanded_bytes(signal, payload).expect("what was accepted can be measured");
        let new = || {
            Encoder::new(arrow_encode::Config { schema: batch.schema.clone(), ..arrow_encode::Config::new(batch.group.clone()) })
        };
        let encoder = self.encoders.entry((signal, batch.schema.is_some())).or_insert_with(new);
        let size = usize::try_from(expanded).expect("it is below the bound").max(payload.len());
        let encoded = meter.measure(&ENCODE, size, || encoder.append(batch).map(|()| encoder.finish()));
        let encoded = encoded.expect("what was accepted can be encoded").expect("its coverage comes out");
        assert_eq!(encoded.coverage, std::slice::from_ref(&batch.coverage), "its coverage comes out as it went in");
        if let Some(rows) = rows_by_prost(signal, payload) {
            assert_eq!(encoded.rows(), rows, "rows in Arrow, and as prost decodes them");
        }
    }
}

/// Rows as prost counts them; `None` if it does not decode what is nested deeper than its own limit.
fn rows_by_prost(signal: Signal, payload: &[u8]) -> Option<usize> {
    let rows = match signal {
        Signal::Traces => TracesData::decode(payload)
            .map(|data| data.resource_spans.iter().flat_map(|group| &group.scope_spans).map(|group| group.spans.len()).sum()),
        Signal::Logs => LogsData::decode(payload)
            .map(|data| data.resource_logs.iter().flat_map(|group| &group.scope_logs).map(|group| group.log_records.len()).sum()),
        Signal::Metrics => MetricsData::decode(payload).map(|data| {
            let metrics = data.resource_metrics.iter().flat_map(|group| &group.scope_metrics).flat_map(|group| &group.metrics);
            metrics.map(|metric| metric.data.as_ref().map_or(0, points)).sum()
        }),
    };
    match rows {
        Ok(rows) => Some(rows),
        Err(error) if error.to_string().contains("recursion limit") => None,
        Err(error) => panic!("prost does not decode what was accepted: {error}"),
    }
}

fn points(data: &metric::Data) -> usize {
    match data {
        metric::Data::Gauge(data) => data.data_points.len(),
        metric::Data::Sum(data) => data.data_points.len(),
        metric::Data::Histogram(data) => data.data_points.len(),
        metric::Data::ExponentialHistogram(data) => data.data_points.len(),
        metric::Data::Summary(data) => data.data_points.len(),
    }
}

/// What became of a message, to be compared.
fn outcome(normalized: &Normalized) -> (Group, Coverage, Vec<(u128, Vec<u8>)>, Vec<(&'static str, String)>) {
    let batch = &normalized.batch;
    let accepted = batch.records.iter().map(|record| (record.key, batch.payload(record).to_vec())).collect();
    let rejected = normalized.rejects.iter().map(|reject| (reject.reason.code(), reject.detail.clone())).collect();
    (batch.group.clone(), batch.coverage.clone(), accepted, rejected)
}

fn check_dispositions(normalized: &Normalized) {
    let Normalized { batch, rejects, rest, .. } = normalized;
    let coverage = &batch.coverage;
    assert!(rest.is_none(), "one message is one batch");
    assert_eq!(coverage.rejected.len(), rejects.len(), "each reject is covered as such");
    assert_eq!(batch.records.len() + rejects.len() + coverage.skipped.len(), 1, "a message has one disposition: {coverage:?}");
    assert_eq!((coverage.start, coverage.end, coverage.absent.len()), (40, 41, 0));
}

fn raw_batch(message: &Message) -> RawBatch {
    let mut arena = Vec::new();
    let payload = message.payload.as_ref().map(|payload| {
        arena.extend_from_slice(payload);
        Span { start: 0, len: payload.len() as u32 }
    });
    let start = arena.len() as u32;
    message.headers.iter().for_each(|(name, value)| push_header(&mut arena, name, value.as_deref()));
    let headers = Span { start, len: arena.len() as u32 - start };
    let topic = TopicKey { cluster: "c".into(), name: "shop.all".into(), id: "".into() };
    RawBatch {
        partition: PartitionKey { topic: Arc::new(topic), partition: 3 },
        start: 40,
        end: 41,
        arena: Bytes::from(arena),
        records: vec![RawRecord { offset: 40, timestamp_ms: 1_767_225_600_000, key: None, payload, headers }],
        polled_ms: 0,
        charge: Default::default(),
    }
}

fn config(format: Format, signal: Signal, is_ruled: bool) -> Config {
    Config {
        format,
        telemetry_type: Some(signal),
        topics: IndexRules { default_index_position: Some(0), ..IndexRules::default() },
        datasets: if is_ruled { [schema(signal)].into() } else { Arc::default() },
        limits: Limits { decompressed_bytes_max: DECOMPRESSED_BYTES_MAX, ..Limits::default() },
        ..Config::default()
    }
}

/// A dataset schema with a field of every type and rule.
fn schema(signal: Signal) -> Schema {
    let text = include_str!("../../config/datasets/shop-logs.yaml").replace("signal: logs", &format!("signal: {signal}"));
    datasets::parse("shop.yaml", &text).unwrap_or_else(|problems| panic!("{problems}"))
}
