//! One open Parquet file: how rows are encoded, and how a file is finished so that it can be trusted.
//!
//! ```text
//! create active/F  ->  row groups, as rows come  ->  footer, fsync  ->  read the footer back  ->  rename to stable/F, fsync folder
//! ```
//!
//! Parquet is the largest cost of the pipeline, so the settings were chosen by measuring, on 200,000 generated rows of each signal
//! (65, 58 and 49 columns; 1.0 to 1.1 kB a row in Arrow). CPU per row and file bytes per row; two busy cores, four interleaved
//! rounds, medians: only the ratios mean something elsewhere.
//!
//! ```text
//! setting, each added to the one above            traces           logs             metrics
//! library defaults with zstd 1                    1,815 ns  44 B
//! integers and times delta, ids without
//!   dictionary and statistics, bloom filter       1,260 ns  34.3 B 1,065 ns  25.3 B 1,140 ns  28.9 B
//! no statistics below lists and maps              1,225 ns  34.3 B   980 ns  24.9 B 1,050 ns  28.8 B
//! body without dictionary, dictionaries of
//!   at most 128 KiB instead of 1 MiB              1,005 ns  32.0 B   845 ns  23.6 B 1,005 ns  28.5 B   chosen, with pages
//! pages of up to 50,000 rows instead of 20,000    1,010 ns  30.6 B   835 ns  23.6 B 1,005 ns  28.5 B   of 50,000 rows
//! ```
//! What remains is strings: hashing and comparing each value for its dictionary and for minimum and maximum is half of the time, 16 ns
//! for a column whose value never changes, 0.3 ns for one without values. Statistics of strings are a tenth of all; they are kept, as
//! an index of one service or route prunes by them. Rejected, against the row before the last two: zstd 3 +25 % CPU for nothing; no
//! compression -12 % CPU, 2.3 times the bytes; ids uncompressed, no gain, +15 B; no dictionaries at all -10 % CPU, +4 B and slow
//! filters for every reader; data pages of version 2, +4 B; row groups of 20,000 rows, +10 % CPU, +4 B. The bloom filter costs what
//! noise costs: it is folded to the trace ids that are there.
//!
//! Rows are not sorted: moving them costs 260 to 510 ns a row, half as much again as writing them, and they arrive nearly by time. It is
//! also what splitting a delivery by day costs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::{Encoding, Type, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaDataReader};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnDescriptor;
use ulid::Ulid;

use crate::arrow_encode::schema::{DATASET_HASH_KEY, DATASET_VERSION_KEY, VERSION_KEY};
use crate::parquet_roll::day::Dated;
use crate::parquet_roll::{Compression, Error, footer};

/// Random bytes: neither a dictionary nor minima and maxima help, a bloom filter does.
const ID_COLUMNS: [&str; 3] = ["trace_id", "span_id", "parent_span_id"];
/// The id that is searched for.
const BLOOM_COLUMN: &str = "trace_id";
/// One in a hundred row groups is read in vain: 1.2 bytes per distinct id.
const BLOOM_FALSE_POSITIVES: f64 = 0.01;
/// Free text: hardly ever the same twice, and nobody looks for a range of it.
const TEXT_COLUMNS: [&str; 1] = ["body"];
/// A dictionary beyond it is of a column that repeats too little: the rest of the row group is written plain, and compresses better.
const DICTIONARY_BYTES_MAX: usize = 128 << 10;
/// A page of narrow values ends here rather than at 1 MiB, so that a reader need not decode a whole row group for one page.
const PAGE_ROWS_MAX: usize = 50_000;

/// What the configuration says of every file.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Rows of a row group.
    pub row_group_rows_max: usize,
    /// How pages are compressed.
    pub compression: Compression,
    /// Bloom filters on trace ids.
    pub bloom_filters: bool,
}

/// A schema with what follows from it: computed once per schema, not per file.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The schema.
    pub schema: SchemaRef,
    /// Equal for equal field names, types and nullability, and equal dataset schemas: the hash of that stands first, where there is one.
    /// Files are told apart by it, so no file holds rows of two versions of a dataset's schema.
    pub hash: Arc<str>,
    /// The version of the dataset's schema, else of the signal's, as the metadata tells; 0 where it does not.
    pub version: u32,
    properties: WriterProperties,
}

