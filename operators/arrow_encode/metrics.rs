//! One row per data point, of whichever of the five kinds the metric has.
//!
//! What belongs to the metric holds for all its points: it is prepared once and repeated, like the resource.

use std::borrow::Cow;

use arrow::datatypes::{Float64Type, Int8Type, Int32Type, Int64Type, TimestampNanosecondType, UInt32Type, UInt64Type};

use super::attributes::{PointAttributes, push_attribute};
use super::columns::{
    Column, Lists, Maps, Numbers, OptionalFlags, OptionalIds, OptionalNumbers, Structs, Texts, columns_in_order,
};
use super::common::{replace, text};
use super::encoder::{Problem, Row, enumeration, optional_id, optional_time};
use super::schema;
use crate::batch::Signal;
use crate::dataset::Stamp;
use crate::otlp::value::merge;
use crate::otlp::wire::{Value, WireError, fields, varints};

/// The kind of a metric, and so of its points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Single values.
    #[default]
    Gauge,
    /// Running totals.
    Sum,
    /// Counts in buckets with explicit bounds.
    Histogram,
    /// Counts in buckets whose bounds grow exponentially.
    ExponentialHistogram,
    /// Quantiles.
    Summary,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Gauge, Kind::Sum, Kind::Histogram, Kind::ExponentialHistogram, Kind::Summary];

    /// The kind whose data is field `number` of a metric.
    pub fn of_field(number: u32) -> Option<Kind> {
        match number {
            5 => Some(Kind::Gauge),
            7 => Some(Kind::Sum),
            9 => Some(Kind::Histogram),
            10 => Some(Kind::ExponentialHistogram),
            11 => Some(Kind::Summary),
            _ => None,
        }
    }

    /// The field of a metric that has its data.
    pub fn field(self) -> u32 {
        match self {
            Kind::Gauge => 5,
            Kind::Sum => 7,
            Kind::Histogram => 9,
            Kind::ExponentialHistogram => 10,
            Kind::Summary => 11,
        }
    }

    /// The kind of this name.
    pub fn of_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its name in rows.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Sum => "sum",
            Kind::Histogram => "histogram",
            Kind::ExponentialHistogram => "exponential_histogram",
            Kind::Summary => "summary",
        }
    }
}

/// The metric columns: those of the metric, then those of the point.
pub struct Metrics {
    /// What holds for all points of a metric.
    pub metric: Metric,
    points: Points,
}

columns_in_order!(Metrics: metric, points);

impl Metrics {
    /// No rows, with the columns that `stamp` adds.
    pub fn new(stamp: Option<&Stamp>) -> Self {
        Metrics { metric: Metric::default(), points: Points::new(stamp) }
    }

    /// Appends the data point in `message` as `row`.
    pub fn push(&mut self, message: &[u8], row: Row) -> Result<(), Problem> {
        self.points.push(self.metric.current.kind, message, row)
    }
}

/// The columns that hold for all points of a metric.
#[derive(Default)]
pub struct Metric {
    name: Texts,
    description: Texts,
    unit: Texts,
    metric_type: Texts,
    temporality: OptionalNumbers<Int8Type>,
    is_monotonic: OptionalFlags,
    metadata: Maps,
    current: Prepared,
}

columns_in_order!(Metric: name, description, unit, metric_type, temporality, is_monotonic, metadata);

#[derive(Default)]
struct Prepared {
    name: String,
    description: String,
    unit: String,
    kind: Kind,
    temporality: Option<i8>,
    is_monotonic: Option<bool>,
    metadata: Maps,
}

