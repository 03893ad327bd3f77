//! The dataflow graphs built from the operators, and the process that runs them.
//!
//! ```text
//! process     opens what outlives a dataflow (log, catalog, object store, Flight port), runs the graphs, restarts them, closes
//!   dataflow  a graph from a source on, of a wiring: stages, each with an operator of the registry
//!   storage   flight_source > parquet_roll > object_upload > catalog_commit > index_trigger
//! ```

pub mod catalog;
pub mod cluster;
pub mod dataflow;
pub mod edge;
pub mod frontiers;
pub mod held;
pub mod janitor;
mod memory;
mod opening;
pub mod process;
pub mod recovery;
pub mod registry;
pub mod reload;
pub mod replayed;
pub mod shipped;
pub mod storage;
pub mod wiring;
mod workers;

pub use process::{Control, Counters, Outcome, Plan, run};
