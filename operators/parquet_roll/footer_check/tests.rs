use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::{ParquetMetaDataReader, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

use super::*;
use crate::parquet_roll::Compression;
use crate::parquet_roll::tests::{noon_rows, partition, record_batch};
use crate::parquet_roll::writer::{Shape, properties};

/// A good footer of one column in one row group, with more fields at the end of each struct.
#[derive(Clone, Copy, Default)]
struct Footer<'a> {
    file: &'a [u8],
    element: &'a [u8],
    group: &'a [u8],
    chunk: &'a [u8],
    column: &'a [u8],
    statistics: &'a [u8],
}

impl Footer<'_> {
    fn bytes(self) -> Vec<u8> {
        let statistics = [&[0x36, 0][..], self.statistics, &[0]].concat();
        let before = [0x15, 2, 0x19, 0x15, 0, 0x19, 0x18, 1, b'a', 0x15, 0, 0x16, 0, 0x16, 0, 0x16, 0, 0x26, 0];
        let column = [&before[..], &[0x3c], &statistics, self.column, &[0]].concat();
        let chunk = [&[0x26, 0, 0x1c][..], &column, self.chunk, &[0]].concat();
        let group = [&[0x19, 0x1c][..], &chunk, &[0x16, 0, 0x16, 0], self.group, &[0]].concat();
        let root = [0x48, 1, b'r', 0x15, 2, 0];
        let leaf = [&[0x15, 2, 0x25, 0, 0x18, 1, b'a'][..], self.element, &[0]].concat();
        [&[0x15, 2, 0x19, 0x2c][..], &root, &leaf, &[0x16, 0, 0x19, 0x1c], &group, self.file, &[0]].concat()
    }
}

/// A footer without rows, whose schema has these elements.
fn schema(elements: &[Vec<u8>]) -> Vec<u8> {
    let size = elements.len() as u32;
    let size = [0x80 | (size & 0x7f) as u8, 0x80 | (size >> 7 & 0x7f) as u8, (size >> 14) as u8];
    [&[0x15, 2, 0x19, 0xfc][..], &size, &elements.concat(), &[0x16, 0, 0x19, 0x0c, 0]].concat()
}

/// A group of some children, as a zigzag varint.
fn group(name: &[u8], children: &[u8]) -> Vec<u8> {
    let length = [0x80 | (name.len() & 0x7f) as u8, 0x80 | (name.len() >> 7 & 0x7f) as u8, (name.len() >> 14) as u8];
    [&[0x35, 0, 0x18][..], &length, name, &[0x15], children, &[0]].concat()
}

fn leaf() -> Vec<u8> {
    vec![0x15, 2, 0x25, 0, 0x18, 1, b'a', 0]
}

fn is_read(thrift: &[u8]) -> bool {
    ParquetMetaDataReader::decode_metadata(thrift).is_ok()
}

/// Field 100 with a list.
fn unknown(list: &[u8]) -> Vec<u8> {
    [&[0x09, 0xc8, 1][..], list].concat()
}

#[test]
fn footers_with_lists_of_booleans_anywhere_are_refused_and_with_fields_of_later_versions_taken() {
    let good = Footer::default();
    assert!(is_sound(&good.bytes()) && is_read(&good.bytes()));
    let many = [0xf2, 0xff, 0xff, 0xff, 0xff, 7];
    let lists =
        [&many[..], &[&[0x19][..], &many].concat(), &[0x11], &[0x1c, 0x09, 0xc8, 1, 0x12, 0], &[0xf5, 0xff, 0xff, 0xff, 0xff, 7]];
    for (list, is_good) in lists.map(|list| (list, false)).into_iter().chain([(&[0x35, 0, 2, 4][..], true)]) {
        let field = unknown(list);
        let footers = [
            Footer { file: &field, ..good },
            Footer { element: &field, ..good },
            Footer { group: &field, ..good },
            Footer { chunk: &field, ..good },
            Footer { column: &field, ..good },
            Footer { statistics: &field, ..good },
        ];
        for footer in footers.map(Footer::bytes) {
            assert_eq!(is_sound(&footer), is_good, "{}", footer.escape_ascii());
            assert!(!is_good || is_read(&footer), "{}", footer.escape_ascii());
        }
    }
}

/// Why: where this fails, the reader looks at booleans in lists, and they need no special care any more.
#[test]
fn the_reader_passes_over_booleans_that_are_not_there() {
    let thousand = unknown(&[0xf2, 0xe8, 7]);
    let footers = [
        Footer { file: &thousand, ..Footer::default() },
        Footer { group: &thousand, ..Footer::default() },
        Footer { column: &thousand, ..Footer::default() },
        Footer { statistics: &thousand, ..Footer::default() },
        Footer { group: &[&[0x39][..], &thousand[3..]].concat(), ..Footer::default() },
    ];
    for footer in footers.map(Footer::bytes) {
        assert!(is_read(&footer) && !is_sound(&footer), "{}", footer.escape_ascii());
    }
}