impl Metric {
    /// The rows from `row` on are of the metric in `message`. Returns the message that holds its points, empty if there is none.
    pub fn set<'a>(&mut self, message: &'a [u8], row: usize) -> Result<Cow<'a, [u8]>, Problem> {
        self.flush(row);
        let current = &mut self.current;
        current.metadata.truncate(0);
        let (mut name, mut description, mut unit): (&[u8], &[u8], &[u8]) = (b"", b"", b"");
        let (mut kind, mut data) = (None, Cow::Borrowed(&b""[..]));
        for field in fields(message) {
            match field? {
                (1, Value::Bytes(text)) => name = text,
                (2, Value::Bytes(text)) => description = text,
                (3, Value::Bytes(text)) => unit = text,
                (12, Value::Bytes(entry)) => push_attribute(entry, &mut current.metadata)?,
                (number, Value::Bytes(value)) if Kind::of_field(number).is_some() => {
                    // A oneof: another kind replaces what came before, the same kind merges with it.
                    if kind != Kind::of_field(number) {
                        kind = Kind::of_field(number);
                        data = Cow::Borrowed(b"");
                    }
                    merge(&mut data, value);
                }
                _ => {}
            }
        }
        replace(&mut current.name, text(name, "metric_name")?);
        replace(&mut current.description, text(description, "description")?);
        replace(&mut current.unit, text(unit, "unit")?);
        current.kind = kind.unwrap_or_default();
        current.metadata.close();
        current.metadata.check().map_err(|_| Problem::NotUtf8 { column: "metric_metadata".to_owned() })?;
        current.set_aggregation(&data)?;
        Ok(data)
    }

    /// Brings all columns up to `rows` rows.
    pub fn flush(&mut self, rows: usize) {
        let from = self.name.len();
        let count = rows - from;
        if count == 0 {
            return;
        }
        let current = &self.current;
        self.name.push_repeated(&current.name, count);
        self.description.push_repeated(&current.description, count);
        self.unit.push_repeated(&current.unit, count);
        self.metric_type.push_repeated(current.kind.name(), count);
        self.temporality.set_repeated(from, current.temporality, count);
        self.is_monotonic.set_repeated(from, current.is_monotonic, count);
        self.metadata.append_repeated(&current.metadata, count);
    }

    /// At most how many bytes one more row takes in these columns beyond its fixed widths.
    pub fn row_bytes(&self) -> usize {
        let current = &self.current;
        let texts = current.name.len() + current.description.len() + current.unit.len() + current.kind.name().len();
        texts + current.metadata.content_bytes()
    }
}

impl Prepared {
    fn set_aggregation(&mut self, data: &[u8]) -> Result<(), Problem> {
        let (mut temporality, mut is_monotonic) = (0, false);
        for field in fields(data) {
            match field? {
                (2, Value::Varint(value)) => temporality = value,
                (3, Value::Varint(value)) => is_monotonic = value != 0,
                _ => {}
            }
        }
        let is_aggregated = matches!(self.kind, Kind::Sum | Kind::Histogram | Kind::ExponentialHistogram);
        self.temporality = is_aggregated.then(|| enumeration(temporality));
        self.is_monotonic = (self.kind == Kind::Sum).then_some(is_monotonic);
        Ok(())
    }
}

/// The columns of data points.
struct Points {
    start_time: OptionalNumbers<TimestampNanosecondType>,
    time: Numbers<TimestampNanosecondType>,
    value_double: OptionalNumbers<Float64Type>,
    value_int: OptionalNumbers<Int64Type>,
    count: OptionalNumbers<UInt64Type>,
    sum: OptionalNumbers<Float64Type>,
    min: OptionalNumbers<Float64Type>,
    max: OptionalNumbers<Float64Type>,
    bucket_counts: Lists<Numbers<UInt64Type>>,
    explicit_bounds: Lists<Numbers<Float64Type>>,
    scale: OptionalNumbers<Int32Type>,
    zero_count: OptionalNumbers<UInt64Type>,
    zero_threshold: OptionalNumbers<Float64Type>,
    positive_offset: OptionalNumbers<Int32Type>,
    positive_bucket_counts: Lists<Numbers<UInt64Type>>,
    negative_offset: OptionalNumbers<Int32Type>,
    negative_bucket_counts: Lists<Numbers<UInt64Type>>,
    quantiles: Lists<Structs<Quantiles>>,
    exemplars: Lists<Structs<Exemplars>>,
    flags: Numbers<UInt32Type>,
    attributes: PointAttributes,
}

columns_in_order!(Points: start_time, time, value_double, value_int, count, sum, min, max, bucket_counts, explicit_bounds, scale,
    zero_count, zero_threshold, positive_offset, positive_bucket_counts, negative_offset, negative_bucket_counts, quantiles,
    exemplars, flags, attributes);

