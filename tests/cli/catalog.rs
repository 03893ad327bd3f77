//! `audit` and `janitor` on catalogs and object stores in which something was planted.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{DIFFERENCE, DONE, FAULT, Loaded, TOPIC, line};
use crate::support::binary::{Finished, PATIENCE, Process, openwit};
use crate::support::{lake, skipped, wait};

/// A loaded topic, published, on one of the catalogs.
struct Published {
    loaded: Loaded,
    sets: Vec<String>,
    /// URL and schema of PostgreSQL; `None` on sled.
    postgres: Option<(String, String)>,
}

impl Published {
    fn on_sled() -> Self {
        let loaded = Loaded::new();
        let load = "--count 200 --records-per-message 5 --duplicates 5 --invalid 3 --seed 3 --json";
        line(&format!("generate --brokers {} --topic {TOPIC} {load}", loaded.broker.brokers())).expect(DONE);
        Published { loaded, sets: vec![], postgres: None }
    }

    /// `None` where there is no database, after saying so.
    fn on_postgres(test: &str) -> Option<Self> {
        let Ok(url) = std::env::var("OPENWIT_TEST_POSTGRES") else {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "OPENWIT_TEST_POSTGRES must be set under CI");
            skipped(test, "OPENWIT_TEST_POSTGRES is not set");
            return None;
        };
        let schema = format!("openwit_cli_{}_{test}", std::process::id());
        let sets = vec![format!("metastore={{type: postgres, url: \"{url}\", schema: {schema}}}")];
        let mut published = Self::on_sled();
        (published.sets, published.postgres) = (sets, Some((url, schema)));
        Some(published)
    }

    fn run(&self, command: &[&str]) -> Finished {
        openwit(self.loaded.arguments(command, &self.sets))
    }

    fn published(self) -> Self {
        self.run(&["run", "--until-end", "--json"]).expect(DONE);
        self.run(&["audit"]).expect(DONE);
        self
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.loaded.folder.path().join(name)
    }

    /// Changes the coverage of partition 0 behind the program's back; gives where it ended.
    fn change_coverage(&self, change: Change) -> i64 {
        match &self.postgres {
            Some((url, schema)) => change_in_postgres(url, schema, change),
            None => change_in_sled(&self.folder("catalog"), change),
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Some((url, schema)) = &self.postgres {
            let mut client = postgres::Client::connect(url, postgres::NoTls).unwrap();
            client.batch_execute(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE")).unwrap();
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Change {
    /// Take the last three offsets away.
    Gap,
    /// Give them back.
    Mend,
    /// Cover two offsets once more.
    Overlap,
    /// And take that back.
    Unlap,
}

fn change_in_sled(folder: &std::path::Path, change: Change) -> i64 {
    let db = sled::open(folder).unwrap();
    let tree = db.open_tree("coverage").unwrap();
    let is_first = |rows: &Value| rows[0]["partition"]["partition"] == json!(0);
    let entries = tree.iter().map(|entry| entry.unwrap());
    let mut entries = entries.map(|(key, value)| (key, serde_json::from_slice::<Value>(&value).unwrap()));
    let (key, mut rows) = entries.find(|(_, rows)| is_first(rows)).unwrap();
    let end = rows[0]["range"]["end"].as_i64().unwrap();
    let by = match change {
        Change::Gap => -3,
        Change::Mend => 3,
        Change::Overlap | Change::Unlap => 0,
    };
    rows[0]["range"]["end"] = json!(end + by);
    rows[0]["dispositions"]["stored"] = json!(rows[0]["dispositions"]["stored"].as_i64().unwrap() + by);
    if change == Change::Overlap {
        let mut again = rows[0].clone();
        again["range"] = json!({ "start": 2, "end": 4 });
        again["dispositions"] = json!({ "stored": 2, "duplicates": 0, "rejected": 0, "skipped": 0, "absent": 0 });
        rows.as_array_mut().unwrap().push(again);
    } else if change == Change::Unlap {
        rows.as_array_mut().unwrap().truncate(1);
    }
    tree.insert(key, serde_json::to_vec(&rows).unwrap()).unwrap();
    db.flush().unwrap();
    end
}

fn change_in_postgres(url: &str, schema: &str, change: Change) -> i64 {
    let mut client = postgres::Client::connect(url, postgres::NoTls).unwrap();
    client.batch_execute(&format!("SET search_path = {schema}, public")).unwrap();
    let of_first = "partition_id = (SELECT id FROM partitions WHERE partition = 0)";
    let select = format!("SELECT max(upper(offsets)) FROM coverage WHERE {of_first}");
    let end: i64 = client.query_one(&select, &[]).unwrap().get(0);
    let moved = |by: i64| {
        format!(
            "UPDATE coverage SET offsets = int8range(lower(offsets), upper(offsets) + {by}), stored = stored + {by} WHERE {of_first}"
        )
    };
    let statements = match change {
        Change::Gap => moved(-3),
        Change::Mend => moved(3),
        Change::Overlap => "ALTER TABLE coverage DROP CONSTRAINT coverage_partition_id_offsets_excl; \
             INSERT INTO coverage SELECT id, '[2,4)', 2, 0, 0, 0, 0, 2 FROM partitions WHERE partition = 0"
            .into(),
        Change::Unlap => "DELETE FROM coverage WHERE offsets = '[2,4)'".into(),
    };
    client.batch_execute(&statements).unwrap();
    end
}

fn what_is_planted_is_found(published: &Published) {
    // What is published is soon gone from the log, too; while it is there, the audit takes a gap for work under way.
    std::fs::remove_dir_all(published.folder("wal")).unwrap();
    let finds = |what: &str| {
        let audited = published.run(&["audit"]).expect(DIFFERENCE);
        assert!(audited.stdout.contains("NOT CLEAN") && audited.stdout.contains(what), "`{what}` in {}", audited.stdout);
        assert!(audited.stderr.contains(what), "`{what}` in {}", audited.stderr);
        audited
    };
    let end = published.change_coverage(Change::Gap);
    let audited = finds(&format!("gap {}..{end}", end - 3));
    assert!(audited.stderr.contains(&format!("{TOPIC}[0]: gap")), "{}", audited.stderr);
    assert!(audited.stdout.contains(&format!("{TOPIC}[0]: complete from 0 to {}", end - 3)), "{}", audited.stdout);
    published.change_coverage(Change::Mend);

    published.change_coverage(Change::Overlap);
    assert!(finds("overlap 2..4").stderr.contains(&format!("{TOPIC}[0]: overlap 2..4")));
    published.change_coverage(Change::Unlap);
    published.run(&["audit"]).expect(DONE);

    let files = lake::files(&published.folder("objects"), ".parquet");
    let (file, bytes) = (&files[0], std::fs::read(&files[0]).unwrap());
    let name = file.file_name().unwrap().to_str().unwrap();
    std::fs::write(file, &bytes[1..]).unwrap();
    let audited = finds(name);
    let says = format!("{} bytes, the catalog says {}", bytes.len() - 1, bytes.len());
    assert!(audited.stderr.contains(&says), "{}", audited.stderr);
    std::fs::remove_file(file).unwrap();
    finds(name);
    let tidied = published.run(&["janitor"]).expect(DIFFERENCE);
    assert!(tidied.stderr.contains("missing in the object store") && tidied.stderr.contains(name), "{}", tidied.stderr);
    std::fs::write(file, bytes).unwrap();
    published.run(&["audit"]).expect(DONE);
}

#[test]
fn audit_finds_what_is_planted_in_the_embedded_catalog_and_names_it() {
    what_is_planted_is_found(&Published::on_sled().published());
}

#[test]
fn audit_finds_what_is_planted_in_postgresql_and_names_it() {
    let Some(published) = Published::on_postgres("planted") else { return };
    what_is_planted_is_found(&published.published());
}

/// What an audit says of everything but the files' order.
fn audited(published: &Published) -> Value {
    published.run(&["audit", "--json"]).expect(DONE).json()
}

#[test]
fn a_damaged_catalog_is_moved_aside_and_rebuilt_with_equal_content() {
    let published = Published::on_sled().published();
    let before = audited(&published);
    let catalog = published.folder("catalog");
    // As after a disk lost the folder's content and left something else.
    std::fs::remove_dir_all(&catalog).unwrap();
    std::fs::write(&catalog, b"this is no catalog").unwrap();
    for command in [&["audit"][..], &["run", "--until-end"], &["janitor", "--dry-run"]] {
        let refused = published.run(command).expect(FAULT);
        assert!(refused.stderr.contains("`openwit-ingest janitor` moves it aside"), "{command:?}: {}", refused.stderr);
    }
    let tidied = published.run(&["janitor", "--json"]).expect(DONE).json();
    let aside = PathBuf::from(tidied["catalog_moved_to"].as_str().unwrap());
    assert_eq!(std::fs::read(aside).unwrap(), b"this is no catalog");
    assert!(tidied["registered"].as_u64().unwrap() > 0, "{tidied}");
    assert_eq!(audited(&published), before);
    // Nothing comes twice.
    let summary = published.run(&["run", "--until-end", "--json"]).expect(DONE).json();
    assert_eq!(summary["rows"], json!(0), "{summary}");
    assert_eq!(audited(&published), before);
}

#[test]
fn a_look_at_a_catalog_that_was_lost_does_not_pass_it_off_as_complete() {
    let published = Published::on_sled().published();
    let before = audited(&published);
    std::fs::remove_dir_all(published.folder("catalog")).unwrap();
    std::fs::remove_dir_all(published.folder("wal")).unwrap();
    // Each opens an empty one.
    published.run(&["audit"]).expect(DIFFERENCE);
    published.run(&["where", TOPIC, "0", "5"]).expect(DIFFERENCE);
    let summary = published.run(&["run", "--until-end", "--json"]).expect(DONE).json();
    assert_eq!(summary["messages"], json!(0), "{summary}");
    assert_eq!(audited(&published), before);
}

#[test]
fn the_catalog_of_a_killed_process_is_completed_by_the_janitor_and_a_pass_beside_a_run_is_refused() {
    let mut published = Published::on_sled();
    published.sets.push("storage.rotation.idle_seconds=1".into());
    let mut process = Process::start(published.loaded.arguments(&["run"], &published.sets));
    assert!(process.wait_for("files to index"));
    let refused = published.run(&["janitor"]).expect(FAULT);
    assert!(refused.stderr.contains("is in use by another process"), "{}", refused.stderr);
    assert!(process.kill());
    // What the object store has and the catalog may lack; lost entirely, it is the same.
    std::fs::remove_dir_all(published.folder("catalog")).unwrap();
    let tidied = published.run(&["janitor", "--json"]).expect(DONE).json();
    assert!(tidied["registered"].as_u64().unwrap() > 0, "{tidied}");
    published.run(&["run", "--until-end", "--json"]).expect(DONE);
    assert_eq!(audited(&published)["balance"]["covered"], json!(200));
}

#[test]
fn a_storage_process_tidies_by_itself() {
    let published = Published::on_sled().published();
    let objects = published.folder("objects");
    let (files, path) = (lake::files(&objects, ".parquet"), |name: &str| objects.join(name));
    // An object of another commit: the file of a day, under a name of its own, is read and refused.
    std::fs::copy(&files[0], path("01ARZ3NDEKTSV4RRFFQ69G5FAV.parquet")).unwrap();
    let mut sets = published.sets.clone();
    sets.extend(["storage.janitor={interval_seconds: 1, retention_days: 1}".into()]);
    let mut process = Process::start(published.loaded.arguments(&["run"], &sets));
    assert!(process.wait_for("janitor's pass done"));
    assert!(process.wait_for("the footer is that of another file"), "{}", process.stderr());
    process.signal(libc::SIGTERM);
    let ended = process.wait(PATIENCE).expect(DONE);
    assert!(ended.stderr.contains("janitor's pass done"), "{}", ended.stderr);
}

#[test]
fn a_storage_process_removes_files_past_their_retention_and_nothing_else() {
    let published = Published { loaded: Loaded::new(), sets: vec![], postgres: None };
    let days_ago = |days: u64| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() - days * 86_400;
    let objects = || lake::files(&published.folder("objects"), ".parquet");
    let store = |days: u64| {
        let (brokers, start) = (published.loaded.broker.brokers(), days_ago(days));
        let load = format!("--count 60 --records-per-message 5 --start-time {start} --seed {days}");
        line(&format!("generate --brokers {brokers} --topic {TOPIC} {load}")).expect(DONE);
        published.run(&["run", "--until-end"]).expect(DONE);
        objects()
    };
    let old = store(10);
    let both = store(1);
    assert!(!old.is_empty() && both.len() > old.len());
    let sets = ["storage.janitor={interval_seconds: 1, retention_days: 3}".into()];
    let process = Process::start(published.loaded.arguments(&["run"], &sets));
    wait::until("the old files to be removed", PATIENCE, || objects().len() == both.len() - old.len());
    // The pass that removed them is told, and passes that find nothing follow.
    wait::until("another pass", PATIENCE, || process.stderr().matches("janitor's pass done").count() >= 2);
    process.signal(libc::SIGTERM);
    let ended = process.wait(PATIENCE).expect(DONE);
    assert!(ended.stderr.contains(&format!("expired={}", old.len())), "{}", ended.stderr);
    assert!(objects().iter().all(|path| both.contains(path) && !old.contains(path)));
    // Their offsets stay accounted for: nothing is missing, and nothing is read again.
    let audited = audited(&published);
    assert_eq!((&audited["balance"]["covered"], &audited["files"]), (&json!(120), &json!(both.len() - old.len())), "{audited}");
    let summary = published.run(&["run", "--until-end", "--json"]).expect(DONE).json();
    assert_eq!(summary["messages"], json!(0), "{summary}");
}

#[test]
fn migrate_brings_tables_to_this_version_and_lets_a_role_run() {
    let embedded = openwit(["migrate", "--config", &super::project().join("config/standalone.yaml").display().to_string()]);
    assert!(embedded.expect(super::USAGE).stderr.contains("metastore.type is sled"));
    let Some(published) = Published::on_postgres("migrate") else { return };
    let (url, schema) = published.postgres.clone().unwrap();
    let role = format!("{schema}_role");
    let mut owner = postgres::Client::connect(&url, postgres::NoTls).unwrap();
    owner.batch_execute(&format!("CREATE ROLE {role} LOGIN")).unwrap();
    let migrated = published.run(&["migrate", "--grant", &role]).expect(DONE);
    assert!(migrated.stdout.contains("from version 0 to"), "{}", migrated.stdout);
    assert!(published.run(&["migrate"]).expect(DONE).stdout.contains("already"));
    let separator = if url.contains('?') { '&' } else { '?' };
    let sets = vec![format!("metastore={{type: postgres, url: \"{url}{separator}user={role}\", schema: {schema}}}")];
    for command in [&["run", "--until-end"][..], &["audit"], &["janitor"]] {
        openwit(published.loaded.arguments(command, &sets)).expect(DONE);
    }
    drop(published);
    owner.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
}
