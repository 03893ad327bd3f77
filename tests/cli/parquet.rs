//! `replay --from` a folder of Parquet files: what storage has published, and what a replay has kept. Rows are read with the tests' own reader.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::binary::{Finished, openwit};
use crate::support::captures;
use crate::support::lake::{self, Place, Row};
use crate::{DIFFERENCE, DONE, FAULT, Loaded, TOPIC, Topic, USAGE, line};

/// A store that was filled by publishing a capture.
struct Stored {
    folder: TempDir,
}

impl Stored {
    fn new(messages: u64) -> Self {
        let stored = Stored { folder: TempDir::new().unwrap() };
        captures::make(&stored.path("capture"), messages, 40, 11);
        stored.configure("a.yaml", "data", captures::CONFIG);
        stored.replay("--from @capture --publish").expect(DONE);
        stored
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A configuration with its data in a folder of its own.
    fn configure(&self, name: &str, data: &str, yaml: &str) {
        std::fs::write(self.path(name), format!("node: {{data_directory: {}}}\n{yaml}", self.path(data).display())).unwrap();
    }

    /// Words that begin with `@` are names in the folder.
    fn replay(&self, words: &str) -> Finished {
        let config = if words.contains("--config") { "" } else { "--config @a.yaml" };
        let words = format!("replay {words} {config} --set service_ports.arrow_flight=0");
        let path = |word: &str| word.strip_prefix('@').map_or(word.to_owned(), |name| self.path(name).display().to_string());
        openwit(words.split_whitespace().map(path))
    }

    fn rows(&self, folder: &str) -> BTreeMap<(Place, i32), Row> {
        rows(&self.path(folder))
    }
}

fn rows(folder: &Path) -> BTreeMap<(Place, i32), Row> {
    let mut rows = BTreeMap::new();
    for row in lake::rows(folder) {
        let before = rows.insert((row.place.clone(), row.ordinal), row);
        assert_eq!(before, None, "stored once");
    }
    rows
}

#[test]
fn what_is_stored_is_replayed_row_by_row_on_any_number_of_workers_and_a_result_of_it_again() {
    let stored = Stored::new(900);
    let lake = stored.rows("data/objects");
    let first = stored.replay("--from @data/objects --to @one --workers 1 --json").expect(DONE).json();
    assert_eq!(first["rows"], json!(lake.len()), "{first}");
    assert_eq!((&first["duplicates"], &first["rejects"], &first["damaged"]), (&json!(0), &json!(0), &json!(0)), "{first}");
    assert_eq!(stored.rows("one/rows"), lake);
    stored.replay("--from @data/objects --to @three --workers 3").expect(DONE);
    let bytes = |result: &str| -> BTreeMap<PathBuf, Vec<u8>> {
        let folder = stored.path(result);
        let files = lake::files(&folder, ".parquet").into_iter();
        files.map(|file| (file.strip_prefix(&folder).unwrap().to_owned(), std::fs::read(&file).unwrap())).collect()
    };
    assert!(bytes("one") == bytes("three"), "the number of workers changes no byte");
    // A result is a source, too, in the same epochs.
    let equal = stored.replay("--from @one --expect @one --workers 2").expect(DONE);
    assert!(equal.stdout.contains("equal: "), "{}", equal.stdout);
    // The catalog lists the same.
    stored.replay("--from parquet --to @listed").expect(DONE);
    assert!(bytes("listed") == bytes("one"), "the same by the catalog");
    let refused = stored.replay("--from parquet --publish").expect(USAGE).stderr;
    assert!(refused.contains("the folder of its object store"), "{refused}");
    // One signal of it, and no index of that name.
    let logs = stored.replay("--from @data/objects --signal logs --index shop --to @logs --json").expect(DONE).json();
    let shop = lake.values().filter(|row| row.place.topic == "v6.qtw.logs.shop.eu").count();
    assert_eq!(logs["rows"], json!(shop));
    let none = stored.replay("--from @data/objects --index nobody").expect(FAULT).stderr;
    assert!(none.contains("parquet_source: ") && none.contains("shop/traces"), "{none}");
    let not = stored.replay("--from @capture --index shop").expect(USAGE).stderr;
    assert!(not.contains("--index"), "{not}");
}

#[test]
fn a_changed_graph_is_compared_on_what_is_stored_and_a_log_first_gives_the_same() {
    let stored = Stored::new(400);
    let stages = "
graph:
  storage: true
  stages:
    - kafka_source
    - wal_commit
    - normalize
    - dead_letter
    - {operator: dedup_window, from: normalize}
    - arrow_encode
    - flight_sink
";
    stored.configure("b.yaml", "b", &captures::CONFIG.replace("graph: standalone\n", stages));
    let equal = stored.replay("--from @data/objects --compare @b.yaml --json").expect(DONE).json();
    assert_eq!(equal["equal"], json!(true), "{equal}");
    // Rows come in behind the window: what stands there is passed.
    let stages = "
graph:
  storage: true
  stages:
    - kafka_source
    - normalize
    - dead_letter
    - {operator: dedup_window, from: normalize}
    - {operator: redact, options: {attributes: [server.port]}}
    - wal_commit
    - arrow_encode
    - flight_sink
";
    stored.configure("c.yaml", "c", &captures::CONFIG.replace("graph: standalone\n", stages));
    let told = stored.replay("--from @data/objects --compare @c.yaml --show 100000 --json").expect(DIFFERENCE).json();
    let groups = told["rows"]["groups"].as_array().unwrap();
    let differing: Vec<&Value> = groups.iter().flat_map(|group| group["listed_differing"].as_array().unwrap()).collect();
    let of_spans = stored.rows("data/objects").keys().filter(|(place, _)| place.topic.contains("traces")).count();
    assert_eq!((differing.len(), told["equal"].as_bool()), (of_spans, Some(false)));
    let columns = |row: &Value| -> Vec<String> {
        row["columns"].as_array().unwrap().iter().map(|column| column["column"].as_str().unwrap().to_owned()).collect()
    };
    assert!(differing.iter().all(|row| columns(row) == ["attributes", "server_port"]), "{:?}", differing.first());
}

#[test]
fn a_store_that_is_published_into_another_catalog_has_the_same_rows_and_the_same_account_of_offsets() {
    let stored = Stored::new(900);
    stored.configure("b.yaml", "b", captures::CONFIG);
    let coverage = |name: &str| -> BTreeMap<String, Value> {
        let catalog = sled::open(stored.path(name)).unwrap();
        let tree = catalog.open_tree("coverage").unwrap();
        let entries = tree.iter().map(|entry| entry.unwrap());
        entries.map(|(key, value)| (format!("{key:?}"), serde_json::from_slice(&value).unwrap())).collect()
    };
    let published = stored.replay("--from @data/objects --config @b.yaml --publish --json").expect(DONE).json();
    assert_eq!(published["damaged"], json!(0), "{published}");
    assert_eq!(stored.rows("b/objects"), stored.rows("data/objects"));
    assert_eq!(coverage("b/catalog"), coverage("data/catalog"));
    // Again: nothing is doubled.
    stored.replay("--from @data/objects --config @b.yaml --publish").expect(DONE);
    assert_eq!(stored.rows("b/objects"), stored.rows("data/objects"));
}

#[test]
fn a_folder_with_a_damaged_file_is_refused_by_its_name_and_leaves_no_result() {
    let stored = Stored::new(200);
    let files = lake::files(&stored.path("data/objects"), ".parquet");
    let victim = files.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let bytes = std::fs::read(victim).unwrap();
    std::fs::write(victim, &bytes[..bytes.len() - 9]).unwrap();
    let name = victim.file_name().unwrap().to_str().unwrap();
    let failed = stored.replay("--from @data/objects --to @part").expect(FAULT).stderr;
    assert!(failed.contains("parquet_source: ") && failed.contains(name) && failed.contains("cut short"), "{failed}");
    assert!(stored.replay("--from @capture --expect @part").expect(USAGE).stderr.contains("came to its end"));
    // In the middle of its rows: what was read before it is in no result either.
    let mut damaged = bytes.clone();
    let middle = bytes.len() / 3..bytes.len() / 3 + 64;
    damaged[middle].fill(0xff);
    std::fs::write(victim, damaged).unwrap();
    let failed = stored.replay("--from @data/objects --to @part --replace").expect(FAULT).stderr;
    assert!(failed.contains(name) && failed.contains("damaged"), "{failed}");
}

#[test]
fn a_store_that_is_rebuilt_in_another_catalog_passes_the_audit_and_sent_back_to_a_topic_it_is_stored_again() {
    let loaded = Loaded::new();
    let brokers = loaded.broker.brokers().to_owned();
    let load = "--count 200 --records-per-message 5 --duplicates 5 --invalid 3 --tombstones 2 --seed 3 --json";
    line(&format!("generate --brokers {brokers} --topic {TOPIC} {load}")).expect(DONE);
    let run = |command: &[&str], sets: &[String]| openwit(loaded.arguments(command, sets));
    run(&["run", "--until-end", "--json"], &[]).expect(DONE);
    let before = run(&["audit", "--json"], &[]).expect(DONE).json();
    let folder = |name: &str| loaded.folder.path().join(name);
    let objects = folder("objects").display().to_string();

    let other = |name: &str| {
        let (catalog, store) = (folder(&format!("{name}-catalog")), folder(&format!("{name}-objects")));
        vec![format!("metastore.path={}", catalog.display()), format!("storage.object_store.root={}", store.display())]
    };
    run(&["replay", "--from", &objects, "--publish"], &other("rebuilt")).expect(DONE);
    let after = run(&["audit", "--json"], &other("rebuilt")).expect(DONE).json();
    assert_eq!(after["clean"], json!(true), "{after}");
    assert_eq!(after["balance"], before["balance"], "as many of each kind, partition by partition");
    assert_eq!(rows(&folder("rebuilt-objects")), rows(&folder("objects")));

    // To a topic, and from there as ever.
    const AGAIN: &str = "v6.qtw.traces.again.eu";
    loaded.broker.create_topic(&Topic { name: AGAIN.into(), partitions: 2 }).unwrap();
    let stages = format!(
        "graph: {{stages: [kafka_source, normalize, dead_letter, {{operator: dedup_window, from: normalize}}, \
         {{operator: kafka_sink, options: {{topic: {AGAIN}}}}}]}}\n\
         node: {{data_directory: {}}}\n\
         ingestion: {{kafka: {{brokers: \"{brokers}\", topics: [{TOPIC}], topic_index_config: {{default_index_position: 3}}}}}}\n",
        folder("sender").display()
    );
    std::fs::write(folder("send.yaml"), stages).unwrap();
    openwit(["replay", "--from", &objects, "--publish", "--config", folder("send.yaml").to_str().unwrap()]).expect(DONE);
    let mut sets = other("again");
    sets.extend([
        format!("ingestion.kafka.topics=[{AGAIN}]"),
        "ingestion.kafka.group_id=again".into(),
        format!("node.data_directory={}", folder("again").display()),
    ]);
    run(&["run", "--until-end", "--json"], &sets).expect(DONE);
    let contents = |name: &str| {
        let mut contents: Vec<u64> = rows(&folder(name)).into_values().map(|row| row.content).collect();
        contents.sort_unstable();
        contents
    };
    assert_eq!(contents("again-objects"), contents("objects"));
}

#[test]
fn a_graph_of_ones_own_begins_with_stored_rows_and_what_is_wrong_with_it_is_said_before_it_runs() {
    let stored = Stored::new(200);
    let graph = |options: &str| {
        let stages = format!(
            "graph:\n  stages:\n    - {{operator: parquet_source, options: {{{options}}}}}\n    \
             - {{operator: redact, options: {{attributes: [server.port]}}}}\n    \
             - {{operator: parquet_files, options: {{directory: {}}}}}\n",
            stored.path("own").display()
        );
        let node = format!("node: {{data_directory: {}}}\nservice_ports: {{admin: 0}}\n", stored.path("d").display());
        std::fs::write(stored.path("own.yaml"), node + &stages).unwrap();
        stored.path("own.yaml").display().to_string()
    };
    let objects = stored.path("data/objects").display().to_string();
    for (options, says) in [
        ("signals: [traces]", "path"),
        ("path: x, signals: [spans]", "none of traces, logs and metrics"),
        ("path: x, since_ms: 5, until_ms: 5", "until_ms: is not after since_ms"),
        ("path: x, topics: [\"a[\"]", "topics"),
    ] {
        let refused = openwit(["check", "--config", &graph(options)]).expect(USAGE).stderr;
        assert!(refused.contains(says), "{options}: {refused}");
    }
    let config = graph(&format!("path: {objects}, signals: [traces]"));
    openwit(["check", "--config", &config]).expect(DONE);
    openwit(["run", "--until-end", "--json", "--config", &config]).expect(DONE);
    let (own, lake) = (stored.rows("own"), stored.rows("data/objects"));
    let of_spans: Vec<_> = lake.keys().filter(|(place, _)| place.topic.contains("traces")).collect();
    assert_eq!(own.keys().collect::<Vec<_>>(), of_spans);
    assert!(own.iter().all(|(row, redacted)| redacted.content != lake[row].content), "each span has the attribute");
    std::fs::remove_dir_all(stored.path("own")).unwrap();
    let nowhere = graph("path: /nowhere/at/all");
    let failed = openwit(["run", "--until-end", "--json", "--config", &nowhere]).expect(FAULT).stderr;
    assert!(failed.contains("parquet_source: /nowhere/at/all: "), "{failed}");
}
