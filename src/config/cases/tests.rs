use super::*;

fn refused(text: &str) -> Vec<String> {
    let problems = parse(Path::new("cases.yaml"), text, &|_| None).expect_err("it has mistakes");
    problems.iter().flat_map(|problems| problems.to_string().lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn read(text: &str) -> CaseFile {
    parse(Path::new("cases.yaml"), text, &|_| None).expect("it has no mistake")
}

const MISTAKES: &str = r#"
version: 2
confg: {}
set: {processing.dedup_window_secondz: 5}
cases:
  - name: one
    topic: t
    input:
      - {payload: a, jsn: 1}
      - {payload: a, base64: Yg==, offset: 4}
      - {payload: a, offset: 2}
      - {base64: "*"}
      - {file: nowhere.bin}
      - {partition: -1, tombstone: false}
      - {}
      - {payload: {a: 1}, polled_ms: 5, timestamp_ms: soon}
    expect:
      rows: [{}, a]
      rejects: [{reason: malformd, offset: x, detial: y}]
      duplicates: [1, {ofset: 3}]
      skipped: many
      metrics: {normalize.acepted: 1, dedup_window.duplicates: -1}
      exactly: perhaps
  - name: one
    set: {processing: {workers: 0}}
    input: [{payload: a}]
    expect: {exactly: true}
  - input: {}
    expect: {error: no, row_count: 1}
  - {name: two}
"#;

const TOLD: &[&str] = &[
    "cases.yaml:2: version: value \"2\": must be 1",
    "cases.yaml:3: confg: unknown key: did you mean config?",
    "cases.yaml:4: processing.dedup_window_secondz: unknown key: did you mean processing.dedup_window_seconds?",
    "cases.yaml:9: cases[0].input[0].jsn: unknown key: did you mean json?",
    "cases.yaml:10: cases[0].input[1]: has 2 payloads, payload and base64: give one of payload, json, base64, file, tombstone",
    "cases.yaml:11: cases[0].input[2].offset: must be 5 or more: offsets of a partition ascend",
    "cases.yaml:12: cases[0].input[3].base64: value \"*\": must be base64",
    "cases.yaml:13: cases[0].input[4].file: nowhere.bin: cannot be read: No such file or directory (os error 2)",
    "cases.yaml:14: cases[0].input[5].partition: value \"-1\": must be a whole number from 0",
    "cases.yaml:14: cases[0].input[5].tombstone: value \"false\": must be one of true",
    "cases.yaml:15: cases[0].input[6]: has no payload: give one of payload, json, base64, file, tombstone",
    "cases.yaml:16: cases[0].input[7].timestamp_ms: value \"soon\": must be Unix milliseconds, or -1 for none",
    "cases.yaml:16: cases[0].input[7].payload: must be text; for JSON there is the key json, for no payload tombstone: true",
    "cases.yaml:18: cases[0].expect.rows[0]: must be a map of columns and values, as in docs/schemas.md",
    "cases.yaml:18: cases[0].expect.rows[1]: must be a map of columns and values, as in docs/schemas.md",
    "cases.yaml:19: cases[0].expect.rejects[0].detial: unknown key: did you mean detail?",
    "cases.yaml:19: cases[0].expect.rejects[0].offset: value \"x\": must be a whole number from 0",
    "cases.yaml:19: cases[0].expect.rejects[0].reason: value \"malformd\": must be a reason: did you mean malformed?",
    "cases.yaml:20: cases[0].expect.duplicates[1].ofset: unknown key: did you mean offset?",
    "cases.yaml:21: cases[0].expect.skipped: value \"many\": must be a count, or a list of offsets",
    "cases.yaml:22: cases[0].expect.metrics.normalize.acepted: unknown counter: did you mean normalize.accepted?",
    "cases.yaml:22: cases[0].expect.metrics.dedup_window.duplicates: value \"-1\": must be a whole number",
    "cases.yaml:23: cases[0].expect.exactly: value \"perhaps\": must be one of true, false",
    "cases.yaml:24: cases[1].name: is that of cases[0], too",
    "cases.yaml:25: processing.workers: value \"0\": must be",
    "cases.yaml:26: cases[1].input[0].topic: must be given, here or for the whole case",
    "cases.yaml:27: cases[1].expect: expects nothing: give at least one of ",
    "cases.yaml:28: cases[2].name: must be given",
    "cases.yaml:28: cases[2].input: must be a list of messages",
    "cases.yaml:29: cases[2].expect.error: must be alone: a configuration that is refused does not run",
    "cases.yaml:30: cases[3].expect: must be given: what must become of the input",
    "cases.yaml:30: cases[3].input: must be given: a list of messages",
];

#[test]
fn every_mistake_is_told_with_line_and_path_at_once() {
    let mut told = refused(MISTAKES);
    for expected in TOLD {
        let found = told.iter().position(|told| told.starts_with(*expected));
        let found = found.unwrap_or_else(|| panic!("{expected}\nis not in\n{}", told.join("\n")));
        told.remove(found);
    }
    assert_eq!(told, [] as [String; 0]);
}

#[test]
fn a_file_without_cases_or_with_a_wrong_configuration_is_refused() {
    for (text, says) in [
        ("a: [", "cases.yaml:2: not YAML"),
        ("version: 1\ncases: []\n", "cases.yaml:2: cases: must be a list of at least one case"),
        ("version: 1\n", "cases.yaml:1: cases: must be given"),
        (
            "version: 1\nconfig: no.yaml\ncases: [{name: a, input: [], expect: {row_count: 0}}]",
            "cases.yaml:2: config: no.yaml: cannot",
        ),
        ("version: 1\nset: 1\ncases: [{name: a, input: [], expect: {row_count: 0}}]", "cases.yaml:2: set: must be a map of keys"),
    ] {
        let told = refused(text);
        assert!(told.len() == 1 && told[0].starts_with(says), "{text}: {told:?}");
    }
}

#[test]
fn offsets_ascend_and_nothing_is_read_before_what_is_above() {
    let case = |input: &str| format!("version: 1\ncases:\n- name: a\n  topic: t\n  input: {input}\n  expect: {{row_count: 0}}\n");
    let told = refused(&case("[{payload: a, offset: 4}, {payload: a, offset: 2}, {payload: a, polled_ms: 1}]"));
    assert_eq!(
        told,
        [
            "cases.yaml:5: cases[0].input[1].offset: must be 5 or more: offsets of a partition ascend",
            "cases.yaml:5: cases[0].input[2].polled_ms: must not be before that of the message above, 1767225600000",
        ]
    );
    let told = refused(&case("[{payload: a, offset: 9223372036854775807}]"));
    assert!(told[0].ends_with("must be a whole number from 0"), "{told:?}");
    let file = read(&case(
        "[{payload: a}, {payload: a, offset: 4, timestamp_ms: 1767225600009}, {payload: b, partition: 1}, {payload: c}]",
    ));
    let places: Vec<_> =
        file.cases[0].input.iter().map(|message| (message.partition, message.offset, message.polled_ms)).collect();
    let times = [1_767_225_600_000, 1_767_225_600_009];
    assert_eq!(places, [(0, 0, times[0]), (0, 4, times[1]), (1, 0, times[1]), (0, 5, times[1])]);
}

#[test]
fn json_keeps_the_types_that_yaml_writes() {
    let text = r#"
version: 1
cases:
- name: a
  topic: t
  input:
    - json: {n: 1, d: 1.0, t: "1", b: true, q: "true", z: null, e: "null", l: [a, 2], big: 18446744073709551615, plain: 1.2.3}
  expect: {row_count: 0}
"#;
    let payload = read(text).cases[0].input[0].payload.clone().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    let expected = serde_json::json!({
        "n": 1, "d": 1.0, "t": "1", "b": true, "q": "true", "z": null, "e": "null", "l": ["a", 2], "big": u64::MAX, "plain": "1.2.3",
    });
    assert_eq!(found, expected);
}

#[test]
fn keys_lie_over_one_another_and_a_name_may_be_a_path() {
    let text = r#"
version: 1
config: {processing: {dedup_window_seconds: 5}, ingestion.kafka.message_id: kafka_key}
set: {processing.dedup_window_seconds: 6}
cases:
- {name: a, topic: t, input: [], expect: {row_count: 0}}
- {name: b, topic: t, set: {processing: {dedup_window_seconds: 7}}, input: [], expect: {row_count: 0}}
- {name: c, set: {processing.dedup_window_seconds: -1}, expect: {error: dedup_window_seconds}}
"#;
    let file = read(text);
    let windows: Vec<_> =
        file.cases.iter().map(|case| case.config.as_ref().map(|config| config.processing.dedup_window_seconds).ok()).collect();
    assert_eq!(windows, [Some(6), Some(7), None]);
    let told = file.cases[2].config.as_ref().unwrap_err()[0].to_string();
    assert!(told.starts_with("cases.yaml:8: processing.dedup_window_seconds: value \"-1\""), "{told}");
}

#[test]
fn no_text_makes_the_reader_panic() {
    use proptest::prelude::*;
    proptest!(|(text in "(version: 1\n)?(cases:\n)?[ \\[\\]{}:,#\\-?a1\n\t]{0,60}")| {
        let _ = parse(Path::new("cases.yaml"), &text, &|_| None);
    });
}