#[test]
fn footers_whose_fields_have_not_the_types_of_the_format_are_refused() {
    let good = Footer::default();
    // Where the reader goes by the number: 6 of a row group and 16 of a column's are passed over or read, whatever their type.
    let empty_list = [0x05];
    let wrong = [
        Footer { group: &[&[0x39][..], &empty_list].concat(), ..good },
        Footer { column: &[&[0x49][..], &empty_list].concat(), ..good },
        Footer { statistics: &[&[0x48][..], &[0]].concat(), ..good },
        Footer { file: &[&[0x19][..], &[0x15, 0]].concat(), ..good },
        // Number 65,536 + 6, of which the reader keeps 6.
        Footer { group: &[0x09, 0x8c, 0x80, 0x08, 0x05], ..good },
    ];
    for footer in wrong.map(Footer::bytes) {
        assert!(!is_sound(&footer), "{}", footer.escape_ascii());
    }
    let whole = good.bytes();
    assert!((0..whole.len()).all(|len| !is_sound(&whole[..len])));
}

#[test]
fn schemas_that_are_no_tree_or_cost_more_than_their_length_are_refused() {
    assert!(is_sound(&schema(&[group(b"r", &[2]), leaf()])));
    assert!(is_read(&schema(&[group(b"r", &[2]), leaf()])));
    // Three children, 2^30, fewer than none, and one that is nobody's child.
    for children in [&[6][..], &[0x80, 0x80, 0x80, 0x80, 0x08], &[1], &[0]] {
        assert!(!is_sound(&schema(&[group(b"r", children), leaf()])), "{children:?}");
    }
    let nested = |levels: usize| schema(&[vec![group(b"g", &[2]); levels], vec![leaf()]].concat());
    assert!(is_sound(&nested(SCHEMA_DEPTH_MAX)) && is_read(&nested(SCHEMA_DEPTH_MAX)));
    assert!(!is_sound(&nested(SCHEMA_DEPTH_MAX + 1)));
    assert!(!is_sound(&nested(100_000)), "the reader would have no stack left");
    // 8,190 columns below a name: 8,190 copies of it.
    let below = |name: &[u8]| schema(&[vec![group(b"r", &[2]), group(name, &[0xfc, 0x7f])], vec![leaf(); 8_190]].concat());
    assert!(is_sound(&below(&[b'n'; 100])) && is_read(&below(&[b'n'; 100])));
    assert!(!is_sound(&below(&[b'n'; 10_000])));
}

/// The footer of a file of `batch`.
fn footer_of(batch: &RecordBatch, properties: WriterProperties) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    let end = bytes.len() - 8;
    let length = u32::from_le_bytes(*bytes[end..].first_chunk().unwrap()) as usize;
    bytes[end - length..end].to_vec()
}

#[test]
fn footers_of_real_files_are_sound_however_they_are_written() {
    let rows = record_batch(&noon_rows(&partition("shop", 0), 0..50));
    for (compression, bloom_filters, row_group_rows_max) in
        [Compression::None, Compression::Zstd(1)].into_iter().flat_map(|c| [(c, false, 7), (c, true, 7), (c, true, 1_000)])
    {
        let shape = Shape { row_group_rows_max, compression, bloom_filters };
        let footer = footer_of(&rows, properties(&rows.schema(), shape).unwrap());
        assert!(is_sound(&footer) && is_read(&footer), "{shape:?}");
        assert!((0..footer.len()).all(|len| !is_sound(&footer[..len])));
    }
    let all_types = all_types();
    for statistics in [EnabledStatistics::None, EnabledStatistics::Chunk, EnabledStatistics::Page] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let sorted = SortingColumn { column_idx: 0, descending: true, nulls_first: false };
            let properties = WriterProperties::builder()
                .set_writer_version(version)
                .set_statistics_enabled(statistics)
                .set_bloom_filter_enabled(true)
                .set_sorting_columns(Some(vec![sorted]))
                .set_write_page_header_statistics(true);
            let footer = footer_of(&all_types, properties.build());
            assert!(is_sound(&footer) && is_read(&footer), "{statistics:?}, {version:?}");
        }
    }
}

/// A column of each type of Arrow that is written as another one of Parquet.
fn all_types() -> RecordBatch {
    let nested = Field::new("item", DataType::List(Arc::new(Field::new("item", DataType::Int64, true))), true);
    let entries = Field::new("key", DataType::Utf8, false);
    let entries = DataType::Struct(vec![entries, Field::new("value", DataType::Float64, true)].into());
    let types = vec![
        DataType::Boolean,
        DataType::Int8,
        DataType::UInt16,
        DataType::UInt64,
        DataType::Float16,
        DataType::Float32,
        DataType::Utf8,
        DataType::Binary,
        DataType::FixedSizeBinary(16),
        DataType::Date32,
        DataType::Time32(TimeUnit::Millisecond),
        DataType::Time64(TimeUnit::Nanosecond),
        DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        DataType::Decimal128(38, 10),
        DataType::Decimal128(5, 2),
        DataType::List(Arc::new(nested.clone())),
        DataType::Struct(vec![nested, Field::new("b", DataType::Utf8, true)].into()),
        DataType::Map(Arc::new(Field::new("entries", entries, false)), false),
    ];
    let columns: Vec<_> = types.iter().map(|data_type| new_null_array(data_type, 20)).collect();
    let fields = types.into_iter().enumerate().map(|(index, data_type)| Field::new(format!("c{index}"), data_type, true));
    RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns).unwrap()
}
