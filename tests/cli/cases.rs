//! `test`: cases of this project's own, what a wrong expectation is told, and the examples of the documentation.

use std::fs;
use std::path::PathBuf;

use super::{DIFFERENCE, DONE, USAGE, line, project};
use crate::support::binary::{Finished, openwit};

/// Runs the command on a file with this text.
fn test_of(text: &str, arguments: &[&str]) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cases.yaml");
    fs::write(&file, text).unwrap();
    let finished = openwit(["test", file.to_str().unwrap()].iter().chain(arguments));
    let named = |text: &str| text.replace(folder.path().to_str().unwrap(), "DIR");
    Finished { stdout: named(&finished.stdout), stderr: named(&finished.stderr), ..finished }
}

#[test]
fn all_cases_of_the_project_are_as_expected_with_any_number_of_workers() {
    let cases = project().join("tests/cases");
    for workers in [1, 2, 4] {
        let told = line(&format!("test {} --workers {workers}", cases.display())).expect(DONE);
        assert!(told.stdout.contains(" ok, 0 failed, in "), "{}", told.stdout);
        let json = line(&format!("test {} --workers {workers} --json", cases.display())).expect(DONE).json();
        let lines = told.stdout.lines().count();
        assert_eq!((json["cases"].as_array().unwrap().len(), &json["failed"]), (lines - 1, &0.into()));
    }
}

#[test]
fn the_examples_of_the_documentation_are_as_expected() {
    let text = fs::read_to_string(project().join("docs/testing-with-cases.md")).unwrap();
    let examples: Vec<&str> = text
        .split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .filter(|text| text.contains("cases:"))
        .collect();
    assert!(examples.len() >= 2);
    for example in examples {
        test_of(example, &[]).expect(DONE);
    }
}

const WRONG: &str = r#"
version: 1
config: {ingestion.kafka.telemetry_type: logs}
cases:
  - name: rows differ
    topic: shop
    input:
      - json: {message: payed, service: basket, colour: red, n: 1}
      - json: {message: there, n: 2}
      - payload: "{"
    expect:
      rows:
        - {body: there, attributes: {n: 2}}
        - {body: paid, service_nam: basket, service_name: cart, severity_number: 9, attributes: {colour: null, n: 1, size: xl}}
        - {body: not there}
  - name: others are there
    topic: shop
    input:
      - json: {message: hello, service: basket}
      - payload: "{"
      - {tombstone: true}
      - json: {message: hello, service: basket}
    expect:
      rows: []
      rejects:
        - {offset: 7, reason: empty, detail: nothing}
      duplicates: [2]
      skipped: 0
      row_count: 7
      metrics: {normalize.accepted: 1}
  - name: as expected
    topic: shop
    input: [{json: {message: hello}}]
    expect: {rows: [{body: hello}]}
  - name: the configuration is accepted
    expect: {error: nothing}
  - name: the configuration is refused otherwise
    set: {processing.workers: many}
    expect: {error: few}
"#;

const TOLD: &str = r#"FAILED DIR/cases.yaml:5: rows differ
         line 14: rows[1]: nothing is like it; nearest is shop/logs shop/0 offset 0 row 0
           body: expected "paid", found "payed"
           service_nam: rows of shop/logs have no such column: did you mean service_name?
           service_name: expected "cart", found "basket"
           severity_number: expected 9, found 0
           attributes.colour: expected nothing, found "red"
           attributes.size: expected "xl", found nothing
         line 15: rows[2]: missing, nothing else is left
         line 14: by the way, rejected: 1
           shop/0 offset 2
             malformed: DETAIL
FAILED DIR/cases.yaml:16: others are there
         line 24: rows: 1 not expected
           shop/logs shop/0 offset 0 row 0
             service_name: "basket"
             time: 2026-01-01T00:00:00Z
             observed_time: 2026-01-01T00:00:00Z
             body: "hello"
         line 29: row_count: expected 7, found 1
         line 26: rejects[0]: nothing is like it; nearest is shop/0 offset 1
           offset: expected 7, found 1
           reason: expected empty, found malformed
           detail: expected a text with "nothing", found "DETAIL"
         line 27: duplicates[0]: nothing is like it; nearest is shop/0 offset 3
           offset: expected 2, found 3
         line 28: skipped: expected 0, found 1
           shop/0 offset 2
         line 30: metrics.normalize.accepted: expected 1, found 2
