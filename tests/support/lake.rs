//! What a pipeline left behind, read without its help: rows of the Parquet files, lines of the dead letter.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, FieldRef, Int32Type, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Deserialize;

/// Where a message lies in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
}

/// One row of a Parquet file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The message it came from.
    pub place: Place,
    /// Its number in the message.
    pub ordinal: i32,
    /// Whose it is.
    pub tenant: Option<String>,
    /// A hash of all columns but those that say where and when the message lay in Kafka: equal messages have equal rows.
    pub content: u64,
}

/// Columns that differ between copies of one message.
const ORIGIN: [&str; 5] = ["_topic", "_partition", "_offset", "_ordinal", "_kafka_timestamp"];

/// All files below `folder` whose names end with `ending`, in the order of their names.
pub fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.expect("a folder can be listed").path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The rows of all Parquet files below `folder`.
pub fn rows(folder: &Path) -> Vec<Row> {
    rows_of(files(folder, ".parquet"))
}

/// The rows of these Parquet files.
pub fn rows_of(files: impl IntoIterator<Item = PathBuf>) -> Vec<Row> {
    let mut rows = Vec::new();
    for path in files {
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
        for batch in reader.unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
            push_rows(&mut rows, &batch.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        }
    }
    rows
}

fn push_rows(rows: &mut Vec<Row>, batch: &RecordBatch) {
    let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
    let topics = arrow::compute::cast(column("_topic"), &DataType::Utf8).expect("a topic is text");
    let (topics, partitions) = (topics.as_string::<i32>(), column("_partition").as_primitive::<Int32Type>());
    let (offsets, ordinals) = (column("_offset").as_primitive::<Int64Type>(), column("_ordinal").as_primitive::<Int32Type>());
    let tenants =
        batch.column_by_name("_tenant").map(|column| arrow::compute::cast(column, &DataType::Utf8).expect("a tenant is text"));
    let tenants = tenants.as_ref().map(|column| column.as_string::<i32>());
    let options = FormatOptions::new().with_null("\u{0}null");
    let schema = batch.schema();
    let fields = schema.fields().iter().filter(|field| !ORIGIN.contains(&field.name().as_str()));
    let columns: Vec<ArrayRef> = fields.map(|field| without_time_zones(column(field.name()))).collect();
    let contents: Vec<ArrayFormatter<'_>> =
        columns.iter().map(|column| ArrayFormatter::try_new(column, &options).expect("every column can be shown")).collect();
    for row in 0..batch.num_rows() {
        // Its keys are fixed, so contents of two runs can be compared.
        let mut hasher = DefaultHasher::new();
        for content in &contents {
            content.value(row).to_string().hash(&mut hasher);
        }
        let place = Place { topic: topics.value(row).into(), partition: partitions.value(row), offset: offsets.value(row) };
        let tenant = tenants.filter(|tenants| tenants.is_valid(row)).map(|tenants| tenants.value(row).to_owned());
        rows.push(Row { place, ordinal: ordinals.value(row), tenant, content: hasher.finish() });
    }
}

/// Times as numbers: showing them would need a table of time zones.
fn without_time_zones(column: &ArrayRef) -> ArrayRef {
    arrow::compute::cast(column, &numbers_for_times(column.data_type())).expect("a time is a number")
}

fn numbers_for_times(data_type: &DataType) -> DataType {
    let field = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(numbers_for_times(field.data_type())));
    match data_type {
        DataType::Timestamp(..) => DataType::Int64,
        DataType::List(item) => DataType::List(field(item)),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        other => other.clone(),
    }
}

/// One line of the dead letter's files.
#[derive(Clone, Debug, Deserialize)]
pub struct Letter {
    /// Why the message was rejected.
    pub reason: String,
    /// The details, for people.
    pub detail: String,
    /// The message's topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its Kafka timestamp.
    pub timestamp_ms: Option<i64>,
    /// Its key in base64.
    pub key_base64: Option<String>,
    /// Its payload in base64.
    pub payload_base64: Option<String>,
    /// Its headers, values in base64.
    pub headers: Vec<(String, Option<String>)>,
}

impl Letter {
    /// Where the message lies.
    pub fn place(&self) -> Place {
        Place { topic: self.topic.clone(), partition: self.partition, offset: self.offset }
    }

    /// The message's payload; `None` was a tombstone.
    pub fn payload(&self) -> Option<Vec<u8>> {
        self.payload_base64.as_deref().map(base64_decoded)
    }
}

/// All letters in the folder of a dead letter.
pub fn letters(folder: &Path) -> Vec<Letter> {
    let mut letters = Vec::new();
    for path in files(folder, ".ndjson") {
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line = line.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let letter = serde_json::from_str(&line);
            letters.push(letter.unwrap_or_else(|error| panic!("{}:{}: {error}\n{line}", path.display(), number + 1)));
        }
    }
    letters
}

/// Decodes base64 of RFC 4648, padded; written anew here so that the pipeline is not checked with its own tools.
fn base64_decoded(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    assert!(text.len().is_multiple_of(4), "base64 is padded: {text}");
    let digits = text.trim_end_matches('=').bytes();
    let digits = digits.map(|digit| ALPHABET.iter().position(|known| *known == digit).expect("a digit of base64"));
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0usize, 0);
    for digit in digits {
        bits = bits << 6 | digit;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}
