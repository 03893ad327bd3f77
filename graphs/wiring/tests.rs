use super::*;
use crate::dataflow::{CommitMode, commit_points, release_points};
use crate::shipped;

fn stages(names: &[&str]) -> Description {
    Description { stages: names.iter().map(|name| Stage::of(name)).collect(), storage: false }
}

fn told(description: &Description) -> Vec<String> {
    let flaws = check(description).err().unwrap_or_default();
    flaws.into_iter().map(|flaw| format!("{:?} {:?}: {}", flaw.stage, flaw.part, flaw.message)).collect()
}

#[track_caller]
fn says(description: &Description, expected: &[&str]) {
    let found = told(description);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found} does not say {expected}");
    }
}

#[test]
fn shipped_graphs_can_be_wired() {
    for description in [shipped::ingest(true), shipped::ingest(false), shipped::standalone(true)] {
        let wiring = check(&description).unwrap_or_else(|flaws| panic!("{flaws:?}"));
        assert_eq!(wiring.order.len(), description.stages.len());
    }
}

#[test]
fn a_log_before_normalize_passes_messages_on_as_they_came_and_waits_for_rows_and_rejects() {
    // The dead letter stands last: what makes rows waits for it all the same.
    let mut description =
        stages(&["kafka_source", "wal_commit", "normalize", "dedup_window", "arrow_encode", "flight_sink", "dead_letter"]);
    let wiring = check(&description).unwrap_or_else(|flaws| panic!("{flaws:?}"));
    assert!(wiring.has_raw_log() && !check(&shipped::ingest(true)).unwrap().has_raw_log());
    let names =
        |points: BTreeSet<usize>| points.into_iter().map(|point| wiring.stages[point].stage.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(commit_points(&wiring, CommitMode::AfterWal)), ["wal_commit"]);
    assert_eq!(names(commit_points(&wiring, CommitMode::AfterPublish)), ["flight_sink", "dead_letter"]);
    assert_eq!(names(release_points(&wiring)), ["flight_sink", "dead_letter"]);
    let place = |name: &str| wiring.order.iter().position(|stage| wiring.stages[*stage].stage.name == name).unwrap();
    assert!(place("dead_letter") < place("arrow_encode"));

    // Without a log nobody could make rows again that storage has lost; two logs are one too many.
    description.stages.remove(1);
    says(&description, &["Some(3) From: arrow_encode takes UniqueBatch only behind a log: put wal_commit before it, or between"]);
    let twice = ["kafka_source", "wal_commit", "normalize", "dead_letter", "wal_commit", "arrow_encode", "flight_sink"];
    assert!(told(&stages(&twice)).iter().any(|flaw| flaw.contains("a process has only one")));
}

#[test]
fn a_stage_is_fed_by_the_nearest_one_above_that_has_an_output_for_it() {
    let wiring = check(&shipped::ingest(true)).unwrap();
    let fed: Vec<(&str, Vec<String>)> = wiring
        .stages
        .iter()
        .map(|placed| {
            let from = placed.inputs.iter().map(|link| {
                let above = &wiring.stages[link.stage];
                format!("{}.{}", above.stage.name, above.operator.outputs[link.output].name)
            });
            (placed.stage.name.as_str(), from.collect())
        })
        .collect();
    let expected: Vec<(&str, Vec<String>)> = [
        ("kafka_source", None),
        ("normalize", Some("kafka_source.raw")),
        ("dead_letter", Some("normalize.rejects")),
        ("dedup_window", Some("normalize.normalized")),
        ("wal_commit", Some("dedup_window.unique")),
        ("arrow_encode", Some("wal_commit.durable")),
        ("flight_sink", Some("arrow_encode.deliveries")),
    ]
    .map(|(stage, from)| (stage, from.into_iter().map(str::to_owned).collect()))
    .into();
    assert_eq!(fed, expected);
}

