//! Which day's file a row goes to, and where that file lies in the object store.
//!
//! ```text
//! {prefix}/{index}/{signal}/year=YYYY/month=MM/day=DD/{node_id}/{file_ulid}.parquet     rows
//! {prefix}/{index}/{signal}/_coverage/{node_id}/{commit_ulid}.json                      coverage of a commit without rows
//! ```
//!
//! The day is the UTC day of the event time. Producers lie about it: a time further than the allowed skew from the record's Kafka
//! timestamp, zero or null gives the Kafka timestamp's day; where no usable time is left, the row is *undated* and goes to 1970-01-01.
//! Folders are a hint for readers. What prunes reliably is the range of event times in the catalog and the statistics in the file.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrowPrimitiveType, AsArray, PrimitiveArray, RecordBatch, UInt32Array};
use arrow::compute::{max, min, take_record_batch};
use arrow::datatypes::{Int64Type, TimestampMillisecondType, TimestampNanosecondType};
use arrow::error::ArrowError;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::batch::Group;
use crate::parquet_roll::KAFKA_TIMESTAMP;

const NS_PER_DAY: i64 = 86_400_000_000_000;
const MS_PER_DAY: i64 = 86_400_000;

/// Days of one delivery that get files of their own; rows of further days are undated. Only a hostile producer, or a topic with fewer
/// than a hundred records a day read from its beginning, spreads one delivery over more.
const DAYS_PER_BATCH_MAX: usize = 128;

/// A UTC day, as days since 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Day(pub i32);

impl Day {
    /// Where rows without any usable time go.
    pub const UNDATED: Day = Day(0);
    /// 9999-12-31: the last day whose year has four digits.
    const LAST: i64 = 2_932_896;

    /// The day of a time in nanoseconds since 1970.
    pub fn of_ns(time_ns: i64) -> Day {
        // i64 nanoseconds reach from 1677 to 2262, so the quotient fits.
        Day(time_ns.div_euclid(NS_PER_DAY) as i32)
    }

    /// The day of a Kafka timestamp; `UNDATED` for "none" (-1) and for anything outside 1970 to 9999.
    pub fn of_kafka_ms(timestamp_ms: i64) -> Day {
        let day = timestamp_ms.div_euclid(MS_PER_DAY);
        if (0..=Self::LAST).contains(&day) { Day(day as i32) } else { Day::UNDATED }
    }

    /// Year, month (1 to 12) and day of the month in the Gregorian calendar.
    pub fn civil(self) -> Civil {
        // Counted from 0000-03-01, so that the leap day is the last day of its year; 146,097 days are 400 years.
        let days = i64::from(self.0) + 719_468;
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = days.div_euclid(146_097) * 400 + year_of_era + i64::from(month <= 2);
        Civil { year: year as i32, month: month as u8, day: day as u8 }
    }
}

/// A date of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// The year.
    pub year: i32,
    /// The month, 1 to 12.
    pub month: u8,
    /// The day of the month, 1 to 31.
    pub day: u8,
}

