//! What a file says about its commit, in its own footer: enough to rebuild the catalog from the object store alone.
//!
//! ```text
//! openwit.version   the version that wrote the file
//! openwit.commit    JSON, `CommitNote`: the same in all files of a commit
//! openwit.file      JSON, `FileNote`: this file's own
//! ```
//! A commit without rows has no Parquet file; its `CommitNote` is a JSON object of its own (`day::coverage_path`).
//! The number in `format` goes up when a reader of the old form would misread the new one.

use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData, ParquetMetaDataReader};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::batch::Group;
use crate::parquet_roll::{CoverageRow, Day, footer_check};

/// Key of the version that wrote a file.
pub const VERSION: &str = "openwit.version";
/// Key of the `CommitNote`.
pub const COMMIT: &str = "openwit.commit";
/// Key of the `FileNote`.
pub const FILE: &str = "openwit.file";

const FORMAT: u32 = 1;

/// What all files of a commit say about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitNote {
    /// Version of this form.
    pub format: u32,
    /// The commit's id.
    #[serde(with = "ulid_text")]
    pub commit_id: Ulid,
    /// The group of its rows.
    pub group: Group,
    /// The node that wrote it.
    pub node: Arc<str>,
    /// The ids of its files, by day. The last one is uploaded last, so where it is, all are.
    #[serde(with = "ulid_texts")]
    pub files: Vec<Ulid>,
    /// What it accounts for.
    pub coverage: Vec<CoverageRow>,
}

/// What a file says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileNote {
    /// The file's id.
    #[serde(with = "ulid_text")]
    pub file: Ulid,
    /// The day of its rows.
    pub day: Day,
    /// The least event time in nanoseconds.
    pub time_min_ns: Option<i64>,
    /// The greatest event time in nanoseconds.
    pub time_max_ns: Option<i64>,
    /// Names its schema.
    pub schema_hash: Arc<str>,
    /// The version of its schema; 0 in files that do not tell.
    #[serde(default)]
    pub schema_version: u32,
}

/// Why a footer or coverage object cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// Not one of our files.
    #[error("no key {0:?} in the footer")]
    Missing(&'static str),
    /// Damaged.
    #[error("a note does not parse")]
    Json(#[from] serde_json::Error),
    /// Written by a newer version.
    #[error("the note has format {0}, this version reads {FORMAT}")]
    Format(u32),
    /// Damaged, or tampered with.
    #[error("the note's coverage of {0} is not valid")]
    Coverage(String),
}

impl CommitNote {
    /// A note of the current form.
    pub fn new(commit_id: Ulid, group: Group, node: Arc<str>, files: Vec<Ulid>, coverage: Vec<CoverageRow>) -> Self {
        CommitNote { format: FORMAT, commit_id, group, node, files, coverage }
    }

    /// As JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// From JSON, refusing what this version would misread.
    pub fn from_json(json: &[u8]) -> Result<Self, NoteError> {
        let note: CommitNote = serde_json::from_slice(json)?;
        if note.format != FORMAT {
            return Err(NoteError::Format(note.format));
        }
        match note.coverage.iter().find(|row| !row.is_valid()) {
            Some(row) => Err(NoteError::Coverage(row.partition.to_string())),
            None => Ok(note),
        }
    }
}

/// The pairs to append to a footer. `commit` is the `CommitNote` as JSON, made once for all files of a commit.
pub fn pairs(commit: &str, file: &FileNote) -> Result<Vec<KeyValue>, serde_json::Error> {
    let pair = |key: &str, value: String| KeyValue { key: key.into(), value: Some(value) };
    let version = env!("CARGO_PKG_VERSION").to_string();
    Ok(vec![pair(VERSION, version), pair(COMMIT, commit.to_string()), pair(FILE, serde_json::to_string(file)?)])
}

/// The metadata in the Thrift bytes of a footer that comes from a store: what it says of itself costs nothing before it is true.
pub fn decode(thrift: &[u8]) -> Result<ParquetMetaData, ParquetError> {
    if !footer_check::is_sound(thrift) {
        return Err(ParquetError::General("the footer has not the form of Parquet's, or its schema contradicts itself".into()));
    }
    ParquetMetaDataReader::decode_metadata(thrift)
}

/// Both notes of a footer.
pub fn read(metadata: &ParquetMetaData) -> Result<(CommitNote, FileNote), NoteError> {
    let pairs = metadata.file_metadata().key_value_metadata();
    let value = |key: &'static str| {
        let found = pairs.and_then(|pairs| pairs.iter().find(|pair| pair.key == key));
        found.and_then(|pair| pair.value.as_deref()).ok_or(NoteError::Missing(key))
    };
    Ok((CommitNote::from_json(value(COMMIT)?.as_bytes())?, serde_json::from_str(value(FILE)?)?))
}

/// ULIDs as their 26 characters.
pub mod ulid_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use ulid::Ulid;

    /// Writes the 26 characters.
    pub fn serialize<S: Serializer>(id: &Ulid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&id.to_string())
    }

    /// Reads the 26 characters.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ulid, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ulid::from_string(&text).map_err(|_| D::Error::custom("not a ULID"))
    }
}

mod ulid_texts {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use ulid::Ulid;

    pub fn serialize<S: Serializer>(ids: &[Ulid], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(|id| id.to_string()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Ulid>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| Ulid::from_string(text).map_err(|_| D::Error::custom("not a ULID"))).collect()
    }
}
