//! The graphs that a configuration can name.

use openwit_operators::{arrow_encode, dead_letter, dedup_window, flight_sink, kafka_source, normalize, wal_commit};

use crate::wiring::{Description, Stage};

/// Kafka to storage nodes; `dedups` drops duplicates on the way.
///
/// ```text
/// kafka_source > normalize > dedup_window > wal_commit > arrow_encode > flight_sink
///                    +-- rejects > dead_letter
/// ```
pub fn ingest(dedups: bool) -> Description {
    let mut stages = vec![Stage::of(kafka_source::NAME), Stage::of(normalize::NAME), Stage::of(dead_letter::NAME)];
    if dedups {
        stages.push(Stage::of(dedup_window::NAME));
    }
    stages.extend(to_storage());
    Description { stages, storage: false }
}

/// Both sides in one process, joined by Flight over loopback.
pub fn standalone(dedups: bool) -> Description {
    Description { storage: true, ..ingest(dedups) }
}

/// Flight to Parquet and catalog.
pub fn storage() -> Description {
    Description { stages: Vec::new(), storage: true }
}

fn to_storage() -> [Stage; 3] {
    [Stage::of(wal_commit::NAME), Stage::of(arrow_encode::NAME), Stage::of(flight_sink::NAME)]
}
