//! Turns OTLP protobuf into Arrow record batches of one fixed schema per signal, coalesced per group.
//!
//! # In
//! Durable batches: OTLP protobuf of one group (index, signal), which `normalize` has validated.
//!
//! # Out
//! `EncodedBatch`: record batches of the signal's schema, each below the message limit, with the coverage of all messages in them.
//!
//! # Holds
//! Per group, the rows since the last batch went out, at most `batch_rows_max` of them in columns and the rest as finished record
//! batches; and the capability of the earliest epoch among them.
//!
//! # Closes when
//! The group has `batch_rows_max` rows, or its time is up, or the input ends. Record batches inside are cut by rows and by bytes.
//!
//! # Fails when
//! A payload is not valid OTLP: an invariant is broken, because `normalize` let it pass and the write-ahead log kept it whole.
//!
//! # Invariants
//! - The rows of one message are all in one `EncodedBatch`, in order, and numbered from 0 by `_ordinal`.
//! - Every offset that came in is in exactly one coverage that goes out.
//! - No record batch is over `batch_bytes_max` as a Flight message, unless it holds a single row.
//! - The bytes out depend on the bytes in and the config alone.
//!
//! ```text
//! encoder     shape common to all signals, cutting, coverage
//!  +- common      identity, resource and scope columns: prepared once, repeated per row
//!  +- traces      one row per span
//!  +- logs        one row per log record
//!  +- metrics     one row per data point
//!      +- attributes  attribute lists: promoted columns and maps
//!      |   +- promoted    the table of attributes that have a column
//!      |   +- values      any value as text
//!      +- columns     growing buffers that become Arrow arrays
//! schema      names and types, documented in docs/schemas.md
//! ```

pub mod encoder;
pub mod schema;

mod attributes;
mod columns;
mod common;
mod logs;
mod metrics;
mod promoted;
mod traces;
mod values;

#[cfg(test)]
mod tests;

pub use encoder::{Config, Encoder, Error};

/// The operator's name in config, metrics and messages.
pub const NAME: &str = "arrow_encode";
