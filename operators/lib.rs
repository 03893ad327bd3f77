//! The operators of openwit-ingest, in the order in which data passes them.
//!
//! Nothing here knows of a graph, a config file or a process. Each operator is one file: a thin timely shell around a plain core.

// What travels between the operators, and what all of them lean on.
pub mod backoff;
pub mod batch;
pub mod budget;
pub mod clock;
pub mod coverage;
pub mod dataset;
pub mod desk;
pub mod epoch;
pub mod fault;
pub mod flight;
pub mod kafka_client;
pub mod otlp;
pub mod tenant;
pub mod tokens;

// The ingest graph, and what stands in for its source in a replay.
pub mod kafka_source;
pub mod frame_source;
pub mod capture_source;
pub mod normalize;
pub mod quota;
pub mod recall;
pub mod reload;
pub mod dedup_window;
pub mod wal_commit;
pub mod dead_letter;
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
