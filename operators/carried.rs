//! A `UniqueBatch` on its way between workers: typed within a process, as a frame of the log's form between processes.
//!
//! The log's codec serves, for it has checksums, keeps the dataset schema and the tenants, and is tested against damage. What it does not
//! carry is the charge: memory is counted where it is.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::batch::UniqueBatch;
use crate::epoch::Epoch;
use crate::wal_commit::frame;

/// A batch that can be exchanged.
#[derive(Clone, Debug)]
pub struct Carried(pub UniqueBatch);

impl Serialize for Carried {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut frame = Vec::new();
        let encoded = frame::encode(Epoch(0), &self.0.0, &mut frame::Scratch::default(), &mut frame);
        encoded.map_err(serde::ser::Error::custom)?;
        serializer.serialize_bytes(&frame)
    }
}

impl<'de> Deserialize<'de> for Carried {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?;
        let (_, batch) = frame::decode(&bytes, 0, 0).map_err(serde::de::Error::custom)?;
        Ok(Carried(UniqueBatch(batch)))
    }
}
