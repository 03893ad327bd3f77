//! Data points, of rows, and the metrics they are of.

use arrow::array::{Array, BooleanArray, FixedSizeBinaryArray, PrimitiveArray, StringArray};
use arrow::datatypes::{Float64Type, Int8Type, Int32Type, Int64Type, TimestampNanosecondType, UInt32Type, UInt64Type};

use super::Problem;
use super::attributes::{Attributes, put_map};
use super::columns::{Lists, Maps, Table, id, number};
use super::rows::{Shape, event_time, put_count, put_enumeration, put_id, put_text, put_time};
use crate::arrow_encode::metrics::Kind;
use crate::otlp::write::{close, open, put_fixed64, put_header, put_number, put_varint, varint_len};

/// The columns of metrics and their points.
pub struct Points {
    metric_name: StringArray,
    description: StringArray,
    unit: StringArray,
    metric_type: StringArray,
    temporality: PrimitiveArray<Int8Type>,
    is_monotonic: BooleanArray,
    metric_metadata: Maps,
    start_time: PrimitiveArray<TimestampNanosecondType>,
    time: PrimitiveArray<TimestampNanosecondType>,
    value_double: PrimitiveArray<Float64Type>,
    value_int: PrimitiveArray<Int64Type>,
    count: PrimitiveArray<UInt64Type>,
    sum: PrimitiveArray<Float64Type>,
    min: PrimitiveArray<Float64Type>,
    max: PrimitiveArray<Float64Type>,
    bucket_counts: Lists<PrimitiveArray<UInt64Type>>,
    explicit_bounds: Lists<PrimitiveArray<Float64Type>>,
    scale: PrimitiveArray<Int32Type>,
    zero_count: PrimitiveArray<UInt64Type>,
    zero_threshold: PrimitiveArray<Float64Type>,
    positive_offset: PrimitiveArray<Int32Type>,
    positive_bucket_counts: Lists<PrimitiveArray<UInt64Type>>,
    negative_offset: PrimitiveArray<Int32Type>,
    negative_bucket_counts: Lists<PrimitiveArray<UInt64Type>>,
    quantiles: Lists<Quantiles>,
    exemplars: Lists<Exemplars>,
    flags: PrimitiveArray<UInt32Type>,
    attributes: Attributes,
}

struct Quantiles {
    quantile: PrimitiveArray<Float64Type>,
    value: PrimitiveArray<Float64Type>,
}

struct Exemplars {
    time: PrimitiveArray<TimestampNanosecondType>,
    value_double: PrimitiveArray<Float64Type>,
    value_int: PrimitiveArray<Int64Type>,
    trace_id: FixedSizeBinaryArray,
    span_id: FixedSizeBinaryArray,
    filtered_attributes: Maps,
}

impl Points {
    /// Those of `table`.
    pub fn of(table: &Table<'_>, shape: &Shape) -> Result<Self, Problem> {
        Ok(Points {
            metric_name: table.texts("metric_name")?,
            description: table.texts("description")?,
            unit: table.texts("unit")?,
            metric_type: table.texts("metric_type")?,
            temporality: table.numbers("temporality")?,
            is_monotonic: table.flags("is_monotonic")?,
            metric_metadata: table.maps("metric_metadata")?,
            start_time: table.numbers("start_time")?,
            time: table.numbers("time")?,
            value_double: table.numbers("value_double")?,
            value_int: table.numbers("value_int")?,
            count: table.numbers("count")?,
            sum: table.numbers("sum")?,
            min: table.numbers("min")?,
            max: table.numbers("max")?,
            bucket_counts: table.lists("bucket_counts")?,
            explicit_bounds: table.lists("explicit_bounds")?,
            scale: table.numbers("scale")?,
            zero_count: table.numbers("zero_count")?,
            zero_threshold: table.numbers("zero_threshold")?,
            positive_offset: table.numbers("positive_offset")?,
            positive_bucket_counts: table.lists("positive_bucket_counts")?,
            negative_offset: table.numbers("negative_offset")?,
            negative_bucket_counts: table.lists("negative_bucket_counts")?,
            quantiles: table.structs("quantiles", Quantiles::of)?,
            exemplars: table.structs("exemplars", Exemplars::of)?,
            flags: table.numbers("flags")?,
            attributes: Attributes::of_rows(table, shape.signal, shape.stamp.as_deref())?,
        })
    }

    /// The kind of a row's metric.
    pub fn kind(&self, row: usize) -> Result<Kind, Problem> {
        let name = self.metric_type.value(row);
        Kind::of_name(name).ok_or_else(|| Problem::of("metric_type", format!("{name:?} is no kind of metric")))
    }

