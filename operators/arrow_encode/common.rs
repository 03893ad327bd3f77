//! The columns that all signals share: where a row came from, its resource and its scope.
//!
//! Their values hold for many rows. Each is prepared once, checked once, and repeated with bulk copies for the rows written since it
//! was set (`flush`): when the value changes, when the size is asked for, and when the batch is cut.

use arrow::datatypes::{Int32Type, Int64Type, TimestampMillisecondType, UInt32Type};

use super::attributes::{push_attribute, push_entry};
use super::columns::{Column, Columns, Maps, Numbers, OptionalNumbers, OptionalTexts, Texts, columns_in_order};
use super::datasets::ResourceColumns;
use super::encoder::Problem;
use super::promoted::{RESOURCE, find_resource, fingerprint};
use crate::batch::{NormalizedBatch, Record, Signal};
use crate::dataset::Stamp;
use crate::otlp::value::{Any, any, key_value, plain_text};
use crate::otlp::wire::{Value, fields};
use crate::tenant::Tenant;

/// The string of `field` that is in `bytes`.
pub fn text<'a>(bytes: &'a [u8], field: &'static str) -> Result<&'a str, Problem> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| Problem::NotUtf8 { column: field.to_owned() })
}

/// The columns that all signals share.
pub struct Common {
    /// Where a row came from.
    pub origin: Origin,
    /// Its resource.
    pub resource: Resource,
    /// Its scope.
    pub scope: Scope,
}

columns_in_order!(Common: origin, resource, scope);

impl Common {
    /// No rows; of `signal`, with the columns that `stamp` adds.
    pub fn new(signal: Signal, stamp: Option<&Stamp>) -> Self {
        Common { origin: Origin::default(), resource: Resource::new(signal, stamp), scope: Scope::default() }
    }

    /// Brings all columns up to `rows` rows.
    pub fn flush(&mut self, rows: usize) {
        self.origin.flush(rows);
        self.resource.flush(rows);
        self.scope.flush(rows);
    }

    /// At most how many bytes one more row takes in these columns beyond its fixed widths.
    pub fn row_bytes(&self) -> usize {
        self.origin.row_bytes() + self.resource.row_bytes() + self.scope.row_bytes()
    }
}

/// The identity of rows (design D-5).
#[derive(Default)]
pub struct Origin {
    topic: Texts,
    partition: Numbers<Int32Type>,
    offset: Numbers<Int64Type>,
    ordinal: Numbers<Int32Type>,
    kafka_timestamp: OptionalNumbers<TimestampMillisecondType>,
    tenant: OptionalTexts,
    current: Message,
}

columns_in_order!(Origin: topic, partition, offset, ordinal, kafka_timestamp, tenant);

/// The message that rows are being written of.
#[derive(Default)]
struct Message {
    topic: String,
    partition: i32,
    offset: i64,
    timestamp_ms: i64,
    tenant: Option<Tenant>,
    /// The row of this batch at which the message began; below 0 where it began in an earlier batch.
    first_row: i64,
}

impl Origin {
    /// The rows from `row` on are of `record` of `batch`.
    pub fn set(&mut self, batch: &NormalizedBatch, record: &Record, row: usize) {
        self.flush(row);
        let partition = &batch.coverage.partition;
        if *self.current.topic != *partition.topic.name {
            self.current.topic.clear();
            self.current.topic.push_str(&partition.topic.name);
        }
        self.current.partition = partition.partition;
        self.current.offset = record.offset;
        self.current.timestamp_ms = record.timestamp_ms;
        let tenant = batch.tenant(record);
        if self.current.tenant.as_ref() != tenant {
            self.current.tenant = tenant.cloned();
        }
        self.current.first_row = row as i64;
    }

    /// The batch was cut after `rows` rows: the message goes on in the next one.
    pub fn cut(&mut self, rows: usize) {
        self.current.first_row -= rows as i64;
    }

    /// The offset of `row`, which must have been flushed.
    pub fn offset_of(&self, row: usize) -> i64 {
        self.offset.get(row).unwrap_or(self.current.offset)
    }

