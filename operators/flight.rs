//! What ingest and storage say to each other over Arrow Flight `DoPut`.
//!
//! ```text
//! sink    -> a schema of one signal, then record batches of it, then another schema, ..; each record batch carries a `PartHeader` as JSON in `app_metadata`
//! sink    -> .. the last part of a delivery also carries the delivery's coverage
//! source  -> `Ack` as JSON in `PutResult.app_metadata`: first Received, later, in any order, Published
//! sink    -> action "flush": publish what is open now (drain at shutdown and at --until-end)
//! ```
//!
//! A delivery is accepted as a whole: parts without a last part are forgotten with their stream. A sequence number belongs to its
//! stream. Only `Published` releases the sender's write-ahead log.

use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::batch::Group;
use crate::coverage::Coverage;

/// HTTP/2 window of one stream. The protocol's default of 64 KiB makes one stream 36 times slower on loopback.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// HTTP/2 window of one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// The action that publishes what is open.
pub const FLUSH_ACTION: &str = "flush";

/// Goes with every record batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartHeader {
    /// The delivery's number in its stream.
    pub sequence: u64,
    /// The rows' group.
    pub group: Group,
    /// On the last part: what the delivery accounts for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Vec<Coverage>>,
}

/// What storage answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// Storage has these deliveries in memory: their senders may free theirs.
    Received(Vec<u64>),
    /// These deliveries are in the object store and in the catalog.
    Published(Vec<u64>),
}

/// Memory a record batch holds, in bytes; buffers shared by slices count fully.
pub fn batch_bytes(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::get_array_memory_size).sum()
}
