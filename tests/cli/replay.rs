//! `replay` as scripts and people meet it: results in folders, what they are compared with and told of, what is never touched, what is refused.
//!
//! The captures are made of a seed and read back here; rows are read with the tests' own reader.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use openwit_operators::batch::RawBatch;
use openwit_operators::capture::{Files, Recorded, Selection};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::addresses;
use crate::support::binary::{Finished, PATIENCE, Process, openwit};
use crate::support::captures;
use crate::support::lake::{self, Place};
use crate::{DIFFERENCE, DONE, FAULT, USAGE, line, logs};

const TILL: &str = "v6.qtw.logs.till.eu";

struct Setup {
    folder: TempDir,
}

/// Rows by message and position in it: their number, and a digest of their content.
type Rows = BTreeMap<(Place, i32), (usize, u64)>;

impl Setup {
    fn new(messages: u64) -> Self {
        let setup = Setup { folder: TempDir::new().unwrap() };
        captures::make(&setup.path("capture"), messages, 40, 11);
        setup.configure("replay.yaml", captures::CONFIG);
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, name: &str, yaml: &str) {
        let data = self.path("data");
        std::fs::write(self.path(name), format!("node: {{data_directory: {}}}\n{yaml}", data.display())).unwrap();
    }

    /// The words of a replay of the capture; those that begin with `@` are names in the folder.
    fn words(&self, words: &str) -> Vec<String> {
        let words = format!("replay --from @capture --config @replay.yaml --set service_ports.arrow_flight=0 {words}");
        let path = |word: &str| word.strip_prefix('@').map_or(word.to_owned(), |name| self.path(name).display().to_string());
        words.split_whitespace().map(path).collect()
    }

    fn replay(&self, words: &str) -> Finished {
        openwit(self.words(words))
    }

    fn rows(&self, result: &str) -> Rows {
        let mut rows = Rows::new();
        for row in lake::rows(&self.path(result).join("rows")) {
            rows.entry((row.place, row.ordinal)).or_insert((0, row.content)).0 += 1;
        }
        rows
    }

    fn rejects(&self, result: &str) -> BTreeMap<Place, String> {
        let letters = lake::letters(&self.path(result).join("rejects"));
        letters.into_iter().map(|letter| (letter.place(), letter.reason)).collect()
    }

    fn captured(&self) -> Vec<Recorded<RawBatch>> {
        let files = Files::open(&self.path("capture")).unwrap();
        files.batches::<RawBatch>(Selection::default()).collect::<Result<_, _>>().unwrap()
    }

    /// All files in the folder of what production keeps, with their lengths.
    fn production(&self) -> BTreeMap<PathBuf, u64> {
        let files = lake::files(&self.path("data"), "");
        files.into_iter().map(|file| (file.clone(), file.metadata().unwrap().len())).collect()
    }
}

/// The places of rows that a comparison lists, by the pointer of one list.
fn listed(difference: &Value, list: &str) -> BTreeSet<(Place, i32)> {
    let groups = difference["rows"]["groups"].as_array().unwrap();
    let rows = groups.iter().flat_map(|group| group[list].as_array().unwrap());
    rows.map(|row| row.get("a").unwrap_or(row)).map(place).collect()
}

fn place(row: &Value) -> (Place, i32) {
    let (partition, offset) = (row["partition"].as_i64().unwrap() as i32, row["offset"].as_i64().unwrap());
    let place = Place { topic: row["topic"].as_str().unwrap().into(), partition, offset };
    (place, row["ordinal"].as_i64().unwrap_or(0) as i32)
}