#[derive(Default)]
struct Quantiles {
    quantile: Numbers<Float64Type>,
    value: Numbers<Float64Type>,
}

columns_in_order!(Quantiles: quantile, value);

#[derive(Default)]
struct Exemplars {
    time: OptionalNumbers<TimestampNanosecondType>,
    value_double: OptionalNumbers<Float64Type>,
    value_int: OptionalNumbers<Int64Type>,
    trace_id: OptionalIds<16>,
    span_id: OptionalIds<8>,
    filtered_attributes: Maps,
}

columns_in_order!(Exemplars: time, value_double, value_int, trace_id, span_id, filtered_attributes);

impl Points {
    fn new(stamp: Option<&Stamp>) -> Self {
        let counts = || Lists::new(Numbers::default(), schema::element(arrow::datatypes::DataType::UInt64));
        let (quantile, exemplar) = (schema::quantile_element(), schema::exemplar_element());
        Points {
            start_time: OptionalNumbers::default(),
            time: Numbers::default(),
            value_double: OptionalNumbers::default(),
            value_int: OptionalNumbers::default(),
            count: OptionalNumbers::default(),
            sum: OptionalNumbers::default(),
            min: OptionalNumbers::default(),
            max: OptionalNumbers::default(),
            bucket_counts: counts(),
            explicit_bounds: Lists::new(Numbers::default(), schema::element(arrow::datatypes::DataType::Float64)),
            scale: OptionalNumbers::default(),
            zero_count: OptionalNumbers::default(),
            zero_threshold: OptionalNumbers::default(),
            positive_offset: OptionalNumbers::default(),
            positive_bucket_counts: counts(),
            negative_offset: OptionalNumbers::default(),
            negative_bucket_counts: counts(),
            quantiles: Lists::new(Structs::new(Quantiles::default(), schema::struct_fields(&quantile)), quantile),
            exemplars: Lists::new(Structs::new(Exemplars::default(), schema::struct_fields(&exemplar)), exemplar),
            flags: Numbers::default(),
            attributes: PointAttributes::new(Signal::Metrics, stamp),
        }
    }
}

/// One value of a `oneof` of a double and an integer: the last on the wire.
#[derive(Clone, Copy, Default)]
enum Number {
    #[default]
    Absent,
    Double(f64),
    Int(i64),
}

impl Number {
    fn double(self) -> Option<f64> {
        if let Number::Double(value) = self { Some(value) } else { None }
    }

    fn int(self) -> Option<i64> {
        if let Number::Int(value) = self { Some(value) } else { None }
    }
}

/// The singular fields that points of several kinds have.
#[derive(Default)]
struct Head {
    start_time: u64,
    time: u64,
    flags: u32,
    value: Number,
    count: Option<u64>,
    sum: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
}

impl Points {
    fn push(&mut self, kind: Kind, message: &[u8], row: Row) -> Result<(), Problem> {
        let head = match kind {
            Kind::Gauge | Kind::Sum => self.push_number(message, row)?,
            Kind::Histogram => self.push_histogram(message, row)?,
            Kind::ExponentialHistogram => self.push_exponential(message, row)?,
            Kind::Summary => self.push_summary(message, row)?,
        };
        self.close(&head, row)
    }

    fn close(&mut self, head: &Head, row: Row) -> Result<(), Problem> {
        self.start_time.set(row.index, optional_time(head.start_time, "start_time")?);
        self.time.push(optional_time(head.time, "time")?.unwrap_or(row.arrival_ns));
        self.value_double.set(row.index, head.value.double());
        self.value_int.set(row.index, head.value.int());
        self.count.set(row.index, head.count);
        self.sum.set(row.index, head.sum);
        self.min.set(row.index, head.min);
        self.max.set(row.index, head.max);
        self.bucket_counts.close(self.bucket_counts.items.len());
        self.explicit_bounds.close(self.explicit_bounds.items.len());
        self.positive_bucket_counts.close(self.positive_bucket_counts.items.len());
        self.negative_bucket_counts.close(self.negative_bucket_counts.items.len());
        self.quantiles.close(self.quantiles.items.columns.value.len());
        self.exemplars.close(self.exemplars.items.columns.filtered_attributes.len());
        self.flags.push(head.flags);
        self.attributes.close();
        Ok(())
    }