    /// Appends the fields of a row's metric, but for its data.
    pub fn put_metric(&self, row: usize, out: &mut Vec<u8>) {
        put_text(out, 1, self.metric_name.value(row));
        put_text(out, 2, self.description.value(row));
        put_text(out, 3, self.unit.value(row));
        put_map(&self.metric_metadata, row, 12, out);
    }

    /// Appends the fields of the data of a row's metric, but for its points.
    pub fn put_data(&self, row: usize, out: &mut Vec<u8>) {
        if let Some(temporality) = number(&self.temporality, row) {
            put_enumeration(out, 2, temporality);
        }
        if self.is_monotonic.is_valid(row) && self.is_monotonic.value(row) {
            put_number(out, 3, 1);
        }
    }

    /// Appends the fields of a data point whose message came to Kafka at `arrival_ns`.
    pub fn put(&self, row: usize, kind: Kind, arrival_ns: i64, out: &mut Vec<u8>) -> Result<(), Problem> {
        self.check(row, kind)?;
        put_time(out, 2, number(&self.start_time, row), "start_time")?;
        put_time(out, 3, event_time(self.time.value(row), arrival_ns)?, "time")?;
        let fields = match kind {
            Kind::Gauge | Kind::Sum => self.put_number(row, out),
            Kind::Histogram => self.put_histogram(row, out),
            Kind::ExponentialHistogram => self.put_exponential(row, out)?,
            Kind::Summary => self.put_summary(row, out),
        };
        self.attributes.put(row, fields.attributes, out)?;
        put_count(out, fields.flags, self.flags.value(row));
        if let Some(field) = fields.exemplars {
            for exemplar in self.exemplars.range(row) {
                self.exemplars.items.put(exemplar, field, out)?;
            }
        }
        Ok(())
    }

    /// Refuses what would be lost: columns that have values where the kind of metric has none, and the other way round.
    fn check(&self, row: usize, kind: Kind) -> Result<(), Problem> {
        let is_number = matches!(kind, Kind::Gauge | Kind::Sum);
        let is_histogram = matches!(kind, Kind::Histogram | Kind::ExponentialHistogram);
        let is_exponential = kind == Kind::ExponentialHistogram;
        let has_both = self.value_double.is_valid(row) && self.value_int.is_valid(row);
        let always = [
            ("temporality", self.temporality.is_valid(row), is_histogram || kind == Kind::Sum),
            ("is_monotonic", self.is_monotonic.is_valid(row), kind == Kind::Sum),
            ("count", self.count.is_valid(row), !is_number),
            ("scale", self.scale.is_valid(row), is_exponential),
            ("zero_count", self.zero_count.is_valid(row), is_exponential),
            ("zero_threshold", self.zero_threshold.is_valid(row), is_exponential),
        ];
        let (positive, negative) = (self.positive_offset.is_valid(row), self.negative_offset.is_valid(row));
        let at_most = [
            ("value_double", self.value_double.is_valid(row), is_number && !has_both),
            ("value_int", self.value_int.is_valid(row), is_number && !has_both),
            ("sum", self.sum.is_valid(row), !is_number),
            ("min", self.min.is_valid(row), is_histogram),
            ("max", self.max.is_valid(row), is_histogram),
            ("bucket_counts", !self.bucket_counts.range(row).is_empty(), kind == Kind::Histogram),
            ("explicit_bounds", !self.explicit_bounds.range(row).is_empty(), kind == Kind::Histogram),
            ("positive_offset", positive, is_exponential),
            ("positive_bucket_counts", !self.positive_bucket_counts.range(row).is_empty(), positive),
            ("negative_offset", negative, is_exponential),
            ("negative_bucket_counts", !self.negative_bucket_counts.range(row).is_empty(), negative),
            ("quantiles", !self.quantiles.range(row).is_empty(), kind == Kind::Summary),
            ("exemplars", !self.exemplars.range(row).is_empty(), kind != Kind::Summary),
        ];
        let missing = always.iter().find(|(_, has, should)| has != should);
        let wrong = missing.or_else(|| at_most.iter().find(|(_, has, may)| *has && !*may));
        let wrong = wrong.or((kind == Kind::Summary && self.sum.is_null(row)).then_some(&("sum", false, true)));
        match wrong {
            None => Ok(()),
            Some((column, true, _)) => Err(Problem::of(*column, format!("it has a value beside others of a {}", kind.name()))),
            Some((column, false, _)) => Err(Problem::of(*column, format!("it has no value in a {}", kind.name()))),
        }
    }

    fn put_number(&self, row: usize, out: &mut Vec<u8>) -> CommonFields {
        put_double(out, 4, number(&self.value_double, row));
        if let Some(value) = number(&self.value_int, row) {
            put_fixed64(out, 6, value as u64);
        }
        CommonFields { attributes: 7, flags: 8, exemplars: Some(5) }
    }