#[test]
fn a_result_is_what_the_next_replay_gives_and_a_changed_rule_is_told_with_exactly_its_rows() {
    let setup = Setup::new(1_500);
    let first = setup.replay("--to @golden --json").expect(DONE).json();
    assert_eq!((&first["records"], &first["damaged"]), (&json!(1_500), &json!(0)), "{first}");
    let sum: u64 = ["kept", "duplicates", "rejects", "skipped"].iter().map(|what| first[what].as_u64().unwrap()).sum();
    assert_eq!(sum, 1_500, "every message is one of these: {first}");
    let (golden, rejects) = (setup.rows("golden"), setup.rejects("golden"));
    assert_eq!(first["rows"], json!(golden.values().map(|(times, _)| times).sum::<usize>()));

    let equal = setup.replay("--expect @golden --workers 3").expect(DONE);
    assert!(equal.stdout.contains("equal: ") && equal.stdout.contains("rejects are equal"), "{}", equal.stdout);
    assert!(setup.replay("--to @golden").expect(USAGE).stderr.contains("--replace"));
    assert_eq!(setup.rows("golden"), golden, "what is refused removes nothing");
    let again = setup.replay("--to @golden --replace --workers 4").expect(DONE).stdout;
    assert!(again.contains("1500 messages in ") && again.contains(" rows in "), "{again}");
    assert_eq!((setup.rows("golden"), setup.rejects("golden")), (golden.clone(), rejects.clone()));
    let counted = setup.replay("").expect(DONE).stdout;
    assert!(counted.contains("nothing is stored"), "{counted}");

    // Longer messages are rejected from now on, and so are those without a payload.
    let changed = "--set ingestion.limits.payload_bytes_max=1KiB --set ingestion.kafka.tombstones=reject";
    let told = setup.replay(&format!("{changed} --expect @golden --to @changed --show 100000 --json")).expect(DIFFERENCE).json();
    assert_eq!(told["equal"], json!(false));
    let (rows, now_rejected) = (setup.rows("changed"), setup.rejects("changed"));
    let gone: BTreeSet<_> = golden.keys().filter(|row| !rows.contains_key(row)).cloned().collect();
    assert_eq!(listed(&told, "listed_only_a"), gone);
    assert!(listed(&told, "listed_only_b").is_empty() && listed(&told, "listed_differing").is_empty());
    let mut expected = BTreeSet::new();
    for Recorded { batch, .. } in setup.captured() {
        for record in batch.records.iter().filter(|record| record.payload.is_none_or(|payload| payload.len > 1_024)) {
            let partition = batch.partition.partition;
            expected.insert(Place { topic: batch.partition.topic.name.to_string(), partition, offset: record.offset });
        }
    }
    let stored_before: BTreeSet<_> = golden.keys().filter(|(place, _)| expected.contains(place)).cloned().collect();
    assert!(stored_before.len() > 5 && stored_before.len() < golden.len() / 2, "{} of {}", stored_before.len(), golden.len());
    assert_eq!(gone, stored_before);
    let differing: BTreeSet<Place> = told["rejects"].as_array().unwrap().iter().map(|reject| place(reject).0).collect();
    assert!(now_rejected.keys().filter(|place| !rejects.contains_key(*place)).all(|place| differing.contains(place)));
    assert!(differing.iter().all(|place| expected.contains(place)), "{differing:?}");

    let words = setup.replay(&format!("{changed} --expect @golden --show 1")).expect(DIFFERENCE);
    let (first, _) = gone.first().unwrap();
    let named = format!("{}[{}] offset {}", first.topic, first.partition, first.offset);
    assert!(words.stdout.contains("- only in A: ") && words.stdout.contains("rejects differ"), "{}", words.stdout);
    assert!(words.stdout.contains(&named) || words.stdout.contains("more"), "{named}: {}", words.stdout);
    assert!(words.stderr.contains("the results differ"), "{}", words.stderr);
    assert_eq!(setup.production(), BTreeMap::new(), "a replay is not production");
}