#[test]
fn a_wrong_type_is_refused_with_both_types_and_both_stages() {
    let mut description = shipped::ingest(true);
    description.stages[3] = Stage::of("dedup_window").named("window").from("kafka_source");
    let found = told(&description);
    assert!(
        found
            .iter()
            .any(|flaw| flaw.contains("Some(3) From: kafka_source gives RawBatch, window (dedup_window) takes NormalizedBatch")),
        "{found:#?}"
    );
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let mut description = stages(&["kafka_source", "normalise", "kafka_source", "dead_letter"]);
    description.stages.push(Stage::of("wal_commit").from("nowhere"));
    let expected = [
        "Some(1) Operator: no such operator: there are kafka_source,",
        "Some(2) Name: is the name of stage 1 already",
        "Some(2) Operator: stage kafka_source is a kafka_source already",
        "Some(2) Operator: a second source beside kafka_source",
        "Some(4) From: no stage is called nowhere",
    ];
    let mut found = told(&description);
    found.sort();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    expected.iter().for_each(|expected| assert!(found.iter().any(|flaw| flaw.contains(expected)), "{expected}: {found:#?}"));
}

#[test]
fn a_graph_without_a_source_or_with_an_input_for_one_is_refused() {
    says(&stages(&["normalize"]), &["the graph has no source: one of kafka_source", "From: no stage above gives RawBatch"]);
    let description =
        Description { stages: vec![Stage::of("kafka_source").from("normalize"), Stage::of("normalize")], storage: false };
    says(&description, &["is a source: nothing goes into it"]);
}

#[test]
fn a_circle_is_refused_with_its_stages() {
    let mut description = shipped::ingest(true);
    description.stages[1] = Stage::of("normalize");
    description.stages.insert(2, Stage::of("redact").named("one").from("two"));
    description.stages.insert(3, Stage::of("redact").named("two").from("one"));
    let found = told(&description);
    assert!(found.iter().any(|flaw| flaw.contains("one, two") && flaw.contains("wait for one another")), "{found:#?}");
}

#[test]
fn an_output_that_nobody_takes_is_refused() {
    let mut description = shipped::ingest(true);
    description.stages.remove(2);
    says(
        &description,
        &["nothing takes Reject from normalize.rejects: add a stage with `from: normalize.rejects`, of dead_letter"],
    );
    let open_end = stages(&["kafka_source", "normalize", "dead_letter", "wal_commit"]);
    says(&open_end, &["nothing takes DurableBatch from wal_commit.durable"]);
}

#[test]
fn more_stages_than_anybody_needs_are_refused_at_once() {
    says(&stages(&["redact"; 10_000]), &["at most 64 stages, and this one 10000"]);
}

#[test]
fn offsets_are_committed_behind_the_first_stage_of_every_branch_that_keeps_them() {
    let wiring = check(&shipped::ingest(true)).unwrap();
    let names =
        |points: BTreeSet<usize>| -> Vec<&str> { points.into_iter().map(|stage| wiring.stages[stage].operator.name).collect() };
    assert_eq!(names(commit_points(&wiring, CommitMode::AfterWal)), ["wal_commit"]);
    assert_eq!(names(commit_points(&wiring, CommitMode::AfterPublish)), ["dead_letter", "flight_sink"]);
    assert_eq!(names(release_points(&wiring)), ["flight_sink"]);
}

#[test]
fn a_sink_that_loses_what_is_committed_is_refused_unless_that_is_meant() {
    use openwit_operators::options::{Options, Value};
    let options = |replace: bool| -> Options { [("replace".to_owned(), Value::Bool(replace))].into_iter().collect() };
    let with = |sink: Stage| Description {
        stages: vec![Stage::of("kafka_source"), Stage::of("normalize"), Stage::of("dead_letter"), sink.from("normalize")],
        storage: false,
    };
    says(&with(Stage::of("parquet_files").with(options(true))), &["each start removes what was kept before"]);
    says(&with(Stage::of("blackhole")), &["keeps nothing, and the offsets of what it is given are committed"]);
    for sink in [
        Stage::of("parquet_files").with(options(false)),
        Stage::of("parquet_files").with(options(true)).losing(),
        Stage::of("blackhole").losing(),
    ] {
        assert_eq!(told(&with(sink)), [""; 0]);
    }
    says(&with(Stage::of("parquet_files").with(options(false)).losing()), &["loses nothing here: leave it out"]);
    let mut beside = shipped::ingest(true);
    beside.stages.push(Stage::of("kafka_sink").from("dedup_window"));
    says(&beside, &["stands beside the log"]);
}