    fn push_number(&mut self, message: &[u8], row: Row) -> Result<Head, Problem> {
        let mut head = Head::default();
        for field in fields(message) {
            match field? {
                (2, Value::Fixed64(time)) => head.start_time = time,
                (3, Value::Fixed64(time)) => head.time = time,
                (4, Value::Fixed64(bits)) => head.value = Number::Double(f64::from_bits(bits)),
                (5, Value::Bytes(exemplar)) => self.push_exemplar(exemplar)?,
                (6, Value::Fixed64(bits)) => head.value = Number::Int(bits as i64),
                (7, Value::Bytes(attribute)) => self.attributes.push(attribute, row.index)?,
                (8, Value::Varint(flags)) => head.flags = flags as u32,
                _ => {}
            }
        }
        Ok(head)
    }

    fn push_histogram(&mut self, message: &[u8], row: Row) -> Result<Head, Problem> {
        let mut head = Head { count: Some(0), ..Head::default() };
        for field in fields(message) {
            match field? {
                (2, Value::Fixed64(time)) => head.start_time = time,
                (3, Value::Fixed64(time)) => head.time = time,
                (4, Value::Fixed64(count)) => head.count = Some(count),
                (5, Value::Fixed64(bits)) => head.sum = Some(f64::from_bits(bits)),
                (6, value) => self.bucket_counts.items.extend(fixed64s(value)?),
                (7, value) => self.explicit_bounds.items.extend(fixed64s(value)?.map(f64::from_bits)),
                (8, Value::Bytes(exemplar)) => self.push_exemplar(exemplar)?,
                (9, Value::Bytes(attribute)) => self.attributes.push(attribute, row.index)?,
                (10, Value::Varint(flags)) => head.flags = flags as u32,
                (11, Value::Fixed64(bits)) => head.min = Some(f64::from_bits(bits)),
                (12, Value::Fixed64(bits)) => head.max = Some(f64::from_bits(bits)),
                _ => {}
            }
        }
        Ok(head)
    }

    fn push_exponential(&mut self, message: &[u8], row: Row) -> Result<Head, Problem> {
        let mut head = Head { count: Some(0), ..Head::default() };
        let (mut scale, mut zero_count, mut zero_threshold) = (0, 0, 0.0);
        let (mut positive, mut negative) = (None, None);
        for field in fields(message) {
            match field? {
                (1, Value::Bytes(attribute)) => self.attributes.push(attribute, row.index)?,
                (2, Value::Fixed64(time)) => head.start_time = time,
                (3, Value::Fixed64(time)) => head.time = time,
                (4, Value::Fixed64(count)) => head.count = Some(count),
                (5, Value::Fixed64(bits)) => head.sum = Some(f64::from_bits(bits)),
                (6, Value::Varint(value)) => scale = zigzag(value),
                (7, Value::Fixed64(count)) => zero_count = count,
                (8, Value::Bytes(buckets)) => push_buckets(buckets, &mut positive, &mut self.positive_bucket_counts.items)?,
                (9, Value::Bytes(buckets)) => push_buckets(buckets, &mut negative, &mut self.negative_bucket_counts.items)?,
                (10, Value::Varint(flags)) => head.flags = flags as u32,
                (11, Value::Bytes(exemplar)) => self.push_exemplar(exemplar)?,
                (12, Value::Fixed64(bits)) => head.min = Some(f64::from_bits(bits)),
                (13, Value::Fixed64(bits)) => head.max = Some(f64::from_bits(bits)),
                (14, Value::Fixed64(bits)) => zero_threshold = f64::from_bits(bits),
                _ => {}
            }
        }
        self.scale.set(row.index, Some(scale));
        self.zero_count.set(row.index, Some(zero_count));
        self.zero_threshold.set(row.index, Some(zero_threshold));
        self.positive_offset.set(row.index, positive);
        self.negative_offset.set(row.index, negative);
        Ok(head)
    }

