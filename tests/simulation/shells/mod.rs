//! The ingest graph itself under seeded schedules: the real timely operators with their capabilities and frontiers, on one to four
//! workers.
//!
//! ```text
//! scripted source > normalize > dedup_window > wal_commit ----> arrow_encode > scripted sink
//!      ^                 |                     ^  |  ^  \          ^                |
//!      |                 +-- rejects > dead_letter|  |   > wal_replay              |
//!      +------ durable or published (frontier only)-+  +------- published ----------+
//! ```
//!
//! Kafka, storage and the dead letter's sinks are lists, the disk is in memory. Which worker steps next, when a sync comes back, when a
//! dead letter or a delivery is acknowledged, and what fails, is drawn from one seed (`schedule.rs`). Workers are threads, as timely
//! wants it, but only one runs at a time, and only when told to (`cluster.rs`); the log's threads are let run until they wait for the
//! gate at the disk or for work (`disk.rs`), so a seed replays a history.
//!
//! Proves, whatever the number of workers: every offset is covered exactly once, every valid content is stored once, with all its rows;
//! without a crash duplicates are those that the model names; an offset is committed only when a loss of power at that moment would not
//! lose it, nor a reject before it; after a crash nothing is lost or doubled; at the end of the input everything comes to rest.

mod cluster;
mod disk;
mod graph;
mod lake;
mod schedule;
