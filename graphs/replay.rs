//! The replay graph: the frames of a log to a storage node, without Kafka.
//!
//! ```text
//! frame_source > wal_commit ----> arrow_encode > flight_sink
//!                 ^  \              ^             |
//!                 |   > wal_replay -+             |
//!                 +----- published (frontier only)+
//! ```
//!
//! Frames go through a log of the replay's own: so deliveries can be made again from it, as in the ingest graph, and the log that is
//! read may be one of another node, in an object store, or go away. No offset is committed.

use openwit_operators::arrow_encode::{self, arrow_encode};
use openwit_operators::epoch::{Epoch, Same};
use openwit_operators::flight_sink::{self, flight_sink};
use openwit_operators::frame_source::{self, frame_source};
use openwit_operators::wal_commit::{self, replay, wal_commit};
use timely::dataflow::Scope;
use timely::dataflow::operators::{Concat, ConnectLoop, Feedback};

use crate::ingest::frontier_only;

/// The settings of the graph's operators.
#[derive(Clone)]
pub struct Config {
    /// How rows are encoded.
    pub encode: arrow_encode::Limits,
    /// Where rows are sent.
    pub sink: flight_sink::Config,
}

/// What the graph's operators need from outside.
#[derive(Clone)]
pub struct Ports {
    /// The frames.
    pub frames: frame_source::Ports,
    /// The replay's own log.
    pub wal: wal_commit::Ports,
    /// What is in that log alone.
    pub replay: replay::Ports,
    /// The encoder's.
    pub encode: arrow_encode::Ports,
    /// The sink's.
    pub sink: flight_sink::Ports,
}

/// Builds the graph on one worker.
pub fn replay(scope: Scope<'_, Epoch>, config: Config, ports: Ports) {
    let (published_loop, published) = scope.feedback::<Vec<()>>(Same);

    let frames = frame_source(scope, ports.frames);
    // What is in a log has no rejects left: nothing waits for a dead letter.
    let dead_letter = frontier_only(frames.clone());
    let logged = wal_commit(frames, wal_commit::Frontiers { dead_letter, published }, ports.wal);
    let recalled = replay::wal_replay(logged.spilled, ports.replay);
    let encoded = arrow_encode(logged.durable.concat(recalled), config.encode, ports.encode);
    let delivered = flight_sink(encoded, config.sink, ports.sink);

    delivered.connect_loop(published_loop);
}
