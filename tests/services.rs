//! The whole program on real services: Apache Kafka, PostgreSQL and S3, started by `scripts/services` and named by `OPENWIT_TEST_*`.
//!
//! Proves: what Kafka holds is in Parquet exactly once, whatever is killed when; read back by a reader of another make
//! (`tests/tools/verify.py`: pyarrow, protobuf, its own rules of validity). Cannot prove: power failures, and load.
//!
//! Where a service is missing a test says loudly that it was not run; in CI that is a failure, but for the optional ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

#[path = "services/broker.rs"]
mod broker;
#[path = "services/cluster.rs"]
mod cluster;
#[path = "services/collector.rs"]
mod collector;
#[path = "services/dead_letter.rs"]
mod dead_letter;
#[path = "services/disks.rs"]
mod disks;
#[path = "services/exactly_once.rs"]
mod exactly_once;
#[path = "services/group.rs"]
mod group;
#[path = "services/hostile.rs"]
mod hostile;
#[path = "services/kafka.rs"]
mod kafka;
#[path = "services/kafka_range.rs"]
mod kafka_range;
#[path = "services/parquet.rs"]
mod parquet;
#[path = "services/rebalance.rs"]
mod rebalance;
#[path = "services/long_term.rs"]
mod long_term;
#[path = "services/network.rs"]
mod network;
#[path = "services/secured.rs"]
mod secured;
#[path = "services/setup.rs"]
mod setup;
#[path = "services/storage_nodes.rs"]
mod storage_nodes;
#[path = "services/stores.rs"]
mod stores;
#[path = "services/tokens.rs"]
mod tokens;
#[path = "services/topics.rs"]
mod topics;
#[path = "services/whereis.rs"]
mod whereis;
