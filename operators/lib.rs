//! The operators of openwit-ingest, in the order in which data passes them.
//!
//! Nothing here knows of a graph, a config file or a process. Each operator is one file: a thin timely shell around a plain core.

// What travels between the operators, and what all of them lean on.
pub mod backlog;
pub mod backoff;
pub mod batch;
pub mod budget;
pub mod carried;
pub mod clock;
pub mod coverage;
pub mod dataset;
pub mod desk;
pub mod epoch;
pub mod fault;
pub mod flight;
pub mod kafka_client;
pub mod kafka_producer;
pub mod options;
pub mod place;
pub mod otlp;
pub mod tenant;
pub mod tokens;
mod told;
pub mod transform;

// The ingest graph, and what stands in for its source in a replay.
pub mod kafka_source;
pub mod frame_source;
pub mod capture_source;
pub mod kafka_range_source;
pub mod parquet_source;
pub mod normalize;
pub mod quota;
pub mod redact;
pub mod recall;
pub mod reload;
pub mod dedup_window;
pub mod wal_commit;
pub mod dead_letter;
pub mod settle;
pub mod arrow_encode;
pub mod flight_sink;

// At any edge of it.
pub mod capture;

// The storage graph.
pub mod flight_source;
pub mod parquet_roll;
pub mod object_upload;
pub mod catalog_commit;
pub mod index_trigger;

// For graphs that people wire themselves, and for tests by replay: a source, sinks, and the comparison of what they wrote.
pub mod line_source;
pub mod blackhole;
pub mod stdout_sink;
pub mod kafka_sink;
pub mod parquet_files;
pub mod compare;

// For test cases: a source and a sink in memory, and rows as values.
pub mod memory_source;
pub mod memory_sink;
pub mod row_values;

#[cfg(test)]
mod testing;
