//! How far each stage is, as `Control::frontiers` and `/status` tell it.

use std::collections::BTreeMap;

use openwit_graphs::frontiers::{Reached, STORAGE, StageFrontier};
use openwit_ingest::admin::Admin;
use openwit_ingest::commands::graph::live::draw;
use openwit_ingest::config::Config;
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Format;
use openwit_ingest::status::{Progress, Status};
use openwit_operators::batch::Signal;
use tempfile::TempDir;

use super::pipeline::{INDEX, Running, Until, config, delivered, load, run_to_the_end, send, sent};
use crate::support::binary::PATIENCE;
use crate::support::wait;

const STAGES: [&str; 7] =
    ["kafka_source", "normalize", "dead_letter", "dedup_window", "wal_commit", "arrow_encode", "flight_sink"];

fn of<'f>(frontiers: &'f [StageFrontier], stage: &str) -> &'f StageFrontier {
    frontiers.iter().find(|one| one.stage == stage).unwrap_or_else(|| panic!("no stage {stage} in {frontiers:?}"))
}

/// Offsets that a stage is known to have behind it, of all partitions.
fn offsets(one: &StageFrontier) -> i64 {
    one.partitions.values().filter_map(|passed| passed.offset).sum()
}

#[test]
fn after_a_run_every_stage_is_at_its_end_with_every_offset() {
    for workers in [1, 2, 4] {
        let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
        let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
        send(&broker, &load);
        let config = config(&broker, &load, &folder);
        let control = run_to_the_end(&config, workers);
        let frontiers = control.frontiers();
        let names: Vec<&str> = frontiers.iter().map(|one| one.stage.as_str()).collect();
        assert_eq!(names, STAGES.iter().chain(&STORAGE).copied().collect::<Vec<_>>());
        let ends: BTreeMap<_, _> =
            control.counters.positions.positions().into_iter().map(|(partition, at)| (partition, at.emitted)).collect();
        for one in &frontiers {
            assert_eq!(one.reached, Reached::End, "{} on {workers} workers", one.stage);
            let has_offsets = !one.is_storage || one.stage == "catalog_commit";
            let found: BTreeMap<_, _> =
                one.partitions.iter().filter_map(|(partition, passed)| Some((partition.clone(), passed.offset?))).collect();
            assert_eq!(found, if has_offsets { ends.clone() } else { BTreeMap::new() }, "{}", one.stage);
        }
    }
}

#[test]
fn while_storage_is_away_its_stages_stand_the_log_goes_on_and_status_tells_it() {
    let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    send(&broker, &load);
    let config = config(&broker, &load, &folder);
    let all = load.count.unwrap() as i64;
    // A file where the store needs a folder: this stops even root.
    let in_the_way = config.storage.object_store.root.join(INDEX);
    std::fs::create_dir_all(&config.storage.object_store.root).unwrap();
    std::fs::write(&in_the_way, b"in the way").unwrap();

    let mut running = Running::start(&config, 2, Until::Stopped);
    let admin = Admin::start(&config, running.control()).unwrap();
    running.wait_for("all offsets to be committable", |at| at.emitted == all && at.committable == all);
    let frontiers = || running.control().frontiers();
    wait::until("the log to have passed everything", PATIENCE, || offsets(of(&frontiers(), "wal_commit")) == all);
    let before = frontiers();
    let stands = of(&before, "flight_sink").clone();
    assert!(offsets(&stands) < all, "{stands:?}");
    // An epoch in which something is not stored holds the sink; the source goes on through epochs without anything.
    let later = of(&before, "wal_commit").reached;
    wait::until("the log's frontier to go on", PATIENCE, || of(&frontiers(), "wal_commit").reached > later);
    wait::until("the source's frontier to go on", PATIENCE, || of(&frontiers(), "kafka_source").reached > later);
    // So much that no progress on its way explains it.
    let is_far_behind = |stage: &str, now: &[StageFrontier]| match (of(now, stage).reached, of(now, "wal_commit").reached) {
        (Reached::Before(stage), Reached::Before(log)) => stage.0 + 500 < log.0,
        _ => false,
    };
    wait::until("all that waits for the store to be behind", PATIENCE, || {
        let now = frontiers();
        ["flight_sink", "object_upload", "catalog_commit"].iter().all(|stage| is_far_behind(stage, &now))
    });
    let now = frontiers();
    let held = [of(&now, "flight_sink"), of(&now, "catalog_commit")];
    assert!(held.iter().all(|one| offsets(one) < all), "{held:?}");

    let status = status(&config, &admin);
    assert_eq!((status.state.as_str(), &status.fault), ("running", &None));
    let stage = |name: &str| status.stages.iter().find(|one| one.stage == name).unwrap();
    let behind = |name: &str| stage(name).partitions.iter().filter_map(|one| one.behind).sum::<u64>();
    assert_eq!((behind("kafka_source"), behind("wal_commit"), stage("wal_commit").reached), (0, 0, Progress::At));
    assert!(behind("flight_sink") > 0 && stage("flight_sink").behind_ms.is_none_or(|ms| ms > 0), "{status:?}");
    assert_eq!(status.partitions.iter().map(|one| one.read).sum::<i64>(), all);
    assert_eq!(status.partitions.iter().filter_map(|one| one.committable).sum::<i64>(), all);
    assert!(status.about.edges.iter().any(|edge| edge.from == "arrow_encode" && edge.to == "flight_sink"));
    let drawn = draw(&status);
    let line = drawn.lines().find(|line| line.starts_with("flight_sink")).unwrap();
    assert!(line.contains("arrow_encode") && line.contains("["), "the partitions that hold it are named: {drawn}");

    // It answers while the process drains, and storage is away still.
    running.control().stop();
    wait::until("the source to end", PATIENCE, || of(&frontiers(), "kafka_source").reached == Reached::End);
    assert_eq!((get(&admin, "/healthz").as_str(), self::status(&config, &admin).state.as_str()), ("draining\n", "draining"));
    std::fs::remove_file(in_the_way).unwrap();
    let control = running.finish();
    assert!(control.frontiers().iter().all(|one| one.reached == Reached::End));
    delivered(&config, &sent(&load));
}

fn get(admin: &Admin, path: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("http://{}{path}", admin.address());
    runtime.block_on(async { reqwest::get(url).await.unwrap().error_for_status().unwrap().text().await.unwrap() })
}

fn status(config: &Config, admin: &Admin) -> Status {
    let status: Status = serde_json::from_str(&get(admin, "/status")).unwrap();
    assert_eq!((&status.about.node, &status.about.topics), (&config.node.id, &config.ingestion.kafka.topics));
    status
}
