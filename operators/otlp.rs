//! OTLP protobuf as bytes: the normal form of every accepted record (design D-3).
//!
//! `TracesData`, `LogsData` and `MetricsData` share their wire form with the export requests of their signal: field 1, repeated.

pub mod value;
pub(crate) mod write;
pub mod wire;