impl std::fmt::Display for Day {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Civil { year, month, day } = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// Rows of one day, with the range of their event times.
#[derive(Clone, Debug)]
pub struct Dated {
    /// The day whose file the rows go to.
    pub day: Day,
    /// The rows.
    pub rows: RecordBatch,
    /// The least event time, if any row has one.
    pub time_min_ns: Option<i64>,
    /// The greatest event time, if any row has one.
    pub time_max_ns: Option<i64>,
}

/// Splits `rows` by day, keeping their order within each day. Without a split no row is looked at on its own.
pub fn split(rows: RecordBatch, time_column: &str, skew_days_max: u32) -> Result<Vec<Dated>, ArrowError> {
    let times = column::<TimestampNanosecondType>(&rows, time_column)?.reinterpret_cast::<Int64Type>();
    let kafka = column::<TimestampMillisecondType>(&rows, KAFKA_TIMESTAMP)?.reinterpret_cast::<Int64Type>();
    let skew_ms = u64::from(skew_days_max) * MS_PER_DAY as u64;
    let (time_min_ns, time_max_ns) = (min(&times), max(&times));
    if times.null_count() == 0
        && kafka.null_count() == 0
        && let (Some(first), Some(last), Some(kafka_min), Some(kafka_max)) = (time_min_ns, time_max_ns, min(&kafka), max(&kafka))
        && first > 0
        && Day::of_ns(first) == Day::of_ns(last)
        && (last / 1_000_000).abs_diff(kafka_min) <= skew_ms
        && (first / 1_000_000).abs_diff(kafka_max) <= skew_ms
    {
        return Ok(vec![Dated { day: Day::of_ns(first), rows, time_min_ns, time_max_ns }]);
    }
    let day_of = |row: usize| {
        let sent_ms = if kafka.is_null(row) { -1 } else { kafka.value(row) };
        let time_ns = if times.is_null(row) { 0 } else { times.value(row) };
        let plausible = time_ns > 0 && (sent_ms < 0 || (time_ns / 1_000_000).abs_diff(sent_ms) <= skew_ms);
        if plausible { Day::of_ns(time_ns) } else { Day::of_kafka_ms(sent_ms) }
    };
    let mut by_day: BTreeMap<Day, Vec<u32>> = BTreeMap::new();
    for row in 0..rows.num_rows() {
        let mut day = day_of(row);
        if by_day.len() >= DAYS_PER_BATCH_MAX && !by_day.contains_key(&day) {
            day = Day::UNDATED;
        }
        by_day.entry(day).or_default().push(row as u32);
    }
    if let [day] = by_day.keys().copied().collect::<Vec<_>>()[..] {
        return Ok(vec![Dated { day, rows, time_min_ns, time_max_ns }]);
    }
    let taken = by_day.into_iter().map(|(day, indices)| {
        let inside = || indices.iter().map(|&row| row as usize).filter(|&row| times.is_valid(row)).map(|row| times.value(row));
        let (time_min_ns, time_max_ns) = (inside().min(), inside().max());
        let rows = take_record_batch(&rows, &UInt32Array::from(indices))?;
        Ok(Dated { day, rows, time_min_ns, time_max_ns })
    });
    taken.collect()
}

fn column<'a, T: ArrowPrimitiveType>(rows: &'a RecordBatch, name: &str) -> Result<&'a PrimitiveArray<T>, ArrowError> {
    let found = rows.column_by_name(name).and_then(|column| column.as_primitive_opt::<T>());
    found.ok_or_else(|| ArrowError::SchemaError(format!("no column {name:?} of type {}", T::DATA_TYPE)))
}

/// Where the file of one day lies in the object store.
pub fn object_path(prefix: &str, group: &Group, day: Day, node_id: &str, file: Ulid) -> String {
    let Civil { year, month, day } = day.civil();
    let folder = group_folder(prefix, group);
    let node = component(node_id);
    format!("{folder}/year={year:04}/month={month:02}/day={day:02}/{node}/{}.parquet", file.to_string())
}

/// Where the coverage of a commit without rows lies in the object store.
pub fn coverage_path(prefix: &str, group: &Group, node_id: &str, commit: Ulid) -> String {
    format!("{}/_coverage/{}/{}.json", group_folder(prefix, group), component(node_id), commit.to_string())
}

fn group_folder(prefix: &str, group: &Group) -> String {
    let prefix = prefix.trim_matches('/');
    let separator = if prefix.is_empty() { "" } else { "/" };
    format!("{prefix}{separator}{}/{}", component(&group.index), group.signal)
}

/// A name as one path component: anything but letters, digits, `.`, `-` and `_` is percent-encoded, so that an index name taken from
/// a topic can neither leave its folder nor clash with another's.
fn component(name: &str) -> String {
    let dots_only = name.bytes().all(|byte| byte == b'.');
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => encoded.push(byte as char),
            b'.' if !dots_only => encoded.push('.'),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    // File systems allow 255 bytes; a Kafka topic has at most 249. Longer ones keep a readable head and get a hash of the whole.
    if encoded.len() > 250 {
        let hash = twox_hash::XxHash3_128::oneshot(name.as_bytes());
        encoded.truncate(200);
        encoded.push_str(&format!("~{hash:032x}"));
    }
    if encoded.is_empty() { "%00".into() } else { encoded }
}
