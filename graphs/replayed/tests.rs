use openwit_operators::options::{Options, Value};

use super::*;
use crate::shipped;

/// Each stage with where its input comes from.
fn drawn(description: &Description) -> Vec<String> {
    let wiring = check(description).unwrap_or_else(|flaws| panic!("{}", wiring::told(&flaws)));
    let stages = wiring.stages.iter().map(|placed| {
        let from: Vec<String> = placed.inputs.iter().map(|link| name_of(&wiring, *link)).collect();
        format!("{} < {}", placed.stage.name, from.join(", "))
    });
    stages.collect()
}

fn with_captures() -> Description {
    let mut description = shipped::ingest(true);
    let folder = |name: &str| -> Options { [("directory".to_owned(), Value::Path(name.into()))].into_iter().collect() };
    description.stages.insert(1, Stage::of("capture").named("raw").with(folder("raw")));
    let at = description.stages.iter().position(|stage| stage.operator == "wal_commit").unwrap();
    description.stages.insert(at, Stage::of("capture").named("unique").with(folder("unique")));
    description
}

#[test]
fn a_capture_of_what_kafka_gave_replaces_kafka() {
    let fed = fed_by(&shipped::ingest(true), Stage::of("capture_source")).unwrap();
    let expected = [
        "capture_source < ",
        "normalize < capture_source.raw",
        "dead_letter < normalize.rejects",
        "dedup_window < normalize.normalized",
        "wal_commit < dedup_window.unique",
        "arrow_encode < wal_commit.durable",
        "flight_sink < arrow_encode.deliveries",
    ];
    assert_eq!(drawn(&fed), expected);
}

#[test]
fn what_is_replayed_is_not_captured_again() {
    let fed = fed_by(&with_captures(), Stage::of("capture_source")).unwrap();
    let plain = fed_by(&shipped::ingest(true), Stage::of("capture_source")).unwrap();
    assert_eq!(drawn(&without_captures(&fed).unwrap()), drawn(&plain));
}

#[test]
fn what_was_found_unique_comes_in_at_the_log() {
    let expected = [
        "capture_source_unique < ",
        "wal_commit < capture_source_unique.unique",
        "arrow_encode < wal_commit.durable",
        "flight_sink < arrow_encode.deliveries",
    ];
    for dedups in [true, false] {
        let fed = fed_by(&shipped::ingest(dedups), Stage::of("capture_source_unique")).unwrap();
        assert_eq!(drawn(&fed), expected);
    }
}

#[test]
fn the_frames_of_a_log_go_through_a_log_of_the_replay() {
    let fed = fed_by(&shipped::standalone(true), Stage::of("frame_source")).unwrap();
    let expected = [
        "frame_source < ",
        "wal_commit < frame_source.unique",
        "arrow_encode < wal_commit.durable",
        "flight_sink < arrow_encode.deliveries",
    ];
    assert_eq!(drawn(&fed), expected);
    assert!(fed.storage);
}

#[test]
fn a_replay_into_a_sink_of_its_own_touches_nothing_else() {
    let fed = fed_by(&with_captures(), Stage::of("capture_source")).unwrap();
    let ended = ending_in(&fed, Stage::of("blackhole")).unwrap();
    let expected = [
        "capture_source < ",
        "normalize < capture_source.raw",
        "dedup_window < normalize.normalized",
        "dead_letter < normalize.rejects",
        "blackhole < dedup_window.unique",
    ];
    assert_eq!(drawn(&ended), expected);
}

#[test]
fn the_end_of_a_graph_without_a_log_is_where_its_rows_go_and_not_its_rejects() {
    let stages = vec![
        Stage::of("kafka_source"),
        Stage::of("normalize"),
        Stage::of("dead_letter"),
        Stage::of("parquet_files").from("normalize"),
    ];
    let fed = fed_by(&Description { stages, storage: false }, Stage::of("capture_source")).unwrap();
    let ended = ending_in(&fed, Stage::of("blackhole")).unwrap();
    let expected = [
        "capture_source < ",
        "normalize < capture_source.raw",
        "dead_letter < normalize.rejects",
        "blackhole < normalize.normalized",
    ];
    assert_eq!(drawn(&ended), expected);
}

#[test]
fn a_graph_that_does_not_carry_what_was_captured_is_refused() {
    let fed = fed_by(&shipped::ingest(true), Stage::of("capture_source_unique")).unwrap();
    let again = fed_by(&fed, Stage::of("capture_source")).unwrap_err();
    assert!(again.contains("no edge that carries RawBatch"), "{again}");
    assert!(fed_by(&fed, Stage::of("normalize")).unwrap_err().contains("is no source"));
}

fn wal_first() -> Description {
    let names = ["kafka_source", "wal_commit", "normalize", "dead_letter"].map(Stage::of).into_iter();
    let behind = [Stage::of("dedup_window").from("normalize"), Stage::of("arrow_encode"), Stage::of("flight_sink")];
    Description { stages: names.chain(behind).collect(), storage: false }
}

#[test]
fn a_log_of_messages_as_they_came_is_passed_by_on_the_way_to_a_sink_of_the_replays_own() {
    for source in ["frame_source_raw", "capture_source"] {
        let fed = fed_by(&wal_first(), Stage::of(source)).unwrap();
        assert_eq!(drawn(&fed)[1], format!("wal_commit < {source}.raw"));
        let expected = [
            format!("{source} < "),
            format!("normalize < {source}.raw"),
            "dedup_window < normalize.normalized".to_owned(),
            "dead_letter < normalize.rejects".to_owned(),
            "blackhole < dedup_window.unique".to_owned(),
        ];
        assert_eq!(drawn(&ending_in(&fed, Stage::of("blackhole")).unwrap()), expected);
    }
}

#[test]
fn what_was_normalized_is_logged_before_it_becomes_rows_where_the_graphs_own_log_stood_before() {
    let fed = fed_by(&wal_first(), Stage::of("capture_source_unique")).unwrap();
    let expected = [
        "capture_source_unique < ",
        "wal_commit < capture_source_unique.unique",
        "arrow_encode < wal_commit.durable",
        "flight_sink < arrow_encode.deliveries",
    ];
    assert_eq!(drawn(&fed), expected);
}