    fn push_summary(&mut self, message: &[u8], row: Row) -> Result<Head, Problem> {
        let mut head = Head { count: Some(0), sum: Some(0.0), ..Head::default() };
        for field in fields(message) {
            match field? {
                (2, Value::Fixed64(time)) => head.start_time = time,
                (3, Value::Fixed64(time)) => head.time = time,
                (4, Value::Fixed64(count)) => head.count = Some(count),
                (5, Value::Fixed64(bits)) => head.sum = Some(f64::from_bits(bits)),
                (6, Value::Bytes(quantile)) => self.push_quantile(quantile)?,
                (7, Value::Bytes(attribute)) => self.attributes.push(attribute, row.index)?,
                (8, Value::Varint(flags)) => head.flags = flags as u32,
                _ => {}
            }
        }
        Ok(head)
    }

    fn push_quantile(&mut self, message: &[u8]) -> Result<(), Problem> {
        let (mut quantile, mut value) = (0, 0);
        for field in fields(message) {
            match field? {
                (1, Value::Fixed64(bits)) => quantile = bits,
                (2, Value::Fixed64(bits)) => value = bits,
                _ => {}
            }
        }
        let quantiles = &mut self.quantiles.items.columns;
        quantiles.quantile.push(f64::from_bits(quantile));
        quantiles.value.push(f64::from_bits(value));
        Ok(())
    }

    fn push_exemplar(&mut self, message: &[u8]) -> Result<(), Problem> {
        let exemplars = &mut self.exemplars.items.columns;
        let (mut time, mut value) = (0, Number::Absent);
        let (mut trace_id, mut span_id): (&[u8], &[u8]) = (b"", b"");
        for field in fields(message) {
            match field? {
                (2, Value::Fixed64(nanos)) => time = nanos,
                (3, Value::Fixed64(bits)) => value = Number::Double(f64::from_bits(bits)),
                (4, Value::Bytes(id)) => span_id = id,
                (5, Value::Bytes(id)) => trace_id = id,
                (6, Value::Fixed64(bits)) => value = Number::Int(bits as i64),
                (7, Value::Bytes(attribute)) => push_attribute(attribute, &mut exemplars.filtered_attributes)?,
                _ => {}
            }
        }
        exemplars.time.push(optional_time(time, "exemplars.time")?);
        exemplars.value_double.push(value.double());
        exemplars.value_int.push(value.int());
        exemplars.trace_id.push(optional_id(trace_id, "exemplars.trace_id")?);
        exemplars.span_id.push(optional_id(span_id, "exemplars.span_id")?);
        exemplars.filtered_attributes.close();
        Ok(())
    }
}

/// Takes one occurrence of `Buckets`; several merge. `offset` is `None` until the first.
fn push_buckets(message: &[u8], offset: &mut Option<i32>, counts: &mut Numbers<UInt64Type>) -> Result<(), Problem> {
    offset.get_or_insert(0);
    for field in fields(message) {
        match field? {
            (1, Value::Varint(value)) => *offset = Some(zigzag(value)),
            (2, Value::Varint(count)) => counts.push(count),
            (2, Value::Bytes(packed)) => {
                for count in varints(packed) {
                    counts.push(count?);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A `sint32`.
fn zigzag(value: u64) -> i32 {
    let value = value as u32;
    (value >> 1) as i32 ^ -((value & 1) as i32)
}

/// The elements of a repeated `fixed64` or `double`, of which the wire has one or, packed, any number.
fn fixed64s(value: Value<'_>) -> Result<impl Iterator<Item = u64>, WireError> {
    let (one, packed): (_, &[u8]) = match value {
        Value::Fixed64(one) => (Some(one), b""),
        Value::Bytes(packed) => (None, packed),
        _ => (None, b""),
    };
    let (chunks, rest) = packed.as_chunks::<8>();
    if rest.is_empty() {
        Ok(one.into_iter().chain(chunks.iter().map(|bytes| u64::from_le_bytes(*bytes))))
    } else {
        Err(WireError::Truncated)
    }
}