impl Layout {
    /// The layout of files of `schema`.
    pub fn new(schema: SchemaRef, shape: Shape) -> Result<Self, ParquetError> {
        let properties = properties(&schema, shape)?;
        let metadata = schema.metadata();
        let version = metadata.get(DATASET_VERSION_KEY).or_else(|| metadata.get(VERSION_KEY));
        let version = version.and_then(|version| version.parse().ok()).unwrap_or(0);
        Ok(Layout { hash: schema_hash(&schema).into(), version, schema, properties })
    }

    /// How its files are written.
    pub fn properties(&self) -> &WriterProperties {
        &self.properties
    }
}

fn schema_hash(schema: &Schema) -> String {
    let mut text = String::new();
    for field in schema.fields() {
        text.push_str(&format!("{}\u{0}{}\u{0}{}\n", field.name(), field.data_type(), field.is_nullable()));
    }
    let columns = format!("{:032x}", twox_hash::XxHash3_128::oneshot(text.as_bytes()));
    match schema.metadata().get(DATASET_HASH_KEY) {
        Some(dataset) => format!("{dataset}-{columns}"),
        None => columns,
    }
}

/// See the module's figures for why each is set as it is.
pub(crate) fn properties(schema: &Schema, shape: Shape) -> Result<WriterProperties, ParquetError> {
    let Shape { row_group_rows_max, compression, bloom_filters } = shape;
    let mut builder = WriterProperties::builder()
        .set_max_row_group_row_count(Some(row_group_rows_max))
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_data_page_row_count_limit(PAGE_ROWS_MAX)
        .set_created_by(concat!("openwit-ingest version ", env!("CARGO_PKG_VERSION")).into())
        .set_compression(match compression {
            Compression::Zstd(level) => parquet::basic::Compression::ZSTD(ZstdLevel::try_new(level)?),
            Compression::None => parquet::basic::Compression::UNCOMPRESSED,
        });
    let columns = ArrowSchemaConverter::new().convert(schema)?;
    for column in columns.columns() {
        let path = column.path().clone();
        let root = path.parts().first().map_or("", String::as_str);
        let (is_id, is_text, is_repeated) =
            (ID_COLUMNS.contains(&root), TEXT_COLUMNS.contains(&root), column.max_rep_level() > 0);
        // No reader skips anything by the minimum of a map's keys.
        if is_id || is_text || is_repeated {
            builder = builder.set_column_statistics_enabled(path.clone(), EnabledStatistics::None);
        }
        if root == BLOOM_COLUMN && bloom_filters {
            builder = builder.set_column_bloom_filter_fpp(path.clone(), BLOOM_FALSE_POSITIVES);
        }
        if is_id || is_text {
            builder = builder.set_column_dictionary_enabled(path, false);
        } else if let Some(encoding) = number_encoding(column) {
            builder = builder.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding);
        }
    }
    Ok(builder.build())
}

/// How a numeric column is encoded; `None` for what is no number.
fn number_encoding(column: &ColumnDescriptor) -> Option<Encoding> {
    match column.physical_type() {
        Type::INT32 | Type::INT64 => Some(Encoding::DELTA_BINARY_PACKED),
        Type::FLOAT | Type::DOUBLE => Some(Encoding::PLAIN),
        _ => None,
    }
}

/// A file being written.
pub struct FileWriter {
    /// The file's id.
    pub file: Ulid,
    /// Rows so far.
    pub rows: u64,
    /// The least event time so far.
    pub time_min_ns: Option<i64>,
    /// The greatest event time so far.
    pub time_max_ns: Option<i64>,
    /// The version of its schema.
    pub schema_version: u32,
    /// Bytes so far, those of the row group in memory estimated.
    pub bytes: u64,
    /// Memory held by the row group being built.
    pub memory_bytes: usize,
    writer: ArrowWriter<File>,
    path: PathBuf,
}

