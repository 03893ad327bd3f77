//! The walk below one metric: its kind and its data points.

use crate::batch::Reason;
use crate::otlp::wire::{Value, fields, varints};

use super::{
    Checked, Failure, Rows, Rules, attribute, fixed64, id, message, number, removed, require_known, text, time, wire_type,
};

/// One metric. A row is one of its data points, with the rest of the metric.
pub(super) fn metric(bytes: &[u8], rules: &Rules) -> Checked<Rows> {
    let mut points = Rows::default();
    let (mut named, mut points_bytes, mut known) = (false, 0, bytes.is_empty());
    for field in fields(bytes) {
        let (field, value) = field?;
        known |= field <= 12;
        match field {
            1 => named |= text(value, "name")? > 0,
            2 => drop(text(value, "description")?),
            3 => drop(text(value, "unit")?),
            5 | 7 | 9 | 10 | 11 => {
                let data = message(value, "data")?;
                points.add(data_points(field, data, rules)?);
                points_bytes += data.len();
            }
            4 | 6 | 8 => return Err(removed("a metric of integers (field 4, 6 or 8)", "0.9")),
            12 => attribute(value, rules)?,
            _ => {}
        }
    }
    require_known(known, "metric")?;
    if !named {
        return Err(Failure::new(Reason::InvalidField, "name is missing"));
    }
    points.share(bytes.len() - points_bytes);
    Ok(points)
}

/// `Gauge`, `Sum`, `Histogram`, `ExponentialHistogram` or `Summary`, by the metric's field: points in field 1, at most two scalars.
fn data_points(kind: u32, bytes: &[u8], rules: &Rules) -> Checked<Rows> {
    let point = match kind {
        5 | 7 => number_point,
        9 => histogram_point,
        10 => exponential_point,
        _ => summary_point,
    };
    let mut rows = Rows::default();
    for field in fields(bytes) {
        match (kind, field?) {
            (_, (1, value)) => {
                let bytes = message(value, "data_points")?;
                point(bytes, rules).map_err(|failure| failure.within(format_args!("data_points[{}]", rows.count)))?;
                rows.add(Rows::one(bytes.len()));
            }
            (7 | 9 | 10, (2, value)) => number(value, "aggregation_temporality")?,
            (7, (3, value)) => number(value, "is_monotonic")?,
            _ => {}
        }
    }
    Ok(rows)
}

fn number_point(bytes: &[u8], rules: &Rules) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (1, _) => return Err(labels()),
            (2, value) => time(value, "start_time_unix_nano")?,
            (3, value) => time(value, "time_unix_nano")?,
            (4, value) => fixed64(value, "as_double")?,
            (5, value) => exemplar(message(value, "exemplars")?, rules)?,
            (6, value) => fixed64(value, "as_int")?,
            (7, value) => attribute(value, rules)?,
            (8, value) => number(value, "flags")?,
            _ => {}
        }
    }
    Ok(())
}

fn histogram_point(bytes: &[u8], rules: &Rules) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (1, _) => return Err(labels()),
            (2, value) => time(value, "start_time_unix_nano")?,
            (3, value) => time(value, "time_unix_nano")?,
            (4, value) => fixed64(value, "count")?,
            (5, value) => fixed64(value, "sum")?,
            (6, value) => fixed64_list(value, "bucket_counts")?,
            (7, value) => fixed64_list(value, "explicit_bounds")?,
            (8, value) => exemplar(message(value, "exemplars")?, rules)?,
            (9, value) => attribute(value, rules)?,
            (10, value) => number(value, "flags")?,
            (11, value) => fixed64(value, "min")?,
            (12, value) => fixed64(value, "max")?,
            _ => {}
        }
    }
    Ok(())
}

fn exponential_point(bytes: &[u8], rules: &Rules) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (1, value) => attribute(value, rules)?,
            (2, value) => time(value, "start_time_unix_nano")?,
            (3, value) => time(value, "time_unix_nano")?,
            (4, value) => fixed64(value, "count")?,
            (5, value) => fixed64(value, "sum")?,
            (6, value) => number(value, "scale")?,
            (7, value) => fixed64(value, "zero_count")?,
            (8, value) => buckets(message(value, "positive")?)?,
            (9, value) => buckets(message(value, "negative")?)?,
            (10, value) => number(value, "flags")?,
            (11, value) => exemplar(message(value, "exemplars")?, rules)?,
            (12, value) => fixed64(value, "min")?,
            (13, value) => fixed64(value, "max")?,
            (14, value) => fixed64(value, "zero_threshold")?,
            _ => {}
        }
    }
    Ok(())
}

fn buckets(bytes: &[u8]) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (1, value) => number(value, "offset")?,
            (2, value) => varint_list(value, "bucket_counts")?,
            _ => {}
        }
    }
    Ok(())
}

fn summary_point(bytes: &[u8], rules: &Rules) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (1, _) => return Err(labels()),
            (2, value) => time(value, "start_time_unix_nano")?,
            (3, value) => time(value, "time_unix_nano")?,
            (4, value) => fixed64(value, "count")?,
            (5, value) => fixed64(value, "sum")?,
            (6, value) => quantile(message(value, "quantile_values")?)?,
            (7, value) => attribute(value, rules)?,
            (8, value) => number(value, "flags")?,
            _ => {}
        }
    }
    Ok(())
}

fn quantile(bytes: &[u8]) -> Checked<()> {
    for field in fields(bytes) {
        if let (1 | 2, value) = field? {
            fixed64(value, "quantile_values")?;
        }
    }
    Ok(())
}

fn exemplar(bytes: &[u8], rules: &Rules) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (1, _) => return Err(labels()),
            (2, value) => time(value, "exemplars.time_unix_nano")?,
            (3, value) => fixed64(value, "exemplars.as_double")?,
            (4, value) => drop(id(value, 8, "exemplars.span_id")?),
            (5, value) => drop(id(value, 16, "exemplars.trace_id")?),
            (6, value) => fixed64(value, "exemplars.as_int")?,
            (7, value) => attribute(value, rules)?,
            _ => {}
        }
    }
    Ok(())
}

/// Without its labels a point would be of another series.
#[cold]
fn labels() -> Box<Failure> {
    removed("labels (field 1)", "0.16")
}

/// A repeated `fixed64` or `double`, packed or one at a time.
fn fixed64_list(value: Value<'_>, field: &'static str) -> Checked<()> {
    match value {
        Value::Fixed64(_) => Ok(()),
        Value::Bytes(packed) if packed.len().is_multiple_of(8) => Ok(()),
        Value::Bytes(packed) => {
            Err(Failure::new(Reason::Malformed, format_args!("{field} is {} bytes long, no multiple of 8", packed.len())))
        }
        _ => Err(wire_type(field)),
    }
}

/// A repeated `uint64`, packed or one at a time.
fn varint_list(value: Value<'_>, field: &'static str) -> Checked<()> {
    match value {
        Value::Varint(_) => Ok(()),
        Value::Bytes(packed) => {
            for count in varints(packed) {
                count?;
            }
            Ok(())
        }
        _ => Err(wire_type(field)),
    }
}
