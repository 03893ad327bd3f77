//! The dataflow graphs built from the operators, and the process that runs them.
//!
//! ```text
//! process   opens what outlives a dataflow (log, catalog, object store, Flight port), runs the graphs, restarts them, closes
//!   ingest  kafka_source > normalize > dedup_window > wal_commit > arrow_encode > flight_sink, and dead_letter
//!   replay  frame_source > wal_commit > arrow_encode > flight_sink
//!   storage flight_source > parquet_roll > object_upload > catalog_commit > index_trigger
//! ```

pub mod catalog;
pub mod ingest;
pub mod janitor;
mod memory;
pub mod process;
pub mod recovery;
pub mod reload;
pub mod replay;
pub mod storage;
mod workers;

pub use process::{Control, Counters, Outcome, Plan, run};