impl FileWriter {
    /// Creates `file` in the folder `active`.
    pub fn create(active: &Path, file: Ulid, layout: &Layout) -> Result<Self, Error> {
        let path = rows_file(active, file);
        let handle = File::create_new(&path).map_err(|source| Error::Io { doing: "create", path: path.clone(), source })?;
        let writer = ArrowWriter::try_new(handle, layout.schema.clone(), Some(layout.properties.clone()))
            .map_err(|source| Error::Parquet { doing: "start", path: path.clone(), source })?;
        Ok(FileWriter {
            file,
            rows: 0,
            time_min_ns: None,
            time_max_ns: None,
            schema_version: layout.version,
            bytes: 0,
            memory_bytes: 0,
            writer,
            path,
        })
    }

    /// Appends rows.
    pub fn write(&mut self, dated: &Dated) -> Result<(), Error> {
        self.writer.write(&dated.rows).map_err(|source| Error::Parquet {
            doing: "write rows to",
            path: self.path.clone(),
            source,
        })?;
        self.rows += dated.rows.num_rows() as u64;
        // `None` is less than any time, so the least needs its own word.
        self.time_min_ns = self.time_min_ns.into_iter().chain(dated.time_min_ns).min();
        self.time_max_ns = self.time_max_ns.max(dated.time_max_ns);
        self.measure();
        Ok(())
    }

    /// Ends the row group being built: its memory is freed.
    pub fn end_row_group(&mut self) -> Result<(), Error> {
        self.writer.flush().map_err(|source| Error::Parquet { doing: "end a row group of", path: self.path.clone(), source })?;
        self.measure();
        Ok(())
    }

    fn measure(&mut self) {
        self.bytes = (self.writer.bytes_written() + self.writer.in_progress_size()) as u64;
        self.memory_bytes = self.writer.memory_size();
    }

    /// Writes the footer with `notes`, syncs, reads the footer back and renames the file into the folder `stable`.
    pub fn finish(mut self, notes: Vec<KeyValue>, stable: &Path) -> Result<Finished, Error> {
        let parquet = |doing| move |path: &Path, source| Error::Parquet { doing, path: path.to_path_buf(), source };
        let io = |doing| move |path: &Path, source| Error::Io { doing, path: path.to_path_buf(), source };
        for note in &notes {
            self.writer.append_key_value_metadata(note.clone());
        }
        self.writer.finish().map_err(|error| parquet("write the footer of")(&self.path, error))?;
        self.writer.inner().sync_all().map_err(|error| io("sync")(&self.path, error))?;
        let bytes = read_back(&self.path, self.rows, &notes)?;
        let path = rows_file(stable, self.file);
        std::fs::rename(&self.path, &path).map_err(|error| io("rename")(&self.path, error))?;
        Ok(Finished { path, bytes })
    }
}

/// A file in `stable/`.
pub struct Finished {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Opens the finished file anew and compares what its footer says with what was meant. Gives the file's size.
fn read_back(path: &Path, rows: u64, notes: &[KeyValue]) -> Result<u64, Error> {
    let parquet = |source| Error::Parquet { doing: "read back", path: path.to_path_buf(), source };
    let io = |source| Error::Io { doing: "read back", path: path.to_path_buf(), source };
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).map_err(parquet)?;
    let found = metadata.file_metadata().num_rows();
    if u64::try_from(found) != Ok(rows) {
        return Err(Error::Readback { path: path.into(), detail: format!("{found} rows instead of {rows}") });
    }
    let pairs = metadata.file_metadata().key_value_metadata();
    let missing = notes.iter().find(|note| !pairs.is_some_and(|pairs| pairs.contains(note)));
    if let Some(note) = missing {
        return Err(Error::Readback { path: path.into(), detail: format!("footer key {:?} differs", note.key) });
    }
    let readable = footer::read(&metadata);
    readable.map_err(|error| Error::Readback { path: path.into(), detail: error.to_string() })?;
    Ok(bytes)
}

/// Where a file of rows lies in `folder`.
pub fn rows_file(folder: &Path, file: Ulid) -> PathBuf {
    folder.join(format!("{}.parquet", file.to_string()))
}

/// Makes renames and new files in `folder` survive a power failure.
pub fn sync_folder(folder: &Path) -> Result<(), Error> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| Error::Io { doing: "sync", path: folder.to_path_buf(), source })
}
