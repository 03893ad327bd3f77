//! What a file says about itself in its footer: which epochs its rows are of, and what became of every offset.
//!
//! ```text
//! openwit.version      the version that wrote the file
//! openwit.local_file   JSON, `FileNote`
//! ```
//! Nothing here depends on when, where or on how many workers the file was written.

use std::sync::Arc;

use parquet::file::metadata::{KeyValue, ParquetMetaData};
use serde::{Deserialize, Serialize};

use crate::batch::Group;
use crate::coverage::Coverage;
use crate::epoch::Epoch;
use crate::parquet_roll::footer::VERSION;

/// Key of the `FileNote`.
pub const KEY: &str = "openwit.local_file";

const FORMAT: u32 = 1;

/// What a file says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileNote {
    /// Version of this form.
    pub format: u32,
    /// The group of its rows.
    pub group: Group,
    /// The file's number in its group, from 0.
    pub sequence: u64,
    /// Names its schema.
    pub schema_hash: Arc<str>,
    /// The epochs in it, ascending, each with its number of rows, in the order in which the rows lie.
    pub epochs: Vec<(Epoch, u64)>,
    /// What it accounts for: by partition, the runs of offsets in the order in which they came.
    pub coverage: Vec<Coverage>,
}

impl FileNote {
    pub(super) fn new(group: Group, schema_hash: Arc<str>) -> Self {
        FileNote { format: FORMAT, group, sequence: 0, schema_hash, epochs: Vec::new(), coverage: Vec::new() }
    }

    /// The pairs to append to a footer.
    pub(super) fn pairs(&self) -> Result<[KeyValue; 2], serde_json::Error> {
        let pair = |key: &str, value: String| KeyValue { key: key.into(), value: Some(value) };
        Ok([pair(VERSION, env!("CARGO_PKG_VERSION").into()), pair(KEY, serde_json::to_string(self)?)])
    }

    /// The note in a footer; `None` if the file was not written by `parquet_files`.
    pub fn read(metadata: &ParquetMetaData) -> Option<Result<FileNote, String>> {
        let pairs = metadata.file_metadata().key_value_metadata()?;
        let json = pairs.iter().find(|pair| pair.key == KEY)?.value.as_deref()?;
        let note = serde_json::from_str::<FileNote>(json).map_err(|error| format!("its note does not parse: {error}"));
        Some(note.and_then(|note| match note.format {
            FORMAT => Ok(note),
            newer => Err(format!("its note has format {newer}, this version reads {FORMAT}")),
        }))
    }
}