    fn put_histogram(&self, row: usize, out: &mut Vec<u8>) -> CommonFields {
        put_fixed64(out, 4, self.count.value(row));
        put_double(out, 5, number(&self.sum, row));
        put_fixed64s(out, 6, self.bucket_counts.range(row).map(|item| self.bucket_counts.items.value(item)));
        put_fixed64s(out, 7, self.explicit_bounds.range(row).map(|item| self.explicit_bounds.items.value(item).to_bits()));
        put_double(out, 11, number(&self.min, row));
        put_double(out, 12, number(&self.max, row));
        CommonFields { attributes: 9, flags: 10, exemplars: Some(8) }
    }

    fn put_exponential(&self, row: usize, out: &mut Vec<u8>) -> Result<CommonFields, Problem> {
        put_fixed64(out, 4, self.count.value(row));
        put_double(out, 5, number(&self.sum, row));
        put_number(out, 6, zigzag(self.scale.value(row)));
        put_fixed64(out, 7, self.zero_count.value(row));
        put_buckets(out, 8, number(&self.positive_offset, row), &self.positive_bucket_counts, row);
        put_buckets(out, 9, number(&self.negative_offset, row), &self.negative_bucket_counts, row);
        put_double(out, 12, number(&self.min, row));
        put_double(out, 13, number(&self.max, row));
        put_double(out, 14, number(&self.zero_threshold, row));
        Ok(CommonFields { attributes: 1, flags: 10, exemplars: Some(11) })
    }

    fn put_summary(&self, row: usize, out: &mut Vec<u8>) -> CommonFields {
        put_fixed64(out, 4, self.count.value(row));
        put_double(out, 5, number(&self.sum, row));
        let Quantiles { quantile, value } = &self.quantiles.items;
        for item in self.quantiles.range(row) {
            let pair = open(out, 6);
            put_double(out, 1, number(quantile, item));
            put_double(out, 2, number(value, item));
            close(out, pair);
        }
        CommonFields { attributes: 7, flags: 8, exemplars: None }
    }
}

/// Numbers of the fields that all kinds of points have, each where its kind has them.
struct CommonFields {
    attributes: u32,
    flags: u32,
    exemplars: Option<u32>,
}

impl Quantiles {
    fn of(table: &Table<'_>) -> Result<Self, Problem> {
        Ok(Quantiles { quantile: table.numbers("quantile")?, value: table.numbers("value")? })
    }
}

impl Exemplars {
    fn of(table: &Table<'_>) -> Result<Self, Problem> {
        Ok(Exemplars {
            time: table.numbers("time")?,
            value_double: table.numbers("value_double")?,
            value_int: table.numbers("value_int")?,
            trace_id: table.ids("trace_id")?,
            span_id: table.ids("span_id")?,
            filtered_attributes: table.maps("filtered_attributes")?,
        })
    }

    fn put(&self, row: usize, field: u32, out: &mut Vec<u8>) -> Result<(), Problem> {
        if self.value_double.is_valid(row) && self.value_int.is_valid(row) {
            return Err(Problem::of("exemplars", "one has two values"));
        }
        let exemplar = open(out, field);
        put_time(out, 2, number(&self.time, row), "exemplars.time")?;
        put_double(out, 3, number(&self.value_double, row));
        put_id(out, 4, id(&self.span_id, row));
        put_id(out, 5, id(&self.trace_id, row));
        if let Some(value) = number(&self.value_int, row) {
            put_fixed64(out, 6, value as u64);
        }
        put_map(&self.filtered_attributes, row, 7, out);
        close(out, exemplar);
        Ok(())
    }
}

fn put_double(out: &mut Vec<u8>, field: u32, value: Option<f64>) {
    if let Some(value) = value {
        put_fixed64(out, field, value.to_bits());
    }
}

fn put_fixed64s(out: &mut Vec<u8>, field: u32, values: impl ExactSizeIterator<Item = u64>) {
    if values.len() > 0 {
        put_header(out, field, 8 * values.len());
        values.for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    }
}

/// A range of buckets, where there is one: one without counts is not the same as none.
fn put_buckets(out: &mut Vec<u8>, field: u32, offset: Option<i32>, counts: &Lists<PrimitiveArray<UInt64Type>>, row: usize) {
    let Some(offset) = offset else { return };
    let buckets = open(out, field);
    put_number(out, 1, zigzag(offset));
    let counts = counts.range(row).map(|item| counts.items.value(item));
    let packed: usize = counts.clone().map(varint_len).sum();
    if packed > 0 {
        put_header(out, 2, packed);
        counts.for_each(|count| put_varint(out, count));
    }
    close(out, buckets);
}

/// A `sint32`.
fn zigzag(value: i32) -> u64 {
    u64::from((value << 1 ^ value >> 31) as u32)
}
