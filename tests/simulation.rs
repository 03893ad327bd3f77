//! A deterministic simulation of the pipeline: its cores, joined as the graphs join them, under seeded schedules with crashes, torn
//! writes, failed syncs, rebalances, redeliveries, lost acknowledgements and storage nodes that were sent the same offsets.
//!
//! ```text
//!            Collector  Window  Log (disk in memory)  Encoder          Roller  Refusals  catalog (the naive model)
//! Kafka -> ingest 0: read > emit > dedup > append > sync > encode > send -> storage 0: receive > close > settle -> acks
//! (model)  ingest 1                                                       storage 1
//! ```
//!
//! One thread draws one step after the other from one seed, so a seed is a whole history. Proves, against a model that keeps nothing but
//! lists: every valid message is in exactly one committed file or is a duplicate of one that is; nothing acknowledged by a sync is lost;
//! what Kafka is told is durable, what a sender is told is in the catalog; afterwards the catalog covers every offset. Cannot prove: the
//! cores' shells, which `shells` puts under schedules, and anything about real disks and networks.
//!
//! `SIM_SEED=n` replays one history, `SIM_RUNS=n` draws that many; `SIM_TRACE=1` prints every step.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

#[path = "simulation/ingest.rs"]
mod ingest;
#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/schedule.rs"]
mod schedule;
#[path = "simulation/shells/mod.rs"]
mod shells;
#[path = "simulation/storage.rs"]
mod storage;