#[test]
fn two_configurations_are_compared_row_by_row_and_column_by_column() {
    let setup = Setup::new(800);
    let stages = "
graph:
  stages:
    - kafka_source
    - normalize
    - dead_letter
    - {operator: redact, from: normalize, options: {attributes: [server.port]}}
    - dedup_window
    - wal_commit
    - arrow_encode
    - flight_sink
storage: {endpoints: [\"http://127.0.0.1:1\"]}
";
    setup.configure("redacting.yaml", &captures::CONFIG.replace("graph: standalone\n", stages));
    let told = setup.replay("--compare @redacting.yaml --to @both --show 100000 --json").expect(DIFFERENCE).json();
    let (one, other) = (setup.rows("both/one"), setup.rows("both/other"));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    let changed: BTreeSet<_> = one.iter().filter(|(row, content)| other[row] != **content).map(|(row, _)| row.clone()).collect();
    let of_spans: BTreeSet<_> = one.keys().filter(|(place, _)| place.topic.contains("traces")).cloned().collect();
    assert!(!changed.is_empty() && changed == of_spans, "what has the attribute: {} of {}", changed.len(), one.len());
    assert_eq!(listed(&told, "listed_differing"), changed);
    assert_eq!(told["rejects_differing"], json!(0));
    let text = setup.replay("--compare @redacting.yaml --show 2").expect(DIFFERENCE).stdout;
    for named in ["A: ", "replay.yaml", "B: ", "redacting.yaml", "  ~ v6.qtw.", "different: ", "more"] {
        assert!(text.contains(named), "`{named}` is not in {text}");
    }
    // A dataset schema gives logs of the shop a column more.
    std::fs::create_dir(setup.path("datasets")).unwrap();
    let schema = "dataset: shop-logs\nversion: 1\nindex: shop\nsignal: logs\nattributes:\n  unknown: keep\n  fields:\n    \
                  duration_us: {type: int, promote: true, column: took_us}\n";
    std::fs::write(setup.path("datasets/shop-logs.yaml"), schema).unwrap();
    let datasets = format!("  datasets: {{directory: {}}}\nprocessing:", setup.path("datasets").display());
    setup.configure("datasets.yaml", &captures::CONFIG.replace("processing:", &datasets));
    let told = setup.replay("--compare @datasets.yaml --show 100000 --json").expect(DIFFERENCE).json();
    let of_shop_logs: BTreeSet<_> = one.keys().filter(|(place, _)| place.topic == "v6.qtw.logs.shop.eu").cloned().collect();
    assert_eq!(listed(&told, "listed_differing"), of_shop_logs);
    let groups = told["rows"]["groups"].as_array().unwrap();
    for row in groups.iter().flat_map(|group| group["listed_differing"].as_array().unwrap()) {
        let columns: Vec<&str> =
            row["columns"].as_array().unwrap().iter().map(|column| column["column"].as_str().unwrap()).collect();
        assert!(columns.contains(&"took_us"), "{row}");
    }

    let same = setup.replay("--compare @replay.yaml").expect(DONE).stdout;
    assert!(same.contains("equal: "), "{same}");
    assert_eq!(setup.production(), BTreeMap::new());
}

#[test]
fn a_part_of_a_capture_is_chosen_by_topic_and_time() {
    let setup = Setup::new(800);
    let captured = setup.captured();
    let count = |chosen: &dyn Fn(&Recorded<RawBatch>) -> bool| {
        let batches = captured.iter().filter(|recorded| chosen(recorded));
        batches.map(|recorded| recorded.batch.records.len()).sum::<usize>()
    };
    let replayed = |words: &str| setup.replay(&format!("{words} --json")).expect(DONE).json()["records"].clone();
    let of_till = count(&|recorded| &*recorded.batch.partition.topic.name == TILL);
    assert!(of_till > 0);
    assert_eq!(replayed(&format!("--topic {TILL}")), json!(of_till));
    // Times in whole seconds, as the command line has them.
    let middle = captured[captured.len() / 2].epoch.0 / 1_000;
    let early = count(&|recorded| recorded.epoch.0 < middle * 1_000);
    assert!(early > 0 && early < 800);
    assert_eq!(replayed(&format!("--until {middle}")), json!(early));
    assert_eq!(replayed(&format!("--since {middle}")), json!(800 - early));
    assert_eq!(replayed(&format!("--since {middle} --until {middle}")), json!(0));
}

#[test]
fn the_recorded_speed_takes_its_time_and_gives_the_same() {
    let setup = Setup::new(200);
    let captured = setup.captured();
    let span_ms = captured.last().unwrap().epoch.0 - captured[0].epoch.0;
    setup.replay("--to @golden").expect(DONE);
    let replayed = setup.replay("--to @slow --speed 50 --json").expect(DONE).json();
    let least = span_ms as f64 / 1_000.0 / 50.0;
    assert!(replayed["seconds"].as_f64().unwrap() >= least, "{replayed}: at least {least} s");
    assert_eq!(setup.rows("slow"), setup.rows("golden"));
}

#[test]
fn damage_is_named_and_the_rest_is_replayed() {
    // Several blocks of a MiB, of which one is hit.
    let setup = Setup::new(4_000);
    setup.replay("--to @golden").expect(DONE);
    let file = lake::files(&setup.path("capture"), ".owcap").swap_remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let damaged = setup.replay("--to @rest").expect(FAULT);
    for named in [file.file_name().unwrap().to_str().unwrap(), "damaged", "1 damaged places were left out"] {
        assert!(damaged.stderr.contains(named), "`{named}` is not in {}", damaged.stderr);
    }
    let (golden, rest) = (setup.rows("golden"), setup.rows("rest"));
    assert!(!rest.is_empty() && rest.len() < golden.len());
    // What is told of a comparison then is no proof, whatever it says.
    let compared = setup.replay("--expect @golden").expect(FAULT);
    assert!(compared.stdout.contains("only in A") && compared.stderr.contains("damaged"), "{}", compared.stdout);
}

#[test]
fn what_is_wrong_is_said_before_anything_runs() {
    let setup = Setup::new(50);
    let storage = captures::CONFIG.replace("graph: standalone", "graph: storage");
    setup.configure("storage.yaml", &storage);
    let log = "--from @logs/short --config @replay.yaml";
    let (_writer, ..) = logs(&setup.path("logs"));
    std::fs::create_dir_all(setup.path("foreign/rows")).unwrap();
    std::fs::write(setup.path("foreign/rows/mine"), "kept").unwrap();
    let words = |words: &str| {
        let path = |word: &str| word.strip_prefix('@').map_or(word.to_owned(), |name| setup.path(name).display().to_string());
        openwit(["replay"].map(str::to_owned).into_iter().chain(words.split_whitespace().map(path)))
    };
    let cases = [
        ("--from @capture --config @storage.yaml --to @new", "no stages that can be replayed"),
        ("--from @capture --config @replay.yaml --compare @storage.yaml", "no stages that can be replayed"),
        ("--from @capture --config @replay.yaml --expect @nothing", "replay.json"),
        ("--from @capture --config @replay.yaml --to @foreign", "choose another folder"),
        ("--from @capture --config @replay.yaml --to @foreign --replace", "choose another folder"),
        ("--from @capture --config @replay.yaml --to @new --publish", "--publish"),
        ("--from @capture --config @replay.yaml --replace", "--to"),
        ("--from @capture --config @replay.yaml --speed 0", "0.01"),
        (&format!("{log} --speed 1"), "a log does not know"),
    ];
    for (arguments, named) in cases {
        let refused = words(arguments).expect(USAGE);
        assert!(refused.stderr.contains(named), "{arguments}: `{named}` is not in {}", refused.stderr);
    }
    let missing = words("--from @nowhere --config @replay.yaml").expect(FAULT);
    assert!(
        missing.stderr.contains("nowhere") && missing.stderr.contains("neither a capture nor Parquet files nor a log"),
        "{}",
        missing.stderr
    );
    assert_eq!(std::fs::read_to_string(setup.path("foreign/rows/mine")).unwrap(), "kept");
    assert!(!setup.path("new").exists());
    // A single segment is a log, not a damaged capture.
    let segment = lake::files(&setup.path("logs/short"), ".wal").swap_remove(0);
    let segment = format!("--from {} --config @replay.yaml --json", segment.display());
    assert!(words(&segment).expect(DONE).json()["records"].as_u64() > Some(0));
    assert!(line("replay --help").expect(DONE).stdout.contains("replay.json"));
}

#[test]
fn a_replay_that_is_broken_off_leaves_no_result_and_says_how_to_go_on() {
    let setup = Setup::new(400);
    let mut slow = Process::start(setup.words("--to @part --speed 0.01"));
    let marker = setup.path("part/rows/openwit-files.json");
    crate::support::wait::until("the replay to have begun", PATIENCE, || marker.exists() || slow.has_ended());
    slow.signal(libc::SIGINT);
    let stopped = slow.wait(PATIENCE).expect(FAULT);
    assert!(stopped.stderr.contains("stopped before the end") && stopped.stderr.contains("--replace"), "{}", stopped.stderr);
    assert!(!stopped.stderr.contains("committed"), "a replay commits nothing: {}", stopped.stderr);
    assert!(setup.replay("--expect @part").expect(USAGE).stderr.contains("came to its end"));
    setup.replay("--to @part --replace").expect(DONE);
    setup.replay("--expect @part").expect(DONE);
}

#[test]
fn publishing_stores_each_row_once_and_no_other_replay_touches_what_is_stored() {
    let setup = Setup::new(600);
    setup.replay("--to @golden").expect(DONE);
    assert_eq!(setup.production(), BTreeMap::new());
    let stored = |setup: &Setup| {
        let mut rows = Rows::new();
        for row in lake::rows(&setup.path("data/objects")) {
            rows.entry((row.place, row.ordinal)).or_insert((0, row.content)).0 += 1;
        }
        rows
    };
    let published = setup.replay("--publish --json").expect(DONE).json();
    assert_eq!(published["records"], json!(600), "{published}");
    let golden: BTreeMap<_, u64> = setup.rows("golden").into_iter().map(|(row, (_, content))| (row, content)).collect();
    let rows = stored(&setup);
    assert!(rows.values().all(|(times, _)| *times == 1), "storage drops what is read again");
    assert_eq!(rows.iter().map(|(row, (_, content))| (row.clone(), *content)).collect::<BTreeMap<_, _>>(), golden);
    assert!(!setup.path("data/wal/short-replay").exists(), "its own log is gone");
    setup.replay("--publish").expect(DONE);
    assert_eq!(stored(&setup), rows, "published again, nothing is doubled");

    let before = setup.production();
    assert!(!before.is_empty());
    for words in ["", "--to @other", "--expect @golden", "--compare @replay.yaml"] {
        setup.replay(words).expect(DONE);
        assert_eq!(setup.production(), before, "{words}");
    }
}

#[test]
fn a_capture_that_is_published_is_not_captured_again() {
    let setup = Setup::new(100);
    let capture = setup.path("capture");
    let stages = format!(
        "
graph:
  storage: true
  stages:
    - kafka_source
    - {{operator: capture, options: {{directory: {}}}}}
    - normalize
    - dead_letter
    - {{operator: dedup_window, from: normalize}}
    - wal_commit
    - arrow_encode
    - flight_sink
",
        capture.display()
    );
    setup.configure("replay.yaml", &captures::CONFIG.replace("graph: standalone\n", &stages));
    let files =
        |folder: &Path| lake::files(folder, ".owcap").into_iter().map(|file| file.metadata().unwrap().len()).collect::<Vec<_>>();
    let before = files(&capture);
    setup.replay("--publish").expect(DONE);
    assert_eq!(files(&capture), before);
    assert!(!lake::files(&setup.path("data/objects"), ".parquet").is_empty());
}

#[test]
fn two_processes_that_share_a_capture_give_together_the_bytes_of_one() {
    let setup = Setup::new(1_500);
    let one = setup.replay("--to @one --workers 2 --json").expect(DONE).json();
    for workers in [1, 2] {
        std::fs::write(setup.path("hosts"), addresses::hostfile(2)).unwrap();
        let part = |process: usize| format!("part-{workers}-{process}");
        let start =
            |process: usize| {
                let part = part(process);
                Process::start(setup.words(&format!(
                    "--to @{part} --workers {workers} --json --processes 2 --process {process} --hostfile @hosts"
                )))
            };
        let ended = [start(0), start(1)].map(|process| process.wait(PATIENCE).expect(DONE).json());
        for count in ["records", "kept", "duplicates", "rejects", "skipped", "rows", "files"] {
            let of = |result: &Value| result[count].as_u64().unwrap();
            assert_eq!(of(&ended[0]) + of(&ended[1]), of(&one), "{count} with {workers} workers each");
            assert!(count != "records" || ended.iter().all(|part| of(part) > 0), "each has a share");
        }
        let files = |result: &str| -> BTreeMap<PathBuf, Vec<u8>> {
            let folder = setup.path(result).join("rows");
            let files = lake::files(&folder, ".parquet");
            files
                .into_iter()
                .map(|file| (file.strip_prefix(&folder).unwrap().to_owned(), std::fs::read(&file).unwrap()))
                .collect()
        };
        let mut together = files(&part(0));
        together.extend(files(&part(1)));
        assert!(together == files("one"), "the files differ with {workers} workers each");
        let mut rejects = setup.rejects(&part(0));
        rejects.extend(setup.rejects(&part(1)));
        assert_eq!(rejects, setup.rejects("one"));
    }
}