    fn flush(&mut self, rows: usize) {
        let from = self.offset.len();
        let count = rows - from;
        let message = &self.current;
        self.topic.push_repeated(&message.topic, count);
        self.partition.push_repeated(message.partition, count);
        self.offset.push_repeated(message.offset, count);
        self.ordinal.extend((from..rows).map(|row| (row as i64 - message.first_row) as i32));
        let timestamp_ms = Some(message.timestamp_ms).filter(|&timestamp_ms| timestamp_ms >= 0);
        self.kafka_timestamp.set_repeated(from, timestamp_ms, count);
        if let Some(tenant) = &message.tenant {
            self.tenant.set_repeated(from, tenant.name(), count);
        }
    }

    fn row_bytes(&self) -> usize {
        self.current.topic.len() + self.current.tenant.as_ref().map_or(0, |tenant| tenant.name().len())
    }
}

/// The resource of rows.
pub struct Resource {
    promoted: PromotedTexts,
    dataset: ResourceColumns,
    attributes: Maps,
    dropped_attributes_count: Numbers<UInt32Type>,
    schema_url: Texts,
    current: PreparedResource,
}

columns_in_order!(Resource: promoted, dataset, attributes, dropped_attributes_count, schema_url);

#[derive(Default)]
struct PreparedResource {
    promoted: [String; RESOURCE.len()],
    /// One bit for each promoted attribute whose text is in `promoted`.
    present: u32,
    /// One bit for each promoted attribute that came, whether it is in `promoted` or went to the map.
    seen: u32,
    /// The map of all other attributes, as its only row.
    attributes: Maps,
    dropped_attributes_count: u32,
    schema_url: String,
}

impl Resource {
    fn new(signal: Signal, stamp: Option<&Stamp>) -> Self {
        Resource {
            promoted: PromotedTexts::default(),
            dataset: ResourceColumns::new(signal, stamp),
            attributes: Maps::default(),
            dropped_attributes_count: Numbers::default(),
            schema_url: Texts::default(),
            current: PreparedResource::default(),
        }
    }

    /// The rows from `row` on have a new resource: `merge` its occurrences, then call `ready`.
    pub fn begin(&mut self, row: usize) {
        self.flush(row);
        self.dataset.begin();
        self.current.present = 0;
        self.current.seen = 0;
        self.current.attributes.truncate(0);
        self.current.dropped_attributes_count = 0;
    }

    /// Takes one occurrence of the resource; several merge, as protobuf says.
    pub fn merge(&mut self, message: &[u8]) -> Result<(), Problem> {
        let current = &mut self.current;
        for field in fields(message) {
            match field? {
                (1, Value::Bytes(attribute)) => current.push(attribute, &mut self.dataset)?,
                (2, Value::Varint(count)) => current.dropped_attributes_count = count as u32,
                _ => {}
            }
        }
        Ok(())
    }

    /// The resource is complete.
    pub fn ready(&mut self, schema_url: &[u8]) -> Result<(), Problem> {
        replace(&mut self.current.schema_url, text(schema_url, "resource_schema_url")?);
        self.current.attributes.close();
        self.current.attributes.check().map_err(|_| Problem::NotUtf8 { column: "resource_attributes".to_owned() })
    }

    fn flush(&mut self, rows: usize) {
        let from = self.dropped_attributes_count.len();
        let count = rows - from;
        if count == 0 {
            return;
        }
        let current = &self.current;
        for (index, column) in self.promoted.0.iter_mut().enumerate() {
            if let Some(text) = current.promoted(index) {
                column.set_repeated(from, text, count);
            }
        }
        self.dataset.flush(from, count);
        self.attributes.append_repeated(&current.attributes, count);
        self.dropped_attributes_count.push_repeated(current.dropped_attributes_count, count);
        self.schema_url.push_repeated(&current.schema_url, count);
    }

    fn row_bytes(&self) -> usize {
        let promoted: usize = (0..RESOURCE.len()).filter_map(|index| self.current.promoted(index)).map(str::len).sum();
        promoted + self.dataset.row_bytes() + self.current.attributes.content_bytes() + self.current.schema_url.len()
    }
}