ok     DIR/cases.yaml:31: as expected
FAILED DIR/cases.yaml:35: the configuration is accepted
         line 35: the configuration is accepted, expected an error with "nothing"
FAILED DIR/cases.yaml:37: the configuration is refused otherwise
         line 37: the configuration is refused, and "few" is not what is told
           DIR/cases.yaml:38: processing.workers: value "many": must be a whole number, 1 to 256 threads
5 cases: 1 ok, 4 failed, in TIME"#;

#[test]
fn a_wrong_expectation_fails_and_shows_what_differs_field_by_field() {
    let told = test_of(WRONG, &[]).expect(DIFFERENCE);
    // The words of the JSON reader are its own.
    let detail = told.stdout.lines().find_map(|line| line.trim().strip_prefix("malformed: ")).unwrap().to_owned();
    let quoted = format!("{detail:?}");
    let told_text = told.stdout.replace(&quoted, "\"DETAIL\"").replace(&detail, "DETAIL");
    let (head, _) = told_text.trim_end().rsplit_once("in ").unwrap();
    assert_eq!(format!("{head}in TIME"), TOLD, "{}", told.stdout);
    assert_eq!(told.stderr.trim_end(), "4 of 5 cases failed");
    let json = test_of(WRONG, &["--json"]).expect(DIFFERENCE).json();
    let finding = &json["cases"][0]["findings"][0];
    assert_eq!((&json["ok"], &json["failed"], &finding["line"]), (&1.into(), &4.into(), &14.into()));
    assert_eq!(finding["details"][0], "body: expected \"paid\", found \"payed\"");
}

#[test]
fn a_filter_chooses_cases_by_their_names() {
    let told = test_of(WRONG, &["--filter", "as expected"]).expect(DONE);
    assert!(told.stdout.starts_with("ok     DIR/cases.yaml:31: as expected\n1 case: 1 ok, 0 failed, in "), "{}", told.stdout);
    let told = test_of(WRONG, &["--filter", "no such"]).expect(USAGE);
    assert_eq!(told.stderr.trim_end(), "no case has \"no such\" in its name");
}

#[test]
fn a_wrong_file_ends_with_two_and_names_the_mistakes_of_all_files_with_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let case = "cases: [{name: a, topic: t, input: [{payload: a}], expect: {row_count: 0}}]\n";
    write("a.yaml", &format!("version: 1\nconfig: own.cfg\nset: {{processing.workers: 0}}\n{case}"));
    write("own.cfg", "ingestion: {kafka: {topics: [t], telemetry_typ: logs}}\n");
    write("b.yaml", &format!("version: 3\n{case}"));
    write("c.yaml", &format!("version: 1\nset: {{ingestion.datasets.directory: '${{CASES}}/none'}}\n{case}"));
    let told = |files: &[PathBuf]| {
        let refused = openwit(["test".into()].into_iter().chain(files.iter().cloned())).expect(USAGE);
        assert_eq!(refused.stdout, "");
        refused.stderr.replace(folder.path().to_str().unwrap(), "DIR")
    };
    let all = told(&[folder.path().to_owned()]);
    for expected in [
        "DIR/own.cfg:1: ingestion.kafka.telemetry_typ: unknown key: did you mean ingestion.kafka.telemetry_type?",
        "DIR/a.yaml:3: processing.workers: value \"0\": must be a whole number, 1 to",
        "DIR/b.yaml:1: version: value \"3\": must be 1",
    ] {
        assert!(all.contains(expected), "{expected}\nis not in\n{all}");
    }
    assert_eq!(all.trim_end().lines().count(), 3, "{all}");
    let one = told(&[folder.path().join("c.yaml")]);
    assert!(one.starts_with("DIR/c.yaml:3: case \"a\" cannot run: DIR/none"), "{one}");
    let missing = told(&[folder.path().join("none.yaml")]);
    assert!(missing.starts_with("DIR/none.yaml: cannot be read: "), "{missing}");
    let storage = write("d.yaml", &format!("version: 1\nset: {{graph: storage}}\n{case}"));
    assert!(told(&[storage]).contains("there is nothing that a case could test"));
}
