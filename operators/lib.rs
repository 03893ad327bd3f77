//! The operators of openwit-ingest, in the order in which data passes them.
//!
//! Nothing here knows of a graph, a config file or a process. Each operator is one file: a thin timely shell around a plain core.

// What travels between the operators, and what all of them lean on.
pub mod batch;
pub mod clock;
pub mod coverage;
pub mod desk;
pub mod epoch;
pub mod fault;
pub mod flight;
pub mod otlp;

// The ingest graph.
pub mod kafka_source;