impl PreparedResource {
    fn push(&mut self, attribute: &[u8], dataset: &mut ResourceColumns) -> Result<(), Problem> {
        if let Some((key, text)) = plain_text(attribute) {
            return self.push_any(key, &Any::Text(text), dataset);
        }
        let attribute = key_value(attribute)?;
        self.push_any(attribute.key, &any(&attribute.value)?, dataset)
    }

    #[inline]
    fn push_any(&mut self, key: &[u8], value: &Any<'_>, dataset: &mut ResourceColumns) -> Result<(), Problem> {
        let Some(index) = find_resource(key, fingerprint(key)) else {
            return if dataset.takes(key, value)? { Ok(()) } else { push_entry(key, value, &mut self.attributes) };
        };
        if self.seen & (1 << index) != 0 {
            return Ok(());
        }
        self.seen |= 1 << index;
        let Any::Text(bytes) = value else { return push_entry(key, value, &mut self.attributes) };
        self.present |= 1 << index;
        replace(&mut self.promoted[index], text(bytes, RESOURCE[index].column)?);
        Ok(())
    }

    fn promoted(&self, index: usize) -> Option<&str> {
        (self.present & (1 << index) != 0).then_some(&self.promoted[index])
    }
}

/// The promoted columns of the resource.
struct PromotedTexts([OptionalTexts; RESOURCE.len()]);

impl Default for PromotedTexts {
    fn default() -> Self {
        PromotedTexts(std::array::from_fn(|_| OptionalTexts::default()))
    }
}

impl Columns for PromotedTexts {
    fn each(&self, visit: &mut dyn FnMut(&dyn Column)) {
        self.0.iter().for_each(|column| visit(column));
    }
    fn each_mut(&mut self, visit: &mut dyn FnMut(&mut dyn Column)) {
        self.0.iter_mut().for_each(|column| visit(column));
    }
}

/// The instrumentation scope of rows.
#[derive(Default)]
pub struct Scope {
    name: Texts,
    version: Texts,
    attributes: Maps,
    schema_url: Texts,
    current: PreparedScope,
}

columns_in_order!(Scope: name, version, attributes, schema_url);

#[derive(Default)]
struct PreparedScope {
    name: String,
    version: String,
    attributes: Maps,
    schema_url: String,
}

impl Scope {
    /// The rows from `row` on have a new scope: `merge` its occurrences, then call `ready`.
    pub fn begin(&mut self, row: usize) {
        self.flush(row);
        self.current.name.clear();
        self.current.version.clear();
        self.current.attributes.truncate(0);
    }

    /// Takes one occurrence of the scope; several merge, as protobuf says.
    pub fn merge(&mut self, message: &[u8]) -> Result<(), Problem> {
        let current = &mut self.current;
        for field in fields(message) {
            match field? {
                (1, Value::Bytes(name)) => replace(&mut current.name, text(name, "scope_name")?),
                (2, Value::Bytes(version)) => replace(&mut current.version, text(version, "scope_version")?),
                (3, Value::Bytes(attribute)) => push_attribute(attribute, &mut current.attributes)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The scope is complete.
    pub fn ready(&mut self, schema_url: &[u8]) -> Result<(), Problem> {
        replace(&mut self.current.schema_url, text(schema_url, "scope_schema_url")?);
        self.current.attributes.close();
        self.current.attributes.check().map_err(|_| Problem::NotUtf8 { column: "scope_attributes".to_owned() })
    }

    fn flush(&mut self, rows: usize) {
        let count = rows - self.name.len();
        if count == 0 {
            return;
        }
        let current = &self.current;
        self.name.push_repeated(&current.name, count);
        self.version.push_repeated(&current.version, count);
        self.attributes.append_repeated(&current.attributes, count);
        self.schema_url.push_repeated(&current.schema_url, count);
    }

    fn row_bytes(&self) -> usize {
        let current = &self.current;
        current.name.len() + current.version.len() + current.attributes.content_bytes() + current.schema_url.len()
    }
}

/// Sets `target` to `text`, keeping its memory.
pub fn replace(target: &mut String, text: &str) {
    target.clear();
    target.push_str(text);
}
