//! Graphs of one's own as the command line meets them: run, drawn, listed, refused.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::binary::openwit;
use crate::{DONE, USAGE};

#[test]
fn a_graph_from_lines_to_lines_ends_with_its_input_and_sums_up_what_it_did() {
    let folder = TempDir::new().unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/lines.yaml");
    let ended = Command::new(env!("CARGO_BIN_EXE_openwit-ingest"))
        .args(["run", "--config", config, "--until-end", "--json"])
        .current_dir(folder.path())
        .stdin(lines(&folder, "{\"message\":\"hello\"}\n{\"broken\n\n{\"message\":\"bye\"}\n"))
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8(ended.stdout).unwrap(), String::from_utf8(ended.stderr).unwrap());
    assert_eq!(ended.status.code(), Some(0), "{stderr}");
    let lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let bodies: Vec<_> = lines.iter().filter(|line| line.get("resourceLogs").is_some()).collect();
    assert_eq!(bodies.len(), 2, "{stdout}");
    assert!(lines.iter().any(|line| line["reason"] == "malformed"), "{stdout}");
    let summary = lines.iter().find(|line| line.get("stages").is_some()).unwrap();
    let counts = ["line_source", "stdout_sink", "rejects"].map(|stage| summary["stages"][stage]["lines"].as_u64().unwrap());
    assert_eq!(counts, [4, 2, 1], "{stdout}");
}

fn lines(folder: &TempDir, text: &str) -> std::fs::File {
    let path = folder.path().join("lines");
    std::fs::write(&path, text).unwrap();
    std::fs::File::open(path).unwrap()
}

#[test]
fn a_shipped_graph_is_drawn_with_its_types_and_the_frontiers_that_follow_from_it() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/tee.yaml");
    let drawn = openwit(["graph", "--config", config]).expect(DONE).stdout;
    let edges: Vec<Vec<&str>> = drawn.lines().map(|line| line.split_whitespace().collect()).collect();
    for edge in [
        ["wal_commit", "arrow_encode", "DurableBatch"],
        ["wal_commit", "kafka_sink", "DurableBatch"],
        ["kafka_sink", "wal_commit", "frontier: published"],
        ["flight_sink", "wal_commit", "frontier: published"],
        ["wal_commit", "kafka_source", "frontier: commit"],
    ] {
        let is_drawn = edges.iter().any(|found| found[0] == edge[0] && found[2] == edge[1] && found[3..].join(" ") == edge[2]);
        assert!(is_drawn, "{edge:?}:\n{drawn}");
    }
    for format in ["mermaid", "dot"] {
        let drawn = openwit(["graph", "--config", config, "--format", format]).expect(DONE).stdout;
        assert!(drawn.contains("kafka_sink"), "{drawn}");
    }
}

#[test]
fn operators_are_listed_with_their_types_and_options_and_neither_is_a_usage_error() {
    let listed = openwit(["graph", "--operators"]).expect(DONE).stdout;
    for says in
        ["\nredact\n  NormalizedBatch | UniqueBatch > redacted: ", "    attributes: ", "(must be given)", "Keeps nothing."]
    {
        assert!(listed.contains(says), "{says}:\n{listed}");
    }
    assert!(openwit(["graph"]).expect(USAGE).stderr.contains("--config"));
}
