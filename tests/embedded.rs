//! Whole graphs in one process, on librdkafka's mock broker: what goes in comes out exactly once, whatever the number of workers and
//! whatever fails on the way.
//!
//! Proves the wiring of the shipped graphs, their recovery and their bookkeeping. What it cannot prove: anything about a real broker's
//! group protocol, retention or transactions, and anything about a process that dies. `services.rs` does that.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

#[path = "embedded/broker.rs"]
mod broker;
#[path = "embedded/consumer.rs"]
mod consumer;
#[path = "embedded/datasets.rs"]
mod datasets;
#[path = "embedded/determinism.rs"]
mod determinism;
#[path = "embedded/failures.rs"]
mod failures;
#[path = "embedded/frontiers.rs"]
mod frontiers;
#[path = "embedded/framing.rs"]
mod framing;
#[path = "embedded/gateway.rs"]
mod gateway;
#[path = "embedded/graphs.rs"]
mod graphs;
#[path = "embedded/pipeline.rs"]
mod pipeline;
#[path = "embedded/quotas.rs"]
mod quotas;
#[path = "embedded/rebalance.rs"]
mod rebalance;
#[path = "embedded/replay.rs"]
mod replay;
#[path = "embedded/storage_alone.rs"]
mod storage_alone;
#[path = "embedded/storage_nodes.rs"]
mod storage_nodes;
#[path = "embedded/topics.rs"]
mod topics;
#[path = "embedded/wal_first.rs"]
mod wal_first;
#[path = "embedded/workers.rs"]
mod workers;
